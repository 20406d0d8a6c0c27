"""The pair matched as it is, and otherwise: turned, resized, with a lower least score."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isinglass.doctor.report import POOR_INLIERS
from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.robust import estimate
from isinglass.images import ImageSource, read_photo, resized, whole
from isinglass.pipeline import CHEAP_KEYPOINTS, Pipeline
from isinglass.types import Features, Matcher, Matches

# In 144 tries with unrelated photos, ALIKED and LightGlue gave at most 30 agreeing matches, with scores that add up to
# 8; close-ups that they just about match give 13 and more.
MIN_EVIDENCE = 12.0  # sum of scores of agreeing matches, about the number of right ones, that is not taken for chance
GAIN = 2  # a change shows a cause if it gives this many times the evidence
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of image 1 relative to image 0; learned matchers bear a factor of 2 by themselves
SIDE_PX = 1024  # long side that stored features are taken to be extracted at


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A pair's features, what a matcher made of them (None = it refused, and why), and which matches agree."""

    features: tuple[Features, Features]
    sides_px: tuple[int, int]  # long sides of what the extractor saw
    matcher: Matcher
    matches: Matches | None = None
    refusal: str = ""
    inliers: Tensor | None = None  # (M,) bool on the CPU, none True if no geometry beats chance; None = no PoseLib here

    @property
    def num_matches(self) -> int:
        """Over the matcher's least score."""
        return 0 if self.matches is None else len(self.matches.pairs())

    @property
    def count(self) -> int:
        """Inliers; where they are not known half the matches, since unrelated photos have up to 30 of those."""
        return self.num_matches // 2 if self.inliers is None else int(self.inliers.sum())

    @property
    def evidence(self) -> float:
        """The sum of scores of the matches that agree; where those are not known, half of that of all."""
        if self.matches is None:
            return 0.0
        scores = self.matches.pair_scores().cpu()
        return float(scores.sum()) / 2 if self.inliers is None else float(scores[self.inliers].sum())

    @property
    def believed(self) -> bool:
        """Whether so many matches agree that it is hardly chance."""
        return self.evidence >= MIN_EVIDENCE

    @property
    def is_poor(self) -> bool:
        """Whether a cause should be looked for."""
        return self.count < POOR_INLIERS or not self.believed

    def matched(self, view: int) -> Tensor:
        """(M, 2) float64, matched keypoints of a view in px of what the extractor saw, turned and resized."""
        assert self.matches is not None
        seen = self.features[view].as_seen()
        points = seen.keypoints[0, self.matches.pairs()[:, view]].cpu().double()
        return points * (self.sides_px[view] / float(seen.image_size.max()))

    def agreeing(self, view: int) -> Tensor:
        """Those of `matched` that agree."""
        return self.matched(view) if self.inliers is None else self.matched(view)[self.inliers]

    def shows_cause(self, base: Trial) -> bool:
        """Whether this is so much better than `base` that what was changed is to blame."""
        return self.believed and self.evidence >= GAIN * base.evidence

    def compared_with(self, base: Trial) -> str:
        """In words, as "812 agreeing matches instead of 9"."""
        if self.inliers is None or base.inliers is None:
            return f"{self.num_matches} matches instead of {base.num_matches}"
        return f"{self.count} agreeing matches instead of {base.count}"


def try_match(
    features0: Features, features1: Features, matcher: Matcher, sides_px: tuple[int, int] = (SIDE_PX, SIDE_PX)
) -> Trial:
    """One match and, by PoseLib, which of its matches agree."""
    trial = Trial(features=(features0, features1), sides_px=sides_px, matcher=matcher)
    try:
        (matches,) = matcher.match_many([features0], [features1])
    except InputError as error:
        return replace(trial, refusal=str(error))
    trial = replace(trial, matches=matches)
    try:
        return replace(trial, inliers=torch.from_numpy(estimate(trial.matched(0), trial.matched(1)).inliers))
    except MissingExtra:
        return trial


class Setting(NamedTuple):
    """How image 1 is shown to the extractor."""

    turn: int  # quarter turns counter-clockwise
    size: float  # relative to image 0, times what the pipeline does


