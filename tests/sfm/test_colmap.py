"""COLMAP's database: what is written is what is read, half a pixel away, and bad files are told as such."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError, WriteError
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, camera_of, pycolmap_module, write_database
from isinglass.sfm.store import FeatureStore, MatchStore, PairMatches
from isinglass.types import Features
from mapped_scene import SIGNATURE, SIZE, MappedScene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = MappedScene(tmp_path_factory.mktemp("scene"), views=4)
    made.stored = made.features(), made.matches()
    return made


def write(scene, path, pairs=None, cameras=None, **options):
    features, matches = scene.stored
    return write_database(
        path, features, matches, scene.pairs if pairs is None else pairs, cameras or one(scene), **options
    )


def one(scene):
    return [(camera_of("SIMPLE_RADIAL", SIZE, (250, 159.5, 119.5, 0.0)), scene.names)]


def test_what_is_written_is_read(scene, tmp_path):
    written = write(scene, tmp_path / "database.db")
    with Project(tmp_path / "database.db") as project:
        assert project.names == scene.names
        assert written.images == 4
        assert written.pairs == len(project.matched) == 6
        assert written.matches == sum(project.matched.values())
        assert project.inliers == {}
        for name in scene.names:
            np.testing.assert_allclose(project.keypoints(name), scene.keypoints[name], atol=1e-4)
        for pair in scene.pairs:
            np.testing.assert_array_equal(project.matches(*pair), scene.stored[1].get(*pair).pairs())


def test_half_a_pixel_is_added_to_keypoints_and_principal_points(scene, tmp_path):
    write(scene, tmp_path / "database.db")
    with pycolmap_module().Database.open(tmp_path / "database.db") as database:
        image = database.read_image_with_name(scene.names[0])
        np.testing.assert_allclose(
            database.read_keypoints(image.image_id), scene.keypoints[scene.names[0]] + 0.5, atol=1e-4
        )
        camera = database.read_all_cameras()[0]
        assert camera.params.tolist() == [250, 160, 120, 0]
        assert camera.has_prior_focal_length


def test_rigs_and_frames_are_as_colmap_writes_them(scene, tmp_path):
    """Against COLMAP's own import of the same photos."""
    colmap = pycolmap_module()
    write(scene, tmp_path / "ours.db")
    colmap.Database.open(tmp_path / "theirs.db").close()
    colmap.import_images(tmp_path / "theirs.db", scene.photos, colmap.CameraMode.SINGLE)
    found = []
    for name in ("ours", "theirs"):
        with colmap.Database.open(tmp_path / f"{name}.db") as database:
            rigs, frames = database.read_all_rigs(), database.read_all_frames()
            images = database.read_all_images()
            found.append(
                (
                    [(rig.rig_id, rig.ref_sensor_id.id, rig.num_sensors()) for rig in rigs],
                    [(frame.frame_id, frame.rig_id, [data.id for data in frame.image_ids]) for frame in frames],
                    [(image.name, image.image_id, image.camera_id, image.frame_id) for image in images],
                )
            )
    assert found[0] == found[1]


def test_pairs_in_either_order_are_of_the_right_images(scene, tmp_path):
    """COLMAP keeps a pair under the lower id first."""
    swapped = [(other, one) for one, other in scene.pairs]
    names = scene.names[::-1]
    cameras = [(one(scene)[0][0], names)]
    write(scene, tmp_path / "database.db", swapped, cameras)
    with Project(tmp_path / "database.db") as project:
        assert project.names == names
        for name0, name1 in scene.pairs:
            found = project.matches(name0, name1)
            np.testing.assert_array_equal(
                np.sort(found, axis=0), np.sort(scene.stored[1].get(name0, name1).pairs(), axis=0)
            )


