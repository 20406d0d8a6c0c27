"""LightGlue's run retraced by the plain modules: what each layer predicts, who is confident, who leaves and why.

Section and equation numbers are the paper's. Legend: M and N keypoints of view 0 and 1 that are left, T of both side by
side, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isinglass.inspection.record import Attention, Step, Tell, Trace, Views
from isinglass.inspection.tops import alternatives_of, attention_of, scattered
from isinglass.matchers.execution import check_unmodified
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.lightglue_layers import Assignment, Layer
from isinglass.ops.assignment import mutual_matches
from isinglass.ops.attention import Packed
from isinglass.ops.rotary import Rotation
from isinglass.types import Features, Matches, check_pairs


@torch.inference_mode()
def trace_lightglue(
    model: LightGlue, features0: Features, features1: Features, *, attention: int, alternatives: int, tell: Tell
) -> Trace:
    """The trace of one pair, in the precision of the weights; see `isinglass.inspection.trace`."""
    check_unmodified(model, LightGlue, "the trace")
    (pair,) = check_pairs(
        [features0], [features1], matcher=model.name, accepts=model.accepts, descriptor_size=model.config.input_size
    )
    points = _Points.of(model, pair)
    steps: list[Step] = []
    looked: list[Attention] = []
    said, ended = None, "empty" if points.is_over else "layers"
    for i in range(0 if points.is_over else len(model.layers)):
        tell(f"layer {i + 1} of {len(model.layers)}")
        looked += points.attend(i, attention)
        said = _say(model, i, points)
        steps.append(_step(model, i, points, said, alternatives))
        if steps[-1].exits:
            ended = "exit"
            break
        points.drop(said.goes, i + 1)
        if points.is_over:
            ended, said = "pruned", None
            break
    config = model.config
    return Trace(
        kind="lightglue",
        steps=tuple(steps),
        attention=tuple(looked),
        ended=ended,
        exit_share=config.depth_confidence,
        width_confidence=config.width_confidence,
        filter_threshold=config.filter_threshold,
        matches=_matches(model, points, said, len(steps)),
    )


@dataclass(slots=True, kw_only=True)
class _Points:
    """Those that are left: states (T, D), rotations, places in their views; and what became of all."""

    model: LightGlue
    counts: tuple[int, int]
    state: Tensor
    rotation: Rotation
    places: Views
    left_at: Views  # layers that each of all points went through
    asked: Views  # the last confidence of each, NaN = none

    @classmethod
    def of(cls, model: LightGlue, pair: tuple[Features, Features]) -> _Points:
        count0, count1 = (one.keypoints.shape[1] for one in pair)
        state, factors = model._tokens(pair)
        cos, sin = (part.repeat_interleave(2, dim=-1).to(state) for part in factors.unbind(-1))
        device = state.device
        return cls(
            model=model,
            counts=(count0, count1),
            state=state,
            rotation=Rotation(cos, sin),
            places=(torch.arange(count0, device=device), torch.arange(count1, device=device)),
            left_at=(_filled(count0, 0, device), _filled(count1, 0, device)),
            asked=(_filled(count0, torch.nan, device), _filled(count1, torch.nan, device)),
        )

    @property
    def is_over(self) -> bool:
        return min(len(place) for place in self.places) == 0

    def split(self, values_T: Tensor) -> Views:
        """Those of each view."""
        value0, value1 = values_T.split([len(place) for place in self.places])
        return value0, value1

    def scattered(self, values: Views) -> Views:
        """As those of all points, NaN for who is gone."""
        of_views = zip(values, self.places, self.counts, strict=True)
        spread = [scattered(one.float(), place, count, torch.nan) for one, place, count in of_views]
        return spread[0], spread[1]

    def attend(self, i: int, most: int) -> list[Attention]:
        """One layer; and, unless `most` is 0, where its points looked."""
        layer, layout = self.model.layers[i], Packed((len(self.places[0]), len(self.places[1])))
        assert isinstance(layer, Layer)
        looked, of_layer = [], (self.places, self.counts, i + 1)
        if most:
            own = layer.self_attention
            query, key, _ = own.qkv(self.state).unflatten(-1, (3, own.heads, -1)).unbind(-3)
            turned = self.rotation.apply(query), self.rotation.apply(key)
            looked.append(attention_of(*turned, *of_layer, cross=False, most=most))
        self.state = layer.self_attention(self.state, self.rotation, layout)
        if most:
            other = layer.cross_attention
            query = other.qk(self.state).unflatten(-1, (other.heads, -1))
            looked.append(attention_of(query, query, *of_layer, cross=True, most=most))
        self.state = layer.cross_attention(self.state, layout)
        return looked

    def drop(self, goes: Views, layer: int) -> None:
        """The points with the flag leave after `layer` layers."""
        for left_at, place, gone in zip(self.left_at, self.places, goes, strict=True):
            left_at[place[gone]] = layer
        stays_T = ~torch.cat(goes)
        self.places = self.places[0][~goes[0]], self.places[1][~goes[1]]
        self.state = self.state[stays_T]
        self.rotation = Rotation(self.rotation.cos[stays_T], self.rotation.sin[stays_T])


class _Said(NamedTuple):
    """What the heads of one layer say of the points that are left (section 3.2, eq. 6 to 8 and 11)."""

    log_assignment_MN: Tensor
    index_M: Tensor  # -1 = no match
    score_M: Tensor
    matchability: Views
    confidence: Views | None  # None at the last layer
    goes: Views  # bool: confident, or never asked, and unmatchable (section 3.3)


def _say(model: LightGlue, i: int, points: _Points) -> _Said:
    config, head, last = model.config, model.assignments[i], i == len(model.layers) - 1
    assert isinstance(head, Assignment)
    x0_MD, x1_ND = points.split(points.state)
    log_assignment_1MN, z0_1M, z1_1N = head(x0_MD[None], x1_ND[None])
    index_1M, score_1M = mutual_matches(log_assignment_1MN, config.filter_threshold)
    matchability = z0_1M[0].sigmoid(), z1_1N[0].sigmoid()
    confidence = None if last else points.split(model.confidences[i](points.state).squeeze(-1).sigmoid())
    least = -torch.inf if config.width_confidence is None else 1 - config.width_confidence
    goes_T = torch.cat(matchability) <= least
    if confidence is None:
        goes_T = torch.zeros_like(goes_T)
    elif config.depth_confidence is not None:
        goes_T &= torch.cat(confidence) > model.confidence_threshold(i)
        for asked, place, values in zip(points.asked, points.places, confidence, strict=True):
            asked[place] = values.float()
    return _Said(log_assignment_1MN[0], index_1M[0], score_1M[0], matchability, confidence, points.split(goes_T))


def _step(model: LightGlue, i: int, points: _Points, said: _Said, most: int) -> Step:
    matched, (place0, place1) = said.index_M >= 0, points.places
    unmatched = 1 - said.matchability[0], 1 - said.matchability[1]
    more: dict[str, Any] = {}
    if said.confidence is not None:
        threshold = model.confidence_threshold(i)
        unsure = int((torch.cat(said.confidence) < threshold).sum())
        more = {"threshold": threshold, "confident_share": 1 - unsure / sum(points.counts)}
        more["confidence"] = points.scattered(said.confidence)
        alpha = model.config.depth_confidence
        more["exits"] = alpha is not None and more["confident_share"] > alpha  # eq. 12
    goes = () if more.get("exits") else zip(points.places, said.goes, strict=True)
    gone = [place[flag] for place, flag in goes] or [place[:0] for place in points.places]
    return Step(
        name=f"layer {i + 1}",
        pairs=torch.stack([place0[matched], place1[said.index_M[matched]]], dim=1),
        scores=said.score_M[matched].float(),
        alternatives=alternatives_of(said.log_assignment_MN.exp(), unmatched, points.places, points.counts, most),
        matchability=points.scattered(said.matchability),
        pruned=(gone[0], gone[1]),
        **more,
    )


def _matches(model: LightGlue, points: _Points, said: _Said | None, layers: int) -> Matches:
    """What came of it, of what was said last; None = nothing was, of points that are still there."""
    for left_at, place in zip(points.left_at, points.places, strict=True):
        left_at[place] = layers
    device, (place0, place1) = points.state.device, points.places
    indices, scores = _filled(points.counts[0], -1, device), _filled(points.counts[0], 0.0, device)
    if said is not None:
        indices[place0] = torch.where(said.index_M < 0, -1, place1[said.index_M])
        scores[place0] = said.score_M.float()
    asked = model.config.depth_confidence is not None
    return Matches(
        indices=indices[None],
        scores=scores[None],
        stop_layer=torch.tensor([layers], device=device),
        pruned_at0=points.left_at[0][None],
        pruned_at1=points.left_at[1][None],
        confidences0=points.asked[0][None] if asked else None,
        confidences1=points.asked[1][None] if asked else None,
        matcher=model.name,
    )


def _filled(count: int, value: float, device: torch.device) -> Tensor:
    return torch.full((count,), value, device=device)
