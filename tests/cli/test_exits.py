"""Exit codes: one table for all commands. What cannot be carried out is said at once, before torch is imported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from PIL import Image

import isinglass.__main__ as program
import isinglass.cli as command_line
from isinglass.cli.exits import EXIT_CODES, FAULT, NOT_AVAILABLE, NOT_WRITTEN, WRONG_USAGE, exit_code, run
from isinglass.errors import ChecksumError, InputError, LicenceError, MissingExtra, TrainingError, WriteError

ROOT = Path(__file__).resolve().parents[2]
WORDS = {  # command: what it takes; "{a}" and "{b}" are images, "{folder}" is a folder of both, "{run}" a JSON file
    "match": ["{a}", "{b}"],
    "extract": ["{a}"],
    "doctor": ["{a}", "{b}"],
    "inspect": ["{a}", "{b}"],
    "eval": ["hpatches", "{folder}"],
    "tune": ["hpatches", "{folder}"],
    "compare": ["{run}", "{run}"],
    "report": ["{run}"],
    "calibrate": ["{run}"],
    "map": ["{folder}"],
    "localize": ["{folder}", "{a}", "--photos", "{folder}"],
    "pairs": ["{folder}"],
    "match-many": ["{folder}", "all"],
    "export colmap": ["{folder}", "-o", "{folder}/out"],
    "export hloc": ["{folder}", "-o", "{folder}/out"],
    "export pairs": ["{folder}", "-o", "{folder}/out.txt"],
    "track": ["{folder}"],
    "view": ["{folder}"],
    "live": ["{a}"],
}
WITHOUT_PATHS = {"models", "app", "recipes"}  # and train, whose checks are its own
BAD_OPTIONS = {  # command: options with values that cannot be
    "match": [
        ["--max-keypoints", "-1"],
        ["--ratio", "nan"],
        ["--ratio", "0.8"],
        ["--min-distance", "inf"],
        ["--filter-threshold", "5"],
        ["--device", "gpu"],
        ["--device", "cuda:x"],
        ["--extractor", "alikd"],
        ["--extractor", "lightglue-aliked"],
        ["--matcher", "lightgleu"],
        ["--matcher", "lightglue-sift"],
        ["--extractor", "disk+"],
        ["--tile", "64", "--tile-overlap", "64"],
        ["--matcher", "nearest", "--filter-threshold", "0.5"],
        ["--mask0", "{absent}"],
        ["--root", "{absent}"],
        ["-o", "{a}"],
        ["--format", "xml"],
    ],
    "extract": [["--resize", "0"], ["--extractor", "rotsift"], ["-o", "{a}"]],
    "eval": [["--threshold", "-1"], ["--training", "{absent}"], ["--limit", "0"]],
    "map": [
        ["--camera-model", "OPENCV_FISHY"],
        ["--camera-params", "1,2"],
        ["--camera-params", "a,b"],
        ["--camera-model", "PINHOLE", "--camera-params", "nan,525,319.5,239.5"],
        ["--camera-model", "PINHOLE", "--camera-params", "0,525,319.5,239.5"],
        ["--camera-size", "640"],
        ["--camera-size", "640x480"],
        ["--masks", "{absent}"],
        ["--pairs-file", "{absent}"],
        ["--pairs-model", "{absent}"],
        ["--pairs", "file"],
        ["--pairs", "covisible"],
        ["--max-distance-m", "nan"],
        ["--rotation", "auto"],
        ["--ray", "local", "--workers", "2"],
        ["--extractor", "alikd"],
        ["-o", "{a}"],
    ],
    "localize": [
        ["--camera", "PINHOLE"],
        ["--camera", "LENS", "--camera-params", "1,2,3"],
        ["--camera", "PINHOLE", "--camera-params", "1,2,3"],
        ["--threshold-px", "nan"],
    ],
    "pairs": [["--pairs", "near"], ["--words", "0"], ["--pairs-file", "{absent}"]],
    "match-many": [["--rotation", "auto"], ["--masks", "{absent}"], ["--ratio", "2"]],
    "track": [["--every", "0"], ["--least-share", "nan"]],
    "view": [["--port", "70000"]],
    "app": [["--port", "x"], ["--device", "gpu"]],
    "live": [["--reference", "{absent}"]],
    "inspect": [["--attention", "256"], ["--mask1", "{absent}"]],
    "tune": [["--budget", "nan"]],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    photos = folder / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (60, 40)).save(photos / f"{name}.png")
    (folder / "run.json").write_text("{}")
    names = {"a": photos / "a.png", "b": photos / "b.png", "folder": photos, "run": folder / "run.json"}
    return {**{name: str(path) for name, path in names.items()}, "absent": str(folder / "absent")}


def cases():
    for command, words in WORDS.items():
        for i, word in enumerate(words):
            if word in ("{a}", "{b}", "{folder}", "{run}"):
                yield [*command.split(), *words[:i], "{absent}", *words[i + 1 :]]
        yield [*command.split(), *words, "--no-such-option"]
    for command, options in BAD_OPTIONS.items():
        for option in options:
            yield [*command.split(), *WORDS.get(command, []), *option]
    yield ["match-many", "{folder}", "{absent}"]
    yield ["match", "{a}"]
    yield ["match", "--pairs", "{absent}"]
    yield ["localize", "{folder}", "{a}"]  # no map
    yield ["matsch"]


CASES = list(cases())


@pytest.fixture(scope="module")
def answers(places):
    """What one process says to all cases, in which torch stays out of the way only if none imports it."""
    lines = "\n".join(json.dumps([word.format(**places) for word in case]) for case in CASES)
    command = [sys.executable, str(Path(__file__).parents[1] / "cli_cases.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, env=environment)
    return dict(zip(map(str, CASES), map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_what_cannot_be_carried_out_is_one_line_and_code_2(answers, case):
    code, errors, torch_there = answers[str(case)]
    assert code == WRONG_USAGE, errors
    assert errors.startswith("isinglass: ") and errors.count("\n") == 1
    assert "Traceback" not in errors
    assert not torch_there


def test_every_command_is_tried():
    def names(group, prefix=""):
        for name, command in group.commands.items():
            yield from names(command, f"{name} ") if isinstance(command, click.Group) else [prefix + name]

    assert set(names(command_line.cli)) == {*WORDS, *WITHOUT_PATHS, "train"}


def test_a_missing_file_is_told_at_once(tmp_path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "isinglass", "match", "nofile.jpg", "b.jpg"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 2 and "nofile.jpg" in done.stderr
    assert min(seconds) < 0.5


def test_the_licence_is_asked_for_before_anything_else(places, isinglass, monkeypatch, tmp_path):
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path))
    monkeypatch.delenv("ISINGLASS_ACCEPT_LICENCES", raising=False)
    code, _, errors = isinglass("match", places["a"], places["b"], "--extractor", "superpoint", "-o", tmp_path / "out")
    assert code == NOT_AVAILABLE and "--accept-licence" in errors and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("pycolmap", ["map", "{folder}"]),
        ("h5py", ["map", "{folder}"]),
        ("faiss", ["map", "{folder}"]),
        ("ray", ["map", "{folder}", "--ray", "local"]),
        ("h5py", ["match", "{a}", "{b}", "--format", "h5"]),
        ("matplotlib", ["match", "{a}", "{b}"]),
        ("cv2", ["match", "{a}", "{b}", "--extractor", "sift"]),
        ("cv2", ["extract", "{a}", "--extractor", "disk+rootsift"]),
        ("h5py", ["match-many", "{folder}", "all"]),
        ("viser", ["view", "{folder}"]),
        ("fastapi", ["app"]),
    ],
)
def test_a_package_that_the_end_needs_is_asked_for_first(places, isinglass, monkeypatch, tmp_path, package, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, errors = isinglass(*(word.format(**places) for word in command))
    assert code == NOT_AVAILABLE
    assert "pip install 'isinglass[" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_first(places, isinglass):
    code, _, errors = isinglass("match", places["a"], places["b"], "-o", f"{places['a']}/out")
    assert code == NOT_WRITTEN and "is a file" in errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (WriteError("x"), 4),
        (ChecksumError("x"), 3),
        (LicenceError("x"), 3),
        (MissingExtra("h5py", "hdf5"), 3),
        (TrainingError("x"), 4),
        (OSError(28, "No space left on device"), 4),
        (ValueError("x"), FAULT),
    ],
)
def test_each_exception_has_a_code(error, code):
    assert exit_code(error) == code and code in EXIT_CODES


def fails(error):
    def command():
        raise error

    return command


def test_a_fault_is_one_line_and_a_traceback_only_if_asked_for(capsys, monkeypatch):
    assert run(fails(KeyError("lost\nline"))) == FAULT
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "KeyError" in errors and "please report it" in errors
    monkeypatch.setenv("ISINGLASS_DEBUG", "1")
    assert run(fails(KeyError("lost"))) == FAULT
    assert "Traceback" in capsys.readouterr().err


def test_little_memory_is_no_fault(capsys):
    assert run(fails(MemoryError())) == NOT_WRITTEN
    assert "--memory-mb" in capsys.readouterr().err


def test_an_interrupt_has_its_own_code(capsys):
    assert run(fails(KeyboardInterrupt())) == 128 + signal.SIGINT
    assert "goes on from there" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of POSIX")
def test_a_reader_that_has_enough_is_no_fault():
    command = f"{sys.executable} -m isinglass models | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 where all was written before the pipe was closed
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m isinglass models >&-"], capture_output=True, check=True
    )
    assert closed.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "isinglass", "models"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == NOT_WRITTEN and done.stderr.count(b"\n") == 1


def test_the_table_is_the_one_of_the_help_and_of_the_docs(isinglass):
    _, shown, _ = isinglass("--help")
    documented = (ROOT / "docs/conventions.md").read_text("utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"{code:<5}{meaning}" in shown
        assert f"| {code} | {meaning} |" in documented


def test_every_option_is_explained_by_a_sentence():
    def options(group):
        for command in group.commands.values():
            if isinstance(command, click.Group):
                yield from options(command)
            elif command.name not in ("train", "models"):  # which have their own words
                yield from ((command.name, option) for option in command.params if isinstance(option, click.Option))

    for command, option in options(command_line.cli):
        assert option.help, (command, option.name)
        assert not option.help.startswith(("Of ", "As ", "Or ", "Likewise", "An image.")), (command, option.name)


def test_an_interruption_while_the_commands_are_imported_has_its_code(monkeypatch):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "isinglass.cli", Interrupted())
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 130
