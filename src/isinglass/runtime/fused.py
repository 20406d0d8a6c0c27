"""Attention blocks of LightGlue and SuperGlue, rearranged for inference.

Both add to each state an MLP of the state and of an attended message (LightGlue eq. 1, SuperGlue eq. 3). Rearranged:

- projections of one input are one product
- the projection of the message and the first layer of the MLP are both linear, so they are one (a tenth less work in
  all that is linear). The bias of values adds to every message what it is, so it is in that layer's bias
- on CPUs each thread takes chunks of rows through two passes: write keys and values, then attend and update; what it
  makes stays in its core's cache
- attention's exponentials are powers of 2, so log2(e) is in the projections, as is the scale 1 / sqrt(C)

The plain modules are the slow twin. Shapes: T tokens, N those of a chunk, D width, H heads, C channels a head,
S streams of them (H of queries, and H of keys unless they are the same).
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from isinglass.kernels.attention import fastest_kernel
from isinglass.kernels.linear import ROWS, Affine, has_onednn, padded_rows, rows_product
from isinglass.kernels.rotary import PackedRotation
from isinglass.kernels.threads import for_each, team_size
from isinglass.runtime.anatomy import Snapshot, can_be_compared
from isinglass.runtime.layouts import Layout, Packed

CHUNK = 512  # rows
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedBlock:
    """What `merged` makes. `activation` stands between the MLP's two layers; it may write into its argument."""

    heads: int
    is_cross: bool
    to_pairs: Affine  # queries and keys side by side, or, if `is_cross` shares them, one for both
    to_value_DD: Tensor
    to_hidden: Affine  # of state and message side by side
    activation: Callable[[Tensor], Tensor]
    to_update: Affine

    @classmethod
    def merged(
        cls,
        layers: Sequence[tuple[Tensor, Tensor]],
        activation: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        *,
        heads: int,
        is_cross: bool,
    ) -> FusedBlock:
        """Merge four layers (weight, bias): projection, output of the attention, first and last of the MLP.

        The projection gives queries, keys and values, or one for both queries and keys, and values.
        """
        (project_weight, project_bias), (out_weight, out_bias), (weight, bias), (last_weight, last_bias) = layers
        width = len(out_weight)
        pairs, values = slice(0, -width), slice(-width, None)
        scale = math.log2(math.e) * (width // heads) ** -0.5
        half = scale**0.5  # of queries and of keys
        of_state, of_message = weight.split(width, dim=1)
        hidden_weight = torch.cat([of_state, of_message @ out_weight], dim=1)
        hidden_bias = bias + of_message @ (out_bias + out_weight @ project_bias[values])
        return cls(
            heads=heads,
            is_cross=is_cross,
            to_pairs=Affine((project_weight[pairs] * half).to(dtype), (project_bias[pairs] * half).to(dtype)),
            to_value_DD=project_weight[values].to(dtype),
            to_hidden=Affine(hidden_weight.to(dtype), hidden_bias.to(dtype)),
            activation=activation,
            to_update=Affine(last_weight.to(dtype), last_bias.to(dtype)),
        )

    def __call__(self, x_TD: Tensor, rotation: PackedRotation | None, layout: Layout) -> Tensor:
        """Return the states (T, D) after the block; `rotation` turns the queries and keys of self-attention.

        Where the other view is empty the states are finite and undefined.
        """
        rotation = None if self.is_cross else rotation
        if isinstance(layout, Packed) and x_TD.device.type == "cpu" and has_onednn():
            return self._by_chunks(x_TD, rotation, layout.lengths)
        pairs_TSC = self.to_pairs(x_TD).unflatten(1, (-1, x_TD.shape[1] // self.heads))
        if rotation is not None:
            pairs_TSC = pairs_TSC.float()
            rotation.apply_(pairs_TSC)
        value_THC = (x_TD @ self.to_value_DD.T).unflatten(1, (self.heads, -1))
        pairs_TSC = pairs_TSC.to(value_THC.dtype)
        queries_keys = pairs_TSC[:, : self.heads], pairs_TSC[:, -self.heads :]
        message_THC = layout.attend(*queries_keys, value_THC, cross=self.is_cross, scale=math.log(2))
        return self._updated(torch.cat([x_TD, message_THC.flatten(1)], dim=1), x_TD)

    def _by_chunks(self, x_TD: Tensor, rotation: PackedRotation | None, lengths: Sequence[int]) -> Tensor:
        channels, kernel = x_TD.shape[1] // self.heads, fastest_kernel(x_TD.dtype)
        views = [kernel(self.heads, n, channels, x_TD.dtype) for n in lengths]
        queries: dict[int, Tensor] = {}
        new_TD = torch.empty_like(x_TD)

        def write_keys_and_values(chunk: Chunk) -> None:
            x_ND = padded_rows(x_TD[chunk.start : chunk.end])
            pairs_NSC = self.to_pairs(x_ND).unflatten(1, (-1, channels)).float()
            value_HCN = rows_product(self.to_value_DD, x_ND).unflatten(0, (self.heads, -1))
            if rotation is not None:
                rotation.apply_(pairs_NSC[: chunk.end - chunk.start], slice(chunk.start, chunk.end))
            queries[chunk.start] = pairs_NSC[:, : self.heads]
            for piece in chunk.pieces:
                rows = piece.rows(chunk)
                views[piece.segment].write(piece.place, pairs_NSC[rows, -self.heads :], value_HCN[:, :, rows])

        def attend_and_update(chunk: Chunk) -> None:
            x_ND, query_NHC = padded_rows(x_TD[chunk.start : chunk.end]), queries.pop(chunk.start)
            both_NE = x_ND.new_empty(len(x_ND), 2 * x_ND.shape[1])
            x_half_ND, message_ND = both_NE.chunk(2, dim=1)
            x_half_ND.copy_(x_ND)
            message_ND[chunk.end - chunk.start :] = 0
            for piece in chunk.pieces:
                rows, source = piece.rows(chunk), piece.segment ^ self.is_cross
                out_NHC = message_ND[rows].unflatten(1, (self.heads, -1))
                if lengths[source]:
                    views[source].attend(query_NHC[rows], out_NHC)
                else:
                    out_NHC.zero_()
            new_TD[chunk.start : chunk.end] = self._updated(both_NE, x_ND)[: chunk.end - chunk.start]

        chunks = chunks_of(lengths, team_size())
        for_each(write_keys_and_values, chunks)
        for_each(attend_and_update, chunks)
        return new_TD

    def _updated(self, both_NE: Tensor, x_ND: Tensor) -> Tensor:
        """Return the states after the MLP of states and messages (N, 2 D)."""
        return self.to_update.plus(self.activation(self.to_hidden(both_NE)), x_ND)


class Piece(NamedTuple):
    """Tokens of one segment: where they are in the buffer, and the first one's place in the segment."""

    segment: int
    start: int
    end: int
    place: int

    def rows(self, chunk: Chunk) -> slice:
        """Return its rows of the chunk."""
        return slice(self.start - chunk.start, self.end - chunk.start)


class Chunk(NamedTuple):
    """Neighbouring pieces, from the token `start` to `end`."""

    start: int
    end: int
    pieces: list[Piece]


def chunks_of(lengths: Sequence[int], threads: int) -> list[Chunk]:
    """Cut all tokens into even chunks of at most CHUNK rows, as many for each thread, all whole ROWS but the last."""
    ends = list(itertools.accumulate(lengths))
    blocks = -(-sum(lengths) // ROWS)
    count = min(blocks, threads * -(-blocks * ROWS // (threads * CHUNK)))
    chunks = []
    for i in range(count):
        start, end = (min(blocks * j // count * ROWS, ends[-1]) for j in (i, i + 1))
        pieces = []
        for segment in range(bisect_right(ends, start), bisect_left(ends, end) + 1):
            first = ends[segment] - lengths[segment]
            if lengths[segment]:
                pieces.append(Piece(segment, max(start, first), min(end, ends[segment]), max(start - first, 0)))
        chunks.append(Chunk(start, end, pieces))
    return chunks


def parameters_of(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight (D, C) and bias (D,)."""
    return linear.weight.detach(), linear.bias.detach()


# ---- made once for the weights that a module has


class _Kept:
    """What was made of one network, by name, and the network as it was then."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.state: tuple[Snapshot, dict[Hashable, object]] | None = None

    def find(self, network: nn.Module, name: Hashable) -> tuple[object] | None:
        state = self.state  # once, as another thread may replace it
        if state is None or name not in state[1] or not state[0].holds(network):
            return None
        return (state[1][name],)

    def make(self, network: nn.Module, name: Hashable, make: Callable[[], object]) -> object:
        if self.state is None or not self.state[0].holds(network):
            self.state = None  # first, so that old and new need not both fit into the memory
            state = Snapshot(network), {}
        else:
            state = self.state
        made = make()
        if state[0].holds(network):  # otherwise it was written to meanwhile
            state[1][name] = made
            self.state = state
        return made


_PREPARED: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def prepared(network: nn.Module, name: Hashable, make: Callable[[], _Made]) -> _Made:
    """Return `make()`, kept under `name` for as long as the network has the same modules, settings and numbers.

    `make` may read all of the network but how it is used (`anatomy.USAGE`); what it reads of that must be in the name.
    Every call compares all numbers with a copy, so that no way of writing them goes unnoticed. Any thread may call it.
    """
    if not can_be_compared(network):
        return make()
    kept = _PREPARED.get(network) or _PREPARED.setdefault(network, _Kept())
    found = kept.find(network, name)
    if found is None:
        with kept.lock:  # one thread makes it, the others wait
            found = kept.find(network, name) or (kept.make(network, name, make),)
    return cast(_Made, found[0])


if hasattr(os, "register_at_fork"):  # in a forked child, locks that other threads held would never be released
    os.register_at_fork(after_in_child=_PREPARED.clear)
