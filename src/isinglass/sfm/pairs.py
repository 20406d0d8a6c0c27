"""Which pairs of images to match: all of them, neighbours in a sequence or in space, those that share points, a file's.

Every function gives each pair once, sorted, and in each pair that image first which comes first in `names`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike
from isinglass.files.colmap_model import read_colmap_model
from isinglass.files.lists import read_pair_list, write_pair_list
from isinglass.runtime.pairs import chunk_pairs
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.types import Features, Matcher

LEAST_MATCHES = 3.0  # of the first pass, each counted by its score: see docs/maps.md
FEW_KEYPOINTS_IN_MEMORY = 2**20  # of the first pass: 0.5 GB of 128 channels
BATCH_KEYPOINTS = 2**14
_DISTANCES = 2**22  # held at once: 32 MB
write_pairs = write_pair_list


def in_order(pairs: Iterable[Pair], names: Sequence[str]) -> list[Pair]:
    """The pairs once each, sorted, that image first which comes first in `names`. Raises InputError for a stranger."""
    place = _places(names)
    try:
        found = {tuple(sorted((place[one], place[other]))) for one, other in pairs if one != other}
    except KeyError as error:
        raise InputError(f"a pair names {error.args[0]!r}, which is none of the {len(names)} images") from None
    return [(names[i], names[j]) for i, j in sorted(found)]


def in_sequence(names: Sequence[str]) -> list[str]:
    """The names sorted with numbers by their value: "frame9.jpg" before "frame10.jpg"."""

    def parts(name: str) -> list[tuple[bool, int, str]]:
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=parts)


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """All pairs: n (n - 1) / 2."""
    _places(names)
    return list(itertools.combinations(names, 2))


def sequential(
    names: Sequence[str], overlap: int = 10, *, quadratic: bool = False, loops: Sequence[Pair] = ()
) -> list[Pair]:
    """Each image, in the order given, with `overlap` of those after it, and the pairs of `loops`.

    quadratic  those 1, 2, 4, 8, ... images later, as COLMAP 4 has it by default; else the next ones, among which as
               many pairs find more that overlap (docs/maps.md)
    """
    if overlap < 1:
        raise InputError(f"overlap is {overlap}; expected at least 1 image")
    steps = [2**k if quadratic else k + 1 for k in range(overlap)]
    steps = list(itertools.takewhile(lambda step: step < len(names), steps))
    near = [(names[i], names[i + step]) for step in steps for i in range(len(names) - step)]
    return in_order(itertools.chain(near, loops), names)


def spatial(
    positions: Mapping[str, ArrayLike],
    *,
    max_neighbours: int = 20,
    max_distance_m: float = 100.0,
    altitude: bool = False,
) -> list[Pair]:
    """Each image with the `max_neighbours` that are nearest, and at most `max_distance_m` away.

    positions  (3,) of each image, m, third is up; such as `gps.positions` gives
    altitude   count the third coordinate: GPS errs most in that
    """
    if max_neighbours < 1 or not max_distance_m > 0:
        raise InputError(f"{max_neighbours} neighbours within {max_distance_m} m came; expected at least 1 and over 0")
    names = list(positions)
    if len(names) < 2:
        return []
    points_N3 = np.array([np.asarray(positions[name], np.float64).reshape(3) for name in names])
    if not np.isfinite(points_N3).all():
        bad = names[int(np.argmin(np.isfinite(points_N3).all(axis=1)))]
        raise InputError(f"the position of {bad!r} is {points_N3[names.index(bad)].tolist()}; expected finite numbers")
    used_ND = points_N3 if altitude else points_N3[:, :2]
    count = min(max_neighbours, len(names) - 1)
    near, rows = [], max(_DISTANCES // len(names), 1)
    for start in range(0, len(names), rows):
        own_RD = used_ND[start : start + rows]
        distance_RN = np.sqrt(sum((own_RD[:, None, k] - used_ND[None, :, k]) ** 2 for k in range(used_ND.shape[1])))
        distance_RN[np.arange(len(own_RD)), start + np.arange(len(own_RD))] = np.inf
        farthest_R = np.minimum(np.partition(distance_RN, count - 1, axis=1)[:, count - 1], max_distance_m)
        for r, distance_N in enumerate(distance_RN):
            close = np.flatnonzero(distance_N <= farthest_R[r])
            order = np.argsort(distance_N[close], kind="stable")[:count]
            near += [(names[start + r], names[i]) for i in close[order]]
    return in_order(near, names)


def covisible(model: Any, *, neighbours: int = 20, common_points: int = 15) -> list[Pair]:
    """Each image of a COLMAP model with the `neighbours` that see most of its points, `common_points` at least.

    `model` is a pycolmap.Reconstruction or the folder of one. Images are in the order of their names; of equals the
    first counts. Raises InputError where the folder holds no model.
    """
    reconstruction = _reconstruction(model)
    image_of = {image_id: image.name for image_id, image in reconstruction.images.items()}
    common: dict[int, Counter[int]] = {image_id: Counter() for image_id in image_of}
    for point in reconstruction.points3D.values():
        seen_by = {element.image_id for element in point.track.elements}
        for image_id in seen_by:
            common[image_id].update(seen_by)
    found = []
    for image_id, counts in common.items():
        del counts[image_id]
        enough = [(-count, image_of[other], other) for other, count in counts.items() if count >= common_points]
        found += [(image_of[image_id], name) for _, name, _ in sorted(enough)[:neighbours]]
    return in_order(found, sorted(image_of.values()))


def read_pairs(file: PathLike, names: Sequence[str] | None = None) -> list[Pair]:
    """Return the pairs of a text file of two names a line, or none of an empty one, see `isinglass.files.lists`.

    Names may hold spaces without quotes only where `names`, all there are, are given. Without `names` pairs are in the
    order of names. Raises InputError for a line without two names, or with unknown ones.
    """
    found = read_pair_list(file, names, allow_none=True)
    known = None if names is None else set(names)
    for number, pair in zip(found.lines, found.pairs, strict=True):
        if known is not None and not known.issuperset(pair):
            raise InputError(f"line {number} of {str(file)!r} is {pair}; expected two names of the {len(known)} images")
    if found.problems:
        raise InputError(next(iter(found.problems.values())))
    return in_order(found.pairs, sorted({name for pair in found.pairs for name in pair}) if names is None else names)


def promising(
    features: FeatureStore,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    keypoints: int = 256,
    least: float = LEAST_MATCHES,
    tell: Tell = lambda done, of: None,
) -> list[Pair]:
    """Of the pairs, in their order, those where the best `keypoints` of both images have at least `least` matches.

    Each match counts by its score, which tells right from wrong better than the plain number does: the matcher is to be
    one whose scores say how likely a match is, which those of "nearest" do not. This takes a small part of the time
    that matching all keypoints takes. Pairs with an image that the store does not have are dropped. `tell` hears how
    many pairs are done.
    """
    return [pair for pair, count in first_pass(features, pairs, matcher, keypoints, tell) if count >= least]


def first_pass(
    features: FeatureStore,
    pairs: Sequence[Pair],
    matcher: Matcher,
    keypoints: int = 256,
    tell: Tell = lambda done, of: None,
) -> Iterator[tuple[Pair, float]]:
    """Each pair of images that the store has, and the sum of the scores of the matches of their best `keypoints`."""
    loaded: OrderedDict[str, Features] = OrderedDict()

    def few(name: str) -> Features:
        if name not in loaded:
            loaded[name] = features.get(name).top(keypoints)
            while len(loaded) > max(FEW_KEYPOINTS_IN_MEMORY // max(keypoints, 1), 2):
                loaded.popitem(last=False)
        loaded.move_to_end(name)
        return loaded[name]

    present = [pair for pair in pairs if pair[0] in features and pair[1] in features]
    done = len(pairs) - len(present)
    batch = max(BATCH_KEYPOINTS // (2 * max(keypoints, 1)), 1)
    for start in range(0, len(present), batch):
        chunk = present[start : start + batch]
        views = [(few(one), few(other)) for one, other in chunk]
        found = [
            m for part in chunk_pairs(views, BATCH_KEYPOINTS) for m in matcher.match_many(*zip(*part, strict=True))
        ]
        done += len(chunk)
        yield from zip(chunk, (float(one.pair_scores().sum()) for one in found), strict=True)
        tell(done, len(pairs))


def _places(names: Sequence[str]) -> dict[str, int]:
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise InputError(f"the name {twice!r} comes more than once; expected each image once")
    return place


def _reconstruction(model: Any) -> Any:
    if isinstance(model, str | os.PathLike):
        return read_colmap_model(model)
    return model
