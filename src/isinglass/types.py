"""What flows through Isinglass: `Features` of images, `Matches` of pairs, and the protocols of who makes them.

The pixel convention, everywhere but in files written for COLMAP: a point is (x, y) in pixels of the ORIGINAL image,
and (0, 0) is the centre of the top-left pixel. So an image of width w spans -0.5 to w - 0.5. Sizes are
(width, height). Keypoints are float32 always, indices int64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from isinglass.errors import InputError

PIXEL_CONVENTION = "pixel-centre-0"
_PER_IMAGE = ("image_size", "turns")  # the fields of Features without a keypoint axis
_OPTIONAL = ("mask", "scales", "orientations", "turns")
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NUMBERS = (*_FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES: dict[str, tuple[str, Sequence[torch.dtype]]] = {
    "keypoints": ("float32 (halves are off by pixels): use .float(), or .astype('float32')", (torch.float32,)),
    "descriptors": ("numbers", _NUMBERS),
    "scores": ("floating point", _FLOATS),
    "image_size": ("numbers of px", _NUMBERS),
    "mask": ("bool", (torch.bool,)),
    "scales": ("floating point", _FLOATS),
    "orientations": ("floating point", _FLOATS),
    "turns": ("int64", (torch.int64,)),
}
FARTHEST = 1.0  # sides of the image that a keypoint may be outside of it
MOST_RAD = 2 * math.pi + 0.01  # of an orientation, either way; a little for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who made a set of features. A matcher refuses a foreign one by name."""

    extractor: str  # the name of the weights, or of the algorithm: "aliked-n16", "rootsift"
    weights: str = "none"  # first 12 hex digits of the checkpoint's sha256; "random" or "none"
    convention: str = PIXEL_CONVENTION

    @property
    def descriptors(self) -> str:
        """The extractor whose descriptors they are, which a matcher is made for: of "disk+aliked-n16" the last."""
        return self.extractor.rpartition("+")[2]

    def __str__(self) -> str:
        return f"{self.extractor}@{self.weights}/{self.convention}"

    @classmethod
    def of(cls, value: object) -> Signature:
        """Return the signature that a text means: of one `parse` reads, or the name of an extractor alone.

        Raises InputError for anything else.
        """
        if isinstance(value, Signature):
            return value
        if not isinstance(value, str) or not value:
            raise InputError(
                f"signature is {value!r}; expected a Signature, or the extractor's name, such as 'rootsift'"
            )
        return cls.parse(value) if "@" in value or "/" in value else cls(extractor=value)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Return the inverse of `str`. Raises InputError on any other text."""
        head, _, convention = text.partition("/")
        extractor, _, weights = head.partition("@")
        if not (extractor and weights and convention):
            raise InputError(f"{text!r} is no feature signature: expected 'extractor@weights/convention'")
        return cls(extractor=extractor, weights=weights, convention=convention)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Features:
    """Local features of a batch of B images, padded to N keypoints each where their counts differ.

    keypoints     (B, N, 2) float32, (x, y) px of the original image
    descriptors   (B, N, D)
    scores        (B, N) detection scores, higher is better; not comparable between extractors
    image_size    (B, 2) (width, height) px of the original image
    mask          (B, N) bool, False = padding, which comes last; None = no padding
    scales        (B, N) px, diameter of the keypoint's support; None unless the detector estimates it (SIFT)
    orientations  (B, N) rad, from +x towards +y (clockwise as seen); None likewise
    turns         (B,) int64, how the extractor saw each image: turned by 0 to 3 quarter turns counter-clockwise, and
                  mirrored left to right before that if 4 or more; None = as it is. All coordinates above are of
                  the original image all the same; `as_seen` gives those of the turned one, which matchers encode
    signature     who made them; a text is parsed

    NumPy arrays are copied into tensors. Raises InputError where shapes, dtypes or devices disagree.
    """

    keypoints: Tensor
    descriptors: Tensor
    scores: Tensor
    image_size: Tensor
    mask: Tensor | None = None
    scales: Tensor | None = None
    orientations: Tensor | None = None
    turns: Tensor | None = None
    signature: Signature

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", Signature.of(self.signature))
        for name in _DTYPES:
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (value is not None or name not in _OPTIONAL):
                object.__setattr__(self, name, _as_tensor(name, value))
        keypoints, tensors = self.keypoints, _tensors_of(self)
        if keypoints.ndim != 3 or keypoints.shape[-1] != 2:
            hint = ". One image is a batch of one: index with [None]" if keypoints.ndim == 2 else ""
            raise InputError(f"keypoints have shape {tuple(keypoints.shape)}; expected (B, N, 2){hint}")
        batch, count = keypoints.shape[:2]
        descriptors = self.descriptors
        if descriptors.ndim != 3 or descriptors.shape[:2] != (batch, count):
            raise InputError(f"descriptors have shape {tuple(descriptors.shape)}; expected ({batch}, {count}, D)")
        if tuple(self.image_size.shape) != (batch, 2):
            raise InputError(f"image_size has shape {tuple(self.image_size.shape)}; expected ({batch}, 2)")
        for name in ("scores", "mask", "scales", "orientations"):
            if name in tensors and tuple(tensors[name].shape) != (batch, count):
                raise InputError(f"{name} has shape {tuple(tensors[name].shape)}; expected ({batch}, {count})")
        if self.turns is not None and tuple(self.turns.shape) != (batch,):
            raise InputError(f"turns has shape {tuple(self.turns.shape)}; expected ({batch},)")
        for name, value in tensors.items():
            expected, dtypes = _DTYPES[name]
            if value.dtype not in dtypes:
                raise InputError(f"{name} is {value.dtype}; expected {expected}")
            if value.device != keypoints.device:
                raise InputError(
                    f"{name} is on {value.device} and keypoints on {keypoints.device}; expected one device. Move both "
                    "with .to(device)"
                )

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def __getitem__(self, i: int) -> Features:
        """The features of image i alone: a batch of one, without padding."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a batch of {len(self)}")
        i %= len(self)
        one = replace(self, **{name: value[i : i + 1] for name, value in _tensors_of(self).items()})
        return one if self.mask is None else replace(one.select(self.mask[i].nonzero()[:, 0]), mask=None)

    @property
    def num_keypoints(self) -> Tensor:
        """(B,) int64, padding not counted."""
        if self.mask is None:
            return torch.full((len(self),), self.keypoints.shape[1], device=self.device)
        return self.mask.sum(dim=1)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.keypoints.device

    def to(self, device: torch.device | str) -> Features:
        """The same features on another device. Copies wait until they are done, so no result is read too early."""
        return replace(self, **{name: value.to(device) for name, value in _tensors_of(self).items()})

    def select(self, index: Tensor) -> Features:
        """Keypoints `index` (K,) int64 of every image of the batch, in that order."""
        per_point = {name: value[:, index] for name, value in _tensors_of(self).items() if name not in _PER_IMAGE}
        return replace(self, **per_point)

    def top(self, count: int) -> Features:
        """The `count` keypoints of the highest score (of a batch of one), best first."""
        if len(self) != 1 or self.mask is not None:
            raise InputError(f"top() takes features of one image without padding; got a batch of {len(self)}")
        return self.select(self.scores[0].argsort(descending=True, stable=True)[:count])

    def as_seen(self) -> Features:
        """The same features with coordinates of the turned images that the extractor saw, and turns None."""
        if self.turns is None:
            return self
        keypoints, size, angles = self.keypoints, self.image_size, self.orientations
        for is_step, is_mirror in [(self.turns >= 4, True), *((self.turns % 4 > k, False) for k in range(3))]:
            width = size[:, None, :1].to(keypoints)
            x, y = keypoints[..., :1], keypoints[..., 1:]
            stepped = torch.cat([width - 1 - x, y] if is_mirror else [y, width - 1 - x], dim=-1)
            keypoints = torch.where(is_step[:, None, None], stepped, keypoints)
            size = size if is_mirror else torch.where(is_step[:, None], size.flip(1), size)
            if angles is not None:
                turned = torch.pi - angles if is_mirror else angles - torch.pi / 2
                angles = torch.where(is_step[:, None], torch.remainder(turned, 2 * torch.pi), angles)
        return replace(self, keypoints=keypoints, image_size=size, orientations=angles, turns=None)

    @staticmethod
    def stack(features: Sequence[Features]) -> Features:
        """One padded batch of several; all must share signature and descriptor size. Raises InputError otherwise."""
        if not features:
            raise InputError("no features to stack; expected at least one")
        singles = [one[i] for one in features for i in range(len(one))]
        first, longest = singles[0], max(one.keypoints.shape[1] for one in singles)
        for one in singles:
            if one.signature != first.signature:
                raise InputError(f"features of {one.signature} and of {first.signature} cannot share a batch")
        if any(one.turns is not None for one in singles):
            none = torch.zeros(1, dtype=torch.int64, device=first.device)
            singles = [one if one.turns is not None else replace(one, turns=none) for one in singles]
            first = singles[0]
        stacked = {}
        for name in _tensors_of(first):
            values = [getattr(one, name) for one in singles]
            stacked[name] = torch.cat(values if name in _PER_IMAGE else _padded(values, 0))
        counts = torch.tensor([one.keypoints.shape[1] for one in singles], device=first.device)
        mask = torch.arange(longest, device=first.device) < counts[:, None]
        return replace(first, **stacked, mask=None if bool(mask.all()) else mask)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Matches:
    """Matches of a batch of B pairs, from view 0 to view 1.

    indices         (B, N0) int64, the keypoint of view 1 that each keypoint of view 0 matches; -1 = none
    scores          (B, N0) in [0, 1]; also given for mutual candidates under the threshold, 0 elsewhere
    stop_layer      (B,) int64, layers that were run; None where a matcher has no layers
    pruned_at0/1    (B, N0) / (B, N1) int64, layers each keypoint went through; None without adaptive width
    confidences0/1  (B, N0) / (B, N1) in [0, 1], how sure each keypoint's prediction was of being final when last
                    asked; NaN = never asked; None without confidence heads
    matcher         the name of the matcher
    """

    indices: Tensor
    scores: Tensor
    stop_layer: Tensor | None = None
    pruned_at0: Tensor | None = None
    pruned_at1: Tensor | None = None
    confidences0: Tensor | None = None
    confidences1: Tensor | None = None
    matcher: str

    def __len__(self) -> int:
        return self.indices.shape[0]

    def pairs(self, i: int = 0) -> Tensor:
        """(M, 2) int64: (keypoint of view 0, keypoint of view 1) of each match of pair i."""
        index0 = (self.indices[i] >= 0).nonzero()[:, 0]
        return torch.stack([index0, self.indices[i, index0]], dim=1)

    def pair_scores(self, i: int = 0) -> Tensor:
        """(M,): the scores of `pairs(i)`."""
        return self.scores[i, self.indices[i] >= 0]

    def to(self, device: torch.device | str) -> Matches:
        """The same matches on another device."""
        return replace(self, **{name: value.to(device) for name, value in _tensors_of(self).items()})

    @staticmethod
    def stack(matches: Sequence[Matches]) -> Matches:
        """One batch of several; the views of smaller pairs are padded by keypoints that match nothing."""
        if not matches:
            raise InputError("no matches to stack; expected at least one")
        stacked = {}
        for name in _tensors_of(matches[0]):
            values = [getattr(one, name) for one in matches]
            fill = -1 if name == "indices" else 0
            stacked[name] = torch.cat(values if name == "stop_layer" else _padded(values, fill))
        return replace(matches[0], **stacked)


