"""What a result gives beside its matches: geometry under a known one, arrays, and features of one's own."""

import numpy as np
import pytest
import torch

import isinglass
from isinglass import Features, InputError, Matches, MatchResult, Signature
from isinglass.options import Options

K0 = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
K1 = np.array([[600.0, 0, 300], [0, 610, 250], [0, 0, 1]])


def result_of(points0, points1, size=(640, 480), **more):
    """A pair whose keypoints match in order; some further ones of the first view match nothing."""
    count = len(points0)
    views = [
        Features.from_arrays(points, np.zeros((len(points), 4), np.float32), image_size=size, signature="made")
        for points in (np.concatenate([points0, np.full((3, 2), 5.0)]), points1)
    ]
    indices = torch.tensor([[*range(count), -1, -1, -1]])
    matches = Matches(indices=indices, scores=torch.full((1, count + 3), 0.5), matcher="made")
    return MatchResult(features0=views[0], features1=views[1], matches=matches, **more)


def scene(count=80, outliers=20):
    """Points of a scene in two cameras, and the motion between these."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-1, 1, count), rng.uniform(-0.7, 0.7, count), rng.uniform(3, 6, count)])
    angle = 0.1
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    translation = np.array([0.8, 0.1, 0.05])

    def project(camera, x):
        y = x @ camera.T
        return y[:, :2] / y[:, 2:]

    x0, x1 = project(K0, points), project(K1, points @ rotation.T + translation)
    x1[:outliers] = rng.uniform((0, 0), (640, 480), (outliers, 2))
    inside = ((x0 >= 0) & (x0 <= (640, 480)) & (x1 >= 0) & (x1 <= (640, 480))).all(axis=1)
    return x0[inside], x1[inside], rotation, translation / np.linalg.norm(translation), inside[:outliers].sum()


def test_a_homography_is_found_with_its_inliers():
    rng, turn = np.random.default_rng(0), np.array([[0.9, -0.1, 40], [0.1, 0.9, 20], [1e-4, 0, 1]])
    x0 = rng.uniform((20, 20), (600, 440), (60, 2))
    x1 = np.column_stack([x0, np.ones(60)]) @ turn.T
    x1 = x1[:, :2] / x1[:, 2:]
    x1[:15] = rng.uniform((0, 0), (600, 440), (15, 2))
    found = result_of(x0, x1).homography()
    assert found.kind == "homography"
    np.testing.assert_allclose(found.model, turn, atol=1e-3, rtol=1e-3)
    assert found.inliers[15:].all() and not found.inliers[:15].any()
    assert result_of(x0, x1).geometry().kind == "homography"


def test_pose_essential_and_fundamental_agree_with_the_motion():
    x0, x1, rotation, translation, outliers = scene()
    result = result_of(x0, x1)
    pose = result.relative_pose(K0, K1)
    np.testing.assert_allclose(pose.rotation, rotation, atol=1e-3)
    np.testing.assert_allclose(pose.translation, translation, atol=1e-2)
    essential, fundamental = result.essential(K0, K1), result.fundamental()
    assert essential.kind == "essential" and np.linalg.norm(essential.model) == pytest.approx(1)
    lines = np.linalg.inv(K1).T @ essential.model @ np.linalg.inv(K0)  # F = K1^-T E K0^-1
    lines /= np.linalg.norm(lines)
    sign = np.sign((lines * fundamental.model).sum())
    np.testing.assert_allclose(lines, sign * fundamental.model, atol=5e-3)
    for found in (pose, essential, fundamental):
        assert found.inliers[outliers:].all() and found.inliers[:outliers].mean() < 0.3


def test_thresholds_follow_the_size_at_which_images_were_extracted():
    x0, x1, *_ = scene()
    small = result_of(x0, x1, options=Options(resize=160))
    assert small.homography().threshold_px == pytest.approx(12)
    assert small.relative_pose(K0, K1).threshold_px == pytest.approx(4)
    assert small.fundamental(threshold_px=2).threshold_px == 2


def test_no_geometry_is_a_result():
    none = result_of(np.zeros((2, 2)), np.zeros((2, 2)))
    assert none.homography().model is None and none.essential(K0, K1).model is None
    assert none.relative_pose(K0, K1).rotation is None
    with pytest.raises(InputError, match="camera"):
        none.relative_pose(np.eye(4), K1)


def test_arrays_of_a_pair():
    x0, x1, *_ = scene()
    arrays = result_of(x0, x1).numpy()
    assert all(isinstance(values, np.ndarray) for values in arrays.values())
    np.testing.assert_allclose(arrays["points0"], x0.astype(np.float32))
    np.testing.assert_array_equal(arrays["keypoints1"][arrays["matches"][:, 1]], arrays["points1"])
    assert arrays["matches"].dtype == np.int64 and arrays["scores"].shape == (len(x0),)
    assert len(arrays["keypoints0"]) == len(x0) + 3


def test_arrays_of_features_and_matches():
    result = result_of(*scene()[:2])
    features = result.features0.numpy()
    assert set(features) == {"keypoints", "descriptors", "scores", "image_size"}
    assert features["keypoints"].shape[0] == 1
    assert set(result.matches.numpy()) == {"indices", "scores"}


class KeyPoint:
    """A keypoint like OpenCV's: its angle is in degrees, and -1 where it was not estimated."""

    def __init__(self, x, y, angle=90.0):
        self.pt, self.size, self.angle, self.response = (x, y), 7.0, angle, 0.3


