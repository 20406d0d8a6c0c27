"""Robust estimation: known planes and known scenes come back, and nothing comes of nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.robust import (
    _log_false_alarms,
    estimate,
    estimate_fundamental,
    estimate_homography,
)
from isinglass.geometry.two_view import apply_homography, epipolar_error, transfer_error

WIDTH, HEIGHT = 1000, 750
HOMOGRAPHY = np.array([[0.8, -0.25, 180.0], [0.2, 0.9, -40.0], [1e-4, -1e-4, 1.0]])
CALIBRATION = np.array([[800.0, 0, WIDTH / 2], [0, 800, HEIGHT / 2], [0, 0, 1]])


def rotation(x_rad, y_rad, z_rad):
    cos, sin = np.cos, np.sin
    about_x = np.array([[1, 0, 0], [0, cos(x_rad), -sin(x_rad)], [0, sin(x_rad), cos(x_rad)]])
    about_y = np.array([[cos(y_rad), 0, sin(y_rad)], [0, 1, 0], [-sin(y_rad), 0, cos(y_rad)]])
    about_z = np.array([[cos(z_rad), -sin(z_rad), 0], [sin(z_rad), cos(z_rad), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


ROTATION, TRANSLATION = rotation(0.05, -0.15, 0.1), np.array([1.0, 0.2, -0.1])
INVERSE = np.linalg.inv(CALIBRATION)
FUNDAMENTAL = INVERSE.T @ np.cross(np.eye(3), TRANSLATION) @ ROTATION @ INVERSE


def seen(points0, depth, translation=TRANSLATION):
    """Where view 1 sees what view 0 sees at `points0` in some depth."""
    rays = np.column_stack([points0, np.ones(len(points0))]) @ INVERSE.T
    homogeneous = (rays * depth[:, None] @ ROTATION.T + translation) @ CALIBRATION.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def scene(kind, count=300, outliers=0.4, noise_px=0.5, seed=0):
    """Matches of a kind of scene, and which of them are right."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform([0, 0], [WIDTH, HEIGHT], (count, 2))
    rays = np.column_stack([points0, np.ones(count)]) @ INVERSE.T
    plane = 6 / (rays @ np.array([0.2, 0.1, 1.0]))
    depth = {
        "plane": plane,
        "turning camera": plane,
        "scene": rng.uniform(3, 12, count),
        "mostly plane": np.where(rng.uniform(size=count) < 0.7, plane, rng.uniform(3, 12, count)),
        "homography": plane,
    }[kind]
    if kind == "homography":
        points1 = apply_homography(HOMOGRAPHY, points0)
    else:
        points1 = seen(points0, depth, 0 * TRANSLATION if kind == "turning camera" else TRANSLATION)
    points0 = points0 + rng.normal(0, noise_px, points0.shape)
    points1 = points1 + rng.normal(0, noise_px, points1.shape)
    right = rng.uniform(size=count) >= outliers
    points1[~right] = rng.uniform([0, 0], [WIDTH, HEIGHT], (count - right.sum(), 2))
    return points0, points1, right


