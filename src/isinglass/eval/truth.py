"""Which matches of a pair are right, and which keypoints have a match to be found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isinglass.datasets.covisible import covisible_indices
from isinglass.datasets.pairs import EvalPair
from isinglass.files import SavedMatches
from isinglass.geometry.camera import EPIPOLAR_THRESHOLD, epipolar_distance_normalised
from isinglass.geometry.two_view import apply_homography
from isinglass.metrics import match_counts, matching_score, precision

CORRECT_PX = 3.0  # a match is right if it is nearer to the truth: LightGlue, section 5.1
UNMATCHABLE_PX = 5.0  # a keypoint is unmatchable if none is nearer than that; in between it is ignored


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Truth:
    """Of one pair. `correct` (M,) int8: 1 = right, 0 = wrong, -1 = not known; numbers are NaN where not known.

    Of a pair of WxBS nothing is: annotated points say what a model is worth, not which matches are right.
    """

    correct: NDArray[np.int8]
    precision: float
    recall: float
    matching_score: float


def judge(pair: EvalPair, saved: SavedMatches, *, scale: float = 1.0) -> Truth:
    """Hold the matches of a pair against what is known of it; `scale` makes stored px px of the protocol."""
    points0, points1 = saved.points0.numpy(), saved.points1.numpy()
    true_indices = None
    if pair.homography is not None:
        error = np.linalg.norm(apply_homography(pair.homography, points0) - points1, axis=1) * scale
        correct = np.where(error < CORRECT_PX, 1, 0).astype(np.int8)
        true_indices = homography_indices(saved.keypoints0.numpy(), saved.keypoints1.numpy(), pair.homography, scale)
    elif pair.pose is not None and pair.camera0 is not None and pair.camera1 is not None:
        pose = pair.pose.rotation, pair.pose.translation
        distance = epipolar_distance_normalised(points0, points1, pair.camera0, pair.camera1, *pose)
        correct = (distance < EPIPOLAR_THRESHOLD).astype(np.int8)
        if pair.depth0 is not None and pair.depth1 is not None:
            true_indices = covisible_indices(pair, saved.keypoints0.numpy(), saved.keypoints1.numpy())
    else:
        unknown = float("nan")
        correct = np.full(len(points0), -1, np.int8)
        return Truth(correct=correct, precision=unknown, recall=unknown, matching_score=unknown)
    recall = float("nan")
    if true_indices is not None:
        recall = match_counts(saved.matches.indices[0].numpy(), true_indices).recall
    known = correct[correct >= 0] == 1
    return Truth(
        correct=correct,
        precision=precision(known),
        recall=recall,
        matching_score=matching_score(int(known.sum()), len(saved.keypoints0)),
    )


def homography_indices(
    keypoints0: NDArray[np.float32], keypoints1: NDArray[np.float32], homography: NDArray[np.float64], scale: float
) -> NDArray[np.int64]:
    """(N0,) the true match of each keypoint of view 0: mutual nearest under the homography within CORRECT_PX.

    -1 = unmatchable: none within UNMATCHABLE_PX; -2 = ignored: something is near, but not clearly its match.
    """
    if not len(keypoints0) or not len(keypoints1):
        return np.full(len(keypoints0), -1, np.int64)
    forth = apply_homography(homography, keypoints0)
    back = apply_homography(np.linalg.inv(homography), keypoints1)
    d1 = torch.cdist(torch.from_numpy(forth), torch.from_numpy(keypoints1).double()) * scale
    d0 = torch.cdist(torch.from_numpy(keypoints0).double(), torch.from_numpy(back)) * scale
    distance = torch.maximum(d0, d1).nan_to_num(nan=torch.inf)
    nearest, index = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[index] == torch.arange(len(index))
    matched = mutual & (nearest < CORRECT_PX)
    true = torch.where(matched, index, torch.where(nearest > UNMATCHABLE_PX, -1, -2))
    return true.numpy()
