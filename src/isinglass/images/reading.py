"""Pixels in: files, PIL images, arrays and tensors become one kind of tensor, and masks another."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isinglass.errors import InputError
from isinglass.images.formats import MAX_PIXELS
from isinglass.images.header import Header, header_of, load, opened, read_header
from isinglass.images.values import Stretch, unit_values

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_GDAL_NODATA = 42113
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Photo:
    """An image as it was read.

    image        (3, H, W) float32 in [0, 1], RGB, pixels as stored
    valid        (H, W) bool, where the source holds numbers; None = everywhere
    orientation  of its EXIF, 1 to 8, for `upright`
    notes        what a person should know of how it was read, each a clause about the image
    """

    image: Tensor
    valid: Tensor | None = None
    orientation: int = 1
    notes: tuple[str, ...] = ()


def read_photo(source: ImageSource, *, max_pixels: int = MAX_PIXELS, stretch: Stretch = "auto") -> Photo:
    """Read a file, a PIL image, an array or a tensor, with all that `read_image` leaves out.

    Raises InputError as `read_image` does.
    """
    if isinstance(source, Tensor):
        return _photo_of(_array_of(source), "the image", stretch)
    if isinstance(source, np.ndarray):
        return _photo_of(source, "the image", stretch)
    if isinstance(source, Image.Image):
        header = header_of(source)
        photo = _from_pil(source, header, "the image", (max_pixels, stretch))
        turned_by_pillow = source.format == "TIFF" and not hasattr(source, "_isinglass_exif")
        return photo if turned_by_pillow else _with(photo, header)
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"an image came as {type(source).__name__}; expected a path, PIL image, numpy array or tensor")
    name = repr(os.fspath(source))
    with opened(source) as image:
        header = header_of(image)
        photo = _with(_from_pil(image, header, name, (max_pixels, stretch)), header)
    for note in photo.notes:
        _log.warning("%s: %s", name, note)
    return photo


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, stretch: Stretch = "auto") -> Tensor:
    """Return RGB (3, H, W) float32 in [0, 1] of a file, a PIL image, an array or a tensor; the pixels as stored.

    source      path or PIL image: any mode; 16-bit grey keeps its precision; of an animation the current frame
                (of a file the first); arrays (H, W), (H, W, 1), (H, W, 3), (H, W, 4); tensors (1, H, W), (3, H, W),
                (4, H, W); of uint8, uint16, bool, or float in [0, 1]
    max_pixels  files with more are refused before they are decoded
    stretch     "auto": 16-bit values that use under a tenth of their range, as those of 12-bit and thermal sensors,
                are stretched to all of it, between their percentiles 0.1 and 99.9; "percentile": all values are,
                whatever number type and range they have; "none": no values are

    Alpha is dropped and the colours under it kept, as OpenCV does: blending would draw edges that no camera saw. Give
    transparent regions as a mask. EXIF turns are not applied: see `exif_orientation` and `upright`. Pixels that are
    NaN or infinite become the mean of the others; `read_photo` says where they are.

    Raises InputError for whatever cannot be read wholly, such as a truncated file, and for floats outside [0, 1] by
    more than resampling explains.
    """
    return read_photo(source, max_pixels=max_pixels, stretch=stretch).image


def read_mask(source: ImageSource, size: tuple[int, int]) -> Tensor:
    """(H, W) bool, True = keep: where an image is not black, or an array (H, W) or (H, W, 1) of any number not zero.

    size  (width, height) of the image that it masks, pixels as stored

    Raises InputError where the sizes differ, and as `read_image` does.
    """
    if isinstance(source, np.ndarray | Tensor):
        values = np.asarray(source.detach().cpu() if isinstance(source, Tensor) else source)
        values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        if values.ndim != 2 or values.dtype.kind not in "biuf" or bool(np.isnan(values).any()):
            raise InputError(f"the mask is {values.dtype} {values.shape} or holds NaN; expected numbers (H, W)")
        mask = torch.from_numpy(values != 0)
    else:
        mask = (read_image(source, stretch="none") > 0).any(dim=0)
    if (mask.shape[1], mask.shape[0]) != tuple(size):
        raise InputError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px, its image {size[0]} x {size[1]}; expected the same "
            "size, in the pixels as stored (before any EXIF turn). Resize the mask with nearest neighbours"
        )
    return mask


def reading_version(path: str | os.PathLike[str]) -> str:
    """Return what a key of an image's features holds beside the file's content: "" for images of 8 bits.

    How deeper values become floats has changed; features of before must not be taken for those of now.
    """
    try:
        return "values-1" if read_header(path).deep else ""
    except InputError:  # which is reported when it is read
        return ""


def exif_orientation(source: ImageSource) -> int:
    """Return the EXIF orientation 1 to 8 of a file or PIL image, for `upright`; 1 (as stored) where there is none."""
    if isinstance(source, np.ndarray | Tensor):
        return 1
    if isinstance(source, Image.Image):
        return header_of(source).exif.orientation
    return read_header(source).exif.orientation


def _with(photo: Photo, header: Header) -> Photo:
    """The photo with what its header says."""
    return Photo(
        image=photo.image,
        valid=photo.valid,
        orientation=header.exif.orientation,
        notes=(*header.notes, *photo.notes),
    )


def _photo_of(array: np.ndarray, name: str, stretch: Stretch, nodata: float | None = None) -> Photo:
    values = unit_values(array, name, stretch, nodata=nodata)
    return Photo(
        image=torch.from_numpy(values.planes).expand(3, -1, -1).contiguous(),
        valid=None if values.valid is None else torch.from_numpy(values.valid),
        notes=values.notes,
    )


def _from_pil(image: Image.Image, header: Header, name: str, how: tuple[int, Stretch]) -> Photo:
    max_pixels, stretch = how
    nodata = _nodata(image)
    array = _decoded(load(image, name, max_pixels), name)
    if array.dtype == np.int32:  # 32 bits, but what writes it mostly holds 16
        named = header.dtype if header.dtype.startswith(("int", "uint32")) else "int32"
        array = _of_16_bits(array, f"{name} ({named})", stretch, nodata)
    return _photo_of(array, name, stretch, nodata)


def _of_16_bits(array: np.ndarray, name: str, stretch: Stretch, nodata: float | None) -> np.ndarray:
    """Integers as uint16 if they fit, as they are if any range will do."""
    kept = array if nodata is None else array[array != nodata]
    low, high = (int(kept.min()), int(kept.max())) if kept.size else (0, 0)
    if stretch == "percentile":
        return array
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise InputError(
            f"{name} has values from {low} to {high}, as a height map may; expected 0 to 255 or 0 to 65535. Convert it "
            "to uint8 or uint16, or give stretch='percentile' to stretch what is there"
        )
    if kept.size < array.size:
        return np.where(array == nodata, np.nan, array / np.float32(65535)).astype(np.float32)
    return array.astype(np.uint16)


def _nodata(image: Any) -> float | None:
    """The value that stands for no value, as GDAL writes it into a TIFF."""
    try:
        return float(image.tag_v2[_GDAL_NODATA].strip("\0 "))
    except Exception:  # no TIFF, no such tag, or no number
        return None


def _decoded(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("1", "L", "RGB", "RGBA", "F", "I"):
        return np.asarray(image)
    if image.mode == "La":
        return np.asarray(image.convert("LA").convert("L"))
    if image.mode == "LAB":  # which Pillow converts only with colour profiles
        return np.asarray(image.getchannel("L"))
    has_alpha = image.mode in ("RGBa", "LA", "PA") or "transparency" in image.info
    try:
        return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    except Exception as error:
        raise InputError(
            f"{name} is of mode {image.mode}, which Pillow cannot turn into RGB ({error}). Convert it to PNG"
        ) from error


def _array_of(image: Tensor) -> np.ndarray:
    """(H, W, C) of a tensor (C, H, W)."""
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise InputError(
            f"an image tensor has shape {tuple(image.shape)}; expected one image (1, H, W) or (3, H, W). "
            "Index a batch; permute (H, W, 3), or pass it as a numpy array"
        )
    image = image.detach().cpu().permute(1, 2, 0)
    return (image.float() if image.is_floating_point() else image).numpy()