def test_a_known_homography_comes_back_with_its_inliers():
    points0, points1, right = scene("homography", outliers=0.6)
    result = estimate_homography(points0, points1)
    assert (result.kind, result.solver, result.threshold_px) == ("homography", "poselib", 3.0)
    corners = np.array([[0.0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])
    moved = apply_homography(result.model, corners) - apply_homography(HOMOGRAPHY, corners)
    assert np.linalg.norm(moved, axis=1).max() < 1
    assert result.model[2, 2] == 1
    assert result.inliers[right].all()
    assert result.inliers[~right].sum() <= 2
    assert result.num_inliers == result.inliers.sum()


def test_a_known_scene_comes_back_with_its_inliers():
    points0, points1, right = scene("scene", count=500)
    result = estimate_fundamental(points0, points1, threshold_px=2.0)
    clean0 = np.random.default_rng(1).uniform([0, 0], [WIDTH, HEIGHT], (200, 2))
    clean1 = seen(clean0, np.random.default_rng(2).uniform(3, 12, 200))
    assert epipolar_error(FUNDAMENTAL, clean0, clean1).max() < 1e-9
    assert np.median(epipolar_error(result.model, clean0, clean1)) < 0.3
    assert np.linalg.norm(result.model) == pytest.approx(1)
    assert abs(np.linalg.det(result.model)) < 1e-9
    assert result.inliers[right].mean() > 0.99
    assert result.inliers[~right].mean() < 0.05


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outliers", [0.0, 0.5])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plane", "homography"),
        ("turning camera", "homography"),
        ("homography", "homography"),
        ("scene", "fundamental"),
        ("mostly plane", "fundamental"),
    ],
)
def test_auto_tells_planes_from_scenes(kind, expected, outliers, seed):
    points0, points1, right = scene(kind, outliers=outliers, seed=seed)
    result = estimate(points0, points1)
    assert result.kind == expected
    assert result.inliers[right].mean() > 0.97
    swapped = estimate(points1, points0)
    assert swapped.kind == expected
    assert swapped.inliers[right].mean() > 0.97


def test_of_a_mirrored_plane_the_inliers_are_found_too():
    points0, points1, right = scene("homography")
    mirrored1 = [WIDTH - 1, 0] + points1 * [-1, 1]
    assert estimate_homography(points0, mirrored1).model is None  # as documented
    assert estimate(points0, mirrored1).inliers[right].all()


def test_inliers_are_exactly_the_matches_within_the_threshold():
    points0, points1, _ = scene("scene", noise_px=1.5)
    for threshold_px in (1.0, 3.0):
        plane = estimate_homography(points0, points1, threshold_px=threshold_px)
        scene_ = estimate_fundamental(points0, points1, threshold_px=threshold_px)
        if plane.model is not None:
            assert np.array_equal(plane.inliers, transfer_error(plane.model, points0, points1) <= threshold_px)
        assert np.array_equal(scene_.inliers, epipolar_error(scene_.model, points0, points1) <= threshold_px)


def test_the_result_depends_on_the_seed_alone():
    points0, points1, _ = scene("scene", outliers=0.6)
    first, again = estimate(points0, points1, seed=3), estimate(points0, points1, seed=3)
    assert np.array_equal(first.model, again.model)
    assert np.array_equal(first.inliers, again.inliers)
    assert any(not np.array_equal(first.model, estimate(points0, points1, seed=seed).model) for seed in (4, 5, 6))


def test_the_pixel_convention_does_not_matter():
    points0, points1, _ = scene("homography")
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    ours, corners = estimate_homography(points0, points1), estimate_homography(points0 + 0.5, points1 + 0.5)
    assert np.array_equal(ours.inliers, corners.inliers)
    expected = shift @ ours.model @ np.linalg.inv(shift)
    assert np.allclose(corners.model, expected / expected[2, 2], rtol=1e-3, atol=1e-6)


def test_tensors_lists_and_float32_are_taken():
    points0, points1, _ = scene("plane")
    expected = estimate(points0, points1)
    tensors = estimate(torch.from_numpy(points0), torch.from_numpy(points1).float())
    assert isinstance(tensors.model, np.ndarray)
    assert tensors.model.dtype == np.float64
    assert np.mean(tensors.inliers == expected.inliers) > 0.99
    assert np.array_equal(estimate(points0.tolist(), points1.tolist()).model, expected.model)


# ---- no model is a result


def assert_none(result, count):
    assert result.model is None
    assert result.inliers.shape == (count,)
    assert result.inliers.dtype == bool
    assert result.num_inliers == 0


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_too_few_matches_give_no_model(kind, count):
    points0, points1, _ = scene("homography", count=count, outliers=0, noise_px=0)
    assert_none(estimate(points0, points1, kind), count)


def test_seven_matches_of_a_scene_give_no_model():
    """Seven matches fit up to three fundamental matrices exactly, whatever they are."""
    points0, points1, _ = scene("scene", count=7, outliers=0, noise_px=0)
    assert_none(estimate(points0, points1), 7)


