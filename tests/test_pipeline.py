"""Photos in, matches out: exact coordinates through resize, tiles and turns; options; masks; real ground truth."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isinglass
from isinglass.errors import InputError
from isinglass.extractors.sift import SIFT
from isinglass.models import matcher_weights
from isinglass.pipeline import Options, Pipeline
from isinglass.types import Extractor, Matcher
from support import HOMOGRAPHY, make_features, motorcycle_precision, pattern, transfer, warp

SETTINGS = [
    {"resize": 640},
    {"resize": None},
    {"resize": None, "tile": 320},
    {"resize": 700, "tile": 400, "tile_overlap": 96},
    {"resize": 640, "rotation": "auto"},
    {"resize": None, "tile": 320, "rotation": "auto"},
]


@pytest.mark.parametrize("matcher", ["lightglue", "superglue"])
def test_sift_and_our_own_matchers_need_nobodys_weights(motorcycle, monkeypatch, tmp_path, matcher):
    """Without a network and from an empty cache: a known homography, nearly all matches right, more than by ratio."""
    pytest.importorskip("cv2")
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path))
    monkeypatch.setenv("ISINGLASS_OFFLINE", "1")
    images = motorcycle[0], warp(motorcycle[0], HOMOGRAPHY)
    settings = {"extractor": "rootsift", "max_keypoints": 1024, "resize": 640}
    r = isinglass.match(*images, matcher=matcher, **settings)
    assert r.matches.matcher == f"{matcher}-sift-small"
    is_right = (transfer(r.points0, HOMOGRAPHY) - r.points1).norm(dim=1) < 3
    by_ratio = isinglass.match(*images, matcher="nearest", ratio=0.8, **settings)
    assert is_right.float().mean() > 0.9
    if matcher == "lightglue":
        assert is_right.sum() > len(by_ratio.points0)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "extractor", ["rootsift", pytest.param("aliked", marks=[pytest.mark.weights, pytest.mark.slow])]
)
def test_a_known_homography_is_met(motorcycle, extractor, options):
    """A photo against its warp, turned by a quarter where turns are tried: median error under 0.5 original px."""
    if extractor == "rootsift":
        pytest.importorskip("cv2")
    image0 = motorcycle[0]
    image1 = warp(image0, HOMOGRAPHY)
    turned = options.get("rotation") == "auto"
    matcher = "nearest" if extractor == "rootsift" else "lightglue"
    r = isinglass.match(
        image0,
        image1.rot90(-1, (1, 2)) if turned else image1,
        extractor=extractor,
        matcher=matcher,
        max_keypoints=1024,
        **options,
    )
    points1 = r.points1
    if turned:  # a clockwise turn took (x, y) to (h - 1 - y, x)
        points1 = torch.stack([points1[:, 1], image1.shape[1] - 1 - points1[:, 0]], dim=1)
        if extractor == "aliked":  # SIFT does not care how it is turned
            assert r.turns1 == 1
    error = (transfer(r.points0, HOMOGRAPHY) - points1).norm(dim=1)
    assert len(error) > 200
    assert error.median() < 0.5
    if extractor == "aliked":
        assert (error < 3).float().mean() > 0.9


@pytest.mark.weights
def test_the_motorcycle_pair_against_its_disparity(motorcycle):
    """Precision at 2 px against dense ground truth: the right view's x is the left one's minus the disparity."""
    image0, image1, disparity = motorcycle
    r = isinglass.match(image0, image1)
    precision, known = motorcycle_precision(r, disparity, threshold_px=2)
    assert known > 700
    assert precision > 0.88  # 0.906 where docs/equivalence.md was made


@pytest.fixture
def sift():
    pytest.importorskip("cv2")
    return Pipeline(extractor="sift", matcher="nearest", max_keypoints=200, resize=None)


def test_a_mask_keeps_keypoints_where_it_is_and_still_reaches_k(sift, motorcycle):
    mask = np.zeros(motorcycle[0].shape[1:], dtype=bool)
    mask[100:400, 100:500] = True
    keypoints = sift.extract(motorcycle[0], mask).keypoints[0]
    assert len(keypoints) == 200
    assert (keypoints.min(0).values >= torch.tensor([99.5, 99.5])).all()
    assert (keypoints.max(0).values <= torch.tensor([499.5, 399.5])).all()


def test_near_duplicates_go(sift, motorcycle):
    keypoints = sift.extract(motorcycle[0]).keypoints[0]
    distance = torch.cdist(keypoints, keypoints) + 9 * torch.eye(len(keypoints))
    assert distance.min() >= 1.0


def test_exif_turns_are_seen_upright_and_given_in_stored_pixels(motorcycle, tmp_path):
    """A file whose pixels lie on their side: the keypoints are those of the upright photo, moved."""
    pytest.importorskip("cv2")
    pixels = (motorcycle[0][:, 50:350, 50:450] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    upright, on_side = tmp_path / "upright.png", tmp_path / "on_side.png"
    Image.fromarray(pixels).save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn clockwise to show"
    Image.fromarray(np.rot90(pixels)).save(on_side, exif=exif)
    pipeline = Pipeline(extractor="sift", matcher="nearest", resize=None)
    expected, found = pipeline.extract(upright), pipeline.extract(on_side)
    assert found.image_size.tolist() == [[300, 400]]
    assert found.turns.tolist() == [3]
    torch.testing.assert_close(found.as_seen().keypoints, expected.keypoints, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.descriptors, expected.descriptors)
    stored = found.keypoints[0]
    torch.testing.assert_close(stored[:, 0], expected.keypoints[0, :, 1], atol=1e-4, rtol=0)
    as_stored = dataclasses.replace(pipeline.options, rotation="none")
    assert Pipeline(**dataclasses.asdict(as_stored)).extract(on_side).turns is None


def test_tiles_reach_everywhere_and_find_a_keypoint_once(sift, motorcycle):
    tiled = Pipeline(extractor="sift", matcher="nearest", max_keypoints=None, resize=None, tile=256)
    whole = Pipeline(extractor="sift", matcher="nearest", max_keypoints=None, resize=None)
    a, b = tiled.extract(motorcycle[0]).keypoints[0], whole.extract(motorcycle[0]).keypoints[0]
    distance = torch.cdist(b, a).min(dim=1).values
    assert (distance < 1.0).float().mean() > 0.95  # a tile's border hides the few whose support it cuts
    assert len(a) < 1.1 * len(b)


def test_memory_decides_on_tiles_and_batches():
    pytest.importorskip("cv2")
    known = {"extractor": "sift", "matcher": "nearest"}
    assert Pipeline(**known).tile is None
    assert Pipeline(**known, memory_mb=280).tile == 1000
    assert Pipeline(**known, memory_mb=280, tile=300).tile == 300
    with pytest.raises(InputError, match="memory_mb is 10, which is tiles of 188 px; expected at least 19"):
        Pipeline(**known, memory_mb=10)
    with pytest.raises(InputError, match="expected at least 74"):
        Pipeline(**known, memory_mb=20, tile_overlap=128)
    assert Pipeline(memory_mb=170).matcher.max_tokens == 10_000


MEASURED = """
import re, sys, numpy as np, isinglass
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
pipeline = isinglass.Pipeline(extractor="xfeat", matcher="nearest", resize=None, memory_mb=int(sys.argv[1]) or None)
pixels = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
pipeline.extract(np.ascontiguousarray(pixels[:256, :256]))
before = peak()
assert pipeline.extract(pixels).keypoints.shape[1] == 2048
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
def test_memory_stays_within_the_budget():
    """Of 6 megapixels: 90 MB are the image itself as uint8 and float32, with a copy of a tile; a tenth is spare."""
    peaks = [
        float(subprocess.run([sys.executable, "-c", MEASURED, mb], capture_output=True, text=True, check=True).stdout)
        for mb in ("0", "60")
    ]
    assert peaks[1] < 1.1 * (90 + 60) < peaks[0]


