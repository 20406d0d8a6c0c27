"""A focal length in EXIF that is plausible but false does not end a map: it is made without it, and says so."""

import json

import pytest
from PIL import ExifTags, Image

from isinglass.sfm.reconstruct import read_model

K = "data/eval/redkitchen/images"
FAST = ("--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "300", "--resize", "480")
PHOTOS = 10


def write_photos(sources, folder, focal_35mm, with_exif):
    """Copy photos, those that `with_exif` takes with a camera and its focal length."""
    folder.mkdir()
    for i, source in enumerate(sources):
        tags = Image.Exif()
        if with_exif(i):
            tags[ExifTags.Base.Make], tags[ExifTags.Base.Model] = "Maker", "X100"
            tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35mm
        with Image.open(source) as image:
            image.convert("RGB").save(folder / f"{i:02}.jpg", exif=tags, quality=95)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("focal_35mm", "with_exif"), [(135, lambda i: True), (85, lambda i: i % 2 == 0)], ids=["all", "half"]
)
def test_a_false_focal_length_is_named_and_not_used(shared, isinglass, tmp_path, focal_35mm, with_exif):
    write_photos(sorted((shared / K).iterdir())[:PHOTOS], tmp_path / "photos", focal_35mm, with_exif)
    command = ("map", tmp_path / "photos", "-o", tmp_path / "map", *FAST)
    code, out, err = isinglass(*command, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [model["images"] for model in summary["models"]] == [PHOTOS]
    (note,) = summary["notes"]
    given = focal_35mm / 43.27 * 800
    assert f"EXIF gives ({given:.0f} px) seems to be false" in note and "without it 10 of 10" in note
    focals = [camera.params[0] for camera in read_model(tmp_path / "map/model").cameras.values()]
    assert all(450 < focal < 680 for focal in focals)  # the photos' own is about 530 px
    assert not (tmp_path / "map/.without-priors").exists()
    code, out, _ = isinglass(*command)
    assert (code, note in out) == (0, True)
    assert isinglass("export", "colmap", tmp_path / "map", "-o", tmp_path / "out")[0] == 0


@pytest.mark.shared
def test_a_focal_length_that_is_right_is_kept(shared, isinglass, tmp_path):
    write_photos(sorted((shared / K).iterdir())[:6], tmp_path / "photos", 29, lambda i: True)
    code, out, err = isinglass("map", tmp_path / "photos", "-o", tmp_path / "map", *FAST, "--json")
    assert (code, json.loads(out)["notes"]) == (0, []), err
