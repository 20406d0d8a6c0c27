"""Where photos were taken, by the GPS tags of their EXIF (Exif 2.32, section 4.6.6), in metres."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from isinglass.datasets.pairs import Floats
from isinglass.errors import InputError, MissingExtra
from isinglass.files.atomic import PathLike

_GPS = ExifTags.GPS


def positions(photos: PathLike, names: Sequence[str]) -> tuple[dict[str, Floats], dict[str, str]]:
    """(3,) float64 m east, north and up of the first photo that has GPS, and by name why others have no position.

    Positions are on WGS84. A photo whose altitude is not known is given the median of the others. Photos cannot be
    read, have no tags, or such that make no sense: all of that is a reason, not an error.
    """
    found, without = {}, {}
    for name in names:
        try:
            found[name] = geodetic(Path(photos) / name)
        except InputError as error:
            without[name] = str(error)
    return to_local(found), without


def geodetic(file: PathLike) -> tuple[float, float, float]:
    """Latitude and longitude in degrees, north and east positive, and altitude in m, NaN where it is not told.

    Raises InputError where the file holds no position that makes sense.
    """
    try:
        with Image.open(file) as opened:
            tags: Mapping[int, Any] = opened.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error})") from error
    if not {_GPS.GPSLatitude, _GPS.GPSLongitude} <= set(tags):
        raise InputError(f"{str(file)!r} has no GPS position in its EXIF")
    if _text(tags.get(_GPS.GPSStatus)) == "V":
        raise InputError(f"{str(file)!r} says that its GPS had no fix")
    latitude = _degrees(tags[_GPS.GPSLatitude]) * (-1 if _text(tags.get(_GPS.GPSLatitudeRef)) == "S" else 1)
    longitude = _degrees(tags[_GPS.GPSLongitude]) * (-1 if _text(tags.get(_GPS.GPSLongitudeRef)) == "W" else 1)
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        raise InputError(f"{str(file)!r} has the GPS position {latitude}, {longitude}, which is none")
    altitude = _number(tags.get(_GPS.GPSAltitude))
    below = tags.get(_GPS.GPSAltitudeRef) in (1, b"\x01", 3, b"\x03")  # 3: below the ellipsoid, Exif 3.0
    return latitude, longitude, -altitude if below else altitude


def to_local(places: Mapping[str, tuple[float, float, float]]) -> dict[str, Floats]:
    """(3,) m east, north and up of the first, of `geodetic` places. Distances are true however far apart they are."""
    if not places:
        return {}
    try:
        import pycolmap
    except ImportError as error:
        raise MissingExtra("pycolmap", "maps") from error
    values_N3 = np.array(list(places.values()), np.float64)
    known_N = np.isfinite(values_N3[:, 2])
    values_N3[~known_N, 2] = np.median(values_N3[known_N, 2]) if known_N.any() else 0.0
    transform = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)
    local_N3 = np.asarray(transform.ellipsoid_to_enu(values_N3, *values_N3[0]))
    return dict(zip(places, local_N3, strict=True))


def _degrees(value: Any) -> float:
    """Of degrees, minutes and seconds, the last of which may be missing; NaN where they make no sense."""
    parts = [_number(part) for part in value] if isinstance(value, Sequence) else [_number(value)]
    if not 1 <= len(parts) <= 3:
        return math.nan
    return sum(part / 60**k for k, part in enumerate(parts))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\0 ").upper()[:1]