@runtime_checkable
class Extractor(Protocol):
    """Images in, features out. A model cannot read files, resize or plot.

    One may have `bytes_per_pixel`, the most memory that extraction was measured to take: images can then be cut into
    tiles by the memory there is.
    """

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        ...

    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images.

        `mask` (B, H, W) bool: keypoints are detected only where it is True.
        """
        ...


@runtime_checkable
class Matcher(Protocol):
    """Features of two views in, matches out. A matcher never sees an image."""

    @property
    def name(self) -> str:
        """As written into its matches."""
        ...

    def match(self, features0: Features, features1: Features) -> Matches:
        """Matches of a batch of B pairs: image i of `features0` with image i of `features1`."""
        ...

    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """Matches of a ragged list of pairs, each item features of one image; one `Matches` a pair."""
        ...


def check_images(images: Tensor, mask: Tensor | None) -> None:
    """Raises InputError unless these are images, and a mask of theirs, as `Extractor.extract` takes them."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point() or not images.numel():
        raise InputError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; expected (B, 3 or 1, H, W) in floating "
            "point, values from 0 to 1"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != images[:, 0].shape):
        raise InputError(
            f"mask has shape {tuple(mask.shape)} and type {mask.dtype}; expected {tuple(images[:, 0].shape)}, bool"
        )


