"""From a recipe and a person's data to a run: what `isinglass train` does."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from isinglass.datasets.layout import PathLike
from isinglass.devices import find_device
from isinglass.errors import InputError
from isinglass.images.folder import list_photos
from isinglass.models import load_extractor
from isinglass.options import Options
from isinglass.train.check import Data
from isinglass.train.colmap import ColmapPairs
from isinglass.train.loop import Trainer, make_fabric, settled
from isinglass.train.megadepth import load_megadepth, megadepth_scenes
from isinglass.train.posed import PosedImages, PosedPairs, StoredFeatures, load_rgbd
from isinglass.train.precision import Choice
from isinglass.train.recipes import Recipe
from isinglass.train.scenes import SceneConfig, ScenePairs, Scenes, scene_views
from isinglass.train.sources import HomographyPairs, MixedPairs, PairSource
from isinglass.train.state import check_resumable
from isinglass.train.store import DrawnViews, StoredViews, Views
from isinglass.train.views import Photos
from isinglass.types import Extractor

Tell = Callable[[int, int], None]
TellPhase = Callable[[str, int, int], None]
When = tuple[TellPhase, float]  # whom to tell, and until when to make features
_log = logging.getLogger(__name__)
SCENES = 250  # that are drawn where features of their views are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a command is about to do. `recipe` has its precision chosen; `step` is where the run in the folder is."""

    recipe: Recipe
    data: Data
    folder: Path
    store: Path
    device: torch.device
    precision: Choice
    step: int
    hours: float | None = None

    @property
    def lines(self) -> list[str]:
        """The plan in words, for a person to read before work begins."""
        config = self.recipe.config
        from_where = f"goes on at step {self.step}" if self.step else "begins anew"
        hours = f"at most {self.hours:g} h for all of it; " if self.hours else ""
        return [
            f"recipe     {config.name} ({type(config.make_model()).__name__} on {self.recipe.extractor})",
            *(f"{name:<10} {self._counted(name, folder)}" for name, folder in self.data.folders.items()),
            f"features   {self._features_to_make}",
            f"steps      {config.steps} of {config.batch_size} pairs ({config.steps * config.batch_size} pairs); "
            f"validation every {config.validate_every}",
            f"device     {self.device.type}, in {self.precision.precision}: {self.precision.reason}",
            f"time       {hours}a run that is stopped goes on with the same command",
            f"output     {self.folder}, where the run {from_where}",
        ]

    def _counted(self, name: str, folder: Path) -> str:
        if name != "images":
            return str(folder)
        listing = list_photos(folder, self.data.selection)
        left_out = sum(kind.count for kind in listing.left_out) + len(listing.problems)
        return f"{len(listing.names)} photos in {folder}, {left_out} files left out"

    @property
    def _features_to_make(self) -> str:
        recipe, stored = self.recipe, f"kept in {self.store}"
        if self.device.type == "cuda":
            return "of views: drawn and extracted anew for each pair, on the GPU"
        parts = []
        if self.data.images is not None and self.data.colmap is None:
            parts.append(f"{recipe.views_a_photo} views of each photo")
        if self.data.images is not None and recipe.stage != "homography" and not self._from_views:
            parts.append(f"{recipe.views_a_photo * SCENES} views of rooms")
        if not self.data.only_photos:
            parts.append("all posed images")
        return f"of {', '.join(parts)}, {stored}"

    @property
    def _from_views(self) -> bool:
        return self.recipe.stage != "posed" and self.data.only_photos