def test_pairs_without_matches_or_images_are_left_out(scene, tmp_path):
    matches = MatchStore(tmp_path / "matches.h5", SIGNATURE, "")
    none = np.full(len(scene.keypoints["000.png"]), -1, np.int32)
    matches.add({("000.png", "001.png"): PairMatches(indices=none, scores=np.zeros(len(none), np.float32))})
    pairs = [("000.png", "001.png"), ("000.png", "002.png"), ("000.png", "elsewhere.png")]
    written = write_database(tmp_path / "database.db", scene.stored[0], matches, pairs, one(scene))
    assert (written.pairs, written.matches) == (0, 0)


def test_a_database_that_is_there_is_added_to(scene, tmp_path):
    path = tmp_path / "database.db"
    first = [(one(scene)[0][0], scene.names[:3])]
    write(scene, path, scene.pairs[:1], first)
    written = write(scene, path, scene.pairs)
    assert written.pairs == 6
    with Project(path) as project:
        assert project.names == scene.names
        assert len(project.matched) == 6
        cameras = {project.camera(name).camera_id for name in scene.names[:3]}
        assert len(cameras) == 1
        assert project.camera(scene.names[3]).camera_id not in cameras


def test_other_keypoints_in_a_database_are_refused(scene, tmp_path):
    path = tmp_path / "database.db"
    write(scene, path)
    before = path.read_bytes()
    other = MappedScene(tmp_path / "other", views=4, seed=5)
    with pytest.raises(InputError, match=r"other keypoints of '000\.png'"):
        write_database(path, other.features(), other.matches(), other.pairs, one(scene))
    assert path.read_bytes() == before


@pytest.mark.parametrize("is_there", [True, False])
def test_the_log_of_a_process_that_was_killed_is_not_put_into_another_file(scene, tmp_path, is_there):
    """It was writing matches; the file is then added to, or is gone and written anew."""
    path = tmp_path / "database.db"
    write(scene, path, scene.pairs[:2])
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(one) for one in sys.path]!r}
from isinglass.sfm.colmap import Project, pycolmap_module
project = Project({str(path)!r}, in_place=True)
for _ in range(3):
    project.write_geometry("000.png", "001.png", pycolmap_module().TwoViewGeometry())
    project._database.delete_two_view_geometry(1, 2)
project.write_geometry("000.png", "001.png", pycolmap_module().TwoViewGeometry())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert (tmp_path / "database.db-wal").stat().st_size > 0
    if not is_there:
        path.unlink()
    write(scene, path)
    assert [file.name for file in tmp_path.iterdir()] == ["database.db"]
    with Project(path) as project:
        assert len(project.matched) == 6
        assert project.inliers == ({("000.png", "001.png"): 0} if is_there else {})


# ---- bad files


def test_files_that_are_no_database(tmp_path):
    (tmp_path / "text.db").write_text("no database at all" * 10)
    with pytest.raises(InputError, match="no database of COLMAP"):
        Project(tmp_path / "text.db")
    with pytest.raises(InputError, match="cannot be read"):
        Project(tmp_path / "absent.db")
    with pytest.raises(InputError, match="cannot be read"):
        Project(tmp_path)


def test_an_sqlite_file_of_another_program_is_not_touched(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table songs (title text)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="another program"):
        Project(path)
    assert path.read_bytes() == before


def set_version(path, version):
    with sqlite3.connect(path) as connection:
        connection.execute(f"pragma user_version={version}")
    connection.close()


def test_a_database_of_a_later_colmap_is_refused(scene, tmp_path):
    path = tmp_path / "database.db"
    write(scene, path)
    set_version(path, 9_010_000)
    with pytest.raises(InputError, match=r"COLMAP 9\.1\.0, later than"):
        Project(path)
    with pytest.raises(InputError, match=r"COLMAP 9\.1\.0, later than"):
        write(scene, path)


