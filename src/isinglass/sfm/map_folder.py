"""Where things are in the folder of a map: map.json and the models. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isinglass.errors import InputError
from isinglass.files import read_signed_json

SCHEMA = "isinglass map 1"
_PARTS = ("cameras", "images", "points3D")


@dataclass(frozen=True, kw_only=True)
class MapFolder:
    """A map on disk: its folder, the folders of those of its models that are meant, the largest first, and the rest."""

    root: Path
    models: tuple[Path, ...]
    rest: tuple[Path, ...] = ()

    def name_of(self, model: Path) -> str:
        """Return what a model is called in answers: "model", "model/1"."""
        return model.relative_to(self.root).as_posix()


def find_map(folder: str | os.PathLike[str]) -> MapFolder:
    """Find the map of a folder: the folder of a map (all its models), or that of one of its models (this one alone).

    Raises InputError where there is no map, or one without a model.
    """
    path = Path(folder)
    if (path / "map.json").is_file():
        return MapFolder(root=path, models=_models_of(path))
    if is_model(path):
        for root in path.absolute().parents[:2]:
            known = _models_of(root) if (root / "map.json").is_file() else ()
            if path.absolute() in known:
                rest = tuple(model for model in known if model != path.absolute())
                return MapFolder(root=root, models=(path.absolute(),), rest=rest)
        raise InputError(
            f"{str(path)!r} is a model of COLMAP, but of no map that `isinglass map` made. Give the photos that it was "
            "made of, too (--photos)"
        )
    raise InputError(f"{str(path)!r} has no 'map.json'; expected a map that `isinglass map` made")


def is_model(folder: Path) -> bool:
    """Return whether a folder has the files of a COLMAP model."""
    return all((folder / f"{part}.bin").is_file() or (folder / f"{part}.txt").is_file() for part in _PARTS)


def read_map(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what map.json of a map says: `photos`, `pipeline` and `options`, and `summary` when it is finished."""
    file = Path(folder) / "map.json"
    if not file.is_file():
        raise InputError(f"{str(folder)!r} has no map.json; expected a map that `isinglass map` made. Check the path")
    told = read_signed_json(file)
    if told.get("schema") != SCHEMA:
        raise InputError(f"{str(file)!r} is of another version; expected {SCHEMA!r}. Make the map again")
    return told


def options_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options of the pipeline that a map was made with.

    Raises InputError where there is no map, and for a map that custom parts made, which no options can build.
    """
    told = read_map(folder)
    if custom := told.get("custom"):
        raise InputError(
            f"{str(folder)!r} was made with custom parts, which its options do not say: {'; '.join(custom)}. Give the "
            "same pipeline from Python (pipeline=...)"
        )
    if "pipeline" not in told:
        raise InputError(f"map.json in {str(folder)!r} has no 'pipeline'; make the map again")
    return told["pipeline"]


def _models_of(root: Path) -> tuple[Path, ...]:
    """Return the models of a map. Raises InputError where there is none."""
    first = root / "model"
    if not is_model(first):
        raise InputError(
            f"{str(root)!r} has no 'model': the map is not finished, or has none. `isinglass map` says why"
        )
    numbered = (part for part in first.iterdir() if part.name.isdecimal() and is_model(part))
    return (first, *sorted(numbered, key=lambda part: int(part.name)))
