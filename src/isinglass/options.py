"""The options of a pipeline: how images become features and matches."""

from __future__ import annotations

import difflib
import hashlib
import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from isinglass.devices import device_name
from isinglass.errors import InputError

if TYPE_CHECKING:
    import torch

# Options that features do not depend on: the extractor is named by its signature, the memory shows in the tile, and
# the others are of matching. An option that is not in this list counts.
NOT_OF_FEATURES = frozenset({
    "extractor", "matcher", "memory_mb", "adaptive", "filter_threshold", "ratio", "precision", "device",
    "accept_licence",
})  # fmt: skip
# Options that matches do not depend on, or that other parts of a key say better: signature, weights, dtype, tile.
NOT_OF_MATCHES = frozenset({"extractor", "matcher", "memory_mb", "precision", "device", "accept_licence"})
_ALWAYS_RECORDED = frozenset(
    {"max_keypoints", "resize", "resize_side", "rotation", "tile", "tile_overlap", "min_distance"}
)

# limits of numbers: the smallest, the largest, whether None may stand for none
_INTEGERS = {
    "max_keypoints": (0, True),
    "resize": (1, True),
    "tile": (64, True),
    "tile_overlap": (0, False),
    "memory_mb": (1, True),
}
_FLOATS = {
    "min_distance": ("0 or more, in px", lambda x: x >= 0, False),
    "filter_threshold": ("a number from 0 to 1", lambda x: 0 <= x <= 1, True),
    "ratio": ("a number over 0, at most 1", lambda x: 0 < x <= 1, True),
}


