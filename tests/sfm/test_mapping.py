"""A folder of photos becomes a map; nothing is done twice; and where no map can be made, the reason is said."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.pipeline import Pipeline
from isinglass.sfm import mapping
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.choice import PairOptions
from isinglass.sfm.colmap import Project
from isinglass.sfm.computing import Here
from isinglass.sfm.map_folder import read_map
from isinglass.sfm.mapping import make_map, pipeline_of
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.store import FeatureStore, MatchStore
from mapped_scene import FIRST, SINGLE, SIZE, Setup, photo


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """The page is another test's, see test_map_page.py."""
    monkeypatch.setattr(mapping, "write_map_page", lambda page, *about: page.write_text("a page"))


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def match_set(folder):
    store = MatchStore(folder / "matches.h5")
    return {pair: (store.get(*pair).indices.tolist(), store.get(*pair).scores.tolist()) for pair in store}


def test_a_map_of_photos(setup):
    told = []
    summary = setup.make(tell=lambda *stage: told.append(stage))
    (model,) = summary.models
    assert model.registered == setup.scene.names
    assert (summary.photos, summary.pairs, summary.matched, summary.verified) == (7, 21, 21, 21)
    assert (summary.problems, summary.unregistered, summary.reason, summary.reused) == ({}, [], "", [])
    assert set(summary.seconds) == set(mapping.STAGES) - {"page"}
    assert max(setup.scene.centre_errors(read_model(setup.folder / "model")).values()) < 0.05
    assert [stage for stage, done, of in told if done == of] == [
        "extract", "retrieval", "match", "verify", "reconstruct"
    ]  # fmt: skip
    files = {file.name for file in setup.folder.iterdir() if not file.name.startswith(".")}
    expected = {"features.h5", "matches.h5", "retrieval.npz", "pairs.txt", "database.db", "model", "map.json"}
    assert files == expected | {"index.html", "stages"}


def test_nothing_is_done_twice(setup):
    first = setup.make()
    done = setup.knowing.extracted, setup.knowing.matched
    before = {file: file.stat().st_mtime_ns for file in setup.folder.rglob("*") if file.name != "map.json"}
    again = setup.make()
    assert (setup.knowing.extracted, setup.knowing.matched) == done == (7, 21)
    assert again == replace(first, reused=list(first.seconds))
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_damaged_record_alone_is_made_again(setup):
    setup.make()
    for file, content in (
        ("features.h5", setup.scene.keypoints["002.png"].tobytes()),
        ("matches.h5", setup.scene.matches_of("001.png", "004.png").indices.tobytes()),
    ):
        setup.knowing.extracted = setup.knowing.matched = 0
        damaged = bytearray((setup.folder / file).read_bytes())
        damaged[damaged.find(content) + 21] ^= 1
        (setup.folder / file).write_bytes(damaged)
        (setup.folder / "stages/database.json").unlink()
        with pytest.raises(InputError, match=rf"{file}' is damaged.*run again, and it alone is made again"):
            setup.make()
        (model,) = setup.make().models
        assert model.registered == setup.scene.names
        assert (setup.knowing.extracted, setup.knowing.matched) == ((1, 0) if file == "features.h5" else (0, 1))


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"mapper": "global"}, ["extract", "retrieval", "pairs", "match", "database", "verify"]),
        ({"max_error_px": 2.0}, ["extract", "retrieval", "pairs", "match", "database"]),
        ({"cameras": CameraOptions(share="image")}, ["extract", "retrieval", "pairs", "match"]),
        ({"pairs": PairOptions(how="sequential", overlap=2, loops=0)}, ["extract", "retrieval"]),
    ],
)
def test_other_options_do_again_what_depends_on_them(setup, changed, kept):
    setup.make()
    assert setup.make(replace(SINGLE, **changed)).reused == kept
    assert (setup.knowing.extracted, setup.knowing.matched) == (7, 21)


def test_a_new_photo_is_added(setup):
    moved = setup.scene.folder / "006.png"
    shutil.move(setup.scene.photos / "006.png", moved)
    assert setup.make().photos == 6
    shutil.move(moved, setup.scene.photos / "006.png")
    summary = setup.make()
    assert (setup.knowing.extracted, setup.knowing.matched) == (7, 21)
    assert summary.models[0].images == 7


def centres_in(folder):
    model = read_model(folder)
    return {image.name: image.projection_center() for image in model.images.values() if image.has_pose}


