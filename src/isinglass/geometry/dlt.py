"""The homography that fits all matches best, without outlier search: what LightGlue's "DLT" columns measure.

So it tells how many wrong matches come with how high scores, where a robust solver would hide them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from isinglass.errors import InputError
from isinglass.geometry.two_view import Floats

_UNDETERMINED = 1e-6  # of singular values: float32 keypoints on a line leave 1e-7


def weighted_dlt(points0: ArrayLike, points1: ArrayLike, weights: ArrayLike | None = None) -> Floats | None:
    """The (3, 3) homography of view 0 to view 1, H[2, 2] = 1, that least squares give; None if it is not determined.

    points (M, 2) px; `weights` (M,), 0 or more, multiply the squared algebraic errors, so only their ratios matter and
    a match of weight 0 might as well not be there. None = all alike. The normalised direct linear transform (Hartley
    and Zisserman, algorithm 4.2) with weighted centroid and spread: kornia 0.9's `find_homography_dlt(solver="svd")`.
    glue-factory gives that function the match scores, by default solver="lu", one step of inverse iteration, some
    tenths of a pixel from the minimum on noisy matches; the first kornias had the minimum, but normalised unweighted.

    Not determined: fewer than four matches with a weight, three of four on a line, all on a line, all in one place.
    Raises InputError where shapes disagree, numbers are not finite or a weight is negative.
    """
    x0_M2, x1_M2 = (np.asarray(points, np.float64) for points in (points0, points1))
    w_M = np.ones(len(x0_M2)) if weights is None else np.asarray(weights, np.float64)
    if x0_M2.ndim != 2 or x0_M2.shape[1] != 2 or x1_M2.shape != x0_M2.shape or w_M.shape != (len(x0_M2),):
        raise InputError(f"shapes are {x0_M2.shape}, {x1_M2.shape} and {w_M.shape}; expected (M, 2) twice and (M,)")
    if not (np.isfinite(x0_M2).all() and np.isfinite(x1_M2).all() and np.isfinite(w_M).all() and (w_M >= 0).all()):
        raise InputError("points or weights hold NaN or infinity, or weights are negative; leave such matches out")
    used = w_M > 0
    if used.sum() < 4:
        return None
    x0_M2, x1_M2, w_M = x0_M2[used], x1_M2[used], w_M[used] / w_M.max()
    normal0, normal1 = _normalisation(x0_M2, w_M), _normalisation(x1_M2, w_M)
    if normal0 is None or normal1 is None:
        return None
    a_M3 = np.column_stack([x0_M2, np.ones(len(x0_M2))]) @ normal0.T
    b_M2 = (np.column_stack([x1_M2, np.ones(len(x1_M2))]) @ normal1.T)[:, :2]
    zero_M3, root_M1 = np.zeros_like(a_M3), np.sqrt(w_M)[:, None]
    rows = [np.hstack([a_M3, zero_M3, -b_M2[:, :1] * a_M3]), np.hstack([zero_M3, a_M3, -b_M2[:, 1:] * a_M3])]
    triangle = np.linalg.qr(np.concatenate([root_M1 * part for part in rows]), mode="r")  # 8 or 9 rows
    _, singular, directions = np.linalg.svd(triangle)
    matrix = directions[8].reshape(3, 3)
    spread = np.linalg.svd(matrix, compute_uv=False)
    if singular[7] <= _UNDETERMINED * singular[0] or spread[2] <= _UNDETERMINED * spread[0]:
        return None
    homography = np.linalg.solve(normal1, matrix @ normal0)
    return homography / (homography[2, 2] if homography[2, 2] else np.linalg.norm(homography))


def _normalisation(points_M2: Floats, weights_M: Floats) -> Floats | None:
    """Moves the centroid to the origin, and the mean distance from it to sqrt(2); None for points in one place."""
    centre = np.average(points_M2, axis=0, weights=weights_M)
    radius = np.average(np.linalg.norm(points_M2 - centre, axis=1), weights=weights_M)
    if radius <= _UNDETERMINED:
        return None
    scale = np.sqrt(2) / radius
    return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])
