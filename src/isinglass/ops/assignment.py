"""From similarities to matches: double softmax, Sinkhorn, and the mutual check that ends both.

All in the log domain. Shapes: B pairs, M keypoints in view 0, N in view 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_double_softmax(similarity_BMN: Tensor, matchability_BM: Tensor, matchability_BN: Tensor) -> Tensor:
    """Log of the partial assignment (B, M, N), LightGlue eq. 8: sigma_i sigma_j softmax_i(S) softmax_j(S).

    Matchabilities are logits.
    """
    certainty = F.logsigmoid(matchability_BM)[:, :, None] + F.logsigmoid(matchability_BN)[:, None, :]
    return similarity_BMN.log_softmax(dim=2) + similarity_BMN.log_softmax(dim=1) + certainty


def log_sinkhorn(
    similarity_BMN: Tensor,
    bin_score: Tensor,
    iterations: int,
    mask0_BM: Tensor | None = None,
    mask1_BN: Tensor | None = None,
) -> Tensor:
    """Log of the augmented assignment (B, M + 1, N + 1), SuperGlue eq. 8 and 9 and supplementary section A.

    Every keypoint may go to the other view's dustbin, which has the constant `bin_score` (a scalar). Row i < M of the
    result sums (as probabilities) to 1, the dustbin's row to N; columns likewise. Where a mask (bool) is False there is
    no keypoint: it is not counted, its entries are finite but very low, and what finite similarity it has changes
    nothing. Computed in float32 at least.
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
    for _ in range(iterations):
        u = log_mu - torch.logsumexp(couplings + v[:, None, :], dim=2)
        v = log_nu - torch.logsumexp(couplings + u[:, :, None], dim=1)
    return couplings + u[:, :, None] + v[:, None, :] + log_total_B1[:, :, None]


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
    index1 = log_assignment_BMN.argmax(dim=1)
    mutual = index1.gather(1, index0) == torch.arange(m, device=index0.device)
    scores = torch.where(mutual, best0.exp(), 0.0)
    return torch.where(scores > threshold, index0, -1), scores


def _finite_log(x: Tensor) -> Tensor:
    """log(x) with log(0) a very low number, so that sums and differences of a few stay finite."""
    return x.log().clamp(min=torch.finfo(x.dtype).min / 8)
