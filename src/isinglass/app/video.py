"""A video file or a camera of the server, read in real time: who is slower than it gets the newest frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isinglass.app.uploads import Refused
from isinglass.errors import InputError, MissingExtra
from isinglass.names import exists, is_file

SHOWN_PX = 960  # long side of frames: larger ones are shrunk
_RATE = 30.0  # of videos that do not say theirs


class VideoFrame(NamedTuple):
    """A frame: its number in the video, from 0; (H, W, 3) uint8 RGB; and when it came, on the clock time.monotonic."""

    number: int
    pixels: np.ndarray
    arrived_s: float


class VideoSource:
    """A video or a camera that is read while somebody watches, from its beginning.

    Raises InputError where it cannot be opened, MissingExtra without OpenCV.
    """

    def __init__(self, source: str) -> None:
        self.camera = int(source) if source.isdigit() and not exists(Path(source)) else None
        if self.camera is None and not is_file(Path(source)):
            raise InputError(
                f"there is no file {source!r}; expected a video, or the number of a camera (0 is the first)"
            )
        self.source = source
        self.name = f"camera {source}" if self.camera is not None else Path(source).name
        self._open().release()
        self._changed = threading.Condition()
        self._watchers = 0
        self._run: object | None = None  # of the thread that reads now
        self._newest: VideoFrame | None = None
        self._ended = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this is entered the video is read; by all who watch at once the same."""
        with self._changed:
            self._watchers += 1
            if self._watchers == 1 or self._ended:
                self._start()
        try:
            yield
        finally:
            with self._changed:
                self._watchers -= 1
                if not self._watchers:
                    self._run = None
                    self._newest = None

    def after(self, number: int, timeout_s: float) -> VideoFrame | None:
        """The newest frame if its number is over `number`, once there is one; None after `timeout_s`, or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._is_newer(number), timeout_s)
            return self._newest if self._is_newer(number) else None

    @property
    def ended(self) -> bool:
        """Whether the last frame has been read."""
        with self._changed:
            return self._ended

    def _is_newer(self, number: int) -> bool:
        return self._newest is not None and self._newest.number > number

    def _start(self) -> None:
        run = self._run = object()
        self._newest, self._ended = None, False
        threading.Thread(target=self._read, args=(run,), name="isinglass-video", daemon=True).start()

    def _read(self, run: object) -> None:
        try:
            capture = self._open()
            try:
                self._read_all(run, capture)
            finally:
                capture.release()
        finally:
            with self._changed:
                if self._run is run:
                    self._ended = True
                    self._changed.notify_all()

    def _read_all(self, run: object, capture: Any) -> None:
        rate = capture.get(_cv2().CAP_PROP_FPS)
        rate = rate if 1 <= rate <= 1000 else _RATE
        start_s, number = time.monotonic(), 0
        while self._run is run and capture.grab():
            late_s = time.monotonic() - start_s - number / rate
            if self.camera is None and late_s < 0:
                time.sleep(-late_s)
            if self.camera is not None or late_s < 1 / rate:  # else the next one is due already
                decoded, pixels = capture.retrieve()
                if decoded:
                    self._publish(run, VideoFrame(number, _shown(pixels), time.monotonic()))
            number += 1

    def _publish(self, run: object, frame: VideoFrame) -> None:
        with self._changed:
            if self._run is run:
                self._newest = frame
                self._changed.notify_all()

    def _open(self) -> Any:
        capture = _cv2().VideoCapture(self.source if self.camera is None else self.camera)
        if not capture.isOpened():
            what = "a video that OpenCV decodes, such as MP4" if self.camera is None else "the number of a camera"
            raise InputError(f"{self.source!r} cannot be opened; expected {what}. Convert it, or check the number")
        return capture


def no_source() -> Refused:
    """The refusal of a page that asks for a video of a server that has none."""
    return Refused(
        "this server reads no video; expected isinglass live VIDEO. Use the camera or a file of the page", 422
    )


def _shown(pixels: np.ndarray) -> np.ndarray:
    """RGB of at most SHOWN_PX."""
    cv2 = _cv2()
    factor = SHOWN_PX / max(pixels.shape[:2])
    if factor < 1:
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "app") from error
    return cv2
