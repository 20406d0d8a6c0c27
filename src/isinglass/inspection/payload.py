"""What pages draw, as one JSON object: photos, keypoints, matches; the page of the app and the report read the same.

Numbers of many keypoints are packed: {"dtype", "shape", "data"}, little endian in base64. All points are px of the
photos as stored, (0, 0) = centre of the top-left pixel. Legend: N keypoints of a view, M matches.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from isinglass.errors import InputError
from isinglass.geometry.robust import RobustResult
from isinglass.images import ImageSource, resized
from isinglass.options import Options
from isinglass.pipeline import as_seen
from isinglass.result import MatchResult, turns_of

PREVIEW_PX = 1600  # long side of the photos in a payload at most
SAME_PX = 1.5  # two pipelines found the same match where both its ends are this close, of images as extracted
_TYPES = ("uint8", "uint16", "int32", "float32")
_QUALITY = 85  # of JPEG


def array_of(values: ArrayLike | Tensor) -> NDArray[Any]:
    """An array on the CPU; halves as float32, which numpy knows."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype.itemsize == 2 and values.is_floating_point() else values).numpy()
    return np.asarray(values)


def pack(values: ArrayLike | Tensor) -> dict[str, Any]:
    """{"dtype": "uint8", "uint16", "int32" or "float32", "shape", "data": base64, little endian}.

    Booleans become uint8, other integers int32, other floats float32. Raises InputError where that would not hold
    them, or for what are no numbers.
    """
    array = array_of(values)
    name = array.dtype.name
    if name not in _TYPES:
        kinds = {"b": "uint8", "i": "int32", "u": "int32", "f": "float32"}
        if array.dtype.kind not in kinds:
            raise InputError(f"an array of {name} cannot be packed; expected numbers")
        name = kinds[array.dtype.kind]
        if name == "int32" and array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            raise InputError(f"integers from {array.min()} to {array.max()} do not fit into int32, as pages have it")
    little = np.ascontiguousarray(array, dtype=np.dtype(name).newbyteorder("<"))
    return {"dtype": name, "shape": list(array.shape), "data": base64.b64encode(little.tobytes()).decode("ascii")}


def unpack(packed: Mapping[str, Any]) -> NDArray[Any]:
    """The inverse of `pack`, as pages have it. Raises InputError for anything else."""
    try:
        dtype, shape = packed["dtype"], tuple(packed["shape"])
        if dtype not in _TYPES:
            raise ValueError(f"dtype {dtype!r}")
        data = np.frombuffer(base64.b64decode(packed["data"], validate=True), np.dtype(dtype).newbyteorder("<"))
        return data.reshape(shape).astype(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"this is no packed array ({error}); expected what `pack` gives") from error


def view_payload(image: ImageSource, name: str, turns: int = 0) -> dict[str, Any]:
    """One photo: its name, its size as stored, and a JPEG of at most PREVIEW_PX, turned as the extractor saw it.

    `turns` as in Features. `matrix` (a, b, c, d, e, f) takes stored px (x, y) to px of the preview:
    (a x + b y + c, d x + e y + f).
    """
    pixels, matrix, size = seen(image, turns, PREVIEW_PX)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=_QUALITY)
    source = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
    preview = {"src": source, "size": [pixels.shape[1], pixels.shape[0]], "matrix": matrix.flatten().tolist()}
    return {"name": name, "size": list(size), "preview": preview}


def seen(
    image: ImageSource, turns: int, long_side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[int, int]]:
    """A photo as the extractor saw it, of `long_side` px at most: pixels (H, W, 3), (2, 3) stored px (x, y, 1) to its
    px, and the size (width, height) that is stored.
    """
    view = resized(as_seen(image, turns), long_side, only_shrink=True)
    linear, shift = view.to_original[:, :2].inverse(), view.to_original[:, 2]
    matrix = np.concatenate([linear.numpy(), -(linear @ shift).numpy()[:, None]], axis=1)
    return (view.image.permute(1, 2, 0) * 255).round().byte().numpy(), matrix, view.original_size


def match_payload(
    result: MatchResult,
    image0: ImageSource,
    image1: ImageSource,
    *,
    names: tuple[str, str],
    options: Options,
    robust: RobustResult | None = None,
    num_layers: int | None = None,
    masks: tuple[str | None, str | None] = (None, None),
) -> dict[str, Any]:
    """The payload of one pair, of the kind "match".

    names       of the photos, and `masks` of the masks if there were any, as people know them
    options     that the result was made with
    robust      of the matches; None = not estimated
    num_layers  of the matcher; None = it has none
    """
    images = zip((image0, image1), names, (result.features0, result.features1), strict=True)
    views = [view_payload(image, name, turns_of(features)) for image, name, features in images]
    code = python_code(options, names, masks=masks, robust=robust)
    return {"kind": "match", "views": views, **_found(result, options, robust, num_layers), "code": code}


