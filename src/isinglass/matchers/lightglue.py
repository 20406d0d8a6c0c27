"""LightGlue: Local Feature Matching at Light Speed (Lindenberger, Sarlin, Pollefeys; ICCV 2023). Equations by number.

Legend of shape suffixes: B batch of pairs, 2 views of a pair, N keypoints of a view (padded), T tokens of the layout in
use, M and N keypoints of view 0 and 1 of one pair, D width, H heads, C channels a head. `...` stands for the token
axes of either layout: (T,) packed or (B, 2, N) dense (isinglass.ops.attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.matchers.execution import Views, execution_of, mixed_precision
from isinglass.matchers.lightglue_layers import Assignment, Layer
from isinglass.matchers.recorded import Exits, LightGlueParts, RecordedLightGlue, match_alike, stacked
from isinglass.numbers import MOST_CHANNELS, check_numbers
from isinglass.ops.anatomy import is_replaced
from isinglass.ops.assignment import mutual_matches
from isinglass.ops.attention import Dense, Packed
from isinglass.ops.linear import linear
from isinglass.ops.ragged import MAX_TOKENS, Ragged
from isinglass.ops.rotary import Rotation
from isinglass.ops.threads import in_team
from isinglass.ops.units import Unit, prepared
from isinglass.types import Features, Matches, check_pairs, chunk_pairs, distinct_views, match_batch
from isinglass.weights import Pretrained

METHODS = ("forward", "_rotation", "_predict", "_head")  # that `forward` is made of


@dataclass(frozen=True, kw_only=True)
class LightGlueConfig:
    """Defaults are the paper's. Raises InputError where heads do not divide width into even parts."""

    input_size: int = 256  # channels of the descriptors that come in
    width: int = 256  # of the tokens
    layers: int = 9
    heads: int = 4
    scale_orientation: bool = False  # also encode the keypoints' scale and orientation (SIFT)
    depth_confidence: float | None = 0.95  # alpha of eq. 12: share of confident points to stop at; None = all layers
    width_confidence: float | None = 0.99  # prune points less matchable than 1 - this (section 3.3); None = never
    filter_threshold: float = 0.1  # tau of section 3.2: least score of a match

    def __post_init__(self) -> None:
        channels, share = (1, MOST_CHANNELS), (0, 1)
        check_numbers(self, input_size=channels, width=channels, heads=channels, layers=(1, 1000))
        check_numbers(self, depth_confidence=share, width_confidence=share, filter_threshold=share)
        if self.width % (2 * self.heads):
            raise InputError(f"width {self.width} cannot be split into {self.heads} heads of an even size")


class Prediction(NamedTuple):
    """What one layer says of a dense batch; what a loss needs."""

    log_assignment_BNN: Tensor
    matchability_B2N: Tensor  # logits
    confidence_B2N: Tensor | None  # logits, no gradient into the states; None at the last layer


