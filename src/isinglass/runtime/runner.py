"""The loop over a matcher's layers, and inference by it: adaptive for each pair on its own, in one packed buffer.

`run_layers` is the only loop. Training runs it over a dense batch, inference over a packed buffer that pairs and points
leave, CUDA graphs over buffers of fixed sizes; an observer sees what goes by. How a layer is executed is a `Strategy`.

Legend: T tokens in the buffer, V tokens of distinct views, M and N keypoints of view 0 and 1 of one pair, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.assignment import mutual_matches
from isinglass.kernels.threads import in_team
from isinglass.runtime.anatomy import is_replaced
from isinglass.runtime.execution import execution_of, mixed_precision, own_methods
from isinglass.runtime.fused import prepared
from isinglass.runtime.layouts import Layout, Packed
from isinglass.runtime.packed import Inputs, TokenBuffer, taken
from isinglass.runtime.pairs import Pair, check_pairs, chunk_pairs, distinct_views
from isinglass.types import Features, Matches

Layer = Callable[[Tensor, Any, Any], Tensor]  # (states, positions, layout) -> states


class State(Protocol):
    """Tokens on their way through the layers."""

    def advance(self, layer: Any) -> None:
        """Replace the states by what a layer makes of them."""
        ...


_State = TypeVar("_State", bound=State)


def run_layers(layers: Iterable[Any], state: _State, after: Callable[[int, _State], _State | None]) -> None:
    """Run the layers; `after` each of them returns the state to go on with, or None to end here."""
    for i, layer in enumerate(layers):
        state.advance(layer)
        following = after(i, state)
        if following is None:
            return
        state = following


@dataclass(slots=True)
class Tokens:
    """A state without exits, in any layout."""

    x: Tensor
    position: Any
    layout: Layout

    def advance(self, layer: Layer) -> None:
        """See State."""
        self.x = layer(self.x, self.position, self.layout)


class Exits(NamedTuple):
    """What leaves a packed buffer after a layer.

    finished_P    bool, pairs that have seen enough layers; None = no pair
    stays_T       bool, False = pruned; None = no token is
    confidence_T  how sure each token is of its prediction; None = not estimated
    """

    finished_P: Tensor | None = None
    stays_T: Tensor | None = None
    confidence_T: Tensor | None = None


class Found(NamedTuple):
    """The result of one pair, by the keypoints of its views.

    matches      indices and scores (M,) of view 0
    pruned_at    for each view (N,) int64, the number of layers each keypoint went through
    confidences  for each view (N,), the last confidence of each keypoint; NaN = none
    """

    matches: tuple[Tensor, Tensor]
    pruned_at: tuple[Tensor, Tensor]
    confidences: tuple[Tensor, Tensor]


class Network(Protocol):
    """What the runner needs of a matcher that is a network; `forward` is what its paper says, over a dense batch."""

    layers: nn.ModuleList
    accepts: tuple[str, ...] | None
    execution: str
    compute_dtype: torch.dtype
    max_tokens: int
    config: Any

    @property
    def name(self) -> str:
        """Name that is written into its matches."""
        ...

    @property
    def descriptor_size(self) -> int:
        """Channels of the descriptors that it takes."""
        ...

    def parameters(self) -> Any:
        """See nn.Module."""
        ...

    def encode(self, inputs: Inputs) -> tuple[Tensor, Any]:
        """Return the states before the first layer, and the positions that layers take: a named tuple, or None."""
        ...

    def exits(self, layer: int, x_TD: Tensor, layout: Any, max_unsure_P: Tensor) -> Exits:
        """Return what leaves after a layer that is not the last."""
        ...

    def max_unsure(self, num_points: int) -> int:
        """Return with how many unsure points a pair of so many is finished; -1 = never."""
        ...

    def log_assignment(self, layer: int, x0_BMD: Tensor, x1_BND: Tensor, mask_B2N: Tensor | None = None) -> Tensor:
        """Return the log of the assignment (B, M, N) that the states after a layer give."""
        ...

    def predict(self, inputs: Inputs, mask_B2N: Tensor | None) -> Tensor:
        """Return the log of the assignment (B, N, N) by `forward`."""
        ...

    def fused_layers(self, dtype: torch.dtype) -> list[list[Any]]:
        """Return for each layer its fused blocks, in order, which compute in that dtype."""
        ...

    def fused_matches(self, layer: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `mutual_matches` gives of `log_assignment`, (M,) and (M,), on CPUs."""
        ...

    def report(self, found: Found) -> Matches:
        """Return the result as it is handed out."""
        ...


