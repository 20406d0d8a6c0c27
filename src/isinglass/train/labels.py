"""Which keypoints of two views are the same point: matches, unmatchable ones, and what is ignored.

As SuperGlue's supplementary material and LightGlue's section 4 have it. A label needs to know where each keypoint lands
in the other view: a homography tells, or depth with poses; what follows is the same. Shapes: M keypoints of view 0, N
of view 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isinglass.train.batch import IGNORED, UNMATCHABLE

CORRECT_PX = 3.0
UNMATCHABLE_PX = 5.0


class Landing(NamedTuple):
    """Where the keypoints of one view are in the other one.

    point_N2   px; NaN where that is not known
    hidden_N   bool, True = known to be outside of the other view or behind something there
    """

    point_N2: Tensor
    hidden_N: Tensor


def targets(
    keypoints0_M2: Tensor,
    keypoints1_N2: Tensor,
    landing0: Landing,
    landing1: Landing,
    *,
    correct_px: float = CORRECT_PX,
    unmatchable_px: float = UNMATCHABLE_PX,
) -> tuple[Tensor, Tensor]:
    """(M,) and (N,) int64, see `PairBatch.target_B2N`.

    A match: each is the other's nearest, by the greater of the distances in the two views, and that is less than
    `correct_px`. Unmatchable: hidden, or no keypoint of the other view within `unmatchable_px` of where it lands.
    """
    m, n = len(keypoints0_M2), len(keypoints1_N2)
    d1_MN, d0_MN = _distances(landing0, keypoints1_N2), _distances(landing1, keypoints0_M2).T
    target0_M, target1_N = _without(landing0, d1_MN, unmatchable_px), _without(landing1, d0_MN.T, unmatchable_px)
    if not m or not n:
        return target0_M, target1_N
    distance_MN = torch.maximum(d0_MN, d1_MN)
    (least_M, nearest_M), nearest_N = distance_MN.min(dim=1), distance_MN.argmin(dim=0)
    matched_M = (nearest_N[nearest_M] == torch.arange(m, device=nearest_M.device)) & (least_M < correct_px)
    i, j = matched_M.nonzero().squeeze(1), nearest_M[matched_M]
    target0_M[i], target1_N[j] = j, i
    return target0_M, target1_N


def landing_by_homography(points_N2: Tensor, homography: Tensor, other_size: tuple[int, int]) -> Landing:
    """Project points by a matrix (3, 3) that takes px of this view to px of the other, (width, height) px.

    Points beyond the horizon are hidden. Computed in float64 on the CPU, since not every device has that type; the
    result lies on the device of the points.
    """
    matrix = homography.cpu().double()
    projected_N3 = torch.nn.functional.pad(points_N2.cpu().double(), (0, 1), value=1.0) @ matrix.T
    ahead_N = projected_N3[:, 2] * torch.linalg.det(matrix).sign() > 1e-9
    point_N2 = torch.where(ahead_N[:, None], projected_N3[:, :2] / projected_N3[:, 2:], torch.nan)
    width, height = other_size
    inside_N = (point_N2 >= -0.5).all(dim=1) & (point_N2[:, 0] < width - 0.5) & (point_N2[:, 1] < height - 0.5)
    return Landing(point_N2.to(points_N2.dtype).to(points_N2.device), (~inside_N).to(points_N2.device))


def _without(landing: Landing, distance_MN: Tensor, unmatchable_px: float) -> Tensor:
    """Targets as far as no match is concerned."""
    known_M = ~landing.point_N2.isnan().any(dim=1)
    nothing_M = torch.ones_like(known_M) if not distance_MN.shape[1] else distance_MN.amin(dim=1) > unmatchable_px
    return torch.where(landing.hidden_N | (known_M & nothing_M), UNMATCHABLE, IGNORED)


def _distances(landing: Landing, points_N2: Tensor) -> Tensor:
    """(M, N) px; infinite for what is not known, hidden or not."""
    distance_MN = torch.cdist(landing.point_N2, points_N2, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_MN.nan_to_num(nan=torch.inf)