def check_pairs(
    features0: Sequence[Features],
    features1: Sequence[Features],
    *,
    matcher: str,
    accepts: Sequence[str] | None = None,
    descriptor_size: int | None = None,
) -> list[tuple[Features, Features]]:
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


def distinct_views(pairs: Sequence[tuple[Features, Features]]) -> tuple[list[Features], list[int]]:
    """The views of all pairs, those that are in several pairs once; and which of them each view is, pair by pair.

    What a matcher does before views meet it need do but once for each: one image against many is the usual case.
    """
    views = [view for pair in pairs for view in pair]
    distinct = {id(view): view for view in views}
    place = {key: i for i, key in enumerate(distinct)}
    return list(distinct.values()), [place[id(view)] for view in views]


def chunk_pairs(
    pairs: Sequence[tuple[Features, Features]], max_keypoints: int
) -> Iterator[list[tuple[Features, Features]]]:
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
    if name == "orientations" and max(-least[0], most[0]) > MOST_RAD:
        raise InputError(
            f"orientations of {place} are from {least[0]:g} to {most[0]:g}; expected radians from -2 pi to 2 pi. "
            "Degrees are turned into them by torch.deg2rad"
        )
    if name == "keypoints" and any(
        low < -FARTHEST * side or high > (1 + FARTHEST) * side
        for low, high, side in zip(least, most, size, strict=True)
    ):
        raise InputError(
            f"keypoints of {place} are from {_xy(least)} to {_xy(most)} px, far outside of its image of "
            f"{_xy(size)} px; expected (x, y) px of the original image, and image_size as (width, height)"
        )


def _xy(numbers: Sequence[float]) -> str:
    return "({})".format(", ".join(f"{number:g}" for number in numbers))


def _as_tensor(name: str, value: Any) -> Tensor:
    """Return a copy of a NumPy array as a tensor. Raises InputError for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        try:
            array = np.array(value, order="C")
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise InputError(f"{name} is an array of {value.dtype}; expected {_DTYPES[name][0]}") from error
    raise InputError(f"{name} is a {type(value).__name__}; expected a tensor or a NumPy array")


def _tensors_of(data: Features | Matches) -> dict[str, Tensor]:
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _padded(values: Sequence[Tensor], fill: int) -> list[Tensor]:
    """Tensors (B, N, ...) padded along N to the longest."""
    longest = max(value.shape[1] for value in values)
    return [
        torch.cat([value, value.new_full((value.shape[0], longest - value.shape[1], *value.shape[2:]), fill)], dim=1)
        for value in values
    ]
