"""What features and matches are made of on disk: arrays, their axes and types, and tensors to them and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isinglass.errors import InputError
from isinglass.types import Features, Signature

Fields = Mapping[str, np.ndarray | str]


@dataclass(frozen=True, slots=True)
class Field:
    """An array on disk: its axes (letters bind to one length a file), its dtypes and the range of its values."""

    axes: tuple[str | int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    required: bool = True
    finite: bool = True
    range: tuple[float, float] = (-math.inf, math.inf)


_INT = ("int32",)
FEATURES = {
    "keypoints": Field(("N", 2)),
    "descriptors": Field(("N", "D"), ("float32", "float16")),
    "scores": Field(("N",)),
    "image_size": Field((2,), _INT, range=(1, math.inf)),
    "scales": Field(("N",), required=False),
    "orientations": Field(("N",), required=False),
    "turns": Field((), _INT, required=False, range=(0, 7)),
}
MATCHES = {
    "keypoints0": Field(("N0", 2)),
    "keypoints1": Field(("N1", 2)),
    "image_size0": Field((2,), _INT, range=(1, math.inf)),
    "image_size1": Field((2,), _INT, range=(1, math.inf)),
    "indices": Field(("N0",), _INT),
    "scores": Field(("N0",)),
    "stop_layer": Field((), _INT, required=False),
    "pruned_at0": Field(("N0",), _INT, required=False),
    "pruned_at1": Field(("N1",), _INT, required=False),
    "confidences0": Field(("N0",), required=False, finite=False),
    "confidences1": Field(("N1",), required=False, finite=False),
}


def check(fields: Fields, table: Mapping[str, Field]) -> None:
    """Raises ValueError unless the fields are as the table has them."""
    lengths: dict[str, int] = {}
    for name, field in table.items():
        if name not in fields:
            if field.required:
                raise ValueError(f"it has no {name}")
            continue
        array = np.asarray(fields[name])
        if array.dtype.name not in field.dtypes or array.ndim != len(field.axes):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {field.dtypes[0]} {field.axes}")
        for axis, length in zip(field.axes, array.shape, strict=True):
            expected = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
            if length != expected:
                raise ValueError(f"{name} has shape {array.shape}, expected {axis} = {expected}")
        if field.finite and not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinity as {array.dtype}")
        low, high = field.range
        if (array < low).any() or (array > high).any():
            raise ValueError(f"{name} run from {array.min()} to {array.max()}, expected {low} to {high}")
    if "indices" in table:
        indices = np.asarray(fields["indices"])
        if indices.size and (indices.min() < -1 or indices.max() >= lengths["N1"]):
            raise ValueError(f"indices run from {indices.min()} to {indices.max()}, but view 1 has {lengths['N1']}")


def require_single(features: Features, name: str) -> None:
    """Raises InputError for a batch or padding."""
    if len(features) != 1 or features.mask is not None:
        raise InputError(f"{name} are a batch of {len(features)} or padded; expected one image's (use f[i])")


def to_disk(value: Tensor, field: Field) -> np.ndarray:
    """The tensor (1, ...) without its batch axis."""
    return value[0].detach().cpu().to(getattr(torch, field.dtypes[0])).numpy()


def from_disk(value: np.ndarray | str) -> Tensor:
    """The inverse: (1, ...), float32 or int64."""
    tensor = torch.from_numpy(np.array(value))[None]
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)


def feature_fields(features: Features, *, half: bool = False) -> dict[str, np.ndarray]:
    """The arrays of one image's features; with `half` the descriptors are float16. Raises InputError for batches."""
    require_single(features, "features")
    values = {name: getattr(features, name) for name in FEATURES}
    fields = {name: to_disk(value, FEATURES[name]) for name, value in values.items() if value is not None}
    if half:
        with np.errstate(over="ignore"):
            fields["descriptors"] = fields["descriptors"].astype(np.float16)
    return fields


def features_of(fields: Fields) -> Features:
    """Of arrays that are as FEATURES has them, and of the signature."""
    tensors = {name: from_disk(fields[name]) for name in FEATURES if name in fields}
    return Features(**tensors, signature=Signature.parse(text_of(fields, "signature")))


def text_of(fields: Fields, name: str) -> str:
    """A field that is text. Raises ValueError where there is none."""
    text = fields.get(name)
    if not isinstance(text, str):
        raise ValueError(f"it has no text {name!r}")
    return text
