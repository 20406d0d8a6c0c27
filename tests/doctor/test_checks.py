"""Stored features, and single checks."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass import doctor
from isinglass.doctor import Diagnosis, diagnose_features
from isinglass.doctor.checks import exposure, flat_share, sharpness
from isinglass.doctor.trials import Trial
from isinglass.errors import InputError
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.runtime.pairs import check_pairs
from isinglass.types import Features, Signature
from support import make_features


def finding(diagnosis: Diagnosis, check: str):
    (one,) = [one for one in diagnosis.findings if one.check == check]
    return one


def problems(diagnosis: Diagnosis):
    return [one.check for one in diagnosis.findings if one.status == "problem"]


@pytest.fixture(scope="module")
def photos(motorcycle):
    """Left and right image at about half size, for the small extractor."""
    return [F.interpolate(one[None], size=(256, 384), mode="area")[0] for one in motorcycle[:2]]


# --- stored features


def stored(count=300, seed=0, *, extractor="patches", **changes):
    return replace(make_features(count, channels=16, seed=seed, extractor=extractor), **changes)


class Choosy(Nearest):
    """A matcher made for the features of one extractor."""

    name = "choosy"
    accepts = ("patches",)

    def match_many(self, features0, features1):
        check_pairs(features0, features1, matcher=self.name, accepts=self.accepts)
        return super().match_many(features0, features1)


def test_the_same_features_are_well():
    diagnosis = diagnose_features(stored(), stored(), Nearest())
    assert {one.status for one in diagnosis.findings} == {"ok"}, str(diagnosis)
    assert "0 degrees" in finding(diagnosis, "rotation").measured
    assert "1.0 times" in finding(diagnosis, "scale").measured


@pytest.mark.parametrize(
    ("pair", "measured", "advice"),
    [
        ((stored(extractor="disk"), stored(extractor="disk")), "of disk, but choosy was made for patches", "patches"),
        ((stored(), stored(extractor="disk")), "patches@none/pixel-centre-0, image 1 of disk@none", "alike"),
        ((stored(signature=Signature(extractor="patches", convention="corner")),) * 2, "'corner'", "Extract again"),
        ((stored(), stored(descriptors=torch.ones(1, 300, 8))), "8-d descriptors", "Extract"),
    ],
)
def test_foreign_features(pair, measured, advice):
    diagnosis = diagnose_features(*pair, Choosy())
    assert problems(diagnosis)[0] == "signature"
    assert measured in finding(diagnosis, "signature").measured
    assert advice in finding(diagnosis, "signature").advice
    assert diagnosis.stages.matches == 0 and diagnosis.stages.inliers is None


def test_numbers_that_are_none():
    broken = stored()
    broken.descriptors[0, 5, 3:5] = torch.nan
    diagnosis = diagnose_features(stored(), broken, Nearest())
    assert "2 numbers of the descriptors of image 1 are NaN" in finding(diagnosis, "values").measured
    assert "values" in problems(diagnosis)


@pytest.mark.parametrize(
    ("factor", "measured"),
    [(1 / 640, "as if normalised"), (2.0, "outside its 640 x 480 px"), (0.5, "as if measured in a smaller copy")],
)
def test_coordinates_of_another_kind(factor, measured):
    wrong = stored(keypoints=stored().keypoints * factor)
    one = finding(diagnose_features(stored(), wrong, Nearest()), "coordinates")
    # all but normalised ones still match one another, yet are not points of the image
    assert one.status == ("problem" if factor < 0.1 else "warning")
    assert one.measured.startswith("image 1: ") and measured in one.measured


def test_turn_and_scale_of_stored_features_are_measured():
    """Closed form: a similarity of 60 degrees clockwise and factor 4."""
    angle = torch.tensor(torch.pi / 3)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    points = stored().keypoints
    moved = (points / 4 - torch.tensor([80.0, 60.0])) @ turn.T + torch.tensor([320.0, 240.0])
    diagnosis = diagnose_features(stored(), stored(keypoints=moved), Nearest())
    assert "60 degrees clockwise" in finding(diagnosis, "rotation").measured
    assert finding(diagnosis, "rotation").status == "warning"
    assert "image 0 shows things 4.0 times" in finding(diagnosis, "scale").measured
    assert finding(diagnosis, "scale").status == "warning"


def test_overlap_is_the_share_within_the_matches():
    """Half of image 0 (left) is the right half of image 1."""
    points = torch.rand(1, 2000, 2) * torch.tensor([639.0, 479.0])
    left = points[0, :, 0] < 320
    descriptors = F.normalize(torch.randn(1, 2000, 32), dim=-1)
    view = {"keypoints": points, "descriptors": descriptors, "scores": torch.ones(1, 2000)}
    shifted = points + torch.tensor([320.0, 0.0])
    shifted[0, ~left] -= torch.tensor([640.0, 0.0])
    other = torch.where(left[None, :, None], descriptors, F.normalize(torch.randn(1, 2000, 32), dim=-1))
    features1 = stored(2000, **view | {"keypoints": shifted, "descriptors": other})
    matcher = Nearest(NearestConfig(distance=0.1))
    one = finding(diagnose_features(stored(2000, **view), features1, matcher), "overlap")
    shares = [int(share) for share in re.findall(r"(\d+)%", one.measured)]
    assert shares == pytest.approx([50, 50], abs=2)


def test_features_that_share_nothing_point_to_the_photos():
    diagnosis = diagnose_features(stored(), stored(seed=1), Nearest())
    assert problems(diagnosis)[0] == "overlap"
    assert "isinglass doctor" in finding(diagnosis, "overlap").advice


class Unsure(Nearest):
    """A matcher that gives all its matches, the right ones here, a low score."""

    def match_many(self, features0, features1):
        return [replace(one, scores=one.scores / 100) for one in super().match_many(features0, features1)]


def test_many_unsure_matches_are_not_believed():
    diagnosis = diagnose_features(stored(), stored(), Unsure())
    assert diagnosis.stages.inliers == 300
    assert problems(diagnosis) == ["overlap", "geometry"]


def test_no_keypoints_at_all():
    diagnosis = diagnose_features(stored(0), stored(), Nearest())
    assert problems(diagnosis)[0] == "keypoints"
    assert diagnosis.stages.lost_at == "detector"


def test_a_batch_is_refused():
    with pytest.raises(InputError, match="features of 2 images"):
        diagnose_features(Features.stack([stored(), stored()]), stored(), Nearest())


# --- single checks


def test_exposure_of_dark_bright_and_flat_images(photos):
    good, flat = photos[0].mean(dim=0), torch.full((50, 60), 0.5)
    for image, status, text in [
        (good, "ok", "contrast"),
        (flat, "problem", "image 1 is of one colour, brightness 50%"),
        (good * 0.05, "problem", "contrast 1."),
        ((good * 4).clamp(0, 1), "warning", "% pure black or white"),
    ]:
        one = exposure([good, image])
        assert (one.status, text in one.measured) == (status, True), one
    assert "less bright for image 0" in exposure([(good * 4).clamp(0, 1), good]).advice


@pytest.mark.parametrize("sigma", [0, 4])
def test_sharpness_sees_blur_through_noise(photos, sigma):
    image = photos[0].mean(dim=0).numpy()
    blurred = image if sigma == 0 else cv2.GaussianBlur(image, (0, 0), sigma)
    noisy = torch.from_numpy((blurred + np.random.default_rng(0).normal(0, 0.005, image.shape)).astype(np.float32))
    one = sharpness([photos[0].mean(dim=0), noisy], [384, 384])
    assert one.status == ("warning" if sigma else "ok"), one
    if sigma:
        assert "a sharper photo for image 1" in one.advice


def test_sharpness_of_an_enlarged_thumbnail(photos):
    thumbnail = F.interpolate(photos[0][None, :, ::16, ::16], scale_factor=16, mode="bicubic")[0].mean(dim=0)
    assert "a larger version of image 0" in sharpness([thumbnail, photos[0].mean(dim=0)], [24, 384]).advice


def test_flat_share_by_the_slow_way(photos):
    """Twin: the range of brightness around each keypoint, one at a time, in an image of twice the size."""
    image_HW = torch.where(torch.rand(40, 60) < 0.02, 1.0, 0.3)
    points = torch.rand(1, 200, 2) * torch.tensor([119.0, 79.0])
    features = stored(200, keypoints=points, image_size=torch.tensor([[120, 80]]))
    flat = 0
    for x, y in points[0].tolist():
        column, row = int((x + 0.5) / 2), int((y + 0.5) / 2)
        patch = image_HW[max(row - 5, 0) : row + 6, max(column - 5, 0) : column + 6]
        flat += bool(patch.max() - patch.min() < 0.01)
    assert flat_share(image_HW, features) == pytest.approx(flat / 200)
    assert 0 < flat < 200


def test_hull_area_equals_opencv():
    points = torch.randn(50, 2)
    assert doctor._hull_area(points) == pytest.approx(cv2.contourArea(cv2.convexHull(points.numpy())), rel=1e-4)
    assert doctor._hull_area(torch.zeros(5, 2)) == 0
    assert doctor._hull_area(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])) == 0


def test_similarity_of_points_that_coincide_is_unknown():
    pair = stored(40, keypoints=torch.full((1, 40, 2), 5.0)), stored(40)
    (matches,) = Nearest().match_many([stored(40)], [stored(40)])
    trial = Trial(features=pair, sides_px=(640, 640), matcher=Nearest(), matches=matches, inliers=torch.ones(40).bool())
    assert doctor._similarity(trial) is None
