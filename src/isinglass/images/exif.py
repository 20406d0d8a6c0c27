"""EXIF of photos (Exif 2.32), read so that damage does no harm and checked so that nonsense is not believed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import ExifTags, Image

_BASE, _IFD = ExifTags.Base, ExifTags.IFD
_LONGEST_TEXT = 200
_LARGEST_BLOCK = 16_000_000  # bytes

FILM_DIAGONAL_MM = 43.27  # as COLMAP rounds it
_FILM_LONG_SIDE_MM = 36.0
_FOCAL_RATIO = (0.2, 10.0)  # plausible focal length over long side: a circular fisheye to a telephoto lens
_CROP_FACTOR = (0.3, 10.0)  # plausible 35 mm equivalent over focal length: medium format to the smallest sensor
_LONGEST_FOCAL_MM = 6000.0
_SAME_ASPECT = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Exif:
    """The tags of a photo that anything here depends on; a tag that is missing or damaged is None.

    orientation   1 to 8
    make, model, lens  of the camera
    focal_mm      focal length
    focal_35mm    focal length of a 35 mm camera with the same diagonal field of view, where it is plausible
    gps           tags of the GPS directory by number, as they came
    notes         what was not believed, in words
    """

    orientation: int = 1
    make: str | None = None
    model: str | None = None
    lens: str | None = None
    focal_mm: float | None = None
    focal_35mm: float | None = None
    gps: Mapping[int, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def focal_px(self, size: tuple[int, int]) -> float | None:
        """Return the focal length in px of an image (width, height), as COLMAP reckons it; None if it is not known."""
        return None if self.focal_35mm is None else self.focal_35mm / FILM_DIAGONAL_MM * math.hypot(*size)


def exif_of(image: Image.Image) -> Exif:
    """Return the tags of an image. Never raises: what cannot be read counts as missing, and `notes` says so."""
    try:
        tags = _tags(image)
        base = dict(_items(tags))
    except Exception:  # Pillow raises a dozen kinds, by the kind of damage
        return Exif(notes=("its EXIF is damaged and was not used",))
    details, damaged_details = _directory(tags, _IFD.Exif)
    gps, damaged_gps = _directory(tags, _IFD.GPSInfo)
    notes = ["its EXIF is damaged in parts, which were not used"] if damaged_details or damaged_gps else []
    orientation = number(base.get(_BASE.Orientation))
    focal_mm = _positive(details.get(_BASE.FocalLength))
    focal_35mm = _positive(details.get(_BASE.FocalLengthIn35mmFilm))
    size_of_tags = _positive(details.get(_BASE.ExifImageWidth)), _positive(details.get(_BASE.ExifImageHeight))
    why = _doubt(focal_35mm, focal_mm, size_of_tags, image.size)
    return Exif(
        orientation=int(orientation) if orientation in range(1, 9) else 1,
        make=_text(base.get(_BASE.Make)),
        model=_text(base.get(_BASE.Model)),
        lens=_text(details.get(_BASE.LensModel)),
        focal_mm=focal_mm,
        focal_35mm=None if why else focal_35mm,
        gps=gps,
        notes=(*notes, why) if why else tuple(notes),
    )


def _tags(image: Any) -> Image.Exif:
    """Return the tags as Pillow reads them. For the EXIF of a PNG it would decode all pixels, as that may come last."""
    if image.format != "PNG":
        return image.getexif()
    if "exif" not in image.info and image.fp is not None and (block := _exif_of_png(image.fp)) is not None:
        image.info["exif"] = block
    return Image.Image.getexif(image)


def _exif_of_png(stream: IO[bytes]) -> bytes | None:
    """Return the block of a PNG's chunk eXIf, wherever in the file it is."""
    position = stream.tell()
    try:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"eXIf":
                return stream.read(length) if length <= _LARGEST_BLOCK else None
            stream.seek(length + 4, io.SEEK_CUR)
        return None
    finally:
        stream.seek(position)


def number(value: Any) -> float:
    """Return a finite number that a tag holds; NaN for text, lists, zero denominators and whatever else is none."""
    try:
        result = float(value)
    except Exception:  # a rational of zero denominator, a tuple, text, an integer beyond all floats
        return math.nan
    return result if math.isfinite(result) else math.nan


def _doubt(
    focal_35mm: float | None,
    focal_mm: float | None,
    size_of_tags: tuple[float | None, float | None],
    size: tuple[int, int],
) -> str | None:
    """Say why a 35 mm equivalent cannot be true of the photo; None if it can.

    The field of view must be that of a lens. Beyond it only what the real focal length confirms is believed, as the
    longest telephoto lenses have it.
    """
    if focal_35mm is None:
        return None
    ratio = focal_35mm / _FILM_LONG_SIDE_MM
    told = f"its EXIF has a 35 mm equivalent of {focal_35mm:g} mm"
    confirmed = focal_mm is not None and _CROP_FACTOR[0] <= focal_35mm / focal_mm <= _CROP_FACTOR[1]
    if focal_mm is not None and not confirmed:
        return f"{told} for a focal length of {focal_mm:g} mm, which no sensor has; it was not used"
    if ratio < _FOCAL_RATIO[0] or focal_35mm > _LONGEST_FOCAL_MM or (ratio > _FOCAL_RATIO[1] and not confirmed):
        return f"{told}, which is not plausible; it was not used"
    width, height = size_of_tags
    if width and height and not _scaled(sorted((width, height)), sorted(size)):
        return f"its EXIF is of {width:g} x {height:g} px, the photo has {size[0]} x {size[1]}: cut; {told}, not used"
    return None


def _scaled(tagged: list[float], actual: list[int]) -> bool:
    """Return whether sides (short, long) differ by a scale only, or just the short side was cut."""
    same_aspect = abs(tagged[0] / tagged[1] - actual[0] / actual[1]) <= _SAME_ASPECT if all(actual) else False
    return same_aspect or abs(tagged[1] - actual[1]) <= 1


def _directory(tags: Image.Exif, which: int) -> tuple[dict[int, Any], bool]:
    """Return one directory of the tags and whether it is damaged; a damaged one is empty."""
    if which not in tags:
        return {}, False
    try:
        return dict(_items(tags.get_ifd(which))), False
    except Exception:
        return {}, True


def _items(tags: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """Yield tags one by one; of those that Pillow decodes at first access, only the sound ones."""
    for tag in list(tags):
        try:
            yield tag, tags[tag]
        except Exception:
            continue


def _positive(value: Any) -> float | None:
    result = number(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    return result if result > 0 else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    return value.partition("\0")[0].strip()[:_LONGEST_TEXT] or None
