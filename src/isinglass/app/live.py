"""Frames against a reference, or against the previous keyframe: what is matched, and when the keyframe changes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from isinglass.app.jobs import Cancelled
from isinglass.app.pipelines import Pipelines, StoppablePipeline
from isinglass.app.uploads import Upload
from isinglass.app.work import Geometry
from isinglass.inspection.payload import array_of, pack, view_payload
from isinglass.options import Options
from isinglass.result import MatchResult, geometry_if_installed, turns_of
from isinglass.types import Features

Mode = Literal["reference", "keyframe"]
LIVE_DEFAULTS = {"max_keypoints": 512, "resize": 480, "geometry": "homography"}  # for the rate
LEAST_MATCHES, LEAST_SHARE = 25, 0.6  # as in isinglass.sfm.tracking: fewer, and the frame becomes the keyframe
_RATE_OVER = 20  # answers


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How frames are matched. A client's source sends its frames; the server's reads the video it was started with."""

    mode: Mode
    source: Literal["client", "server"]
    options: Options
    geometry: Geometry


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame:
    """One frame, decoded or as it came.

    number     in its source, from 0
    image      an upload, or an array (H, W, 3) uint8 RGB
    arrived_s  on the clock time.monotonic
    """

    number: int
    image: Upload | np.ndarray
    arrived_s: float


class LiveMatcher:
    """What one live page matches, frame by frame; for the thread of the jobs. `close` stops it before its next step."""

    def __init__(self, settings: LiveSettings, pipelines: Pipelines) -> None:
        self.settings, self._pipelines = settings, pipelines
        self.closed = False
        self._reference: Features | None = None
        self._reference_frame: int | None = None
        self._photo: Upload | None = None  # the reference, where it is no frame
        self._most = 0  # matches that agree, of a frame with this reference
        self._answered_s: deque[float] = deque(maxlen=_RATE_OVER)

    def close(self) -> None:
        """From any thread."""
        self.closed = True

    def forget_reference(self) -> None:
        """The next frame becomes the reference."""
        self._reference, self._reference_frame, self._photo = None, None, None

    def change(self, settings: LiveSettings) -> list[dict[str, Any]]:
        """Go on with others: features of a reference photo are made again, else the next frame is it."""
        old, self.settings = self.settings, settings
        if settings.options == old.options and settings.source == old.source:
            return []
        photo = self._photo if settings.source == old.source else None
        self.forget_reference()
        return [] if photo is None else self.set_reference(photo)

    def set_reference(self, photo: Upload) -> list[dict[str, Any]]:
        """Take a photo as the reference; the message that says so, with the photo in it."""
        image = photo.decoded()
        features = self._pipeline().extract(image)
        self._take(features, None, photo)
        return [{**self._reference_message(), "view": view_payload(image, photo.name, turns_of(features))}]

    def answer(self, frame: Frame, dropped: int) -> list[dict[str, Any]]:
        """The messages about one frame: its matches with the reference, and whether it became the reference itself."""
        pipeline = self._pipeline()
        pipeline.timings_ms = {}
        image = frame.image.decoded() if isinstance(frame.image, Upload) else frame.image
        features = pipeline.extract(image)
        if self._reference is None:
            self._take(features, frame.number)
            return [self._reference_message(), self._frame_message(frame, features, None, dropped)]
        result = pipeline.match_features([self._reference], [[features]])[0]
        messages = [self._frame_message(frame, features, self._found(result, pipeline), dropped)]
        if self.settings.mode == "keyframe" and self._is_far(messages[0]):
            self._take(features, frame.number)
            messages.append(self._reference_message())
        return messages

    def _pipeline(self) -> StoppablePipeline:
        def tell(step: str) -> None:
            if self.closed:
                raise Cancelled

        tell("")
        return self._pipelines.of(self.settings.options, tell)

    def _take(self, features: Features, number: int | None, photo: Upload | None = None) -> None:
        self._reference, self._reference_frame, self._photo, self._most = features, number, photo, 0

    def _found(self, result: MatchResult, pipeline: StoppablePipeline) -> dict[str, Any]:
        robust, geometry = None, self.settings.geometry
        if geometry != "none":
            with pipeline.timed("geometry"):
                robust = geometry_if_installed(result, geometry)
        model = None
        if robust is not None and robust.model is not None:
            model = {"kind": robust.kind, "matrix": robust.model.tolist(), "num_inliers": robust.num_inliers}
        return {
            "pairs": pack(array_of(result.matches.pairs()).astype(np.int32)),
            "scores": pack(result.scores),
            "inliers": None if robust is None else pack(robust.inliers),
            "model": model,
            "timings_ms": dict(pipeline.timings_ms),
        }

    def _is_far(self, message: dict[str, Any]) -> bool:
        """Whether the scene has moved on from the keyframe."""
        if message["inliers"] is None:
            count = message["pairs"]["shape"][0]
        else:
            count = 0 if message["model"] is None else message["model"]["num_inliers"]
        self._most = max(self._most, count)
        return count < max(LEAST_MATCHES, LEAST_SHARE * self._most)

    def _frame_message(
        self, frame: Frame, features: Features, found: dict[str, Any] | None, dropped: int
    ) -> dict[str, Any]:
        now_s = time.monotonic()
        self._answered_s.append(now_s)
        span_s = now_s - self._answered_s[0]
        nothing = {
            "pairs": pack(np.zeros((0, 2), np.int32)),
            "scores": pack(np.zeros(0, np.float32)),
            "inliers": None,
            "model": None,
            "timings_ms": {},
        }
        return {
            "type": "frame",
            "frame": frame.number,
            "size": [int(side) for side in features.image_size[0]],
            "keypoints": pack(features.keypoints[0]),
            **(found or nothing),
            "latency_ms": (now_s - frame.arrived_s) * 1e3,
            "rate": (len(self._answered_s) - 1) / span_s if span_s > 0 else None,
            "dropped": dropped,
            "reference": self._reference_frame,
        }

    def _reference_message(self) -> dict[str, Any]:
        assert self._reference is not None
        return {
            "type": "reference",
            "frame": self._reference_frame,
            "size": [int(side) for side in self._reference.image_size[0]],
            "keypoints": pack(self._reference.keypoints[0]),
        }


def live_options(options: Options) -> Options:
    """The options of frames: they come upright, and trying four turns would be four times the work."""
    return replace(options, rotation="exif" if options.rotation == "auto" else options.rotation)
