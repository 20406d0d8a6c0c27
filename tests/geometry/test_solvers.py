"""Solvers of other packages: known planes and known poses come back from each, and nothing comes of nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from geometry.made_matches import (
    CAMERA0,
    CAMERA1,
    DEGENERATE,
    HEIGHT,
    HOMOGRAPHY,
    ROTATION,
    TRANSLATION,
    WIDTH,
    assert_none,
    matches,
)
from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.dlt import weighted_dlt
from isinglass.geometry.robust import estimate_homography, on_a_line
from isinglass.geometry.solvers import POSE_SOLVERS, SOLVERS, solve_homography, solve_pose
from isinglass.geometry.two_view import apply_homography, epipolar_error, transfer_error
from isinglass.metrics import pose_error_deg

for package in ("cv2", "poselib", "pycolmap"):
    pytest.importorskip(package)

ROBUST = SOLVERS[:-1]


def corner_error(model):
    corners = np.array([[0.0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]])
    moved = apply_homography(model, corners) - apply_homography(HOMOGRAPHY, corners)
    return np.linalg.norm(moved, axis=1).mean()


def errors_deg(pose, rotation=ROTATION, translation=TRANSLATION):
    """Of the rotation, and of the direction of the translation; unlike the metrics', its sign counts."""
    cosine = np.dot(pose.translation, translation) / np.linalg.norm(translation)
    angle, _ = pose_error_deg(pose.rotation, pose.translation, rotation, translation)
    return angle, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# ---- known planes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("solver", ROBUST)
def test_a_known_homography_comes_back(solver, seed):
    points0, points1, right = matches("homography", seed=seed)
    result = solve_homography(points0, points1, solver, 3.0, seed=seed)
    assert (result.kind, result.solver, result.threshold_px) == ("homography", solver, 3.0)
    assert corner_error(result.model) < 1
    assert result.model.dtype == np.float64
    assert result.model[2, 2] == 1
    assert result.inliers[right].mean() > 0.98
    assert result.inliers[~right].mean() < 0.05
    assert np.array_equal(result.inliers, transfer_error(result.model, points0, points1) <= 3)


def test_dlt_weighs_matches_by_their_scores():
    points0, points1, right = matches("homography")
    assert corner_error(solve_homography(points0, points1, "dlt", 3.0).model) > 50  # outliers count like others
    result = solve_homography(points0, points1, "dlt", 3.0, scores=np.where(right, 0.9, 0))
    assert corner_error(result.model) < 1
    assert result.inliers[right].mean() > 0.98
    expected = weighted_dlt(points0, points1, np.where(right, 0.9, 1e-6))
    slight = solve_homography(points0, points1, "dlt", 3.0, scores=np.where(right, 0.9, 1e-6))
    assert np.array_equal(slight.model, expected)
    assert corner_error(expected) < 5
    assert_none(solve_homography(points0, points1, "dlt", 3.0, scores=np.zeros(400)), 400)


@pytest.mark.parametrize("solver", SOLVERS)
def test_four_exact_matches_give_their_homography(solver):
    points0 = np.array([[10.0, 20], [900, 60], [870, 700], [40, 650]])
    result = solve_homography(points0, apply_homography(HOMOGRAPHY, points0), solver, 1.0)
    assert corner_error(result.model) < 0.01
    assert result.num_inliers == 4