class Observer(Protocol):
    """Sees one pair go through the plain modules. Each method may raise to stop."""

    def before_layer(self, layer: int) -> None:
        """Called before each layer."""
        ...

    def attention(self, query_THC: Tensor, key_THC: Tensor, *, cross: bool) -> None:
        """Called with the queries and keys of each attention."""
        ...

    def after_layer(self, layer: int, buffer: TokenBuffer, exits: Exits) -> None:
        """Called after each layer, while what leaves is still there."""
        ...


@torch.inference_mode()
def match_many(
    network: Any, kind: type[nn.Module], features0: Sequence[Features], features1: Sequence[Features]
) -> list[Matches]:
    """Return one `Matches` for each pair of a ragged list; see `match_many` of the networks.

    `kind` is the class that fused blocks stand for. A network of another class, or a modified one, runs plainly.
    """
    execution = execution_of(network, kind, own_methods(kind))
    pairs = check_network_pairs(network, features0, features1)
    blocks = [] if execution == "plain" else fused_layers(network)  # once: it compares all weights with a copy
    if execution != "plain" and not blocks:
        if network.execution != "auto":
            raise InputError(
                f"execution is {network.execution!r}, whose blocks compute something else than the layers of this "
                f"{type(network).__name__}. Choose 'auto' or 'plain', which run the layers as they are written"
            )
        execution = "plain"
    if execution == "cuda_graph":
        from isinglass.runtime import cuda_graph

        return cuda_graph.match_pairs(network, blocks, pairs)
    return [
        matches
        for chunk in chunk_pairs(pairs, network.max_tokens)
        for matches in (_match_fused(network, blocks, chunk) if blocks else _match_plain(network, kind, chunk))
    ]


def check_network_pairs(network: Network, features0: Sequence[Features], features1: Sequence[Features]) -> list[Pair]:
    """Return the pairs as `check_pairs` does for this network."""
    return check_pairs(
        features0, features1, matcher=network.name, accepts=network.accepts, descriptor_size=network.descriptor_size
    )


@torch.inference_mode()
def observe(network: Network, pair: Pair, observer: Observer) -> Matches:
    """Match one pair by the plain modules, in the precision of the weights, under the eyes of an observer."""
    plain = _plain(network)._replace(layers=[_Watched(i, layer, observer) for i, layer in enumerate(network.layers)])
    return _match_packed(network, [pair], plain, observer)[0]


# ---- strategies: how layers and matches are computed


class Strategy(NamedTuple):
    """How a network is executed."""

    encode: Callable[[Inputs], tuple[Tensor, Any]]
    layers: Sequence[Layer]
    matches: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # of the states of a pair after a layer
    view_blocks: Sequence[Layer] = ()  # before the first layer; each view needs them but once, in however many pairs


def _plain(network: Network) -> Strategy:
    like = next(network.parameters())

    def in_precision(layer: Layer) -> Layer:
        def act(x: Tensor, position: Any, layout: Layout) -> Tensor:
            with mixed_precision(network, like):
                return layer(x, position, layout)

        return act

    def matches(layer: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x0_MD.device.type, enabled=False):
            log_assignment_1MN = network.log_assignment(layer, x0_MD[None], x1_ND[None])
        indices_1M, scores_1M = mutual_matches(log_assignment_1MN, network.config.filter_threshold)
        return indices_1M[0], scores_1M[0]

    return Strategy(network.encode, [in_precision(layer) for layer in network.layers], matches)


