"""What is minimised: SuperGlue eq. 10, LightGlue section 3.4, and the confidence heads' classification.

Means over the pairs of a batch, of means over the points of a pair; points whose target is IGNORED count nowhere.
Shapes: B pairs, N keypoints, padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.assignment import mutual_matches
from isinglass.matchers.lightglue import Prediction
from isinglass.train.batch import UNMATCHABLE


def lightglue_loss(predictions: Sequence[Prediction], target_B2N: Tensor) -> dict[str, Tensor]:
    """Mean over layers, 0-d: "loss", and its parts at the last layer, "positive" and "negative".

    Of each layer the mean of -log P_ij over matches, and of -log(1 - sigma) over the unmatchable points of both views,
    half of it each: so matches weigh as much as points without any.
    """
    losses = []
    for one in predictions:
        positive = _positive(one.log_assignment_BNN, target_B2N)
        unmatchable_B2N = target_B2N == UNMATCHABLE
        of_views_B2 = _mean(F.softplus(one.matchability_B2N), unmatchable_B2N)  # softplus(z) = -log(1 - sigma(z))
        losses.append((positive, of_views_B2.mean()))
    total = torch.stack([positive + negative for positive, negative in losses]).mean()
    return {"loss": total, "positive": losses[-1][0].detach(), "negative": losses[-1][1].detach()}


def superglue_loss(log_assignment_BNN: Tensor, target_B2N: Tensor) -> dict[str, Tensor]:
    """0-d "loss", "positive" and "negative": -log of the augmented assignment (B, N + 1, N + 1) at what is true.

    Eq. 10 sums over matches and over unmatchable points. Here the mean over matches and the mean over the unmatchable
    of both views weigh the same, as LightGlue's, or a pair of little overlap would teach little but the dustbin.
    """
    positive = _positive(log_assignment_BNN[:, :-1, :-1], target_B2N)
    to_bin_B2N = torch.stack([log_assignment_BNN[:, :-1, -1], log_assignment_BNN[:, -1, :-1]], dim=1)
    negative = -_mean(to_bin_B2N, target_B2N == UNMATCHABLE).mean()
    return {"loss": positive + negative, "positive": positive.detach(), "negative": negative.detach()}


def confidence_loss(predictions: Sequence[Prediction], filter_threshold: float) -> dict[str, Tensor]:
    """0-d "loss" and "agreement": cross entropy of each confidence with whether the layer's match is the last one's.

    Section 3.3: c_i says that what layer l predicts for point i is what the last layer will. No gradient but into the
    confidence heads.
    """
    final_B2N = matches_of(predictions[-1].log_assignment_BNN, filter_threshold)
    losses, shares = [], []
    for one in predictions[:-1]:
        assert one.confidence_B2N is not None
        same_B2N = (matches_of(one.log_assignment_BNN, filter_threshold) == final_B2N).to(one.confidence_B2N)
        losses.append(F.binary_cross_entropy_with_logits(one.confidence_B2N, same_B2N))
        shares.append(same_B2N.mean())
    return {"loss": torch.stack(losses).mean(), "agreement": torch.stack(shares).mean()}


@torch.no_grad()
def matches_of(log_assignment_BNN: Tensor, threshold: float) -> Tensor:
    """(B, 2, N) int64, the match of each point of either view; -1 = none."""
    forth_BN, _ = mutual_matches(log_assignment_BNN, threshold)
    back_BN, _ = mutual_matches(log_assignment_BNN.mT, threshold)
    return torch.stack([forth_BN, back_BN], dim=1)


def _positive(log_assignment_BNN: Tensor, target_B2N: Tensor) -> Tensor:
    target_BN = target_B2N[:, 0]
    log_p_BN = log_assignment_BNN.gather(2, target_BN.clamp(min=0)[..., None]).squeeze(2)
    return -_mean(log_p_BN, target_BN >= 0).mean()


def _mean(value: Tensor, counts: Tensor) -> Tensor:
    """Over the last axis, of what counts; 0 where nothing does."""
    return torch.where(counts, value, 0.0).sum(dim=-1) / counts.sum(dim=-1).clamp(min=1)
