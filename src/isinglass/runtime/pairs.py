"""Pairs of features on their way into a matcher: checked, each view once, in chunks that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from isinglass.errors import InputError
from isinglass.types import PIXEL_CONVENTION, Features, Matcher, Matches

Pair = tuple[Features, Features]
MAX_OUTSIDE = 1.0  # sides of the image that a keypoint may lie outside of it
MAX_RAD = 2 * math.pi + 0.01  # of an orientation, either way; a little for rounding


def check_pairs(
    features0: Sequence[Features],
    features1: Sequence[Features],
    *,
    matcher: str,
    accepts: Sequence[str] | None = None,
    descriptor_size: int | None = None,
) -> list[Pair]:
    """The pairs in the coordinates that the extractor saw, if `matcher` can match them; raises InputError otherwise.

    Expected are: as many in both; each of one image, without padding; all numbers finite; both views of a pair by one
    signature, of the present pixel convention, whose extractor is among `accepts` (None = any); descriptors of
    `descriptor_size` channels (None = any, but alike).
    """
    if len(features0) != len(features1):
        raise InputError(f"{len(features0)} features for view 0 and {len(features1)} for view 1; expected as many")
    pairs = list(zip(features0, features1, strict=True))
    for i, pair in enumerate(pairs):
        for view, one in enumerate(pair):
            where = f"view {view} of pair {i}"
            _check_kind(one, where)
            if one.device != pairs[0][0].device:
                raise InputError(
                    f"{where} is on {one.device} and the first on {pairs[0][0].device}; expected one device. Move them "
                    "with .to(device)"
                )
            if accepts is not None and one.signature.descriptors not in accepts:
                raise InputError(
                    f"{where} has features of {one.signature.extractor!r}, but {matcher!r} was made for "
                    f"{' or '.join(map(repr, accepts))}. Extract with that, or choose the matcher made for "
                    f"{one.signature.extractor!r} ('nearest' matches any)"
                )
            size = descriptor_size or pair[0].descriptors.shape[-1]
            if one.descriptors.shape[-1] != size:
                raise InputError(f"{where} has {one.descriptors.shape[-1]}-d descriptors; {matcher!r} expects {size}-d")
        if pair[0].signature != pair[1].signature:
            raise InputError(
                f"pair {i} has features of {pair[0].signature} and {pair[1].signature}; extract both alike"
            )
        for name in ("scales", "orientations"):
            if (getattr(pair[0], name) is None) != (getattr(pair[1], name) is None):
                raise InputError(f"one view of pair {i} has {name} and the other none; expected both alike, or none")
    _check_numbers((f"view {view} of pair {i}", one) for i, pair in enumerate(pairs) for view, one in enumerate(pair))
    seen = {id(one): one.as_seen() for one in (*features0, *features1)}  # one object stays one: see `distinct_views`
    return [(seen[id(one0)], seen[id(one1)]) for one0, one1 in zip(features0, features1, strict=True)]


def distinct_views(pairs: Sequence[Pair]) -> tuple[list[Features], list[int]]:
    """The views of all pairs, those that are in several pairs once; and which of them each view is, pair by pair.

    What a matcher does before views meet it need do but once for each: one image against many is the usual case.
    """
    views = [view for pair in pairs for view in pair]
    distinct = {id(view): view for view in views}
    place = {key: i for i, key in enumerate(distinct)}
    return list(distinct.values()), [place[id(view)] for view in views]


def chunk_pairs(pairs: Sequence[Pair], max_keypoints: int) -> Iterator[list[Pair]]:
    """Runs of pairs with at most `max_keypoints` keypoints together; a larger pair comes alone."""
    chunk, total = [], 0
    for pair in pairs:
        count = pair[0].keypoints.shape[1] + pair[1].keypoints.shape[1]
        if chunk and total + count > max_keypoints:
            yield chunk
            chunk, total = [], 0
        chunk.append(pair)
        total += count
    if chunk:
        yield chunk


def match_batch(matcher: Matcher, features0: Features, features1: Features) -> Matches:
    """What `Matcher.match` is for a matcher of ragged lists: padding is dropped before and added after.

    Raises InputError where the batches are not of one size.
    """
    if len(features0) != len(features1):
        raise InputError(f"a batch of {len(features0)} images against one of {len(features1)}; expected as many")
    views0, views1 = ([batch[i] for i in range(len(batch))] for batch in (features0, features1))
    return Matches.stack(matcher.match_many(views0, views1))


def _check_kind(one: Features, where: str) -> None:
    if not isinstance(one, Features):
        raise InputError(f"{where} is a {type(one).__name__}; expected Features, as an extractor gives them")
    if len(one) != 1 or one.mask is not None:
        raise InputError(f"{where} is a batch of {len(one)} or padded; expected one image without padding (use f[i])")
    if one.signature.convention != PIXEL_CONVENTION:
        raise InputError(
            f"{where} has keypoints in the convention {one.signature.convention!r}; expected {PIXEL_CONVENTION!r}"
        )


def _check_numbers(views: Iterable[tuple[str, Features]]) -> None:
    """Raise InputError where a number of any view cannot be; the device is waited for once for all of them.

    The least and the greatest number of a field say all: NaN is both of a field that has one.
    """
    seen = {id(one): (where, one) for where, one in views}
    names: list[tuple[str, str]] = []
    numbers: list[Tensor] = []
    for where, one in seen.values():
        for name in ("image_size", "keypoints", "descriptors", "scores", "scales", "orientations"):
            value = getattr(one, name)
            if value is None or not value.numel():
                continue
            axes = tuple(range(value.ndim - (name in ("image_size", "keypoints"))))  # those of (x, y) are kept apart
            names.append((name, where))
            numbers += [end(value, axes).float().expand(2) for end in (torch.amin, torch.amax)]
    if not numbers:
        return
    size = [0.0, 0.0]
    for (name, where), (least, most) in zip(names, torch.cat(numbers).view(-1, 2, 2).tolist(), strict=True):
        size = most if name == "image_size" else size
        _check_range(name, where, least, most, size)


def _check_range(name: str, place: str, least: list[float], most: list[float], size: list[float]) -> None:
    if name == "image_size" and not all(0 < side < math.inf for side in (*least, *most)):
        raise InputError(f"{place} is of an image of {_xy(most)} px; expected a width and height over 0")
    if not all(map(math.isfinite, (*least, *most))):
        raise InputError(
            f"{name} of {place} hold NaN or infinity; expected finite numbers. Extract them again, in float32 if "
            "they were made in half precision"
        )
    if name == "scales" and least[0] <= 0:
        raise InputError(f"scales of {place} begin at {least[0]:g}; expected px over 0, the diameter of the support")
    if name == "orientations" and max(-least[0], most[0]) > MAX_RAD:
        raise InputError(
            f"orientations of {place} are from {least[0]:g} to {most[0]:g}; expected radians from -2 pi to 2 pi. "
            "Degrees are turned into them by torch.deg2rad"
        )
    if name == "keypoints" and any(
        low < -MAX_OUTSIDE * side or high > (1 + MAX_OUTSIDE) * side
        for low, high, side in zip(least, most, size, strict=True)
    ):
        raise InputError(
            f"keypoints of {place} are from {_xy(least)} to {_xy(most)} px, far outside of its image of "
            f"{_xy(size)} px; expected (x, y) px of the original image, and image_size as (width, height)"
        )


def _xy(numbers: Sequence[float]) -> str:
    return "({})".format(", ".join(f"{number:g}" for number in numbers))
