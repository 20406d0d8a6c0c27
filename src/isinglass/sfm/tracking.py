"""Track ids through a sequence of frames, by matching each frame to the last keyframes.

What is matched is a frame of which nothing is assumed but that it comes soon after a keyframe: no motion model, no
search window. Matches count where one homography or fundamental matrix explains them (`geometry.robust`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.geometry.robust import estimate
from isinglass.images import ImageSource
from isinglass.pipeline import Pipeline
from isinglass.sfm.store import PairMatches
from isinglass.types import Features

NO_TRACK = -1
_MOST_BLURRED = 3  # frames in a row that are passed over


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """When a frame becomes a keyframe. Raises InputError on values that make no sense.

    A frame is tracked if it has `least_matches` with a keyframe. It becomes a keyframe itself where, with the newest
    keyframe, it has less than `least_share` of the most matches that a frame had ("matches"), or its matches have moved
    by more than `most_motion` of the image's diagonal, by their median ("motion"), or that one is `most_frames` frames
    back ("frames").

    window           keyframes that a frame is matched to, the newest ones
    frame_keypoints  of a frame, the best ones, that are matched; keyframes have all. None = all
    least_matches    that one geometry explains, of a frame with a keyframe
    threshold_px     of that geometry, in px of the image as it is extracted
    least_sharpness  share of the sharpness around it (`sharpness.with_sharpness`) below which a frame is blurred: a
                     sharp frame within three frames becomes the keyframe instead, if one fits. 0 = off
    """

    window: int = 2
    frame_keypoints: int | None = 1024
    least_matches: int = 25
    least_share: float = 0.6
    most_motion: float = 0.15
    most_frames: int | None = None
    threshold_px: float = 3.0
    least_sharpness: float = 0.35

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("frame_keypoints", 8), ("least_matches", 8), ("most_frames", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name} is {value!r}; expected an integer of at least {least}")
        for name, most in (("least_share", 1.0), ("most_motion", 1.0), ("threshold_px", float("inf"))):
            if not 0 < getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0, at most {most}")
        if not 0 <= self.least_sharpness <= 1:
            raise InputError(f"least_sharpness is {self.least_sharpness}; expected 0 (off) to 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Keyframe:
    """A frame that later ones are matched to.

    number     of the frame
    why        "first", "matches", "motion", "frames" (see `TrackOptions`); "bridge": the next frame matches none but
               this one; "cut": this one matches none before it, and the next one does match it
    features   all, best first; descriptors are rounded to halves, as stores keep them
    track_ids  (N,) int64, of every keypoint
    matches    with earlier keyframes, by their number: from that keyframe to this one, as the matcher gives them
    """

    number: int
    why: str
    features: Features
    track_ids: np.ndarray
    matches: dict[int, PairMatches] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackedFrame:
    """What became of a frame.

    number     of the frame
    tracked    whether it matches a keyframe or is one; if not, the frame after it may still make it a keyframe
    features   all, best first
    track_ids  (N,) int64, -1 = none
    matches    (M, 2) int64 by number of the keyframe: (keypoint of the keyframe, of this frame), those that one
               geometry explains
    share      of the most matches that a frame had with the newest keyframe; 0 = none
    motion     median way of the matches with the newest keyframe, as a share of the image's diagonal; 0 = none
    added      keyframes that came with this frame: the frame before, this one, or both
    """

    number: int
    tracked: bool
    features: Features
    track_ids: np.ndarray
    matches: dict[int, np.ndarray]
    share: float
    motion: float
    added: tuple[Keyframe, ...]

    @property
    def keyframe(self) -> Keyframe | None:
        """This frame as a keyframe, if it is one."""
        return next((one for one in self.added if one.number == self.number), None)


@dataclass(eq=False)
class _View:
    """A frame on its way: features best first, their tracks so far, and whether it is blurred."""

    number: int
    features: Features
    track_ids: np.ndarray
    tracked: bool = False
    blurred: bool = False


_Link = tuple[Keyframe, np.ndarray]  # (M, 2) from the keyframe to a view


class Tracker:
    """Tracks through frames that are added one by one; for a video or folder see `sequences.track_sequence`.

    A track is a number, and every keypoint of a keyframe has one. A keypoint of a frame has that of the keyframe's
    keypoint it matches, of the newest keyframe first; no two keypoints of a frame have the same. When no keyframe has
    enough matches, the frame before becomes a keyframe if that one has ("bridge", or "cut" where it was not tracked
    either): so a single frame of blur, flash or black changes nothing, and after a cut ids are new.

    A blurred frame waits: up to three in a row become no keyframe, and the sharp frame before them may become a bridge.

    Raises InputError for a pipeline that turns images ("rotation": "auto"), MissingExtra without PoseLib.
    """

    def __init__(self, pipeline: Pipeline, options: TrackOptions | None = None) -> None:
        if pipeline.options.rotation == "auto":
            raise InputError("rotation is 'auto', which tracking does not try. Choose 'exif' or 'none'")
        self.pipeline, self.options = pipeline, options or TrackOptions()
        self.keyframes: tuple[Keyframe, ...] = ()  # the newest `window`, newest first
        self._previous: _View | None = None
        self._sharp: _View | None = None  # the last frame that is not blurred, for at most _MOST_BLURRED frames
        self._blurred = 0  # frames in a row
        self._last, self._next_id, self._best = -1, 0, 0

    def add(self, image: ImageSource, number: int | None = None, *, sharpness: float = 1.0) -> TrackedFrame:
        """Track the next frame. Raises InputError for an image that cannot be read; the tracker stays as it was."""
        return self.add_features(self.pipeline.extract(image), number, sharpness=sharpness)

    def add_features(self, features: Features, number: int | None = None, *, sharpness: float = 1.0) -> TrackedFrame:
        """Track the next frame by its features.

        number     one more than that of the frame before where it is not given
        sharpness  as a share of that of the frames around it, see `TrackOptions.least_sharpness`
        """
        number = self._last + 1 if number is None else number
        if number <= self._last:
            raise InputError(f"frame {number} came after frame {self._last}; expected a higher number")
        self._last = number
        view = self._view(features, number)
        view.blurred = sharpness < self.options.least_sharpness
        self._blurred = self._blurred + 1 if view.blurred else 0
        added: list[Keyframe] = []
        links = self._links(view, self.keyframes)
        if self.keyframes and not links and (bridge := self._bridge(view)) is not None:
            added.append(bridge)
            links = self._links(view, [bridge])
        share, motion = self._measure(links, view)
        _take_ids(view.track_ids, links)
        view.tracked = bool(links)
        why = self._due(view, links, share, motion)
        if why is not None and not self._waits(view):
            added.append(self._promote(view, why))
        self._previous = view
        if not view.blurred or self._blurred > _MOST_BLURRED:
            self._sharp = None if view.blurred else view
        return TrackedFrame(
            number=number,
            tracked=view.tracked,
            features=view.features,
            track_ids=view.track_ids.copy(),
            matches={keyframe.number: pairs for keyframe, pairs in links},
            share=share,
            motion=motion,
            added=tuple(added),
        )

    # --- to go on in another process

    def state(self) -> dict[str, Any]:
        """What is needed to go on after the last frame: numbers, texts and (N,) arrays of ids."""
        earlier = {one.number: one for one in (self._sharp, self._previous) if one is not None}
        return {
            "last": self._last,
            "next_id": self._next_id,
            "best": self._best,
            "blurred": self._blurred,
            "sharp": None if self._sharp is None else self._sharp.number,
            "window": [(one.number, one.why, one.track_ids) for one in self.keyframes],
            "earlier": [(one.number, one.tracked, one.blurred, one.track_ids.copy()) for one in earlier.values()],
        }

    def restore(
        self, state: dict[str, Any], keyframe: Callable[[int], Features], earlier: Mapping[int, Features]
    ) -> None:
        """Go on from a state; `keyframe` gives a keyframe's features, `earlier` has those of the state's frames."""
        self._last, self._next_id, self._best = (int(state[name]) for name in ("last", "next_id", "best"))
        self._blurred = int(state["blurred"])
        self.keyframes = tuple(
            Keyframe(
                number=number,
                why=why,
                features=self._as_keyframe(keyframe(number)),
                track_ids=np.array(ids, np.int64),
            )
            for number, why, ids in state["window"]
        )
        views = {}
        for number, tracked, blurred, ids in state["earlier"]:
            if number in earlier:
                view = self._view(earlier[number], number)
                view.track_ids, view.tracked, view.blurred = np.array(ids, np.int64), tracked, blurred
                views[number] = view
        self._previous, self._sharp = views.get(self._last), views.get(state["sharp"])

    # --- what add_features is made of

    def _view(self, features: Features, number: int) -> _View:
        features = features.to(self.pipeline.device)
        features = features.top(features.keypoints.shape[1])
        return _View(number, features, np.full(features.keypoints.shape[1], NO_TRACK, np.int64))

    def _as_keyframe(self, features: Features) -> Features:
        """With what stores keep of descriptors, in one layout: so a run that goes on has the same scores to the bit."""
        halves = features.descriptors.half().float().contiguous()
        return dataclasses.replace(features, descriptors=halves).to(self.pipeline.device)

    def _links(self, view: _View, earlier: Sequence[Keyframe]) -> list[_Link]:
        """Of the earlier keyframes those that the view matches, with the matches that one geometry explains."""
        count = view.features.keypoints.shape[1]
        if not earlier or count < self.options.least_matches:
            return []
        most = self.options.frame_keypoints
        few = (
            view.features
            if most is None or count <= most
            else view.features.select(torch.arange(most, device=view.features.device))
        )
        found = self._match(earlier, few)
        links = [
            (one, self._explained(one.features, few, pairs.pairs())) for one, pairs in zip(earlier, found, strict=True)
        ]
        return [link for link in links if len(link[1]) >= self.options.least_matches]

    def _match(self, earlier: Sequence[Keyframe], features: Features) -> list[PairMatches]:
        with self.pipeline.timed("match"):  # one object stays one, so the matcher prepares the frame once
            found = self.pipeline.matcher.match_many([one.features for one in earlier], [features] * len(earlier))
        return [PairMatches.of(one) for one in found]

    def _explained(self, features0: Features, features1: Features, pairs: np.ndarray) -> np.ndarray:
        points0, points1 = (
            one.keypoints[0].cpu().numpy()[pairs[:, side]] for side, one in enumerate((features0, features1))
        )
        with self.pipeline.timed("verify"):
            threshold_px = self.options.threshold_px * self.pipeline.options.original_px(
                features1.image_size[0].tolist()
            )
            inliers = estimate(points0, points1, threshold_px=threshold_px).inliers
        return pairs[inliers].astype(np.int64)

    def _waits(self, view: _View) -> bool:
        """Whether a frame is no keyframe yet, as a sharp one is near."""
        return view.blurred and self._blurred <= _MOST_BLURRED

    def _bridge(self, view: _View) -> Keyframe | None:
        """Promote a frame before this one that it matches: the last sharp one, or else the one before."""
        for earlier in (self._sharp, None if self._previous is self._sharp else self._previous):
            if earlier is None or any(earlier.number == one.number for one in self.keyframes):
                continue
            if self._waits(earlier) and not earlier.tracked:  # the beginning of a new scene, which can begin sharply
                continue
            count = earlier.features.keypoints.shape[1]
            alone = Keyframe(number=earlier.number, why="", features=earlier.features, track_ids=np.arange(count))
            if self._links(view, [alone]):
                return self._promote(earlier, "bridge" if earlier.tracked else "cut")
        return None

    def _measure(self, links: Sequence[_Link], view: _View) -> tuple[float, float]:
        """Share and motion, see `TrackedFrame`."""
        if not links or links[0][0] is not self.keyframes[0]:
            return 0.0, 0.0
        keyframe, pairs = links[0]
        self._best = max(self._best, len(pairs))
        points0 = keyframe.features.keypoints[0].cpu().numpy()[pairs[:, 0]]
        points1 = view.features.keypoints[0].cpu().numpy()[pairs[:, 1]]
        diagonal = float(np.hypot(*view.features.image_size[0].tolist()))
        return len(pairs) / self._best, float(np.median(np.linalg.norm(points1 - points0, axis=1))) / diagonal

    def _due(self, view: _View, links: Sequence[_Link], share: float, motion: float) -> str | None:
        """Why the view becomes a keyframe; None = it does not."""
        o = self.options
        if not self.keyframes:
            return "first" if view.features.keypoints.shape[1] >= o.least_matches else None
        if not links:
            return None
        if share < o.least_share:
            return "matches"
        if motion > o.most_motion:
            return "motion"
        return (
            "frames" if o.most_frames is not None and view.number - self.keyframes[0].number >= o.most_frames else None
        )

    def _promote(self, view: _View, why: str) -> Keyframe:
        """The view as the newest keyframe: all its keypoints are matched to those before, and all have tracks then."""
        features = self._as_keyframe(view.features)
        found = self._match(self.keyframes, features) if self.keyframes else []
        links = [
            (one, self._explained(one.features, features, pairs.pairs()))
            for one, pairs in zip(self.keyframes, found, strict=True)
        ]
        _take_ids(view.track_ids, [link for link in links if len(link[1]) >= self.options.least_matches])
        new = np.flatnonzero(view.track_ids == NO_TRACK)
        view.track_ids[new] = self._next_id + np.arange(len(new))
        self._next_id += len(new)
        view.tracked = True
        keyframe = Keyframe(
            number=view.number,
            why=why,
            features=features,
            track_ids=view.track_ids.copy(),
            matches={one.number: pairs for one, pairs in zip(self.keyframes, found, strict=True)},
        )
        self.keyframes = (keyframe, *self.keyframes)[: self.options.window]
        self._best = 0
        return keyframe


def _take_ids(track_ids: np.ndarray, links: Sequence[_Link]) -> None:
    """Give keypoints without a track that of what they match, unless another keypoint of the frame has it."""
    for keyframe, pairs in links:
        ids = keyframe.track_ids[pairs[:, 0]]
        free = (track_ids[pairs[:, 1]] == NO_TRACK) & ~np.isin(ids, track_ids)
        track_ids[pairs[free, 1]] = ids[free]