def test_many_pairs_equal_each_alone(motorcycle):
    pytest.importorskip("cv2")
    pipeline = Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=300)
    features = [pipeline.extract(image) for image in motorcycle[:2]]
    together = pipeline.match_many(features, features[::-1])
    assert torch.equal(together[0].indices, pipeline.match(*motorcycle[:2]).matches.indices)
    assert len(together) == 2


def test_timings_are_of_this_match_only(sift, motorcycle):
    first = sift.match(*motorcycle[:2]).timings_ms
    second = sift.match(*motorcycle[:2]).timings_ms
    assert set(second) == {"read", "extract", "match"}
    assert second["extract"] < 1.9 * first["extract"] + 50


def test_options_are_typed_and_an_unknown_one_is_an_error():
    with pytest.raises(InputError, match="unknown option 'max_num_keypoints'; known are extractor"):
        isinglass.match("a", "b", max_num_keypoints=5)
    for bad in (
        {"rotation": "exif!"},
        {"resize": 0},
        {"max_keypoints": -1},
        {"tile": 3},
        {"tile": 64},
        {"resize": 1.5},
        {"memory_mb": 0},
    ):
        with pytest.raises(InputError, match="expected"):
            Options.of(**bad)


def test_a_matcher_name_means_the_weights_of_the_extractor():
    assert matcher_weights("lightglue", "aliked-n16") == "lightglue-aliked"
    assert matcher_weights("lightglue", "disk") == "lightglue-disk"
    assert matcher_weights("lightglue", "xfeat") == "lighterglue-xfeat"
    assert matcher_weights("superglue", "superpoint").startswith("superglue-")
    assert matcher_weights("nearest", "aliked-t16") == "nearest"
    with pytest.raises(InputError, match="no lightglue weights for features of 'aliked-t16'"):
        matcher_weights("lightglue", "aliked-t16")
    with pytest.raises(InputError, match="weights of LightGlue, no extractor"):
        Pipeline(extractor="lightglue-disk")
    with pytest.raises(InputError, match="weights of DISK, no matcher"):
        Pipeline(extractor="sift", matcher="disk")


