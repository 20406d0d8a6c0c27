"""Recipes: a recipe is a function that says what to train, on features of which extractor and on what kind of data.

Full size is the papers': 9 layers of width 256. "small" has about a seventh of the arithmetic, and learns on two CPU
cores in hours. LightGlue's 9 layers and SuperGlue's 18 are as many self- and cross-attentions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.matchers.superglue import SuperGlueConfig
from isinglass.train.catalog import EXTRACTORS, RECIPE_NAMES, Kind, Stage, recipe_name
from isinglass.train.config import TrainConfig
from isinglass.train.views import ViewConfig

DESCRIPTOR_SIZE = {"rootsift": 128, "aliked-n16": 128, "disk": 128, "superpoint-open": 256}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Extract `max_keypoints` per view and train on the best `used_keypoints` (None = all).

    Where features are kept, they are of `views_a_photo` views of each photo. `detectors`: other extractors whose
    keypoints are learnt from, too, with the descriptors of `extractor` (homographies only).
    """

    config: TrainConfig
    extractor: str
    stage: Stage
    max_keypoints: int = 512
    used_keypoints: int | None = None
    views_a_photo: int = 12
    detectors: tuple[str, ...] = ()
    views: ViewConfig = field(default_factory=ViewConfig)


def full_size(kind: Kind, features: str, stage: Stage) -> Recipe:
    """The papers' models and schedule, for one GPU: AdamW at 1e-4, 5 million pairs of homographies, then posed ones."""
    extractor = EXTRACTORS[features]
    if kind == "lightglue":
        model = LightGlueConfig(input_size=DESCRIPTOR_SIZE[extractor], scale_orientation=features == "sift")
    else:
        model = SuperGlueConfig(input_size=DESCRIPTOR_SIZE[extractor], sinkhorn_iterations=50)
    config = TrainConfig(name=f"{kind}-{features}-{stage}", model=model, steps=80_000, batch_size=64)
    if stage == "posed":
        config = replace(config, steps=50_000, batch_size=32)
    if stage == "confidence":
        config = replace(config, learn="confidence", steps=2_000, learning_rate=1e-3, decay_from=0.0)
    return Recipe(config=config, extractor=extractor, stage=stage, max_keypoints=1024 if stage == "posed" else 512)


def small(kind: Kind, features: str, stage: Stage) -> Recipe:
    """The same with 6 layers of width 96, for two CPU cores: fewer keypoints, fewer pairs, a higher learning rate."""
    whole = full_size(kind, features, stage)
    if isinstance(whole.config.model, LightGlueConfig):
        model = replace(whole.config.model, width=96, layers=6, heads=2)
    else:
        encoder = (16, 32, 64)
        model = replace(
            whole.config.model, width=96, layers=12, heads=2, encoder_widths=encoder, sinkhorn_iterations=20
        )
    config = replace(whole.config, name=f"{whole.config.name}-small", model=model)
    often = {"warmup_steps": 300, "validate_every": 250, "validation_pairs": 96, "save_every": 125, "log_every": 25}
    if stage == "homography":
        config = replace(config, steps=4000, batch_size=16, learning_rate=5e-4, decay_from=0.4, **often)
        return replace(whole, config=config, max_keypoints=512, used_keypoints=256, views_a_photo=6)
    if stage == "posed":
        config = replace(config, steps=1000, batch_size=8, learning_rate=2e-4, decay_from=0.2, **often)
    else:
        config = replace(config, steps=150, batch_size=16, learning_rate=2e-3, **{**often, "warmup_steps": 20})
    return replace(whole, config=config, max_keypoints=512, views_a_photo=6)


RECIPES: dict[str, Callable[[], Recipe]] = {
    text: functools.partial(small if name.small else full_size, name.kind, name.features, name.stage)
    for text, name in RECIPE_NAMES.items()
}


def recipe(name: str) -> Recipe:
    """Return the recipe of a name, such as "lightglue-sift-homography-small". Raises InputError where there is none."""
    recipe_name(name)
    return RECIPES[name]()