class Remedy(NamedTuple):
    """What helps, and the match that shows it."""

    turn: int  # further quarter turns
    size: float
    trial: Trial
    is_auto: bool  # whether rotation="auto" turns image 1 likewise


class Pair:
    """Two images with their masks, None = no mask, and a pipeline whose options are varied."""

    def __init__(
        self,
        images: tuple[ImageSource, ImageSource],
        pipeline: Pipeline,
        masks: tuple[ImageSource | None, ImageSource | None] = (None, None),
    ) -> None:
        self.images, self.pipeline, self.masks = images, pipeline, masks
        photos = [read_photo(image, stretch=pipeline.options.stretch) for image in images]
        self.notes = [f"image {i}: {note}" for i, photo in enumerate(photos) for note in photo.notes]
        views = [whole(photo.image) for photo in photos]
        self.sides_px = [max(one.size) for one in views]
        self.seen = [resized(one, pipeline.options.resize).image.mean(dim=0) for one in views]  # (H, W) brightness
        self.known: dict[tuple[int, int], list[Features]] = {}

    def side_px(self, view: int, size: float) -> int:
        """The long side that the extractor sees. The image that shows things larger is shrunk, none enlarged."""
        shrink = min(size, 1) if view else 1 / max(size, 1)
        return max(round((self.pipeline.options.resize or self.sides_px[view]) * shrink), 1)

    def features(self, view: int, size: float, turns: int = 1) -> list[Features]:
        """Features of a view under 0 to `turns` - 1 quarter turns."""
        side = self.side_px(view, size)
        if len(self.known.get((view, side), ())) < turns:
            options = replace(self.pipeline.options, resize=side)
            varied = Pipeline.of_models(options, self.pipeline.extractor, self.pipeline.matcher)
            self.known[view, side] = varied.extract_turns(self.images[view], self.masks[view], turns=range(turns))
        return self.known[view, side]

    def auto_turn(self) -> int:
        """The quarter turn that rotation="auto" chooses."""
        candidates = [one.top(CHEAP_KEYPOINTS) for one in self.features(1, 1.0, 4)]
        try:
            found = self.pipeline.matcher.match_many([self.features(0, 1.0)[0].top(CHEAP_KEYPOINTS)] * 4, candidates)
        except InputError:  # the matcher refuses these features; `trial` will say so
            return 0
        counts = [len(one.pairs()) for one in found]
        return counts.index(max(counts))

    def plain(self) -> Setting:
        """What the pipeline does by its own options."""
        return Setting(self.auto_turn() if len(self.pipeline.turns) > 1 else 0, 1.0)

    def trial(self, setting: Setting, matcher: Matcher | None = None) -> Trial:
        """A full match."""
        features0 = self.features(0, setting.size)[0]
        features1 = self.features(1, setting.size, setting.turn + 1)[setting.turn]
        sides_px = self.side_px(0, setting.size), self.side_px(1, setting.size)
        return try_match(features0, features1, matcher or self.pipeline.matcher, sides_px)

    def remedy(self, plain: Setting, base: Trial) -> Remedy | None:
        """The best other quarter turn, if it shows a cause; else the best other size; else the best of both at once."""
        sizes = [size for size in SIZES if size != 1]
        turned = [Setting(turn, 1.0) for turn in range(4) if turn != plain.turn]
        both = [Setting(one.turn, size) for one in turned for size in sizes]
        for settings in (turned, [Setting(plain.turn, size) for size in sizes], both):
            trials = [self.trial(one) for one in settings]
            best, (turn, size) = max(zip(trials, settings, strict=True), key=lambda one: one[0].evidence)
            if best.shows_cause(base):
                return Remedy((turn - plain.turn) % 4, size, best, size == 1 and turn == self.auto_turn())
        return None

    def at_least_score(self, score: float, setting: Setting) -> Trial:
        """A full match with another least score, by a copy of the matcher that shares its weights."""
        matcher: Any = copy.copy(self.pipeline.matcher)
        matcher.config = replace(matcher.config, filter_threshold=score)
        return self.trial(setting, matcher)
