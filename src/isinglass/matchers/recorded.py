"""LightGlue and SuperGlue for GPUs: each step is one recorded launch, and who is done is decided on the device.

What `match_many` computes on CPUs, which is its slow twin, with buffers of a few fixed sizes instead of lists. Pairs
and points leave by being moved behind those that stay; the host hears how many stay one layer late, while the device
has a layer to do, and then goes on with a smaller buffer or stops.

Legend: P pairs, S = 2 P views, N keypoints of the longest view, A tokens of all at first, T of those that are left:
each up to the size of a bucket (isinglass.ops.recording), what is more holds anything; D width, L layers.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from isinglass.ops.assignment import log_double_softmax, log_sinkhorn, mutual_matches
from isinglass.ops.linear import Affine
from isinglass.ops.recording import Later, Recorded, alike, bucket_of
from isinglass.ops.segments import Segments, kept_first
from isinglass.ops.units import Unit
from isinglass.types import Features, Matches

WORKSPACES = 8  # of different sizes are kept, with their recordings
NUMBERS_A_TOKEN = 2048  # that a chunk's matrices may have, see `ops.recording.alike`
Pair = tuple[Features, Features]
_Workspace = TypeVar("_Workspace")


def match_alike(
    recorded: Callable[[list[Pair]], list[Matches]],
    plain: Callable[[list[Pair]], list[Matches]],
    pairs: Sequence[Pair],
    most_tokens: int,
) -> list[Matches]:
    """Match each pair, in order: `recorded` those of like size at once, `plain` those of which a view is empty."""
    lengths = [(one0.keypoints.shape[1], one1.keypoints.shape[1]) for one0, one1 in pairs]
    whole = [i for i, of_pair in enumerate(lengths) if all(of_pair)]
    empty = [i for i, of_pair in enumerate(lengths) if not all(of_pair)]
    found = dict(zip(empty, plain([pairs[i] for i in empty]), strict=True)) if empty else {}
    for chunk in alike([lengths[i] for i in whole], most_tokens, most_tokens * NUMBERS_A_TOKEN):
        places = [whole[i] for i in chunk]
        found |= dict(zip(places, recorded([pairs[i] for i in places]), strict=True))
    return [found[i] for i in range(len(pairs))]


def stacked(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Weights and biases of linear layers, one behind the other; of those with one output (L, D) and (L,)."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weights, biases = (torch.stack([getattr(one, name).detach() for one in linear]) for name in ("weight", "bias"))
    return (weights.squeeze(1), biases.squeeze(1)) if weights.shape[1] == 1 else (weights, biases)


class Sizes(NamedTuple):
    """Of a workspace: places for tokens, for pairs, and for the keypoints of a view."""

    tokens: int
    pairs: int
    longest: int

    @classmethod
    def for_lengths(cls, lengths: Sequence[int]) -> Sizes:
        """The buckets that views of these lengths, two a pair, fit into."""
        return cls(bucket_of(sum(lengths)), bucket_of(len(lengths) // 2, least=1), bucket_of(max(lengths), least=64))

    def places(self, length_S: Tensor) -> Tensor:
        """(P, 2, N) int64, where the tokens of each view are; the place behind the last, A, where there is none."""
        start_S1 = (length_S.cumsum(0) - length_S)[:, None]
        number_N = torch.arange(self.longest, device=length_S.device)
        place_SN = torch.where(number_N < length_S[:, None], start_S1 + number_N, self.tokens)
        return place_SN.unflatten(0, (-1, 2))

    def lengths(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """(S,) int32, those of the pairs that are not there 0."""
        missing = 2 * self.pairs - len(lengths)
        length_S = torch.tensor([*lengths, *[0] * missing], dtype=torch.int32)
        if device.type == "cuda":
            length_S = length_S.pin_memory()
        return length_S.to(device, non_blocking=True)


class Workspaces(Generic[_Workspace]):
    """Those used last, by what they are for. One thread at a time may use them."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, _Workspace] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Workspace]) -> _Workspace:
        """The one of that key, made where there is none."""
        found = self.kept.pop(key, None)
        self.kept[key] = found = make() if found is None else found
        if len(self.kept) > WORKSPACES:
            self.kept.popitem(last=False)
        return found


