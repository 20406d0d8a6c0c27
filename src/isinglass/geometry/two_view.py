"""Two views of a scene: where a homography takes points, and how far matches are from what a model predicts.

Points are (M, 2) float64, (x, y) px; matrices (3, 3) act on (x, y, 1), from view 0 to view 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def apply_homography(homography: ArrayLike, points: ArrayLike) -> Floats:
    """Where `homography` takes points (M, 2); not finite where that is at infinity."""
    mapped_M3 = _homogeneous(points) @ np.asarray(homography, dtype=np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return mapped_M3[:, :2] / mapped_M3[:, 2:]


def transfer_error(homography: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Floats:
    """(M,) px: how far a match moves in both views together to satisfy x1 ~ H x0; may be inf.

    From its errors d1 = |H x0 - x1| and d0 = |H^-1 x1 - x0| as 1 / d^2 = 1 / d0^2 + 1 / d1^2, which is Sampson's
    distance for a similarity (Hartley and Zisserman, section 4.2.6), and the same for swapped views.
    """
    matrix = np.asarray(homography, dtype=np.float64)
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.full(len(np.asarray(points0)), np.inf)
    x0_M2, x1_M2 = np.asarray(points0, dtype=np.float64), np.asarray(points1, dtype=np.float64)
    forward_M = np.linalg.norm(apply_homography(matrix, x0_M2) - x1_M2, axis=1)
    backward_M = np.linalg.norm(apply_homography(inverse, x1_M2) - x0_M2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance_M = 1 / np.hypot(1 / forward_M, 1 / backward_M)
    return np.nan_to_num(distance_M, nan=np.inf)


def epipolar_error(fundamental: ArrayLike, points0: ArrayLike, points1: ArrayLike) -> Floats:
    """(M,) px: Sampson's distance, how far (to first order) a match moves in both views to satisfy x1^T F x0 = 0.

    Hartley and Zisserman, Multiple View Geometry, section 11.4.3.
    """
    matrix = np.asarray(fundamental, dtype=np.float64)
    homogeneous0_M3, homogeneous1_M3 = _homogeneous(points0), _homogeneous(points1)
    line1_M3, line0_M3 = homogeneous0_M3 @ matrix.T, homogeneous1_M3 @ matrix
    residual_M = np.abs((homogeneous1_M3 * line1_M3).sum(axis=1))
    slope_M = np.sqrt((line1_M3[:, :2] ** 2).sum(axis=1) + (line0_M3[:, :2] ** 2).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(residual_M / slope_M, nan=np.inf)  # 0 / 0: both points are epipoles, or F is 0


def _homogeneous(points: ArrayLike) -> Floats:
    points_M2 = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([points_M2, np.ones((len(points_M2), 1))], axis=1)
