"""CUDA graphs for `execution="cuda_graph"`: a layer is one recorded launch, and what leaves is decided on the device.

Nothing else imports this file but for that option, so it can be deleted. The slow twin is the packed buffer of
isinglass.runtime.runner; elsewhere than on CUDA the same functions are called unrecorded, which is how they are tested.

A layer of a matcher is some fifty kernels of a few microseconds, each of which costs the host as much to launch. Graphs
need tensors of fixed shapes: buffers have a few sizes, and what leaves is moved behind what stays. The host reads the
number of active tokens one layer late, while the device has a layer to do, and goes on with a smaller buffer or stops.

Legend: P pairs, S = 2 P segments (the two views of each pair, side by side), E = S + 1 ends, A tokens that were packed,
T places of a buffer, of which the first hold tokens, N keypoints of the longest view, D width, H heads, C channels.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.assignment import mutual_matches
from isinglass.runtime.fused import prepared
from isinglass.runtime.layouts import attend_slices
from isinglass.runtime.packed import Inputs
from isinglass.runtime.pairs import Pair
from isinglass.runtime.runner import Exits, Found, Network, run_layers
from isinglass.types import Matches

MIN_BUCKET = 256  # tokens
WORKSPACES = 8  # of different sizes are kept, with their graphs
NUMBERS_A_TOKEN = 2048  # that a chunk's matrices may have


def match_pairs(network: Network, blocks: Sequence[Sequence[Any]], pairs: Sequence[Pair]) -> list[Matches]:
    """Match each pair, in order, by the fused blocks of each layer; pairs of like size go through them together."""
    counts = [(view0.keypoints.shape[1], view1.keypoints.shape[1]) for view0, view1 in pairs]
    whole = [i for i, count in enumerate(counts) if all(count)]
    results = {i: _nothing(network, count) for i, count in enumerate(counts) if not all(count)}
    most = network.max_tokens
    for chunk in bucket_by_length([counts[i] for i in whole], most, most * NUMBERS_A_TOKEN):
        places = [whole[i] for i in chunk]
        results |= dict(zip(places, _match_chunk(network, blocks, [pairs[i] for i in places]), strict=True))
    return [results[i] for i in range(len(pairs))]


def _match_chunk(network: Any, blocks: Sequence[Sequence[Any]], pairs: Sequence[Pair]) -> list[Matches]:
    views = [view for pair in pairs for view in pair]
    lengths = [view.keypoints.shape[1] for view in views]
    x_AD, position = network.encode(Inputs.packed(views, next(network.parameters())))
    graphs: Graphs = prepared(network, ("graphs", network.compute_dtype), lambda: Graphs(network, blocks))
    position = None if position is None else position.packed()
    ended = graphs.run(x_AD.to(network.compute_dtype), position, lengths)
    matches = _matches(network, ended, lengths)
    pruned_at, confidences = (
        values_A[: sum(lengths)].split(lengths) for values_A in (ended.exit_A, ended.confidence_A)
    )
    return [
        network.report(
            Found(matches[i], (pruned_at[2 * i], pruned_at[2 * i + 1]), (confidences[2 * i], confidences[2 * i + 1]))
        )
        for i in range(len(pairs))
    ]


def _nothing(network: Network, count: tuple[int, int]) -> Matches:
    device = next(network.parameters()).device
    zeros = tuple(torch.zeros(n, dtype=torch.int64, device=device) for n in count)
    nans = tuple(torch.full((n,), torch.nan, device=device) for n in count)
    return network.report(Found((zeros[0] - 1, zeros[0].float()), (zeros[0], zeros[1]), (nans[0], nans[1])))


class Ended(NamedTuple):
    """How tokens left, by the place at which they were packed.

    x_AD          states of the points of a pair when it finished
    is_final_A    whether a token was still there then
    exit_A        the number of layers each token went through
    confidence_A  its last confidence; NaN = none
    layer_P       the layer (from 0) after which each pair finished
    place_P2N     where the tokens of each view were packed; the last place is nobody's
    """

    x_AD: Tensor
    is_final_A: Tensor
    exit_A: Tensor
    confidence_A: Tensor
    layer_P: Tensor
    place_P2N: Tensor


def _matches(network: Network, ended: Ended, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return indices and scores of each pair by the head of the layer after which it finished; here the host waits."""
    is_point_P2N = ended.is_final_A[ended.place_P2N] & (ended.place_P2N < len(ended.is_final_A) - 1)
    like = next(network.parameters())
    layers, results = ended.layer_P[: len(lengths) // 2].tolist(), {}
    for layer in set(layers):
        chosen = torch.tensor([i for i, one in enumerate(layers) if one == layer], device=like.device)
        x_B2ND, mask_B2N = ended.x_AD[ended.place_P2N[chosen]].to(like), is_point_P2N[chosen]
        x_B2ND = torch.where(mask_B2N[..., None], x_B2ND, 0)
        log_assignment_BNN = network.log_assignment(layer, x_B2ND[:, 0], x_B2ND[:, 1], mask_B2N)
        indices_BN, scores_BN = mutual_matches(log_assignment_BNN, network.config.filter_threshold)
        for pair, index_N, score_N in zip(chosen.tolist(), indices_BN, scores_BN, strict=True):
            results[pair] = index_N[: lengths[2 * pair]], score_N[: lengths[2 * pair]].float()
    return [results[i] for i in range(len(layers))]


class Graphs:
    """The fused layers of a network, and an LRU cache of workspaces, keyed by shape. One thread at a time runs them."""

    def __init__(self, network: Any, blocks: Sequence[Sequence[Any]]) -> None:
        self.network = copy.copy(network)  # the same modules, but not the object that this is kept for
        self.layers = blocks
        self.workspaces: OrderedDict[Sizes, Workspace] = OrderedDict()
        self.lock = threading.Lock()

    def run(self, x_AD: Tensor, position: Any, lengths: Sequence[int]) -> Ended:
        """Run states and positions, two views of `lengths` a pair, none of them empty, through the layers."""
        sizes = Sizes.for_lengths(lengths)
        with self.lock:
            workspace = self.workspaces.pop(sizes, None) or Workspace(self.network, self.layers, sizes, x_AD, position)
            self.workspaces[sizes] = workspace
            if len(self.workspaces) > WORKSPACES:
                self.workspaces.popitem(last=False)
            return workspace.run(x_AD, position, lengths)


class Sizes(NamedTuple):
    """Room in a workspace: for tokens, for pairs, and for the keypoints of a view."""

    tokens: int
    pairs: int
    longest: int

    @classmethod
    def for_lengths(cls, lengths: Sequence[int]) -> Sizes:
        """Return the buckets that views of these lengths, two a pair, fit into."""
        return cls(bucket_of(sum(lengths)), bucket_of(len(lengths) // 2, 1), bucket_of(max(lengths), 64))

    def places(self, length_S: Tensor) -> Tensor:
        """Return where the tokens of each view are (P, 2, N) int64; A, behind the last, where there is none."""
        start_S1 = (length_S.cumsum(0) - length_S)[:, None]
        number_N = torch.arange(self.longest, device=length_S.device)
        place_SN = torch.where(number_N < length_S[:, None], start_S1 + number_N, self.tokens)
        return place_SN.unflatten(0, (-1, 2))

    def lengths(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Return the lengths (S,) int32; those of missing pairs are 0."""
        missing = 2 * self.pairs - len(lengths)
        length_S = torch.tensor([*lengths, *[0] * missing], dtype=torch.int32)
        if device.type == "cuda":
            length_S = length_S.pin_memory()
        return length_S.to(device, non_blocking=True)


class Workspace:
    """Buffers for pairs of some sizes, and a table of how tokens left (see `Ended`)."""

    def __init__(self, network: Network, layers: Sequence[Any], sizes: Sizes, x_AD: Tensor, position: Any) -> None:
        self.network, self.layers, self.sizes = network, layers, sizes
        self.like = x_AD[:0], None if position is None else type(position)(*(values[:0] for values in position))
        places, pairs, device = sizes.tokens + 1, sizes.pairs, x_AD.device  # the last place is never read
        self.ended = Ended(
            x_AD=x_AD.new_zeros(places, x_AD.shape[1]),
            is_final_A=torch.zeros(places, dtype=torch.bool, device=device),
            exit_A=torch.zeros(places, dtype=torch.int64, device=device),
            confidence_A=torch.zeros(places, dtype=torch.float32, device=device),
            layer_P=torch.zeros(pairs, dtype=torch.int64, device=device),
            place_P2N=torch.zeros(pairs, 2, sizes.longest, dtype=torch.int64, device=device),
        )
        self.max_unsure_P = torch.zeros(pairs, dtype=torch.int64, device=device)
        self.buffers: dict[int, Buffer] = {}

    def run(self, x_AD: Tensor, position: Any, lengths: Sequence[int]) -> Ended:
        """See `Graphs.run`."""
        length_S = self._begin(lengths, x_AD.device)
        buffer = self._buffer(self.sizes.tokens)
        buffer.fill(x_AD, position, torch.arange(len(x_AD), device=x_AD.device), length_S)
        active: list[AsyncScalar] = []

        def after(layer: int, buffer: Buffer) -> Buffer | None:
            active.append(AsyncScalar(buffer.count))
            if layer == 0:
                return buffer
            count = active[layer - 1].read()  # while the device has the next layer to do
            return self._buffer(bucket_of(count)).taking_over(buffer) if count else None

        run_layers(range(len(self.layers)), buffer, after)
        return Ended(*(values.clone() for values in self.ended))

    def _begin(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        length_S, ended = self.sizes.lengths(lengths, device), self.ended
        num_points = map(sum, zip(lengths[::2], lengths[1::2], strict=True))
        max_unsure = [self.network.max_unsure(points) for points in num_points]
        self.max_unsure_P.copy_(torch.tensor(max_unsure + [-1] * (self.sizes.pairs - len(max_unsure))))
        ended.place_P2N.copy_(self.sizes.places(length_S))
        ended.exit_A.zero_()
        ended.is_final_A.zero_()
        ended.confidence_A.fill_(torch.nan)
        return length_S

    def _buffer(self, places: int) -> Buffer:
        if places not in self.buffers:
            self.buffers[places] = Buffer(self, places)
        return self.buffers[places]


class Buffer:
    """T places for tokens; a layer works on them and moves those that stay to the front.

    origin_T  the place at which each token was packed; A = no token is here
    length_S  tokens that are left of each view
    count     number of those of all views, 0-d
    """

    def __init__(self, workspace: Workspace, places: int) -> None:
        (x, position), sizes = workspace.like, workspace.sizes
        self.workspace, self.places = workspace, places
        self.x_TD = x.new_zeros(places, *x.shape[1:])
        self.position = position and type(position)(*(one.new_zeros(places, *one.shape[1:]) for one in position))
        self.origin_T = torch.full((places,), sizes.tokens, device=x.device)
        self.length_S = torch.zeros(2 * sizes.pairs, dtype=torch.int32, device=x.device)
        self.count = torch.zeros((), dtype=torch.int64, device=x.device)
        self.graphs = [CudaGraph(functools.partial(self._act, i), x.device) for i in range(len(workspace.layers))]

    def advance(self, layer: int) -> None:
        """See isinglass.runtime.runner.State; returns as soon as the device knows what to do."""
        self.graphs[layer]()

    def fill(self, x_TD: Tensor, position: Any, origin_T: Tensor, length_S: Tensor) -> None:
        """Take at most as many tokens as there are places."""
        count = len(x_TD)
        self.x_TD[:count], self.origin_T[:count] = x_TD, origin_T
        for mine, values in zip(self.position or (), position or (), strict=True):
            mine[:count] = values
        self.origin_T[count:] = self.workspace.sizes.tokens
        self.length_S.copy_(length_S)

    def taking_over(self, other: Buffer) -> Buffer:
        """Return the smaller of the two, with the tokens of the other."""
        n = self.places
        if n >= other.places:
            return other
        position = other.position and type(other.position)(*(values[:n] for values in other.position))
        self.fill(other.x_TD[:n], position, other.origin_T[:n], other.length_S)
        return self

    def _act(self, layer: int) -> None:
        space, ended, last = self.workspace, self.workspace.ended, layer == len(self.graphs) - 1
        layout = Segments.of_lengths(self.length_S, space.sizes.longest)
        owner_T = layout.owner(self.places)
        is_there_T, pair_T = owner_T < len(self.length_S), owner_T.clamp(max=len(self.length_S) - 1) // 2
        x_TD = self.x_TD
        for block in space.layers[layer]:
            x_TD = block(x_TD, self.position, layout)
        exits = Exits() if last else self._exits(layer, x_TD, layout)
        finished_P = self.length_S[::2] > 0
        if not last:
            finished_P = torch.zeros_like(finished_P) if exits.finished_P is None else finished_P & exits.finished_P
        if exits.confidence_T is not None:
            ended.confidence_A.index_copy_(0, self._origins(is_there_T), exits.confidence_T.float())
        finished_T = is_there_T & finished_P[pair_T]
        stays_T = is_there_T & ~finished_T
        stays_T = stays_T if exits.stays_T is None else stays_T & exits.stays_T
        is_left_P = (layout.segment_counts(stays_T).unflatten(0, (-1, 2)) > 0).all(dim=1)  # no view of it is empty
        stays_T = stays_T & is_left_P[pair_T]
        ended.layer_P.copy_(torch.where(finished_P, layer, ended.layer_P))
        ended.x_AD.index_copy_(0, self._origins(finished_T), x_TD)
        ended.is_final_A.index_fill_(0, self._origins(finished_T), True)
        ended.exit_A.index_fill_(0, self._origins(is_there_T & ~stays_T), layer + 1)
        self._compact(x_TD, stays_T, layout.segment_counts(stays_T))

    def _exits(self, layer: int, x_TD: Tensor, layout: Segments) -> Exits:
        space = self.workspace
        return space.network.exits(layer, x_TD.to(next(space.network.parameters())), layout, space.max_unsure_P)

    def _origins(self, flag_T: Tensor) -> Tensor:
        """Return where the tokens that have the flag were packed; for the others the place that is never read."""
        return torch.where(flag_T, self.origin_T, self.workspace.sizes.tokens)

    def _compact(self, x_TD: Tensor, stays_T: Tensor, length_S: Tensor) -> None:
        order_T, count = kept_first(stays_T)
        is_taken_T = torch.arange(self.places, device=x_TD.device) < count
        self.x_TD.copy_(x_TD[order_T])
        for values in self.position or ():
            values.copy_(values[order_T])
        self.origin_T.copy_(torch.where(is_taken_T, self.origin_T[order_T], self.workspace.sizes.tokens))
        self.length_S.copy_(length_S)
        self.count.copy_(count)


# ---- a layout whose lengths are on the device


@dataclass(frozen=True, slots=True)
class Segments:
    """Layout of segments s from token `ends_E[s]` to `ends_E[s + 1]`; places behind the last end hold no token."""

    ends_E: Tensor  # int32
    longest: int  # no segment has more tokens

    @classmethod
    def of_lengths(cls, lengths_S: Tensor, longest: int) -> Segments:
        """Lay segments of these lengths side by side."""
        return cls(_ends(lengths_S), longest)

    def owner(self, places: int) -> Tensor:
        """Return the segment of each place (T,) int64; S = none."""
        place_T = torch.arange(places, device=self.ends_E.device, dtype=self.ends_E.dtype)
        return torch.searchsorted(self.ends_E[1:], place_T, right=True)

    def segment_counts(self, flag_T: Tensor) -> Tensor:
        """Return the number (S,) int64 of tokens of each segment that have the flag."""
        return F.pad(flag_T.cumsum(0), (1, 0))[self.ends_E.long()].diff()

    def pair_counts(self, flag_T: Tensor) -> Tensor:
        """Return the number (P,) int64 of tokens of each pair that have the flag."""
        return self.segment_counts(flag_T).unflatten(0, (-1, 2)).sum(dim=1)

    def attend(self, q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, *, cross: bool, scale: float | None = None) -> Tensor:
        """See isinglass.runtime.layouts.Layout: on CUDA one call of flash attention, for halves; elsewhere a loop.

        Messages at places without a token are undefined, and may not be finite.
        """
        ends_k = self.ends_E
        if cross:
            ends_k = _ends(self.ends_E.diff().unflatten(0, (-1, 2)).flip(1).flatten())
            source_T = self._swapped(len(q_THC))
            k_THC, v_THC = k_THC[source_T], v_THC[source_T]
        if q_THC.device.type == "cuda":
            from torch.nn.attention.varlen import varlen_attn  # 1.6 s, as it brings torch's compiler along

            out = varlen_attn(q_THC, k_THC, v_THC, self.ends_E, ends_k, self.longest, self.longest, scale=scale)
            assert isinstance(out, Tensor)
            return out
        return attend_slices(q_THC, k_THC, v_THC, _slices(self.ends_E), _slices(ends_k), scale)

    def _swapped(self, places: int) -> Tensor:
        """Return the token (T,) that comes to each place once the two views of every pair have changed places."""
        place_T = torch.arange(places, device=self.ends_E.device)
        start_P, middle_P, end_P = (self.ends_E[first:last:2] for first, last in ((0, -1), (1, None), (2, None)))
        pair_T = torch.searchsorted(end_P.contiguous(), place_T.to(end_P), right=True)
        is_taken_T, pair_T = pair_T < len(end_P), pair_T.clamp(max=len(end_P) - 1)
        offset_T, second_T = place_T - start_P[pair_T], (end_P - middle_P)[pair_T]
        in_pair_T = offset_T + torch.where(offset_T < second_T, (middle_P - start_P)[pair_T], -second_T)
        return torch.where(is_taken_T, start_P[pair_T] + in_pair_T, place_T)


def kept_first(keep_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return places (T,) of the tokens to keep, in order, then anything; and the number of those tokens (0-d)."""
    places, place_T = len(keep_T), torch.arange(len(keep_T), device=keep_T.device)
    running_T = keep_T.cumsum(0)
    order = place_T.new_zeros(places + 1)
    order.scatter_(0, torch.where(keep_T, running_T - 1, places), place_T)
    return order[:places], running_T[-1]


def _ends(lengths_S: Tensor) -> Tensor:
    return F.pad(lengths_S.cumsum(0, dtype=torch.int32), (1, 0))


def _slices(ends_E: Tensor) -> list[slice]:
    ends = ends_E.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


# ---- launches and sizes


class CudaGraph:
    """`act()` at the first call, which chooses kernels; recorded at the second, played back from then on.

    It must work on the same tensors each time and must not make the host wait. What it allocates is gone afterwards.
    """

    def __init__(self, act: Callable[[], None], device: torch.device) -> None:
        self.act, self.device = act, device
        self.calls, self.graph = 0, None

    def __call__(self) -> None:
        """Return as soon as the device knows what to do."""
        self.calls += 1
        if self.device.type != "cuda" or self.calls == 1:
            self.act()
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=_pool(self.device), capture_error_mode="thread_local"):
                self.act()
            self.graph = graph
        self.graph.replay()


class AsyncScalar:
    """A number on the device that the host reads once it is there, without waiting for what comes after it."""

    def __init__(self, value: Tensor) -> None:
        if value.device.type == "cuda":
            self.value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.value, self.event = value.clone(), None

    def read(self) -> int:
        """Wait for the number alone."""
        if self.event is not None:
            self.event.synchronize()
        return int(self.value)


@functools.cache
def _pool(device: torch.device) -> Any:
    """Return the memory that all graphs of a device share: none needs what it allocated once it is through."""
    return torch.cuda.graph_pool_handle()


def bucket_of(count: int, smallest: int = MIN_BUCKET) -> int:
    """Return the first of `smallest` times 1, 1.5, 2, 3, 4, 6, 8, ... that is not below `count`."""
    size = smallest
    while size < count:
        size *= 2
    return size * 3 // 4 if size > smallest and count <= size * 3 // 4 else size


def bucket_by_length(lengths: Sequence[tuple[int, int]], max_tokens: int, max_numbers: int) -> Iterator[list[int]]:
    """Yield which pairs to take at once: of like size, as matrices are padded to the longest view among them.

    Pairs have at most `max_tokens` together, and their matrices `max_numbers`; a larger pair comes alone.
    """
    chunk, total = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: max(lengths[i])):
        longest = max(lengths[i])  # the longest so far, as they are sorted
        if chunk and (total + sum(lengths[i]) > max_tokens or (len(chunk) + 1) * longest**2 > max_numbers):
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += sum(lengths[i])
    if chunk:
        yield chunk