@pytest.mark.parametrize("solver", SOLVERS)
def test_swapped_views_give_the_inverse_homography(solver):
    points0, points1, right = matches("homography")
    scores = right + 0.0
    there = solve_homography(points0, points1, solver, 3.0, scores=scores).model
    back = solve_homography(points1, points0, solver, 3.0, scores=scores).model
    corners = np.array([[0.0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])
    returned = apply_homography(back, apply_homography(there, corners))
    assert np.abs(returned - corners).max() < 2


# ---- known poses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_a_known_pose_comes_back(solver, seed):
    points0, points1, right = matches("scene", seed=seed)
    result = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.5, seed=seed)
    assert (result.solver, result.threshold_px) == (solver, 1.5)
    angle, direction = errors_deg(result)
    assert angle < 1
    assert direction < 3 if solver.startswith("opencv") else direction < 1  # OpenCV does not refine
    assert np.allclose(result.rotation @ result.rotation.T, np.eye(3), atol=1e-8)
    assert np.linalg.det(result.rotation) > 0
    assert np.linalg.norm(result.translation) == pytest.approx(1)
    assert result.inliers[right].mean() > 0.85
    assert result.inliers[~right].mean() < 0.1
    x, y, z = result.translation
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ result.rotation
    fundamental = np.linalg.inv(CAMERA1).T @ essential @ np.linalg.inv(CAMERA0)
    assert np.array_equal(result.inliers, epipolar_error(fundamental, points0, points1) <= 1.5)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_a_plane_gives_a_pose_that_fits_it(solver):
    """Two poses fit a plane (Hartley and Zisserman, result 13.6); OpenCV counts inliers before it asks for depths."""
    found = []
    for seed in range(6):
        points0, points1, right = matches("plane", seed=seed)
        result = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 3.0, seed=seed)
        assert result.inliers[right].mean() > (0.7 if solver == "opencv-magsac" else 0.95)
        found.append(max(errors_deg(result)) < 6 if solver.startswith("opencv") else max(errors_deg(result)) < 1)
    assert any(found) if solver.startswith("opencv") else all(found)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_a_camera_that_only_turns_gives_its_rotation(solver):
    """OpenCV counts matches nearer than 50 baselines, of which there are few by chance or none: it may be half a turn
    off, or say nothing.
    """
    found, lengths = [], []
    for seed in range(6):
        points0, points1, right = matches("turning", seed=seed)
        result = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 3.0, seed=seed)
        if result.rotation is not None:
            assert result.inliers[right].mean() > 0.95
            lengths.append(round(np.linalg.norm(result.translation), 9))
        found.append(pose_error_deg(result.rotation, result.translation, ROTATION, np.zeros(3))[0] < 1)
    assert sum(found) >= 3 if solver.startswith("opencv") else all(found)
    assert 0 in lengths if solver == "pycolmap" else set(lengths) == {1}
    assert set(lengths) <= {0, 1}


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_swapped_views_invert_the_pose(solver):
    points0, points1, _ = matches("scene")
    back = solve_pose(points1, points0, CAMERA1, CAMERA0, solver, 1.5)
    angle, direction = errors_deg(back, ROTATION.T, -ROTATION.T @ TRANSLATION)
    assert angle < 1
    assert direction < 3


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_pixels_and_cameras_need_only_agree(solver):
    """Points and principal points shifted alike, by half a pixel or by many: nothing changes. Points alone: much."""
    points0, points1, _ = matches("scene", noise_px=0.1, outliers=0.2)
    ours = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.0)
    for shift in ([0.5, 0.5], [-500.0, 120.0]):
        cameras = [camera.copy() for camera in (CAMERA0, CAMERA1)]
        for camera in cameras:
            camera[:2, 2] += shift
        moved = solve_pose(points0 + shift, points1 + shift, *cameras, solver, 1.0)
        angle, direction = errors_deg(moved, ours.rotation, ours.translation)
        assert max(angle, direction) < 1e-4
        assert np.array_equal(moved.inliers, ours.inliers)
    assert max(errors_deg(ours)) < 0.5
    wrong = solve_pose(points0 + np.array([200.0, 0]), points1, CAMERA0, CAMERA1, solver, 1.0)
    assert max(errors_deg(wrong)) > 2


@pytest.mark.parametrize("solver", ["opencv-ransac", "opencv-magsac"])
def test_opencv_is_called_as_published_evaluations_do(solver):
    import cv2

    points0, points1, _ = matches("scene")
    x0 = (points0 - CAMERA0[:2, 2]) / [800, 820]
    x1 = (points1 - CAMERA1[:2, 2]) / [900, 880]
    method = {"opencv-ransac": cv2.RANSAC, "opencv-magsac": cv2.USAC_MAGSAC}[solver]
    essential, mask = cv2.findEssentialMat(x0, x1, np.eye(3), threshold=1.5 / 850, prob=0.99999, method=method)
    _, rotation, translation, _ = cv2.recoverPose(essential, x0, x1, np.eye(3), 1e9, mask=mask)  # 1e9 goes nowhere
    result = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.5)
    assert np.allclose(result.rotation, rotation, atol=1e-6)
    assert np.allclose(result.translation, translation[:, 0], atol=1e-6)


# ---- the seed


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_homography_depends_on_the_seed_alone(solver):
    points0, points1, right = matches("homography", count=60, outliers=0.7, noise_px=1.5)
    first, again, *others = (
        solve_homography(points0, points1, solver, 3.0, scores=right + 0.1, seed=seed).model for seed in (3, 3, 0, 1, 2)
    )
    assert first is not None
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, other) for other in others) or solver == "dlt"


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_the_pose_depends_on_the_seed_alone(solver):
    import cv2

    points0, points1, _ = matches("scene", outliers=0.6)
    first, again, *others = (
        solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.5, seed=seed) for seed in (3, 3, 0, 1, 2)
    )
    assert np.array_equal(first.rotation, again.rotation)
    assert np.array_equal(first.translation, again.translation)
    assert np.array_equal(first.inliers, again.inliers)
    assert any(not np.array_equal(first.rotation, other.rotation) for other in others)
    cv2.setRNGSeed(12345)  # what others set does not matter
    np.random.seed(7)
    assert np.array_equal(solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.5, seed=3).rotation, first.rotation)


