"""The server, asked over real HTTP: the same matches as in Python, jobs of every kind, and notes on what is normal."""

import io
import re
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

from asked_server import drawing, encoded, expect, photos, running
from isinglass.app.answers import MatchAnswer
from isinglass.app.choices import OPTIONS
from isinglass.files import verify_json
from isinglass.files.single import load_matches
from isinglass.inspection.payload import unpack
from isinglass.options import Options


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


# --- POST /match


def test_match_gives_what_python_gives(server):
    answer = server.match(photos())
    assert answer.status_code == 200
    assert verify_json(answer.content) == {name: value for name, value in answer.json().items() if name != "sha256"}
    found, result = MatchAnswer.model_validate(answer.json(), strict=False), expect()
    assert len(found.pairs) > 30
    assert found.pairs == [tuple(pair) for pair in result.matches.pairs().tolist()]
    np.testing.assert_array_equal(np.float32(found.scores), result.scores.numpy())
    for keypoints, features in zip(found.keypoints, (result.features0, result.features1), strict=True):
        np.testing.assert_array_equal(np.float32(keypoints), features.keypoints[0].numpy())
    assert found.sizes == [(320, 240)] * 2
    assert found.extractor == "rootsift"
    assert found.matcher == "lightglue-sift-small"
    assert found.options["max_keypoints"] == 256
    assert set(found.timings_ms) >= {"read", "extract", "match", "geometry"}
    assert found.notes == []
    assert sum(found.inliers) == found.model.num_inliers > 30
    assert len(found.inliers) == len(found.pairs)


@pytest.mark.parametrize("geometry", ["none", "homography", "fundamental"])
def test_match_looks_for_the_geometry_that_is_asked_for(server, geometry):
    found = server.match(photos(), geometry=geometry).json()
    if geometry == "none":
        assert found["model"] is None
        assert found["inliers"] is None
        assert "geometry" not in found["timings_ms"]
        return
    assert found["model"]["kind"] == geometry
    points0, points1 = (np.array(k)[np.array(found["pairs"])[:, i]] for i, k in enumerate(found["keypoints"]))
    inliers = np.array(found["inliers"])
    if geometry == "homography":
        x, y, w = np.array(found["model"]["matrix"]) @ np.column_stack([points0, np.ones(len(points0))]).T
        errors = np.hypot(*(np.stack([x / w, y / w], axis=1) - points1).T)
        assert errors[inliers].max() < 5


def test_options_are_heard(server):
    found = server.match(photos(), max_keypoints="50", adaptive="false", filter_threshold="0.5", rotation="none").json()
    assert [len(one) for one in found["keypoints"]] == [50, 50]
    assert found["options"]["adaptive"] is False
    assert min(found["scores"]) >= 0.5
    assert found["stop_layer"] == found["num_layers"]
    nearest = server.match(photos(), matcher="nearest", ratio="0.8", filter_threshold="").json()
    assert len(nearest["pairs"]) == len(expect(matcher="nearest", ratio=0.8).scores)
    assert nearest["num_layers"] is None


# Options that requests cannot set, and why. A new option is either set by requests or has its reason here.
NOT_IN_THE_APP = {
    "resize_side": "the limit of `resize` is one of the long side",
    "tile": "no photo is extracted at more px than one tile may have",
    "tile_overlap": "as tile",
    "memory_mb": "the memory is the server's",
    "device": "the server's, by its settings",
    "accept_licence": "whoever runs the server accepts licences",
}


def test_every_option_is_in_the_form_and_on_the_page_or_left_out_for_a_reason(server):
    everything = {field.name for field in fields(Options)}
    assert not set(OPTIONS) & set(NOT_IN_THE_APP)
    assert {*OPTIONS, *NOT_IN_THE_APP} == everything
    content = server.get("/openapi.json").json()["paths"]["/match"]["post"]["requestBody"]["content"]
    described = content["multipart/form-data"]["schema"]["properties"]
    assert everything & set(described) == set(OPTIONS)
    script = server.get("/static/options.js").text
    table = script[script.index("const FIELDS") : script.index("  };")]
    assert everything & set(re.findall(r"^    (\w+): \{", table, re.MULTILINE)) == set(OPTIONS)
    hints = get_type_hints(Options)
    for name in OPTIONS:
        if get_origin(hints[name]) is Literal:  # all that Python may be given, and nothing else
            assert set(described[name]["enum"]) == set(get_args(hints[name])), name
            row = table[table.index(f"    {name}: {{") :].partition("\n    },")[0]
            assert set(re.findall(r'\["(\w+)", "', row)) == set(get_args(hints[name])), name


