"""Fundamental matrices by the solvers of other packages: a known one comes back from each, and nothing of nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from geometry.made_matches import CAMERA0, CAMERA1, DEGENERATE, ROTATION, TRANSLATION, assert_none, matches
from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.camera import essential_from_pose
from isinglass.geometry.solvers import POSE_SOLVERS, solve_fundamental
from isinglass.geometry.two_view import epipolar_error

for package in ("cv2", "poselib", "pycolmap"):
    pytest.importorskip(package)

FUNDAMENTAL = np.linalg.inv(CAMERA1).T @ essential_from_pose(ROTATION, TRANSLATION) @ np.linalg.inv(CAMERA0)
TRUE0, TRUE1, _ = matches("scene", noise_px=0, outliers=0, seed=9)


def off_px(model):
    """How far true matches are from the model; an error of the model to itself is 0."""
    return epipolar_error(model, TRUE0, TRUE1).mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_a_known_fundamental_matrix_comes_back(solver, seed):
    assert off_px(FUNDAMENTAL) < 1e-6
    points0, points1, right = matches("scene", seed=seed)
    result = solve_fundamental(points0, points1, solver, 1.5, seed=seed)
    assert (result.kind, result.solver, result.threshold_px) == ("fundamental", solver, 1.5)
    assert off_px(result.model) < 1
    assert result.model.dtype == np.float64
    assert np.linalg.norm(result.model) == pytest.approx(1)
    assert np.linalg.svd(result.model, compute_uv=False)[2] < 1e-6
    assert result.inliers[right].mean() > 0.85
    assert result.inliers[~right].mean() < 0.1
    assert np.array_equal(result.inliers, epipolar_error(result.model, points0, points1) <= 1.5)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_swapped_views_transpose_it(solver):
    points0, points1, _ = matches("scene")
    back = solve_fundamental(points1, points0, solver, 1.5)
    assert off_px(back.model.T) < 1
    assert off_px(back.model) > 5


@pytest.mark.parametrize("solver", ["opencv-ransac", "opencv-magsac"])
def test_opencv_is_called_as_in_wxbs_benchmark(solver):
    import cv2

    points0, points1, _ = matches("scene")
    method = {"opencv-ransac": cv2.FM_RANSAC, "opencv-magsac": cv2.USAC_MAGSAC}[solver]
    expected, _ = cv2.findFundamentalMat(points0, points1, method, 0.25, 0.999, 100_000)
    found = solve_fundamental(points0, points1, solver, 0.25).model
    assert np.allclose(found, expected / np.linalg.norm(expected))


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_it_depends_on_the_seed_alone(solver):
    points0, points1, _ = matches("scene", count=80, outliers=0.5, noise_px=1)
    first, again, *others = (
        solve_fundamental(points0, points1, solver, 1.5, seed=seed).model for seed in (3, 3, 0, 1, 2)
    )
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_too_few_matches_give_none(solver, count):
    points0, points1, _ = matches("scene", count=count, outliers=0, noise_px=0)
    assert_none(solve_fundamental(points0, points1, solver, 3.0), count)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_seven_matches_give_a_matrix_that_fits_them(solver):
    found = []
    for seed in range(5):
        points0, points1, _ = matches("scene", count=7, outliers=0, noise_px=0, seed=seed)
        result = solve_fundamental(points0, points1, solver, 1.0)
        assert result.model is None or (result.model.shape == (3, 3) and result.num_inliers == 7)
        found.append(result.model is not None)
    assert any(found)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero).*:RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_degenerate_matches_give_none(solver, name):
    points0, points1 = DEGENERATE[name](np.random.default_rng(0))
    assert_none(solve_fundamental(points0, points1, solver, 3.0), 50)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_of_a_plane_a_matrix_that_fits_is_given(solver):
    points0, points1, right = matches("plane", noise_px=0.2)
    assert solve_fundamental(points0, points1, solver, 1.5).inliers[right].mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points0": np.full((9, 2), np.nan)}, "NaN or infinity"),
        ({"points0": np.zeros((8, 2))}, r"\(8, 2\) and \(9, 2\)"),
        ({"solver": "dlt"}, "'dlt'; expected one of opencv-ransac"),
        ({"threshold_px": 0.0}, "threshold_px is 0.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_solved_is_refused(changes, message):
    given = {"points0": np.zeros((9, 2)), "points1": np.zeros((9, 2)), "solver": "poselib", "threshold_px": 1.0}
    with pytest.raises(InputError, match=message):
        solve_fundamental(**(given | changes))


@pytest.mark.parametrize(
    ("module", "solver"),
    [("cv2", "opencv-ransac"), ("cv2", "opencv-magsac"), ("poselib", "poselib"), ("pycolmap", "pycolmap")],
)
def test_a_missing_package_is_named(monkeypatch, module, solver):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=module if module != "cv2" else "opencv"):
        solve_fundamental(np.zeros((9, 2)), np.zeros((9, 2)), solver, 1.0)
