"""From a recipe and a person's data to a run: what `isinglass train` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from isinglass.datasets.layout import PathLike
from isinglass.errors import InputError
from isinglass.models import best_device, load_extractor
from isinglass.options import Options
from isinglass.train.colmap import ColmapPairs
from isinglass.train.loop import Trainer, make_fabric
from isinglass.train.posed import PosedPairs, StoredFeatures, load_rgbd
from isinglass.train.recipes import Recipe
from isinglass.train.scenes import SceneConfig, ScenePairs, Scenes, scene_views
from isinglass.train.sources import HomographyPairs, MixedPairs, PairSource
from isinglass.train.store import DrawnViews, StoredViews, Views
from isinglass.train.views import Photos
from isinglass.types import Extractor

Tell = Callable[[int, int], None]
SCENES = 400  # that are drawn where features of their views are kept


@dataclass(frozen=True, kw_only=True)
class Data:
    """What there is to learn from. Raises InputError where there is nothing, or a model without its photos.

    images  folder of photos: random views of them, or of rooms that are papered with them, and those of `colmap`
    rgbd    folder of frames with depth and poses, see `load_rgbd`
    colmap  folder of a COLMAP model of the photos
    """

    images: PathLike | None = None
    rgbd: PathLike | None = None
    colmap: PathLike | None = None

    def __post_init__(self) -> None:
        if self.images is None and (self.rgbd is None or self.colmap is not None):
            raise InputError("images is missing; expected a folder of photos, or of a posed recipe rgbd alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Sources of pairs: `validation` has other images. `problems`: what could not be used, and why."""

    source: PairSource
    validation: PairSource
    problems: dict[str, str]


def pairs_of(
    recipe: Recipe, data: Data, store: PathLike, *, device: str | None = None, tell: Tell = lambda done, of: None
) -> Pairs:
    """All that the recipe's stage makes of the data. Features are kept in `store`; on a GPU only those of files.

    Homography and confidence recipes learn from random views of photos; posed ones from rooms, frames and models, each
    of them in every third batch where there are three. `tell(done, all)` now and then while features are made.
    Raises InputError where the data are not for the recipe or none can be used.
    """
    place = torch.device(device or best_device())
    wanted = Options(extractor=recipe.extractor, max_keypoints=recipe.max_keypoints, min_distance=0)
    extractor = load_extractor(wanted, place)
    if recipe.stage != "posed":
        if data.images is None or data.rgbd is not None or data.colmap is not None:
            raise InputError(f"{recipe.config.name} learns from photos alone; rgbd and colmap are for posed recipes")
        views = photo_views(recipe, data.images, Path(store) / "views", extractor, place, tell)
        source = HomographyPairs(views, max_keypoints=recipe.used_keypoints)
        return Pairs(source=source, validation=HomographyPairs(views, held_out=True), problems=views.problems)
    kinds = list(_posed(recipe, data, Path(store), extractor, place, tell))
    problems = {name: text for _, _, found in kinds for name, text in found.items()}
    source, validation = MixedPairs([kind[0] for kind in kinds]), MixedPairs([kind[1] for kind in kinds])
    return Pairs(source=source, validation=validation, problems=problems)


def start(recipe: Recipe, pairs: Pairs, folder: PathLike, *, trained_on: str, device: str | None = None) -> Trainer:
    """The run in its folder, at its beginning or where it was."""
    fabric = make_fabric(recipe.config, accelerator=device or best_device())
    return Trainer(recipe.config, pairs.source, pairs.validation, folder, trained_on=trained_on, fabric=fabric)


def photo_views(
    recipe: Recipe, images: PathLike, store: PathLike, extractor: Extractor, device: torch.device, tell: Tell
) -> Views:
    """Features of random views of photos: kept in `store` on a CPU, drawn each time on a GPU."""
    photos, most = Photos(images, recipe.views), recipe.max_keypoints
    if device.type == "cuda":
        return DrawnViews(photos, extractor, max_keypoints=most, device=device)
    stored = StoredViews(store, photos, extractor, per_photo=recipe.views_a_photo, max_keypoints=most)
    stored.fill(tell)
    return stored


def _posed(
    recipe: Recipe, data: Data, store: Path, extractor: Extractor, device: torch.device, tell: Tell
) -> Iterator[tuple[PairSource, PairSource, dict[str, str]]]:
    """Of each kind of data its source, that of validation, and problems."""
    most, used = recipe.max_keypoints, recipe.used_keypoints
    features = StoredFeatures(store / "images", extractor, max_keypoints=used or most, device=device)
    if data.rgbd is not None:
        images = load_rgbd(data.rgbd)
        learnt, kept = (PosedPairs(images, features, held_out=held_out, tell=tell) for held_out in (False, True))
        yield learnt, kept, learnt.problems | kept.problems
    if data.images is None:
        return
    if data.colmap is not None:
        learnt, kept = (
            ColmapPairs(data.colmap, data.images, features, held_out=one, tell=tell) for one in (False, True)
        )
        yield learnt, kept, learnt.problems | kept.problems
        return
    scenes = Scenes(Photos(data.images, recipe.views), SceneConfig(count=SCENES, size=recipe.views.size))
    folder = None if device.type == "cuda" else store / "scenes"
    many = {"per_scene": recipe.views_a_photo, "max_keypoints": most}
    views = scene_views(scenes, extractor, folder=folder, device=device, **many)
    if isinstance(views, StoredViews):
        views.fill(tell)
    yield (
        ScenePairs(views, scenes, max_keypoints=used),
        ScenePairs(views, scenes, held_out=True),
        views.problems,
    )
