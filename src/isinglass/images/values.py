"""Values of pixels: from any type and range to float32 in [0, 1], or an error that names both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isinglass.errors import InputError

Stretch = Literal["auto", "none", "percentile"]
STRETCHES = ("auto", "none", "percentile")

HARDLY_USED = 0.1  # of the range of 16 bits; 12-bit sensors use 0.06 of it
PERCENTILES = (0.1, 99.9)
_MOST_SAMPLES = 1_000_000
_ROUNDING = 1e-4  # floats may leave [0, 1] by this much without a word
_OVERSHOOT = 0.2  # and by this much with one, as resampling makes them
_ADVICE = "or give stretch='percentile' to stretch what is there"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Values:
    """Planes (C, H, W) float32 in [0, 1] of C = 1 or 3 channels.

    valid  (H, W) bool, where the source has numbers; None = everywhere
    notes  what was done to the values, in words
    """

    planes: np.ndarray
    valid: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def unit_values(
    array: np.ndarray, name: str = "the image", stretch: Stretch = "auto", *, nodata: float | None = None
) -> Values:
    """Return the values of an array (H, W) or (H, W, 1, 3 or 4) in [0, 1]; alpha is dropped.

    stretch  "auto" = 16-bit values of which under HARDLY_USED of the range is used are stretched between their
             PERCENTILES; "percentile" = all are, of whatever number type and range; "none" = never
    nodata   the value that stands for none in arrays of more than 8 bits

    Pixels that are NaN, infinite or `nodata` become the mean of the others and are not `valid`. Raises InputError for
    other shapes and types, for floats outside [0, 1] by more than resampling explains, and where no pixel is valid.
    """
    if stretch not in STRETCHES:
        raise InputError(f"stretch is {stretch!r}; expected one of {', '.join(map(repr, STRETCHES))}")
    array_HWC = array[..., None] if array.ndim == 2 else array
    if array_HWC.ndim != 3 or array_HWC.shape[2] not in (1, 3, 4) or array_HWC.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            "pixel. Arrays have channels last; pass channels first as a tensor"
        )
    array_HWC, dtype = array_HWC[..., :3], array.dtype.newbyteorder("=")
    _check_type(array_HWC, dtype, name, stretch)
    valid, notes = _valid(array_HWC, dtype, name, nodata)
    sample = _sample(array_HWC, valid)
    low, high = 0.0, float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
    if (stretch == "percentile" and dtype != np.bool_) or (stretch == "auto" and dtype == np.uint16):
        first, last = (float(one) for one in np.percentile(sample, PERCENTILES))
        if first < last and (stretch == "percentile" or last - first < HARDLY_USED * high):
            notes.append(f"its {dtype} values {first:g} to {last:g} were stretched to the whole range")
            low, high = first, last
    if dtype.kind == "f" and (low, high) == (0.0, 1.0):
        notes += _check_floats(array_HWC, valid, name)
    planes = _scaled(array_HWC, valid, low, high)
    clipped = dtype.kind == "f" or low != 0 or dtype.kind == "i" or valid is not None or high != _top(dtype)
    if clipped:
        np.clip(planes, 0, 1, out=planes)
    return Values(planes=planes, valid=valid, notes=tuple(notes))


def _check_type(array_HWC: np.ndarray, dtype: np.dtype, name: str, stretch: Stretch) -> None:
    if dtype in (np.uint8, np.uint16, np.bool_) or dtype.kind == "f":
        return
    if dtype.kind not in "iu":
        raise InputError(f"{name} is {dtype}; expected uint8, uint16, bool, or float in [0, 1]. Convert it")
    if stretch == "percentile":
        return
    raise InputError(
        f"{name} is {dtype}; expected uint8, uint16, bool, or float in [0, 1]. Its values are {array_HWC.min()} to "
        f"{array_HWC.max()}: convert it, for instance with .astype('uint8'), {_ADVICE}"
    )


def _valid(
    array_HWC: np.ndarray, dtype: np.dtype, name: str, nodata: float | None
) -> tuple[np.ndarray | None, list[str]]:
    """Return which pixels (H, W) hold numbers, None if all do, and a note of how many do not."""
    holes_HW = np.zeros(array_HWC.shape[:2], np.bool_)
    if dtype.kind == "f":
        holes_HW |= ~np.isfinite(array_HWC).all(axis=2)
    if nodata is not None and dtype.itemsize > 1:
        holes_HW |= np.equal(array_HWC, nodata).any(axis=2)
    if not holes_HW.any():
        return None, []
    if holes_HW.all():
        raise InputError(
            f"{name} is {dtype} with values from {array_HWC.min()} to {array_HWC.max()} and no pixel that holds a "
            "number; expected finite values. Fill NaN and infinite values"
        )
    share = holes_HW.mean()
    kind = "NaN, infinite or nodata" if nodata is not None else "NaN or infinite"
    return ~holes_HW, [f"{share:.2g} of its pixels are {kind} and were masked"]


def _check_floats(array_HWC: np.ndarray, valid: np.ndarray | None, name: str) -> list[str]:
    """Return a note on floats that resampling has pushed out of [0, 1]. Raises InputError for another range."""
    kept = array_HWC if valid is None else array_HWC[valid]
    low, high = float(kept.min()), float(kept.max())
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return []
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return [f"its values from {low:.3g} to {high:.3g} were clipped to [0, 1]"]
    if low < 0:
        remedy = "(x + 1) / 2 brings -1 to 1 there" if low >= -1 and high <= 1 else "Subtract the least value first"
    else:
        top = next((top for top in (255, 1023, 4095, 16383, 65535) if high <= top), None)
        remedy = "Divide by the largest value" + (f" of its range, such as {top}" if top else " of its range")
    raise InputError(
        f"{name} is {array_HWC.dtype} with values from {low:g} to {high:g}; expected finite floats in [0, 1]. {remedy}"
        f", pass uint8 or uint16, {_ADVICE}"
    )


def _scaled(array_HWC: np.ndarray, valid: np.ndarray | None, low: float, high: float) -> np.ndarray:
    """Return planes (C, H, W) float32 with `low` at 0 and `high` at 1, pixels that are not valid at the mean."""
    planes_CHW = np.empty((array_HWC.shape[2], *array_HWC.shape[:2]), dtype=np.float32)
    array_CHW = array_HWC.transpose(2, 0, 1)
    if low == 0:
        np.divide(array_CHW, np.float32(high), out=planes_CHW, dtype=np.float32, casting="unsafe")
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(array_CHW, low, out=planes_CHW, dtype=np.float64, casting="unsafe")
        planes_CHW /= np.float32(high - low)
    if valid is not None:
        kept = planes_CHW[:, valid]
        planes_CHW[:, ~valid] = np.clip(kept, 0, 1).mean(dtype=np.float64)
    return planes_CHW


def _sample(array_HWC: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return about a million of the valid values, evenly spread."""
    kept = array_HWC.reshape(-1, array_HWC.shape[2]) if valid is None else array_HWC[valid]
    return kept[:: max(1, len(kept) // _MOST_SAMPLES)]


def _top(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
