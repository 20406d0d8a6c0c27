"""Photos of a folder: one lister for every command, which also says what it leaves out, and why.

Names are relative to the folder, with "/" between folders, sorted: "left/0001.jpg". Linked folders are entered, each
folder once. These are left out:

- what is hidden, and what an operating system, a photo program or a storage server adds: AppleDouble files ("._a.jpg"),
  thumbnails, previews, recycle bins
- pictures that Isinglass wrote: those of `isinglass match` (beside them is a report of the same name in reports/), the
  keyframes of `isinglass track` (the folder images/ beside track.json), and all in a folder that holds MARKER
- formats that are not read, such as HEIC without its extra, raw files and movies
- photos that nothing can be done with: empty files, broken links, names that are not UTF-8 or hold a line break. These
  are problems: a command that leaves one out ends with the exit code of a photo that cannot be read
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

from isinglass.errors import InputError
from isinglass.images.formats import readable_suffixes, remedy
from isinglass.names import exists, is_file, is_one_line, printable

PathLike = str | os.PathLike[str]
MARKER = ".isinglass-output"  # in folders whose pictures are all written by Isinglass
_THUMBNAILS = ("@eadir", ".thumbnails", ".@__thumb", ".thumb", ".thumbs", ".picasaoriginals")
_ADDED = ("__macosx", "$recycle.bin", "#recycle", "@recycle", "system volume information", "lost+found")
_NAME_REMEDY = "rename it with letters that are valid UTF-8, without line breaks"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which photos of a folder to use.

    exclude  patterns such as "thumbs" or "*_small.jpg", of the name of a file or of a folder; with "/" of the path
    names    those of an image list, relative to the folder; None = all
    masks    folder of masks or one mask, which are not photos where they are in the folder
    """

    exclude: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    masks: Path | None = None

    @cached_property
    def _listed(self) -> frozenset[str] | None:
        return None if self.names is None else frozenset(str(PurePosixPath(name)) for name in self.names)

    def leaves_out(self, name: str) -> bool:
        """Return whether a photo is excluded, or not in the image list."""
        return (self._listed is not None and name not in self._listed) or self.excludes(name)

    def excludes(self, name: str) -> bool:
        """Return whether a pattern matches the name, or a folder that it is in."""
        path = PurePosixPath(name)
        for pattern in (pattern.removeprefix("./").rstrip("/") for pattern in self.exclude):
            if "/" in pattern:
                found = any(fnmatchcase(str(one), pattern) for one in (path, *path.parents))
            else:
                found = any(fnmatchcase(part, pattern) for part in path.parts)
            if found:
                return True
        return False


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files of one kind that are left out: how many, one of them, and what to do to use them."""

    kind: str
    count: int
    example: str
    remedy: str

    def __str__(self) -> str:
        return f"left out {self.kind} ({self.count}, such as {self.example}): {self.remedy}"


def pairs_left_out(pairs: Sequence[tuple[str, str]]) -> list[LeftOut]:
    """Return what to say of the pairs of a list that hold photos which a `Selection` leaves out."""
    if not pairs:
        return []
    kind, advice = "pairs of photos that --exclude or --image-list leaves out", "change the pattern or the image list"
    return [LeftOut(kind=kind, count=len(pairs), example=printable(" ".join(pairs[0])), remedy=advice)]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Photos of a folder by name; what was left out, by kind; and by name what is wrong with photos left out."""

    names: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """A line for each kind that was left out."""
        return [str(left) for left in self.left_out]


def list_photos(folder: PathLike, selection: Selection | None = None, *, allow_none: bool = False) -> Listing:
    """Return the photos in and below a folder; see the module.

    Raises InputError where there is no such folder, or, unless `allow_none`, no photo in it to use.
    """
    root, chosen = Path(folder), selection or Selection()
    if not root.is_dir():
        raise InputError(f"there is no folder {printable(str(root))!r}; expected one of photos. Check the path")
    lister = _Lister(root, chosen)
    listing = lister.listed() if chosen.names is None else lister.named(chosen.names)
    if not listing.names and not allow_none:
        why = [*listing.notes, *(f"{name}: {why}" for name, why in list(listing.problems.items())[:3])]
        raise InputError(
            f"there is no image in or below {printable(str(root))!r}; expected JPEG, PNG, TIFF or other photos"
            + "".join(f". {line}" for line in why)
        )
    return listing


def mark_output(folder: PathLike) -> None:
    """Say of a folder that all its pictures are written by Isinglass, so that none is taken for a photo."""
    marker = Path(folder) / MARKER
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("The pictures in this folder were written by Isinglass. They are not listed as photos.\n")


