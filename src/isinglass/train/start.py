"""From a recipe and a person's data to a run: what `isinglass train` does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from isinglass.datasets.layout import PathLike
from isinglass.errors import InputError
from isinglass.models import best_device, load_extractor
from isinglass.options import Options
from isinglass.train.colmap import ColmapPairs
from isinglass.train.loop import Trainer, make_fabric
from isinglass.train.megadepth import load_megadepth, megadepth_scenes
from isinglass.train.posed import PosedImages, PosedPairs, StoredFeatures, load_rgbd
from isinglass.train.recipes import Recipe
from isinglass.train.scenes import SceneConfig, ScenePairs, Scenes, scene_views
from isinglass.train.sources import HomographyPairs, MixedPairs, PairSource
from isinglass.train.store import DrawnViews, StoredViews, Views
from isinglass.train.views import Photos
from isinglass.types import Extractor

Tell = Callable[[int, int], None]
SCENES = 250  # that are drawn where features of their views are kept


@dataclass(frozen=True, kw_only=True)
class Data:
    """What there is to learn from. Raises InputError where there is nothing, or a model without its photos.

    images  folder of photos: random views of them, or of rooms that are papered with them, and those of `colmap`
    rgbd    folder of frames with depth and poses, see `load_rgbd`
    colmap  folder of a COLMAP model of the photos
    megadepth  folder of MegaDepth, with its scene_info
    """

    images: PathLike | None = None
    rgbd: PathLike | None = None
    colmap: PathLike | None = None
    megadepth: PathLike | None = None

    def __post_init__(self) -> None:
        alone = self.rgbd is not None or self.megadepth is not None
        if self.images is None and (self.colmap is not None or not alone):
            raise InputError(
                "images is missing; expected a folder of photos, or of a posed recipe rgbd or megadepth alone"
            )


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

    Homography recipes learn from random views of photos; posed ones from these, from rooms, frames and models, as many
    batches of each, so that what was learnt first is not forgotten; confidence recipes from the former where there are
    only photos, else from the latter. `tell(done, all)` now and then while features are made.
    Raises InputError where the data are not for the recipe or none can be used.
    """
    place = torch.device(device or best_device())
    wanted = Options(extractor=recipe.extractor, max_keypoints=recipe.max_keypoints, min_distance=0)
    photos = data.images if (data.rgbd, data.colmap, data.megadepth) == (None, None, None) else None
    if recipe.stage == "homography" and photos is None:
        raise InputError(
            f"{recipe.config.name} learns from photos alone; rgbd, colmap and megadepth are for other recipes"
        )
    if recipe.stage != "posed" and photos is not None:
        return _homographies(recipe, photos, Path(store), wanted, place, tell)
    if recipe.detectors:
        raise InputError(f"{recipe.config.name} learns from posed images; other detectors are for homographies")
    extractor = load_extractor(wanted, place)
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


def _posed_pairs(
    images: PosedImages, features: StoredFeatures, tell: Tell
) -> tuple[PosedPairs, PosedPairs, dict[str, str]]:
    learnt, kept = (PosedPairs(images, features, held_out=held_out, tell=tell) for held_out in (False, True))
    return learnt, kept, learnt.problems | kept.problems


def _homographies(
    recipe: Recipe, images: PathLike, store: Path, wanted: Options, device: torch.device, tell: Tell
) -> Pairs:
    """Of keypoints of the extractor, or of each of several detectors in turn."""
    learnt, kept, problems = [], [], {}
    for detector in (None, *recipe.detectors):
        name = recipe.extractor if detector is None else f"{detector}+{recipe.extractor}"
        folder = store / ("views" if detector is None else f"views-{detector}")
        extractor = load_extractor(replace(wanted, extractor=name), device)
        views = photo_views(recipe, images, folder, extractor, device, tell)
        learnt.append(HomographyPairs(views, max_keypoints=recipe.used_keypoints))
        kept.append(HomographyPairs(views, held_out=True))
        problems |= views.problems
    if not recipe.detectors:
        return Pairs(source=learnt[0], validation=kept[0], problems=problems)
    return Pairs(source=MixedPairs(learnt), validation=MixedPairs(kept), problems=problems)


def _posed(
    recipe: Recipe, data: Data, store: Path, extractor: Extractor, device: torch.device, tell: Tell
) -> Iterator[tuple[PairSource, PairSource, dict[str, str]]]:
    """Of each kind of data its source, that of validation, and problems."""
    most, used = recipe.max_keypoints, recipe.used_keypoints
    features = StoredFeatures(store / "images", extractor, max_keypoints=used or most, device=device)
    if data.rgbd is not None:
        yield _posed_pairs(load_rgbd(data.rgbd), features, tell)
    if data.megadepth is not None:
        scenes = megadepth_scenes(data.megadepth)
        learnt, kept, problems = zip(
            *(_posed_pairs(load_megadepth(one, data.megadepth), features, tell) for one in scenes), strict=True
        )
        yield MixedPairs(learnt), MixedPairs(kept), dict(itertools.chain.from_iterable(one.items() for one in problems))
    if data.images is None:
        return
    photos = photo_views(recipe, data.images, store / "views", extractor, device, tell)
    yield HomographyPairs(photos, max_keypoints=used), HomographyPairs(photos, held_out=True), photos.problems
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
    yield ScenePairs(views, scenes, max_keypoints=used), ScenePairs(views, scenes, held_out=True), views.problems
