import json
import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass import doctor
from isinglass.doctor import Diagnosis, diagnose, diagnose_features
from isinglass.doctor.checks import exposure, flat_share, sharpness
from isinglass.doctor.report import CHECKS
from isinglass.doctor.trials import Trial
from isinglass.errors import InputError, MissingExtra
from isinglass.extractors.sift import SIFT
from isinglass.geometry.robust import estimate
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.pipeline import Pipeline
from isinglass.types import Features, Signature, check_pairs


class Patches:
    """A small extractor that knows neither turns nor sizes: peaks of the Laplacian, described by the patch there."""

    signature = Signature(extractor="patches")

    def extract(self, images, mask=None):
        grey_B1HW = F.avg_pool2d(images.mean(dim=1, keepdim=True), 3, 1, 1)
        height, width = images.shape[2:]
        response = (grey_B1HW - F.avg_pool2d(grey_B1HW, 7, 1, 3)).abs()
        is_peak = (response == F.max_pool2d(response, 7, 1, 3)) & (response > 0.02)
        patches = F.unfold(grey_B1HW, 11, padding=5)[0].T  # (H W, 121)
        index = is_peak[0, 0].flatten().nonzero()[:, 0]
        descriptors = patches[index] - patches[index].mean(dim=1, keepdim=True)
        return Features(
            keypoints=torch.stack([index % width, index // width], dim=1)[None].float(),
            descriptors=F.normalize(descriptors, dim=1)[None],
            scores=response.flatten()[index][None],
            image_size=torch.tensor([[width, height]]),
            signature=self.signature,
        )


def small_pipeline(**options):
    matcher = Nearest(NearestConfig(ratio=0.8))
    return Pipeline(custom_extractor=Patches(), custom_matcher=matcher, **{"resize": None, "device": "cpu"} | options)


def finding(diagnosis: Diagnosis, check: str):
    (one,) = [one for one in diagnosis.findings if one.check == check]
    return one


def problems(diagnosis: Diagnosis):
    return [one.check for one in diagnosis.findings if one.status == "problem"]


def inliers(result):
    return estimate(result.points0, result.points1).num_inliers


def sizes_advised(diagnosis: Diagnosis):
    found = re.search(r"image 0 with resize=(\d+) and image 1 with resize=(\d+)", finding(diagnosis, "scale").advice)
    assert found is not None
    return int(found[1]), int(found[2])


@pytest.fixture(scope="module")
def photos(motorcycle):
    """Left and right image at about half size, for the small extractor."""
    return [F.interpolate(one[None], size=(256, 384), mode="area")[0] for one in motorcycle[:2]]


# --- a pair as a whole, with the small extractor


def test_a_good_pair_is_well(photos):
    diagnosis = diagnose(photos[0], photos[0].roll((3, 5), (1, 2)), pipeline=small_pipeline(max_keypoints=None))
    assert {one.status for one in diagnosis.findings} == {"ok"}, str(diagnosis)
    assert diagnosis.stages.lost_at is None
    assert diagnosis.verdict.endswith("The pair matches well.")
    stages = diagnosis.stages
    assert stages.keypoints0 >= stages.candidates >= stages.matches >= (stages.inliers or 0) >= 30


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_image_is_found_and_the_advice_helps(photos, turns):
    turned = photos[0].rot90(turns, (1, 2))
    diagnosis = diagnose(photos[0], turned, pipeline=small_pipeline())
    assert problems(diagnosis)[0] == "rotation", str(diagnosis)
    back = {3: "90 degrees counter-clockwise", 2: "180 degrees", 1: "90 degrees clockwise"}[turns]
    one = finding(diagnosis, "rotation")
    assert back in one.measured
    assert 'rotation="auto"' in one.advice and "--rotation auto" in one.advice
    assert "rotation" in diagnosis.verdict
    assert (diagnosis.stages.inliers or 0) < 30
    advised = small_pipeline(rotation="auto")
    assert inliers(advised.match(photos[0], turned)) >= 100
    assert problems(diagnose(photos[0], turned, pipeline=advised)) == []


@pytest.mark.parametrize("swapped", [False, True])
def test_unequal_sizes_are_found_and_the_advice_helps(photos, swapped):
    wide, close = photos[0], F.interpolate(photos[0][None, :, 60:188, 100:292], scale_factor=2, mode="bicubic")[0]
    pair = (wide, close.clamp(0, 1))[:: -1 if swapped else 1]
    diagnosis = diagnose(*pair, pipeline=small_pipeline())
    assert problems(diagnosis)[0] == "scale", str(diagnosis)
    assert f"image {0 if swapped else 1} is shrunk 2 times" in finding(diagnosis, "scale").measured
    side0, side1 = sizes_advised(diagnosis)
    features = [small_pipeline(resize=side).extract(one) for side, one in zip((side0, side1), pair, strict=True)]
    (matches,) = small_pipeline().match_many([features[0]], [features[1]])
    points = [one.keypoints[0, matches.pairs()[:, view]] for view, one in enumerate(features)]
    assert estimate(*points).num_inliers >= 30


def test_turned_and_resized_at_once(photos):
    close = F.interpolate(photos[0][None, :, 60:188, 100:292], scale_factor=2, mode="bicubic")[0].clamp(0, 1)
    diagnosis = diagnose(photos[0], close.rot90(1, (1, 2)), pipeline=small_pipeline())
    assert problems(diagnosis)[:2] == ["rotation", "scale"], str(diagnosis)
    assert "Turn image 1 by 90 degrees clockwise" in finding(diagnosis, "rotation").advice
    assert "shrunk 2 times and image 1 turned" in finding(diagnosis, "scale").measured


def test_other_photos_share_nothing(photos):
    data = pytest.importorskip("skimage.data")
    diagnosis = diagnose(photos[0], data.chelsea(), pipeline=small_pipeline())
    assert problems(diagnosis) == ["overlap"], str(diagnosis)
    assert "4 quarter turns and 5 relative sizes" in finding(diagnosis, "overlap").measured


def test_thorough_looks_further_and_finds_nothing_in_a_good_pair(photos):
    diagnosis = diagnose(*photos, pipeline=small_pipeline(), thorough=True)
    assert problems(diagnosis) == [], str(diagnosis)


def test_a_black_image(photos):
    diagnosis = diagnose(photos[0], torch.zeros_like(photos[1]), pipeline=small_pipeline())
    assert problems(diagnosis)[:2] == ["exposure", "keypoints"], str(diagnosis)
    assert "image 1 is of one colour" in finding(diagnosis, "exposure").measured
    assert "0 in image 1" in finding(diagnosis, "keypoints").measured
    assert diagnosis.stages.lost_at == "detector"
    assert diagnosis.verdict.startswith("No matches. Likely cause, exposure")


@pytest.mark.parametrize("rotation", ["none", "auto"])
@pytest.mark.parametrize("size", [(1, 1), (2, 300), (64, 64)])
@pytest.mark.parametrize("extractor", [Patches(), SIFT()])
def test_never_crashes(extractor, size, rotation):
    pipeline = Pipeline(
        custom_extractor=extractor, custom_matcher=Nearest(), rotation=rotation, resize=96, device="cpu"
    )
    for images in (torch.full((3, *size), 0.5), torch.zeros(3, *size)), (torch.rand(3, *size),) * 2:
        diagnosis = diagnose(*images, pipeline=pipeline)
        assert len(str(diagnosis).splitlines()) >= 2 + len(diagnosis.findings)


def test_few_keypoints_asked_for(photos):
    diagnosis = diagnose(*photos, pipeline=small_pipeline(max_keypoints=20))
    one = finding(diagnosis, "keypoints")
    assert one.status == "problem"
    assert "20 were asked for" in one.measured and "--max-keypoints" in one.advice
    assert diagnosis.stages.lost_at == "detector"


def test_a_photo_shrunk_too_far_is_told_to_grow(motorcycle):
    diagnosis = diagnose(*motorcycle[:2], pipeline=small_pipeline(resize=100))
    assert "Raise resize (--resize), now 100: image" in finding(diagnosis, "keypoints").advice


def test_rules_of_thumb_only_warn_where_the_pair_matches_well(photos):
    dark = (photos[0] * 0.1).clamp(min=0.01)
    extractor = SIFT()
    pipeline = Pipeline(custom_extractor=extractor, custom_matcher=Nearest(NearestConfig(ratio=0.8)), device="cpu")
    diagnosis = diagnose(photos[0], dark, pipeline=pipeline)
    assert (diagnosis.stages.inliers or 0) >= 30
    assert finding(diagnosis, "exposure").status == "warning"
    assert problems(diagnosis) == []


def test_without_poselib_matches_count_half(photos, monkeypatch):
    def absent(*_):
        raise MissingExtra("poselib", "geometry")

    monkeypatch.setattr("isinglass.doctor.trials.estimate", absent)
    diagnosis = diagnose(photos[0], photos[0].rot90(2, (1, 2)), pipeline=small_pipeline())
    assert problems(diagnosis)[0] == "rotation"
    assert diagnosis.stages.inliers is None
    assert finding(diagnosis, "geometry").status == "warning"
    assert "isinglass[geometry]" in finding(diagnosis, "geometry").advice


def test_report_for_machines_and_people(photos):
    diagnosis = diagnose(photos[0], photos[0].rot90(2, (1, 2)), pipeline=small_pipeline())
    read = json.loads(json.dumps(diagnosis.as_dict()))
    assert read["verdict"] == diagnosis.verdict and "\n" not in diagnosis.verdict
    assert read["stages"]["lost_at"] == diagnosis.stages.lost_at
    assert [one["check"] for one in read["findings"]] == sorted(
        (one.check for one in diagnosis.findings), key=CHECKS.index
    )
    text = str(diagnosis)
    assert text.splitlines()[0] == diagnosis.verdict
    for one in diagnosis.findings:
        assert one.measured in text and one.advice in text
        assert bool(one.advice) == (one.status != "ok")


# --- stored features


def stored(count=300, *, extractor="patches", seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    values = {
        "keypoints": torch.rand(1, count, 2, generator=generator) * torch.tensor([639.0, 479.0]),
        "descriptors": F.normalize(torch.randn(1, count, 16, generator=generator), dim=-1),
        "scores": torch.rand(1, count, generator=generator),
        "image_size": torch.tensor([[640, 480]]),
        "signature": Signature(extractor=extractor),
    }
    return Features(**values | changes)


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


# --- ALIKED and LightGlue


@pytest.fixture(scope="module")
def published():
    return {"resize": 512, "max_keypoints": 512, "device": "cpu"}


@pytest.fixture(scope="module")
def quick():
    """For pairs that are tried 20 times because nothing helps."""
    return {"resize": 384, "max_keypoints": 256, "device": "cpu"}


@pytest.mark.weights
def test_published_good_pair(motorcycle, published):
    diagnosis = diagnose(*motorcycle[:2], pipeline=Pipeline(**published))
    assert {one.status for one in diagnosis.findings} == {"ok"}, str(diagnosis)


@pytest.mark.weights
@pytest.mark.parametrize("turns", [1, 2])
def test_published_turned(motorcycle, published, turns):
    left, right = motorcycle[0], motorcycle[1].rot90(turns, (1, 2))
    diagnosis = diagnose(left, right, pipeline=Pipeline(**published))
    assert problems(diagnosis)[0] == "rotation", str(diagnosis)
    assert 'rotation="auto"' in finding(diagnosis, "rotation").advice
    assert inliers(Pipeline(**published, rotation="auto").match(left, right)) >= 200


@pytest.mark.weights
def test_published_close_up(motorcycle, published):
    left, close = motorcycle[0], motorcycle[1][:, 200:280, 300:380]
    diagnosis = diagnose(left, close, pipeline=Pipeline(**published))
    assert problems(diagnosis)[0] == "scale", str(diagnosis)
    side0, side1 = sizes_advised(diagnosis)
    features0 = Pipeline(**published | {"resize": side0}).extract(left)
    features1 = Pipeline(**published | {"resize": side1}).extract(close)
    pipeline = Pipeline(**published)
    (matches,) = pipeline.match_many([features0], [features1])
    points = features0.keypoints[0, matches.pairs()[:, 0]], features1.keypoints[0, matches.pairs()[:, 1]]
    assert diagnosis.stages.inliers == 0 and estimate(*points).num_inliers >= 15
    assert inliers(pipeline.match(left[:, 180:300, 290:420], close)) >= 15  # the other advice: to crop


@pytest.mark.weights
def test_published_least_score(motorcycle, quick):
    images = motorcycle[:2]
    diagnosis = diagnose(*images, pipeline=Pipeline(**quick, filter_threshold=0.9999))
    assert problems(diagnosis)[0] == "threshold", str(diagnosis)
    assert "filter_threshold=0.1 " in finding(diagnosis, "threshold").advice
    assert inliers(Pipeline(**quick, filter_threshold=0.1).match(*images)) >= 100


@pytest.mark.weights
def test_published_dark(motorcycle, quick):
    dark = (motorcycle[1] * 0.02 * 255).round() / 255
    pipeline = Pipeline(**quick)
    diagnosis = diagnose(motorcycle[0], dark, pipeline=pipeline)
    assert problems(diagnosis)[0] == "exposure", str(diagnosis)
    assert "Stretch the contrast of image 1" in finding(diagnosis, "exposure").advice
    assert inliers(pipeline.match(motorcycle[0], dark / dark.max())) >= 30


@pytest.mark.weights
def test_published_black(motorcycle, quick):
    diagnosis = diagnose(motorcycle[0], torch.zeros(3, 300, 400), pipeline=Pipeline(**quick))
    assert problems(diagnosis)[:2] == ["exposure", "keypoints"], str(diagnosis)
    assert "100% of those in image 1" in finding(diagnosis, "keypoints").measured


@pytest.mark.weights
def test_published_unrelated(quick):
    data = pytest.importorskip("skimage.data")
    for other in (data.astronaut(), data.brick()):
        diagnosis = diagnose(data.chelsea(), other, pipeline=Pipeline(**quick))
        assert problems(diagnosis) == ["overlap"], str(diagnosis)


@pytest.mark.weights
def test_published_foreign_features(motorcycle, published):
    pipeline = Pipeline(custom_extractor=SIFT(SIFT.Config(max_keypoints=512)), **published)
    diagnosis = diagnose(*motorcycle[:2], pipeline=pipeline)
    assert problems(diagnosis) == ["signature"], str(diagnosis)
    one = finding(diagnosis, "signature")
    assert "features are of rootsift, but lightglue-aliked was made for aliked-n16" in one.measured
    assert "--extractor aliked-n16" in one.advice
