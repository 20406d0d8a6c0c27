"""Checks of what comes in: who made the features, their numbers, the images' exposure and sharpness, the keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.doctor.report import POOR_INLIERS, Finding, Status
from isinglass.doctor.trials import Trial
from isinglass.options import Options
from isinglass.types import PIXEL_CONVENTION, Features

ONE_COLOUR = 0.5 / 255  # standard deviation of brightness (0 = black, 1 = white) that is rounding alone
LOW_CONTRAST = 0.03  # of the same: from here down ALIKED finds ever fewer keypoints
CLIPPED = 2.5 / 255  # as near to black or white as this, 8 bits hold no detail
CLIPPED_WARNING, CLIPPED_PROBLEM = 0.5, 0.9  # share of pixels; night photos and drawings come near the first
SMOOTH_RATIO = 0.2  # of the Laplacian's variance to that at half the size; smooth: 1/16, a sharp photo: 0.4 and more
BLURRED_PX = 8  # finest detail from which on descriptors see mostly blur
FEW_KEYPOINTS = 256  # half of the fewest that LightGlue's paper measures with
FLAT, FLAT_RADIUS_PX = 4 / 255, 5  # a range of brightness that is rounding and noise, within about a keypoint's patch
FLAT_WARNING, FLAT_PROBLEM = 0.3, 0.8  # share of keypoints in such places
RESIZED_SHARE = 0.6  # keypoints only in so much of both sides, from the top left, look like those of a smaller copy


def signature(base: Trial) -> Finding:
    """Whether the matcher is for these features."""
    made0, made1 = (one.signature for one in base.features)
    accepts, name = getattr(base.matcher, "accepts", None), base.matcher.name
    measured, advice = f"both images have features of {made0.extractor}, which {name} takes", ""
    if made0 != made1:
        measured, advice = f"image 0 has features of {made0}, image 1 of {made1}", "Extract both images alike."
    elif made0.convention != PIXEL_CONVENTION:
        measured = f"keypoints follow the convention {made0.convention!r}, not {PIXEL_CONVENTION!r}"
        advice = "Extract again, or shift the keypoints and write that convention into the signature."
    elif accepts is not None and made0.extractor not in accepts:
        measured = f"the features are of {made0.extractor}, but {name} was made for {' or '.join(accepts)}"
        advice = f'Use extractor="{accepts[0]}" (--extractor {accepts[0]}) or matcher="nearest" (--matcher nearest).'
    elif base.refusal:
        measured, advice = f"{name} refuses the features: {base.refusal}", "Extract both images again."
    return Finding(check="signature", status="problem" if advice else "ok", measured=measured, advice=advice)


def values(features: Sequence[Features]) -> Finding:
    """Whether all numbers are finite."""
    broken = [
        f"{count} numbers of the {name} of image {i} are NaN or infinite"
        for i, one in enumerate(features)
        for name, value in (("keypoints", one.keypoints), ("descriptors", one.descriptors), ("scores", one.scores))
        if (count := int((~torch.isfinite(value)).sum()))
    ]
    if not broken:
        return Finding(check="values", status="ok", measured="all numbers are finite")
    advice = "Extract again, in float32 if it was in half precision."
    return Finding(check="values", status="problem", measured="; ".join(broken), advice=advice)


def reading(notes: Sequence[str]) -> list[Finding]:
    """How the images were read, where that is worth a word."""
    if not notes:
        return []
    advice = 'Look at the images as they were read: stretch="none" (--stretch none) leaves values as they are.'
    return [Finding(check="reading", status="warning", measured="; ".join(notes), advice=advice)]


def coordinates(features: Sequence[Features]) -> Finding:
    """Whether keypoints can be pixels of their images."""
    wrong = [f"image {i}: {text}" for i, one in enumerate(features) if (text := _misplaced(one))]
    if not wrong:
        return Finding(check="coordinates", status="ok", measured="all keypoints lie inside their images")
    advice = "Give keypoints in px of the image that image_size (width, height) describes."
    return Finding(check="coordinates", status="problem", measured="; ".join(wrong), advice=advice)


def _misplaced(one: Features) -> str:
    """What is odd about where keypoints lie; empty if nothing is."""
    points = one.keypoints[0][torch.isfinite(one.keypoints[0]).all(dim=1)].cpu()
    size = one.image_size[0].cpu().float()
    if not len(points):
        return ""
    if float(points.abs().max()) <= 1 and float(size.min()) > 3:
        return "all coordinates are from -1 to 1, as if normalised"
    outside = int(((points < -1) | (points > size)).any(dim=1).sum())  # half a pixel spared for other conventions
    if outside:
        return f"{outside} of {len(points)} keypoints lie outside its {size[0]:.0f} x {size[1]:.0f} px"
    reach = float((points.amax(dim=0) / size).max())
    if len(points) >= FEW_KEYPOINTS and reach < RESIZED_SHARE:
        return f"keypoints reach only {reach:.0%} of both sides, as if measured in a smaller copy"
    return ""


def exposure(seen: Sequence[Tensor]) -> Finding:
    """Whether both images (H, W), brightness 0 to 1, show more than black, white or one colour."""
    singles = [_exposure(image_HW, f"image {i}") for i, image_HW in enumerate(seen)]
    worst = max(singles, key=lambda one: get_args(Status).index(one.status)).status
    told = [one for one in singles if one.status == worst]
    measured = "; ".join(one.measured for one in told)
    return Finding(
        check="exposure", status=worst, measured=measured, advice=" ".join(one.advice for one in told).strip()
    )


def _exposure(image_HW: Tensor, name: str) -> Finding:
    brightness, contrast = float(image_HW.mean()), float(image_HW.std(correction=0))
    clipped = float(((image_HW < CLIPPED) | (image_HW > 1 - CLIPPED)).float().mean())
    measured = f"{name} has brightness {brightness:.0%}, contrast {contrast:.1%}, {clipped:.0%} pure black or white"
    status, advice = "ok", ""
    if contrast < ONE_COLOUR:
        measured = f"{name} is of one colour, brightness {brightness:.0%}"
        status, advice = "problem", f"Use another photo for {name}: there is nothing to match."
    elif contrast < LOW_CONTRAST:
        status, advice = "problem", f"Stretch the contrast of {name} to the full range from black to white."
    elif clipped > CLIPPED_WARNING:
        status = "problem" if clipped > CLIPPED_PROBLEM else "warning"
        advice = f"Use a photo that is less {'dark' if brightness < 0.5 else 'bright'} for {name}."
    return Finding(check="exposure", status=status, measured=measured, advice=advice)


def sharpness(seen: Sequence[Tensor], sides_px: Sequence[int]) -> Finding:
    """How fine the detail is that both images have, at the size that the extractor sees. A rule of thumb.

    `sides_px` are the long sides of the originals.
    """
    finest_px = [_finest_detail_px(one) for one in seen]
    measured = "; ".join(f"image {i}: finest detail about {px} px" for i, px in enumerate(finest_px))
    if max(finest_px) < BLURRED_PX:
        return Finding(check="sharpness", status="ok", measured=measured)
    i = finest_px.index(max(finest_px))
    side = max(seen[i].shape)
    better = f"a larger version of image {i}" if side > 2 * sides_px[i] else f"a sharper photo for image {i}"
    advice = f"Use {better}, or match at a size where it is sharp: resize={side // 4} (--resize {side // 4})."
    return Finding(check="sharpness", status="warning", measured=measured, advice=advice)


def _finest_detail_px(image_HW: Tensor) -> int:
    """1, 2, 4, ... px: the finest scale from which on upwards the image is not smooth (1 where it is too small).

    From one octave to the next the variance of the Laplacian changes little in a sharp photo, but falls sixteenfold
    towards the finer one where all is smooth. Searched from coarse to fine, so that noise does not pass for detail.
    """
    kernel = image_HW.new_tensor([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    level, variances = image_HW[None, None], []
    while min(level.shape[2:]) >= 8:
        variances.append(float(F.conv2d(level, kernel).var()))
        level = F.avg_pool2d(level, 2)
    smooth = [k for k, (fine, coarse) in enumerate(pairwise(variances)) if fine < SMOOTH_RATIO * coarse]
    return 2 ** (smooth[-1] + 1) if smooth else 1


def flat_share(image_HW: Tensor, features: Features) -> float:
    """The share of keypoints in places of one colour."""
    points = features.keypoints[0].cpu()
    if not len(points):
        return 0.0
    size = 2 * FLAT_RADIUS_PX + 1
    highest, lowest = (F.max_pool2d(sign * image_HW[None, None], size, 1, FLAT_RADIUS_PX) * sign for sign in (1, -1))
    height, width = image_HW.shape
    enlarged = points.new_tensor([width, height]) / features.image_size[0].cpu()
    x, y = ((points + 0.5) * enlarged).long().clamp(min=0).unbind(1)
    return float(((highest - lowest)[0, 0, y.clamp(max=height - 1), x.clamp(max=width - 1)] < FLAT).float().mean())


def keypoints(features: Sequence[Features], flat: Sequence[float] = (0, 0), options: Options | None = None) -> Finding:
    """Whether there are enough, and not on nothing: `flat` are the shares of those in places of one colour."""
    counts = [one.keypoints.shape[1] for one in features]
    asked = None if options is None else options.max_keypoints
    measured = f"{counts[0]} in image 0, {counts[1]} in image 1, " + (
        "as many as there are" if asked is None else f"{asked} were asked for"
    )
    measured += "".join(
        f"; {share:.0%} of those in image {i} lie where all is of one colour"
        for i, share in enumerate(flat)
        if share > FLAT_WARNING
    )
    fewest, flattest = min(counts), max(flat)
    if fewest >= FEW_KEYPOINTS and flattest <= FLAT_WARNING:
        return Finding(check="keypoints", status="ok", measured=measured)
    status = "problem" if fewest < POOR_INLIERS or flattest > FLAT_PROBLEM else "warning"
    return Finding(check="keypoints", status=status, measured=measured, advice=_more(features, flat, options))


def _more(features: Sequence[Features], flat: Sequence[float], options: Options | None) -> str:
    """How to get more keypoints."""
    counts = [one.keypoints.shape[1] for one in features]
    i = counts.index(min(counts)) if min(counts) < FEW_KEYPOINTS else list(flat).index(max(flat))
    if options is None:
        return "Extract with a higher max_keypoints or a larger resize."
    if options.max_keypoints is not None and counts[i] >= options.max_keypoints:
        return f"Raise max_keypoints (--max-keypoints), now {options.max_keypoints}."
    side = int(features[i].image_size.max())
    if options.resize is not None and side > options.resize and not flat[i] > FLAT_WARNING:
        return f"Raise resize (--resize), now {options.resize}: image {i} has {side} px."
    return f"Use a photo with more texture for image {i}, or another extractor."
