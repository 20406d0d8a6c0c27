"""Options are checked by their values, whoever gives them, before anything is loaded."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import isinglass
from isinglass.errors import InputError
from isinglass.options import Options
from isinglass.pipeline import Pipeline

REFUSED = {
    "max_keypoints": [-1, True, 400.0, "400", math.nan, [400]],
    "resize": [0, True, False, 640.0, "big", (640, 480)],
    "tile": [10, True],
    "tile_overlap": [-1, None, True, 64.0],
    "memory_mb": [0, True, math.inf],
    "min_distance": [-1, math.nan, math.inf, None, True, "1"],
    "filter_threshold": [5, -0.1, math.nan, True, "0.1"],
    "ratio": [0, 1.01, math.nan, True],
    "adaptive": [None, 1, "yes"],
    "accept_licence": [1],
    "rotation": ["AUTO", None, ["auto"]],
    "precision": ["float64", None, torch.float32],
    "extractor": [None, "", 5],
    "matcher": [None, ""],
    "device": [
        "gpu",
        "CUDA",
        "xpu",
        "meta",
        "vulkan",
        "",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cpu:1",
        0,
        torch.device("meta"),
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name} is .*; expected"):
        Options.of(**{name: value})


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("max_keypoints", np.int64(400), 400),
        ("resize", np.int32(640), 640),
        ("tile_overlap", np.uint8(10), 10),
        ("min_distance", np.float32(0.5), 0.5),
        ("filter_threshold", np.float64(0.2), 0.2),
        ("ratio", 1, 1),
        ("adaptive", np.bool_(False), False),
        ("device", torch.device("cpu"), "cpu"),
        ("device", torch.device("cuda", 1), "cuda:1"),
        ("device", "mps:0", "mps"),
        ("max_keypoints", None, None),
    ],
)
def test_numbers_of_numpy_and_devices_of_torch_are_kept_as_plain_ones(name, given, kept):
    options = Options.of(**{name: given})
    found = getattr(options, name)
    assert found == kept and type(found) is type(kept)
    assert options == Options.of(**{name: kept}) and hash(options) == hash(Options.of(**{name: kept}))


def test_an_unknown_option_is_guessed():
    with pytest.raises(InputError, match="Did you mean max_keypoints"):
        Options.of(max_kpts=100)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps", "gpu", torch.device("cuda")])
@pytest.mark.parametrize(
    "load", [Pipeline, isinglass.match, isinglass.LightGlue.pretrained, isinglass.ALIKED.pretrained]
)
def test_a_device_that_is_not_here_is_refused_before_weights_are_read(device, load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("isinglass.weights.checkpoint.read_checkpoint", None)
    images = (np.zeros((8, 8), np.uint8),) * 2 if load is isinglass.match else ()
    with pytest.raises(InputError, match=r"[Tt]his machine has: 'cpu'"):
        load(*images, device=device)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="has: 'cuda:0', 'cuda:1', 'cpu'"):
        Pipeline(device="cuda:2")


@pytest.mark.parametrize("device", ["cuda", "mps", "gpu", "cuda:7"])
def test_the_command_line_names_the_devices_without_a_traceback(device, tmp_path):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("the device may be here")
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (40, 30)).save(image)
    command = [sys.executable, "-m", "isinglass", "match", image, image, "-o", tmp_path / "out", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert device in done.stderr and "cpu" in done.stderr and "Traceback" not in done.stderr


def test_float16_on_a_cpu_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr("isinglass.weights.checkpoint.read_checkpoint", None)
    with pytest.raises(InputError, match="float16"):
        Pipeline(precision="float16", device="cpu", matcher="nearest")


BFLOAT16 = """
import warnings
from isinglass.kernels.linear import SLOW, bfloat16_ratio, compute_dtype
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        compute_dtype("bfloat16", torch.device("cpu"))
print([str(one.message) for one in seen], bfloat16_ratio())
assert len(seen) == (bfloat16_ratio() > SLOW)
"""


@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_bfloat16_is_warned_of_once_with_a_measured_figure_where_it_is_slow(isa):
    import os

    env = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": "avx2"} if isa else {})}
    done = subprocess.run([sys.executable, "-c", BFLOAT16], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    if isa:  # without units for it, as emulated here
        assert "times as long as float32" in done.stdout