def test_stretch_and_execution_are_heard(server):
    dark = tuple(encoded(Image.fromarray(np.asarray(drawing().convert("L")).astype(np.uint16) * 8)) for _ in "01")
    stretched, dim = (server.match(dark, stretch=stretch).json() for stretch in ("auto", "none"))
    assert (stretched["options"]["stretch"], dim["options"]["stretch"]) == ("auto", "none")
    assert len(stretched["keypoints"][0]) > 2 * len(dim["keypoints"][0])
    plain, fused = (server.match(photos(), execution=execution) for execution in ("plain", "fused"))
    assert (plain.json()["options"]["execution"], fused.json()["options"]["execution"]) == ("plain", "fused")
    assert len(plain.json()["pairs"]) > 20
    nearest = server.match(photos(), matcher="nearest", execution="fused")
    assert nearest.status_code == 422 and "which 'nearest' has not" in nearest.json()["detail"]


def test_a_comparison_with_nearest_does_not_take_the_execution_of_the_first(server):
    compared = server.result(server.submit(photos(), kind="compare", execution="fused", other_matcher="nearest"))
    assert compared["kind"] == "compare"


def test_masks_are_heard(server):
    mask = Image.new("L", (320, 240))
    mask.paste(255, (0, 0, 160, 240))
    found = server.post("/match", photos(), [encoded(mask), None]).json()
    assert len(found["keypoints"][0]) > 20
    assert max(x for x, _ in found["keypoints"][0]) < 170
    assert max(x for x, _ in found["keypoints"][1]) > 250


def test_photos_are_upright_and_points_are_of_the_stored_pixels(server):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(drawing().rotate(90, expand=True), "JPEG", quality=95, exif=exif)
    job = server.submit([photos()[0], turned])
    payload = server.result(job)
    assert payload["views"][1]["size"] == [240, 320]
    assert payload["views"][1]["preview"]["size"] == [320, 240]
    pairs = unpack(payload["matches"]["pairs"])
    points0, points1 = (unpack(one)[pairs[:, i]] for i, one in enumerate(payload["keypoints"]))
    a, b, c, d, e, f = payload["views"][1]["preview"]["matrix"]
    shown = points1 @ np.array([[a, d], [b, e]]) + [c, f]
    assert np.median(np.hypot(*(shown - points0).T)) < 1.5


# --- what is normal is a result


def test_identical_files_are_a_result_with_a_note(server):
    found = server.match([photos()[0]] * 2).json()
    assert any("identical" in note for note in found["notes"])
    same = [i == j for i, j in found["pairs"]]
    assert np.mean(same) > 0.99


def test_photos_without_overlap_are_a_result_with_a_note(server):
    rng = np.random.default_rng(0)
    noise = [encoded(Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))) for _ in range(2)]
    found = server.match(noise, max_keypoints="64").json()
    assert len(found["pairs"]) < 15
    assert any("doctor" in note for note in found["notes"])
    assert found["model"] is None


def test_a_blank_photo_is_a_result_with_a_note(server):
    blank = ("sky.png", encoded(Image.new("RGB", (320, 240), (90, 120, 200))))
    found = server.match([blank, photos()[1]]).json()
    assert found["pairs"] == []
    assert found["notes"] == ["No keypoints were found in sky.png: the photo is blank or blurred."]
    payload = server.result(server.submit([blank, photos()[1]]))
    assert payload["notes"] == found["notes"]
    assert unpack(payload["matches"]["pairs"]).shape == (0, 2)


# --- jobs


def test_a_job_gives_payload_json_and_npz(server, tmp_path):
    job, result = server.submit(photos()), expect()
    payload = server.result(job)
    assert payload["kind"] == "match"
    np.testing.assert_array_equal(unpack(payload["matches"]["pairs"]), result.matches.pairs().numpy())
    plain = server.get(f"/jobs/{job}/result.json")
    assert "attachment" in plain.headers["content-disposition"]
    assert MatchAnswer.model_validate(plain.json()).pairs == [tuple(pair) for pair in result.matches.pairs().tolist()]
    (tmp_path / "matches.npz").write_bytes(server.get(f"/jobs/{job}/result.npz").content)
    saved = load_matches(tmp_path / "matches.npz")
    assert saved.matches.indices.equal(result.matches.indices)


