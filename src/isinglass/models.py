"""Which model a name means, and how the options of a pipeline load it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isinglass.errors import InputError
from isinglass.extractors.aliked import ALIKED
from isinglass.extractors.disk import DISK
from isinglass.extractors.redescribed import Redescribed
from isinglass.extractors.sift import SIFT
from isinglass.extractors.superpoint import SuperPoint
from isinglass.extractors.xfeat import XFeat
from isinglass.kernels.linear import compute_dtype
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.nearest import Nearest
from isinglass.matchers.superglue import SuperGlue
from isinglass.names import is_file
from isinglass.options import Options
from isinglass.runtime.execution import execution_of
from isinglass.types import Extractor, Matcher
from isinglass.weights import record
from isinglass.weights.checkpoint import read_checkpoint
from isinglass.weights.names import HANDMADE, check_extractor, check_matcher, extractor_weights, matcher_weights

EXTRACTORS = {"ALIKED": ALIKED, "DISK": DISK, "SuperPoint": SuperPoint, "XFeat": XFeat}
MATCHERS = {"LightGlue": LightGlue, "SuperGlue": SuperGlue}
LEAST_TILE = 256  # px, that memory may ask for: in smaller ones hardly a pixel sees all that its descriptor needs


def load_extractor(options: Options, device: torch.device) -> Extractor:
    """The extractor of the options; "disk+aliked-n16" = keypoints of the one with descriptors of the other.

    Raises InputError or WeightsError where there is none.
    """
    name, limit = extractor_weights(options.extractor), options.max_keypoints
    if "+" in name:
        detector, describer = (
            load_extractor(replace(options, extractor=one), device) for one in name.rsplit("+", maxsplit=1)
        )
        return Redescribed(detector, describer)
    # a few more than wanted, so that as many as wanted remain when near-duplicates go
    wanted = limit if limit is None or options.min_distance == 0 else limit + limit // 16
    if name in HANDMADE:
        return SIFT(SIFT.Config(rootsift=name == "rootsift", max_keypoints=wanted))
    check_extractor(name, accept_licence=options.accept_licence)
    kind = _kind_of(name)
    if kind not in EXTRACTORS:
        raise InputError(f"{name!r} are weights of {kind}, no extractor; see `isinglass models`")
    extractor = EXTRACTORS[kind].pretrained(
        name, device=device, accept_licence=options.accept_licence, max_keypoints=wanted
    )
    extractor.execution = "plain" if options.execution == "plain" else "auto"
    return extractor


def load_matcher(options: Options, device: torch.device) -> Matcher:
    """Return the matcher of the options. Raises InputError or WeightsError where there is none."""
    dtype = compute_dtype(options.precision, device)
    check_matcher(
        options.matcher,
        None,  # whether it fits a custom extractor is for the features to say
        ratio=options.ratio,
        filter_threshold=options.filter_threshold,
        accept_licence=options.accept_licence,
    )
    name = matcher_weights(options.matcher, extractor_weights(options.extractor))
    if name == "nearest":
        if options.execution not in ("auto", "plain"):
            raise InputError(f"execution is {options.execution!r}, which 'nearest' has not; use 'auto' or 'plain'")
        return Nearest(Nearest.Config(ratio=options.ratio))
    kind = _kind_of(name)
    if kind not in MATCHERS:
        raise InputError(f"{name!r} are weights of {kind}, no matcher; see `isinglass models`")
    more: dict[str, Any] = {}
    if kind == "LightGlue" and not options.adaptive:
        more |= {"depth_confidence": None, "width_confidence": None}
    if options.filter_threshold is not None:
        more["filter_threshold"] = options.filter_threshold
    matcher = MATCHERS[kind].pretrained(name, device=device, accept_licence=options.accept_licence, **more)
    matcher.compute_dtype, matcher.execution = dtype, options.execution
    execution_of(matcher, MATCHERS[kind])  # refuses what the device cannot do
    if options.memory_mb is not None:
        matcher.max_tokens = min(matcher.max_tokens, options.memory_mb * 1_000_000 // matcher.bytes_per_token)
    return matcher


def _kind_of(name: str) -> str:
    """The class of published weights, or of those in a file."""
    path = Path(name).expanduser()
    return read_checkpoint(path).model if is_file(path) else record(name).model


def tile_side(options: Options, extractor: Extractor) -> int | None:
    """Px of the tiles that images are cut into: what the options say, or less to stay within their memory.

    None = images are never cut. Raises InputError where the memory is too little for any tile.
    """
    if options.memory_mb is None:
        return options.tile
    bytes_per_pixel = getattr(extractor, "bytes_per_pixel", None)
    if bytes_per_pixel is None:
        raise InputError(
            f"memory_mb is for extractors that know what they need; {extractor.signature} does not say its "
            "bytes_per_pixel. Choose tile instead"
        )
    side = math.isqrt(options.memory_mb * 1_000_000 // bytes_per_pixel)
    if side < 4 * options.tile_overlap or side < LEAST_TILE:
        least = max(4 * options.tile_overlap, LEAST_TILE) ** 2 * bytes_per_pixel // 1_000_000 + 1
        raise InputError(
            f"memory_mb is {options.memory_mb}, which is tiles of {side} px; expected at least {least} for this "
            f"extractor and a tile_overlap of {options.tile_overlap}"
        )
    return side if options.tile is None else min(side, options.tile)