class _Lister:
    """One look at a folder."""

    def __init__(self, root: Path, selection: Selection) -> None:
        self.root, self.selection = root, selection
        self.names: list[str] = []
        self.problems: dict[str, str] = {}
        self._left: dict[tuple[str, str], list[str]] = {}  # by kind and remedy
        self._visited: set[tuple[int, int]] = set()
        self._folders: list[tuple[Path, str]] = []  # that are still to be listed
        self._links: list[tuple[Path, str]] = []
        self._masks = None if selection.masks is None else _place(selection.masks)

    def listed(self) -> Listing:
        """Return what is in the folder: first its own folders, then those that are linked from them."""
        self._folders.append((self.root, ""))
        while self._folders or self._links:
            if self._folders:
                self._enter(*self._folders.pop(0))
                continue
            path, name = self._links.pop(0)
            if _place(path) in self._visited:
                self._leave("links to folders that are listed already", "nothing is lost", name)
            else:
                self._enter(path, f"{name}/")
        return self._listing()

    def named(self, names: tuple[str, ...]) -> Listing:
        """Return those of a list that are there."""
        for name in names:
            if Path(name).is_absolute() or ".." in PurePosixPath(name).parts:
                self.problems[printable(name)] = f"the image list names it, but it is not in {str(self.root)!r}"
            elif self.selection.excludes(name):
                self._leave("photos that --exclude names", "change the pattern", name)
            else:
                self._take(self.root / name, str(PurePosixPath(name)), listed=False)
        return self._listing()

    def _listing(self) -> Listing:
        left_out = [
            LeftOut(kind=kind, count=len(names), example=printable(names[0]), remedy=advice)
            for (kind, advice), names in self._left.items()
        ]
        return Listing(names=sorted(set(self.names)), left_out=left_out, problems=self.problems)

    def _enter(self, folder: Path, prefix: str) -> None:
        """List a folder; its own folders, and links to folders, are put aside."""
        self._visited.add(_place(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.problems[printable(prefix or str(folder))] = f"the folder cannot be opened ({error})"
            return
        reported = _reported(folder, entries)
        tracked = any(entry.name in ("track.json", "track.parts") for entry in entries)
        for entry in entries:
            name = prefix + entry.name
            try:
                self._look_at(entry, name, reported, tracked=tracked)
            except OSError as error:  # no permission; a path that is too long; a disk that breaks
                self.problems[printable(name)] = f"it cannot be read ({error.strerror}). Mend that, or --exclude it"

    def _look_at(self, entry: os.DirEntry[str], name: str, reported: set[str], *, tracked: bool) -> None:
        path = Path(entry.path)
        if self.selection.excludes(name):
            for found in _images_below(path, name):
                self._leave("photos that --exclude names", "change the pattern", found)
        elif entry.is_dir():
            self._take_folder(entry, name, tracked=tracked)
        elif path.suffix.lower() == ".png" and path.stem in reported:
            self._leave("pictures of matches", "they were written by `isinglass match`", name)
        else:
            self._take(path, name)

    def _take_folder(self, entry: os.DirEntry[str], name: str, *, tracked: bool) -> None:
        path = Path(entry.path)
        if self._masks is not None and _place(path) == self._masks:
            return
        kind, advice = _kind_of_folder(path, tracked=tracked)
        if kind:
            for found in _images_below(path, name):
                self._leave(kind, advice, found)
        elif entry.is_symlink():
            self._links.append((path, name))
        elif _place(path) not in self._visited:
            self._folders.append((path, f"{name}/"))

    def _take(self, path: Path, name: str, *, listed: bool = True) -> None:
        """Take a file, or leave it out; `listed` is False for one that a person named."""
        suffix = path.suffix.lower()
        not_read = remedy(path) if listed else None
        if listed and suffix not in readable_suffixes() and not_read is None and not _is_broken_link(path):
            return
        if not is_one_line(name):
            self.problems[printable(name)] = f"its name cannot be used; {_NAME_REMEDY}"
        elif listed and path.name.startswith("._"):
            self._leave("AppleDouble files of macOS", "they hold no picture", name)
        elif listed and path.name.startswith("."):
            self._leave("hidden photos", "rename them without the leading dot", name)
        elif not_read is not None:
            self._leave(f"{suffix[1:].upper()} files", not_read, name)
        elif _is_broken_link(path):
            self.problems[name] = "the link leads nowhere. Mount or copy what it links to"
        elif not is_file(path):
            self.problems[name] = "there is no such file" if not exists(path) else "it is not a regular file"
        elif path.stat().st_size == 0:
            self.problems[name] = "it is an empty file. Copy or download it again"
        elif self._masks is None or not self._is_mask(path):
            self.names.append(name)

    def _is_mask(self, path: Path) -> bool:
        """Return whether a file is the mask, or lies beside the photo that it masks."""
        if _place(path) == self._masks:
            return True
        if self._masks not in self._visited:
            return False
        stem = path.stem
        of_photo = PurePosixPath(stem).suffix.lower() in readable_suffixes() and path.with_name(stem).is_file()
        return of_photo or stem.lower().endswith((".mask", "_mask"))

    def _leave(self, kind: str, advice: str, name: str) -> None:
        self._left.setdefault((kind, advice), []).append(name)


def _kind_of_folder(path: Path, *, tracked: bool) -> tuple[str, str]:
    """Return the kind and remedy of a folder that is left out; empty texts for others."""
    name = path.name.lower()
    if name in _THUMBNAILS or name.endswith(".lrdata"):
        return "thumbnails and previews", "they are small copies of photos"
    if name in _ADDED:
        return "files that a system keeps", "move photos to another folder to use them"
    if (path / MARKER).is_file() or (tracked and name == "images"):
        return "pictures that Isinglass wrote", "give their folder itself to use them"
    if name.startswith("."):
        return "photos in hidden folders", "rename the folder without the leading dot"
    return "", ""


def _images_below(path: Path, name: str) -> Iterator[str]:
    """Yield the names of image files that are not listed."""
    if not path.is_dir():
        if path.suffix.lower() in readable_suffixes():
            yield name
        return
    for folder, _, files in os.walk(path):
        for file in sorted(files):
            if Path(file).suffix.lower() in readable_suffixes():
                yield f"{name}/{(Path(folder) / file).relative_to(path).as_posix()}"


def _reported(folder: Path, entries: list[os.DirEntry[str]]) -> set[str]:
    """Return the names of the reports of `isinglass match` in a folder, without suffix."""
    if not any(entry.name == "reports" and entry.is_dir() for entry in entries):
        return set()
    return {path.stem for path in (folder / "reports").glob("*.json")}


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _place(path: Path) -> tuple[int, int]:
    """Return what is the same for one file or folder under any name; nothing's for what is not there."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return stat.st_dev, stat.st_ino