class PaddedMatches(NamedTuple):
    """Of view 0; those of pairs and keypoints that are not there are anything."""

    indices_PN: Tensor
    scores_PN: Tensor


# ---- LightGlue


@dataclass(frozen=True, kw_only=True)
class LightGlueParts:
    """What its L layers are, apart from the module, which may then be collected; the heads side by side."""

    units: Sequence[tuple[Unit, Unit]]
    confidence: tuple[Tensor, Tensor]  # (L, D) and (L,); that of the last layer is not used
    matchability: tuple[Tensor, Tensor]
    projection: tuple[Tensor, Tensor]  # (L, D, D) and (L, D)


@dataclass(frozen=True, kw_only=True)
class Exits:
    """Who leaves when (section 3.3): `alpha` None = all after the last; `least_matchable` None = none is pruned."""

    alpha: float | None
    least_matchable: float | None
    confident: tuple[float, ...]  # threshold of each layer
    filter_threshold: float


class Trace(NamedTuple):
    """Of each token by its first place (A + 1,): the layers it went through, and its last confidence, NaN = none."""

    left_A: Tensor
    confidence_A: Tensor


class RecordedLightGlue:
    """`match` is LightGlue's inference, adaptive in depth and width."""

    def __init__(self, parts: LightGlueParts) -> None:
        self.parts, self.workspaces = parts, Workspaces[_LightGlueWorkspace]()

    def match(
        self, x_AD: Tensor, factors_A: Tensor, lengths: Sequence[int], exits: Exits
    ) -> tuple[PaddedMatches, Trace]:
        """Of states and positions side by side, two views of `lengths` a pair, none of them empty."""
        sizes = Sizes.for_lengths(lengths)
        with self.workspaces.lock:
            space = self.workspaces.get(
                (sizes, exits), lambda: _LightGlueWorkspace(self.parts, sizes, exits, x_AD, factors_A)
            )
            return space.match(x_AD, factors_A, lengths)


