"""Views of photos as matrices: where a virtual camera looks.

In this file points have (0, 0) at the corner of the top-left pixel, as Pillow resamples. A view is a matrix (3, 3) that
takes its points to those of the photo.
"""

from __future__ import annotations

import math

import numpy as np

from isinglass.datasets.pairs import Floats

Shape = tuple[int, int]  # (width, height) px

TO_CORNERS = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # pixels of the house to those of this file
INWARD = 0.4  # how far a corner of a random view comes in, as a share of the side
_ANGLES = 10  # tried until one keeps the view inside the photo
_MIN_CONVEXITY = 0.05  # of the parallelogram at each corner, as a share of the area


def shift(x: float, y: float) -> Floats:
    """By (x, y) px."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def zoom(factor: float) -> Floats:
    """About (0, 0)."""
    return np.diag([factor, factor, 1.0])


def turn(angle_rad: float) -> Floats:
    """From +x towards +y: of a view so turned in its photo, what is seen is turned counter-clockwise."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def middle(photo_size: Shape, shape: Shape) -> Floats:
    """The greatest view of this shape in the middle of the photo."""
    scale = min(photo_size[0] / shape[0], photo_size[1] / shape[1])
    return shift(photo_size[0] / 2, photo_size[1] / 2) @ zoom(scale) @ shift(-shape[0] / 2, -shape[1] / 2)


def random_view(shape: Shape, max_angle_rad: float, rng: np.random.Generator, *, inward: float = INWARD) -> Floats:
    """Of an image of this shape, of the same shape: a quadrilateral of it.

    Each corner comes in by up to `inward` of the side, then all are turned, and shifted as far as there is room.
    """
    full_42 = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
    corners_42 = np.zeros((4, 2))
    while not _is_convex(corners_42):
        corners_42 = np.abs(full_42 - rng.uniform(0, inward, (4, 2)))
    corners_42 = (corners_42 - corners_42.mean(axis=0) + 0.5) * shape
    for angle in rng.uniform(-max_angle_rad, max_angle_rad, _ANGLES):
        turned_42 = (corners_42 - np.array(shape) / 2) @ turn(angle)[:2, :2].T + np.array(shape) / 2
        if (turned_42 >= 0).all() and (turned_42 <= shape).all():
            corners_42 = turned_42
            break
    corners_42 = corners_42 + rng.uniform(-corners_42.min(axis=0), shape - corners_42.max(axis=0))
    return from_corners(full_42 * shape, corners_42)


def _is_convex(corners_42: Floats) -> bool:
    """Whether the corners, in order, clearly turn to the same side."""
    after_42 = np.roll(corners_42, -1, axis=0) - corners_42
    before_42 = np.roll(after_42, 1, axis=0)
    return bool((before_42[:, 0] * after_42[:, 1] - before_42[:, 1] * after_42[:, 0]).min() > _MIN_CONVEXITY)


def from_corners(from_42: Floats, to_42: Floats) -> Floats:
    """The homography that four points determine: the linear system of Hartley and Zisserman, section 4.1.2."""
    rows = []
    for (x, y), (u, v) in zip(from_42, to_42, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), to_42.reshape(-1)), 1.0).reshape(3, 3)
