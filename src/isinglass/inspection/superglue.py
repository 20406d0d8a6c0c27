"""A run of SuperGlue under observation: where each layer looks, and how Sinkhorn's iterations converge.

Section and equation numbers are the paper's. Legend: M and N keypoints of view 0 and 1, T of both side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isinglass.inspection.record import Attention, Step, Tell, Trace, Views
from isinglass.inspection.tops import alternatives_of, attention_of
from isinglass.kernels.assignment import log_sinkhorn, mutual_matches
from isinglass.matchers.superglue import SuperGlue
from isinglass.runtime.execution import check_layers_run
from isinglass.runtime.packed import TokenBuffer
from isinglass.runtime.runner import Exits, check_network_pairs, observe
from isinglass.types import Features

SHOWN = 12  # iterations of Sinkhorn at most


@torch.inference_mode()
def trace_superglue(
    model: SuperGlue, features0: Features, features1: Features, *, attention: int, alternatives: int, tell: Tell
) -> Trace:
    """Return the trace of one pair, in the precision of the weights; see `isinglass.inspection.trace`."""
    check_layers_run(model, SuperGlue, "the trace")
    (pair,) = check_network_pairs(model, [features0], [features1])
    observer = _Observer(model, pair, attention, alternatives, tell)
    matches = observe(model, pair, observer)
    return Trace(
        kind="superglue",
        steps=tuple(observer.steps),
        attention=tuple(observer.attended),
        ended="layers" if observer.steps else "empty",
        filter_threshold=model.config.filter_threshold,
        matches=matches,
    )


def shown_iterations(count: int, most: int = SHOWN) -> list[int]:
    """Which of `count` iterations are shown: all, or the first and the last and some between, denser at first."""
    if count <= most:
        return list(range(1, count + 1))
    spread = torch.logspace(0, torch.tensor(float(count)).log10().item(), most, dtype=torch.float64)
    return sorted({1, count, *(round(value) for value in spread.tolist())})


class _Observer:
    """Writes down the steps of a pair; see isinglass.runtime.runner.Observer."""

    def __init__(
        self, model: SuperGlue, pair: tuple[Features, Features], attention: int, alternatives: int, tell: Tell
    ) -> None:
        self.model, self.most_attended, self.alternatives, self.tell = model, attention, alternatives, tell
        self.counts = pair[0].keypoints.shape[1], pair[1].keypoints.shape[1]
        device = pair[0].device
        self.places: Views = torch.arange(self.counts[0], device=device), torch.arange(self.counts[1], device=device)
        self.layer = 0
        self.steps: list[Step] = []
        self.attended: list[Attention] = []

    def before_layer(self, layer: int) -> None:
        """Tell of the layer."""
        self.layer = layer + 1
        self.tell(f"layer {self.layer} of {len(self.model.layers)}")

    def attention(self, query_THC: Tensor, key_THC: Tensor, *, cross: bool) -> None:
        """Note where the points look."""
        if self.most_attended:
            of_layer = self.places, self.counts, self.layer, cross, self.most_attended
            self.attended.append(attention_of(query_THC, key_THC, *of_layer))

    def after_layer(self, layer: int, buffer: TokenBuffer, exits: Exits) -> None:
        """Note how Sinkhorn's iterations go on from the last layer."""
        if layer < len(self.model.layers) - 1:
            return
        model, (states,) = self.model, buffer.states(buffer.pairs)
        iterations = model.config.sinkhorn_iterations
        shown = set(shown_iterations(iterations))

        def after(number: int, result: Callable[[], Tensor]) -> None:
            if number in shown:
                self.tell(f"iteration {number} of {iterations}")
                log_assignment = result()
                indices, scores = mutual_matches(log_assignment[:, :-1, :-1], model.config.filter_threshold)
                found = indices[0], scores[0]
                self.steps.append(_step(number, log_assignment[0], found, self.places, self.alternatives))

        similarity_1MN = model.similarity(states.x0_MD[None], states.x1_ND[None])
        log_sinkhorn(similarity_1MN, model.bin_score, iterations, after=after)


def _step(number: int, log_assignment: Tensor, found: Views, places: Views, most: int) -> Step:
    index_M, score_M = found
    assignment = log_assignment.exp()
    m, n = (side - 1 for side in assignment.shape)
    rows = torch.cat([assignment.new_ones(m), assignment.new_full((1,), n)])  # eq. 9; the columns hold exactly
    matched = index_M >= 0
    dustbins = assignment[:-1, -1], assignment[-1, :-1]
    return Step(
        name=f"iteration {number}",
        pairs=torch.stack([places[0][matched], index_M[matched]], dim=1),
        scores=score_M[matched].float().clamp(max=1),
        alternatives=alternatives_of(assignment[:-1, :-1], dustbins, places, (m, n), most),
        iteration=number,
        marginal_error=float((assignment.sum(dim=1) - rows).abs().sum() / 2 / (m + n)),
    )
