"""Which keypoints of a pair see the same point of a scene, by depth and pose: the dense truth that recall needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.datasets.pairs import Depth, EvalPair, Floats
from isinglass.errors import InputError
from isinglass.geometry.camera import covisible
from isinglass.images import load, opened

UNMATCHABLE, IGNORED = -1, -2


def covisible_indices(
    pair: EvalPair,
    keypoints0: ArrayLike,
    keypoints1: ArrayLike,
    *,
    correct_px: float = 3.0,
    unmatchable_px: float = 5.0,
    depth_tolerance: float = 0.05,
) -> NDArray[np.int64]:
    """(N0,) which keypoint of view 1 each keypoint (N0, 2) px of view 0 should be matched to; -1 = none, -2 = ignore.

    A match: both keypoints are seen in the other view, each is the other's nearest, and both land within `correct_px`
    of the other. A distance is the greater of the two views', as in glue-factory's `gt_matches_from_pose_depth`.
    None: the keypoint is outside view 1 or behind another surface there, or no keypoint is within `unmatchable_px` of
    where it lands. Ignored: what is left, such as keypoints of unknown depth, and those with a neighbour that may be
    the right one. A depth agrees with the other map's if it differs by at most the share `depth_tolerance`.

    Raises InputError where the pair lacks its pose, cameras or depth, or a depth image cannot be read.
    """
    if pair.pose is None or pair.camera0 is None or pair.camera1 is None or pair.depth0 is None or pair.depth1 is None:
        raise InputError(f"pair {pair.name!r} lacks its pose, cameras or depth; expected all of them of both views")
    x0_M2, x1_N2 = (np.asarray(points, np.float64).reshape(-1, 2) for points in (keypoints0, keypoints1))
    depth0, depth1 = read_depth(pair.depth0), read_depth(pair.depth1)
    rotation, translation = pair.pose.rotation, pair.pose.translation
    camera0, camera1, step0, step1 = pair.camera0, pair.camera1, pair.depth0.step, pair.depth1.step
    forth, back = (rotation, translation), (rotation.T, -rotation.T @ translation)
    in1 = covisible(x0_M2, depth0, depth1, (camera0, camera1), forth, steps=(step0, step1), tolerance=depth_tolerance)
    in0 = covisible(x1_N2, depth1, depth0, (camera1, camera0), back, steps=(step1, step0), tolerance=depth_tolerance)
    true_M = np.where(in1.hidden, UNMATCHABLE, IGNORED)
    if not len(x0_M2) or not len(x1_N2):
        return np.where(in1.visible, UNMATCHABLE, true_M).astype(np.int64)
    d1_MN = _distances(np.where(in1.visible[:, None], in1.points, np.nan), x1_N2)
    d0_MN = _distances(np.where(in0.visible[:, None], in0.points, np.nan), x0_M2).T
    true_M[in1.visible & (d1_MN.min(axis=1) > unmatchable_px)] = UNMATCHABLE
    distance_MN = np.maximum(d0_MN, d1_MN)
    nearest_M, nearest_N = distance_MN.argmin(axis=1), distance_MN.argmin(axis=0)
    rows_M = np.arange(len(x0_M2))
    matched_M = (nearest_N[nearest_M] == rows_M) & (distance_MN[rows_M, nearest_M] < correct_px)
    return np.where(matched_M, nearest_M, true_M).astype(np.int64)


def read_depth(depth: Depth) -> Floats:
    """(H, W) metres along the optical axis, 0 = unknown. Raises InputError for what is no image of one channel."""
    try:
        with opened(depth.file) as image:
            values = np.asarray(load(image, repr(str(depth.file))))
    except InputError as error:
        raise InputError(f"{str(depth.file)!r} cannot be read as a depth image ({error}); copy it again") from error
    if values.ndim != 2:
        raise InputError(f"{str(depth.file)!r} has shape {values.shape}; expected a depth image of one channel")
    return values * float(depth.scale)


def _distances(landed_M2: Floats, points_N2: Floats) -> Floats:
    """(M, N) px; inf for points that did not land."""
    x_MN, y_MN = (landed_M2[:, None, axis] - points_N2[None, :, axis] for axis in (0, 1))
    return np.nan_to_num(np.hypot(x_MN, y_MN), nan=np.inf)