class _LightGlueWorkspace:
    """Buffers for pairs of some sizes, and what each of their tokens had when it left, by its first place."""

    def __init__(self, parts: LightGlueParts, sizes: Sizes, exits: Exits, x_AD: Tensor, factors_A: Tensor) -> None:
        self.parts, self.sizes, self.exits = parts, sizes, exits
        self.like = x_AD.new_empty(0, *x_AD.shape[1:]), factors_A.new_empty(0, *factors_A.shape[1:])
        places, device = sizes.tokens + 1, x_AD.device  # the last is for what nobody will read
        self.final_AD = x_AD.new_zeros(places, x_AD.shape[1])
        self.is_final_A = torch.zeros(places, dtype=torch.bool, device=device)
        self.left_A = torch.zeros(places, dtype=torch.int64, device=device)
        self.confidence_A = torch.zeros(places, dtype=torch.float32, device=device)
        self.head_P = torch.zeros(sizes.pairs, dtype=torch.int64, device=device)  # the layer each pair stopped after
        self.max_unsure_P = torch.zeros(sizes.pairs, dtype=torch.int64, device=device)
        self.place_P2N = torch.zeros(sizes.pairs, 2, sizes.longest, dtype=torch.int64, device=device)
        self.found = PaddedMatches(
            *(torch.zeros_like(self.place_P2N[:, 0], dtype=dtype) for dtype in (torch.int64, torch.float32))
        )
        self.buffers: dict[int, _Buffer] = {}
        self.assign = Recorded(self._assign, device)

    def match(self, x_AD: Tensor, factors_A: Tensor, lengths: Sequence[int]) -> tuple[PaddedMatches, Trace]:
        """See `RecordedLightGlue.match`."""
        length_S = self._begin(lengths, x_AD.device)
        buffer = self._buffer(self.sizes.tokens)
        buffer.fill(x_AD, factors_A, torch.arange(len(x_AD), device=x_AD.device), length_S)
        stay: list[Later] = []
        for layer in range(len(self.parts.units)):
            if layer > 1:
                count = stay[layer - 2].read()  # while the device has the layer after that one to do
                if count == 0:
                    break
                buffer = self._buffer(bucket_of(count)).taking_over(buffer)
            buffer.layers[layer]()
            stay.append(Later(buffer.count))
        self.assign()
        return PaddedMatches(*(x.clone() for x in self.found)), Trace(self.left_A.clone(), self.confidence_A.clone())

    def _begin(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        length_S = self.sizes.lengths(lengths, device)
        self.place_P2N.copy_(self.sizes.places(length_S))
        self.max_unsure_P.copy_(torch.tensor(self._max_unsure(lengths)))
        self.left_A.zero_()
        self.is_final_A.zero_()
        self.confidence_A.fill_(torch.nan)
        return length_S

    def _max_unsure(self, lengths: Sequence[int]) -> list[int]:
        """Return how many unconfident points each pair may have when it is finished (eq. 12); -1 = no such pair.

        Python's floats decide, as they do on CPUs: not every device has float64.
        """
        alpha, counts = self.exits.alpha or 0.0, []
        for points in map(sum, zip(lengths[::2], lengths[1::2], strict=True)):
            count = points
            while count >= 0 and not 1 - count / points > alpha:
                count -= 1
            counts.append(count)
        return counts + [-1] * (self.sizes.pairs - len(counts))

    def _buffer(self, places: int) -> _Buffer:
        if places not in self.buffers:
            self.buffers[places] = _Buffer(self, places)
        return self.buffers[places]

    def _assign(self) -> None:
        """Matches of all pairs, each by the head of the layer it stopped after."""
        is_point_P2N = self.is_final_A[self.place_P2N] & (self.place_P2N < self.sizes.tokens)
        (matchability_LD, bias_L), (projection_LDD, bias_LD) = self.parts.matchability, self.parts.projection
        x_P2ND, head_P = self.final_AD[self.place_P2N].to(projection_LDD), self.head_P
        z_P2N = torch.einsum("pvnd,pd->pvn", x_P2ND, matchability_LD[head_P]) + bias_L[head_P, None, None]
        projected_P2ND = torch.einsum("pvnd,ped->pvne", x_P2ND, projection_LDD[head_P]) + bias_LD[head_P, None, None]
        projected_P2ND *= x_P2ND.shape[-1] ** -0.25
        similarity_PNN = projected_P2ND[:, 0] @ projected_P2ND[:, 1].mT
        padding_PNN = ~(is_point_P2N[:, 0, :, None] & is_point_P2N[:, 1, None])
        log_assignment_PNN = log_double_softmax(similarity_PNN, z_P2N[:, 0], z_P2N[:, 1], padding_PNN)
        for kept, value in zip(
            self.found, mutual_matches(log_assignment_PNN, self.exits.filter_threshold), strict=True
        ):
            kept.copy_(value)


class _Buffer:
    """T places for tokens; a layer works on them and moves those that stay to the front.

    origin_T  the first place of each token; A = nobody is here
    length_S  tokens that are left of each view
    count     how many those are together, 0-d
    """

    def __init__(self, space: _LightGlueWorkspace, places: int) -> None:
        (x, factors), sizes = space.like, space.sizes
        self.space, self.places = space, places
        self.x_TD, self.factors_T = (one.new_zeros(places, *one.shape[1:]) for one in (x, factors))
        self.origin_T = torch.full((places,), sizes.tokens, device=x.device)
        self.length_S = torch.zeros(2 * sizes.pairs, dtype=torch.int32, device=x.device)
        self.count = torch.zeros((), dtype=torch.int64, device=x.device)
        self.layers = [Recorded(functools.partial(self._act, i), x.device) for i in range(len(space.parts.units))]

    def fill(self, x_TD: Tensor, factors_T: Tensor, origin_T: Tensor, length_S: Tensor) -> None:
        """With at most so many tokens as there are places."""
        count = len(x_TD)
        self.x_TD[:count], self.factors_T[:count], self.origin_T[:count] = x_TD, factors_T, origin_T
        self.origin_T[count:] = self.space.sizes.tokens
        self.length_S.copy_(length_S)

    def taking_over(self, other: _Buffer) -> _Buffer:
        """The smaller of the two, with the tokens of the other."""
        n = self.places
        if n >= other.places:
            return other
        self.fill(other.x_TD[:n], other.factors_T[:n], other.origin_T[:n], other.length_S)
        return self

    def _act(self, layer: int) -> None:
        space, is_last = self.space, layer == len(self.layers) - 1
        segments = Segments.of_lengths(self.length_S, space.sizes.longest)
        owner_T = segments.owner(self.places)
        is_there_T, pair_T = owner_T < len(self.length_S), owner_T.clamp(max=len(self.length_S) - 1) // 2
        x_TD = self.x_TD
        for unit, factors_T in zip(space.parts.units[layer], (self.factors_T, None), strict=True):
            x_TD = unit.at_once(x_TD, segments, factors_T)
        finished_P, stays_T = self._decided(layer, x_TD, segments, is_there_T)
        finished_P = (self.length_S[::2] > 0) & (finished_P | is_last)
        finished_T = is_there_T & finished_P[pair_T]
        stays_T = stays_T & ~finished_T
        is_left_P = (segments.count(stays_T).unflatten(0, (-1, 2)) > 0).all(dim=1)  # no view of it is empty
        stays_T = stays_T & is_left_P[pair_T]
        space.head_P.copy_(torch.where(finished_P, layer, space.head_P))
        space.final_AD.index_copy_(0, self._first_places(finished_T), x_TD)
        space.is_final_A.index_fill_(0, self._first_places(finished_T), True)
        space.left_A.index_fill_(0, self._first_places(is_there_T & ~stays_T), layer + 1)
        self._move_up(x_TD, stays_T, segments.count(stays_T))

    def _decided(self, layer: int, x_TD: Tensor, segments: Segments, is_there_T: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs (P,) are finished (eq. 12), and which tokens (T,) are there and not pruned."""
        space, exits = self.space, self.space.exits
        threshold, finished_P = exits.confident[layer], torch.zeros_like(space.max_unsure_P, dtype=torch.bool)
        if layer == len(self.layers) - 1:
            return finished_P, is_there_T
        may_go_T = is_there_T
        if exits.alpha is not None:
            confidence_T = _probability(x_TD, space.parts.confidence, layer)
            space.confidence_A.index_copy_(0, self._first_places(is_there_T), confidence_T.float())
            unsure_S = segments.count(is_there_T & (confidence_T < threshold))
            finished_P = unsure_S.unflatten(0, (-1, 2)).sum(dim=1) <= space.max_unsure_P
            may_go_T = confidence_T > threshold
        if exits.least_matchable is None:
            return finished_P, is_there_T
        unmatchable_T = _probability(x_TD, space.parts.matchability, layer) <= exits.least_matchable
        return finished_P, is_there_T & ~(unmatchable_T & may_go_T)

    def _first_places(self, flag_T: Tensor) -> Tensor:
        """Those of the tokens that have the flag; of the others the place that nobody reads."""
        return torch.where(flag_T, self.origin_T, self.space.sizes.tokens)

    def _move_up(self, x_TD: Tensor, stays_T: Tensor, length_S: Tensor) -> None:
        order_T, count = kept_first(stays_T)
        is_taken_T = torch.arange(self.places, device=x_TD.device) < count
        self.x_TD.copy_(x_TD[order_T])
        self.factors_T.copy_(self.factors_T[order_T])
        self.origin_T.copy_(torch.where(is_taken_T, self.origin_T[order_T], self.space.sizes.tokens))
        self.length_S.copy_(length_S)
        self.count.copy_(count)


def _probability(x_TD: Tensor, heads: tuple[Tensor, Tensor], layer: int) -> Tensor:
    weight_LD, bias_L = heads
    return (x_TD.to(weight_LD) @ weight_LD[layer] + bias_L[layer]).sigmoid()


# ---- SuperGlue


@dataclass(frozen=True, kw_only=True)
class SuperGlueParts:
    """What its layers are, apart from the module; `bin_score` 0-d."""

    encoder: Sequence[Affine]
    units: Sequence[Unit]
    projection: Affine
    bin_score: Tensor


class RecordedSuperGlue:
    """`match` is SuperGlue's inference."""

    def __init__(self, parts: SuperGlueParts, dtype: torch.dtype) -> None:
        self.parts, self.dtype, self.workspaces = parts, dtype, Workspaces[_SuperGlueWorkspace]()

    def match(
        self, position_A3: Tensor, descriptor_AD: Tensor, lengths: Sequence[int], iterations: int, threshold: float
    ) -> PaddedMatches:
        """Of positions with scores, and descriptors of the states' width, side by side as for LightGlue."""
        sizes = Sizes.for_lengths(lengths)
        with self.workspaces.lock:
            space = self.workspaces.get(
                (sizes, iterations, threshold),
                lambda: _SuperGlueWorkspace(self, sizes, descriptor_AD, iterations, threshold),
            )
            return space.match(position_A3, descriptor_AD, lengths)


class _SuperGlueWorkspace:
    def __init__(
        self, model: RecordedSuperGlue, sizes: Sizes, like_AD: Tensor, iterations: int, threshold: float
    ) -> None:
        self.parts, self.dtype, self.sizes = model.parts, model.dtype, sizes
        self.iterations, self.threshold = iterations, threshold
        self.position_A3 = like_AD.new_zeros(sizes.tokens, 3)
        self.descriptor_AD = like_AD.new_zeros(sizes.tokens, like_AD.shape[1])
        self.length_S = torch.zeros(2 * sizes.pairs, dtype=torch.int32, device=like_AD.device)
        place_PN = torch.zeros(sizes.pairs, sizes.longest, dtype=torch.int64, device=like_AD.device)
        self.found = PaddedMatches(place_PN, place_PN.float())
        self.act = Recorded(self._act, like_AD.device)

    def match(self, position_A3: Tensor, descriptor_AD: Tensor, lengths: Sequence[int]) -> PaddedMatches:
        """See `RecordedSuperGlue.match`."""
        self.position_A3[: len(position_A3)], self.descriptor_AD[: len(position_A3)] = position_A3, descriptor_AD
        self.length_S.copy_(self.sizes.lengths(lengths, position_A3.device))
        self.act()
        return PaddedMatches(*(x.clone() for x in self.found))

    def _act(self) -> None:
        segments, x_TD = Segments.of_lengths(self.length_S, self.sizes.longest), self.position_A3
        for layer in self.parts.encoder:
            x_TD = layer(x_TD)
        x_TD = (x_TD + self.descriptor_AD).to(self.dtype)
        for unit in self.parts.units:
            x_TD = unit.at_once(x_TD, segments)
        f_TD = self.parts.projection(x_TD.to(self.descriptor_AD))
        place_P2N = self.sizes.places(self.length_S)
        is_point_P2N = place_P2N < self.sizes.tokens
        f_P2ND = torch.where(is_point_P2N[..., None], f_TD[place_P2N.clamp(max=len(f_TD) - 1)], 0)
        similarity_PNN = f_P2ND[:, 0] @ f_P2ND[:, 1].mT / f_TD.shape[1] ** 0.5
        log_assignment = log_sinkhorn(
            similarity_PNN, self.parts.bin_score, self.iterations, is_point_P2N[:, 0], is_point_P2N[:, 1]
        )
        for kept, value in zip(self.found, mutual_matches(log_assignment[:, :-1, :-1], self.threshold), strict=True):
            kept.copy_(value)