def test_features_of_ones_own():
    points = [KeyPoint(10, 20), KeyPoint(30.5, 40, 180.0)]
    found = Features.from_arrays(points, np.ones((2, 128), np.uint8), image_size=(64, 48), signature="rootsift")
    assert found.keypoints.tolist() == [[[10, 20], [30.5, 40]]] and found.keypoints.dtype == torch.float32
    torch.testing.assert_close(found.orientations, torch.tensor([[np.pi / 2, np.pi]]).float())
    assert found.scales.tolist() == [[7, 7]]
    assert found.signature == Signature(extractor="rootsift") and found.image_size.tolist() == [[64, 48]]
    plain = Features.from_arrays(
        [KeyPoint(1, 2, -1.0)], torch.ones(1, 8), image_size=(64, 48), signature="mine", scores=[0.5]
    )
    assert plain.orientations is None and plain.scores.tolist() == [[0.5]]
    empty = Features.from_arrays([], np.zeros((0, 8), np.float32), image_size=(64, 48), signature="mine")
    assert empty.keypoints.shape == (1, 0, 2)


def test_features_of_ones_own_can_be_matched():
    rng = np.random.default_rng(0)
    descriptors, points = rng.normal(size=(30, 16)).astype(np.float32), rng.uniform(0, 40, (30, 2))
    order = rng.permutation(30)
    one, two = (
        Features.from_arrays(points[i], descriptors[i], image_size=(64, 48), signature="mine")
        for i in (np.arange(30), order)
    )
    found = isinglass.Nearest().match(one, two)
    assert (order[found.indices[0].numpy()] == np.arange(30)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keypoints": [[600.0, 20]]}, "outside|expected \\(x, y\\) px"),
        ({"keypoints": [["a", "b"]]}, "holds no numbers"),
        ({"descriptors": np.ones((3, 8))}, "descriptors have shape"),
        ({"scores": [1.0, 2.0]}, "scores has shape"),
        ({"image_size": (48, 64), "keypoints": [[60.0, 20]]}, "image_size as \\(width, height\\)"),
        ({"signature": ""}, "signature is ''"),
    ],
)
def test_features_of_ones_own_are_checked(options, message):
    usual = {"keypoints": [[5.0, 6]], "descriptors": np.ones((1, 8)), "image_size": (64, 48), "signature": "mine"}
    given = {**usual, **options}
    with pytest.raises(InputError, match=message):
        Features.from_arrays(given.pop("keypoints"), given.pop("descriptors"), **given)
