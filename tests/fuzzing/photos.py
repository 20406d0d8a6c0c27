"""Targets that read photos: pixels of every format, and metadata that lie."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, TiffImagePlugin

from isinglass.errors import InputError
from isinglass.images import exif_orientation, read_image
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.gps import positions

from .mutate import mutate, truncate
from .target import OTHER, REFUSED, SAME, Fault

SIZE = (48, 36)


def _photo() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(SIZE, Image.Resampling.BICUBIC)


def _files() -> dict[str, bytes]:
    """One small photo in all formats that are read, by suffix and kind."""
    photo, grey16 = _photo(), Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]) * 30)
    tiff = {"compression": "raw"}
    made = {
        "a.jpg": (photo, "JPEG", {"quality": 90}),
        "progressive.jpg": (photo, "JPEG", {"quality": 90, "progressive": True}),
        "grey.jpg": (photo.convert("L"), "JPEG", {}),
        "cmyk.jpg": (photo.convert("CMYK"), "JPEG", {}),
        "a.png": (photo, "PNG", {}),
        "palette.png": (photo.convert("P"), "PNG", {}),
        "grey16.png": (grey16, "PNG", {}),
        "a.webp": (photo, "WEBP", {"lossless": True}),
        "lossy.webp": (photo, "WEBP", {"quality": 80}),
        "a.tif": (photo, "TIFF", tiff),
        "strips.tif": (photo, "TIFF", {**tiff, "tiffinfo": {TiffImagePlugin.ROWSPERSTRIP: 5}}),
        "lzw.tif": (photo, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (photo, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (photo, "TIFF", {"compression": "jpeg"}),
        "grey16.tif": (grey16, "TIFF", tiff),
        "float.tif": (Image.fromarray(np.linspace(0, 1, 48 * 36, dtype=np.float32).reshape(36, 48)), "TIFF", tiff),
        "a.gif": (photo.convert("P"), "GIF", {}),
        "a.bmp": (photo, "BMP", {}),
        "a.ppm": (photo, "PPM", {}),
        "a.pgm": (photo.convert("L"), "PPM", {}),
        "a.tga": (photo, "TGA", {}),
        "a.jp2": (photo, "JPEG2000", {}),
        "a.avif": (photo, "AVIF", {}),
    }
    files = {}
    for name, (image, kind, options) in made.items():
        content = io.BytesIO()
        image.save(content, format=kind, **options)
        files[name] = content.getvalue()
    return files


class Pixels:
    """Photos whose bytes are mutated: refused, or an image of finite numbers; one that is cut short is never taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.input = folder, _files(), b""
        self._whole: dict[str, torch.Tensor] = {}

    def try_one(self, rng: Random) -> str:
        """See Target."""
        name = rng.choice(list(self.files))
        only_cut = rng.random() < 0.25
        self.input = (truncate if only_cut else mutate)(self.files[name], rng)
        path = self.folder / name
        if name not in self._whole:
            path.write_bytes(self.files[name])
            self._whole[name] = read_image(path)
        path.write_bytes(self.input)
        try:
            orientation = exif_orientation(path)
            image = read_image(path)
        except InputError:
            return REFUSED
        if image.dtype != torch.float32 or image.ndim != 3 or image.shape[0] != 3 or orientation not in range(1, 9):
            raise Fault(f"{name} came as {image.dtype} {tuple(image.shape)}, orientation {orientation}")
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise Fault(f"{name} has values outside of 0 to 1")
        if image.shape == self._whole[name].shape and bool((image == self._whole[name]).all()):
            return SAME
        if only_cut:
            raise Fault(f"{name} was cut to {len(self.input)} of {len(self.files[name])} bytes, and taken")
        return OTHER

    def close(self) -> None:
        """See Target."""


class Metadata:
    """Photos whose EXIF block is mutated: the pixels are the same, and no reader of metadata fails."""

    FORMATS = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif"))

    def __init__(self, folder: Path) -> None:
        self.folder, self.photo, self.input = folder, _photo(), b""
        exif = Image.Exif()
        exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", 6
        exif.get_ifd(0x8769).update({0x920A: 4.25, 0xA405: 28, 0xA434: "Lens", 0xA002: SIZE[0], 0xA003: SIZE[1]})
        exif.get_ifd(0x8825).update(
            {1: "N", 2: (47.0, 22.0, 1.5), 3: "E", 4: (8.0, 32.0, 30.0), 5: b"\x00", 6: 408.0, 29: "2020:01:01"}
        )
        self.exif = exif.tobytes()
        self._whole = {suffix: self._read(kind, suffix, self.exif)[1] for kind, suffix in self.FORMATS}

    def try_one(self, rng: Random) -> str:
        """See Target."""
        kind, suffix = rng.choice(self.FORMATS)
        begins = 6  # "Exif\0\0"
        self.input = self.exif[:begins] + mutate(self.exif[begins:], rng)[:60_000]
        try:
            path, image = self._read(kind, suffix, self.input)
        except _NotWritten:
            return REFUSED
        if not bool((image == self._whole[suffix]).all()):
            raise Fault(f"the pixels of a {kind} depend on its metadata")
        if exif_orientation(path) not in range(1, 9):
            raise Fault("an orientation beyond 1 to 8")
        ((camera, _),) = cameras_of(self.folder, [path.name], CameraOptions())
        if not (np.isfinite(camera.params).all() and 0 < camera.mean_focal_length() < 100 * max(SIZE)):
            raise Fault(f"a camera of {camera.params}")
        positions(self.folder, [path.name])
        return SAME

    def _read(self, kind: str, suffix: str, exif: bytes) -> tuple[Path, torch.Tensor]:
        path = self.folder / f"photo{suffix}"
        options = {"lossless": True} if kind == "WEBP" else {}
        try:
            self.photo.save(path, format=kind, exif=exif, **options)
        except Exception as error:  # Pillow, not the product
            raise _NotWritten from error
        return path, read_image(path)

    def close(self) -> None:
        """See Target."""


class _NotWritten(Exception):
    """Pillow could not write such a block."""