def test_a_database_of_an_earlier_colmap_is_read_and_stays_as_it_is(scene, tmp_path):
    """COLMAP 3.9 knew neither rigs nor frames."""
    path = tmp_path / "database.db"
    write(scene, path)
    with sqlite3.connect(path) as connection:
        for table in ("frame_data", "frames", "rig_sensors", "rigs"):
            connection.execute(f"drop table {table}")
    connection.close()
    set_version(path, 3900)
    before = path.read_bytes()
    with Project(path) as project:
        assert project.names == scene.names
        assert len(project.matched) == 6
    assert path.read_bytes() == before


def test_a_truncated_database(scene, tmp_path):
    path = tmp_path / "database.db"
    write(scene, path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(InputError, match="damaged"):
        Project(path)


@pytest.mark.parametrize("room", [40_000, 150_000])  # the tables do not fit; they do, but not all that goes into them
def test_a_full_disk_is_told_and_leaves_nothing(scene, tmp_path, room):
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(one) for one in sys.path]!r}
from isinglass.errors import WriteError
from isinglass.sfm.colmap import camera_of, write_database
from isinglass.sfm.store import FeatureStore, MatchStore
features = FeatureStore({str(scene.folder / "features.h5")!r})
matches = MatchStore({str(scene.folder / "matches.h5")!r})
cameras = [(camera_of("PINHOLE", {SIZE}, (9, 9, 9, 9)), list(features))]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    write_database({str(tmp_path / "database.db")!r}, features, matches, list(matches), cameras)
except WriteError as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "told:" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- cameras


def exif_photo(path, size=(64, 48), focal=24, make="Maker"):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if make:
        exif[0x10F], exif[0x110] = make, "One"
        exif.get_ifd(0x8769)[0xA405] = focal
    Image.new("RGB", size, (90, 90, 90)).save(path, exif=exif)


def groups(photos, names, **options):
    return [group for _, group in cameras_of(photos, names, CameraOptions(**options))]


def test_photos_share_cameras_as_they_are_told_to(tmp_path):
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]
    for name, focal, make in zip(names, (24, 24, 24, 50), ("Maker", "Maker", "Maker", "Maker"), strict=True):
        exif_photo(tmp_path / name, focal=focal, make=make)
    assert groups(tmp_path, names) == [["a/1.jpg", "a/2.jpg", "b/1.jpg"], ["b/2.jpg"]]
    assert groups(tmp_path, names, share="single") == [names]
    assert groups(tmp_path, names, share="folder") == [names[:2], names[2:]]
    assert groups(tmp_path, names, share="image") == [[name] for name in names]


def test_photos_without_exif_have_cameras_of_their_own(tmp_path):
    for name in ("1.png", "2.png"):
        Image.new("L", (64, 48)).save(tmp_path / name)
    assert groups(tmp_path, ["1.png", "2.png"]) == [["1.png"], ["2.png"]]


def test_one_camera_has_photos_of_one_size(tmp_path):
    exif_photo(tmp_path / "1.jpg")
    exif_photo(tmp_path / "2.jpg", size=(48, 64))
    with pytest.raises(InputError, match=r"48 x 64 px, '1\.jpg' 64 x 48"):
        groups(tmp_path, ["1.jpg", "2.jpg"], share="single")
    assert len(groups(tmp_path, ["1.jpg", "2.jpg"])) == 2


@pytest.mark.parametrize("suffix", ["jpg", "webp"])  # the second is a format that COLMAP cannot read
def test_focal_lengths_are_from_exif(tmp_path, suffix):
    exif_photo(tmp_path / f"1.{suffix}", size=(600, 400), focal=35)
    ((camera, _),) = cameras_of(tmp_path, [f"1.{suffix}"], CameraOptions())
    expected = 35 / np.hypot(36, 24) * np.hypot(600, 400)
    assert camera.params[0] == pytest.approx(expected, rel=1e-3)
    assert camera.has_prior_focal_length
    assert (camera.width, camera.height) == (600, 400)


