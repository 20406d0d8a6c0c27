"""The command line: summaries, JSON, exit codes, messages a stranger understands."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.cli import matching
from isinglass.options import Options

FAST = ["--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "200"]


@pytest.fixture(scope="module")
def pair(motorcycle, tmp_path_factory):
    pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "left.png", folder / "right.png"
    for path, image in zip(paths, motorcycle, strict=False):
        pixels = (image[:, :300, :400] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path)
    return paths


def test_help_is_quick_and_needs_no_torch():
    """Best of five under 0.3 s, as a whole process."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-m", "isinglass", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert all(command in shown.stdout for command in ("match", "extract", "models", "doctor"))
    assert min(seconds) < 0.3
    code = "import sys, isinglass, isinglass.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["match", "extract", "models", "doctor"])
def test_every_command_explains_itself(isinglass, command):
    code, out, _ = isinglass(command, "--help")
    assert code == 0
    assert "Usage:" in out and "--json" in out


def test_the_options_have_the_defaults_of_the_library():
    ours = {field.name: field.default for field in dataclasses.fields(Options)}
    options = {option.name: option.default for option in matching.match.params}
    shared = set(ours) & set(options)
    assert shared == set(ours) - {"adaptive"}
    for name in shared - {"tile", "memory_mb", "device", "filter_threshold", "ratio", "accept_licence"}:
        assert options[name] == ours[name], name


def test_a_pair_gives_a_summary_a_picture_and_matches(isinglass, pair, tmp_path):
    code, out, _ = isinglass("match", *pair, "-o", tmp_path, *FAST)
    assert code == 0
    for word in ("keypoints 200 and 200", "matches", "inliers", "extract", "left-right.png"):
        assert word in out
    with Image.open(tmp_path / "left-right.png") as picture:
        assert picture.format == "PNG"


def test_json_is_one_object_a_pair_with_the_promised_fields(isinglass, pair, tmp_path):
    code, out, err = isinglass("match", *pair, "-o", tmp_path, "--json", *FAST)
    assert (code, err) == (0, "")
    found = json.loads(out)
    promised = "image0 image1 extractor matcher num_keypoints0 num_keypoints1 num_matches num_inliers model stop_layer"
    assert set(promised.split()) | {"timings_ms", "outputs"} <= set(found)
    assert found["extractor"] == "rootsift" and found["matcher"] == "nearest"
    assert 20 < found["num_matches"] <= 200


def test_a_folder_with_a_bad_image_ends_with_exit_code_1(isinglass, pair, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in pair:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "text.jpg").write_text("hello")
    code, out, err = isinglass("match", folder, "-o", tmp_path / "out", "--json", "--no-picture", *FAST)
    assert code == 1
    assert len(out.splitlines()) == 3
    assert "1 of 3 pairs matched" in err


