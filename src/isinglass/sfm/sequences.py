"""Tracks of a video or a folder of frames, into a folder that a map can be made of.

    images/      the keyframes: copies of a folder's files, or PNG of a video's frames
    features.h5  their features, matches.h5: of each with those before it. As `FeatureStore` and `MatchStore` have them
    tracks.npz   one entry an observation, of tracks with two or more, by track and frame:
                 track_id (K,) int64, frame (K,) int32, keypoint (K,) int32, x, y (K,) float32 px
    track.json   the summary (`TrackSummary`), and the options

Frames are numbered as in the source, from 0. `keypoint` is the row in features.h5 where the frame is a keyframe. Pixels
are of the original image, (0, 0) = centre of the top-left pixel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isinglass.errors import InputError
from isinglass.files import PathLike, read_if_whole, read_signed_json, write_atomically, write_signed_json
from isinglass.files.npz import read_npz, write_npz
from isinglass.images import ImageSource
from isinglass.images.folder import Selection
from isinglass.pipeline import Pipeline
from isinglass.sfm.extraction import feature_settings
from isinglass.sfm.frames import Frame, Frames, open_frames, read_ahead
from isinglass.sfm.matching import matching_settings
from isinglass.sfm.sharpness import NEIGHBORS, with_sharpness
from isinglass.sfm.store import FeatureStore, MatchStore, Pair, PairMatches
from isinglass.sfm.tracking import NO_TRACK, Keyframe, TrackedFrame, Tracker, TrackOptions
from isinglass.types import Features

SECONDS_A_PART = 5.0
Tell = Callable[[TrackedFrame, int, int | None], None]  # the frame, frames done, of how many (None = not known)
_Observations = dict[str, Any]  # (K,) arrays
_DTYPES = {"track_id": np.int64, "frame": np.int32, "keypoint": np.int32, "x": np.float32, "y": np.float32}


@dataclass(frozen=True, kw_only=True)
class TrackSummary:
    """What became of a sequence.

    frames             that could be read; lost: those that match no keyframe and are none, by their numbers
    keyframes          number, name of the image and why (`Keyframe.why`) of each
    cuts               keyframes that match nothing before them, by their numbers
    tracks             with two observations or more, which is `mean_track_length` on average
    seconds            of reading, extraction, matching and writing, of all runs; the models' loading is not in it
    problems           what could not be read
    """

    source: str
    frames: int
    lost: list[int]
    keyframes: list[dict[str, Any]]
    cuts: list[int]
    tracks: int
    observations: int
    mean_track_length: float
    seconds: float
    frames_per_s: float
    problems: list[str]


def track_sequence(
    source: PathLike,
    folder: PathLike,
    pipeline: Pipeline,
    options: TrackOptions | None = None,
    *,
    every: int = 1,
    selection: Selection | None = None,
    tell: Tell = lambda frame, done, of: None,
) -> TrackSummary:
    """Track through a video file or a folder of frames, and write the folder that this module describes.

    `tell` hears of every frame. A run that is killed loses its last seconds: the same call goes on where it was, with
    the same result as if nothing had been. What is finished is not done again.

    every      of how many frames one is read
    selection  which images of a folder are frames; None = all

    Raises InputError where there is nothing to read, or the folder holds tracks of another source or other options,
    WriteError where it cannot be written, MissingExtra without OpenCV (videos), h5py or PoseLib.
    """
    folder, options = Path(folder), options or TrackOptions()
    if Path(source).is_dir() and folder.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(f"the output {str(folder)!r} is in the folder of the frames. Give a folder beside it")
    frames = open_frames(source, every, selection)
    told = {
        "source": frames.identity,
        "every": every,
        "options": asdict(options),
        "extractor": str(pipeline.extractor.signature),
        "features": json.loads(feature_settings(pipeline)),
        "matching": json.loads(matching_settings(pipeline)),
    }
    run = _Run(str(source), folder, Tracker(pipeline, options), told)
    if (done := run.finished()) is not None:
        return done
    start = run.resume()
    waiting: list[tuple[Frame, float]] = []

    def images() -> Iterator[tuple[ImageSource, None]]:
        for frame, ratio in read_ahead(with_sharpness(frames.read(max(start - NEIGHBORS * every, 0)), every)):
            if frame.number >= start:
                waiting.append((frame, ratio))
                yield frame.image, None

    for features in pipeline.extract_each(images()):
        found = run.take(*waiting.pop(0), features)
        if found is not None:
            tell(found, run.done, frames.count)
    return run.finish(frames)


class _Run:
    """One run over a sequence: the tracker, and what is written of it.

    Parts are files in the order of the frames: observations, and as JSON the state and what the summary needs. A
    part is written after the keyframes that it counts on; so what parts tell of is there.
    """

    def __init__(self, source: str, folder: Path, tracker: Tracker, told: dict[str, Any]) -> None:
        self.source, self.folder, self.tracker, self.told = source, folder, tracker, told
        self.key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self.parts = folder / "track.parts"
        self.done = self._count = 0  # frames; parts
        self._about = self._no_news()
        self._observations: list[_Observations] = []
        self._features: dict[str, Features] = {}
        self._matches: dict[Pair, PairMatches] = {}
        self._digests: dict[str, str] = {}
        self._names: dict[int, str] = {}
        self._frames: list[Frame] = []  # the last ones, of which any may become a keyframe
        self._earlier: dict[int, Features] = {}  # of frames before the first that is tracked in this run
        self._resumed: dict[str, Any] | None = None
        self._written_s = time.monotonic()

    def finished(self) -> TrackSummary | None:
        """Return the summary of an earlier run with the same key that came to its end. Raises InputError if damaged."""
        if not all((self.folder / name).is_file() for name in ("track.json", "tracks.npz")):
            return None
        written = read_signed_json(self.folder / "track.json")
        self._check_key(written.get("key"))
        read_npz(self.folder / "tracks.npz")
        names = [one.name for one in dataclasses.fields(TrackSummary)]
        if not set(names) <= set(written):
            return None
        self._forget()
        return TrackSummary(**{name: written[name] for name in names})

    def resume(self) -> int:
        """Load what earlier runs wrote; the number of the frame to read first."""
        pipeline = self.tracker.pipeline
        signature = pipeline.extractor.signature
        self.features = FeatureStore(self.folder / "features.h5", signature, feature_settings(pipeline))
        self.matches = MatchStore(self.folder / "matches.h5", signature, matching_settings(pipeline))
        state = None
        for about, _ in self._read_parts():  # those behind a damaged one are written again
            self._check_key(about["key"])
            self._names |= {one["number"]: one["name"] for one in about["keyframes"]}
            self._digests |= about["digests"]
            self.done, self._count = self.done + len(about["frames"]), self._count + 1
            state = about["state"]
        if state is None or any(self._names[number] not in self.features for number, *_ in state["window"]):
            self._forget()
            return 0
        self._resumed = state
        return min([state["last"], *(number for number, *_ in state["earlier"])])

    def take(self, frame: Frame, sharpness: float, features: Features | InputError) -> TrackedFrame | None:
        """Track one frame; None where it could not be read, or was tracked by an earlier run."""
        self._frames = [*self._frames[-NEIGHBORS - 1 :], frame]
        if self._resumed is not None:
            state = self._resumed
            if frame.number <= state["last"] and isinstance(features, Features):
                self._earlier[frame.number] = features
            if frame.number < state["last"]:
                return None
            self.tracker.restore(state, lambda number: self.features.get(self._names[number]), self._earlier)
            self._resumed, self._earlier = None, {}
            if frame.number == state["last"]:
                return None
        if isinstance(features, InputError):
            self._about["problems"][str(frame.number)] = str(features)
            return None
        found = self.tracker.add_features(features, frame.number, sharpness=sharpness)
        self.done += 1
        self._about["frames"].append(frame.number)
        if found.tracked:
            self._about["tracked"].append(frame.number)
        self._observe(found.number, found.features, found.track_ids)
        for keyframe in found.added:
            self._keep(keyframe)
        if time.monotonic() - self._written_s > SECONDS_A_PART:
            self._write()
        return found

    def finish(self, frames: Frames) -> TrackSummary:
        """Write what waits, merge all parts, and sum up."""
        self._write()
        self.features.merge()
        self.matches.merge()
        if len(parts := list(self._read_parts())) != self._count:
            raise InputError(f"{str(self.parts)!r} was damaged meanwhile. Run again: what is missing is made again")
        tracks = _merged([observations for _, observations in parts])
        write_npz(self.folder / "tracks.npz", tracks, compressed=True)
        summary = self._summary([about for about, _ in parts], tracks["track_id"], frames)
        write_signed_json(self.folder / "track.json", {"key": self.key, **asdict(summary), "made_with": self.told})
        self.features.close()
        self.matches.close()
        self._forget()
        return summary

    # --- one frame

    def _keep(self, keyframe: Keyframe) -> None:
        frame = next(one for one in self._frames if one.number == keyframe.number)
        image = self.folder / "images" / frame.name
        contents = _contents(frame)
        with write_atomically(image) as temporary:
            temporary.write_bytes(contents)
        self._names[keyframe.number] = frame.name
        self._features[frame.name] = keyframe.features.to("cpu")
        self._digests[frame.name] = hashlib.sha256(contents).hexdigest()
        self._matches |= {(self._names[other], frame.name): pairs for other, pairs in keyframe.matches.items()}
        self._about["keyframes"].append({"number": keyframe.number, "name": frame.name, "why": keyframe.why})
        self._about["digests"][frame.name] = self._digests[frame.name]
        self._observe(keyframe.number, keyframe.features, keyframe.track_ids)

    def _observe(self, number: int, features: Features, track_ids: np.ndarray) -> None:
        keypoint = np.flatnonzero(track_ids != NO_TRACK)
        x, y = features.keypoints[0].cpu().numpy()[keypoint].T
        values = track_ids[keypoint], np.full(len(keypoint), number), keypoint, x, y
        self._observations.append(
            {name: value.astype(dtype) for (name, dtype), value in zip(_DTYPES.items(), values, strict=True)}
        )

    # --- files

    def _write(self) -> None:
        """One part of what waits, if anything does."""
        if self._about["frames"] or self._about["problems"]:
            self.features.add(self._features, self._digests)
            if self._matches:
                self.matches.add(self._matches, self._digests)
            now = time.monotonic()
            about = {**self._about, "seconds": now - self._written_s, "state": _plain(self.tracker.state())}
            part = self.parts / f"{self._count:08}.npz"
            write_npz(part, {"about": np.array(json.dumps(about)), **_joined(self._observations)})
            self._count += 1
        self._about, self._observations, self._features, self._matches = self._no_news(), [], {}, {}
        self._written_s = time.monotonic()

    def _read_parts(self) -> Iterator[tuple[dict[str, Any], _Observations]]:
        """Yield the parts up to the first that is damaged or missing, with which tracking goes on."""
        for number in itertools.count():
            file = self.parts / f"{number:08}.npz"
            if (arrays := read_if_whole(file, read_npz)) is None:
                return
            try:
                about = json.loads(str(arrays.pop("about")))
            except (KeyError, ValueError):  # of an earlier version that was damaged
                return
            yield about, arrays

    def _forget(self) -> None:
        """Remove the parts, the last one first, so that what a kill leaves is still a beginning."""
        self.done, self._count, self._names, self._digests = 0, 0, {}, {}
        for file in sorted(self.parts.glob("*.npz"), reverse=True) if self.parts.is_dir() else []:
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self.parts.rmdir()

    def _no_news(self) -> dict[str, Any]:
        return {"key": self.key, "frames": [], "tracked": [], "keyframes": [], "digests": {}, "problems": {}}

    def _check_key(self, key: Any) -> None:
        if key != self.key:
            raise InputError(
                f"{str(self.folder)!r} holds tracks of another source or of other options than {self.source!r} with "
                "these. Give another folder, or delete that one"
            )

    def _summary(self, parts: list[dict[str, Any]], track_id: np.ndarray, frames: Frames) -> TrackSummary:
        keyframes = [one for about in parts for one in about["keyframes"]]
        numbers = [number for about in parts for number in about["frames"]]
        good = {number for about in parts for number in about["tracked"]} | {one["number"] for one in keyframes}
        problems = {number: text for about in parts for number, text in about["problems"].items()}
        tracks = len(np.unique(track_id))
        seconds = sum(about["seconds"] for about in parts)
        return TrackSummary(
            source=self.source,
            frames=len(numbers),
            lost=[number for number in numbers if number not in good],
            keyframes=keyframes,
            cuts=[one["number"] for one in keyframes if one["why"] == "cut"],
            tracks=tracks,
            observations=len(track_id),
            mean_track_length=round(len(track_id) / max(tracks, 1), 2),
            seconds=round(seconds, 2),
            frames_per_s=round(len(numbers) / max(seconds, 1e-9), 2),
            problems=[*problems.values(), *frames.problems],
        )


def _contents(frame: Frame) -> bytes:
    """The image as it is written."""
    if isinstance(frame.image, Path):
        return frame.image.read_bytes()
    file = io.BytesIO()
    Image.fromarray(frame.image).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state, default=lambda ids: ids.tolist()))


def _joined(observations: list[_Observations]) -> _Observations:
    return {
        name: np.concatenate([np.empty(0, dtype), *(one[name] for one in observations)])
        for name, dtype in _DTYPES.items()
    }


def _merged(observations: list[_Observations]) -> _Observations:
    """Each observation once, of tracks with two or more, by track and frame."""
    every = _joined(observations)
    place = every["frame"].astype(np.int64) << 32 | every["keypoint"]
    _, first = np.unique(place, return_index=True)
    _, track, counts = np.unique(every["track_id"][first], return_inverse=True, return_counts=True)
    kept = first[counts[track] >= 2] if len(first) else first
    kept = kept[np.lexsort([every["frame"][kept], every["track_id"][kept]])]
    return {name: value[kept] for name, value in every.items()}
