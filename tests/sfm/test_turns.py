"""Photos that are stored turned without EXIF are the likely cause of a map that falls apart, and are named."""

import pytest
from PIL import Image

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
