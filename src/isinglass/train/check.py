"""What can be known to be wrong with a training command before anything heavy is imported or done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from isinglass.datasets.layout import PathLike, existing_folder
from isinglass.errors import InputError
from isinglass.images.folder import Selection, list_photos
from isinglass.names import is_file
from isinglass.train.catalog import EXTRACTORS, RecipeName, recipe_name
from isinglass.weights.names import check_extractor, check_matcher
from isinglass.weights.records import record

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.jsonl"
_RGBD = ("K.txt", "poses.txt", "images", "depth")
_MODEL = ("cameras", "images", "points3D")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What there is to learn from. Raises InputError where there is nothing, or a model without its photos.

    images  folder of photos: random views of them, or of rooms that are papered with them, and those of `colmap`
    rgbd    folder of frames with depth and poses, see `load_rgbd`
    colmap  folder of a COLMAP model of the photos
    megadepth  folder of MegaDepth, with its scene_info
    selection  which photos of `images` to use; None = all
    """

    images: PathLike | None = None
    rgbd: PathLike | None = None
    colmap: PathLike | None = None
    megadepth: PathLike | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        alone = self.rgbd is not None or self.megadepth is not None
        if self.images is None and (self.colmap is not None or not alone):
            raise InputError(
                "images is missing; expected a folder of photos, or of a posed recipe rgbd or megadepth alone"
            )

    @property
    def folders(self) -> dict[str, Path]:
        """The folders that are given, by the names of their fields."""
        given = {name: getattr(self, name) for name in ("images", "rgbd", "colmap", "megadepth")}
        return {name: Path(folder) for name, folder in given.items() if folder is not None}

    @property
    def only_photos(self) -> bool:
        """Whether there are photos and nothing else."""
        return (self.rgbd, self.colmap, self.megadepth) == (None, None, None)

    def check_for(self, name: RecipeName) -> None:
        """Raise InputError where the data are not for the recipe."""
        if name.stage == "homography" and not self.only_photos:
            raise InputError(f"{name} learns from photos alone; rgbd, colmap and megadepth are for other recipes")


def check_command(name: str, data: Data, output: PathLike, *, start: str | None, detectors: tuple[str, ...]) -> None:
    """Check the recipe, the data, what the run starts from and where it goes, without reading a photo.

    Raises InputError for what is wrong or not there, LicenceError where a licence has not been accepted.
    """
    parts = recipe_name(name)
    data.check_for(parts)
    if detectors and (parts.stage == "posed" or not data.only_photos):
        raise InputError(f"{name} learns from posed images; other detectors are for homographies")
    _check_data(data)
    for extractor in (EXTRACTORS[parts.features], *detectors):
        check_extractor(extractor)
    if start is not None:
        _check_start(start, {"lightglue": "LightGlue", "superglue": "SuperGlue"}[parts.kind])
    if (Path(output) / LAST).exists():
        about_run(Path(output) / LAST)


def needed_packages(parts: RecipeName, data: Data, detectors: tuple[str, ...]) -> dict[str, str]:
    """Return the modules that the recipe and the data need, and the extra that brings each."""
    needed = {"lightning_fabric": "train"}
    if parts.features == "sift" or {"sift", "rootsift"} & set(detectors):
        needed["cv2"] = "sift"
    if data.colmap is not None:
        needed["pycolmap"] = "maps"
    if data.megadepth is not None:
        needed["h5py"] = "hdf5"
    return needed


def _check_data(data: Data) -> None:
    if data.images is not None:
        list_photos(data.images, data.selection)
    if data.rgbd is not None:
        folder = existing_folder(data.rgbd, ", ".join(_RGBD))
        if absent := [one for one in _RGBD if not (folder / one).exists()]:
            raise InputError(f"{str(folder)!r} has no {' and no '.join(absent)}; expected {', '.join(_RGBD)}")
    if data.colmap is not None:
        folder = existing_folder(data.colmap, "cameras, images and points3D, as .bin or .txt")
        if absent := [one for one in _MODEL if not any((folder / f"{one}{end}").is_file() for end in (".bin", ".txt"))]:
            raise InputError(
                f"{str(folder)!r} has no {' and no '.join(absent)}; expected cameras, images and points3D of a COLMAP "
                "model, as .bin or .txt: often its folder sparse/0"
            )
    if data.megadepth is not None:
        folder = existing_folder(data.megadepth, "scene_info, and the images and depth maps that it names")
        if next((folder / "scene_info").glob("*.npz"), None) is None:
            raise InputError(
                f"{str(folder)!r} has no scene_info/*.npz, which D2-Net's preprocessing makes of MegaDepth"
            )


def _check_start(start: str, kind: str) -> None:
    """Raise InputError where these are no weights of a matcher of that kind."""
    if is_file(Path(start)):
        return
    if "/" in start or start.endswith((".safetensors", ".pth", ".pt")):
        raise InputError(f"there is no file {start!r} to start from; expected a checkpoint or the name of weights")
    check_matcher(start, None)
    if (found := record(start).model if start != "nearest" else "nearest") != kind:
        raise InputError(f"{start!r} are weights of {found}; expected those of a {kind} to start from")


def about_run(path: Path) -> Mapping[str, Any]:
    """Return what a run's checkpoint says of the run. Raises InputError where it is not one of a run, or damaged."""
    try:
        with safe_open(path, framework="numpy") as archive:
            about = json.loads((archive.metadata() or {})["isinglass"])["training"]
        if not isinstance(about["config"], dict):
            raise TypeError("its config is no table")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        what = "has no training state" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise InputError(
            f"{str(path)!r} {what}; expected the checkpoint of a training run, to go on with it. Choose another "
            "folder, or move the file away to begin anew"
        ) from error
    return about
