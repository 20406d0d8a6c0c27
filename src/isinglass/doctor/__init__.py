"""Why few matches: what can be measured about a pair, in words, with what to do about it.

Causes are shown, not guessed, wherever that can be: rotation, scale and the least score are blamed only after the pair
was matched again without them and gave far more. Exposure, sharpness and keypoints are held against rules of thumb,
so they are no more than warnings where the pair matches well.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from isinglass.doctor import checks
from isinglass.doctor.report import CHECKS, POOR_INLIERS, Diagnosis, Finding, Stages
from isinglass.doctor.trials import SIZES, Pair, Remedy, Setting, Trial, try_match
from isinglass.errors import InputError
from isinglass.images import ImageSource
from isinglass.pipeline import Pipeline
from isinglass.types import Features, Matcher

__all__ = ["Diagnosis", "Finding", "Stages", "diagnose", "diagnose_features"]

RULES_OF_THUMB = ("exposure", "keypoints", "coordinates")
LARGE_TURN_DEG = 45.0  # beyond this a quarter turn comes nearer to upright
LARGE_SCALE = 3.0  # from here on unequal sizes cost matches
LITTLE_OVERLAP = 0.1  # of both images: matches crowd in a corner
LOWER_SCORE = 0.1  # times the matcher's own least score, to see whether that hides good matches


def diagnose(
    image0: ImageSource,
    image1: ImageSource,
    *,
    pipeline: Pipeline,
    mask0: ImageSource | None = None,
    mask1: ImageSource | None = None,
    thorough: bool = False,
) -> Diagnosis:
    """Why `pipeline` finds few matches between two images, or that it finds enough.

    A poor pair (few or unsure matches), or any if `thorough`, is matched again: with image 1 under the other quarter
    turns, at other sizes, and both, until one gives far more (at most 19 times); then with a lower least score.

    Keypoints are looked for where masks are not zero, as `Pipeline.match` does. Raises InputError on images or masks
    that cannot be read.
    """
    pair = Pair((image0, image1), pipeline, (mask0, mask1))
    plain = pair.plain()
    base = pair.trial(plain)
    flat = [checks.flat_share(*one) for one in zip(pair.seen, base.features, strict=True)]
    findings = [
        checks.signature(base),
        checks.values(base.features),
        *checks.reading(pair.notes),
        checks.exposure(pair.seen),
        checks.sharpness(pair.seen, pair.sides_px),
        checks.keypoints(base.features, flat, pipeline.options),
    ]
    remedy, searched = None, base.matches is not None and (thorough or base.is_poor)
    if searched:
        remedy = pair.remedy(plain, base)
        findings += _threshold(pair, plain, base) if remedy is None else []
    return _diagnosis([*findings, *_outcome(base, remedy, searched)], base)


def diagnose_features(features0: Features, features1: Features, matcher: Matcher) -> Diagnosis:
    """The same for stored features of one image each, as far as it can be told without the images.

    Raises InputError where features are of several images, or padded.
    """
    for one in (features0, features1):
        if len(one) != 1 or one.mask is not None:
            raise InputError(f"features of {len(one)} images, or padded; expected those of one image (use f[i])")
    base = try_match(features0, features1, matcher)
    findings = [check(base.features) for check in (checks.values, checks.coordinates, checks.keypoints)]
    return _diagnosis([checks.signature(base), *findings, *_outcome(base)], base)


def _outcome(base: Trial, remedy: Remedy | None = None, searched: bool = False) -> list[Finding]:
    """Findings about what was matched; none where nothing could be."""
    if base.matches is None:
        return []
    best = base if remedy is None else remedy.trial
    similar = _similarity(best)
    found = _rotation(base, remedy, similar), _scale(base, remedy, similar)
    return [*(one for one in found if one), _overlap(best, searched), _geometry(base)]


def _diagnosis(findings: Sequence[Finding], base: Trial) -> Diagnosis:
    count0, count1 = (one.keypoints.shape[1] for one in base.features)
    stages = Stages(keypoints0=count0, keypoints1=count1)
    if base.matches is not None:
        inliers = None if base.inliers is None else int(base.inliers.sum())
        candidates = int((base.matches.scores > 0).sum())
        stages = replace(stages, candidates=candidates, matches=base.num_matches, inliers=inliers)
        findings = [*findings, _matching(stages, base)]
    if not base.is_poor:
        findings = [
            replace(one, status="warning") if one.check in RULES_OF_THUMB and one.status == "problem" else one
            for one in findings
        ]
    return Diagnosis(findings=tuple(sorted(findings, key=lambda one: CHECKS.index(one.check))), stages=stages)


# --- findings about what was matched


def _rotation(base: Trial, remedy: Remedy | None, similar: tuple[float, float] | None) -> Finding | None:
    if remedy is not None and remedy.turn:
        how = {1: "90 degrees counter-clockwise", 2: "180 degrees", 3: "90 degrees clockwise"}[remedy.turn]
        measured = f"{remedy.trial.compared_with(base)} once image 1 is turned by {how}"
        measured += "" if remedy.size == 1 else " and resized"
        advice = f"Turn image 1 by {how}."
        if remedy.is_auto:
            advice = f'Use rotation="auto" (--rotation auto), or turn image 1 by {how}.'
        return Finding(check="rotation", status="problem", measured=measured, advice=advice)
    if similar is None:
        return None
    degrees = math.degrees(similar[1])
    side = "clockwise" if degrees > 0 else "counter-clockwise"
    measured = f"image 1 appears turned by {abs(degrees):.0f} degrees {side} against image 0"
    if abs(degrees) < LARGE_TURN_DEG:
        return Finding(check="rotation", status="ok", measured=measured)
    advice = 'rotation="auto" (--rotation auto) finds a better quarter turn.'
    return Finding(check="rotation", status="warning", measured=measured, advice=advice)


def _scale(base: Trial, remedy: Remedy | None, similar: tuple[float, float] | None) -> Finding | None:
    if remedy is not None and remedy.size != 1:
        i, factor = (1, 1 / remedy.size) if remedy.size < 1 else (0, remedy.size)
        gain = f"{remedy.trial.compared_with(base)} once image {i} is shrunk {factor:g} times"
        gain += " and image 1 turned" if remedy.turn else ""
        side0, side1 = remedy.trial.sides_px
        advice = (
            f"Extract image 0 with resize={side0} and image 1 with resize={side1} and match those features "
            f"(Pipeline.match_many), or crop image {1 - i} to what image {i} shows."
        )
        return Finding(check="scale", status="problem", measured=gain, advice=advice)
    if similar is None:
        return None
    larger, sides = int(similar[0] > 1), base.sides_px
    factor = max(similar[0], 1 / max(similar[0], 1e-6))
    measured = (
        f"at long sides of {sides[0]} and {sides[1]} px, image {larger} shows things {factor:.1f} times as large as "
        f"image {1 - larger}"
    )
    if factor < LARGE_SCALE:
        return Finding(check="scale", status="ok", measured=measured)
    advice = f"Crop image {1 - larger} to what image {larger} shows, or extract image {larger} with a smaller resize."
    return Finding(check="scale", status="warning", measured=measured, advice=advice)


def _threshold(pair: Pair, plain: Setting, base: Trial) -> list[Finding]:
    """Whether a lower least score would help; nothing for matchers without one."""
    own = getattr(getattr(pair.pipeline.matcher, "config", None), "filter_threshold", None)
    if own is None:
        return []
    trial, score = pair.at_least_score(own * LOWER_SCORE, plain), f"{own * LOWER_SCORE:.2g}"
    measured = f"{trial.compared_with(base)} with a least score of {score} instead of {own:.2g}"
    if not trial.shows_cause(base):
        return [Finding(check="threshold", status="ok", measured=measured)]
    advice = f"Use filter_threshold={score} (--filter-threshold {score})."
    return [Finding(check="threshold", status="problem", measured=measured, advice=advice)]


def _overlap(best: Trial, searched: bool) -> Finding:
    """How much of each image lies within the matches that agree."""
    if not best.believed:
        measured = "no part of image 0 was found in image 1"
        advice = "Run `isinglass doctor` on the photos: it tries turns and sizes."
        if searched:
            measured += f", at any of 4 quarter turns and {len(SIZES)} relative sizes"
            advice = "Check that both photos show the same place from a similar side; add photos in between."
        return Finding(check="overlap", status="problem", measured=measured, advice=advice)
    shares = []
    for view, features in enumerate(best.features):
        short, long = sorted(features.image_size[0].tolist())
        area = best.sides_px[view] ** 2 * short / long
        shares.append(min(_hull_area(best.agreeing(view)) / area, 1.0))
    measured = f"the matches that agree span {shares[0]:.0%} of image 0 and {shares[1]:.0%} of image 1"
    if max(shares) >= LITTLE_OVERLAP:
        return Finding(check="overlap", status="ok", measured=measured)
    advice = "Use photos that share more of the scene, or crop both to what they share."
    return Finding(check="overlap", status="warning", measured=measured, advice=advice)


def _geometry(base: Trial) -> Finding:
    """Whether the plain matches agree on one geometry (a homography or a fundamental matrix)."""
    if base.inliers is None:
        advice = "pip install 'isinglass[geometry]'"
        return Finding(check="geometry", status="warning", measured="not checked: no PoseLib here", advice=advice)
    measured = f"{base.count} of {base.num_matches} matches agree on one camera movement"
    if not base.is_poor:
        return Finding(check="geometry", status="ok", measured=measured)
    if base.num_matches < POOR_INLIERS or base.believed:
        advice = "Too few to rely on: first get more matches."
        return Finding(check="geometry", status="warning", measured=measured, advice=advice)
    advice = "These matches are wrong, as with repeated patterns or different places: do not use them."
    return Finding(check="geometry", status="problem", measured=measured, advice=advice)


def _matching(stages: Stages, base: Trial) -> Finding:
    """Which stage lost the matches."""
    assert base.matches is not None
    best = float(base.matches.scores.max()) if base.matches.scores.numel() else 0.0
    measured = (
        f"{stages.keypoints0} and {stages.keypoints1} keypoints, {stages.candidates} pairs are each other's best, "
        f"{stages.matches} are sure enough to be matches (best score {best:.2f})"
    )
    advice = {
        "detector": "Most is lost for want of keypoints: see keypoints.",
        "descriptors": "Most is lost because the images look different to the extractor: try another (--extractor).",
        "threshold": "Most is lost because the matcher is not sure: see the checks above.",
        "geometry": "Most is lost because the matches contradict one another: see geometry.",
        None: "",
    }[stages.lost_at]
    return Finding(check="matching", status="warning" if advice else "ok", measured=measured, advice=advice)


# --- geometry in the plane


def _similarity(trial: Trial) -> tuple[float, float] | None:
    """(scale, angle in rad, clockwise as seen) from image 0 to 1 of the matches that agree, by least squares.

    With points as complex numbers z0, z1 about their means: z1 = a z0, a = sum(conj(z0) z1) / sum(|z0|^2).
    """
    if not trial.believed:
        return None
    z0, z1 = (torch.view_as_complex(trial.agreeing(view).contiguous()) for view in (0, 1))
    z0, z1 = z0 - z0.mean(), z1 - z1.mean()
    spread = float((z0.conj() * z0).real.sum())
    a = complex((z0.conj() * z1).sum()) / spread if spread > 0 else 0
    return (abs(a), cmath.phase(a)) if a else None


def _hull_area(points: Tensor) -> float:
    """Area of the convex hull of points (K, 2), by Andrew's monotone chain."""
    ordered = sorted(set(map(tuple, points.tolist())))
    area = 0.0
    for chain_points in (ordered, ordered[::-1]):
        chain: list[tuple[float, ...]] = []
        for point in chain_points:
            while len(chain) > 1 and _cross(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        area += sum(p[0] * q[1] - q[0] * p[1] for p, q in pairwise(chain)) / 2
    return area


def _cross(origin: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float:
    return (a[0] - origin[0]) * (b[1] - origin[1]) - (a[1] - origin[1]) * (b[0] - origin[0])