def compare_payload(
    first: Mapping[str, Any], second: Mapping[str, Any], result0: MatchResult, result1: MatchResult, options: Options
) -> dict[str, Any]:
    """The payload of two results of one pair, of the kind "compare": `first` and `second` are their match payloads.

    `options` are those of the first result. Two matches are the same where both use the same keypoints, or, where the
    extractors differ, where each is the other's nearest and both ends are within SAME_PX px of images as extracted.
    """
    sizes = [one.image_size[0].tolist() for one in (result0.features0, result0.features1)]
    both = same_matches(result0, result1, SAME_PX * options.original_px(*sizes))
    pairs = zip((result0, result1), both.T, strict=True)
    only = [np.setdiff1d(np.arange(len(result.matches.pairs())), rows) for result, rows in pairs]
    other = {name: value for name, value in second.items() if name not in ("kind", "views")}
    difference = {"both": pack(both.astype(np.int32)), "only": [pack(rows.astype(np.int32)) for rows in only]}
    return {**first, "kind": "compare", "other": other, "difference": difference}


def same_matches(result0: MatchResult, result1: MatchResult, tolerance_px: float) -> NDArray[np.int64]:
    """(K, 2) rows of the pairs of two results that are the same match, see `compare_payload`."""
    rows0, rows1 = array_of(result0.matches.pairs()), array_of(result1.matches.pairs())
    keypoints = [
        (array_of(one.keypoints[0]), array_of(other.keypoints[0]))
        for one, other in ((result0.features0, result1.features0), (result0.features1, result1.features1))
    ]
    if all(np.array_equal(one, other) for one, other in keypoints):
        place = {tuple(pair): i for i, pair in enumerate(rows1.tolist())}
        found = [(i, place[pair]) for i, pair in enumerate(map(tuple, rows0.tolist())) if pair in place]
        return np.array(found, dtype=np.int64).reshape(-1, 2)
    if not len(rows0) or not len(rows1):
        return np.zeros((0, 2), dtype=np.int64)
    distance = np.zeros((len(rows0), len(rows1)), dtype=np.float32)  # of the end that is further away
    for view, (one, other) in enumerate(keypoints):
        x, y = (one[rows0[:, view], None] - other[None, rows1[:, view]]).transpose(2, 0, 1)
        np.maximum(distance, np.hypot(x, y), out=distance)
    best0, best1 = distance.argmin(axis=1), distance.argmin(axis=0)
    row = np.flatnonzero((best1[best0] == np.arange(len(best0))) & (distance.min(axis=1) <= tolerance_px))
    return np.stack([row, best0[row]], axis=1)


def python_code(
    options: Options,
    names: tuple[str, str] = ("first.jpg", "second.jpg"),
    *,
    masks: tuple[str | None, str | None] = (None, None),
    robust: RobustResult | None = None,
) -> str:
    """Python that gives the same matches by public names, with the options that are not the defaults."""
    plain = Options()
    given = [
        f"{one.name}={getattr(options, one.name)!r}"
        for one in fields(Options)
        if getattr(options, one.name) != getattr(plain, one.name)
    ]
    images, lines = [repr(name) for name in names], ["import isinglass"]
    masked = [f"mask{view}={name!r}" for view, name in enumerate(masks) if name is not None]
    if robust is not None:
        lines.append("from isinglass.geometry.robust import estimate")
    lines.append("")
    if masked:
        lines += [f"pipeline = isinglass.Pipeline({', '.join(given)})"]
        lines += [f"result = pipeline.match({', '.join([*images, *masked])})"]
    else:
        lines += [f"result = isinglass.match({', '.join([*images, *given])})"]
    lines += ["points0, points1 = result.points0, result.points1  # (M, 2) px of the photos as stored"]
    lines += ["scores = result.scores  # (M,)"]
    if robust is not None:
        kind, threshold = repr(robust.kind), f"threshold_px={robust.threshold_px!r}"
        lines += [f"robust = estimate(points0.cpu(), points1.cpu(), {kind}, {threshold})"]
        lines += ["robust.model, robust.inliers  # (3, 3), (M,) bool"]
    return "\n".join(lines) + "\n"


def _found(
    result: MatchResult, options: Options, robust: RobustResult | None, num_layers: int | None
) -> dict[str, Any]:
    """What a payload says of the features and matches themselves."""
    matches, features = result.matches, (result.features0, result.features1)
    probabilities = result.probabilities
    left_at, confidences = (matches.pruned_at0, matches.pruned_at1), (matches.confidences0, matches.confidences1)
    model = None
    if robust is not None and robust.model is not None:
        model = {"kind": robust.kind, "matrix": robust.model.tolist(), "num_inliers": robust.num_inliers}
    return {
        "extractor": features[0].signature.extractor,
        "matcher": matches.matcher,
        "options": asdict(options),
        "keypoints": [pack(one.keypoints[0]) for one in features],
        "scores": [pack(one.scores[0]) for one in features],
        "matches": {
            "pairs": pack(array_of(matches.pairs()).astype(np.int32)),
            "scores": pack(matches.pair_scores()),
            "probabilities": None if probabilities is None else pack(probabilities),
            "inliers": None if robust is None else pack(robust.inliers),
            "layers": None,
        },
        "left_at": [pack(array_of(at[0]).astype(np.uint8)) for at in left_at if at is not None] or None,
        "confidences": [pack(one[0]) for one in confidences if one is not None] or None,
        "stop_layer": None if matches.stop_layer is None else int(matches.stop_layer[0]),
        "num_layers": num_layers,
        "model": model,
        "timings_ms": dict(result.timings_ms),
    }
