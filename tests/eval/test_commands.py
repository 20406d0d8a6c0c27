"""`isinglass eval`, `compare` and `report` from the command line, on a sequence in HPatches layout."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from support import HOMOGRAPHY, warp

for package in ("cv2", "poselib", "matplotlib"):
    pytest.importorskip(package)

FAST = ["--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "300", "--solver", "poselib"]


@pytest.fixture(scope="module")
def data(motorcycle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpatches") / "v_motorcycle"
    folder.mkdir()
    images = motorcycle[0], warp(motorcycle[0], HOMOGRAPHY)
    for i, image in enumerate(images, start=1):
        Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    np.savetxt(folder / "H_1_2", HOMOGRAPHY.numpy())
    (folder.parent / "v_broken").mkdir()
    Image.new("RGB", (60, 40)).save(folder.parent / "v_broken" / "1.png")
    Image.new("RGB", (60, 40)).save(folder.parent / "v_broken" / "2.png")
    return folder.parent


def test_a_benchmark_is_measured_reported_and_compared(isinglass, data, tmp_path):
    code, out, _ = isinglass("eval", "hpatches", data, "-o", tmp_path, "--label", "a", *FAST)
    assert code == 0
    assert "poselib" in out and "1 pairs" in out
    assert "not used" in out and "v_broken" in out
    assert "<html" in (tmp_path / "a.html").read_text()
    code, out, _ = isinglass("eval", "hpatches", data, "-o", tmp_path, "--label", "b", "--no-report", "--json", *FAST)
    assert code == 0
    run = json.loads(out)
    assert run["best"]["poselib"]["metrics"]["auc@5"] > 0.8
    code, out, _ = isinglass("compare", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "compare.html")
    assert code == 0
    assert "1 pairs in common" in out
    code, out, _ = isinglass("report", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "both.html")
    assert code == 0
    assert (tmp_path / "both.html").stat().st_size > 10_000


def test_training_images_among_those_judged_by_are_told(isinglass, data, tmp_path):
    """The leak check names the image; without a leak it says that it looked."""
    code, out, _ = isinglass("eval", "hpatches", data, "-o", tmp_path, "--label", "a", "--training", data, *FAST)
    assert code == 0
    assert "LEAK" in out and "v_motorcycle/1.png, which the weights were trained on (same bytes)" in out
    assert "LEAK" in (tmp_path / "a.html").read_text()
    other = tmp_path / "training.txt"
    other.write_text("someone_else.png\n")
    code, out, _ = isinglass("eval", "hpatches", data, "-o", tmp_path, "--label", "b", "--training", other, *FAST)
    assert code == 0
    assert "no image that the weights were trained on" in out


def test_what_cannot_be_measured_is_said(isinglass, tmp_path):
    code, _, err = isinglass("eval", "hpatches", tmp_path / "nowhere", "-o", tmp_path, *FAST)
    assert code == 2 and "nowhere" in err
    code, _, err = isinglass("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 2 and "there is no file" in err
    code, _, err = isinglass("eval", "hpatchez", tmp_path)
    assert code == 2 and "hpatchez" in err


def test_photos_of_a_folder_are_chosen_and_what_is_left_out_is_said(isinglass, motorcycle, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.fromarray((motorcycle[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    for name in ("a.png", "b.png", "c_small.png"):
        picture.resize((320, 240)).save(folder / name)
    (folder / "._a.png").write_bytes(b"AppleDouble")
    command = ("eval", "scale", folder, "--no-report", "--json", "--limit", 15, "--threshold", 1, *FAST)

    code, out, err = isinglass(*command, "-o", tmp_path / "o", "--exclude", "*_small.png")
    assert code == 0 and json.loads(out)["benchmark"]["num_pairs"] == 10
    kinds = {left["kind"]: left["count"] for left in json.loads(out)["left_out"]}
    assert kinds == {"AppleDouble files of macOS": 1, "photos that --exclude names": 1}
    assert "photos that --exclude names (1, such as c_small.png)" in err

    (tmp_path / "list.txt").write_text("b.png\ngone.png\n")
    code, out, err = isinglass(*command, "-o", tmp_path / "o", "--image-list", tmp_path / "list.txt")
    assert code == 1 and json.loads(out)["benchmark"]["num_pairs"] == 5
    assert json.loads(out)["problems"] == {"gone.png": "there is no such file"}
    (folder / "b.png").write_text("no photo")
    code, out, err = isinglass(*command, "-o", tmp_path / "o", "--exclude", "*_small.png")
    assert code == 1 and json.loads(out)["benchmark"]["num_pairs"] == 5


@pytest.mark.parametrize("command", ["eval", "tune"])
def test_photos_of_a_data_set_cannot_be_chosen(isinglass, data, tmp_path, command):
    code, _, err = isinglass(command, "hpatches", data, "-o", tmp_path / "o", "--exclude", "1.png", *FAST[:-2])
    assert code == 2 and "made of photos: synthetic, rotation, scale" in err and not (tmp_path / "o").exists()
