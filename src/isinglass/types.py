"""What flows through Isinglass: `Features` of images, `Matches` of pairs, and the protocols of who makes them.

The pixel convention, everywhere but in files written for COLMAP: a point is (x, y) in pixels of the ORIGINAL image,
and (0, 0) is the centre of the top-left pixel. So an image of width w spans -0.5 to w - 0.5. Sizes are
(width, height). Keypoints are float32 always, indices int64.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    @classmethod
    def from_arrays(
        cls,
        keypoints: Any,
        descriptors: Any,
        *,
        image_size: Sequence[int],
        signature: Signature | str,
        scores: Any = None,
        scales: Any = None,
        orientations: Any = None,
    ) -> Features:
        """Return features of one image from arrays or tensors of one's own.

        keypoints     (N, 2) (x, y) px of the image, (0, 0) = centre of the top-left pixel; or a list of OpenCV's
                      KeyPoint, whose response, size and angle are taken for what is not given
        descriptors   (N, D)
        image_size    (width, height) px
        signature     the extractor's name, such as "rootsift"; a matcher takes those that it was made for
        scores        (N,), all 1 by default
        orientations  (N,) rad

        Raises InputError where shapes disagree, or a keypoint lies outside of the image.
        """
        if isinstance(keypoints, list | tuple) and keypoints and hasattr(keypoints[0], "pt"):
            scores = [point.response for point in keypoints] if scores is None else scores
            scales = [point.size for point in keypoints] if scales is None else scales
            if orientations is None and all(point.angle >= 0 for point in keypoints):  # -1 = not estimated
                orientations = np.deg2rad([point.angle for point in keypoints])
            keypoints = [point.pt for point in keypoints]
        points = _float32("keypoints", keypoints).reshape(-1, 2)
        made = cls(
            keypoints=points[None],
            descriptors=torch.as_tensor(descriptors)[None],
            scores=torch.ones(1, len(points)) if scores is None else _float32("scores", scores)[None],
            image_size=torch.tensor([list(image_size)]),
            scales=None if scales is None else _float32("scales", scales)[None],
            orientations=None if orientations is None else _float32("orientations", orientations)[None],
            signature=Signature.of(signature),
        )
        width, height = image_size
        least, most = (end(points, 0).values.tolist() if len(points) else [0, 0] for end in (torch.min, torch.max))
        if min(least) < -1 or most[0] > width or most[1] > height:
            raise InputError(
                f"keypoints are from ({least[0]:g}, {least[1]:g}) to ({most[0]:g}, {most[1]:g}) px in an image of "
                f"{width} x {height}; expected (x, y) px of the image, and image_size as (width, height)"
            )
        return made

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the fields that are there as arrays, copied to the CPU; halves as float32."""
        return _as_arrays(self)

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

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the fields that are there as arrays, copied to the CPU; halves as float32."""
        return _as_arrays(self)

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
        """Name that is written into its matches."""
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


def _as_tensor(name: str, value: Any) -> Tensor:
    """Return a copy of a NumPy array as a tensor. Raises InputError for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        try:
            array = np.array(value, order="C")
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise InputError(f"{name} is an array of {value.dtype}; expected {_DTYPES[name][0]}") from error
    raise InputError(f"{name} is a {type(value).__name__}; expected a tensor or a NumPy array")


def _float32(name: str, values: Any) -> Tensor:
    """Return numbers as a float32 tensor. Raises InputError for anything else."""
    try:
        return torch.as_tensor(np.asarray(values) if isinstance(values, list | tuple) else values).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is a {type(values).__name__} that holds no numbers; expected an array") from error


def _as_arrays(data: Features | Matches) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {name: value.detach().cpu() for name, value in _tensors_of(data).items()}
    halves = (torch.float16, torch.bfloat16)
    return {name: (value.float() if value.dtype in halves else value).numpy() for name, value in tensors.items()}


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