def test_models_other_than_pinhole(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "1.png")
    for model in ("OPENCV_FISHEYE", "OPENCV", "SIMPLE_PINHOLE"):
        ((camera, _),) = cameras_of(tmp_path, ["1.png"], CameraOptions(model=model))
        assert camera.model_name == model
        assert camera.has_prior_focal_length == (model == "OPENCV_FISHEYE")  # COLMAP needs one
    known = CameraOptions(model="OPENCV_FISHEYE", params=(30, 31, 31.5, 23.5, 0.1, 0, 0, 0))
    ((camera, _),) = cameras_of(tmp_path, ["1.png"], known)
    assert camera.params.tolist() == [30, 31, 32, 24, 0.1, 0, 0, 0]
    assert not known.refined


def test_cameras_that_make_no_sense(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"expected one of .*OPENCV_FISHEYE"):
        groups(tmp_path, ["1.png"], model="TELESCOPE")
    with pytest.raises(InputError, match="3 camera parameters came; PINHOLE has 4"):
        groups(tmp_path, ["1.png"], model="PINHOLE", params=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="share is 'two'"):
        CameraOptions(share="two")
    (tmp_path / "2.png").write_text("no image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        groups(tmp_path, ["2.png"])


# ---- COLMAP's own matcher


def test_colmaps_own_matcher_on_the_same_features(tmp_path, motorcycle):
    """Mutual nearest RootSIFT neighbours with Lowe's test, by COLMAP and by us: the same pairs, but for rounding."""
    colmap = pycolmap_module()
    pipeline = Pipeline(extractor="rootsift", matcher="nearest", ratio=0.8, max_keypoints=400, resize=480)
    names = ["left.png", "right.png"]
    made = {name: pipeline.extract(image) for name, image in zip(names, motorcycle[:2], strict=True)}
    features = FeatureStore(tmp_path / "features.h5", pipeline.extractor.signature, "", half=False)
    features.add(made)
    (ours,) = pipeline.match_many([made[names[0]]], [made[names[1]]])
    matches = MatchStore(tmp_path / "matches.h5", pipeline.extractor.signature, "")
    size = tuple(made[names[0]].image_size[0].tolist())
    camera = camera_of("PINHOLE", size, (900, 900, size[0] / 2, size[1] / 2))
    write_database(tmp_path / "database.db", features, matches, [], [(camera, names)], descriptors=True)
    colmap.match_exhaustive(tmp_path / "database.db", device=colmap.Device.cpu)
    with Project(tmp_path / "database.db") as project:
        theirs = project.matches(*names)
        np.testing.assert_allclose(
            project.descriptors(names[0]), 512 * made[names[0]].descriptors[0].numpy(), atol=0.51
        )
    found, expected = ({tuple(pair) for pair in pairs.tolist()} for pairs in (ours.pairs(), theirs))
    assert len(expected) > 100
    assert len(found & expected) > 0.95 * len(found | expected)


def test_only_sift_descriptors_have_a_place(scene, tmp_path):
    with pytest.raises(InputError, match="no place for descriptors of known"):
        write(scene, tmp_path / "database.db", descriptors=True)
    assert not (tmp_path / "database.db").exists()


def test_features_without_keypoints(tmp_path, scene):
    empty = Features(
        keypoints=torch.zeros(1, 0, 2),
        descriptors=torch.zeros(1, 0, 4),
        scores=torch.zeros(1, 0),
        image_size=torch.tensor([SIZE]),
        signature=SIGNATURE,
    )
    features = FeatureStore(tmp_path / "features.h5", SIGNATURE, "")
    features.add({"000.png": empty})
    written = write_database(tmp_path / "d.db", features, scene.stored[1], [], [(one(scene)[0][0], ["000.png"])])
    assert written.images == 1
    with Project(tmp_path / "d.db") as project:
        assert project.keypoints("000.png").shape == (0, 2)


def test_writing_where_nothing_can_be_written(scene):
    with pytest.raises(WriteError):
        write(scene, "/proc/nowhere/database.db")
