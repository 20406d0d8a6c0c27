"""From similarities to matches: double softmax, Sinkhorn, and the mutual check that ends both.

In the log domain, except `sinkhorn_matches`. Shapes: B pairs, M keypoints in view 0, N in view 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.linear import padded_rows, rows_product
from isinglass.kernels.threads import for_each

BLOCK = 256  # rows of an assignment at once
LARGEST = 1e30  # product of the factors of a row and a column up to which Sinkhorn's iteration is exact to 1e-7


def log_double_softmax(
    similarity_BMN: Tensor,
    matchability_BM: Tensor,
    matchability_BN: Tensor,
    padding_BMN: Tensor | None = None,
) -> Tensor:
    """Log of the partial assignment (B, M, N), LightGlue eq. 8: sigma_i sigma_j softmax_i(S) softmax_j(S).

    Matchabilities are logits. Where `padding_BMN` is True there is no pair: the result is very low, and what stands
    there changes nothing else.
    """
    if padding_BMN is not None:
        very_low = torch.finfo(similarity_BMN.dtype).min / 4
        masked_BMN = similarity_BMN.masked_fill(padding_BMN, very_low)
        return log_double_softmax(masked_BMN, matchability_BM, matchability_BN).masked_fill(padding_BMN, very_low)
    certainty = F.logsigmoid(matchability_BM)[:, :, None] + F.logsigmoid(matchability_BN)[:, None, :]
    return similarity_BMN.log_softmax(dim=2) + similarity_BMN.log_softmax(dim=1) + certainty


def log_sinkhorn(
    similarity_BMN: Tensor,
    bin_score: Tensor,
    iterations: int,
    mask0_BM: Tensor | None = None,
    mask1_BN: Tensor | None = None,
    *,
    after: Callable[[int, Callable[[], Tensor]], None] | None = None,
) -> Tensor:
    """Return the log of the augmented assignment (B, M + 1, N + 1), SuperGlue eq. 8, 9 and supplementary section A.

    Every keypoint may go to the other view's dustbin, which has the constant `bin_score` (a scalar). Row i < M of the
    result sums (as probabilities) to 1, the dustbin's row to N; columns likewise. Where a mask (bool) is False there is
    no keypoint: it is not counted, its entries are finite but very low, and what finite similarity it has changes
    nothing. Computed in float32 at least. `after(i, result)` is called after iteration i, from 1; `result()` is the log
    of the assignment as it is then.
    """
    similarity_BMN = similarity_BMN.to(torch.promote_types(similarity_BMN.dtype, torch.float32))
    batch, m, n = similarity_BMN.shape
    couplings = F.pad(similarity_BMN, (0, 1, 0, 1))
    couplings[:, -1, :] = bin_score
    couplings[:, :, -1] = bin_score
    real0_BM = couplings.new_ones(batch, m) if mask0_BM is None else mask0_BM.to(couplings)
    real1_BN = couplings.new_ones(batch, n) if mask1_BN is None else mask1_BN.to(couplings)
    count0_B1, count1_B1 = real0_BM.sum(dim=1, keepdim=True), real1_BN.sum(dim=1, keepdim=True)
    log_total_B1 = _finite_log(count0_B1 + count1_B1)
    log_mu = _finite_log(torch.cat([real0_BM, count1_B1], dim=1)) - log_total_B1
    log_nu = _finite_log(torch.cat([real1_BN, count0_B1], dim=1)) - log_total_B1
    u, v = torch.zeros_like(log_mu), F.pad(_finite_log(real1_BN), (0, 1))

    def result() -> Tensor:
        return couplings + u[:, :, None] + v[:, None, :] + log_total_B1[:, :, None]

    for i in range(iterations):
        u = log_mu - torch.logsumexp(couplings + v[:, None, :], dim=2)
        v = log_nu - torch.logsumexp(couplings + u[:, :, None], dim=1)
        if after is not None:
            after(i + 1, result)
    return result()


def sinkhorn_matches(
    similarity_MN: Tensor, bin_score: Tensor, iterations: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """`mutual_matches` of `log_sinkhorn` without its dustbins, (M,) and (M,), by products instead of exponentials.

    Sinkhorn's own iteration (1967): rows and columns of exp(similarity - its row's maximum) are scaled in turn. Where
    that leaves the range of numbers, it is done by `log_sinkhorn`.
    """
    m, n = similarity_MN.shape
    if not m or not n:
        indices, scores = mutual_matches(similarity_MN[None], threshold)
        return indices[0], scores[0]
    kernel = F.pad(similarity_MN, (0, 1, 0, 1), value=float(bin_score))
    kernel.sub_(kernel.amax(dim=1, keepdim=True)).exp_()
    row_sum, column_sum = kernel.new_ones(m + 1), kernel.new_ones(n + 1)
    row_sum[-1], column_sum[-1] = n, m
    column = torch.ones_like(column_sum)
    row = row_sum
    for _ in range(iterations):
        row = row_sum / (kernel @ column)
        column = column_sum / (kernel.T @ row)
    largest = math.prod(torch.stack([row.max(), column.max()]).tolist())
    if not largest < LARGEST:  # or NaN: what was lost to underflow, less than 1e-37 each, may have mattered
        log_assignment = log_sinkhorn(similarity_MN[None], bin_score, iterations)[:, :-1, :-1]
        indices, scores = mutual_matches(log_assignment, threshold)
        return indices[0], scores[0]
    assignment_MN = kernel[:-1, :-1].mul_(column[:-1]).mul_(row[:-1, None])
    best0_M, index0_M = assignment_MN.max(dim=1)
    return _mutual(index0_M, assignment_MN.argmax(dim=0), best0_M, threshold)


def mutual_matches(log_assignment_BMN: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Mutual best pairs: indices (B, M) int64 with -1 = none, scores (B, M) in [0, 1].

    A pair is kept where each is the other's best and its probability exceeds `threshold`; the scores of mutual pairs
    under the threshold stay, all others are 0.
    """
    batch, m, n = log_assignment_BMN.shape
    if m == 0 or n == 0:
        empty = log_assignment_BMN.new_zeros(batch, m)
        return torch.full_like(empty, -1, dtype=torch.int64), empty
    best0, index0 = log_assignment_BMN.max(dim=2)
    return _mutual(index0, log_assignment_BMN.argmax(dim=1), best0.exp(), threshold)


