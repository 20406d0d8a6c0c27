"""Photos that are stored turned by 90, 180 or 270 degrees without EXIF saying so: found where a map falls apart.

Learned features do not match across such turns. Only some of the photos that the largest model lacks are looked at,
each with its neighbours in the order of names, under four turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from isinglass.errors import IsinglassError
from isinglass.pipeline import CHEAP_KEYPOINTS, Pipeline
from isinglass.result import geometry_if_installed
from isinglass.sfm.options import LEAST_INLIERS
from isinglass.types import Features

_LOOKED_AT, _NEIGHBOURS = 6, 2  # photos, and photos of the largest model that each is matched with
_RESIZE_PX = 640
_CLEARLY = 2.0  # times the inliers that there are without a turn


def find_turned(photos: Path, pipeline: Pipeline, names: Sequence[str], placed: Sequence[str]) -> dict[str, int]:
    """Return, by name, the quarter turns (counter-clockwise) under which photos match those that are `placed`.

    names   of all photos with features, in order; placed: those of the largest model, or the one photo to begin with

    Never raises: this only looks for a reason.
    """
    known, place = set(placed), {name: i for i, name in enumerate(names)}
    rest = [name for name in names if name not in known]
    if not known or not rest:
        return {}
    models: Any = {"custom_extractor": pipeline.extractor, "custom_matcher": pipeline.matcher}
    resize = min(pipeline.options.resize or _RESIZE_PX, _RESIZE_PX)
    options = asdict(replace(pipeline.options, resize=resize, device=str(pipeline.device)))
    turned: dict[str, int] = {}
    try:
        probe = Pipeline(**models, **options)
        features: dict[str, Features] = {}
        for name in rest[:: max(1, -(-len(rest) // _LOOKED_AT))]:
            candidates = probe.extract_turns(photos / name)
            for other in sorted(known, key=lambda other: abs(place[other] - place[name]))[:_NEIGHBOURS]:
                if other not in features:
                    features[other] = probe.extract(photos / other)
                if turn := _best_turn(probe, features[other], candidates):
                    turned[name] = turn
                    break
    except (IsinglassError, RuntimeError, LookupError, ValueError):  # a reason that cannot be found is none
        return turned
    return turned


def _best_turn(pipeline: Pipeline, features: Features, candidates: Sequence[Features]) -> int:
    """Return the turn under which clearly more matches agree with a geometry; 0 where none is better than as stored."""
    small = [candidate.top(CHEAP_KEYPOINTS) for candidate in candidates]
    found = pipeline.matcher.match_many([features.top(CHEAP_KEYPOINTS)] * len(small), small)
    counts = [len(matches.pairs()) for matches in found]
    best = counts.index(max(counts))
    if not best:
        return 0
    as_stored, turned = (_inliers(pipeline, features, candidates[turn]) for turn in (0, best))
    return best if turned >= max(LEAST_INLIERS, _CLEARLY * as_stored) else 0


def _inliers(pipeline: Pipeline, features0: Features, features1: Features) -> int:
    (result,) = pipeline.match_features([features0], [[features1]])
    geometry = geometry_if_installed(result)
    return 0 if geometry is None or geometry.model is None else geometry.num_inliers


def explain_turned(turned: dict[str, int]) -> str:
    """Return what to do about photos that are stored turned."""
    degrees = " or ".join(f"{90 * turn}" for turn in sorted(set(turned.values())))
    shown = ", ".join(turned)
    return (
        f"photos seem to be stored turned, without EXIF saying so: {shown} (and maybe others) match the rest when "
        f"turned by {degrees} degrees counter-clockwise. Turn these files, or set their EXIF orientation, and map again"
    )
