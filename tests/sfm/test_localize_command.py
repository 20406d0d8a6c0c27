"""`isinglass localize` on photos of a room whose truth is exact, and maps of any COLMAP model."""

import json

import numpy as np
import pytest
from PIL import Image

from isinglass.cli.localize import localize
from isinglass.errors import InputError
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.localisation import LocaliseOptions, Map
from isinglass.sfm.localised import quaternion
from isinglass.sfm.mapping import MapOptions, make_map
from made_map import places, pose_at
from made_photos import FOCAL_PX, SIZE, exact_model, write_photos

OPTIONS = {"extractor": "rootsift", "matcher": "nearest", "ratio": 0.8}
FLAGS = ("--extractor", "rootsift", "--matcher", "nearest", "--ratio", 0.8)
QUERIES = [pose_at([0.3, 0.2, -0.2], 12), pose_at([-0.4, -0.1, 0.5], 95)]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with photos, queries (two of the room, one of another) and a model."""
    folder = tmp_path_factory.mktemp("room")
    poses = places(24)[:9]
    names = write_photos(folder / "photos", poses)
    write_photos(folder / "queries", QUERIES, prefix="query")
    write_photos(folder / "queries", QUERIES[:1], seed=7, prefix="elsewhere")
    (folder / "model").mkdir()
    exact_model(Pipeline(**OPTIONS), folder / "photos", names, poses).write(folder / "model")
    return folder


def off_m(centre, pose):
    return np.linalg.norm(np.array(centre) + pose[:, :3].T @ pose[:, 3])


def test_photos_are_found_in_any_model_of_colmap(room, isinglass, tmp_path):
    queries = room / "queries"
    code, out, err = isinglass(
        "localize", room / "model", queries, "--photos", room / "photos", *FLAGS, "--json", "-o", tmp_path / "out.txt"
    )
    assert code == 0 and "2 of 3 found" in err
    elsewhere, *found = [json.loads(line) for line in out.splitlines()]
    assert not elsewhere["success"] and elsewhere["reason"] and elsewhere["tvec"] is None
    for result, pose in zip(found, QUERIES, strict=True):
        assert result["success"] and off_m(result["centre"], pose) < 0.03
        np.testing.assert_allclose(result["qvec"], quaternion(pose), atol=5e-3)
        assert result["camera_from"] == "map" and result["num_inliers"] > 50
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [str(queries / f"query0{i}.png") for i in (0, 1)]
    assert np.array(lines[0].split()[1:], float) == pytest.approx([*found[0]["qvec"], *found[0]["tvec"]], abs=1e-6)


def test_a_given_camera_is_used_and_files_that_are_none_are_said(room, isinglass, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    camera = "--camera", "PINHOLE", "--camera-params", f"{FOCAL_PX},{FOCAL_PX},{SIZE[0] / 2 - 0.5},{SIZE[1] / 2 - 0.5}"
    queries = tmp_path / "torn.png", room / "queries/query00.png"
    code, out, err = isinglass(
        "localize", room / "model", *queries, "--photos", room / "photos", *FLAGS, *camera, "-o", tmp_path / "out.json"
    )
    assert code == 1 and "1 of 2 found" in err
    torn, good = out.splitlines()
    assert "torn.png: not found" in torn and "camera given" in good
    told = json.loads((tmp_path / "out.json").read_text())
    assert [one["readable"] for one in told] == [False, True]
    assert told[1]["camera"]["model"] == "PINHOLE" and off_m(told[1]["centre"], QUERIES[0]) < 0.03


def test_defaults_are_the_librarys():
    defaults = {one.name: one.default for one in localize.params}
    library = LocaliseOptions()
    for name in ("images", "neighbours", "batch"):
        assert defaults[name] == getattr(library, name)


def test_wrong_use_is_said(room, isinglass, tmp_path):
    query = room / "queries/query00.png"
    code, _, err = isinglass("localize", room / "model", query, "--camera", "PINHOLE")
    assert code == 2 and "--camera-params" in err
    code, _, err = isinglass("localize", room / "photos", query)
    assert code == 2 and "expected a map" in err
    code, _, err = isinglass("localize", room / "photos", query, "--photos", room / "photos", *FLAGS)
    assert code == 2 and "model" in err
    code, _, err = isinglass(
        "localize", room / "model", query, "--photos", room / "photos", *FLAGS, "--camera", "X", "--camera-params", "1"
    )
    assert code == 2 and "'X'" in err


def test_a_map_that_isinglass_made_is_opened_with_its_options(room, isinglass, tmp_path):
    one_camera = MapOptions(
        cameras=CameraOptions(model="SIMPLE_PINHOLE", share="single", params=(FOCAL_PX, 159.5, 119.5))
    )
    summary = make_map(room / "photos", tmp_path / "map", Pipeline(**OPTIONS), one_camera)
    assert summary.models[0].images >= 8
    queries = [room / f"queries/{name}.png" for name in ("query00", "query01", "elsewhere00")]
    code, out, _ = isinglass("localize", tmp_path / "map", *queries, "--json")
    first, second, elsewhere = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and first["success"] and second["success"] and not elsewhere["success"]
    mapped = Map.open(tmp_path / "map", max_keypoints=500)
    assert mapped.pipeline.options.extractor == "rootsift" and mapped.pipeline.options.max_keypoints == 500
    centres = {name: mapped.landmarks.centres[mapped.landmarks.place[name]] for name in ("photo00.png", "photo08.png")}
    unit = np.linalg.norm(centres["photo00.png"] - centres["photo08.png"]) / 3**0.5  # 120 degrees on a circle of 1 m
    apart = np.linalg.norm(np.subtract(first["centre"], second["centre"])) / unit
    truth = np.linalg.norm(QUERIES[0][:, :3].T @ QUERIES[0][:, 3] - QUERIES[1][:, :3].T @ QUERIES[1][:, 3])
    assert apart == pytest.approx(truth, rel=0.05)


def test_photos_of_a_model_that_are_missing_are_problems(room, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((room / "photos").iterdir())[:4]:
        (photos / file.name).write_bytes(file.read_bytes())
    mapped = Map.from_model(room / "model", photos, Pipeline(**OPTIONS), features=tmp_path / "features.h5")
    assert len(mapped.problems) == 5 and mapped.localize(room / "queries/query00.png").success
    again = Map.from_model(room / "model", photos, Pipeline(**OPTIONS), features=tmp_path / "features.h5")
    assert again.localize(room / "queries/query00.png").success
    Image.new("RGB", SIZE).save(tmp_path / "alone.png")
    with pytest.raises(InputError, match="9 images"):
        Map.from_model(room / "model", tmp_path, Pipeline(**OPTIONS))