def _fused(network: Any, blocks: Sequence[Sequence[Any]]) -> Strategy:
    def encode(inputs: Inputs) -> tuple[Tensor, Any]:
        x, position = network.encode(inputs)
        return x.to(network.compute_dtype), None if position is None else position.packed()

    first, *others = blocks
    meeting = next((i for i, block in enumerate(first) if block.is_cross), len(first))
    layers = [_Chain(chain) for chain in (first[meeting:], *others)]
    return Strategy(encode, layers, network.fused_matches, first[:meeting])


@torch.inference_mode()
def fused_layers(network: Network) -> list[list[Any]]:
    """Return the fused blocks of each layer in the dtype that a network computes in; none where they are not equal.

    Once for each state of a network, the blocks and the layers that they stand for are run on a few made-up points: a
    layer whose code was changed runs as it is written, whether or not its block was changed with it.
    """
    dtype, like = network.compute_dtype, next(network.parameters())

    def make() -> list[list[Any]]:
        blocks = network.fused_layers(dtype)
        exact = blocks if dtype == like.dtype else network.fused_layers(like.dtype)
        return blocks if _are_equal(network, exact) else []

    return prepared(cast(nn.Module, network), ("fused", dtype), make)


def _are_equal(network: Network, blocks: Sequence[Sequence[Layer]]) -> bool:
    like, layout = next(network.parameters()), Packed((7, 5))
    x_TD, position = network.encode(Inputs.made_up(sum(layout.lengths), network.descriptor_size, like))
    packed = None if position is None else position.packed()
    for layer, chain in zip(network.layers, blocks, strict=True):
        found_TD = _Chain(chain)(x_TD, packed, layout)
        x_TD = layer(x_TD, position, layout)
        loose = (1e-3 if like.dtype == torch.float32 else 0.1) * float(x_TD.abs().max())
        if not torch.allclose(found_TD, x_TD, rtol=0, atol=loose, equal_nan=True):
            return False
    return True


class _Chain(NamedTuple):
    """Blocks one after the other, as one layer."""

    blocks: Sequence[Layer]

    def __call__(self, x: Tensor, position: Any, layout: Layout) -> Tensor:
        for block in self.blocks:
            x = block(x, position, layout)
        return x


def _match_plain(network: Network, kind: type[nn.Module], pairs: Sequence[Pair]) -> list[Matches]:
    """Match by the modules: by `forward` where that is another one than of `kind`, else layer by layer."""
    if is_replaced(network, kind, own_methods(kind)):  # pyright: ignore[reportArgumentType]
        return [_match_by_forward(network, pair) for pair in pairs]
    return _match_packed(network, pairs, _plain(network))


@in_team
def _match_fused(network: Network, blocks: Sequence[Sequence[Any]], pairs: Sequence[Pair]) -> list[Matches]:
    return _match_packed(network, pairs, _fused(network, blocks))


class _Watched(NamedTuple):
    """A layer whose attention is seen by an observer."""

    number: int
    layer: Layer
    observer: Observer

    def __call__(self, x: Tensor, position: Any, layout: Layout) -> Tensor:
        self.observer.before_layer(self.number)
        return self.layer(x, position, _WatchedLayout(layout, self.observer))


class _WatchedLayout(NamedTuple):
    layout: Layout
    observer: Observer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, cross: bool, scale: float | None = None) -> Tensor:
        self.observer.attention(q, k, cross=cross)
        return self.layout.attend(q, k, v, cross=cross, scale=scale)


# ---- a packed buffer of pairs