def test_pairs_from_a_file(isinglass, pair, tmp_path):
    listed = tmp_path / "pairs.txt"
    listed.write_text("left.png right.png\nright.png left.png\n")
    code, _, err = isinglass(
        "match", "--pairs", listed, "--root", pair[0].parent, "-o", tmp_path, "--no-picture", *FAST
    )
    assert code == 0
    assert "2 of 2 pairs matched" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["match"], "Give two images or folders"),
        (["match", "a.jpg", "b.jpg", "--max-num-keypoints", "5"], "No such option"),
        (["match", "a.jpg", "b.jpg", "--rotation", "up"], "up"),
        (["matsch"], "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2(isinglass, arguments, words):
    code, _, err = isinglass(*arguments)
    assert code == 2
    assert words in err


def test_bad_input_is_one_line(isinglass, pair, tmp_path):
    code, _, err = isinglass("match", pair[0], tmp_path / "no.jpg", "-o", tmp_path, *FAST)
    assert code == 2
    assert "no file or folder" in err and "Traceback" not in err
    (tmp_path / "text.jpg").write_text("hello")
    code, _, err = isinglass("match", pair[0], tmp_path / "text.jpg", "-o", tmp_path, *FAST)
    assert code == 1
    assert "cannot be read as an image" in err
    code, _, err = isinglass("match", *pair, "--extractor", "alikd", "-o", tmp_path)
    assert code == 2
    assert "did you mean 'aliked" in err


def test_missing_weights_are_exit_code_3(isinglass, pair, tmp_path, monkeypatch):
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ISINGLASS_OFFLINE", "1")
    code, _, err = isinglass("match", *pair, "--extractor", "superpoint-open", "--matcher", "nearest", "-o", tmp_path)
    assert code == 3
    assert "superpoint_v6_from_tf.pth" in err
    code, _, err = isinglass("match", *pair, "--extractor", "superpoint", "-o", tmp_path)
    assert code == 3
    assert "non-commercial" in err and "--accept-licence" in err


def test_extract_writes_features_and_says_where(isinglass, pair, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    code, out, err = isinglass("extract", pair[0], tmp_path / "text.jpg", "-o", tmp_path, "--json", *FAST[:2])
    assert code == 1
    assert "text.jpg" in err
    found, report = map(json.loads, out.splitlines())
    assert list(report["problems"]) == [str(tmp_path / "text.jpg")] and report["left_out"] == []
    from isinglass.files import load_features

    assert load_features(found["output"]).keypoints.shape[1] == found["num_keypoints"]


def test_models_lists_licences(isinglass):
    code, out, _ = isinglass("models", "--json")
    assert code == 0
    listed = {one["name"]: one for one in json.loads(out)}
    assert listed["lightglue-aliked"]["commercial_use"] is True
    assert listed["superglue-outdoor"]["commercial_use"] is False
    _, out, _ = isinglass("models", "--commercial")
    assert "superglue-outdoor" not in out and "superglue-sift-small" in out and "lightglue-aliked" in out


def test_models_are_a_table_with_columns_apart(isinglass):
    _, out, _ = isinglass("models")
    table = [line for line in out.splitlines() if not line.startswith("sift and")]
    starts = [table[0].index(head) for head in ("model", "takes features of", "licence", "commercial", "size")]
    assert len(table) > 15
    for line in table:
        assert all(line[start - 2 : start] == "  " and line[start] != " " for start in starts), line
    assert "lightglue-aliked-small" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lightglue", "several weights, one for each extractor; choose among lightglue-aliked"),
        ("nearest", "needs no weights"),
        ("rootsift", "needs no weights"),
        ("alikd", "did you mean 'aliked"),
    ],
)
def test_what_cannot_be_fetched_is_explained(isinglass, name, words):
    code, _, err = isinglass("models", "--fetch", name)
    assert code == 2 and words in err and "Traceback" not in err


@pytest.mark.weights
@pytest.mark.parametrize(("name", "full"), [("aliked", ["aliked-n16"]), ("disk+aliked", ["disk", "aliked-n16"])])
def test_short_names_are_fetched(isinglass, name, full):
    code, out, _ = isinglass("models", "--fetch", name)
    assert code == 0 and [line.partition(":")[0] for line in out.splitlines()] == full


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--extractor", "ALIKED", "did you mean 'aliked"),
        ("--matcher", "run/best.safetensors", "there is no file 'run/best.safetensors'"),
        ("--matcher", "best.safetensors", "there is no file"),
    ],
)
def test_wrong_names_of_models_are_guessed(isinglass, pair, option, value, words):
    code, _, err = isinglass("match", *pair, option, value)
    assert code == 2 and words in err


def test_a_doctor_speaks_json(isinglass, pair, tmp_path):
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(black)
    code, out, _ = isinglass("doctor", pair[0], black, "--json", *FAST)
    assert code == 0
    assert any(finding["status"] == "problem" for finding in json.loads(out)["findings"])


@pytest.mark.weights
def test_the_main_job_from_the_command_line(isinglass, pair, tmp_path):
    code, out, _ = isinglass("match", *pair, "-o", tmp_path, "--max-keypoints", "512", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["num_inliers"] > 150
    assert 1 <= found["stop_layer"] <= 9
