"""Pixels in: files, PIL images, arrays and tensors become one kind of tensor, and masks another."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isinglass.errors import InputError
from isinglass.images.formats import MAX_PIXELS

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_ROUNDING = 1e-4  # floats may leave [0, 1] by this much, as resampling makes them
_EXIF_ORIENTATION = 0x0112
_pillow_lock = threading.Lock()


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """RGB (3, H, W) float32 in [0, 1] of a file, a PIL image, an array or a tensor; the pixels as stored.

    source      path or PIL image: any mode; 16-bit grey keeps its precision; of an animation the current frame
                (of a file the first); arrays (H, W), (H, W, 1), (H, W, 3), (H, W, 4); tensors (1, H, W), (3, H, W),
                (4, H, W); of uint8, uint16, bool, or float in [0, 1]
    max_pixels  files with more are refused before they are decoded

    Alpha is dropped and the colours under it kept, as OpenCV does: blending would draw edges that no camera saw. Give
    transparent regions as a mask. EXIF turns are not applied: see `exif_orientation` and `upright`.

    Raises InputError for whatever cannot be read wholly, such as a truncated file, and for values outside [0, 1].
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the image", max_pixels)
    with _opened(source) as image:
        return _from_pil(image, f"{os.fspath(source)!r}", max_pixels)


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
        mask = (read_image(source) > 0).any(dim=0)
    if (mask.shape[1], mask.shape[0]) != tuple(size):
        raise InputError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px, its image {size[0]} x {size[1]}; expected the same "
            "size, in the pixels as stored (before any EXIF turn). Resize the mask with nearest neighbours"
        )
    return mask


def exif_orientation(source: ImageSource) -> int:
    """The EXIF orientation 1 to 8 of a file or PIL image, for `upright`; 1 (as stored) where there is none."""
    if isinstance(source, np.ndarray | Tensor):
        return 1
    with nullcontext(source) if isinstance(source, Image.Image) else _opened(source) as image:
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # a damaged block of metadata is no reason to refuse the pixels
            return 1
    return orientation if orientation in range(1, 9) else 1


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The file at `path`, its header read; Pillow's own limit of pixels, a global, is lifted only for that."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"an image came as {type(path).__name__}; expected a path, PIL image, numpy array or tensor")
    name = os.fspath(path)
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise InputError(f"{name!r} {what}; expected an image file. Check the path")
    if Path(path).stat().st_size == 0:
        raise InputError(f"{name!r} is an empty file; expected an image. Copy or download it again")
    with _pillow_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        except Exception as error:
            raise InputError(
                f"{name!r} cannot be read as an image ({error}); expected JPEG, PNG, TIFF, WebP or another format "
                "that Pillow reads. Convert it, or copy it again"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> Tensor:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} px, more than max_pixels = {max_pixels}. If it is not a decompression "
            f"bomb, call read_image(..., max_pixels={width * height})"
        )
    try:
        array = _decoded(image)
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded ({error}): it is truncated, damaged, or of a kind that Pillow cannot turn into "
            f"RGB (mode {image.mode}). Copy it again, or convert it to PNG"
        ) from error
    return _from_array(array, name)


def _decoded(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("1", "L", "RGB", "RGBA", "F"):
        return np.asarray(image)
    if image.mode == "I":  # 32 bits, but what writes it holds 16
        array = np.asarray(image)
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.uint16).max):
            raise ValueError(f"32-bit values from {array.min()} to {array.max()}; expected 0 to 65535")
        return array.astype(np.uint16)
    if image.mode == "La":
        return np.asarray(image.convert("LA").convert("L"))
    has_alpha = image.mode in ("RGBa", "LA", "PA") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise InputError(
            f"an image tensor has shape {tuple(image.shape)}; expected one image (1, H, W) or (3, H, W). "
            "Index a batch; permute (H, W, 3), or pass it as a numpy array"
        )
    image = image.detach().cpu().permute(1, 2, 0)
    return _from_array((image.float() if image.is_floating_point() else image).numpy())


def _from_array(array: np.ndarray, name: str = "the image") -> Tensor:
    array_HWC = array[..., None] if array.ndim == 2 else array
    if array_HWC.ndim != 3 or array_HWC.shape[2] not in (1, 3, 4) or array_HWC.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            "pixel. Arrays have channels last; pass channels first as a tensor"
        )
    dtype = array.dtype.newbyteorder("=")
    if dtype not in (np.uint8, np.uint16, np.bool_) and dtype.kind != "f":
        raise InputError(
            f"{name} is {dtype}; expected uint8, uint16, bool, or float in [0, 1]. Convert it, for instance with "
            ".astype('uint8')"
        )
    full_scale = float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
    array_HWC = array_HWC[..., :3]
    low, high = (0.0, 1.0) if dtype.kind != "f" else (float(array_HWC.min()), float(array_HWC.max()))
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"{name} is {dtype} with values from {low:g} to {high:g}; expected finite floats in [0, 1]. Divide by the "
            "largest value of its range (255, 65535), or pass uint8 or uint16"
        )
    full_scale = np.float32(np.iinfo(dtype).max if dtype.kind == "u" else 1)
    planes_CHW = np.empty((array_HWC.shape[2], *array.shape[:2]), dtype=np.float32)
    np.divide(array_HWC.transpose(2, 0, 1), full_scale, out=planes_CHW, dtype=np.float32)
    image_CHW = torch.from_numpy(planes_CHW)
    return (image_CHW.clamp_(0, 1) if dtype.kind == "f" else image_CHW).expand(3, -1, -1).contiguous()