def _match_packed(
    network: Network, pairs: Sequence[Pair], strategy: Strategy, observer: Observer | None = None
) -> list[Matches]:
    like, last = next(network.parameters()), len(strategy.layers) - 1
    counts = [(pair[0].keypoints.shape[1], pair[1].keypoints.shape[1]) for pair in pairs]
    max_unsure = [network.max_unsure(sum(count)) for count in counts]
    matches: dict[int, tuple[Tensor, Tensor]] = {}

    def after(i: int, buffer: TokenBuffer) -> TokenBuffer | None:
        x_TD, exits = buffer.x_TD.to(like), Exits()
        if i < last:
            limits_P = torch.tensor([max_unsure[pair] for pair in buffer.pairs], device=like.device)
            exits = network.exits(i, x_TD, buffer.layout, limits_P)
        if exits.confidence_T is not None:
            buffer.note_confidence(exits.confidence_T)
        if observer is not None:
            observer.after_layer(i, buffer, exits)
        finished = set(buffer.pairs) if i == last else _chosen(buffer.pairs, exits.finished_P)
        for states in buffer.states(finished):
            index_M, score_M = strategy.matches(i, states.x0_MD.to(like), states.x1_ND.to(like))
            matched_M = torch.where(index_M < 0, -1, states.place1_N[index_M])
            matches[states.pair] = _scatter(states.place0_M, matched_M, score_M, counts[states.pair][0])
        buffer.drop(exits.stays_T, finished, i + 1)
        return buffer if buffer.pairs else None

    buffer = _packed(network, pairs, strategy)
    buffer.drop(None, (), 0)  # a pair with an empty view never enters
    if buffer.pairs:
        run_layers(strategy.layers, buffer, after)
    nothing = buffer.origin_T.new_zeros(0)
    return [
        network.report(
            Found(
                matches.get(i) or _scatter(nothing, nothing, nothing.float(), counts[i][0]),
                buffer.of_pair(buffer.pruned_at_A, i),
                buffer.of_pair(buffer.confidence_A, i),
            )
        )
        for i in range(len(pairs))
    ]


def _packed(network: Network, pairs: Sequence[Pair], strategy: Strategy) -> TokenBuffer:
    """Encode each distinct view once, and put the views of all pairs side by side."""
    views, which = distinct_views(pairs)
    lengths, like = [view.keypoints.shape[1] for view in views], next(network.parameters())
    x_VD, position = strategy.encode(Inputs.packed(views, like))
    tokens = TokenBuffer.pack(x_VD, position, lengths)
    for block in strategy.view_blocks:
        tokens.advance(block)
    if len(views) == len(which):
        return tokens
    place_V = torch.arange(len(x_VD), device=x_VD.device).split(lengths)
    place_T = torch.cat([place_V[i] for i in which])
    return TokenBuffer.pack(tokens.x_TD[place_T], taken(position, place_T), [lengths[i] for i in which])


def _match_by_forward(network: Network, pair: Pair) -> Matches:
    """Match by calling the module: all layers for all points."""
    both, like = Features.stack(pair), next(network.parameters())
    count0, count1 = (view.keypoints.shape[1] for view in pair)
    nothing = torch.zeros(0, dtype=torch.int64, device=like.device)
    matches, layers = _scatter(nothing, nothing, nothing.float(), count0), 0
    if count0 and count1:
        with mixed_precision(network, like):
            log_assignment = network.predict(Inputs.dense(both, like), None if both.mask is None else both.mask[None])
        indices_1M, scores_1M = mutual_matches(log_assignment[:1, :count0, :count1], network.config.filter_threshold)
        matches, layers = (indices_1M[0], scores_1M[0].float()), len(network.layers)
    pruned_at = nothing.new_full((count0,), layers), nothing.new_full((count1,), layers)
    never = torch.full((count0,), torch.nan, device=like.device), torch.full((count1,), torch.nan, device=like.device)
    return network.report(Found(matches, pruned_at, never))


def _chosen(pairs: Sequence[int], flag_P: Tensor | None) -> set[int]:
    if flag_P is None:
        return set()
    return {pair for pair, is_chosen in zip(pairs, flag_P.tolist(), strict=True) if is_chosen}


def _scatter(place_M: Tensor, matched_M: Tensor, score_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the matches of the points that were left as indices and scores of all `count` points there were."""
    indices = place_M.new_full((count,), -1)
    scores = score_M.new_zeros(count, dtype=torch.float32)
    indices[place_M], scores[place_M] = matched_M, score_M.float()
    return indices, scores
