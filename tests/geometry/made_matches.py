"""Matches whose two-view geometry is known, or is none; what every solver is tried on."""

from __future__ import annotations

import numpy as np

from isinglass.geometry.two_view import apply_homography

WIDTH, HEIGHT = 1000, 750
HOMOGRAPHY = np.array([[0.8, -0.25, 180.0], [0.2, 0.9, -40.0], [1e-4, -1e-4, 1.0]])
# Two cameras, neither centred, so that a confusion of the two or of their axes shows.
CAMERA0 = np.array([[800.0, 0, 560], [0, 820, 330], [0, 0, 1]])
CAMERA1 = np.array([[900.0, 0, 470], [0, 880, 410], [0, 0, 1]])
ANGLE = 0.15
ROTATION = (
    np.array([[np.cos(ANGLE), 0, np.sin(ANGLE)], [0, 1, 0], [-np.sin(ANGLE), 0, np.cos(ANGLE)]])
    @ np.array([[0.995, -0.1, 0], [0.1, 0.995, 0], [0, 0, np.hypot(0.995, 0.1)]])
    / np.hypot(0.995, 0.1)
)
TRANSLATION = np.array([-1.2, 0.3, 0.2])


def matches(kind, *, count=400, outliers=0.4, noise_px=0.5, seed=0):
    """Matches of a "homography", or of a "scene", a "plane" or a "turning" camera; and which of them are right."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform([0, 0], [WIDTH, HEIGHT], (count, 2))
    rays = np.column_stack([points0, np.ones(count)]) @ np.linalg.inv(CAMERA0).T
    depth = rng.uniform(3, 12, count) if kind == "scene" else 6 / (rays @ np.array([0.3, 0.2, 1.0]))
    moved = rays * depth[:, None] @ ROTATION.T + (0 if kind == "turning" else 1) * TRANSLATION
    points1 = moved[:, :2] / moved[:, 2:] * CAMERA1[[0, 1], [0, 1]] + CAMERA1[:2, 2]
    if kind == "homography":
        points1 = apply_homography(HOMOGRAPHY, points0)
    points0 = points0 + rng.normal(0, noise_px, points0.shape)
    points1 = points1 + rng.normal(0, noise_px, points1.shape)
    right = rng.uniform(size=count) >= outliers
    points1[~right] = rng.uniform([0, 0], [WIDTH, HEIGHT], (count - right.sum(), 2))
    return points0, points1, right


DEGENERATE = {
    "one place": lambda rng: (np.full((50, 2), 100.0), np.full((50, 2), 103.0)),
    "another place": lambda rng: (np.tile([100.0, 200.0], (50, 1)), np.tile([300.0, 400.0], (50, 1))),
    "all into one point": lambda rng: (rng.uniform(0, 500, (50, 2)), np.full((50, 2), 100.0)),
    "out of one point": lambda rng: (np.full((50, 2), 100.0), rng.uniform(0, 500, (50, 2))),
    "origin": lambda rng: (np.zeros((50, 2)), np.zeros((50, 2))),
    "a line": lambda rng: (along := rng.uniform(0, 700, (50, 1)), (along * [1, 0.8], along * [0.9, 0.5] + [30, 70]))[1],
    "a noisy line": lambda rng: (
        along := rng.uniform(0, 700, (50, 1)),
        tuple(along * slope + rng.normal(0, 0.3, (50, 2)) for slope in ([1, 0.8], [0.9, 0.5])),
    )[1],
    "huge": lambda rng: (rng.uniform(0, 1e200, (50, 2)), rng.uniform(0, 1e200, (50, 2))),
}


def assert_none(result, count):
    if hasattr(result, "model"):
        assert result.model is None
    else:
        assert result.rotation is None
        assert result.translation is None
    assert result.inliers.shape == (count,)
    assert result.inliers.dtype == bool
    assert result.num_inliers == 0
