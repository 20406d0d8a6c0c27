"""A run of LightGlue under observation: what each layer predicts, who is confident, who leaves and why.

Section and equation numbers are the paper's. Legend: M and N keypoints of view 0 and 1 that are left, T of both side by
side.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from isinglass.inspection.record import Attention, Step, Tell, Trace, Views
from isinglass.inspection.tops import alternatives_of, attention_of, scattered
from isinglass.kernels.assignment import mutual_matches
from isinglass.matchers.lightglue import LightGlue
from isinglass.runtime.execution import check_layers_run
from isinglass.runtime.packed import PairStates, TokenBuffer
from isinglass.runtime.runner import Exits, check_network_pairs, observe
from isinglass.types import Features


@torch.inference_mode()
def trace_lightglue(
    model: LightGlue, features0: Features, features1: Features, *, attention: int, alternatives: int, tell: Tell
) -> Trace:
    """Return the trace of one pair, in the precision of the weights; see `isinglass.inspection.trace`."""
    check_layers_run(model, LightGlue, "the trace")
    (pair,) = check_network_pairs(model, [features0], [features1])
    observer = _Observer(model, pair, attention, alternatives, tell)
    matches = observe(model, pair, observer)
    config = model.config
    return Trace(
        kind="lightglue",
        steps=tuple(observer.steps),
        attention=tuple(observer.attended),
        ended=observer.ended,
        exit_share=config.depth_confidence,
        width_confidence=config.width_confidence,
        filter_threshold=config.filter_threshold,
        matches=matches,
    )


class _Observer:
    """Writes down the steps of a pair; see isinglass.runtime.runner.Observer."""

    def __init__(
        self, model: LightGlue, pair: tuple[Features, Features], attention: int, alternatives: int, tell: Tell
    ) -> None:
        self.model, self.most_attended, self.alternatives, self.tell = model, attention, alternatives, tell
        self.counts = pair[0].keypoints.shape[1], pair[1].keypoints.shape[1]
        device = pair[0].device
        self.places: Views = torch.arange(self.counts[0], device=device), torch.arange(self.counts[1], device=device)
        self.steps: list[Step] = []
        self.attended: list[Attention] = []
        self.ended: Literal["exit", "layers", "pruned", "empty"] = "layers" if all(self.counts) else "empty"

    def before_layer(self, layer: int) -> None:
        """Tell of the layer."""
        self.tell(f"layer {layer + 1} of {len(self.model.layers)}")

    def attention(self, query_THC: Tensor, key_THC: Tensor, *, cross: bool) -> None:
        """Note where the points that are left look."""
        if self.most_attended:
            layer = len(self.steps) + 1
            of_layer = self.places, self.counts, layer, cross, self.most_attended
            self.attended.append(attention_of(query_THC, key_THC, *of_layer))

    def after_layer(self, layer: int, buffer: TokenBuffer, exits: Exits) -> None:
        """Note what the heads of the layer predict (section 3.2), and who leaves (section 3.3)."""
        (states,) = buffer.states(buffer.pairs)
        self.steps.append(self._step(layer, states, buffer, exits))
        if self.steps[-1].exits:
            self.ended = "exit"
        elif exits.stays_T is not None:
            stays0_M, stays1_N = exits.stays_T.split([len(place) for place in self.places])
            self.places = self.places[0][stays0_M], self.places[1][stays1_N]
            if not all(map(len, self.places)):
                self.ended = "pruned"

    def _step(self, layer: int, states: PairStates, buffer: TokenBuffer, exits: Exits) -> Step:
        model, last = self.model, layer == len(self.model.layers) - 1
        log_assignment_1MN, z0_1M, z1_1N = model.assignments[layer](states.x0_MD[None], states.x1_ND[None])
        index_1M, score_1M = mutual_matches(log_assignment_1MN, model.config.filter_threshold)
        matched_M = index_1M[0] >= 0
        matchability = z0_1M[0].sigmoid(), z1_1N[0].sigmoid()
        unmatched = 1 - matchability[0], 1 - matchability[1]
        assignment_MN = log_assignment_1MN[0].exp()
        more = {} if last else self._confidence(layer, buffer.x_TD, exits)
        return Step(
            name=f"layer {layer + 1}",
            pairs=torch.stack([self.places[0][matched_M], self.places[1][index_1M[0, matched_M]]], dim=1),
            scores=score_1M[0, matched_M].float(),
            alternatives=alternatives_of(assignment_MN, unmatched, self.places, self.counts, self.alternatives),
            matchability=self._scattered(matchability),
            pruned=self._pruned(None if more.get("exits") else exits.stays_T),
            **more,
        )

    def _confidence(self, layer: int, x_TD: Tensor, exits: Exits) -> dict[str, Any]:
        """How sure each point is (eq. 11), and what that means for the pair (eq. 12)."""
        threshold = self.model.confidence_threshold(layer)
        confidence_T = self.model.confidences[layer](x_TD).squeeze(-1).sigmoid()
        return {
            "threshold": threshold,
            "confident_share": 1 - int((confidence_T < threshold).sum()) / sum(self.counts),
            "confidence": self._scattered(self._split(confidence_T)),
            "exits": exits.finished_P is not None and bool(exits.finished_P[0]),
        }

    def _pruned(self, stays_T: Tensor | None) -> Views:
        if stays_T is None:
            return self.places[0][:0], self.places[1][:0]
        stays = self._split(stays_T)
        return self.places[0][~stays[0]], self.places[1][~stays[1]]

    def _split(self, values_T: Tensor) -> Views:
        value0, value1 = values_T.split([len(place) for place in self.places])
        return value0, value1

    def _scattered(self, values: Views) -> Views:
        """Return values of the points that are left as values of all points, NaN for the others."""
        of_views = zip(values, self.places, self.counts, strict=True)
        spread = [scattered(value.float(), place, count, torch.nan) for value, place, count in of_views]
        return spread[0], spread[1]
