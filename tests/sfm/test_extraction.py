"""Features of a folder of photos into a store: each photo once, and no photo ends the run of the others."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError, WriteError
from isinglass.pipeline import Pipeline
from isinglass.sfm import extraction
from isinglass.sfm.extraction import extract_images, feature_settings, image_names
from isinglass.sfm.store import FeatureStore
from isinglass.types import Features, Signature
from support import write_photos

OPTIONS = {"extractor": "rootsift", "matcher": "nearest", "max_keypoints": 60, "resize": 160}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(**OPTIONS)


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path / "photos", 3, size=(160, 120))
    (tmp_path / "photos" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "photos" / "2.png").rename(tmp_path / "photos" / "deep" / "er" / "2.png")
    return tmp_path / "photos"


NAMES = ["0.png", "1.png", "deep/er/2.png"]


def test_names_are_those_of_all_images_below(photos):
    for name in (".hidden.png", "notes.txt", "deep/B.JPG"):
        (photos / name).touch()
    (photos / ".cache").mkdir()
    (photos / ".cache" / "0.png").touch()
    (photos / "folder.png").mkdir()
    (photos / "deep" / "B.JPG").write_bytes(b"not empty")
    assert image_names(photos) == ["0.png", "1.png", "deep/B.JPG", "deep/er/2.png"]


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        image_names(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="there is no image in or below"):
        image_names(tmp_path)


def test_features_are_those_of_the_pipeline(tmp_path, photos, pipeline):
    told = []
    filled = extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, tell=lambda done, of: told.append((done, of)))
    assert (filled.made, filled.reused, filled.problems) == (3, 0, {})
    assert told == [(1, 3), (2, 3), (3, 3)]
    with FeatureStore(tmp_path / "f.h5", pipeline.extractor.signature, feature_settings(pipeline)) as store:
        assert list(store) == NAMES
        for name in NAMES:
            expected = pipeline.extract(photos / name)
            assert torch.equal(store.get(name).keypoints, expected.keypoints)
            assert torch.equal(store.get(name).descriptors, expected.descriptors.half().float())
            assert store.digest(name) == hashlib.sha256((photos / name).read_bytes()).hexdigest()
    assert not (tmp_path / "f.h5.parts").exists()


def test_each_photo_is_extracted_once(tmp_path, photos, pipeline):
    store, counted = tmp_path / "f.h5", Counting(pipeline)
    assert extract_images(store, photos, [*NAMES[:2], NAMES[0]], counted).made == 2
    assert counted.seen == ["0.png", "1.png"]
    filled = extract_images(store, photos, NAMES, counted)
    assert (filled.made, filled.reused, counted.seen) == (1, 2, ["0.png", "1.png", "2.png"])
    before = store.stat().st_mtime_ns
    assert extract_images(store, photos, NAMES, counted).reused == 3
    assert store.stat().st_mtime_ns == before  # nothing is written where nothing is new
    shutil.copy(photos / "0.png", photos / "1.png")  # another photo of that name
    filled = extract_images(store, photos, NAMES, counted)
    assert (filled.made, filled.reused, counted.seen[3:]) == (1, 2, ["1.png"])
    with FeatureStore(store) as found:
        assert torch.equal(found.get("0.png").keypoints, found.get("1.png").keypoints)


def test_photos_that_cannot_be_read_are_problems(tmp_path, photos, pipeline):
    whole = (photos / "0.png").read_bytes()
    (photos / "torn.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("no image")
    (photos / "empty.png").touch()
    names = ["torn.png", "0.png", "text.jpg", "none.png", "empty.png", "1.png", "../0.png", "\udcff.png"]
    told = []
    filled = extract_images(tmp_path / "f.h5", photos, names, pipeline, tell=lambda *done: told.append(done))
    assert filled.made == 2
    assert list(FeatureStore(tmp_path / "f.h5")) == ["0.png", "1.png"]
    assert sorted(filled.problems) == sorted(set(names) - {"0.png", "1.png"})
    for name, why in {
        "torn.png": "truncated",
        "text.jpg": "cannot be read as an image",
        "none.png": "No such file",
        "empty.png": "is an empty file",
        "../0.png": "expected a relative path",
        "\udcff.png": "is no Unicode",
    }.items():
        assert why in filled.problems[name]
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == list(range(1, 9))


def test_no_photo_can_be_read(tmp_path, pipeline):
    filled = extract_images(tmp_path / "f.h5", tmp_path, ["a.png"], pipeline)
    assert (filled.made, list(filled.problems)) == (0, ["a.png"])
    assert list(FeatureStore(tmp_path / "f.h5")) == []


def test_features_that_cannot_be_kept_are_a_problem_of_their_photo(tmp_path, photos, pipeline):
    class Broken(Counting):
        def extract_each(self, images):
            for i, features in enumerate(super().extract_each(images)):
                if i == 1:
                    features.keypoints[0, 0, 0] = float("nan")
                yield features

    filled = extract_images(tmp_path / "f.h5", photos, NAMES, Broken(pipeline))
    assert filled.made == 2
    assert "keypoints hold NaN" in filled.problems["1.png"]
    assert list(FeatureStore(tmp_path / "f.h5")) == ["0.png", "deep/er/2.png"]


def test_masks(tmp_path, photos, pipeline):
    """Named as COLMAP has it, or as the photo; no keypoint where it is black; another mask is another photo."""
    masks = tmp_path / "masks"
    (masks / "deep" / "er").mkdir(parents=True)
    left = np.zeros((120, 160), np.uint8)
    left[:, :80] = 255
    Image.fromarray(left).save(masks / "0.png.png")
    Image.fromarray(255 - left).save(masks / "deep" / "er" / "2.png")
    Image.fromarray(left[:50]).save(masks / "1.png")
    filled = extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, masks=masks)
    assert filled.made == 2
    assert "the mask is 160 x 50 px" in filled.problems["1.png"]
    with FeatureStore(tmp_path / "f.h5") as store:
        x0, x2 = (store.keypoints(name)[:, 0] for name in ("0.png", "deep/er/2.png"))
    assert len(x0) > 5
    assert x0.max() < 80
    assert len(x2) > 5
    assert x2.min() > 79
    (masks / "1.png").unlink()
    assert extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, masks=masks).made == 1
    Image.fromarray(255 - left).save(masks / "0.png.png")
    filled = extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, masks=masks)
    assert (filled.made, filled.reused) == (1, 2)
    assert extract_images(tmp_path / "f.h5", photos, NAMES, pipeline).made == 2  # without masks


def test_settings_are_what_features_depend_on(pipeline):
    told = json.loads(feature_settings(pipeline))
    assert told["resize"] == 160
    for name, value in {
        "resize": 200,
        "max_keypoints": None,
        "rotation": "none",
        "min_distance": 2.0,
        "tile": 64,
    }.items():
        more = {"tile_overlap": 8} if name == "tile" else {}
        assert feature_settings(Pipeline(**OPTIONS | {name: value} | more)) != feature_settings(pipeline), name
    for name, value in {"tile_overlap": 8, "ratio": 0.8, "rotation": "auto"}.items():  # unused here
        assert feature_settings(Pipeline(**OPTIONS | {name: value})) == feature_settings(pipeline), name


def test_other_settings_are_refused_before_any_work(tmp_path, photos, pipeline):
    extract_images(tmp_path / "f.h5", photos, NAMES, pipeline)
    counted = Counting(Pipeline(**OPTIONS | {"resize": 100}))
    with pytest.raises(InputError, match=r'made with the settings {"resize": 160}, expected {"resize": 100}'):
        extract_images(tmp_path / "f.h5", photos, NAMES, counted)
    assert counted.seen == []
    assert len(FeatureStore(tmp_path / "f.h5")) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_stopped_keeps_what_it_made(tmp_path, photos, pipeline, error):
    def stop(done, _):
        if done == 2:
            raise error

    with pytest.raises(error):
        extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, tell=stop)
    assert list(FeatureStore(tmp_path / "f.h5")) == NAMES[:2]
    assert extract_images(tmp_path / "f.h5", photos, NAMES, pipeline).reused == 2


def test_parts_come_as_the_run_goes(tmp_path, photos, pipeline, monkeypatch):
    monkeypatch.setattr(extraction, "IMAGES_A_PART", 2)
    seen = []

    def look(done, _):
        seen.append(sum(1 for _ in tmp_path.glob("f.h5.parts/*.h5")))

    extract_images(tmp_path / "f.h5", photos, NAMES, pipeline, tell=look)
    assert seen == [0, 1, 1]


def test_a_full_disk_ends_the_run_with_what_was_written(tmp_path, photos, pipeline, monkeypatch):
    monkeypatch.setattr(extraction, "IMAGES_A_PART", 1)
    written = FeatureStore.add

    def add(self, features, digests=None):
        if "1.png" in features:
            raise WriteError("No space left")
        written(self, features, digests)

    with monkeypatch.context() as patch, pytest.raises(WriteError, match="No space left"):
        patch.setattr(FeatureStore, "add", add)
        extract_images(tmp_path / "f.h5", photos, NAMES, pipeline)
    assert list(FeatureStore(tmp_path / "f.h5")) == ["0.png"]
    assert extract_images(tmp_path / "f.h5", photos, NAMES, pipeline).reused == 1


class Counting:
    """A pipeline that notes which photos it is given."""

    def __init__(self, pipeline):
        self.pipeline, self.seen = pipeline, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def extract_each(self, images):
        def noted():
            for photo, mask in images:
                self.seen.append(photo.name)
                yield photo, mask

        yield from self.pipeline.extract_each(noted())


def test_the_pipeline_gives_errors_in_their_place(photos, pipeline):
    found = list(pipeline.extract_each([(photos / "0.png", None), (photos / "no.png", None), (photos / "1.png", None)]))
    assert [type(one) for one in found] == [Features, InputError, Features]
    assert found[0].signature == Signature(extractor="rootsift")