class LightGlue(Pretrained, nn.Module):
    """The matcher. `LightGlue(config)` has random weights; `LightGlue.pretrained(name)` loads published or own ones.

    execution      "auto", "plain", "fused" or "cuda_graph", see isinglass.matchers.execution
    compute_dtype  of the layers in `match`; the rest is in that of the weights
    max_tokens     keypoints of all pairs that are matched at once
    """

    Config: ClassVar[type] = LightGlueConfig
    default_weights: ClassVar[str] = "lightglue-aliked"
    bytes_per_token: ClassVar[int] = 17_000  # measured at width 256

    def __init__(self, config: LightGlueConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LightGlueConfig()
        same_size = config.input_size == config.width
        self.input_projection = nn.Identity() if same_size else nn.Linear(config.input_size, config.width)
        position_size = 4 if config.scale_orientation else 2
        self.position_encoding = nn.Linear(position_size, config.width // config.heads // 2, bias=False)
        nn.init.normal_(self.position_encoding.weight)
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))
        self.assignments = nn.ModuleList(Assignment(config.width) for _ in range(config.layers))
        self.confidences = nn.ModuleList(nn.Linear(config.width, 1) for _ in range(config.layers - 1))
        self.max_tokens = MAX_TOKENS
        self.compute_dtype = torch.float32
        self.execution = "auto"

    @property
    def name(self) -> str:
        """As written into its matches."""
        return self.weights_name

    def confidence_threshold(self, layer: int) -> float:
        """lambda_l of section 3.3 (appendix: 0.8 + 0.1 exp(-4 l / L)) for the 0-based `layer`."""
        return 0.8 + 0.1 * math.exp(-4 * layer / self.config.layers)

    def forward(
        self,
        keypoints_B2N2: Tensor,
        descriptors_B2ND: Tensor,
        image_size_B22: Tensor,
        scale_orientation_B2N2: Tensor | None = None,
        mask_B2N: Tensor | None = None,
        every_layer: bool = False,
    ) -> list[Prediction]:
        """Predictions of the dense layout, without adaptivity: of the last layer, or of every layer (training).

        The log assignment of padding is very low, so that it is nobody's match.
        """
        x_B2ND = self.input_projection(descriptors_B2ND)
        rotation = self._rotation(keypoints_B2N2, image_size_B22, scale_orientation_B2N2)
        layout = Dense(mask_B2N)
        predictions = []
        for i, layer in enumerate(self.layers):
            x_B2ND = layer(x_B2ND, rotation, layout)
            if every_layer or i == len(self.layers) - 1:
                predictions.append(self._predict(i, x_B2ND, mask_B2N))
        return predictions

    def match(self, features0: Features, features1: Features) -> Matches:
        """Matches of a batch of pairs; see `match_many`, which it is, with padding dropped before and added after."""
        return match_batch(self, features0, features1)

    @torch.inference_mode()
    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """One `Matches` a pair of a ragged list, adaptive in depth and width for each pair on its own.

        A pair's result does not depend on its batch mates (up to rounding). A subclass or instance that has another
        `forward` is matched by that, all layers for all points. Raises InputError on features that this model was not
        made for, see `check_pairs`, and where `execution` cannot be had.
        """
        execution = execution_of(self, LightGlue, METHODS)
        pairs = check_pairs(
            features0, features1, matcher=self.name, accepts=self.accepts, descriptor_size=self.config.input_size
        )
        if execution == "cuda_graph":
            return match_alike(self._match_recorded, self._match_plain, pairs, self.max_tokens)
        match_chunk = self._match_packed if execution == "fused" else self._match_plain
        return [matches for chunk in chunk_pairs(pairs, self.max_tokens) for matches in match_chunk(chunk)]

    # --- the parts of `forward` and `match_many`

    def _rotation(self, keypoints: Tensor, image_size: Tensor, scale_orientation: Tensor | None) -> Rotation:
        """Positions (..., 2) px, relative to the image's centre and half its long side, as angles (section 3.1)."""
        size = image_size.to(keypoints)
        if keypoints.ndim > size.ndim:  # dense: one size serves the N keypoints of a view
            size = size[..., None, :]
        position = (keypoints - size / 2) / (size.amax(dim=-1, keepdim=True) / 2)
        if self.config.scale_orientation:
            if scale_orientation is None or scale_orientation.shape[-1] != 2:
                raise InputError(f"{self.name!r} needs keypoints with scale and orientation (SIFT); these have none")
            position = torch.cat([position, scale_orientation.to(position)], dim=-1)
        angle = self.position_encoding(position).repeat_interleave(2, dim=-1)[..., None, :]
        return Rotation(angle.cos(), angle.sin())

    def _head(self, layer: int) -> Assignment:
        head = self.assignments[layer]
        assert isinstance(head, Assignment)
        return head

    def _predict(self, layer: int, x_B2ND: Tensor, mask_B2N: Tensor | None) -> Prediction:
        """In the precision of the weights, whatever the layers run in: likelihoods of bfloat16 teach little."""
        padding_BNN = None if mask_B2N is None else ~(mask_B2N[:, 0, :, None] & mask_B2N[:, 1, None, :])
        last, x_B2ND = layer == len(self.layers) - 1, x_B2ND.to(next(self.parameters()).dtype)
        with torch.autocast(x_B2ND.device.type, enabled=False):
            log_assignment_BNN, z0_BN, z1_BN = self._head(layer)(x_B2ND[:, 0], x_B2ND[:, 1], padding_BNN)
            confidence_B2N = None if last else self.confidences[layer](x_B2ND.detach()).squeeze(-1)
        return Prediction(log_assignment_BNN, torch.stack([z0_BN, z1_BN], dim=1), confidence_B2N)

    @in_team
    def _match_packed(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By fused blocks."""
        units = self._prepared()
        buffer = self._pack(pairs, units[0][0])

        def act(i: int) -> None:
            attend_self, attend_cross = units[i]
            if i > 0:  # the first was done before views met, see `_pack`
                buffer.state_T = attend_self(buffer.state_T, buffer.lengths, *buffer.constant_T)
            buffer.state_T = attend_cross(buffer.state_T, buffer.lengths)

        def assigned(i: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
            return self._head(i).match(x0_MD, x1_ND, self.config.filter_threshold)

        return self._adaptive(pairs, buffer, act, assigned)

    def _match_plain(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By the modules: `forward` where that is not the one above, else the layers one after the other."""
        if is_replaced(self, LightGlue, METHODS):
            return [self._match_by_forward(pair) for pair in pairs]
        views, like = [view for pair in pairs for view in pair], next(self.parameters())
        keypoints_T2, size_T2, scale_orientation_T2, descriptors_TD = self._inputs(views)
        rotation = self._rotation(keypoints_T2, size_T2, scale_orientation_T2)
        x_TD, lengths = self.input_projection(descriptors_TD), [view.keypoints.shape[1] for view in views]
        buffer = Ragged.pack(x_TD, (rotation.cos, rotation.sin), lengths)

        def act(i: int) -> None:
            with mixed_precision(self, like):
                layout = Packed(tuple(buffer.lengths))
                buffer.state_T = self.layers[i](buffer.state_T, Rotation(*buffer.constant_T), layout)

        def assigned(i: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
            head = self.assignments[i]
            if isinstance(head, Assignment) and is_replaced(head, Assignment, ("match",), hooks=False):
                return head.match(x0_MD, x1_ND, self.config.filter_threshold)
            with torch.autocast(like.device.type, enabled=False):
                log_assignment_1MN, *_ = head(x0_MD[None], x1_ND[None])
            indices_1M, scores_1M = mutual_matches(log_assignment_1MN, self.config.filter_threshold)
            return indices_1M[0], scores_1M[0]

        return self._adaptive(pairs, buffer, act, assigned)

    def _match_by_forward(self, pair: tuple[Features, Features]) -> Matches:
        """All layers for all points, by calling the module."""
        both, like = Views.of(pair), next(self.parameters())
        found, left = None, [torch.zeros(n, dtype=torch.int64, device=like.device) for n in both.counts]
        if all(both.counts):
            numbers = [both.features.keypoints, both.features.descriptors, both.features.image_size]
            keypoints_12N2, descriptors_12ND, image_size_12 = (value[None].to(like) for value in numbers)
            scale_orientation_2N2 = _scale_orientation(both.features) if self.config.scale_orientation else None
            more = None if scale_orientation_2N2 is None else scale_orientation_2N2[None].to(like)
            with mixed_precision(self, like):
                prediction = self(keypoints_12N2, descriptors_12ND, image_size_12, more, both.mask_12N)[-1]
            log_assignment_1MN = both.cut(prediction.log_assignment_BNN)
            indices_1M, scores_1M = mutual_matches(log_assignment_1MN, self.config.filter_threshold)
            found, left = (indices_1M[0], scores_1M[0].float()), [one + len(self.layers) for one in left]
        never = [torch.full_like(one, torch.nan, dtype=torch.float32) for one in left]
        return self._report(found, left, never, pair)

    def _adaptive(
        self,
        pairs: Sequence[tuple[Features, Features]],
        buffer: Ragged,
        act: Callable[[int], None],
        assigned: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> list[Matches]:
        """Run all layers, of which `act(i)` is one on the buffer; pairs and points leave as they are done.

        `assigned(i, x0_MD, x1_ND)` are the indices and scores (M,) of states after that layer.
        """
        num_points, like = [sum(view.keypoints.shape[1] for view in pair) for pair in pairs], next(self.parameters())
        matches: dict[int, tuple[Tensor, Tensor]] = {}
        buffer.keep(None, (), 0)  # a pair with an empty view never enters
        for i in range(len(self.layers)):
            if not buffer.pairs:
                break
            act(i)
            last = i == len(self.layers) - 1
            confidence_T = None if last else self._confidence(i, buffer)
            finished = set(buffer.pairs) if last else self._finished(i, buffer, confidence_T, num_points)
            for pair, x0_MD, x1_ND, place0_M, place1_N in buffer.views(finished):
                index_M, score_M = assigned(i, x0_MD.to(like), x1_ND.to(like))
                matched_M = torch.where(index_M < 0, -1, place1_N[index_M])
                matches[pair] = _scatter(place0_M, matched_M, score_M, pairs[pair][0].keypoints.shape[1])
            buffer.keep(None if last else self._matchable(i, buffer, confidence_T), finished, i + 1)
        return [
            self._report(matches.get(i), buffer.report(buffer.left_at_A, i), buffer.report(buffer.note_A, i), pair)
            for i, pair in enumerate(pairs)
        ]

    def _match_recorded(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By recorded CUDA graphs, of pairs of which no view is empty."""
        views, config = [view for pair in pairs for view in pair], self.config
        x_TD, factors_T = self._tokens(views)
        exits = Exits(
            alpha=config.depth_confidence,
            least_matchable=None if config.width_confidence is None else 1 - config.width_confidence,
            confident=tuple(self.confidence_threshold(i) for i in range(len(self.layers))),
            filter_threshold=config.filter_threshold,
        )
        lengths, matches = [view.keypoints.shape[1] for view in views], []
        found, trace = self._recorded().match(x_TD.to(self.compute_dtype), factors_T, lengths, exits)
        left, confidences = (values_A[: sum(lengths)].split(lengths) for values_A in trace)
        for i, pair in enumerate(pairs):
            of_pair, both = (found.indices_PN[i, : lengths[2 * i]], found.scores_PN[i, : lengths[2 * i]]), 2 * i + 2
            matches.append(self._report(of_pair, left[2 * i : both], confidences[2 * i : both], pair))
        return matches

    def _pack(self, pairs: Sequence[tuple[Features, Features]], self_attention: Unit) -> Ragged:
        """The views side by side, after the first layer's self-attention, which each view needs but once."""
        views, which = distinct_views(pairs)
        lengths, (x_VD, factors_V) = [view.keypoints.shape[1] for view in views], self._tokens(views)
        x_VD = self_attention(x_VD.to(self.compute_dtype), lengths, factors_V)
        if len(views) == len(which):
            return Ragged.pack(x_VD, (factors_V,), lengths)
        place_V = torch.arange(len(x_VD), device=x_VD.device).split(lengths)
        place_T = torch.cat([place_V[i] for i in which])
        return Ragged.pack(x_VD[place_T], (factors_V[place_T],), [lengths[i] for i in which])

    def _inputs(self, views: Sequence[Features]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keypoints (V, 2), image sizes (V, 2), scales and orientations (V, 2), descriptors (V, C), side by side."""
        lengths, like = [view.keypoints.shape[1] for view in views], next(self.parameters())
        keypoints_V2 = torch.cat([view.keypoints[0] for view in views]).to(like)
        size_V2 = torch.cat([view.image_size.expand(n, 2) for view, n in zip(views, lengths, strict=True)])
        scale_orientation_V2 = torch.cat([_scale_orientation(view)[0] for view in views]).to(like)
        return keypoints_V2, size_V2, scale_orientation_V2, torch.cat([view.descriptors[0] for view in views]).to(like)

    def _tokens(self, views: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """States (V, D) before the first layer, and what turns them (V, 1, C / 2, 2), the views side by side."""
        keypoints_V2, size_V2, scale_orientation_V2, x_VD = self._inputs(views)
        if isinstance(self.input_projection, nn.Linear):
            x_VD = linear(x_VD, self.input_projection)
        return x_VD, self._rotation(keypoints_V2, size_V2, scale_orientation_V2).as_factors()

    def _recorded(self) -> RecordedLightGlue:
        def make() -> RecordedLightGlue:
            heads = [self._head(i) for i in range(len(self.layers))]
            return RecordedLightGlue(
                LightGlueParts(
                    units=self._units(),
                    confidence=stacked([*self.confidences, heads[-1].matchability]),
                    matchability=stacked([head.matchability for head in heads]),
                    projection=stacked([head.projection for head in heads]),
                )
            )

        return prepared(self, ("recorded", self.compute_dtype), make)

    def _prepared(self) -> list[tuple[Unit, Unit]]:
        """The fused blocks of all layers, in the dtype that this model computes in."""
        return prepared(self, ("units", self.compute_dtype), self._units)

    def _units(self) -> list[tuple[Unit, Unit]]:
        layers, dtype = [layer for layer in self.layers if isinstance(layer, Layer)], self.compute_dtype
        return [(layer.self_attention.prepared(dtype), layer.cross_attention.prepared(dtype)) for layer in layers]

    def _confidence(self, layer: int, buffer: Ragged) -> Tensor | None:
        """(T,) how sure each point's prediction is of being final (eq. 11)."""
        if self.config.depth_confidence is None:
            return None
        state_TD = buffer.state_T.to(next(self.parameters()))
        confidence_T = torch.sigmoid(self.confidences[layer](state_TD)).squeeze(-1)
        buffer.note(confidence_T)
        return confidence_T

    def _finished(
        self, layer: int, buffer: Ragged, confidence_T: Tensor | None, num_points: Sequence[int]
    ) -> Collection[int]:
        """Pairs whose share of confident points exceeds alpha (eq. 12). Pruned points count as confident."""
        if confidence_T is None or self.config.depth_confidence is None:
            return ()
        unconfident = buffer.count(confidence_T < self.confidence_threshold(layer))
        return {
            pair
            for pair, count in zip(buffer.pairs, unconfident, strict=True)
            if 1 - count / num_points[pair] > self.config.depth_confidence
        }

    def _matchable(self, layer: int, buffer: Ragged, confidence_T: Tensor | None) -> Tensor | None:
        """(T,) bool, False = prune: confident and unmatchable (section 3.3). None = prune nothing."""
        if self.config.width_confidence is None:
            return None
        state_TD = buffer.state_T.to(next(self.parameters()))
        keep_T = self._probability(layer, state_TD, buffer) > 1 - self.config.width_confidence
        return keep_T if confidence_T is None else keep_T | (confidence_T <= self.confidence_threshold(layer))

    def _probability(self, layer: int, state_TD: Tensor, buffer: Ragged) -> Tensor:
        """(T,) how likely each point has a match, by the layer's head; of one with its own `forward` by that."""
        head = self.assignments[layer]
        if not is_replaced(head, Assignment, ("forward",)):
            return self._head(layer).probability(state_TD)
        views = state_TD.split(buffer.lengths)
        logits = [head(x0[None], x1[None])[1:] for x0, x1 in zip(views[::2], views[1::2], strict=True)]
        return torch.cat([logit_1N[0] for pair in logits for logit_1N in pair]).sigmoid()

    def _report(
        self,
        found: tuple[Tensor, Tensor] | None,
        left: Sequence[Tensor],
        confidences: Sequence[Tensor],
        pair: tuple[Features, Features],
    ) -> Matches:
        """Of indices and scores (M,), and of each view the layers its points went through and their confidences."""
        none = pair[0].keypoints.new_zeros(0)
        indices, scores = found or _scatter(none.long(), none.long(), none, pair[0].keypoints.shape[1])
        adaptive_depth = self.config.depth_confidence is not None
        return Matches(
            indices=indices[None],
            scores=scores[None],
            stop_layer=torch.cat([*left, left[0].new_zeros(1)]).max()[None],
            pruned_at0=left[0][None],
            pruned_at1=left[1][None],
            confidences0=confidences[0][None] if adaptive_depth else None,
            confidences1=confidences[1][None] if adaptive_depth else None,
            matcher=self.name,
        )


def _scale_orientation(view: Features) -> Tensor:
    """(B, N, 2) px and rad of each keypoint; (B, N, 0) where its detector estimates none."""
    known = [value for value in (view.scales, view.orientations) if value is not None]
    return torch.stack(known, dim=-1) if known else view.keypoints[..., :0]


def _scatter(place_M: Tensor, matched_M: Tensor, score_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Matches of the points that were left, as matches of all `count` points there were."""
    indices = place_M.new_full((count,), -1)
    scores = score_M.new_zeros(count, dtype=torch.float32)
    indices[place_M], scores[place_M] = matched_M, score_M.float()
    return indices, scores
