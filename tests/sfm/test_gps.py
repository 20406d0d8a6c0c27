"""Where photos were taken: what EXIF may hold, and metres in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from isinglass.errors import InputError
from isinglass.sfm.gps import geodetic, positions, to_local

GPS = ExifTags.GPS
ZURICH = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (47.0, 22.0, 37.2),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (8.0, 32.0, 30.0),
    GPS.GPSAltitudeRef: b"\x00",
    GPS.GPSAltitude: 408.5,
}
DEGREES = 47 + 22 / 60 + 37.2 / 3600, 8 + 32 / 60 + 30 / 3600


def write_photo(path, tags=None):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(tags or {})
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_degrees_minutes_and_seconds(tmp_path, suffix):
    latitude, longitude, altitude = geodetic(write_photo(tmp_path / f"photo{suffix}", ZURICH))
    assert (latitude, longitude) == pytest.approx(DEGREES, abs=1e-7)
    assert altitude == pytest.approx(408.5, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({GPS.GPSLatitudeRef: "S"}, (-DEGREES[0], DEGREES[1], 408.5)),
        ({GPS.GPSLongitudeRef: "W"}, (DEGREES[0], -DEGREES[1], 408.5)),
        ({GPS.GPSAltitudeRef: b"\x01"}, (*DEGREES, -408.5)),
        ({GPS.GPSLatitude: (47.5, 0.0, 0.0)}, (47.5, DEGREES[1], 408.5)),
        ({GPS.GPSLongitude: (8.0, 30.0)}, (DEGREES[0], 8.5, 408.5)),
        ({GPS.GPSAltitude: None}, (*DEGREES, math.nan)),
        ({GPS.GPSStatus: "A"}, (*DEGREES, 408.5)),
    ],
)
def test_references_and_parts_that_are_missing(tmp_path, changes, expected):
    tags = {tag: value for tag, value in {**ZURICH, **changes}.items() if value is not None}
    assert geodetic(write_photo(tmp_path / "photo.jpg", tags)) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({GPS.GPSLatitude: None}, "no GPS position"),
        ({GPS.GPSStatus: "V"}, "no fix"),
        ({GPS.GPSLatitude: (97.0, 0.0, 0.0)}, "which is none"),
        ({GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}, "which is none"),
        ({GPS.GPSLongitude: (TiffImagePlugin.IFDRational(0, 0),) * 3}, "which is none"),
    ],
)
def test_positions_that_make_no_sense_are_told(tmp_path, changes, why):
    tags = {tag: value for tag, value in {**ZURICH, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=why):
        geodetic(write_photo(tmp_path / "photo.jpg", tags))


def test_a_track_with_holes(tmp_path):
    east = {**ZURICH, GPS.GPSLongitude: (8.0, 32.0, 33.6)}  # 0.001 degrees
    north = {**ZURICH, GPS.GPSLatitude: (47.0, 22.0, 40.8)}
    north_without = {tag: value for tag, value in north.items() if tag != GPS.GPSAltitude}
    write_photo(tmp_path / "a.jpg", ZURICH)
    write_photo(tmp_path / "b.jpg")
    write_photo(tmp_path / "c.jpg", east)
    (tmp_path / "d.jpg").write_bytes(b"no photo")
    write_photo(tmp_path / "e.jpg", north_without)
    (tmp_path / "f.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:40])
    found, without = positions(tmp_path, [f"{name}.jpg" for name in "abcdefg"])
    assert sorted(found) == ["a.jpg", "c.jpg", "e.jpg"]
    assert sorted(without) == ["b.jpg", "d.jpg", "f.jpg", "g.jpg"]
    assert "no GPS" in without["b.jpg"] and all("cannot be read" in without[f"{name}.jpg"] for name in "dg")
    axis, flattening = 6378137.0, 1 / 298.257223563  # WGS84, and its radii of curvature
    squared = flattening * (2 - flattening)
    part = 1 - squared * math.sin(math.radians(DEGREES[0])) ** 2
    along, across = axis * (1 - squared) / part**1.5, axis / part**0.5 * math.cos(math.radians(DEGREES[0]))
    assert found["a.jpg"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found["c.jpg"] == pytest.approx([(across + 408.5) * math.radians(0.001), 0, 0], abs=0.02)
    assert found["e.jpg"] == pytest.approx([0, (along + 408.5) * math.radians(0.001), 0], abs=0.02)


def test_places_far_apart_keep_their_distance():
    poles = to_local({"north": (90.0, 0.0, 0.0), "south": (-90.0, 0.0, 0.0)})
    assert np.linalg.norm(poles["north"] - poles["south"]) == pytest.approx(2 * 6356752.314, abs=0.01)
    assert to_local({}) == {}
    assert to_local({"a": (1.0, 2.0, math.nan)})["a"] == pytest.approx([0, 0, 0], abs=1e-6)
