"""Poses from points of a map: exact where the truth is known, none where there is none."""

import copy
import math

import numpy as np
import pycolmap
import pytest

from isinglass.errors import InputError
from isinglass.sfm.absolute_pose import estimate_absolute_pose, reprojection_errors

SIZE = 640, 480
MODELS = [name for name in pycolmap.CameraModelId.__members__ if name not in ("INVALID", "EQUIRECTANGULAR")]


def camera_of(model="SIMPLE_RADIAL", focal_px=500.0, extra=0.01):
    camera = pycolmap.Camera.create_from_model_name(1, model, focal_px, *SIZE)
    parameters = np.array(camera.params)
    parameters[list(camera.extra_params_idxs())] = extra
    if model == "EUCM":
        parameters[-2:] = 0.6, 1.1
    if model == "FOV":
        parameters[-1] = 0.5
    camera.params = parameters
    return camera


def scene(seed=0, count=100, camera=None, plane=False):
    """Pixels (ours), points, the true pose (3, 4), of points before the camera."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation, centre = q * np.sign(np.linalg.det(q)), rng.normal(size=3)
    seen = rng.uniform([-2, -1.5, 3], [2, 1.5, 7], (count, 3))
    if plane:
        seen[:, 2] = 5 + 0.5 * seen[:, 0]
    pixels = np.asarray((camera or camera_of()).img_from_cam(seen)) - 0.5  # the half pixel of COLMAP
    return pixels, seen @ rotation + centre, np.column_stack([rotation, -rotation @ centre])


def off(found, truth):
    """Distance of the centres, and degrees."""
    centres = [-pose[:, :3].T @ pose[:, 3] for pose in (found, truth)]
    cosine = (np.trace(found[:, :3] @ truth[:, :3].T) - 1) / 2
    return np.linalg.norm(centres[0] - centres[1]), math.degrees(math.acos(min(cosine, 1)))


@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model_of_colmap_gives_the_exact_pose(model):
    camera = camera_of(model)
    pixels, points, truth = scene(camera=camera)
    result = estimate_absolute_pose(pixels, points, camera)
    assert result.reason == "" and result.inliers.all()
    distance, angle = off(result.cam_from_world, truth)
    assert distance < 1e-4 and angle < 1e-3
    assert reprojection_errors(result, pixels, points).max() < 0.01


def test_a_panorama_is_localised_by_points_all_around():
    camera = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1.0, 1000, 500)
    points = np.random.default_rng(0).normal(size=(100, 3)) * 3
    pixels = np.asarray(camera.img_from_cam(points)) - 0.5
    result = estimate_absolute_pose(pixels, points, camera, focal="unknown")
    assert off(result.cam_from_world, np.eye(3, 4))[0] < 1e-4


@pytest.mark.parametrize("plane", [False, True])
@pytest.mark.parametrize("outliers", [0, 60, 140])
def test_noise_and_wrong_matches_leave_the_pose_within_what_it_says(outliers, plane):
    pixels, points, truth = scene(count=200, plane=plane)
    rng = np.random.default_rng(1)
    pixels = pixels + rng.normal(0, 0.5, pixels.shape)
    pixels[:outliers] = rng.uniform(0, SIZE, (outliers, 2))
    result = estimate_absolute_pose(pixels, points, camera_of())
    distance, angle = off(result.cam_from_world, truth)
    assert distance < 0.03 and angle < 0.3
    assert result.inliers[outliers:].all() and result.inliers[:outliers].sum() <= 3
    root = np.sqrt(np.trace(result.covariance[3:, 3:]))
    assert distance < 4 * root < 0.1


def test_the_covariance_is_that_of_many_draws():
    pixels, points, _ = scene(count=60)
    rng = np.random.default_rng(0)
    centres, said = [], []
    for _ in range(60):
        result = estimate_absolute_pose(pixels + rng.normal(0, 0.5, pixels.shape), points, camera_of())
        pose = result.cam_from_world
        centres.append(-pose[:, :3].T @ pose[:, 3])
        said.append(np.sqrt(np.diag(result.covariance)[3:]))
    np.testing.assert_allclose(np.std(centres, axis=0), np.mean(said, axis=0), rtol=0.35)


def test_an_unknown_or_rough_focal_length_is_found_with_the_pose():
    pixels, points, truth = scene(count=120, camera=camera_of(extra=0.03))
    for focal, guess in (("unknown", 300.0), ("unknown", 1500.0), ("refined", 540.0)):
        given = camera_of(focal_px=guess, extra=0.0)
        before = copy.copy(given)
        result = estimate_absolute_pose(pixels, points, given, focal=focal)
        assert result.camera.focal_length == pytest.approx(500, rel=0.01)
        assert result.camera.params[3] == pytest.approx(0.03, abs=0.01)
        assert off(result.cam_from_world, truth)[0] < 0.05
        np.testing.assert_array_equal(given.params, before.params)


def test_a_tilted_plane_gives_the_focal_length_and_a_frontal_one_does_not():
    pixels, points, truth = scene(count=120, plane=True, camera=camera_of(extra=0.0))
    result = estimate_absolute_pose(pixels, points, camera_of(focal_px=700.0, extra=0.0), focal="unknown")
    assert off(result.cam_from_world, truth)[0] < 0.1
    rng = np.random.default_rng(0)
    seen = np.column_stack([rng.uniform([-2, -1.5], [2, 1.5], (120, 2)), np.full(120, 5.0)])
    pixels = np.asarray(camera_of(extra=0.0).img_from_cam(seen)) - 0.5 + rng.normal(0, 0.5, (120, 2))
    result = estimate_absolute_pose(pixels, seen, camera_of(focal_px=700.0, extra=0.0), focal="unknown")
    assert result.cam_from_world is None and "do not determine" in result.reason
    assert estimate_absolute_pose(pixels, seen, camera_of(extra=0.0)).cam_from_world is not None


@pytest.mark.parametrize("focal", ["known", "refined", "unknown"])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 8, 20, 100, 500])
def test_random_matches_give_no_pose(count, focal):
    rng = np.random.default_rng(count)
    points = rng.uniform(-3, 3, (count, 3))
    for spread in (80, 640):
        pixels = rng.uniform(0, [spread, spread * 0.75], (count, 2))
        result = estimate_absolute_pose(pixels, points, camera_of(), focal=focal)
        assert result.cam_from_world is None and result.reason and result.covariance is None


def test_matches_that_do_not_determine_a_pose_give_none():
    pixels, points, _ = scene(count=60)
    along = np.linspace(0, 1, 60)[:, None]
    seen = [-2, -1, 5] + along * [4, 2, 1]  # a line, from a camera at the origin
    on_line = np.asarray(camera_of().img_from_cam(seen)) - 0.5
    result = estimate_absolute_pose(on_line, seen, camera_of())
    assert result.cam_from_world is None and "line" in result.reason
    same = estimate_absolute_pose(np.tile(pixels[:4], (15, 1)), np.tile(points[:4], (15, 1)), camera_of())
    assert same.cam_from_world is None and "chance" in same.reason
    rng = np.random.default_rng(0)
    patch = np.column_stack([rng.uniform(0, 0.2, (60, 2)), rng.uniform(5, 5.1, 60)])
    small = np.asarray(camera_of().img_from_cam(patch)) - 0.5 + rng.normal(0, 0.3, (60, 2))
    result = estimate_absolute_pose(small, patch, camera_of())
    assert result.cam_from_world is None and "small part" in result.reason
    assert result.num_inliers > 50


def test_the_same_seed_gives_the_same_pose():
    pixels, points, _ = scene(count=100)
    pixels[:70] = np.random.default_rng(0).uniform(0, SIZE, (70, 2))
    for focal in ("known", "unknown"):
        first, second = (estimate_absolute_pose(pixels, points, camera_of(), focal=focal) for _ in range(2))
        np.testing.assert_array_equal(first.cam_from_world, second.cam_from_world)


def test_bad_input_is_named():
    pixels, points, _ = scene(count=20)
    with pytest.raises(InputError, match="shapes"):
        estimate_absolute_pose(pixels, points[:-1], camera_of())
    with pytest.raises(InputError, match="NaN"):
        estimate_absolute_pose(pixels * np.nan, points, camera_of())
    with pytest.raises(InputError, match="threshold_px"):
        estimate_absolute_pose(pixels, points, camera_of(), threshold_px=0)
    broken = camera_of()
    broken.params = [500.0, math.nan, 240, 0]
    with pytest.raises(InputError, match="camera"):
        estimate_absolute_pose(pixels, points, broken)
