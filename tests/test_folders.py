"""Folders, lists, names and masks from the command line: what people have, not what they should have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isinglass.files import load_matches
from isinglass.sfm.localised import Localised, column_of, write_results
from support import write_photos

pytest.importorskip("cv2")

FLAGS = ("--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "60", "--resize", "160")
EXTRACT = ("--extractor", "rootsift", "--max-keypoints", "60", "--resize", "160")
NO_PICTURE = (*FLAGS, "--no-picture")


@pytest.fixture
def photos(tmp_path):
    """Three photos, one in a sub-folder, and what systems and people put beside them."""
    folder = write_photos(tmp_path / "photos", 3, size=(160, 120))
    (folder / "0.png").rename(folder / "my photo 1.png")
    (folder / "1.png").rename(folder / "my photo 2.png")
    (folder / "#3").mkdir()
    (folder / "2.png").rename(folder / "#3" / "10²000000.png")
    (folder / "._my photo 1.png").write_bytes(b"\0\5\26\7 AppleDouble")
    (folder / "@eaDir" / "my photo 1.png").mkdir(parents=True)
    shutil.copy(folder / "my photo 1.png", folder / "@eaDir/my photo 1.png/SYNOPHOTO_THUMB_XL.png")
    (folder / "clip.mov").write_bytes(b"a movie")
    return folder


def results(out):
    """What a command printed of pairs or images, and what it printed last of the rest."""
    *printed, report = map(json.loads, out.splitlines())
    assert set(report) == {"left_out", "problems"}
    return printed, report


def kinds(report):
    return {left["kind"]: left["count"] for left in report["left_out"]}


OF_SYSTEMS = {"AppleDouble files of macOS": 1, "thumbnails and previews": 1, "MOV files": 1}


def test_match_and_extract_go_down_and_say_what_they_leave_out(tmp_path, photos, isinglass, monkeypatch):
    monkeypatch.chdir(photos)
    code, out, err = isinglass("match", ".", *NO_PICTURE, "--json", "--picture")
    assert code == 0
    reports, rest = results(out)
    assert len(reports) == 3 and all(report["error"] is None for report in reports)
    assert kinds(rest) == OF_SYSTEMS and rest["problems"] == {}
    for said in (
        "left out AppleDouble files",
        "thumbnails and previews (1, such as",
        "MOV files (1, such as clip.mov): a video",
    ):
        assert said in err
    code, out, err = isinglass("extract", ".", *EXTRACT, "--json")  # beside its own pictures
    assert code == 0 and "left out pictures of matches (3, such as" in err
    found, rest = results(out)
    assert len(found) == 3 and kinds(rest) == {**OF_SYSTEMS, "pictures of matches": 3}


def test_what_pairs_writes_is_read_by_every_command(tmp_path, photos, isinglass):
    pytest.importorskip("h5py")
    code, out, err = isinglass("pairs", photos, "-o", tmp_path / "pairs.txt", "--json")
    assert code == 0 and json.loads(out)["pairs"] == 3
    assert {left["kind"] for left in json.loads(out)["left_out"]} >= {"AppleDouble files of macOS", "MOV files"}
    code, out, _ = isinglass(
        "match", "--pairs", tmp_path / "pairs.txt", "--root", photos, "-o", tmp_path / "m", *NO_PICTURE, "--json"
    )
    assert code == 0 and [json.loads(line)["error"] for line in out.splitlines()] == [None] * 3
    code, out, _ = isinglass("match-many", photos, tmp_path / "pairs.txt", "-o", tmp_path / "m.h5", *FLAGS, "--json")
    assert code == 0 and json.loads(out)["made"] == 3
    spaced = "\ufeff  # hloc's\r\nmy photo 1.png my photo 2.png\r\nmy photo 2.png gone.png\r\n"
    (tmp_path / "pairs.txt").write_text(spaced, "utf-8")
    code, out, err = isinglass(
        "match", "--pairs", tmp_path / "pairs.txt", "--root", photos, "-o", tmp_path / "m", *NO_PICTURE, "--json"
    )
    assert code == 1 and "gone.png" in err
    (report,), rest = results(out)
    assert report["error"] is None
    ((line, why),) = rest["problems"].items()
    assert line.startswith("line 3 of ") and why.startswith("it is 'my photo 2.png gone.png'; expected two names")
    code, out, err = isinglass("match-many", photos, tmp_path / "pairs.txt", "-o", tmp_path / "m.h5", *FLAGS, "--json")
    assert code == 1 and json.loads(out)["reused"] == 1 and "gone.png" in err
    assert json.loads(out)["problems"] == rest["problems"]


def test_exclude_and_image_list(tmp_path, photos, isinglass):
    code, out, err = isinglass("extract", photos, "-o", tmp_path / "f", "--exclude", "#3", *EXTRACT, "--json")
    assert code == 0 and "photos that --exclude names (1, such as" in err
    found, rest = results(out)
    assert len(found) == 2 and kinds(rest) == {**OF_SYSTEMS, "photos that --exclude names": 1}
    (tmp_path / "list.txt").write_text('my photo 1.png\n#3/10²000000.png\n"#3/10²000000.png"\ngone.png\n', "utf-8")
    command = ("match", photos, "-o", tmp_path / "m", "--image-list", tmp_path / "list.txt", *NO_PICTURE, "--json")
    code, out, err = isinglass(*command)
    assert code == 1 and "gone.png: there is no such file" in err
    reports, rest = results(out)
    assert [report["error"] for report in reports] == [None]
    assert rest["problems"] == {"gone.png": "there is no such file"}


def test_masks_of_folders(tmp_path, photos, isinglass):
    half = np.zeros((120, 160), np.uint8)
    half[:, :80] = 255
    for name in ("my photo 1.mask.png", "my photo 2.png.png", "strange.png"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(half).save(tmp_path / "masks" / name)
    Image.new("L", (10, 10)).save(tmp_path / "masks" / "#3_mask.png")
    command = ("match", photos, "-o", tmp_path / "m", "--masks", tmp_path / "masks", *NO_PICTURE, "--json")
    code, out, err = isinglass(*command)
    reports, _ = results(out)
    assert code == 0 and "2 masks (#3_mask.png, strange.png) fit no photo" in err
    assert "1 photo without a mask, used whole: #3/10²000000.png" in err
    saved = [load_matches(report["outputs"][0]) for report in reports]
    assert float(saved[2].keypoints0[:, 0].max()) < 81 and float(saved[0].keypoints0[:, 0].max()) > 100
    code, out, _ = isinglass(
        "extract", photos, "-o", tmp_path / "f", "--masks", tmp_path / "masks/strange.png", *EXTRACT
    )
    assert code == 0 and len(out.splitlines()) == 3
    Image.new("L", (10, 10), 255).save(tmp_path / "masks" / "my photo 1.mask.png")
    code, _, err = isinglass("extract", photos, "-o", tmp_path / "f", "--masks", tmp_path / "masks", *EXTRACT)
    assert code == 1 and "the mask is 10 x 10 px" in err


@pytest.mark.parametrize("command", ["match", "extract", "map"])
def test_masks_that_are_not_there_are_an_error_before_torch(photos, tmp_path, command):
    script = (
        "import sys, isinglass.cli\n"
        f"sys.argv = ['isinglass', {command!r}, {str(photos)!r}, '-o', {str(tmp_path / 'o')!r}, '--masks', 'none']\n"
        "try: isinglass.cli.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2 and done.stdout == "False\n" and "none" in done.stderr and "Traceback" not in done.stderr
    )


def test_bad_photos_end_no_run_and_the_exit_code_says_so(tmp_path, photos, isinglass):
    (photos / "empty.png").touch()
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(photos / "my photo 1.png", os.fsencode(photos) + b"/caf\xe9.png")
    code, out, err = isinglass("match", photos, "-o", tmp_path / "m", *NO_PICTURE, "--json")
    reports, rest = results(out)
    assert code == 1 and [report["error"] for report in reports] == [None] * 3
    assert sorted(rest["problems"]) == ["caf\\udce9.png", "empty.png", "gone.png"]
    for said in (
        "empty.png: it is an empty file",
        "gone.png: the link leads nowhere",
        "caf\\udce9.png: its name",
    ):
        assert said in err


def test_frames_of_any_name_are_tracked(tmp_path, photos, isinglass):
    for package in ("h5py", "poselib"):
        pytest.importorskip(package)
    (photos / "empty.png").touch()
    code, out, err = isinglass("track", photos, "-o", tmp_path / "tracks", *FLAGS, "--json", "--exclude", "my*2.png")
    assert code == 1 and json.loads(out)["frames"] == 2
    assert kinds(json.loads(out)) == {**OF_SYSTEMS, "photos that --exclude names": 1}
    assert err.count("empty.png: it is an empty file") == 1 and "AppleDouble files" in err


def test_a_map_of_any_folder(tmp_path, photos, isinglass):
    for package in ("h5py", "pycolmap", "faiss"):
        pytest.importorskip(package)
    (photos / "empty.png").touch()
    code, out, _ = isinglass("map", photos, "-o", tmp_path / "map", *FLAGS, "--json", "--exclude", "my*2.png")
    summary = json.loads(out)
    assert code == 1 and summary["photos"] == 3 and list(summary["problems"]) == ["empty.png"]
    assert {left["kind"] for left in summary["left_out"]} >= {"MOV files", "photos that --exclude names"}
    page = (tmp_path / "map" / "index.html").read_text("utf-8")
    assert "left out MOV files (1, such as clip.mov)" in page and "it is an empty file" in page


def test_poses_of_names_with_spaces_have_eight_columns(tmp_path):
    pytest.importorskip("pycolmap")
    names = ["queries/my photo 1.jpg", "a.jpg", "caf\udce9\n.jpg", "50%.jpg"]
    pose = np.eye(3, 4)
    write_results(tmp_path / "poses.txt", [Localised(name=name, success=True, cam_from_world=pose) for name in names])
    lines = [line.split() for line in (tmp_path / "poses.txt").read_text("utf-8").splitlines()]
    assert [len(columns) for columns in lines] == [8] * 4
    assert [columns[0] for columns in lines] == ["queries/my%20photo%201.jpg", "a.jpg", "caf%E9%0A.jpg", "50%.jpg"]
    assert column_of("a.jpg") == "a.jpg"


LISTED = """my photo 1.png my photo 2.png
"my photo 1.png" "#3/10²000000.png"
"my photo 2.png" gone.png
gone.png "my photo 1.png"
my photo 1.png and something
"my photo 1.png" "no photo.png"
"""


@pytest.mark.parametrize("command", ["match", "match-many", "pairs", "map"])
def test_what_a_list_of_pairs_names_in_vain_shows_in_every_command(tmp_path, photos, isinglass, command):
    """A photo that cannot be read, one that is not there and a line of neither are problems; one excluded is not."""
    for package in {"map": ("h5py", "pycolmap", "faiss"), "match-many": ("h5py",)}.get(command, ()):
        pytest.importorskip(package)
    (photos / "no photo.png").write_text("no photo")
    listed = tmp_path / "pairs.txt"
    listed.write_text(LISTED, "utf-8")
    arguments = {
        "match": ("--pairs", listed, "--root", photos, "-o", tmp_path / "o", *NO_PICTURE),
        "match-many": (photos, listed, "-o", tmp_path / "m.h5", *FLAGS),
        "pairs": (photos, "--pairs-file", listed, "-o", tmp_path / "out.txt"),
        "map": (photos, "--pairs-file", listed, "-o", tmp_path / "map", *FLAGS),
    }[command]
    code, out, err = isinglass(command, *arguments, "--exclude", "#3", "--json")
    assert code == 1 and "Traceback" not in err
    if command == "match":  # a pair whose photo is not there is a pair that failed
        reports, told = results(out)
        errors = {Path(report["image1"]).name: report["error"] for report in reports}
        assert errors["my photo 2.png"] is None
        assert "there is no file" in errors["gone.png"] and "is a text file" in errors["no photo.png"]
    else:
        told = json.loads(out)
        assert err.count("gone.png: line 3 of ") == 1 and "and in 1 more names it" in told["problems"]["gone.png"]
        if command != "pairs":  # which opens no photo
            assert "is a text file" in told["problems"]["no photo.png"]
    excluded = "pairs of photos that --exclude or --image-list leaves out"
    assert kinds(told)[excluded] == 1
    (line,) = [name for name in told["problems"] if name.startswith("line 5 of ")]
    assert "my photo 1.png and something" in told["problems"][line] and err.count(line) == 1
    (tmp_path / "pairs.txt").write_text('"my photo 1.png" "my photo 2.png"\n"my photo 1.png" "#3/10²000000.png"\n')
    (photos / "no photo.png").unlink()
    code, out, err = isinglass(command, *arguments, "--exclude", "#3", "--json")
    told = results(out)[1] if command == "match" else json.loads(out)
    assert told["problems"] == {} and kinds(told)[excluded] == 1
    assert code == (1 if command == "map" else 0)  # two drawings are no scene


def test_lists_that_no_photo_could_mend_end_a_command_before_work(tmp_path, photos, isinglass):
    pytest.importorskip("h5py")
    for content, why in ((b"", "is empty"), (b"a.jpg,b.jpg\n", "by commas"), ("a b".encode("utf-16"), "UTF-16")):
        (tmp_path / "list.txt").write_bytes(content)
        for command in (
            ("match", "--pairs", tmp_path / "list.txt", "--root", photos, "-o", tmp_path / "out", *NO_PICTURE),
            ("match-many", photos, tmp_path / "list.txt", "-o", tmp_path / "out/m.h5", *FLAGS),
            ("pairs", photos, "--pairs-file", tmp_path / "list.txt", "-o", tmp_path / "out/p.txt", *FLAGS),
            ("map", photos, "--pairs-file", tmp_path / "list.txt", "-o", tmp_path / "out", *FLAGS),
        ):
            code, _, err = isinglass(*command)
            assert code == 2 and why in err, (command, err)
        assert not (tmp_path / "out").exists()
    (tmp_path / "list.txt").write_text("")
    code, _, err = isinglass("extract", photos, "--image-list", tmp_path / "list.txt", "-o", tmp_path / "out", *EXTRACT)
    assert code == 2 and "list.txt' is empty" in err


def test_one_photo_makes_no_pair(tmp_path, photos, isinglass):
    code, _, err = isinglass("match", photos / "#3", "-o", tmp_path / "out", *NO_PICTURE)
    assert code == 2 and "there is one image in or below" in err


def test_match_many_takes_absolute_paths_as_match_does(tmp_path, photos, isinglass):
    pytest.importorskip("h5py")
    names = [photos / "my photo 1.png", photos / "#3/10²000000.png"]
    (tmp_path / "pairs.txt").write_text(" ".join(f'"{name}"' for name in names) + "\n")
    code, out, err = isinglass("match-many", photos, tmp_path / "pairs.txt", "-o", tmp_path / "m.h5", *FLAGS, "--json")
    assert code == 0 and json.loads(out)["made"] == 1, err
