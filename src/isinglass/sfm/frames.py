"""The frames of a video or of a folder of images, in order, decoded ahead of who works on them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from isinglass.errors import InputError, MissingExtra
from isinglass.files import PathLike
from isinglass.images.folder import Selection, list_photos
from isinglass.sfm.pairs import in_sequence

_AHEAD = 2  # frames
_SHORT = 0.99  # a container may count some frames more than it has
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame.

    number  in the source, from 0, also counting those that are left out
    name    of its image when it is written, a relative path
    image   file of a folder, which may be unreadable, or of a video an array (H, W, 3) uint8 RGB
    """

    number: int
    name: str
    image: Path | np.ndarray


class Frames(Protocol):
    """What a sequence is made of.

    count     of frames that `read` gives, as far as is known before; None = not known
    identity  the same text for the same frames
    problems  what is wrong with the source as a whole, known when all is read
    """

    count: int | None
    identity: str
    problems: list[str]

    def read(self, start: int = 0) -> Iterator[Frame]:
        """Every frame whose number is at least `start`, in order."""
        ...


def open_frames(source: PathLike, every: int = 1, selection: Selection | None = None) -> Frames:
    """The frames of a video file or of a folder of images, by name, of which each `every`th is read.

    Names are sorted with their numbers as numbers: frame2 comes before frame10.
    Raises InputError where there is nothing to read, MissingExtra for a video without OpenCV.
    """
    if every < 1:
        raise InputError(f"every is {every}; expected 1 (all frames) or more")
    path = Path(source)
    if path.is_dir():
        return _Folder(path, every, selection)
    if not path.is_file():
        raise InputError(f"there is no file or folder {str(path)!r}; expected a video or a folder of frames")
    return _Video(path, every)


def read_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The items, of which the next ones are made in a thread meanwhile."""
    end: Any = object()
    with ThreadPoolExecutor(1) as reader:
        pending: deque[Future[_T]] = deque(reader.submit(next, items, end) for _ in range(_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(reader.submit(next, items, end))
            yield item


class _Folder:
    """Images in a folder and in those below it."""

    def __init__(self, folder: Path, every: int, selection: Selection | None = None) -> None:
        self.folder, self.every = folder, every
        listing = list_photos(folder, selection)
        self.names = in_sequence(listing.names)
        self.count: int | None = len(range(0, len(self.names), every))
        sizes = [(name, (folder / name).stat().st_size) for name in self.names]
        self.identity = hashlib.sha256(repr(sizes).encode()).hexdigest()
        self.problems = [f"{name}: {why}" for name, why in listing.problems.items()]

    def read(self, start: int = 0) -> Iterator[Frame]:
        for number in range(0, len(self.names), self.every):
            if number >= start:
                yield Frame(number=number, name=self.names[number], image=self.folder / self.names[number])


class _Video:
    """A video that OpenCV decodes."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every
        capture = self._opened()
        self.declared = max(int(capture.get(_cv2().CAP_PROP_FRAME_COUNT)), 0)
        capture.release()
        self.count: int | None = len(range(0, self.declared, every)) or None
        self.identity = _digest_of_ends(file)
        self.problems: list[str] = []

    def read(self, start: int = 0) -> Iterator[Frame]:
        cv2, capture, number = _cv2(), self._opened(), 0
        try:
            while capture.grab():
                if number >= start and number % self.every == 0:
                    decoded, pixels = capture.retrieve()
                    if decoded:
                        image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
                        yield Frame(number=number, name=f"frame_{number:06}.png", image=image)
                    else:
                        self.problems.append(f"frame {number} of {str(self.file)!r} cannot be decoded")
                number += 1
        finally:
            capture.release()
        if not number:
            raise InputError(
                f"{str(self.file)!r} holds no frame that can be decoded; expected a video. Copy it again, or convert "
                "it (ffmpeg -i VIDEO frames/%06d.png) and give the folder"
            )
        if number < _SHORT * self.declared - 2:
            self.problems.append(
                f"{str(self.file)!r} breaks off: {number} of {self.declared} frames could be decoded. Copy it again"
            )

    def _opened(self) -> Any:
        capture = _cv2().VideoCapture(str(self.file))
        if not capture.isOpened():
            raise InputError(
                f"{str(self.file)!r} cannot be opened as a video; expected one that OpenCV decodes, such as MP4, or a "
                "folder of frames. Copy it again, or convert it (ffmpeg -i VIDEO frames/%06d.png)"
            )
        return capture


def _digest_of_ends(file: Path, ends: int = 1 << 20) -> str:
    """Of the size and both ends of a file that may be large."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        digest.update(opened.read(ends))
        opened.seek(max(size - ends, 0))
        digest.update(opened.read(ends))
    return digest.hexdigest()


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "maps") from error
    return cv2
