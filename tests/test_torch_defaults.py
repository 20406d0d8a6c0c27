"""What the caller has set in torch, default dtype, device and modes, changes nothing in what is found."""

import contextlib

import pytest
import torch

from isinglass.pipeline import Pipeline
from support import HOMOGRAPHY, warp

CASES = [
    {"extractor": "rootsift", "rotation": "auto", "tile": 128},
    {"extractor": "rootsift", "matcher": "superglue"},
    pytest.param({"extractor": "aliked"}, marks=pytest.mark.weights),
    pytest.param({"extractor": "disk"}, marks=pytest.mark.weights),
    pytest.param({"extractor": "xfeat", "matcher": "nearest"}, marks=pytest.mark.weights),
]
SMALL = {"max_keypoints": 80, "resize": 200, "device": "cpu"}


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_results_are_the_same(motorcycle, options):
    photos = motorcycle[0], warp(motorcycle[0], HOMOGRAPHY)
    loaded = Pipeline(**options, **SMALL)
    expected = loaded.match(*photos)
    settings = {
        **{str(dtype): default_dtype(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)},
        "gradients": torch.enable_grad(),
        "inference": torch.inference_mode(),
        "deterministic": deterministic(),
    }
    for name, setting in settings.items():
        with setting:
            results = [Pipeline(**options, **SMALL).match(*photos), loaded.match(*photos)]
        for found in results:
            for part in ("points0", "points1", "scores"):
                here, there = getattr(found, part), getattr(expected, part)
                assert here.dtype == there.dtype and torch.equal(here, there), (name, part)
            if expected.probabilities is not None:
                assert torch.equal(found.probabilities, expected.probabilities)


def test_a_default_device_is_not_taken_for_the_pipeline_s(motorcycle):
    torch.set_default_device("meta")
    try:
        result = Pipeline(extractor="rootsift", **SMALL).match(motorcycle[0], motorcycle[1])
    finally:
        torch.set_default_device(None)
    assert result.points0.device.type == "cpu" and len(result.points0)
