"""Masks of photos, found by their names.

The mask of "day1/IMG.jpg" is, below the folder of masks, the first there is of day1/IMG.jpg.png, day1/IMG.jpg,
day1/IMG.png, day1/IMG.mask.png, day1/IMG_mask.png and day1/IMG.jpg.mask.png, of any format of images, and with capital
letters or without. One file instead of a folder is the mask of every photo.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from isinglass.errors import InputError
from isinglass.images.formats import readable_suffixes
from isinglass.names import folded, printable

PathLike = str | os.PathLike[str]
_ENDINGS = ("", ".mask", "_mask")  # after the name or the stem, before the mask's own suffix


@dataclass(frozen=True, kw_only=True)
class FoundMasks:
    """The masks of photos by name, the files that fit no photo, and the photos without a mask."""

    of: dict[str, Path] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What a person should know: masks that fit nothing, and photos that are not masked."""
        notes = []
        if self.unused:
            notes.append(f"{_some(self.unused, 'mask')} no photo: expected names such as IMG.jpg.png or IMG.png")
        if self.without:
            count = len(self.without)
            notes.append(f"{count} photo{'s' * (count > 1)} without a mask, used whole: {_first(self.without)}")
        return notes


def check_masks(place: PathLike) -> Path:
    """Return the folder of masks, or the one mask, as a path. Raises InputError where it is not there."""
    path = Path(place)
    if not path.exists():
        raise InputError(
            f"there are no masks at {printable(str(path))!r}; expected a folder or an image. Check the path"
        )
    return path


def find_masks(place: PathLike | None, names: Sequence[str], photos: PathLike | None = None) -> FoundMasks:
    """Return the masks of the photos `names`; none where `place` is None.

    photos  the folder of the photos: where masks lie among them, no photo is a mask

    Raises InputError where there is no such folder or file, or no mask in it fits any of the photos.
    """
    if place is None:
        return FoundMasks()
    path = check_masks(place)
    if path.is_file():
        return FoundMasks(of=dict.fromkeys(names, path))
    files = _files(path)
    if photos is not None and Path(photos).resolve() == path.resolve():
        files = sorted(set(files) - set(names))
    by_folded = {folded(name): name for name in reversed(files)}
    there, found = set(files), {}
    suffixes = sorted({_suffix(name) for name in files}, key=lambda suffix: (suffix != ".png", suffix))
    for name in names:
        fitting = (other if other in there else by_folded.get(folded(other)) for other in _candidates(name, suffixes))
        mask = next((other for other in fitting if other is not None), None)
        if mask is not None:
            found[name] = mask
    if names and not found:
        what = f"{len(files)} images, such as {printable(files[0])!r}" if files else "no image"
        raise InputError(
            f"no mask in {printable(str(path))!r} fits a photo: it holds {what}; expected names such as "
            f"{printable(names[0])}.png for the photo {printable(names[0])!r}"
        )
    return FoundMasks(
        of={name: path / mask for name, mask in found.items()},
        unused=sorted(there - set(found.values())),
        without=[name for name in names if name not in found],
    )


def _candidates(name: str, suffixes: Sequence[str]) -> list[str]:
    """Return the names that the mask of a photo may have, the best first, of masks with these suffixes."""
    photo = PurePosixPath(name)
    stem = str(photo.with_suffix(""))
    exact = [f"{name}.png", name]
    return exact + [f"{base}{ending}{suffix}" for ending in _ENDINGS for base in (name, stem) for suffix in suffixes]


def _files(folder: Path) -> list[str]:
    """Return the images in and below a folder; linked folders are entered, once each."""
    names: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder)
        images = (name for name in files if _suffix(name) in readable_suffixes() and not name.startswith("."))
        names += [(below / name).as_posix() for name in images]
    return sorted(names)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _some(names: Sequence[str], what: str) -> str:
    count = len(names)
    return f"{count} {what}{'s' * (count > 1)} ({_first(names)}) fit{'s' * (count == 1)}"


def _first(names: Sequence[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {more} more" if more > 0 else "")
