"""Folders of photos on the command line: which photos are used, what is said of the others, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from isinglass.cli.checks import FILE
from isinglass.cli.common import OK, SOME_FAILED, complain

if TYPE_CHECKING:
    from isinglass.images.folder import Listing, Selection

FOLDER_OPTIONS = (
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave out files and folders of this name, such as 'thumbs' or '*_small.jpg'; repeatable.",
    ),
    click.option("--image-list", type=FILE, help="Use only the photos that this text file names, one a line."),
)
MASKS_HELP = "Folder of masks (IMG.jpg.png, IMG.png, IMG.mask.png or IMG_mask.png for IMG.jpg), or one mask for all."


class Photo(NamedTuple):
    """A photo, and its name in the folder that it was found in."""

    path: Path
    name: str


class Photos:
    """The photos that a command's arguments name, with what is left out said on stderr once."""

    def __init__(self, settings: dict[str, Any], masks: Path | None = None) -> None:
        """Take FOLDER_OPTIONS out of a command's settings. Raises InputError where masks are not there."""
        from isinglass.images.masks import check_masks

        self._exclude, self._image_list = settings.pop("exclude"), settings.pop("image_list")
        self.masks = None if masks is None else check_masks(masks)
        self.found: list[Photo] = []
        self.failed = 0  # photos and lines that cannot be used
        self.left_out: list[dict[str, Any]] = []

    def selection(self, folder: Path) -> Selection:
        """Return which photos of a folder are used."""
        from isinglass.files.lists import read_image_list
        from isinglass.images.folder import Selection

        names = None if self._image_list is None else tuple(read_image_list(self._image_list, folder))
        return Selection(exclude=self._exclude, names=names, masks=self.masks)

    def fail(self, problem: str) -> None:
        """Say what cannot be used, and count it."""
        self.failed += 1
        complain(problem, SOME_FAILED)

    def say_left_out(self, folder: Path) -> Listing:
        """Return the photos of a folder, and say what is left out, but for photos that cannot be used."""
        from isinglass.images.folder import list_photos

        listing = list_photos(folder, self.selection(folder))
        for note in listing.notes:
            complain(note, OK)
        self.left_out += map(asdict, listing.left_out)
        return listing

    def listing(self, folder: Path) -> Listing:
        """Return the photos of a folder, and say what is left out and which cannot be used."""
        listing = self.say_left_out(folder)
        for name, why in listing.problems.items():
            self.fail(f"{name}: {why}")
        return listing

    def of(self, path: Path) -> list[Path]:
        """Return the photos of a folder, or the one photo."""
        if path.is_dir():
            return [path / name for name in self.names_in(path)]
        self.found.append(Photo(path, path.name))
        return [path]

    def names_in(self, folder: Path) -> list[str]:
        """Return the names of the photos of a folder."""
        names = self.listing(folder).names
        self.found += [Photo(folder / name, name) for name in names]
        return names

    def of_pairs(self, pairs: Sequence[tuple[Path, Path]], root: Path) -> None:
        """Take the photos of a list of pairs, whose names are relative to a folder."""
        paths = dict.fromkeys(path for pair in pairs for path in pair)
        self.found += [Photo(path, path.relative_to(root).as_posix()) for path in paths if path.is_relative_to(root)]

    def found_masks(self) -> dict[Path, Path]:
        """Return the masks of all photos found so far, by their paths, and say what has no partner."""
        from isinglass.images.masks import find_masks

        found = find_masks(self.masks, list(dict.fromkeys(photo.name for photo in self.found)))
        for note in found.notes:
            complain(note, OK)
        return {photo.path: found.of[photo.name] for photo in self.found if photo.name in found.of}
