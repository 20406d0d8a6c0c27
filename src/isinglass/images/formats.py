"""Kinds of files: which suffixes are read, what else lies among photos and how to convert it, and what content is.

This module needs neither Pillow nor torch, so that folders are listed before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath

MAX_PIXELS = 200_000_000

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
READABLE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".qoi"),
    *(".sgi", ".pcx"),
)
"""Suffixes, in lower case, of files that Pillow reads by itself."""

RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".rwl", ".pef"),
    *(".srw", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".mos", ".x3f", ".gpr", ".raw"),
)
"""Suffixes of undeveloped sensor data. What some of them hold as a plain image is a small preview."""

_HEIF_REMEDY = "HEIC photos need an extra: pip install 'isinglass[heic]'"
_RAW_REMEDY = "raw sensor data is not read: develop it to TIFF, PNG or JPEG, for instance with darktable or RawTherapee"
_VIDEO_REMEDY = "a video is not a photo: `isinglass track` takes videos, or save frames of it as PNG"
_VECTOR_REMEDY = "a drawing or document has no pixels: export it as PNG"
_LAYERS_REMEDY = "an editor's project is not read: export it as PNG or TIFF"
_SCIENCE_REMEDY = "this format is not read: convert it to 16-bit TIFF or PNG, for instance with gdal_translate"

REMEDIES: dict[str, str] = {
    **dict.fromkeys(HEIF_SUFFIXES, _HEIF_REMEDY),
    **dict.fromkeys(RAW_SUFFIXES, _RAW_REMEDY),
    **dict.fromkeys(
        (".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".wmv", ".insv"),
        _VIDEO_REMEDY,
    ),
    **dict.fromkeys((".svg", ".svgz", ".pdf", ".eps", ".ps", ".ai", ".emf", ".wmf"), _VECTOR_REMEDY),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".ora", ".afphoto", ".clip"), _LAYERS_REMEDY),
    **dict.fromkeys((".exr", ".hdr", ".fits", ".fit", ".fts", ".dcm", ".nc", ".ecw", ".sid", ".vrt"), _SCIENCE_REMEDY),
    ".jxl": "JPEG XL is not read: convert it to PNG or JPEG, for instance with djxl",
    ".jxr": "JPEG XR is not read: convert it to PNG",
    ".insp": "a 360 degree photo in Insta360's own format is not read: export it as JPEG",
}
"""What to do with files that are pictures of some kind and are not read, by suffix in lower case."""


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, that this installation reads: with those of HEIC where its extra is there."""
    return frozenset(READABLE_SUFFIXES) | (frozenset(HEIF_SUFFIXES) if has_heif() else frozenset())


def has_heif() -> bool:
    """Return whether the extra `heic` is installed."""
    return find_spec("pillow_heif") is not None


def remedy(path: str | os.PathLike[str]) -> str | None:
    """Return why a file of this suffix is not read and what to do; None if it is read, or no picture at all."""
    suffix = PurePath(path).suffix.lower()
    return None if suffix in readable_suffixes() else REMEDIES.get(suffix)


_FTYP = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heif"),
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    b"crx ": "raw",
}
_KINDS: dict[str, tuple[str, str]] = {
    "heif": ("a HEIC photo", _HEIF_REMEDY),
    "avif": ("an AVIF photo", "AVIF needs Pillow 11.3 or later: pip install -U pillow"),
    "raw": ("a camera's raw file", _RAW_REMEDY),
    "video": ("a video or sound", _VIDEO_REMEDY),
    "svg": ("an SVG drawing, which has no pixels", _VECTOR_REMEDY),
    "pdf": ("a PDF document", _VECTOR_REMEDY),
    "psd": ("a Photoshop project", _LAYERS_REMEDY),
    "jxl": ("a JPEG XL image", REMEDIES[".jxl"]),
    "exr": ("an OpenEXR image", _SCIENCE_REMEDY),
    "fits": ("a FITS image", _SCIENCE_REMEDY),
    "html": ("a web page", "the download gave a page in place of the image: fetch it again"),
    "lfs": ("a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    "archive": ("an archive", "unpack it"),
    "zeros": ("all zeros", "the copy or the disk failed: copy it again"),
    "text": ("a text file", "choose an image"),
}
_MAGIC = (
    (rb"<svg[\s>]", "svg"),
    (rb"\A\s*<(?:!doctype\s+html|html)", "html"),
    (rb"\Aversion https://git-lfs", "lfs"),
    (rb"\A%PDF", "pdf"),
    (rb"\A8BPS", "psd"),
    (rb"\AFUJIFILMCCD-RAW|\AII\*\0....CR|\AIIR[OS]|\AIIU\0|\AFOVb", "raw"),
    (rb"\A\xff\x0a|\A\0\0\0\x0cJXL ", "jxl"),
    (rb"\Av/1\x01", "exr"),
    (rb"\ASIMPLE  =", "fits"),
    (rb"\ARIFF....AVI |\ARIFF....WAVE|\A\x1aE\xdf\xa3|\A\0\0\x01\xba", "video"),
    (rb"\APK\x03\x04|\A\x1f\x8b|\A7z\xbc\xaf|\ARar!", "archive"),
    (rb"\A\0{64}", "zeros"),
)


def kind_of_content(head: bytes) -> tuple[str, str, str] | None:
    """Return (kind, what it is in words, the remedy) of a file's first 2 KB; None if they are of no known kind.

    This is for files that could not be opened as an image, and for raw files that pass for one.
    """
    kind = "video" if head[4:8] == b"ftyp" or head[4:8] in (b"moov", b"mdat", b"wide") else None
    if head[4:8] == b"ftyp":
        kind = _FTYP.get(head[8:12], "video")
        if kind == "video" and re.search(rb"heic|heix|hevc", head[16 : int.from_bytes(head[:4], "big")][:64]):
            kind = "heif"
    kind = kind or next((name for magic, name in _MAGIC if re.search(magic, head, re.IGNORECASE | re.DOTALL)), None)
    if kind is None and head and _is_text(head):
        kind = "text"
    return None if kind is None else (kind, *_KINDS[kind])


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a letter may be cut in two at the end
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)
