"""Configs given by a caller: whatever number makes no sense is refused in words, before anything is built."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from isinglass.errors import InputError
from isinglass.extractors.aliked import ALIKEDConfig
from isinglass.extractors.disk import DISKConfig
from isinglass.extractors.sift import SIFTConfig
from isinglass.extractors.superpoint import SuperPointConfig
from isinglass.extractors.xfeat import XFeatConfig
from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.matchers.nearest import NearestConfig
from isinglass.matchers.superglue import SuperGlueConfig

CONFIGS = [
    LightGlueConfig, SuperGlueConfig, NearestConfig, ALIKEDConfig, DISKConfig, SIFTConfig, SuperPointConfig, XFeatConfig
]  # fmt: skip
LONG = pytest.param(10**5000, id="long")  # Python writes no text of it
NUMBERS = [
    (config, field.name)
    for config in CONFIGS
    for field in fields(config)
    if any(kind in str(field.type) for kind in ("int", "float"))
]


@pytest.mark.parametrize(("config", "name"), NUMBERS)
@pytest.mark.parametrize("value", [True, math.nan, math.inf, -math.inf, -(10**12), 10**12, "2", LONG])
def test_numbers_that_make_no_sense_are_refused_by_name(config, name, value):
    with pytest.raises(InputError, match=name):
        config(**{name: (value,) if name == "encoder_widths" else value})


@pytest.mark.parametrize("config", [LightGlueConfig, SuperGlueConfig])
@pytest.mark.parametrize(("name", "value"), [("heads", 0), ("heads", 3), ("heads", 4.0), ("width", 0), ("layers", 0)])
def test_heads_layers_and_widths(config, name, value):
    with pytest.raises(InputError, match=name):
        config(**{name: value})


def test_what_makes_sense_is_taken():
    assert LightGlueConfig(depth_confidence=None, width_confidence=1, filter_threshold=0).filter_threshold == 0
    assert SuperGlueConfig(encoder_widths=(), input_size=None).encoder_widths == ()
    assert ALIKEDConfig(max_keypoints=None, nms_radius=0).max_keypoints is None
    for config in CONFIGS:
        config()
