"""`isinglass map` and `export`: what they say, and with what exit code."""

import json
from dataclasses import fields

import pytest

from isinglass.cli import maps
from isinglass.sfm import mapping
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.choice import PairOptions
from isinglass.sfm.mapping import MapOptions
from isinglass.sfm.reconstruct import read_model
from mapped_scene import Setup


@pytest.fixture
def setup(tmp_path, monkeypatch):
    made = Setup(tmp_path)
    monkeypatch.setattr(maps, "make_pipeline", lambda settings: made.pipeline)
    monkeypatch.setattr(mapping, "write_map_page", lambda page, *about: page.write_text("a page"))
    return made


def test_a_map_and_its_exports(setup, isinglass, tmp_path):
    code, out, err = isinglass("map", setup.scene.photos, "-o", setup.folder, "--camera", "single")
    assert code == 0, err
    assert "model: 7 of 7 photos" in out
    assert "21 pairs, 21 with matches, 21 with a two-view geometry" in out
    assert f"see {setup.folder / 'index.html'}" in out
    assert "match 21 of 21 (stage 4 of 8), about" in err

    assert isinglass("export", "colmap", setup.folder, "-o", tmp_path / "colmap")[0] == 0
    assert read_model(tmp_path / "colmap/sparse/0").num_reg_images() == 7
    assert "7 images and 21 pairs" in isinglass("export", "hloc", setup.folder, "-o", tmp_path / "hloc")[2]
    assert "21 pairs" in isinglass("export", "pairs", setup.folder, "-o", tmp_path / "pairs.txt")[2]

    other = tmp_path / "again"
    options = ("--pairs-file", tmp_path / "pairs.txt", "--camera", "single", "--json")
    code, out, _ = isinglass("map", setup.scene.photos, "-o", other, *options)
    assert (code, json.loads(out)["pairs"]) == (0, 21)


def test_no_model_is_exit_code_1_with_the_reason(setup, isinglass):
    for name in setup.scene.names[1:]:
        setup.scene.seen[name] = setup.scene.seen[name] + 1000 * int(name[:3])
    code, _, err = isinglass("map", setup.scene.photos, "-o", setup.folder, "--camera", "single")
    assert code == 1
    assert "there is no model: no overlap was found" in err


def test_photos_that_cannot_be_used_are_exit_code_1(setup, isinglass):
    (setup.scene.photos / "broken.png").write_bytes(b"no image")
    code, out, err = isinglass("map", setup.scene.photos, "-o", setup.folder, "--camera", "single")
    assert code == 1
    assert "model: 7 of 8 photos" in out
    assert "isinglass: broken.png: " in err


def test_what_makes_no_sense(setup, isinglass, tmp_path):
    code, _, err = isinglass("map", tmp_path / "absent", "-o", setup.folder)
    assert (code, "there is no folder" in err) == (2, True)
    code, _, err = isinglass("map", setup.scene.photos, "-o", setup.folder, "--camera-params", "a,b")
    assert (code, "expected numbers" in err) == (2, True)
    code, _, err = isinglass("map", setup.scene.photos, "-o", setup.folder, "--camera-model", "LENS")
    assert (code, "expected one of" in err) == (2, True)


def test_options_have_the_librarys_defaults(tmp_path):
    shown = maps.make.make_context("map", [str(tmp_path)]).params
    expected = {one.name: getattr(PairOptions(), one.name) for one in fields(PairOptions)}
    for name, value in expected.items():
        if name != "exhaustive_up_to":
            assert shown[name] == value, name
    cameras = CameraOptions()
    assert (shown["camera_model"], shown["share"], shown["refine"]) == (cameras.model, cameras.share, cameras.refine)
    assert (shown["cache_mb"], shown["workers"]) == (MapOptions().memory_mb, MapOptions().workers)
    assert shown["least_inliers"] == MapOptions().least_inliers
    assert (shown["mapper"], shown["masks"]) == (MapOptions().mapper, None)


def test_times_are_told_as_people_do():
    assert [maps._time(seconds) for seconds in (12.4, 200, 7000)] == ["12 s", "3 min", "1.9 h"]