# ---- no model is a result


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_matches_give_no_homography(solver, count):
    points0, points1, _ = matches("homography", count=count, outliers=0, noise_px=0)
    assert_none(solve_homography(points0, points1, solver, 3.0), count)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_matches_give_no_pose(solver, count):
    points0, points1, _ = matches("scene", count=count, outliers=0, noise_px=0)
    assert_none(solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 3.0), count)


@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_five_matches_give_a_pose_that_fits_them(solver):
    for seed in range(5):
        points0, points1, _ = matches("scene", count=5, outliers=0, noise_px=0, seed=seed)
        result = solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 1.0)
        assert result.rotation is None or result.num_inliers == 5


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero).*:RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_degenerate_matches_give_no_homography(solver, name):
    points0, points1 = DEGENERATE[name](np.random.default_rng(0))
    assert_none(solve_homography(points0, points1, solver, 3.0), 50)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero).*:RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("solver", POSE_SOLVERS)
def test_degenerate_matches_give_no_pose(solver, name):
    points0, points1 = DEGENERATE[name](np.random.default_rng(0))
    assert_none(solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 3.0), 50)


@pytest.mark.parametrize("solver", SOLVERS)
def test_random_matches_raise_nothing(solver):
    for count in (4, 5, 8, 50):
        points0, points1, _ = matches("homography", count=count, outliers=1)
        assert solve_homography(points0, points1, solver, 3.0).inliers.shape == (count,)
        if solver in POSE_SOLVERS:
            assert solve_pose(points0, points1, CAMERA0, CAMERA1, solver, 3.0).inliers.shape == (count,)


def test_where_in_the_image_matches_are_does_not_matter():
    """A cluster of matches far from the diagonal determines a plane as well as one at the origin."""
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 150, (60, 2))
    points1 = points0 @ np.array([[0.9, -0.2], [0.2, 0.9]]).T + rng.normal(0, 0.3, (60, 2))
    for offset in ([0, 0], [1900, 0], [0, 1900], [1900, 1900]):
        assert not on_a_line(points0 + offset, points1 + offset, 3.0)
        assert estimate_homography(points0 + offset, points1 + offset).num_inliers == 60
        for solver in SOLVERS:
            assert solve_homography(points0 + offset, points1 + offset, solver, 3.0).num_inliers == 60


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points0": np.full((9, 2), np.nan)}, "NaN or infinity"),
        ({"points0": np.zeros((8, 2))}, r"\(8, 2\) and \(9, 2\)"),
        ({"solver": "ransac"}, "'ransac'; expected one of opencv-ransac, "),
        ({"threshold_px": 0.0}, "threshold_px is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"camera0": np.eye(2)}, r"expected a finite \(3, 3\)"),
        ({"camera1": np.diag([500, np.nan, 1])}, r"expected a finite \(3, 3\)"),
        ({"camera1": np.diag([500.0, -500, 1])}, "fx and fy > 0"),
        ({"camera1": np.array([[500.0, 3, 0], [0, 500, 0], [0, 0, 1]])}, r"\[\[fx, 0, cx\]"),
        ({"solver": "dlt"}, "'dlt'; expected one of opencv-ransac"),
    ],
)
def test_what_cannot_be_solved_is_refused(changes, message):
    given = {"points0": np.zeros((9, 2)), "points1": np.zeros((9, 2)), "camera0": CAMERA0, "camera1": CAMERA1}
    given |= {"solver": "poselib", "threshold_px": 1.0}
    with pytest.raises(InputError, match=message):
        solve_pose(**(given | changes))
    of_poses = {"camera0", "camera1"}
    if not of_poses & set(changes) and changes.get("solver") != "dlt":
        with pytest.raises(InputError, match=message):
            solve_homography(**{name: value for name, value in (given | changes).items() if name not in of_poses})


def test_scores_must_be_weights():
    with pytest.raises(InputError, match="negative"):
        solve_homography(np.zeros((9, 2)), np.zeros((9, 2)), "dlt", 1.0, scores=np.full(9, -1.0))


@pytest.mark.parametrize(
    ("module", "solver", "message"),
    [
        ("cv2", "opencv-ransac", r"opencv-python-headless is not.*isinglass\[sift\]"),
        ("cv2", "opencv-magsac", r"opencv-python-headless is not.*isinglass\[sift\]"),
        ("poselib", "poselib", r"poselib is not.*isinglass\[geometry\]"),
        ("pycolmap", "pycolmap", r"pycolmap is not.*isinglass\[eval\]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, solver, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=message):
        solve_homography(np.zeros((9, 2)), np.zeros((9, 2)), solver, 1.0)
    with pytest.raises(MissingExtra, match=message):
        solve_pose(np.zeros((0, 2)), np.zeros((0, 2)), CAMERA0, CAMERA1, solver, 1.0)
    assert solve_homography(np.zeros((0, 2)), np.zeros((0, 2)), "dlt", 1.0).model is None  # needs none of them
