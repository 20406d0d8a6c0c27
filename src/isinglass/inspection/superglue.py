"""SuperGlue's run retraced by the plain modules: where each layer looks, and how Sinkhorn's iterations converge.

Section and equation numbers are the paper's. Legend: M and N keypoints of view 0 and 1, T of both side by
side, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.inspection.record import Attention, Step, Tell, Trace, Views
from isinglass.inspection.tops import alternatives_of, attention_of
from isinglass.matchers.execution import check_unmodified
from isinglass.matchers.superglue import AttentionalPropagation, SuperGlue
from isinglass.ops.assignment import mutual_matches
from isinglass.ops.attention import Packed
from isinglass.types import Features, Matches, check_pairs

SHOWN = 12  # iterations of Sinkhorn at most


@torch.inference_mode()
def trace_superglue(
    model: SuperGlue, features0: Features, features1: Features, *, attention: int, alternatives: int, tell: Tell
) -> Trace:
    """The trace of one pair, in the precision of the weights; see `isinglass.inspection.trace`."""
    check_unmodified(model, SuperGlue, "the trace")
    (pair,) = check_pairs(
        [features0], [features1], matcher=model.name, accepts=model.accepts, descriptor_size=model.input_size
    )
    (m, n), position_T3, x_TD = model._tokens([pair])
    indices, scores = (x_TD.new_full((1, m), -1, dtype=torch.int64), x_TD.new_zeros((1, m), dtype=torch.float32))
    steps: list[Step] = []
    looked: list[Attention] = []
    if m and n:
        x_TD = x_TD + model.keypoint_encoder(position_T3)  # eq. 2
        places = torch.arange(m, device=x_TD.device), torch.arange(n, device=x_TD.device)
        x_TD = _describe(model, x_TD, places, looked, most=attention, tell=tell)
        f0_MD, f1_ND = model.final_projection(x_TD).split([m, n])  # eq. 6
        similarity_MN = f0_MD @ f1_ND.T / model.config.width**0.5  # eq. 7
        for number, log_assignment in _sinkhorn(model, similarity_MN):
            tell(f"iteration {number} of {model.config.sinkhorn_iterations}")
            log_inner = log_assignment[None, :-1, :-1]
            indices, scores = mutual_matches(log_inner, model.config.filter_threshold)
            steps.append(_step(number, log_assignment, (indices[0], scores[0]), places, alternatives))
    return Trace(
        kind="superglue",
        steps=tuple(steps),
        attention=tuple(looked),
        ended="layers" if steps else "empty",
        filter_threshold=model.config.filter_threshold,
        matches=Matches(
            indices=indices,
            scores=scores.float().clamp(max=1),
            stop_layer=torch.tensor([model.config.layers], device=x_TD.device),
            matcher=model.name,
        ),
    )


def shown_iterations(count: int, most: int = SHOWN) -> list[int]:
    """Which of `count` iterations are shown: all, or the first and the last and some between, denser at first."""
    if count <= most:
        return list(range(1, count + 1))
    spread = torch.logspace(0, torch.tensor(float(count)).log10().item(), most, dtype=torch.float64)
    return sorted({1, count, *(round(value) for value in spread.tolist())})


def _describe(
    model: SuperGlue, x_TD: Tensor, places: Views, looked: list[Attention], *, most: int, tell: Tell
) -> Tensor:
    """States after all layers, eq. 3 to 5, by the running statistics; adds where they looked, unless `most` is 0."""
    lengths = len(places[0]), len(places[1])
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, AttentionalPropagation)
        cross = i % 2 == 1
        tell(f"layer {i + 1} of {len(model.layers)}")
        if most:
            query, key, _ = layer.qkv(x_TD).unflatten(-1, (3, layer.heads, -1)).unbind(-3)
            looked.append(attention_of(query, key, places, lengths, i + 1, cross=cross, most=most))
        x_TD = layer(x_TD, Packed(lengths), cross)
    return x_TD


def _sinkhorn(model: SuperGlue, similarity_MN: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterations to show and the log of the augmented assignment (M + 1, N + 1) after each; see `log_sinkhorn`."""
    m, n = similarity_MN.shape
    similarity_MN = similarity_MN.to(torch.promote_types(similarity_MN.dtype, torch.float32))
    couplings = F.pad(similarity_MN, (0, 1, 0, 1), value=float(model.bin_score))
    log_mu, log_nu = couplings.new_zeros(m + 1), couplings.new_zeros(n + 1)
    log_mu[-1], log_nu[-1] = torch.tensor(n).log(), torch.tensor(m).log()
    v, iterations = torch.zeros_like(log_nu), model.config.sinkhorn_iterations
    shown = set(shown_iterations(iterations))
    for number in range(1, iterations + 1):
        u = log_mu - torch.logsumexp(couplings + v, dim=1)
        v = log_nu - torch.logsumexp(couplings + u[:, None], dim=0)
        if number in shown:
            yield number, couplings + u[:, None] + v


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
