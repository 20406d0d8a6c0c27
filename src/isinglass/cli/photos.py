"""Folders of photos on the command line: which photos are used, what is said of the others, and their masks.

In JSON every command says alike what it does not use: `left_out` has kinds of files, each with its count, an example
and the remedy; `problems` has photos, and lines and names of lists, with the reason, and goes with the exit code 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from isinglass.cli.checks import IMAGE_LIST
from isinglass.cli.common import OK, SOME_FAILED, complain

if TYPE_CHECKING:
    from isinglass.images.folder import LeftOut, Listing, Selection

FOLDER_OPTIONS = (
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave out files and folders of this name, such as 'thumbs' or '*_small.jpg'; repeatable.",
    ),
    click.option("--image-list", type=IMAGE_LIST, help="Use only the photos that this text file names, one a line."),
)
JSON_LINES_HELP = "Print one JSON object per {} on stdout, and a last one of what is left out, if anything is."
MASKS_HELP = "Folder of masks (IMG.jpg.png, IMG.png, IMG.mask.png or IMG_mask.png for IMG.jpg), or one mask for all."


class Photo(NamedTuple):
    """A photo, and its name in the folder that it was found in."""

    path: Path
    name: str


class Photos:
    """The photos that a command's arguments name, with what is left out said on stderr once.

    left_out  kinds of files and pairs that are left out, as `LeftOut` has them
    problems  photos, lines and names of lists that cannot be used, with the reason
    """

    def __init__(self, settings: dict[str, Any], masks: Path | None = None) -> None:
        """Take FOLDER_OPTIONS out of a command's settings. Raises InputError where masks are not there."""
        from isinglass.images.masks import check_masks

        self._exclude, self._image_list = settings.pop("exclude"), settings.pop("image_list")
        self.masks = None if masks is None else check_masks(masks)
        self.found: list[Photo] = []
        self.left_out: list[dict[str, Any]] = []
        self.problems: dict[str, str] = {}

    def selection(self, folder: Path) -> Selection:
        """Return which photos of a folder are used."""
        from isinglass.files.lists import read_image_list
        from isinglass.images.folder import Selection

        names = None if self._image_list is None else tuple(read_image_list(self._image_list, folder))
        return Selection(exclude=self._exclude, names=names, masks=self.masks)

    def fail(self, name: str, why: str) -> None:
        """Say what cannot be used, and keep it."""
        self.problems[name] = why
        complain(f"{name}: {why}", SOME_FAILED)

    def say_left_out(self, folder: Path) -> Listing:
        """Return the photos of a folder, and say what is left out, but for photos that cannot be used."""
        from isinglass.images.folder import list_photos

        listing = list_photos(folder, self.selection(folder))
        self._leave_out(listing.left_out)
        return listing

    def listing(self, folder: Path) -> Listing:
        """Return the photos of a folder, and say what is left out and which cannot be used."""
        listing = self.say_left_out(folder)
        for name, why in listing.problems.items():
            self.fail(str(folder / name) if name in self.problems else name, why)
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

    def of_pairs(self, pairs: Sequence[tuple[Path, Path]], root: Path) -> list[tuple[Path, Path]]:
        """Return the pairs of a list, relative to a folder, without those that are left out by choice."""
        from isinglass.images.folder import pairs_left_out

        paths = dict.fromkeys(path for pair in pairs for path in pair)
        names = {path: path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths}
        selection = self.selection(root)
        dropped = {path for path in paths if selection.leaves_out(names[path]) and path.is_file()}
        self._leave_out(pairs_left_out([(names[a], names[b]) for a, b in pairs if {a, b} & dropped]))
        self.found += [
            Photo(path, name) for path, name in names.items() if path.is_relative_to(root) and path not in dropped
        ]
        return [pair for pair in pairs if not set(pair) & dropped]

    def pairs_among(self, file: Path, names: Sequence[str], folder: Path | None) -> list[tuple[str, str]]:
        """Return the pairs of a list that are of the images `names`, which were found in a folder or a store."""
        from isinglass.files.lists import read_pairs_among
        from isinglass.images.folder import Selection, pairs_left_out

        selection = Selection() if folder is None else self.selection(folder)

        def is_left_out(name: str) -> bool:
            return folder is not None and selection.leaves_out(name) and (folder / name).is_file()

        listed = read_pairs_among(file, names, folder, is_left_out)
        for name, why in listed.problems.items():
            if name not in self.problems:
                self.fail(name, why)
        self._leave_out(pairs_left_out(listed.left_out))
        return listed.pairs

    def report(self) -> dict[str, Any]:
        """Return what the JSON of every command has of photos, lines and files that are not used."""
        return {"left_out": self.left_out, "problems": self.problems}

    def print_report(self) -> None:
        """Print the report as the last line of a command that prints one JSON object per result, if it has anything."""
        if self.left_out or self.problems:
            click.echo(json.dumps(self.report()))

    def _leave_out(self, kinds: Sequence[LeftOut]) -> None:
        for kind in kinds:
            complain(kind, OK)
        self.left_out += map(asdict, kinds)

    def found_masks(self) -> dict[Path, Path]:
        """Return the masks of all photos found so far, by their paths, and say what has no partner."""
        from isinglass.images.masks import find_masks

        found = find_masks(self.masks, list(dict.fromkeys(photo.name for photo in self.found)))
        for note in found.notes:
            complain(note, OK)
        return {photo.path: found.of[photo.name] for photo in self.found if photo.name in found.of}
