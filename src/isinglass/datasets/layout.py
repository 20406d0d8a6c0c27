"""What loaders share: finding files, and keeping the pairs that can be used beside what is wrong with the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError
from isinglass.images.folder import Selection, list_photos
from isinglass.images.formats import READABLE_SUFFIXES
from isinglass.names import is_file

PathLike = str | os.PathLike[str]
_Item = TypeVar("_Item")


def existing_folder(folder: PathLike, holds: str) -> Path:
    """The folder as a Path. Raises InputError where it is none; `holds` says what was expected in it."""
    if not Path(folder).is_dir():
        what = "is no folder" if Path(folder).exists() else "does not exist"
        raise InputError(f"{os.fspath(folder)!r} {what}; expected a folder of {holds}")
    return Path(folder)


def image_files(folder: Path, selection: Selection | None = None) -> Iterator[Path]:
    """Yield the photos in and below a folder, as `images.folder.list_photos` finds them, by name.

    Photos that cannot be read come, too: whoever reads them says so.
    """
    listing = list_photos(folder, selection, allow_none=True)
    for name in sorted([*listing.names, *listing.problems]):
        if is_file(folder / name):
            yield folder / name


def image_of(folder: Path, stem: str) -> Path:
    """The image <stem>.png, .jpg and so on in a folder. Raises InputError where there is none."""
    for suffix in READABLE_SUFFIXES:
        for file in (folder / (stem + suffix), folder / (stem + suffix.upper())):
            if is_file(file):
                return file
    raise InputError(f"{str(folder / stem)!r} with the suffix of an image does not exist; copy the data set again")


def read_text(file: Path) -> str:
    """What a text file holds, its ends of lines as they may be. Raises InputError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}); expected a text file") from error


def collected(
    name: str, protocol: str, task: str, build: Callable[[_Item], EvalPair], items: Iterable[_Item]
) -> Benchmark:
    """The benchmark of what `build` makes of the items; those for which it raises InputError are its problems.

    Raises InputError where no pair is left.
    """
    pairs: list[EvalPair] = []
    problems: list[str] = []
    for item in items:
        try:
            pairs.append(build(item))
        except InputError as error:
            problems.append(str(error))
    if not pairs:
        found = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise InputError(f"no pair of {name} can be used: {found or 'there is none'}. Check the folder and its layout")
    return Benchmark(name=name, protocol=protocol, task=task, pairs=tuple(pairs), problems=tuple(problems))
