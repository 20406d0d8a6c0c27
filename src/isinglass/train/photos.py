"""From a folder of photos and a recipe to a run: what `isinglass train` does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from isinglass.datasets.layout import PathLike
from isinglass.errors import InputError
from isinglass.extractors.sift import SIFT, SIFTConfig
from isinglass.models import EXTRACTORS, HANDMADE, best_device
from isinglass.train.loop import Trainer, make_fabric
from isinglass.train.recipes import Recipe
from isinglass.train.sources import HomographyPairs
from isinglass.train.store import DrawnViews, StoredViews, Views
from isinglass.train.views import Photos
from isinglass.types import Extractor
from isinglass.weights import record

Tell = Callable[[int, int], None]


def views_of(
    recipe: Recipe, images: PathLike, store: PathLike, *, device: str | None = None, tell: Tell = lambda done, of: None
) -> Views:
    """Features of random views of the photos, made and kept in `store` on a CPU, drawn each time on a GPU.

    Raises InputError where no photo can be used.
    """
    place = torch.device(device or best_device())
    photos, extractor = Photos(images, recipe.views), make_extractor(recipe.extractor, recipe.max_keypoints, place)
    if place.type == "cuda":
        return DrawnViews(photos, extractor, max_keypoints=recipe.max_keypoints, device=place)
    stored = StoredViews(store, photos, extractor, per_photo=recipe.views_a_photo, max_keypoints=recipe.max_keypoints)
    stored.fill(tell)
    return stored


def make_extractor(name: str, max_keypoints: int, device: torch.device) -> Extractor:
    """By its full name ("rootsift", "aliked-n16")."""
    if name in HANDMADE:
        return SIFT(SIFTConfig(rootsift=name == "rootsift", max_keypoints=max_keypoints))
    return EXTRACTORS[record(name).model].pretrained(name, device=device, max_keypoints=max_keypoints)


def trainer_on(
    recipe: Recipe, views: Views, folder: PathLike, *, trained_on: str, device: str | None = None
) -> Trainer:
    """A run on homographies of photos, of which every twentieth is kept for validation."""
    if recipe.stage == "posed":
        raise InputError(f"{recipe.config.name} learns from posed images; photos alone are for a homography recipe")
    source = HomographyPairs(views, max_keypoints=recipe.used_keypoints)
    validation = HomographyPairs(views, held_out=True)
    fabric = make_fabric(recipe.config, accelerator=device or best_device())
    return Trainer(recipe.config, source, validation, folder, trained_on=trained_on, fabric=fabric)