def test_photos_that_are_added_leave_the_frame_where_it_was(tmp_path):
    setup = Setup(tmp_path, views=9)
    for name in ("006.png", "007.png", "008.png"):
        shutil.move(setup.scene.photos / name, tmp_path / name)
    first = setup.make()
    assert first.frame == ""
    before = centres_in(setup.folder / "model")
    for name in ("006.png", "007.png", "008.png"):
        shutil.move(tmp_path / name, setup.scene.photos / name)
    summary = setup.make()
    after = centres_in(setup.folder / "model")
    assert len(before) == 6 and len(after) == 9
    extent = np.linalg.norm(np.ptp(list(before.values()), axis=0))
    assert max(np.linalg.norm(after[name] - centre) for name, centre in before.items()) < 0.01 * extent
    assert "the frame of the earlier map was kept, by 6 common photos" in summary.frame
    assert read_map(setup.folder)["summary"]["frame"] == summary.frame == setup.make().frame


def test_what_was_lost_is_made_again(setup):
    setup.make()
    (setup.folder / "database.db").unlink()
    shutil.rmtree(setup.folder / "model")
    summary = setup.make()
    assert summary.reused == ["extract", "retrieval", "pairs", "match"]
    assert summary.models[0].images == 7
    with Project(setup.folder / "database.db") as project:
        assert len(project.inliers) == 21


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("DELETE FROM images WHERE image_id = 3", 4),
        ("UPDATE images SET name = 'other.png' WHERE image_id = 3", 4),
        ("DELETE FROM matches WHERE rowid % 2", 4),
        ("UPDATE keypoints SET rows = rows - 1, data = substr(data, 1, length(data) - 4 * cols)", 4),
        ("UPDATE two_view_geometries SET config = 1, rows = 0, data = NULL WHERE rowid % 2", 6),
        (None, 4),
    ],
)
def test_a_model_is_never_that_of_another_database(setup, change, kept):
    """What is not as it was made is made again; where only geometries differ, the model of these is made."""
    first = setup.make()
    if change is None:
        (setup.folder / "database.db").unlink()
    else:
        with closing(sqlite3.connect(setup.folder / "database.db")) as database:
            database.execute(change)
            database.commit()
    summary = setup.make()
    assert summary.reused == list(mapping.STAGES[:kept])
    with Project(setup.folder / "database.db") as project:
        assert (summary.verified, summary.inliers) == (
            sum(count > 0 for count in project.inliers.values()), sum(project.inliers.values())
        )  # fmt: skip
    if kept == 4:
        assert summary.models[0].registered == setup.scene.names
        assert (summary.verified, summary.inliers) == (first.verified, first.inliers)
    assert setup.make().reused[:7] == list(mapping.STAGES[:7])


@pytest.mark.parametrize("stage", ["extract", "retrieval", "match", "verify", "reconstruct"])
def test_a_stage_that_is_interrupted_goes_on(setup, tmp_path, stage):
    other = Setup(tmp_path / "undisturbed")
    expected = other.make()

    def stop(name, done, of):
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setup.make(tell=stop)
    summary = setup.make()
    assert summary.models[0].registered == expected.models[0].registered
    assert (summary.matched, summary.inliers) == (expected.matched, expected.inliers)
    assert match_set(setup.folder) == match_set(other.folder)


def test_map_json_says_how_it_was_made(tmp_path, setup):
    with pytest.raises(InputError, match=r"expected a map that `isinglass map` made"):
        read_map(tmp_path)
    setup.make()
    told = read_map(setup.folder)
    assert told["photos"] == str(setup.scene.photos)
    assert told["options"]["cameras"]["share"] == "single"
    assert told["summary"]["models"][0]["images"] == 7
    assert [line.split(":")[0] for line in told["custom"]] == ["the extractor 'known'", "the matcher 'known'"]
    with pytest.raises(InputError, match="was made with custom parts"):
        pipeline_of(setup.folder)
    del told["custom"]
    told["pipeline"] |= {"extractor": "rootsift", "matcher": "nearest"}
    (setup.folder / "map.json").write_text(json.dumps(told))
    assert pipeline_of(setup.folder).options.min_distance == 0.0
    (setup.folder / "map.json").write_text(json.dumps(told | {"schema": "isinglass map 99"}))
    with pytest.raises(InputError, match="of another version"):
        read_map(setup.folder)


