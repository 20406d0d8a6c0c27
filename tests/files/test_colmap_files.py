"""Damaged models and databases of COLMAP, which pycolmap alone would loop on, allocate for, or crash on."""

import shutil
import sqlite3
import struct

import pycolmap
import pytest

from isinglass.errors import InputError
from isinglass.files.colmap_database import check_colmap_database
from isinglass.files.colmap_model import read_colmap_model
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from made_map import Room, camera_of, model_of, places
from mapped_scene import MappedScene


@pytest.fixture(scope="module")
def model():
    room = Room(count=400)
    photos = {f"photo{i:02}.jpg": (*room.photo(pose, clutter=5), pose) for i, pose in enumerate(places(16))}
    return model_of(photos, room.points)


@pytest.fixture
def folder(model, tmp_path):
    model.write_binary(tmp_path)
    return tmp_path


def test_what_colmap_writes_is_read(model, folder, tmp_path):
    found = read_colmap_model(folder)
    assert (found.num_images(), found.num_points3D()) == (16, model.num_points3D()) != (16, 0)
    text = tmp_path / "text"
    text.mkdir()
    model.write_text(text)
    assert read_colmap_model(text).num_points3D() == model.num_points3D()


@pytest.mark.parametrize("name", [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"])
def test_every_camera_model_is_known(name, tmp_path):
    one = pycolmap.Reconstruction()
    one.add_camera_with_trivial_rig(camera_of(model=name))
    one.write_binary(tmp_path)
    assert read_colmap_model(tmp_path).cameras[1].model.name == name


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
@pytest.mark.parametrize("count", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_count_that_lies_is_refused_at_once(folder, file, count):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(struct.pack("<Q", count) + data[8:])
    with pytest.raises(InputError, match=file):
        read_colmap_model(folder)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
def test_a_file_that_is_cut_or_has_more_is_refused(folder, file):
    data = (folder / file).read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], data[:8], b"", data + b"\0"):
        (folder / file).write_bytes(damaged)
        with pytest.raises(InputError, match=file):
            read_colmap_model(folder)


def test_a_folder_without_a_model(folder):
    (folder / "images.bin").unlink()
    with pytest.raises(InputError, match="no model of COLMAP"):
        read_colmap_model(folder)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("database")
    scene = MappedScene(folder, views=3, count=40)
    path = folder / "database.db"
    with scene.features() as features, scene.matches() as matches:
        cameras = cameras_of(scene.photos, scene.names, CameraOptions())
        write_database(path, features, matches, scene.pairs, cameras)
    return path


@pytest.mark.parametrize(
    "change",
    [
        "update keypoints set rows = rows + 1",
        "update keypoints set rows = 1000000000",
        "update keypoints set cols = 3",
        "update keypoints set cols = -2",
        "update keypoints set cols = 'xxx'",
        "update keypoints set data = null",
        "update keypoints set data = x'00'",
        "update matches set rows = rows - 1",
        "update matches set cols = 1.5",
        "update matches set cols = x''",
        "update matches set data = zeroblob(7)",
        "update cameras set model = 77",
        "update cameras set params = zeroblob(8)",
        "update cameras set params = null",
        "update cameras set width = 0",
        "update images set camera_id = 99",
        "update images set name = x'ff' where image_id = 1",
    ],
)
def test_a_row_that_lies_is_refused(database, tmp_path, change):
    path = tmp_path / "database.db"
    shutil.copyfile(database, path)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    table = change.split()[1]
    with pytest.raises(InputError, match=f"of {table} in the database .* is damaged"):
        Project(path)


def test_a_whole_database_passes(database):
    check_colmap_database(database)
    with Project(database) as project:
        assert len(project.matched) == 3