class OptionsDict(TypedDict, total=False):
    """The fields of `Options`, for keyword arguments."""

    extractor: str
    matcher: str
    max_keypoints: int | None
    resize: int | None
    resize_side: Literal["long", "short"]
    rotation: Literal["none", "exif", "auto"]
    tile: int | None
    tile_overlap: int
    memory_mb: int | None
    min_distance: float
    stretch: Literal["auto", "none", "percentile"]
    adaptive: bool
    filter_threshold: float | None
    ratio: float | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    execution: Literal["auto", "plain", "fused", "cuda_graph"]
    device: str | torch.device | None
    accept_licence: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images become features and matches. Raises InputError on values that make no sense.

    Numbers of NumPy are taken as Python's, and a device is kept by its name.

    extractor       name of weights ("aliked-n16", see `isinglass models`), "aliked" for short, "sift", "rootsift";
                    "disk+aliked-n16" = keypoints of the one with descriptors of the other (ALIKED's, SuperPoint's)
    matcher         "lightglue" or "superglue" (the weights made for the extractor), "nearest", or a name of weights, or
                    the path of a file, such as training writes
    max_keypoints   an image; None = all
    resize          px of the side that extractors see; None = as it is. Results are in original pixels always
    resize_side     which side `resize` is: "long" or "short"
    rotation        "none" = pixels as stored; "exif" = upright as the file says; "auto" = of four quarter turns of the
                    second image the one with most matches
    tile            px, side of the squares that a larger (resized) image is cut into; None = never
    tile_overlap    px that neighbouring tiles share
    memory_mb       MB that one image's extraction, or a batch of pairs, may take beyond models, images and features:
                    larger images are cut into tiles, batches are smaller; None = as fast as can be
    min_distance    px of the resized image; of two keypoints nearer than that the weaker goes
    stretch         of values to the whole range: "auto" = 16-bit images that use under a tenth of theirs, as 12-bit and
                    thermal sensors give them; "percentile" = all images, of whatever range; "none" = no image
    adaptive        let matchers that can stop early and drop points do so; False = all layers for all points
    filter_threshold  least score of a match; None = the matcher's own
    ratio           of the matcher "nearest": Lowe's test, say 0.8; None = no test
    precision       of the matcher's layers; "auto" = float16 on CUDA, bfloat16 on CPUs with matrix units for it, else
                    float32
    execution       of the networks' layers: "plain" = the modules as written; "fused" = rearranged for speed, the same
                    function; "cuda_graph" = the matcher's as recorded CUDA graphs, in halves; "auto" = fused on CPUs
                    wherever that is the same function, else plain, by public operations of torch alone
    device          "cpu", "cuda", "cuda:1", "mps", or a torch.device; None = the fastest of this machine
    accept_licence  of weights that are not for commercial use
    """

    extractor: str = "aliked"
    matcher: str = "lightglue"
    max_keypoints: int | None = 2048
    resize: int | None = 1024
    resize_side: Literal["long", "short"] = "long"
    rotation: Literal["none", "exif", "auto"] = "exif"
    tile: int | None = None
    tile_overlap: int = 64
    memory_mb: int | None = None
    min_distance: float = 1.0
    stretch: Literal["auto", "none", "percentile"] = "auto"
    adaptive: bool = True
    filter_threshold: float | None = None
    ratio: float | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    execution: Literal["auto", "plain", "fused", "cuda_graph"] = "auto"
    device: str | None = None
    accept_licence: bool = False

    def __post_init__(self) -> None:
        choices = {
            "rotation": ("none", "exif", "auto"),
            "resize_side": ("long", "short"),
            "stretch": ("auto", "none", "percentile"),
            "precision": ("auto", "float32", "bfloat16", "float16"),
            "execution": ("auto", "plain", "fused", "cuda_graph"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")
        checked: dict[str, Any] = {name: _name(name, getattr(self, name)) for name in ("extractor", "matcher")}
        checked |= {name: _flag(name, getattr(self, name)) for name in ("adaptive", "accept_licence")}
        checked |= {name: _integer(name, getattr(self, name)) for name in _INTEGERS}
        checked |= {name: _float(name, getattr(self, name)) for name in _FLOATS}
        checked["device"] = None if self.device is None else device_name(self.device)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.tile is not None and self.tile_overlap >= self.tile:
            raise InputError(f"tile_overlap is {self.tile_overlap}; expected 0 to under tile = {self.tile}")

    @classmethod
    def of(cls, **values: Unpack[OptionsDict]) -> Options:
        """From keyword arguments; an unknown one is an InputError that names the known ones."""
        known = [one.name for one in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            near = [name for one in unknown for name in difflib.get_close_matches(one, known, n=1)]
            guess = f" Did you mean {', '.join(near)}?" if near else ""
            raise InputError(f"unknown option {', '.join(map(repr, unknown))}; known are {', '.join(known)}.{guess}")
        return cls(**values)  # pyright: ignore[reportArgumentType]  a torch.device becomes its name

    def original_px(self, *sizes: Sequence[float]) -> float:
        """Px of the largest of some original images (width, height) that one px of it as extracted is; at least 1."""
        sides = [max(size) if self.resize_side == "long" else min(size) for size in sizes]
        return 1.0 if self.resize is None else max(1.0, max(sides) / self.resize)


def feature_settings(options: Options, tile: int | None) -> dict[str, Any]:
    """Return what features depend on beside photo, mask and extractor; every cache and store takes it from here.

    An option counts unless NOT_OF_FEATURES names it. Options that came after the first stores were written are
    recorded only where they differ from their default, so that those stores stay equal.

    tile  the side, in px, that images are really cut into: the option, or what the memory asks for
    """
    defaults = {field.name: field.default for field in fields(options)}
    values = {name: getattr(options, name) for name in defaults if name not in NOT_OF_FEATURES}
    values["rotation"] = "none" if options.rotation == "none" else "exif"  # "auto" turns what "exif" gives
    values |= {"tile": tile, "tile_overlap": None if tile is None else options.tile_overlap}
    return {name: value for name, value in values.items() if name in _ALWAYS_RECORDED or value != defaults[name]}


def matching_options(options: Options) -> dict[str, Any]:
    """Return the options that matches depend on beside the models, by name."""
    return {field.name: getattr(options, field.name) for field in fields(options) if field.name not in NOT_OF_MATCHES}


def features_key(made_of: object, signature: object, *settings: object) -> str:
    """Return hex digits of all that an image's features follow from, for the names of cached files.

    made_of    digests of the image and its mask
    signature  of the extractor
    settings   values whose `repr` says all of them
    """
    return hashlib.sha256(repr((made_of, str(signature), *settings)).encode()).hexdigest()


def _integer(name: str, value: Any) -> int | None:
    least, may_be_none = _INTEGERS[name]
    if value is None and may_be_none:
        return None
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(
            f"{name} is {value!r}; expected an integer of at least {least}{', or None' if may_be_none else ''}"
        )
    return int(value)


def _float(name: str, value: Any) -> float | None:
    expected, is_allowed, may_be_none = _FLOATS[name]
    if value is None and may_be_none:
        return None
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not is_allowed(number):
        raise InputError(f"{name} is {value!r}; expected {expected}{', or None' if may_be_none else ''}")
    return value if type(value) is int else number  # an integer stays one: it may be part of a file's key


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):  # of Python, of NumPy
        raise InputError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def _name(name: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise InputError(
            f"{name} is {value!r}; expected a name of weights (see `isinglass models`) or the path of a file. A model "
            f"of your own is given as custom_{name}"
        )
    return value
