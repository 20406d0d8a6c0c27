"""The one way to open an image file: its header is read and checked, its pixels are not decoded.

Nothing here imports torch. Pillow's plugins are called directly and not by `Image.open`, so that its limit of pixels, a
global that belongs to the program, is neither in the way nor changed, and HEIC is read without being registered.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from PIL import ExifTags, Image, ImageFile

from isinglass.errors import InputError, MissingExtra
from isinglass.images.exif import Exif, exif_of
from isinglass.images.formats import MAX_PIXELS, RAW_SUFFIXES, has_heif, kind_of_content
from isinglass.images.structure import missing_pixels
from isinglass.names import exists, is_file

_HEAD_BYTES = 2048
_PILLOW_WARNS_PX = 80_000_000
_UNFIT = ("EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC", "PCD", "FPX", "MIC")  # run programs, or hold no pixels
_pillow_lock = threading.Lock()
_strict: dict[str, Any] = {"users": 0, "before": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of its image before any pixel is decoded.

    size      (width, height) px as stored, before any EXIF turn
    format    as Pillow names it: "JPEG", "PNG", "TIFF", "HEIF", ...
    mode      Pillow's mode of the pixels: "RGB", "L", "I;16", ...
    dtype     of one stored value: "uint8", "uint16", "int16", "float32", ...
    animated  there are several frames or pages, of which the first is read
    exif      the tags
    notes     what a person should know of how the file is read
    """

    size: tuple[int, int]
    format: str
    mode: str
    dtype: str
    animated: bool
    exif: Exif
    notes: tuple[str, ...] = ()

    @property
    def deep(self) -> bool:
        """Whether values have more than 8 bits, so that their range may need care."""
        return self.dtype not in ("uint8", "bool")


def read_header(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, formats: Sequence[str] | None = None
) -> Header:
    """Return the header of an image file or its content; `name` and `formats` as for `opened`.

    Damaged metadata never fails. Raises InputError for what is no image.
    """
    with opened(source, name=name, formats=formats) as image:
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    """Return the header of an image that `opened` gave, or of any Pillow image."""
    exif: Exif | None = getattr(image, "_isinglass_exif", None)
    animated = False
    with suppress(Exception):  # counting frames may run into damage beyond the first
        animated = bool(getattr(image, "is_animated", False))
    dtype, colours_cut = _depth(image)
    notes = [f"{dtype} colours are read with 8 bits a channel, as Pillow does"] if colours_cut else []
    if animated and image.format != "MPO":  # an MPO's other pictures are previews, depth and gain maps of the first
        notes.append("it has several frames or pages, of which the first is used")
    return Header(
        size=image.size,
        format=image.format or "",
        mode=image.mode,
        dtype=dtype,
        animated=animated,
        exif=exif_of(image) if exif is None else exif,
        notes=tuple(notes),
    )


@contextmanager
def opened(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, formats: Sequence[str] | None = None
) -> Iterator[Image.Image]:
    """Give the image of a file, or of a file's content, its header read; closed at the end.

    The image has no limit of pixels and is as stored: Pillow's turning of TIFF files is undone.

    name     what messages call it; the path if not given
    formats  of Pillow, the only ones that are tried; None = all that are sound

    Raises InputError for a path that is no file, and for a file that is no image, is of a kind that is not read, or
    does not hold all of its pixels; the message says what it is and what to do.
    """
    with _stream(source) as stream:
        name = name or (repr(os.fspath(source)) if not isinstance(source, bytes) else "the image")
        suffix = "" if isinstance(source, bytes) else PurePath(source).suffix.lower()
        head = stream.read(_HEAD_BYTES)
        image = _image(stream, head, "" if isinstance(source, bytes) else os.fspath(source), name, formats)
        try:
            _refuse_raw(image, head, suffix, name)
            image._isinglass_exif = exif_of(image)
            _undo_turn(image)
            yield image
        finally:
            with suppress(Exception):
                image.close()


def load(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the pixels of an image that `opened` gave, and return it.

    Raises InputError for more than `max_pixels`, for a file that cannot hold so many, and for one that is truncated or
    damaged; the first two before memory is allocated.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} px, more than max_pixels = {max_pixels}. If it is not a decompression "
            f"bomb, call read_image(..., max_pixels={width * height})"
        )
    if why := missing_pixels(image):
        raise InputError(f"{name} cannot be decoded: it is truncated or damaged: {why}. Copy it again, or convert it")
    try:
        with _strictly():
            _allocate(image)
            image.load()
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded ({error}): it is truncated, damaged, or of a kind that Pillow cannot decode "
            f"(mode {image.mode}). Copy it again, or convert it to PNG"
        ) from error
    return image


def _allocate(image: Any) -> None:
    """Make room for a large TIFF: Pillow would hold its size against the program's limit as it loads."""
    if image.format == "TIFF" and getattr(image, "tile", None) and getattr(image, "_im", None) is None:
        width, height = getattr(image, "_tile_size", image.size)
        if width * height > _PILLOW_WARNS_PX:
            image.im = Image.core.new(image.mode, (width, height))


@contextmanager
def _strictly() -> Iterator[None]:
    """Let Pillow refuse truncated files, even if the program has set LOAD_TRUNCATED_IMAGES."""
    with _pillow_lock:
        if not _strict["users"]:
            _strict["before"], ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _strict["users"] += 1
    try:
        yield
    finally:
        with _pillow_lock:
            _strict["users"] -= 1
            if not _strict["users"]:
                ImageFile.LOAD_TRUNCATED_IMAGES = _strict["before"]