def test_many_images_are_each_image(tmp_path):
    """In order, however long reading takes; one that cannot be read ends it, after those before it."""
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60 + 10 * i, 80, 3), np.uint8) for i in range(4)]
    pipeline = Pipeline(extractor="sift", matcher="nearest", resize=None)
    many = list(pipeline.extract_many(images))
    assert pipeline.timings_ms.keys() >= {"read", "extract"}
    for image, found in zip(images, many, strict=True):
        assert torch.equal(found.keypoints, pipeline.extract(image).keypoints)
    found = pipeline.extract_many([images[0], tmp_path / "none.png", images[1]])
    assert torch.equal(next(found).keypoints, many[0].keypoints)
    with pytest.raises(InputError, match=r"none\.png"):
        next(found)
    assert list(pipeline.extract_many([])) == []


class Corners:
    """An extractor of one's own: the strongest corners of a grid, described by their pixels."""

    signature = isinglass.Signature(extractor="corners")

    def extract(self, images, mask=None):
        points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [4.0, 12.0]])
        return isinglass.Features(
            keypoints=points.expand(len(images), 3, 2),
            descriptors=torch.eye(3).expand(len(images), 3, 3),
            scores=torch.ones(len(images), 3),
            image_size=torch.tensor([[images.shape[3], images.shape[2]]]).expand(len(images), 2),
            signature=self.signature,
        )


def test_an_extractor_of_ones_own_is_an_object_with_its_methods():
    assert isinstance(Corners(), Extractor)
    assert isinstance(isinglass.Nearest(), Matcher)
    pipeline = Pipeline(custom_extractor=Corners(), custom_matcher=isinglass.Nearest(), resize=None)
    r = pipeline.match(np.zeros((20, 20), np.uint8), np.ones((20, 30), np.uint8))
    assert r.matches.pairs().tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 20000), (40, 40)])
def test_images_without_features_give_no_matches(shape):
    pytest.importorskip("cv2")
    flat = np.full(shape, 128, np.uint8)
    r = isinglass.match(flat, flat, extractor="sift", matcher="nearest")
    assert r.points0.shape == (0, 2)
    assert r.scores.shape == (0,)


@pytest.mark.weights
@pytest.mark.parametrize("extractor", ["aliked", "disk", "xfeat"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 20000), (40, 40)])
def test_networks_find_nothing_in_one_colour(extractor, shape):
    flat = np.full(shape, 128, np.uint8)
    r = isinglass.match(flat, flat, extractor=extractor)
    assert r.features0.keypoints.shape == (1, 0, 2)
    assert r.points0.shape == (0, 2)
    assert r.matches.stop_layer.tolist() == [0]


def test_the_default_matcher_is_that_of_the_custom_extractor_s_features():
    class MySift:
        signature = isinglass.Signature(extractor="rootsift")

        def extract(self, images, mask=None):
            return SIFT(SIFT.Config(max_keypoints=50, rootsift=True)).extract(images, mask)

    image = pattern(200, 150)
    for matcher in ("lightglue", "superglue"):
        pipeline = Pipeline(custom_extractor=MySift(), matcher=matcher, resize=None)
        assert pipeline.matcher.name == f"{matcher}-sift-small" and pipeline.options.extractor == "rootsift"
        assert pipeline.match(image, image).matches.matcher == pipeline.matcher.name
    with pytest.raises(InputError, match="extractor is 'disk', but custom_extractor makes features of 'rootsift'"):
        Pipeline(custom_extractor=MySift(), extractor="disk")
    MySift.signature = isinglass.Signature(extractor="mine")
    with pytest.raises(InputError, match=r"no lightglue weights for features of 'mine'\. Choose matcher 'nearest'"):
        Pipeline(custom_extractor=MySift())
    for part in ("custom_extractor", "custom_matcher"):
        with pytest.raises(InputError, match=f"{part} is a function; expected an object with"):
            Pipeline(**{part: lambda images: images})


def test_lists_of_unequal_length_are_refused():
    one = make_features(3)
    with pytest.raises(InputError, match="1 features for view 0 and 2 for view 1"):
        Pipeline(extractor="rootsift", matcher="nearest").match_many([one], [one, one])
