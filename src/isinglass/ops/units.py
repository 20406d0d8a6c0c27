"""The attention unit that LightGlue and SuperGlue are made of, rearranged for inference.

Both add to each state an MLP of the state and of an attended message (LightGlue eq. 1, SuperGlue eq. 3). Rearranged:

- projections of one input are one product
- the projection of the message and the first layer of the MLP are both linear, so they are one (a quarter less work in
  all that is linear), and state and message need not be concatenated
- what acts on each token alone runs over CHUNK rows at a time, whose hidden states stay in the cache

The plain modules are the slow twin. Shapes: T tokens, U of them used, D width, H heads, C channels a head,
S streams (H of queries, H of keys unless they are shared, H of values).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from isinglass.ops.attention import attend_packed
from isinglass.ops.linear import Affine

CHUNK = 512  # rows, for each thread
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """`project` gives queries, keys and values side by side, or, if `is_cross` shares them, one for both and values.

    `between` is what stands between the two layers of the MLP; it may write into its argument.
    """

    heads: int
    is_cross: bool
    project: Affine
    from_state: Affine
    from_message: Affine
    between: Callable[[Tensor], Tensor]
    to_state: Affine

    @classmethod
    def merged(
        cls,
        layers: Sequence[tuple[Tensor, Tensor]],
        between: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        *,
        heads: int,
        is_cross: bool,
    ) -> Unit:
        """Of four layers (weight, bias): projection, output of the attention, first and last of the MLP."""
        project, (out_weight, out_bias), (weight, bias), last = layers
        of_state, of_message = weight.split(out_weight.shape[0], dim=1)
        return cls(
            heads=heads,
            is_cross=is_cross,
            project=Affine(*(one.to(dtype) for one in project)),
            from_state=Affine(of_state.to(dtype), (bias + of_message @ out_bias).to(dtype)),
            from_message=Affine((of_message @ out_weight).to(dtype)),
            between=between,
            to_state=Affine(*(one.to(dtype) for one in last)),
        )

    def __call__(self, x_TD: Tensor, lengths: Sequence[int], turn: Callable[[Tensor], None] | None = None) -> Tensor:
        """States (T, D) after the unit, T a multiple of ROWS that `lengths` need not fill.

        `turn` rotates queries and keys (2 H, T, C), float32, in place.
        """
        used, channels = sum(lengths), x_TD.shape[1] // self.heads
        streams_TSC = _joined([self.project(x) for x in x_TD.split(_chunk())]).unflatten(1, (-1, channels))
        num_streams = streams_TSC.shape[1] - self.heads
        of_pairs_SUC = x_TD.new_empty(num_streams, used, channels, dtype=torch.float32)
        of_pairs_SUC.copy_(streams_TSC[:used, :num_streams].transpose(0, 1))
        if turn is not None:
            turn(of_pairs_SUC)
        query, key = of_pairs_SUC[: self.heads], of_pairs_SUC[-self.heads :]
        value = streams_TSC[:used, num_streams:].transpose(0, 1)
        message_TD = attend_packed(query, key, value, lengths, int(self.is_cross), rows=len(x_TD)).flatten(1)
        states = []
        for x, message in zip(x_TD.split(_chunk()), message_TD.split(_chunk()), strict=True):
            hidden = self.between(self.from_message.plus(message, self.from_state(x)))
            states.append(self.to_state.plus(hidden, x))
        return _joined(states)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _chunk() -> int:
    return CHUNK * torch.get_num_threads()


def parameters_of(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (D,)."""
    return linear.weight.detach(), linear.bias.detach()


# ---- made once for the weights that a module has


_PREPARED: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, tuple[tuple, object]]] = weakref.WeakKeyDictionary()


def prepared(module: nn.Module, dtype: torch.dtype, make: Callable[[], _Made]) -> _Made:
    """`make()`, kept for as long as the parameters and buffers of the module stay what they are."""
    tensors = (*module.parameters(), *module.buffers())
    key = tuple((one.data_ptr(), None if one.is_inference() else one._version, one.device) for one in tensors)
    kept = _PREPARED.setdefault(module, {})
    found = kept.get(dtype)
    if found is None or found[0] != key:
        found = kept[dtype] = key, make()
    return found[1]  # type: ignore[return-value]