def test_masks(setup, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", SIZE, 255).save(masks / "000.png.png")
    seen = []
    extract = setup.knowing.extract
    setup.knowing.extract = lambda images, mask=None: seen.append(mask) or extract(images, mask)
    setup.make(replace(SINGLE, masks=masks))
    assert [mask is not None and bool(mask.any()) for mask in seen].count(True) == 1


def test_others_can_compute(setup):
    """What a cluster is given: photos, stored features, pairs, and where all goes."""
    asked = []

    class Other(Here):
        def extract(self, store_path, photos, names, pipeline, **more):
            asked.append(len(names))
            return super().extract(store_path, photos, names, pipeline, **more)

        def match(self, features, pairs, matches_path, pipeline, **more):
            asked.append((len(features), len(pairs), matches_path.name))
            return super().match(features, pairs, matches_path, pipeline, **more)

    assert setup.make(computing=Other()).models[0].images == 7
    assert asked == [7, (7, 21, "matches.h5")]


# ---- what has no map


def test_photos_that_cannot_be_read_are_named(setup):
    (setup.scene.photos / "broken.png").write_bytes(b"\x89PNG but not really")
    (setup.scene.photos / "notes.txt").write_text("no photo")
    summary = setup.make()
    assert list(summary.problems) == ["broken.png"]
    assert summary.models[0].images == 7
    assert summary.photos == 8


def test_a_folder_without_photos(setup, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        make_map(tmp_path / "empty", tmp_path / "map", setup.pipeline)
    with pytest.raises(InputError, match="no folder"):
        make_map(tmp_path / "absent", tmp_path / "map", setup.pipeline)
    assert not (tmp_path / "map").exists()


def test_a_single_photo(tmp_path):
    summary = Setup(tmp_path, views=1).make()
    assert summary.models == []
    assert "1 of 1 photos can be used" in summary.reason


def test_two_photos_of_different_scenes(tmp_path):
    setup = Setup(tmp_path, views=2)
    setup.scene.seen["001.png"] = setup.scene.seen["001.png"] + 1000
    summary = setup.make()
    assert summary.models == []
    assert "no overlap was found: of 1 pairs 0 have matches" in summary.reason


def test_all_photos_the_same(tmp_path):
    setup = Setup(tmp_path, views=4)
    first = setup.scene.names[0]
    for name in setup.scene.names:
        setup.scene.seen[name], setup.scene.keypoints[name] = setup.scene.seen[first], setup.scene.keypoints[first]
    summary = setup.make()
    assert summary.models == []
    assert "of the very same view" in summary.reason


def test_photos_without_keypoints(tmp_path):
    setup = Setup(tmp_path, views=3)
    for name in setup.scene.names:
        setup.scene.seen[name] = setup.scene.seen[name][:0]
        setup.scene.keypoints[name] = setup.scene.keypoints[name][:0]
    summary = setup.make()
    assert summary.models == []
    assert "no photo has any keypoint" in summary.notes


def test_two_scenes_are_two_models_and_are_said(tmp_path):
    setup = Setup(tmp_path, views=9)
    for name in setup.scene.names[5:]:
        setup.scene.seen[name] = setup.scene.seen[name] + 1000
    summary = setup.make()
    assert [model.registered for model in summary.models] == [setup.scene.names[:5], setup.scene.names[5:]]
    assert summary.unregistered == []


def test_a_photo_of_another_scene_is_in_no_model(tmp_path):
    setup = Setup(tmp_path)
    setup.scene.seen["003.png"] = setup.scene.seen["003.png"] + 1000
    summary = setup.make()
    assert summary.unregistered == ["003.png"]
    assert summary.models[0].images == 6


def test_pairs_by_gps_with_holes(setup):
    """Two photos have positions; the others are paired by likeness, and that is said."""
    for i, name in enumerate(setup.scene.names[:2]):
        exif = Image.Exif()
        exif[0x8825] = {1: "N", 2: (47.0, 0.0, 0.1 * i), 3: "E", 4: (8.0, 0.0, 0.0)}
        photo(FIRST + i).save(setup.scene.photos / name, exif=exif)
    summary = setup.make(replace(SINGLE, pairs=PairOptions(how="spatial")))
    assert "5 of 7 photos have no position" in " ".join(summary.notes)
    assert summary.models[0].images == 7


def test_options_that_make_no_sense(setup):
    with pytest.raises(InputError, match="rotation 'auto' turns the second image"):
        make_map(setup.scene.photos, setup.folder, Pipeline(extractor="rootsift", matcher="nearest", rotation="auto"))
    with pytest.raises(InputError, match="pairs by 'file' need 'file'"):
        PairOptions(how="file")
    with pytest.raises(InputError, match="expected one of 'auto'"):
        PairOptions(how="guess")


def test_a_folder_of_other_photos_is_refused(setup, tmp_path):
    setup.make()
    kept = match_set(setup.folder)
    moved = setup.scene.photos = setup.scene.photos.rename(tmp_path / "moved")
    setup.make()
    for name in setup.scene.names:
        (moved / name).rename(moved / f"other-{name}")
    with pytest.raises(InputError, match=r"holds a map of other photos \(7, such as '000.png'\)"):
        setup.make()
    assert match_set(setup.folder) == kept


def test_a_folder_of_other_features_is_refused(setup):
    setup.make()
    other = Pipeline(extractor="rootsift", matcher="nearest")
    with pytest.raises(InputError, match="Choose the same options"):
        make_map(setup.scene.photos, setup.folder, other, SINGLE)
    assert len(FeatureStore(setup.folder / "features.h5")) == 7
