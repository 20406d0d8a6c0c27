"""What pages get: arrays come back as they were, photos lie where their matrix says, code does what it says."""

import base64
import dataclasses
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import Options
from isinglass.errors import InputError
from isinglass.geometry.robust import estimate
from isinglass.inspection import payload as p
from isinglass.result import MatchResult, geometry_if_installed
from isinglass.types import Matches
from support import make_features, pattern


def make_result(pairs, count=30, shift=0.0, seed=0):
    """A result with these (M, 2) pairs between two views of which the second is the first, moved."""
    features0 = make_features(count, seed=seed)
    features1 = replace(features0, keypoints=features0.keypoints + 5 + shift)
    indices = torch.full((1, count), -1)
    for i, j in pairs:
        indices[0, i] = j
    scores = torch.where(indices >= 0, 0.75, 0.0)
    return MatchResult(
        features0=replace(features0, keypoints=features0.keypoints + shift),
        features1=features1,
        matches=Matches(indices=indices, scores=scores, matcher="made"),
        timings_ms={"match": 3.5},
    )


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (np.array([[0, 255]], np.uint8), "uint8"),
        (torch.tensor([True, False]), "uint8"),
        (np.array([65535], np.uint16), "uint16"),
        (torch.tensor([[-1, 2**31 - 1]]), "int32"),
        (np.array([1.5, np.nan], ">f4"), "float32"),
        (torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "float32"),
        (np.zeros((0, 2)), "float32"),
    ],
)
def test_arrays_come_back(values, name):
    packed = json.loads(json.dumps(p.pack(values), allow_nan=False))
    found = p.unpack(packed)
    assert found.dtype.name == packed["dtype"] == name
    np.testing.assert_array_equal(found, np.reshape(values.tolist(), values.shape))


def test_what_is_packed_is_little_endian():
    assert base64.b64decode(p.pack(np.array([258], np.uint16))["data"]) == b"\x02\x01"


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([2**31]), np.array([1j])])
def test_what_cannot_be_packed_is_refused(values):
    with pytest.raises(InputError):
        p.pack(values)


@pytest.mark.parametrize(
    "packed", [{}, {"dtype": "object", "shape": [0], "data": ""}, {"dtype": "uint8", "shape": [2], "data": "AA=="}]
)
def test_what_cannot_be_unpacked_is_refused(packed):
    with pytest.raises(InputError, match="no packed array"):
        p.unpack(packed)


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("size", [(60, 40), (3300, 200)])
def test_a_preview_lies_where_its_matrix_says(turns, size):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left, side = height // 5, width // 5, height // 4
    pixels[top : top + side, left : left + side] = 255
    view = p.view_payload(pixels, "x", turns)
    preview = Image.open(io.BytesIO(base64.b64decode(view["preview"]["src"].partition(",")[2])))
    assert view["size"] == [width, height]
    assert preview.size == tuple(view["preview"]["size"])
    assert max(preview.size) <= p.PREVIEW_PX
    a, b, c, d, e, f = view["preview"]["matrix"]
    x, y = left + (side - 1) / 2, top + (side - 1) / 2
    seen = np.argwhere(np.asarray(preview.convert("L")) > 128).mean(axis=0)[::-1]
    assert seen == pytest.approx((a * x + b * y + c, d * x + e * y + f), abs=0.6)


def test_a_payload_says_what_was_found():
    result = make_result([(3, 4), (7, 7)])
    options = Options(extractor="rootsift", max_keypoints=30)
    image = pattern(640, 480)
    found = p.match_payload(result, image, image, names=("a.jpg", "b.jpg"), options=options, num_layers=None)
    json.dumps(found, allow_nan=False)
    assert p.unpack(found["matches"]["pairs"]).tolist() == [[3, 4], [7, 7]]
    assert p.unpack(found["matches"]["scores"]).tolist() == [0.75, 0.75]
    np.testing.assert_array_equal(p.unpack(found["keypoints"][1]), result.features1.keypoints[0])
    for name in ("left_at", "confidences", "stop_layer", "num_layers", "model"):
        assert found[name] is None
    assert found["options"]["max_keypoints"] == 30
    assert [view["name"] for view in found["views"]] == ["a.jpg", "b.jpg"]


def test_a_payload_has_the_geometry():
    result = make_result([(i, i) for i in range(30)])
    robust = geometry_if_installed(result, "homography")
    found = p.match_payload(
        result, *[pattern(640, 480)] * 2, names=("a", "b"), options=Options(), robust=robust, num_layers=9
    )
    assert found["model"]["kind"] == "homography"
    assert found["model"]["num_inliers"] == p.unpack(found["matches"]["inliers"]).sum() == 30
    assert np.array(found["model"]["matrix"]) == pytest.approx(np.array([[1, 0, 5], [0, 1, 5], [0, 0, 1]]), abs=1e-3)


def test_the_threshold_grows_with_the_originals():
    for resize, threshold_px in ((160, 12), (None, 3)):
        result = dataclasses.replace(make_result([]), options=Options(resize=resize))
        assert result.geometry().threshold_px == pytest.approx(threshold_px)


def test_the_same_matches_of_the_same_keypoints():
    result0, result1 = make_result([(1, 1), (2, 3), (5, 5)]), make_result([(2, 3), (5, 6), (7, 7)])
    both = p.same_matches(result0, result1, 1.5)
    assert both.tolist() == [[1, 0]]
    payloads = [
        p.match_payload(one, *[pattern(640, 480)] * 2, names=("a", "b"), options=Options())
        for one in (result0, result1)
    ]
    found = p.compare_payload(*payloads, result0, result1, Options())
    assert [p.unpack(rows).tolist() for rows in found["difference"]["only"]] == [[0, 2], [1, 2]]
    assert "views" not in found["other"]
    assert found["kind"] == "compare"


def test_the_same_matches_of_other_keypoints():
    result0, result1 = make_result([(1, 1), (2, 3), (5, 5)]), make_result([(2, 3), (5, 5)], shift=0.9)
    assert p.same_matches(result0, result1, 1.5).tolist() == [[1, 0], [2, 1]]
    assert p.same_matches(result0, result1, 0.5).tolist() == []
    assert p.same_matches(result0, make_result([], shift=0.9), 1.5).shape == (0, 2)


def test_the_code_runs_and_gives_the_same(tmp_path, motorcycle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, image in zip("ab", motorcycle, strict=False):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(f"{name}.png")
    mask = np.zeros((500, 741), np.uint8)
    mask[:, :400] = 255
    Image.fromarray(mask).save("mask.png")
    options = Options(extractor="rootsift", matcher="nearest", ratio=0.8, max_keypoints=200, resize=400)
    for masks in [(None, None), ("mask.png", None)]:
        robust = estimate(np.zeros((0, 2)), np.zeros((0, 2)), "homography", threshold_px=2.25)
        code = p.python_code(options, ("a.png", "b.png"), masks=masks, robust=robust)
        names = {}
        exec(code, names)
        assert len(names["points0"]) > 20
        assert names["robust"].threshold_px == 2.25
        assert (masks[0] is None) == bool((names["points0"][:, 0] > 410).any())
    assert "resize=400" in code
    assert "tile" not in code


def test_the_code_of_the_defaults_is_short():
    assert p.python_code(Options()).splitlines()[2] == "result = isinglass.match('first.jpg', 'second.jpg')"