# ---- opening


@contextmanager
def _stream(source: str | os.PathLike[str] | bytes) -> Iterator[IO[bytes]]:
    """Give the open file; InputError for a path that is none."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"an image came as {type(source).__name__}; expected the path of a file, or its content")
    name, path = os.fspath(source), Path(source)
    if not is_file(path):
        what = "does not exist" if not exists(path) else "is a folder" if path.is_dir() else "is no regular file"
        raise InputError(f"{name!r} {what}; expected an image file. Check the path")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{name!r} cannot be opened ({error.strerror}); expected an image that may be read") from error
    with stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise InputError(f"{name!r} is an empty file; expected an image. Copy or download it again")
        yield stream


def _image(stream: IO[bytes], head: bytes, filename: str, name: str, formats: Sequence[str] | None) -> Any:
    reasons = []
    for factory, accept in _plugins(head, formats):
        try:
            answer = accept is None or accept(head[:16])
            if answer is True or (answer and not isinstance(answer, str)):
                return _made(factory, stream, filename)
            if isinstance(answer, str):
                reasons.append(answer)
        except (SyntaxError, IndexError, TypeError, struct.error):  # not of this format
            continue
        except Exception as error:
            reasons.append(str(error))
    kind = kind_of_content(head)
    if kind is not None and kind[0] == "heif" and not has_heif():
        raise InputError(f"{name} is a HEIC photo; {kind[2]}") from MissingExtra("pillow-heif", "heic")
    if kind is not None and kind[0] != "heif":
        raise InputError(f"{name} is {kind[1]} and cannot be read as an image: {kind[2]}")
    why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    raise InputError(
        f"{name} cannot be read as an image{why}; expected JPEG, PNG, TIFF, WebP or another format that Pillow reads. "
        "It may be damaged: copy it again, or convert it"
    )


def _made(factory: Any, stream: IO[bytes], filename: str) -> Any:
    """Return the image, its header read. A plugin that checks Pillow's limit by itself is run once more without."""
    stream.seek(0)
    try:
        return factory(stream, filename)
    except Image.DecompressionBombError:
        stream.seek(0)
        with _pillow_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return factory(stream, filename)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _plugins(head: bytes, formats: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    """Yield (factory, accept) of the formats, the common ones first and the others only if those do not take it."""
    tried: set[str] = set()
    for load in (Image.preinit, Image.init):
        load()
        for one in [one for one in Image.ID if one not in tried and one not in _UNFIT]:
            tried.add(one)
            if formats is None or one in formats or (one == "MPO" and "JPEG" in formats):
                yield Image.OPEN[one]
        if load is Image.preinit and head[4:8] == b"ftyp" and has_heif() and (formats is None or "HEIF" in formats):
            from pillow_heif.as_plugin import HeifImageFile

            yield HeifImageFile, None


def _refuse_raw(image: Image.Image, head: bytes, suffix: str, name: str) -> None:
    """Raise InputError for raw files, whose first directory Pillow takes for a TIFF: it is a small preview."""
    if image.format != "TIFF":
        return
    kind = kind_of_content(head)
    tags: Any = getattr(image, "tag_v2", {})
    preview = False
    with suppress(Exception):
        is_reduced = int(tags.get(ExifTags.Base.NewSubfileType, 0)) & 1
        preview = ExifTags.Base.DNGVersion in tags or bool(is_reduced and ExifTags.Base.SubIFDs in tags)
    if preview or suffix in RAW_SUFFIXES or (kind is not None and kind[0] == "raw"):
        raise InputError(
            f"{name} is a camera's raw file, of which only a preview could be read; raw sensor data is not read: "
            "develop it to TIFF, PNG or JPEG, for instance with darktable or RawTherapee"
        )


def _undo_turn(image: Any) -> None:
    """Let Pillow give a TIFF as stored: it would turn it as it loads, and has exchanged its sides already."""
    if image.format != "TIFF":
        return
    with suppress(Exception):
        exif = image.getexif()
        exif.pop(ExifTags.Base.Orientation, None)
        image._size = getattr(image, "_tile_size", image._size)


def _depth(image: Any) -> tuple[str, bool]:
    """Return the dtype of stored values, and whether it is one of colours that Pillow cuts to 8 bits."""
    of_mode = {"1": "bool", "F": "float32", "I": "int32"}.get(image.mode, "uint16" if "I;16" in image.mode else "uint8")
    with suppress(Exception):
        if image.format == "TIFF":
            bits, kind = image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)), image.tag_v2.get(339, (1,))
            if max(bits) > 8:
                dtype = f"{ {2: 'int', 3: 'float'}.get(kind[0], 'uint') }{max(bits)}".strip()
                return dtype, of_mode == "uint8"
        args = [args if isinstance(args, str) else "".join(map(str, args)) for *_, args in image.tile]
        if of_mode == "uint8" and image.format == "PNG" and any(";16" in text for text in args):
            return "uint16", True
        if image.format == "PPM" and image.tile and image.tile[0][0] == "ppm" and image.tile[0][3][-1] > 255:
            return "uint16", of_mode == "uint8"
    return of_mode, False
