"""Pinhole cameras: pixels to rays and back, distances from epipolar lines, and where a point of known depth is seen.

Points are (M, 2) px, cameras (3, 3) calibration matrices K in the same pixels, poses cam1_from_cam0: a point X in the
frame of camera 0 is R X + t in that of camera 1. Depth is along the optical axis, in the unit of t; unknown = NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.geometry.two_view import Floats

EPIPOLAR_THRESHOLD = 5e-4  # of `epipolar_distance_normalised`: a match below it is correct (SuperGlue, section 5.2)
_ORTHONORMAL = 5e-3  # of R^T R - 1
_EDGE = 1.05  # neighbouring depths whose ratio is greater belong to two surfaces


def calibrated(points: ArrayLike, camera: ArrayLike) -> Floats:
    """Points (M, 2) px on the plane at depth 1 of their camera: K^-1 (x, y, 1), without the last 1."""
    points_M2 = np.asarray(points, np.float64).reshape(-1, 2)
    rays_3M = np.linalg.solve(np.asarray(camera, np.float64), np.column_stack([points_M2, np.ones(len(points_M2))]).T)
    return (rays_3M[:2] / rays_3M[2]).T


def is_rotation(matrix: Floats) -> bool:
    """Whether (3, 3) is orthonormal, as far as files with five decimals tell, and of determinant 1, not -1."""
    return np.abs(matrix.T @ matrix - np.eye(3)).max() <= _ORTHONORMAL and np.linalg.det(matrix) >= 0


def essential_from_pose(rotation: ArrayLike, translation: ArrayLike) -> Floats:
    """E = [t]x R: x1^T E x0 = 0 for calibrated points (Hartley and Zisserman, section 9.6). 0 without translation."""
    x, y, z = np.asarray(translation, np.float64).reshape(3)
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ np.asarray(rotation, np.float64)


def epipolar_distance_normalised(
    points0: ArrayLike,
    points1: ArrayLike,
    camera0: ArrayLike,
    camera1: ArrayLike,
    rotation: ArrayLike,
    translation: ArrayLike,
    *,
    squared: bool = True,
) -> Floats:
    """(M,): how far matches are from their epipolar lines at depth 1, d0 in view 0 and d1 in view 1.

    d0^2 + d1^2, which is what SuperGlue's precision holds against 5e-4 (`compute_epipolar_error`), LoFTR's too, but
    against 1e-4 outdoors. Not `squared`: (d0 + d1) / 2, which glue-factory holds against the same 5e-4
    (`epi_prec@5e-4`): at a focal length of 1000 px that asks for 0.5 px in each view where SuperGlue's asks for 16.
    Such precisions must not be compared. inf where there is no line: the pose has no translation, or a point is its
    view's epipole. (SuperGlue's has NaN, which is as wrong.)
    """
    essential = essential_from_pose(rotation, translation)
    x0_M2, x1_M2 = calibrated(points0, camera0), calibrated(points1, camera1)
    x0_M3, x1_M3 = (np.column_stack([x_M2, np.ones(len(x_M2))]) for x_M2 in (x0_M2, x1_M2))
    line1_M3, line0_M3 = x0_M3 @ essential.T, x1_M3 @ essential
    residual_M = np.abs((x1_M3 * line1_M3).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        d0_M, d1_M = (residual_M / np.linalg.norm(line_M3[:, :2], axis=1) for line_M3 in (line0_M3, line1_M3))
        return np.nan_to_num(d0_M**2 + d1_M**2 if squared else (d0_M + d1_M) / 2, nan=np.inf)


def lift(points: ArrayLike, depth: ArrayLike, camera: ArrayLike) -> Floats:
    """(M, 3): points (M, 2) px at `depth` (M,), in the frame of their camera."""
    rays_M2 = calibrated(points, camera)
    return np.column_stack([rays_M2, np.ones(len(rays_M2))]) * np.asarray(depth, np.float64)[:, None]


def project(points: ArrayLike, camera: ArrayLike) -> Floats:
    """(M, 2) px: where points (M, 3) in the frame of a camera are seen; NaN for those that are not in front of it."""
    points_M3 = np.asarray(points, np.float64).reshape(-1, 3)
    in_front_M1 = np.where(points_M3[:, 2:] > 0, points_M3[:, 2:], np.nan)
    return (points_M3 / in_front_M1) @ np.asarray(camera, np.float64)[:2].T


def sample_depth(depth: ArrayLike, points: ArrayLike, step: int = 1) -> Floats:
    """(M,) depth of points (M, 2) px from a map (H, W), whose pixel (u, v) is pixel (u, v) * `step` of the image.

    NaN where it is unknown: the map holds 0 or less or NaN there, or the point is outside it (and its outer half
    pixel). Between four pixels of one surface the inverse depth is interpolated, which is exact for a plane; at an edge
    (neighbours that differ by more than 5 percent) or beside unknown pixels it is that of the nearest one.
    """
    depth_HW = np.asarray(depth, np.float64)
    height, width = depth_HW.shape
    points_M2 = np.asarray(points, np.float64).reshape(-1, 2) / step
    size = np.array([width, height])
    inside_M = np.all(np.abs(2 * points_M2 + 1 - size) <= size, axis=1)  # also False for NaN
    x_M, y_M = np.where(inside_M[:, None], points_M2, 0).clip(0, size - 1).T
    left_M, top_M = x_M.astype(int), y_M.astype(int)
    columns_M2 = np.stack([left_M, np.minimum(left_M + 1, width - 1)], axis=1)
    rows_M2 = np.stack([top_M, np.minimum(top_M + 1, height - 1)], axis=1)
    known_HW = np.where(depth_HW > 0, depth_HW, np.nan)
    four_M22 = known_HW[rows_M2[:, :, None], columns_M2[:, None, :]]
    across_M2, down_M2 = (np.stack([1 - part, part], axis=1) for part in (x_M - left_M, y_M - top_M))
    plane_M = 1 / (down_M2[:, :, None] * across_M2[:, None, :] / four_M22).sum(axis=(1, 2))
    is_surface_M = four_M22.max(axis=(1, 2)) <= _EDGE * four_M22.min(axis=(1, 2))  # NaN, and False, beside unknown
    nearest_M = known_HW[np.floor(y_M + 0.5).astype(int), np.floor(x_M + 0.5).astype(int)]
    return np.where(inside_M, np.where(is_surface_M, plane_M, nearest_M), np.nan)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Covisible:
    """Which points of view 0 view 1 sees. A point that is neither visible nor hidden: the depth does not tell.

    points   (M, 2) px where they are in view 1; NaN if behind it, or of unknown depth
    visible  (M,) bool: inside view 1, and the surface seen there is at that depth
    hidden   (M,) bool: outside view 1, behind it, or behind a surface that is nearer
    """

    points: Floats
    visible: NDArray[np.bool_]
    hidden: NDArray[np.bool_]


def covisible(
    points0: ArrayLike,
    depth0: ArrayLike,
    depth1: ArrayLike,
    cameras: tuple[ArrayLike, ArrayLike],
    pose: tuple[ArrayLike, ArrayLike],
    *,
    steps: tuple[int, int] = (1, 1),
    tolerance: float = 0.05,
) -> Covisible:
    """Which of the points (M, 2) px of view 0 view 1 sees, by depth maps (H, W) of both; `pose` is (R, t).

    A point is seen if its depth in view 1 is that of the map there, up to the share `tolerance`. Maps are as for
    `sample_depth`, each with its step. For the other direction swap all, and the pose is (R^T, -R^T t).
    glue-factory asks for a round trip of few px instead (`depth.project` with `ccth`), or for nothing: by default its
    points of known depth are visible wherever they are inside the other view.
    """
    rotation, translation = (np.asarray(part, np.float64) for part in pose)
    known_M = sample_depth(depth0, points0, steps[0])
    moved_M3 = lift(points0, known_M, cameras[0]) @ rotation.T + translation.reshape(3)
    landed_M2 = project(moved_M3, cameras[1])
    height, width = np.asarray(depth1).shape
    limit = np.array([width, height]) * steps[1]
    inside_M = ((landed_M2 >= -0.5) & (landed_M2 <= limit - 0.5)).all(axis=1)
    seen_M, depth_M = sample_depth(depth1, landed_M2, steps[1]), moved_M3[:, 2]
    farther_M = depth_M > (1 + tolerance) * seen_M
    visible_M = inside_M & ~farther_M & (depth_M * (1 + tolerance) >= seen_M)
    return Covisible(points=landed_M2, visible=visible_M, hidden=~np.isnan(known_M) & (~inside_M | farther_M))