def test_the_code_gives_the_same_matches(server, tmp_path, monkeypatch):
    names = ["one.png", "two.png"]
    for name, content in zip(names, photos(), strict=True):
        (tmp_path / name).write_bytes(content)
    payload = server.result(server.submit(list(zip(names, photos(), strict=True)), min_distance="2"))
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(payload["code"], found)
    np.testing.assert_array_equal(found["result"].matches.pairs().numpy(), unpack(payload["matches"]["pairs"]))
    np.testing.assert_array_equal(found["robust"].inliers, unpack(payload["matches"]["inliers"]).astype(bool))


@pytest.mark.parametrize("matcher", ["lightglue-sift-small", "superglue-sift-small", "nearest"])
def test_a_pair_is_inspected(server, matcher):
    payload = server.result(server.submit(photos(), kind="inspect", matcher=matcher, max_keypoints="100"))
    assert payload["kind"] == "inspect"
    assert payload["trace"]["kind"] == matcher.partition("-")[0]
    assert payload["trace"]["steps"]
    assert "trace" in payload["timings_ms"]
    result = expect(matcher=matcher, max_keypoints=100, precision="float32")
    np.testing.assert_array_equal(unpack(payload["matches"]["pairs"]), result.matches.pairs().numpy())


def test_two_matchers_are_compared(server):
    payload = server.result(server.submit(photos(), kind="compare", other_matcher="nearest"))
    assert payload["kind"] == "compare"
    assert (payload["matcher"], payload["other"]["matcher"]) == ("lightglue-sift-small", "nearest")
    rows = [set(map(tuple, unpack(one["matches"]["pairs"]).tolist())) for one in (payload, payload["other"])]
    assert rows[1] == set(map(tuple, expect(matcher="nearest").matches.pairs().tolist()))
    both = unpack(payload["difference"]["both"])
    assert len(both) == len(rows[0] & rows[1]) > 20
    only = [unpack(one) for one in payload["difference"]["only"]]
    assert [len(one) for one in only] == [len(rows[0] - rows[1]), len(rows[1] - rows[0])]


def test_two_extractors_are_compared(server):
    payload = server.result(server.submit(photos(), kind="compare", other_extractor="sift", other_matcher="nearest"))
    assert payload["other"]["extractor"] == "sift"
    assert len(unpack(payload["difference"]["both"])) > 20


def test_the_doctor_says_what_is_wrong(server):
    turned = encoded(drawing().rotate(180))
    found = server.result(server.submit([photos()[0], turned], kind="doctor"))
    assert found["kind"] == "doctor"
    assert found["verdict"]
    assert found["names"] == ["image0.jpg", "image1.jpg"]
    assert {one["status"] for one in found["findings"]} <= {"ok", "warning", "problem"}
    assert found["stages"]["keypoints0"] > 50


def test_the_doctor_hears_of_masks(server):
    hidden = encoded(Image.new("L", (320, 240)))
    found = server.result(server.submit(photos(), [hidden, None], kind="doctor"))
    assert (found["stages"]["keypoints0"], found["stages"]["lost_at"]) == (0, "detector")


def test_a_doctors_job_has_no_matches_to_fetch(server):
    job = server.submit(photos(), kind="doctor")
    server.result(job)
    assert server.get(f"/jobs/{job}/result.npz").status_code == 404


# --- what can be chosen


def test_choices_and_examples(server):
    found = server.get("/choices").json()
    extractors = {one["name"]: one for one in found["extractors"]}
    matchers = {one["name"]: one for one in found["matchers"]}
    assert found["defaults"]["extractor"] in extractors
    assert found["defaults"]["matcher"] in matchers
    assert extractors["rootsift"]["available"]
    assert "rootsift" in matchers["lightglue-sift-small"]["accepts"]
    assert matchers["nearest"]["accepts"] is None
    assert found["limits"]["max_keypoints"] == 4096
    assert found["live"]["source"] is None
    for one in found["examples"]:
        for view in (0, 1):
            answer = server.get(f"/examples/{one['name']}/{view}")
            assert answer.headers["content-type"] == "image/jpeg"
            assert list(Image.open(io.BytesIO(answer.content)).size) == one["sizes"][view]
    assert server.get("/examples/passwd/0").status_code == 404
    assert server.get("/examples/turned/2").status_code == 404


def test_the_turned_example_matches(server):
    example = [server.get(f"/examples/turned/{view}").content for view in (0, 1)]
    found = server.match(example, resize="512", max_keypoints="512", geometry="homography").json()
    assert found["model"]["kind"] == "homography"
    assert found["model"]["num_inliers"] > 60