def test_seven_matches_of_a_plane_give_a_homography():
    points0, points1, _ = scene("homography", count=7, outliers=0)
    result = estimate(points0, points1)
    assert result.kind == "homography"
    assert result.num_inliers == 7


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
@pytest.mark.parametrize("off", [0, 1])
@pytest.mark.parametrize("noise_px", [0.0, 0.5])
def test_matches_on_one_line_give_no_model(kind, off, noise_px):
    rng = np.random.default_rng(0)
    along = rng.uniform(0, 700, 100)
    points0 = np.column_stack([50 + along, 30 + 0.8 * along])
    points0[:off] = [[700.0, 60.0]]
    points1 = apply_homography(HOMOGRAPHY, points0) + rng.normal(0, noise_px, points0.shape)
    assert_none(estimate(points0, points1, kind), 100)


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
def test_one_match_many_times_gives_no_model(kind):
    points = np.full((50, 2), 100.0)
    assert_none(estimate(points, points + 3, kind), 50)
    rng = np.random.default_rng(0)
    assert_none(estimate(rng.uniform(0, 500, (50, 2)), points, kind), 50)  # all into one point


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
def test_a_view_on_one_line_gives_no_model(kind):
    """The points of one view are all on a line, where its camera lies in the plane it looks at."""
    points0, _, _ = scene("scene", count=100, outliers=0)
    along = 0.5 * points0[:, 0] + 0.2 * points0[:, 1]
    points1 = np.column_stack([100 + along, 50 + 0.8 * along])
    assert_none(estimate(points0, points1, kind), 100)
    assert_none(estimate(points1, points0, kind), 100)


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
def test_one_match_many_times_among_others_gives_no_model(kind):
    points0, points1, _ = scene("scene", count=100, outliers=1)
    points0[:50], points1[:50] = [100, 200], [300, 400]
    assert_none(estimate(points0, points1, kind), 100)
    points0, points1, _ = scene("scene", count=100, outliers=1)
    points1[:50] = [300, 400]  # which an epipole there explains
    assert_none(estimate(points0, points1, kind), 100)
    assert_none(estimate(points1, points0, kind), 100)


@pytest.mark.parametrize("kind", ["auto", "homography", "fundamental"])
@pytest.mark.parametrize("count", [8, 20, 100, 1000])
def test_random_matches_give_no_model(kind, count):
    for seed in range(5):
        points0, points1, _ = scene("scene", count=count, outliers=1, seed=seed)
        assert_none(estimate(points0, points1, kind), count)


def test_false_alarms_by_hand():
    """5 of 6 matches agree with a homography: (6 - 4) * 1 * C(6, 5) * C(5, 4) * p^(5 - 4) = 2 * 6 * 5 * p."""
    assert np.exp(_log_false_alarms(6, 5, 0.001, sample=4, models=1)) == pytest.approx(0.06)
    assert _log_false_alarms(6, 4, 0.001, sample=4, models=1) == np.inf


# ---- bad input


@pytest.mark.parametrize(
    ("points0", "points1", "options", "message"),
    [
        (np.full((9, 2), np.nan), np.zeros((9, 2)), {}, "NaN or infinity"),
        (np.zeros((9, 2)), np.full((9, 2), np.inf), {}, "NaN or infinity"),
        (np.zeros((9, 2)), np.zeros((8, 2)), {}, r"\(9, 2\) and \(8, 2\)"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {}, r"\(9, 3\)"),
        (np.zeros(2), np.zeros(2), {}, r"\(2,\)"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"threshold_px": 0.0}, "threshold_px is 0.0"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"threshold_px": float("nan")}, "threshold_px is nan"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"kind": "essential"}, "'essential'; expected 'auto'"),
    ],
)
def test_what_cannot_be_estimated_from_is_refused(points0, points1, options, message):
    with pytest.raises(InputError, match=message):
        estimate(points0, points1, **options)


def test_without_poselib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(MissingExtra, match=r"isinglass\[geometry\]"):
        estimate(np.zeros((9, 2)), np.zeros((9, 2)))
