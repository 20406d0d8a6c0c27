"""What a matcher did with one pair of photos, to look at: its trace, beside photos, features and matches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isinglass.errors import InputError
from isinglass.geometry.robust import RobustResult
from isinglass.images import ImageSource
from isinglass.inspection.lightglue import trace_lightglue
from isinglass.inspection.nearest import trace_nearest
from isinglass.inspection.payload import match_payload, pack
from isinglass.inspection.record import Tell, Trace, check_tops
from isinglass.inspection.superglue import trace_superglue
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.nearest import Nearest
from isinglass.matchers.superglue import SuperGlue
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.result import MatchResult, geometry_if_installed
from isinglass.types import Features, Matcher


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Inspection:
    """One pair, matched and traced. `result.matches` are those of the trace.

    images, names  of the two photos
    options        that give these matches: the precision is float32, that of the trace
    robust         the geometry that the matches agree on; None = PoseLib is not installed
    num_layers     of the matcher; None = it has none
    masks          what people call the masks that the photos had
    """

    images: tuple[ImageSource, ImageSource]
    names: tuple[str, str]
    result: MatchResult
    trace: Trace
    options: Options
    robust: RobustResult | None
    num_layers: int | None
    masks: tuple[str | None, str | None] = (None, None)

    def payload(self) -> dict[str, Any]:
        """What pages draw, of the kind "inspect"; see `isinglass.inspection.payload`."""
        found = match_payload(
            self.result,
            *self.images,
            names=self.names,
            options=self.options,
            robust=self.robust,
            num_layers=self.num_layers,
            masks=self.masks,
        )
        if self.trace.kind == "lightglue":
            found["matches"]["layers"] = pack(self.trace.since().byte())
        return {**found, "kind": "inspect", "trace": self.trace.payload()}

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON: what came of the pair, and how many matches each step predicted."""
        matches, robust = self.result.matches, self.robust
        return {
            "image0": self.names[0],
            "image1": self.names[1],
            "extractor": self.result.features0.signature.extractor,
            "matcher": matches.matcher,
            "num_keypoints0": self.result.features0.keypoints.shape[1],
            "num_keypoints1": self.result.features1.keypoints.shape[1],
            "num_matches": len(matches.pairs()),
            "num_inliers": None if robust is None else robust.num_inliers,
            "stop_layer": None if matches.stop_layer is None else int(matches.stop_layer),
            "num_layers": self.num_layers,
            "ended": self.trace.ended,
            "steps": [
                {
                    "name": step.name,
                    "matches": len(step.pairs),
                    "confident_share": step.confident_share,
                    "pruned": None if step.pruned is None else sum(map(len, step.pruned)),
                    "marginal_error": step.marginal_error,
                }
                for step in self.trace.steps
            ],
            "timings_ms": self.result.timings_ms,
        }


def inspect(
    image0: ImageSource,
    image1: ImageSource,
    pipeline: Pipeline,
    *,
    mask0: ImageSource | None = None,
    mask1: ImageSource | None = None,
    attention: int = 8,
    alternatives: int = 5,
) -> Inspection:
    """Match two photos with the pipeline and trace what its matcher did.

    attention     keypoints to keep of what each head of each layer attends to, the most attended first; 0 = none
    alternatives  partners to keep of each keypoint in the assignment of each step

    Raises InputError where the photos cannot be used or the matcher is none that can be traced.
    """
    _check_traceable(pipeline.matcher)
    check_tops(attention, alternatives)
    result = pipeline.match(image0, image1, mask0=mask0, mask1=mask1)
    masks = (
        None if mask0 is None else _name(mask0, "mask0.png"),
        None if mask1 is None else _name(mask1, "mask1.png"),
    )
    images = image0, image1
    return inspect_result(result, images, pipeline, masks=masks, attention=attention, alternatives=alternatives)


def inspect_result(
    result: MatchResult,
    images: tuple[ImageSource, ImageSource],
    pipeline: Pipeline,
    *,
    names: tuple[str, str] | None = None,
    masks: tuple[str | None, str | None] = (None, None),
    attention: int = 8,
    alternatives: int = 5,
    tell: Tell = lambda step: None,
) -> Inspection:
    """Likewise, of what `pipeline` matched already; `names` and `masks` are what people call the photos and masks.

    tell  hears of each layer and iteration of the trace, and may raise to stop it
    """
    start, features = time.perf_counter(), (result.features0, result.features1)
    found = trace(pipeline.matcher, *features, attention=attention, alternatives=alternatives, tell=tell)
    timings_ms = {**result.timings_ms, "trace": (time.perf_counter() - start) * 1e3}
    result = replace(result, matches=found.matches, timings_ms=timings_ms)
    return Inspection(
        images=images,
        names=names or (_name(images[0], "first.png"), _name(images[1], "second.png")),
        result=result,
        trace=found,
        options=replace(pipeline.options, precision="float32"),
        robust=geometry_if_installed(result),
        num_layers=pipeline.num_layers,
        masks=masks,
    )


def trace(
    matcher: Matcher,
    features0: Features,
    features1: Features,
    *,
    attention: int = 8,
    alternatives: int = 5,
    tell: Tell = lambda step: None,
) -> Trace:
    """Trace one pair of features, each of one image; the options are as of `inspect_result`.

    The run is that of `matcher.match` in the precision of the weights: the same exits, pruning and matches. It is
    computed again by the plain modules, which write down what they see, and so takes longer and holds (M, N)
    matrices. Raises InputError for another matcher than LightGlue, SuperGlue and Nearest, and as `match` does.
    """
    _check_traceable(matcher)
    check_tops(attention, alternatives)
    views = features0, features1
    if isinstance(matcher, LightGlue):
        return trace_lightglue(matcher, *views, attention=attention, alternatives=alternatives, tell=tell)
    if isinstance(matcher, SuperGlue):
        return trace_superglue(matcher, *views, attention=attention, alternatives=alternatives, tell=tell)
    assert isinstance(matcher, Nearest)
    return trace_nearest(matcher, *views, alternatives=alternatives)


def _check_traceable(matcher: Matcher) -> None:
    if not isinstance(matcher, LightGlue | SuperGlue | Nearest):
        raise InputError(
            f"the matcher {matcher.name!r} cannot be inspected; expected LightGlue, SuperGlue or Nearest, whose steps "
            "are known. Use `match`, or one of these"
        )


def _name(image: ImageSource, otherwise: str) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else otherwise