def plan_of(
    recipe: Recipe,
    data: Data,
    folder: PathLike,
    *,
    store: PathLike | None = None,
    device: str | None = None,
    hours: float | None = None,
) -> Plan:
    """Return what a run will be, without reading a photo; measuring the precision takes a second or two.

    Raises InputError where the folder holds another run, or the device is not there or cannot train in the precision.
    """
    place, folder = find_device(device), Path(folder)
    config, choice = settled(recipe.config, folder, place)
    about = check_resumable(folder, config.as_dict())
    return Plan(
        recipe=replace(recipe, config=config),
        data=data,
        folder=folder,
        store=Path(store or folder / "features"),
        device=place,
        precision=choice,
        step=0 if about is None else int(about["progress"]["step"]),
        hours=hours,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Sources of pairs: `validation` has other images. `problems`: what could not be used, and why."""

    source: PairSource
    validation: PairSource
    problems: dict[str, str]


def pairs_of(
    recipe: Recipe,
    data: Data,
    store: PathLike,
    *,
    device: str | None = None,
    tell: TellPhase = lambda what, done, of: None,
    until: float = math.inf,
) -> Pairs:
    """All that the recipe's stage makes of the data. Features are kept in `store`; on a GPU only those of files.

    Homography recipes learn from random views of photos; posed ones from these, from rooms, frames and models, as many
    batches of each, so that what was learnt first is not forgotten; confidence recipes from the former where there are
    only photos, else from the latter. `tell(what, done, all)` now and then while photos are read and features made.
    Features of views that are not made by `until` (of `time.monotonic`) are made when a step needs them.
    Raises InputError where the data are not for the recipe or none can be used.
    """
    place = find_device(device)
    wanted = Options(extractor=recipe.extractor, max_keypoints=recipe.max_keypoints, min_distance=0)
    photos = data.images if data.only_photos else None
    if recipe.stage == "homography" and photos is None:
        raise InputError(
            f"{recipe.config.name} learns from photos alone; rgbd, colmap and megadepth are for other recipes"
        )
    if recipe.stage != "posed" and photos is not None:
        return _homographies(recipe, data, Path(store), wanted, place, (tell, until))
    if recipe.detectors:
        raise InputError(f"{recipe.config.name} learns from posed images; other detectors are for homographies")
    extractor = load_extractor(wanted, place)
    kinds = list(_posed(recipe, data, Path(store), extractor, place, (tell, until)))
    problems = {name: text for _, _, found in kinds for name, text in found.items()}
    source, validation = MixedPairs([kind[0] for kind in kinds]), MixedPairs([kind[1] for kind in kinds])
    return Pairs(source=source, validation=validation, problems=problems)


def start(recipe: Recipe, pairs: Pairs, folder: PathLike, *, trained_on: str, device: str | None = None) -> Trainer:
    """Return the run in its folder, at its beginning or where it was."""
    place = find_device(device)
    config, choice = settled(recipe.config, folder, place)
    if choice.warning:
        _log.warning(choice.warning)
    number = {} if place.index is None else {"devices": [place.index]}
    fabric = make_fabric(config, accelerator=place.type, **number)
    return Trainer(config, pairs.source, pairs.validation, folder, trained_on=trained_on, fabric=fabric)


def photo_views(
    recipe: Recipe,
    images: PathLike | Photos,
    store: PathLike,
    extractor: Extractor,
    device: torch.device,
    tell: Tell,
    *,
    until: float = math.inf,
) -> Views:
    """Return features of random views of photos: drawn each time on CUDA, else made once and kept in `store`."""
    photos = images if isinstance(images, Photos) else Photos(images, recipe.views)
    most = recipe.max_keypoints
    if device.type == "cuda":
        return DrawnViews(photos, extractor, max_keypoints=most, device=device)
    stored = StoredViews(store, photos, extractor, per_photo=recipe.views_a_photo, max_keypoints=most, device=device)
    stored.fill(tell, until=until)
    return stored


def _photos(recipe: Recipe, data: Data, tell: TellPhase) -> Photos:
    assert data.images is not None  # who asks has seen to that
    return Photos(data.images, recipe.views, selection=data.selection, tell=partial(tell, "photos read"))


def _posed_pairs(
    images: PosedImages, features: StoredFeatures, tell: Tell
) -> tuple[PosedPairs, PosedPairs, dict[str, str]]:
    learnt, kept = (PosedPairs(images, features, held_out=held_out, tell=tell) for held_out in (False, True))
    return learnt, kept, learnt.problems | kept.problems


def _homographies(recipe: Recipe, data: Data, store: Path, wanted: Options, device: torch.device, when: When) -> Pairs:
    """Return pairs of keypoints of the extractor, or of each of several detectors in turn."""
    tell, until = when
    learnt, kept, problems = [], [], {}
    names = {
        "views" if detector is None else f"views-{detector}": recipe.extractor
        if detector is None
        else f"{detector}+{recipe.extractor}"
        for detector in (None, *recipe.detectors)
    }
    extractors = {folder: load_extractor(replace(wanted, extractor=name), device) for folder, name in names.items()}
    photos = _photos(recipe, data, tell)
    for folder, extractor in extractors.items():
        made = partial(tell, f"features of {folder.replace('-', ' by ')}")
        views = photo_views(recipe, photos, store / folder, extractor, device, made, until=until)
        learnt.append(HomographyPairs(views, max_keypoints=recipe.used_keypoints))
        kept.append(HomographyPairs(views, held_out=True))
        problems |= views.problems
    if not recipe.detectors:
        return Pairs(source=learnt[0], validation=kept[0], problems=problems)
    return Pairs(source=MixedPairs(learnt), validation=MixedPairs(kept), problems=problems)


def _posed(
    recipe: Recipe, data: Data, store: Path, extractor: Extractor, device: torch.device, when: When
) -> Iterator[tuple[PairSource, PairSource, dict[str, str]]]:
    """Yield for each kind of data its source, that of validation, and problems."""
    tell_phase, until = when
    tell = partial(tell_phase, "features of images")
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
    photos = _photos(recipe, data, tell_phase)
    made = partial(tell_phase, "features of views")
    seen = photo_views(recipe, photos, store / "views", extractor, device, made, until=until)
    yield HomographyPairs(seen, max_keypoints=used), HomographyPairs(seen, held_out=True), seen.problems
    if data.colmap is not None:
        learnt, kept = (
            ColmapPairs(data.colmap, data.images, features, held_out=one, tell=tell) for one in (False, True)
        )
        yield learnt, kept, learnt.problems | kept.problems
        return
    scenes = Scenes(photos, SceneConfig(count=SCENES, size=recipe.views.size))
    folder = None if device.type == "cuda" else store / "scenes"
    many = {"per_scene": recipe.views_a_photo, "max_keypoints": most}
    views = scene_views(scenes, extractor, folder=folder, device=device, **many)
    if isinstance(views, StoredViews):
        views.fill(partial(tell_phase, "features of rooms"), until=until)
    yield ScenePairs(views, scenes, max_keypoints=used), ScenePairs(views, scenes, held_out=True), views.problems
