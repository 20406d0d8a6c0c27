"""Photos that are stored turned without EXIF are the likely cause of a map that falls apart, and are named."""

import html
import json

import pytest
from PIL import ExifTags, Image

from isinglass.pipeline import Pipeline
from isinglass.sfm.turns import explain_turned, find_turned

K = "data/eval/redkitchen/images"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(extractor="aliked", matcher="lightglue-aliked-small", max_keypoints=500, resize=480, device="cpu")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.shared
def test_turned_photos_are_named_with_their_turn(shared, tmp_path, pipeline):
    sources = sorted((shared / K).iterdir())[:4]
    steps = {"1.jpg": Image.Transpose.ROTATE_270, "3.jpg": Image.Transpose.ROTATE_180}  # turned back by 1 and by 2
    for i, source in enumerate(sources):
        with Image.open(source) as image:
            turned = image.transpose(steps[f"{i}.jpg"]) if f"{i}.jpg" in steps else image
            turned.save(tmp_path / f"{i}.jpg", quality=95)
    names = [f"{i}.jpg" for i in range(4)]
    assert find_turned(tmp_path, pipeline, names, ["0.jpg", "2.jpg"]) == {"1.jpg": 1, "3.jpg": 2}
    text = explain_turned({"1.jpg": 1, "3.jpg": 2})
    assert "1.jpg, 3.jpg" in text and "90 or 180 degrees" in text and "EXIF orientation" in text


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.shared
def test_photos_of_another_scene_are_not_taken_for_turned(shared, tmp_path, pipeline):
    sources = [*sorted((shared / K).iterdir())[:2], *sorted((shared / "data/train/hololens/images").iterdir())[:2]]
    for i, source in enumerate(sources):
        with Image.open(source) as image:
            image.convert("RGB").save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(4)]
    assert find_turned(tmp_path, pipeline, names, names[:2]) == {}
    (tmp_path / "3.png").write_bytes(b"no photo any more")
    assert find_turned(tmp_path, pipeline, names, names[:2]) == {}


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.shared
def test_a_map_names_turned_photos_and_its_remedy_helps(shared, isinglass, tmp_path):
    """Every second photo is stored turned: two models of half the photos, and then one of all."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, source in enumerate(sorted((shared / K).iterdir())[:8]):
        with Image.open(source) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90) if i % 2 else image
            turned.save(photos / f"{i}.jpg", quality=95)
    command = ("map", photos, "-o", tmp_path / "map", "--extractor", "aliked", "--matcher", "lightglue-aliked-small")
    command += ("--max-keypoints", "500", "--resize", "480", "--device", "cpu")
    code, out, err = isinglass(*command, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [model["images"] for model in summary["models"]] == [4, 4]
    text = summary["turned"]
    assert text.startswith("photos seem to be stored turned, without EXIF saying so")
    named = [f"{i}.jpg" for i in range(8) if f"{i}.jpg" in text]
    assert len(named) == 4 and set(named) == set(summary["models"][1]["registered"])
    assert text in isinglass(*command)[1]
    assert text in html.unescape((tmp_path / "map/index.html").read_text())
    for name in named:
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = 8 if "by 90 degrees" in text else 6  # counter-clockwise by 90 or 270
        with Image.open(photos / name) as image:
            image.save(photos / name, exif=tags, quality=95)
    code, out, err = isinglass(*command, "--json")
    summary = json.loads(out)
    assert (code, summary["models"][0]["images"], summary["turned"]) == (0, 8, ""), err
