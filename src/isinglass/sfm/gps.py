"""Where photos were taken, by the GPS tags of their EXIF (Exif 2.32, section 4.6.6), in metres."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags

from isinglass.datasets.pairs import Floats
from isinglass.errors import InputError, MissingExtra
from isinglass.files.atomic import PathLike
from isinglass.images import read_header
from isinglass.images.exif import number

_GPS = ExifTags.GPS
_LOWEST_M, _HIGHEST_M = -11_000.0, 50_000.0  # the deepest trench, and balloons
_log = logging.getLogger(__name__)


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
        tags = read_header(file).exif.gps
    except InputError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error})") from error
    if not {_GPS.GPSLatitude, _GPS.GPSLongitude} <= set(tags):
        raise InputError(f"{str(file)!r} has no GPS position in its EXIF")
    if _text(tags.get(_GPS.GPSStatus)) == "V":
        raise InputError(f"{str(file)!r} says that its GPS had no fix")
    north = _sign(tags, _GPS.GPSLatitudeRef, "NS")
    east = _sign(tags, _GPS.GPSLongitudeRef, "EW")
    if north is None or east is None:
        raise InputError(f"{str(file)!r} has a GPS position that does not say of which hemisphere")
    latitude, longitude = _degrees(tags[_GPS.GPSLatitude]) * north, _degrees(tags[_GPS.GPSLongitude]) * east
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        raise InputError(f"{str(file)!r} has the GPS position {latitude}, {longitude}, which is none")
    return latitude, longitude, _altitude(tags)


def _sign(tags: Mapping[int, Any], reference: int, letters: str) -> int | None:
    """Return 1 for the first and -1 for the second of two hemispheres, None where the tags name neither."""
    letter = _text(tags.get(reference))
    return None if not letter or letter not in letters else 1 - 2 * letters.index(letter)


def _altitude(tags: Mapping[int, Any]) -> float:
    """Return m above the sea, NaN where it is not known or is that of no photo."""
    altitude = number(tags.get(_GPS.GPSAltitude))
    if tags.get(_GPS.GPSAltitudeRef) in (1, b"\x01", 3, b"\x03"):  # 3: below the ellipsoid, Exif 3.0
        altitude = -altitude
    if math.isfinite(altitude) and not _LOWEST_M <= altitude <= _HIGHEST_M:
        _log.warning("a GPS altitude of %g m is not plausible and was not used", altitude)
        return math.nan
    return altitude


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
    """Return degrees of degrees, minutes and seconds, the last of which may be missing; NaN for nonsense."""
    parts = [number(part) for part in value] if isinstance(value, tuple | list) else [number(value)]
    if not 1 <= len(parts) <= 3 or not all(0 <= part <= 60 for part in parts[1:]):
        return math.nan
    return sum(part / 60**k for k, part in enumerate(parts))


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\0 ").upper()[:1]
