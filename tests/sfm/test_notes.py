"""What a person should know of how the pixels of photos were read is in the summary of a map, its JSON and its page."""

import html
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from isinglass.sfm.notes import group_notes, photo_notes

K = "data/eval/redkitchen/images"
FAST = ("--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "300", "--resize", "480")
ONE = ("--camera", "single")


def grey(source):
    with Image.open(source) as image:
        return np.asarray(image.convert("L"), np.float32) / 255


def write_with_hole(source, folder):
    """Write a photo as floats with a hole of NaN in them."""
    values = grey(source)
    values[:48, :64] = np.nan
    Image.fromarray(values).save(folder / f"{source.stem}.tif")


@pytest.mark.slow
@pytest.mark.shared
def test_notes_on_pixels_are_told_wherever_a_map_is(shared, isinglass, tmp_path):
    sources, photos = sorted((shared / K).iterdir())[:6], tmp_path / "photos"
    photos.mkdir()
    shutil.copy(sources[0], photos)
    for source in sources[1:3]:
        Image.fromarray((4095 * grey(source)).astype(np.uint16)).save(photos / f"{source.stem}.tif")
    for source in sources[3:5]:
        write_with_hole(source, photos)
    command = ("map", photos, "-o", tmp_path / "map", *FAST, *ONE)
    code, out, err = isinglass(*command, "--json")
    assert code in (0, 1), err  # 1 = there is no model, which is another matter
    notes = json.loads(out)["notes"]
    assert len(notes) == 2
    assert notes[0].startswith(f"'{sources[1].stem}.tif' and 1 more: its uint16 values ")
    hole = "0.01 of its pixels are NaN or infinite and were masked"
    assert notes[1] == f"'{sources[3].stem}.tif' and 1 more: {hole}"
    page = html.unescape((tmp_path / "map/index.html").read_text())
    out = isinglass(*command)[1]  # nothing is done again, and the notes are there
    for note in notes:
        assert note in page and note in out
    write_with_hole(sources[5], photos)
    assert f"'{sources[3].stem}.tif' and 2 more: {hole}" in isinglass(*command)[1]


def test_notes_are_kept_for_pixels_that_did_not_change(tmp_path):
    photo, cache = tmp_path / "a.tif", tmp_path / "notes.json"
    Image.fromarray(np.full((40, 50), np.nan, np.float32)).save(photo)  # which cannot be read
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)).save(tmp_path / "b.tif")
    expected = ["its uint16 values 1.999 to 1997 were stretched to the whole range"]
    assert photo_notes(tmp_path, {"a.tif": "A", "b.tif": "B", "gone.tif": None}, "auto", cache) == {"b.tif": expected}
    (tmp_path / "b.tif").unlink()
    assert photo_notes(tmp_path, {"b.tif": "B"}, "auto", cache) == {"b.tif": expected}
    assert photo_notes(tmp_path, {"b.tif": "B"}, "none", cache) == {}, "of another reading"


def test_notes_of_one_kind_are_one():
    notes = {"a": ["from 1 to 2.5", "it has frames"], "b": ["from -3e-05 to 400"], "c": ["other"]}
    assert group_notes(notes) == ["'a' and 1 more: from 1 to 2.5", "'a': it has frames", "'c': other"]