def double_softmax_matches(
    x0_MD: Tensor, x1_ND: Tensor, matchability_M: Tensor, matchability_N: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """`mutual_matches` of `log_double_softmax` of x0 x1^T, (M,) and (M,), without ever holding an (M, N) matrix.

    The log of the assignment is 2 S_ij - a_i - b_j, so a row's best needs no a_i and a column's best no b_j. Logarithms
    are to base 2. K rows at a time, each block on a thread of its own.
    """
    m, n = len(x0_MD), len(x1_ND)
    if not m or not n:
        return torch.full_like(matchability_M, -1, dtype=torch.int64), torch.zeros_like(matchability_M)
    x0_PD, x1_QD = padded_rows(x0_MD * math.log2(math.e)), padded_rows(x1_ND)
    a_P = _log2_sums(x0_PD, x1_QD, m, n).sub_(_log2_sigmoid(matchability_M, len(x0_PD)))
    b_Q = _log2_sums(x1_QD, x0_PD, n, m).sub_(_log2_sigmoid(matchability_N, len(x1_QD)))
    index0_P, best0_P, own_P = a_P.new_empty(len(a_P), dtype=torch.int64), torch.empty_like(a_P), torch.empty_like(a_P)
    starts = range(0, len(x0_PD), BLOCK)
    best1_SQ = b_Q.new_empty(len(starts), len(b_Q))

    def find(start: int) -> None:
        rows = slice(start, start + BLOCK)
        score_KQ = rows_product(x0_PD[rows], x1_QD).mul_(2).sub_(b_Q)
        torch.max(score_KQ, dim=1, out=(best0_P[rows], index0_P[rows]))
        score_KQ.sub_(a_P[rows, None])
        own_P[rows] = score_KQ.gather(1, index0_P[rows, None]).squeeze(1)
        torch.amax(score_KQ, dim=0, out=best1_SQ[start // BLOCK])

    for_each(find, starts)
    index0_M = index0_P[:m]
    is_best_M = own_P[:m] == best1_SQ.amax(dim=0)[index0_M]
    first_N = index0_M.new_full((n,), m).scatter_reduce_(  # of several that are equally good, the first
        0, index0_M[is_best_M], is_best_M.nonzero().squeeze(1), "amin"
    )
    return _mutual(index0_M, first_N, (best0_P - a_P)[:m].exp2(), threshold)


def _log2_sums(x_PD: Tensor, y_QD: Tensor, m: int, n: int) -> Tensor:
    """(P,) log2 of the sum of 2^(x y^T) over the first n of each row; infinite beyond the first m rows."""
    sum_P = torch.empty_like(x_PD[:, 0])

    def add_up(start: int) -> None:
        power_KQ = rows_product(x_PD[start : start + BLOCK], y_QD)
        power_KQ[:, n:] = -torch.inf
        most_K1 = power_KQ.amax(dim=1, keepdim=True)
        sum_K = power_KQ.sub_(most_K1).exp2_().sum(dim=1)
        sum_P[start : start + BLOCK] = sum_K.log2_().add_(most_K1.squeeze(1))

    for_each(add_up, range(0, len(x_PD), BLOCK))
    sum_P[m:] = torch.inf
    return sum_P


def _log2_sigmoid(logit_M: Tensor, length: int) -> Tensor:
    return F.pad(F.logsigmoid(logit_M) * math.log2(math.e), (0, length - len(logit_M)))


def _mutual(index0: Tensor, index1: Tensor, probability0: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Indices and scores (..., M) of `mutual_matches`, from each point's best (..., M) and (..., N)."""
    mutual = index1.gather(-1, index0) == torch.arange(index0.shape[-1], device=index0.device)
    scores = torch.where(mutual, probability0, 0.0)
    return torch.where(scores > threshold, index0, -1), scores


def _finite_log(x: Tensor) -> Tensor:
    """log(x) with log(0) a very low number, so that sums and differences of a few stay finite."""
    return x.log().clamp(min=torch.finfo(x.dtype).min / 8)
