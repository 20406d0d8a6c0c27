"""Whether a file can hold all the pixels that its header promises, checked before they are allocated."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import IO, Any

from PIL import Image

_WIDTH, _HEIGHT, _COMPRESSION, _OFFSETS, _ROWS, _COUNTS = 256, 257, 259, 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 262, 277, 284
_UNCOMPRESSED, _YCBCR = 1, 6
_MOST_BYTES_A_BYTE = {"PNG": 1032, "JPEG": 512, "MPO": 512, "TIFF": 1400}  # that deflate, Huffman codes, LZW can hold
_ANY_FORMAT, _LARGE_PX = 20_000, 50_000_000  # pixels a byte of a larger image that no photo has
_MOST_SIDES, _LONG_PX = 2000, 10_000  # long side over short side of an image with so long a side
_SLACK = 4096
_TAIL = 1024


def missing_pixels(image: Image.Image) -> str | None:
    """Say why a file whose header has been read cannot hold its image; None if it can, or there is no open file."""
    stream = getattr(image, "fp", None)
    if stream is None or getattr(stream, "closed", False) or getattr(image, "_im", None) is not None:
        return None  # there is no file, or its pixels are in memory
    try:
        position = stream.tell()
        try:
            return _missing(image, stream, stream.seek(0, io.SEEK_END))
        finally:
            stream.seek(position)
    except Exception as error:  # tags of a wrong type
        return f"its structure is damaged ({type(error).__name__}: {error})"


def _missing(image: Image.Image, stream: IO[bytes], length: int) -> str | None:
    width, height = image.size
    if max(width, height) > _LONG_PX and max(width, height) > _MOST_SIDES * max(min(width, height), 1):
        return f"{width} x {height} px are of no photo"
    if image.format == "TIFF" and (why := _missing_of_tiff(image, length)):
        return why
    if why := _impossible(image, length):
        return why
    return _zeros_of_jpeg(stream, length) if image.format in ("JPEG", "MPO") else None


def _impossible(image: Image.Image, length: int) -> str | None:
    """Say why so few bytes cannot become so many pixels; None if they can."""
    width, height = image.size
    told = f"{width} x {height} px cannot be in {length} bytes"
    fax = image.mode == "1" and image.format == "TIFF"  # a blank row takes a bit
    most = _MOST_BYTES_A_BYTE.get(image.format or "")
    if most is not None and not fax:
        bits = 1 if image.mode in ("1", "P") else 16 if "16" in image.mode else 8  # a palette may have 1 bit
        return told if width * height * bits / 8 > most * (length + _SLACK) else None
    return told if width * height > max(_LARGE_PX, _ANY_FORMAT * length) and not fax else None


def _missing_of_tiff(image: Any, length: int) -> str | None:
    """Say which strips or tiles of a TIFF are missing; None if all are there."""
    tags = image.tag_v2
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    tiled = _TILE_OFFSETS in tags and _OFFSETS not in tags
    offsets = _numbers(tags.get(_TILE_OFFSETS if tiled else _OFFSETS, ()))
    counts = _numbers(tags.get(_TILE_COUNTS if tiled else _COUNTS, ()))
    if tiled:
        block = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
    else:
        block = width, min(int(tags.get(_ROWS, height)), height)
    if min(block) < 1:
        return f"its blocks have {block[0]} x {block[1]} px"
    samples = int(tags.get(_SAMPLES, 1))
    planes = samples if int(tags.get(_PLANAR, 1)) == 2 else 1
    rows = -(-height // block[1])
    expected = -(-width // block[0]) * rows * planes
    if len(offsets) < expected:
        covered = f", which cover {len(offsets) * block[1]} of {height} rows" if not tiled and planes == 1 else ""
        return f"it has {len(offsets)} of {expected} {'tiles' if tiled else 'strips'}{covered}"
    if int(tags.get(_COMPRESSION, 1)) == _UNCOMPRESSED and int(tags.get(_PHOTOMETRIC, 1)) != _YCBCR:
        bits = max(_numbers(tags.get(_BITS, (1,)))) * samples // planes
        per_row = -(-block[0] * bits // 8)
        last = block[1] if tiled else height - block[1] * (rows - 1)
        counts = [per_row * (last if i % rows == rows - 1 else block[1]) for i in range(expected)]
    elif len(counts) < expected:
        return f"it tells the length of {len(counts)} of {expected} {'tiles' if tiled else 'strips'}"
    blocks = zip(offsets[:expected], counts[:expected], strict=True)
    outside = sum(1 for offset, count in blocks if offset < 8 or count < 1 or offset + count > length)
    return f"{outside} of {expected} {'tiles' if tiled else 'strips'} are not in the file" if outside else None


def _zeros_of_jpeg(stream: IO[bytes], length: int) -> str | None:
    """Say that the rest of a JPEG was never written, as broken copies and cards leave it; None if it was."""
    stream.seek(max(0, length - _TAIL))
    tail = stream.read(_TAIL)
    if len(tail) < _TAIL or tail.strip(b"\0"):
        return None
    stream.seek(0)
    content = stream.read()
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    return "it ends in zeros" if scans and content.rfind(b"\xff\xd9") < scans[-1] else None


def _numbers(value: Any) -> Sequence[int]:
    return [int(one) for one in value] if isinstance(value, tuple | list) else [int(value)]
