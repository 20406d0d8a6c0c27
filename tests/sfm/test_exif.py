"""EXIF that is damaged or cannot be true counts as none, wherever a map uses it."""

from __future__ import annotations

import math
import shutil

import pytest
from PIL import ExifTags, Image, TiffImagePlugin

pytest.importorskip("pycolmap")

from isinglass.errors import InputError
from isinglass.sfm.cameras import find_cameras
from isinglass.sfm.gps import geodetic, positions
from isinglass.sfm.options import CameraOptions

GPS = ExifTags.GPS
ZURICH = {1: "N", 2: (47.0, 22.0, 37.2), 3: "E", 4: (8.0, 32.0, 30.0), 5: b"\x00", 6: 408.5}


def photo(path, *, base=None, details=None, gps=None, size=(64, 48)):
    exif = Image.Exif()
    exif.update(base or {})
    exif.get_ifd(ExifTags.IFD.Exif).update(details or {})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.update({**(base or {}), ExifTags.IFD.Exif: details or {}})
    how = {"tiffinfo": tags} if path.suffix == ".tif" else {"exif": exif}
    Image.new("RGB", size, (90, 90, 90)).save(path, **how)


@pytest.mark.shared
def test_a_photo_with_damaged_exif_has_a_camera(shared, tmp_path):
    name = "exif_cameras_TypeError.webp"
    shutil.copy(shared / "cases" / name, tmp_path)
    for share in ("exif", "single", "folder", "image"):
        found = find_cameras(tmp_path, [name], CameraOptions(share=share))
        assert not found.problems and (found.groups[0][0].width, found.groups[0][0].height) == (64, 48)
    assert positions(tmp_path, [name])[1].keys() <= {name}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("focal_35mm", [1, 400, 0])
def test_a_focal_length_that_cannot_be_is_as_none(tmp_path, focal_35mm, suffix):
    names = [f"{i}.{suffix}" for i in range(3)]
    for name in names:
        photo(tmp_path / name, details={ExifTags.Base.FocalLengthIn35mmFilm: focal_35mm}, base={0x10F: "A", 0x110: "B"})
    found = find_cameras(tmp_path, names, CameraOptions())
    assert [camera.params[0] for camera, _ in found.groups] == [1.2 * 64] * 3
    assert not any(camera.has_prior_focal_length for camera, _ in found.groups)
    assert bool(found.notes) is bool(focal_35mm)
    assert not focal_35mm or f"'0.{suffix}' and 2 more: its EXIF has a 35 mm" in found.notes[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_true_focal_length_is_used_in_every_format(tmp_path, suffix):
    photo(tmp_path / f"a.{suffix}", base={0x10F: "A"}, details={ExifTags.Base.FocalLengthIn35mmFilm: 28})
    ((camera, _),) = find_cameras(tmp_path, [f"a.{suffix}"], CameraOptions()).groups
    assert camera.has_prior_focal_length and camera.params[0] == pytest.approx(28 / 43.27 * 80)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({GPS.GPSLatitudeRef: None}, "hemisphere"),
        ({GPS.GPSLongitudeRef: "Q"}, "hemisphere"),
        ({GPS.GPSLatitude: (47.0, 75.0, 0.0)}, "which is none"),
        ({GPS.GPSLatitude: (91.0, 0.0, 0.0)}, "which is none"),
        ({GPS.GPSLongitude: (TiffImagePlugin.IFDRational(8, 0), 0.0, 0.0)}, "which is none"),
    ],
)
def test_positions_that_cannot_be_are_named(tmp_path, changes, why):
    photo(tmp_path / "a.jpg", gps={tag: value for tag, value in {**ZURICH, **changes}.items() if value is not None})
    with pytest.raises(InputError, match=why):
        geodetic(tmp_path / "a.jpg")


def test_an_altitude_that_cannot_be_is_not_known(tmp_path):
    photo(tmp_path / "a.jpg", gps={**ZURICH, GPS.GPSAltitude: 4_000_000.0})
    assert math.isnan(geodetic(tmp_path / "a.jpg")[2])


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("focal_35mm", [1, 400])
def test_eight_photos_with_nonsense_exif_become_one_map(shared, tmp_path, focal_35mm):
    from isinglass import Pipeline
    from isinglass.sfm.mapping import make_map

    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((shared / "data" / "eval" / "redkitchen" / "images").iterdir())[:8]:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35mm
        with Image.open(file) as image:
            image.convert("RGB").save(photos / f"{file.stem}.jpg", quality=95, exif=exif)
    pipeline = Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=1000, resize=640)
    summary = make_map(photos, tmp_path / "map", pipeline)
    assert len(summary.models[0].registered) == 8
    assert any(f"35 mm equivalent of {focal_35mm} mm" in note for note in summary.notes)
