"""`isinglass train`: cheap checks before torch, the plan first, hours that include everything."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from isinglass.cli import cli
from isinglass.cli.exits import run as run_command
from isinglass.train.check import BEST, LAST, LOG
from isinglass.train.recipes import RECIPES
from support import write_photos

RECIPE = "lightglue-sift-homography-small"
pytestmark = pytest.mark.timeout(300)

CHECK = """
import sys
from isinglass.cli import cli
from isinglass.cli.exits import run
code = run(lambda: cli.main(sys.argv[1:], standalone_mode=False))
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


@pytest.fixture
def photos(tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("lightning_fabric")
    return write_photos(tmp_path / "photos", 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "lightglue-sift-homografy"], "did you mean lightglue-sift-homography"),
        (["--images", "{tmp}/absent"], "there is no folder"),
        (["--images", "{tmp}/empty"], "there is no image in or below"),
        (["--learning-rate", "nan"], "no finite number"),
        (["--hours", "inf"], "no finite number"),
        (["--steps", "-3"], "not in the range"),
        (["--device", "gpu"], "is no device"),
        (["--precision", "half"], "is not one of"),
        (["--start", "{tmp}/absent.safetensors"], "there is no file"),
        (["--start", "lightglue-orb"], "there is no matcher 'lightglue-orb'"),
        (["--start", "superglue-sift-small"], "are weights of SuperGlue; expected those of a LightGlue"),
        (["--detector", "orb"], "there is no extractor 'orb'"),
        (["--rgbd", "{tmp}/empty"], "learns from photos alone"),
        (["--recipe", "lightglue-sift-posed", "--rgbd", "{tmp}/empty"], "has no K.txt and no poses.txt"),
        (["--recipe", "lightglue-sift-posed", "--colmap", "{tmp}/empty"], "has no cameras and no images"),
        (["--recipe", "lightglue-sift-posed", "--detector", "disk"], "learns from posed images"),
        (["-o", "{tmp}/photos/0.png"], "is a file; expected a folder"),
        (["-o", "{tmp}/weights"], "has no training state"),
        (["-o", "{tmp}/torn"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_before_torch_is_imported(photos, tmp_path, options, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / LAST).write_bytes(b"half a file")
    weights = tmp_path / "weights"
    weights.mkdir()
    from safetensors.numpy import save_file

    save_file({}, weights / LAST)
    given = [one.replace("{tmp}", str(tmp_path)) for one in options]
    command = ["train", "--recipe", RECIPE, "--images", str(photos), "-o", str(tmp_path / "run"), *given]
    done = subprocess.run([sys.executable, "-c", CHECK, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_told_first(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "lightning_fabric" else 1)
    command = ["train", "--recipe", RECIPE, "--images", str(photos), "-o", str(tmp_path / "run")]
    assert run_command(lambda: cli.main(command, standalone_mode=False)) == 3


@pytest.fixture
def tiny(monkeypatch):
    """The recipe with a smaller network and smaller views."""
    made = RECIPES[RECIPE]()
    model = replace(made.config.model, width=32, heads=1, layers=2)
    config = replace(made.config, model=model, validation_pairs=4, batch_size=2)
    small = replace(made, config=config, used_keypoints=48, max_keypoints=48, views_a_photo=3)
    monkeypatch.setitem(RECIPES, RECIPE, lambda: replace(small, views=replace(small.views, size=(160, 120))))


def train(photos, output, *options):
    """Return the exit code and the lines on stderr."""
    command = ["train", "--recipe", RECIPE, "--images", str(photos), "-o", str(output), "--device", "cpu", *options]
    codes = []
    result = CliRunner().invoke(cli, command, standalone_mode=False)
    if result.exception is not None:
        error = result.exception
        codes.append(run_command(lambda: (_ for _ in ()).throw(error)))
        return codes[0], result.stderr.splitlines(), str(error)
    return result.return_value or 0, result.stderr.splitlines(), ""


def test_the_plan_comes_first_then_features_then_every_early_step(tiny, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no photo")
    code, lines, _ = train(photos, tmp_path / "run", "--steps", "6")
    text = "\n".join(lines)
    assert code == 1  # as one photo could not be used
    order = ["recipe ", "images     5 photos", "device     cpu, in float32", "output     ", "photos read: 5 of 5"]
    order += [
        "features of views: 12 of 12",
        "isinglass: left out",
        "step 1: loss",
        "step 2:",
        "step 3:",
        "step 5:",
        "done at step 6",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "broken.jpg" in text and "ends in" in text


def test_photos_are_chosen_as_everywhere(tiny, photos, tmp_path):
    (photos / "._0.png").write_bytes(b"of macOS")
    (photos / "raw.heif.dng").write_bytes(b"raw")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n3.png\n")
    options = ["--exclude", "3.*", "--image-list", str(tmp_path / "list.txt"), "--steps", "1"]
    code, lines, _ = train(photos, tmp_path / "run", *options)
    assert code == 0 and any("images     2 photos" in line for line in lines), lines
    code, lines, _ = train(photos, tmp_path / "other", "--steps", "1")
    assert code == 0 and any("left out" in line and "dng" in line for line in lines), lines


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
def test_the_precision_that_is_asked_for_is_that_of_the_run(tiny, photos, tmp_path, precision):
    from isinglass.train.check import about_run

    code, lines, _ = train(photos, tmp_path / "run", "--steps", "1", "--precision", precision)
    assert code == 0 and any(f"in {precision}: as asked for" in line for line in lines)
    assert about_run(tmp_path / "run" / LAST)["config"]["precision"] == precision


def test_hours_that_are_over_before_the_first_step_end_the_run_with_a_remedy(tiny, photos, tmp_path):
    code, lines, error = train(photos, tmp_path / "run", "--hours", "0.0000001")
    assert code == 4 and "the hours are over" in error and "same command again" in error
    assert any(line.startswith("recipe ") for line in lines)


def test_another_setting_is_refused_by_name_before_features_are_made(tiny, photos, tmp_path):
    assert train(photos, tmp_path / "run", "--steps", "1")[0] == 0
    before = (tmp_path / "run" / BEST).read_bytes()
    code, lines, error = train(photos, tmp_path / "run", "--steps", "2", "--learning-rate", "0.1")
    assert code == 2 and "learning_rate 0.0005 instead of 0.1" in error
    assert not any("features" in line for line in lines)
    (photos / "0.png").unlink()
    code, _, error = train(photos, tmp_path / "run", "--steps", "2")
    assert code == 2 and "1 missing photo (0.png)" in error
    assert (tmp_path / "run" / BEST).read_bytes() == before


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1200)
def test_the_documented_command_learns_on_a_cpu_without_bfloat16(shared, tmp_path):
    """49 photos, kernels of an AVX2 machine: float32, hours that are kept, a loss that falls.

    On a machine that is busy with other things it gets as much more time.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted((shared / "data/train/photos").iterdir())[::21][:49]:
        (folder / photo.name).symlink_to(photo)
    hours = 0.035 * min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 4.0)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "isinglass", "train", "--recipe", RECIPE, "--images", str(folder)]
    command += ["-o", str(tmp_path / "run"), "--hours", str(hours)]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 1.25 * 3600 * hours + 30  # with the start of Python and a batch under way
    assert "in float32: a step in bfloat16 takes" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    curve = [row["loss"] for row in rows if "loss" in row]
    assert len(curve) >= 3 and min(curve[1:]) < curve[0]
