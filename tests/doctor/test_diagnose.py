import json
import re

import pytest
import torch
import torch.nn.functional as F

from isinglass.doctor import Diagnosis, diagnose
from isinglass.doctor.report import CHECKS
from isinglass.errors import MissingExtra
from isinglass.extractors.sift import SIFT
from isinglass.geometry.robust import estimate
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.pipeline import Pipeline
from isinglass.types import Features, Signature


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


def test_only_what_masks_leave_is_diagnosed(photos):
    pipeline = Pipeline(extractor="rootsift", matcher="nearest", ratio=0.8, resize=None, device="cpu")
    whole = diagnose(photos[0], photos[1], pipeline=pipeline).stages
    left = torch.zeros(photos[0].shape[1:])
    left[:, : left.shape[1] // 2] = 1
    masked = diagnose(photos[0], photos[1], pipeline=pipeline, mask0=left.numpy(), mask1=left.numpy()).stages
    assert masked.keypoints0 < 0.8 * whole.keypoints0
    assert masked.keypoints1 < 0.8 * whole.keypoints1
    nothing = torch.zeros_like(left).numpy()
    assert diagnose(photos[0], photos[1], pipeline=pipeline, mask0=nothing).stages.lost_at == "detector"


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
    black = torch.zeros(3, 300, 400)
    diagnosis = diagnose(motorcycle[0], black, pipeline=Pipeline(**quick))
    assert problems(diagnosis)[:2] == ["exposure", "keypoints"], str(diagnosis)
    assert diagnosis.stages.keypoints1 == 0
    black[:, 150, 200] = 0.01  # no longer of one colour: the network answers to its own padding
    diagnosis = diagnose(motorcycle[0], black, pipeline=Pipeline(**quick))
    assert problems(diagnosis)[:2] == ["exposure", "keypoints"], str(diagnosis)
    assert "of those in image 1" in finding(diagnosis, "keypoints").measured


@pytest.mark.weights
def test_published_unrelated(quick):
    data = pytest.importorskip("skimage.data")
    for other in (data.astronaut(), data.brick()):
        diagnosis = diagnose(data.chelsea(), other, pipeline=Pipeline(**quick))
        assert problems(diagnosis) == ["overlap"], str(diagnosis)


@pytest.mark.weights
def test_published_foreign_features(motorcycle, published):
    sift = SIFT(SIFT.Config(max_keypoints=512))
    pipeline = Pipeline(custom_extractor=sift, matcher="lightglue-aliked", **published)
    diagnosis = diagnose(*motorcycle[:2], pipeline=pipeline)
    assert problems(diagnosis) == ["signature"], str(diagnosis)
    one = finding(diagnosis, "signature")
    assert "features are of rootsift, but lightglue-aliked was made for aliked-n16" in one.measured
    assert "--extractor aliked-n16" in one.advice
