"""From matches to models: what comes of it is what was true, the same each time, whatever stops it in between."""

import subprocess
import sys

import numpy as np
import pytest

from isinglass.errors import InputError, WriteError
from isinglass.sfm.colmap import Project, camera_of, pycolmap_module, quiet, seen_in, write_database
from isinglass.sfm.options import MAPPERS
from isinglass.sfm.reconstruct import _write, read_model, reconstruct, report_of
from isinglass.sfm.store import PairMatches
from isinglass.sfm.verification import verify
from mapped_scene import PARAMS, SIZE, MappedScene


def database_of(scene, pairs=None, known=True, folder=None):
    """Not verified yet."""
    path = (folder or scene.folder) / "database.db"
    camera = camera_of(scene.model, SIZE, PARAMS[scene.model])
    camera.has_prior_focal_length = known
    chosen = scene.pairs if pairs is None else pairs
    write_database(path, scene.features(), scene.matches(pairs=chosen), chosen, [(camera, scene.names)])
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = MappedScene(tmp_path_factory.mktemp("scene"))
    made.database = database_of(made)
    made.verified = verify(made.database)
    return made


def geometries(path):
    with Project(path) as project:
        return {pair: project.matches(*pair, verified=True).tolist() for pair in project.inliers}


# ---- verification


def test_right_matches_are_told_from_wrong_ones(scene):
    right = wrong = 0
    for (name0, name1), found in geometries(scene.database).items():
        same = [scene.seen[name0][i] == scene.seen[name1][j] for i, j in found]
        right, wrong = right + sum(same), wrong + len(same) - sum(same)
    assert scene.verified.pairs == scene.verified.verified == len(scene.pairs)
    assert scene.verified.inliers == right + wrong
    assert wrong < 0.02 * right


def test_verification_goes_on_where_it_was_stopped(scene, tmp_path):
    """Pairs one by one, with a stop in the middle, as all at once."""
    path = database_of(scene, folder=tmp_path)
    told = []

    def stop(done, of):
        told.append(done)
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(path, tell=stop)
    assert len(geometries(path)) == 8
    again = []
    verify(path, tell=lambda done, of: again.append(done))
    assert (told, again) == (list(range(9)), list(range(8, 22)))
    assert geometries(path) == geometries(scene.database)


def test_geometries_are_those_of_colmaps_own_verification(scene, tmp_path):
    colmap = pycolmap_module()
    options = colmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.ransac.max_error, options.min_num_inliers = 0, 2.0, 40
    path = database_of(scene, folder=tmp_path)
    with quiet():
        colmap.geometric_verification(path, two_view_geometry_options=options)
    assert geometries(path) == geometries(scene.database)
    with colmap.Database.open(path) as theirs, colmap.Database.open(scene.database) as ours:
        for one, other in zip(theirs.read_two_view_geometries()[1], ours.read_two_view_geometries()[1], strict=True):
            assert one.config == other.config
            np.testing.assert_array_equal(one.F, other.F)


FULL = """
import resource, signal, sys
sys.path[:0] = {path!r}
from isinglass.errors import WriteError
from isinglass.sfm.reconstruct import reconstruct
from isinglass.sfm.verification import verify
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    {code}
except WriteError as error:
    print("told:", error)
"""


def with_room(room, code):
    text = FULL.format(path=sys.path, room=room, code=code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)


def test_a_full_disk_keeps_what_was_verified(scene, tmp_path):
    path = database_of(scene, folder=tmp_path)
    done = with_room(34_000, f"verify({str(path)!r})")  # the log of changes has no room for all
    assert "told: " in done.stdout, done.stderr
    assert len(geometries(path)) < 21
    verify(path)
    assert geometries(path) == geometries(scene.database)


@pytest.mark.parametrize("file", ["images.bin", "points3D.bin"])
def test_a_model_that_is_cut_short_is_noticed(scene, tmp_path, file):
    """COLMAP itself says nothing where a file is cut short."""
    (whole,) = reconstruct(scene.database, scene.photos, tmp_path / "whole")
    model = read_model(whole)
    (tmp_path / "cut").mkdir()
    write = type(model).write

    class Cut:
        """A model on a disk with room for all but the last bytes."""

        def write(self, place):
            write(model, place)
            with (place / file).open("r+b") as opened:
                opened.truncate((place / file).stat().st_size - 9)

        def __getattr__(self, name):
            return getattr(model, name)

    with pytest.raises(OSError, match="the disk is full"):
        _write([Cut()], tmp_path / "cut/model")


def test_what_cannot_be_written_leaves_the_model_that_was_there(scene, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/cameras.bin").write_text("of an earlier run")
    monkeypatch.setattr("isinglass.sfm.reconstruct._is_whole", lambda *written: False)
    with pytest.raises(WriteError, match="the disk is full"):
        reconstruct(scene.database, scene.photos, tmp_path / "model")
    assert (tmp_path / "model/cameras.bin").read_text() == "of an earlier run"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_pairs_that_share_nothing_are_not_verified(tmp_path):
    scene = MappedScene(tmp_path, views=2)
    rng = np.random.default_rng(0)
    count = len(scene.seen["000.png"])
    indices = rng.permutation(len(scene.seen["001.png"]))[:60].astype(np.int32)
    indices = np.concatenate([indices, np.full(count - len(indices), -1, np.int32)])
    scene.matches_of = lambda *pair: PairMatches(indices=indices, scores=np.ones(count, np.float32))
    found = verify(database_of(scene))
    assert (found.pairs, found.verified, found.inliers) == (1, 0, 0)
    with Project(tmp_path / "database.db") as project:
        assert project.inliers == {("000.png", "001.png"): 0}
    assert verify(tmp_path / "database.db") == found
    assert reconstruct(tmp_path / "database.db", scene.photos, tmp_path / "model") == []
    assert list((tmp_path / "model").iterdir()) == []


def test_limits_are_for_photos_of_a_size(tmp_path):
    """COLMAP's for 1280 px and more, half of them for 640 and less; matches 3 px off agree only with the first."""
    scene = MappedScene(tmp_path, views=2, noise_px=1.2)
    found = [verify(database_of(scene, folder=tmp_path / str(limit)), max_error_px=limit) for limit in (4.0, None, 2.0)]
    assert found[0].inliers > found[1].inliers == found[2].inliers
    assert verify(database_of(scene, folder=tmp_path / "most"), least_inliers=1000).verified == 0


def test_names_with_spaces(tmp_path):
    scene = MappedScene(tmp_path, views=3)
    scene.names = [f"view {name}" for name in scene.names]
    for kept in ("seen", "keypoints"):
        setattr(scene, kept, {f"view {name}": value for name, value in getattr(scene, kept).items()})
    scene.pairs = [(f"view {one}", f"view {other}") for one, other in scene.pairs]
    assert verify(database_of(scene)).verified == 3


# ---- models


@pytest.mark.parametrize("mapper", MAPPERS)
def test_cameras_are_where_they_were(scene, tmp_path, mapper):
    told = []
    places = reconstruct(
        scene.database, scene.photos, tmp_path / "m", mapper=mapper, tell=lambda done, of: told.append((done, of))
    )
    assert places == [tmp_path / "m"]
    report = report_of(places[0])
    assert report.registered == scene.names
    assert report.points > 200
    assert report.track_length > 3
    assert report.reprojection_error_px < 0.5
    assert max(scene.centre_errors(read_model(places[0])).values()) < 0.02
    assert {of for _, of in told} <= {7}


def test_a_photo_of_few_points_is_judged(tmp_path):
    """The global mapper places one whose matches agree with nothing; the hybrid one does not."""
    scene = MappedScene(tmp_path)
    stranger, rng = scene.names[-1], np.random.default_rng(0)
    right = scene.matches_of

    def matches_of(*pair):
        found = right(*pair)
        if stranger not in pair:
            return found
        (good,) = np.nonzero(found.indices >= 0)
        indices = np.full_like(found.indices, -1)
        plane = good[np.argsort(scene.keypoints[pair[0]][good, 0])][:45]  # as many as a pair needs, of one side
        indices[plane] = rng.permutation(found.indices[plane])
        return PairMatches(indices=indices, scores=found.scores)

    scene.matches_of = matches_of
    verify(database_of(scene), least_inliers=8)
    placed = {}
    for mapper in MAPPERS:
        (place,) = reconstruct(tmp_path / "database.db", scene.photos, tmp_path / mapper, mapper=mapper)
        placed[mapper] = report_of(place).registered
    assert placed == {"hybrid": scene.names[:-1], "incremental": scene.names[:-1], "global": scene.names}


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV_FISHEYE"])
def test_other_camera_models(tmp_path, model):
    scene = MappedScene(tmp_path, views=5, model=model)
    verify(database_of(scene))
    (place,) = reconstruct(tmp_path / "database.db", scene.photos, tmp_path / "model", refine=False)
    found = read_model(place)
    assert max(scene.centre_errors(found).values()) < 0.02
    (camera,) = found.cameras.values()
    assert camera.model_name == model
    np.testing.assert_allclose(camera.params, scene.camera.params)


def test_a_focal_length_that_is_not_known_is_found(tmp_path):
    scene = MappedScene(tmp_path)
    scene_params, PARAMS["SIMPLE_RADIAL"] = PARAMS["SIMPLE_RADIAL"], (384.0, 159.5, 119.5, 0.0)
    try:
        verify(database_of(scene, known=False))
    finally:
        PARAMS["SIMPLE_RADIAL"] = scene_params
    (place,) = reconstruct(tmp_path / "database.db", scene.photos, tmp_path / "model")
    (camera,) = read_model(place).cameras.values()
    assert camera.params[0] == pytest.approx(250, rel=0.03)


def test_one_database_gives_one_model(scene, tmp_path):
    for name in ("a", "b"):
        reconstruct(scene.database, scene.photos, tmp_path / name, threads=1)
    for file in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_points_of_an_image_are_its_keypoints(scene, tmp_path):
    """What localisation counts on: the same order, half a pixel away."""
    (place,) = reconstruct(scene.database, scene.photos, tmp_path / "model")
    for image in read_model(place).images.values():
        keypoints, known = seen_in(image)
        np.testing.assert_allclose(keypoints, scene.keypoints[image.name], atol=1e-4)
        assert known.sum() == image.num_points3D


def test_points_have_the_colours_of_photos(scene, tmp_path):
    (place,) = reconstruct(scene.database, scene.photos, tmp_path / "model")
    colours = np.array([point.color for point in read_model(place).points3D.values()])
    assert (colours >= 60).all()
    assert (colours <= 66).all()
    assert (colours == colours[:, :1]).all()


def test_two_scenes_give_two_models(tmp_path):
    """Pairs only within the first four and within the last five."""
    scene = MappedScene(tmp_path, views=9)
    pairs = [pair for pair in scene.pairs if (pair[0] < "004.png") == (pair[1] < "004.png")]
    verify(database_of(scene, pairs))
    first, second = reconstruct(tmp_path / "database.db", scene.photos, tmp_path / "model")
    assert (first, second) == (tmp_path / "model", tmp_path / "model/1")
    assert report_of(first).registered == scene.names[4:]
    assert report_of(second).registered == scene.names[:4]


def test_models_are_replaced_whole(scene, tmp_path):
    (tmp_path / "model/1").mkdir(parents=True)
    (tmp_path / "model/1/cameras.bin").write_text("of an earlier run")
    (tmp_path / ".model.making").mkdir()
    reconstruct(scene.database, scene.photos, tmp_path / "model")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]
    assert not (tmp_path / "model/1").exists()


def test_a_mapper_that_is_stopped_leaves_what_was_there(scene, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/cameras.bin").write_text("of an earlier run")

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(scene.database, scene.photos, tmp_path / "model", tell=stop)
    assert (tmp_path / "model/cameras.bin").read_text() == "of an earlier run"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_nothing_of_colmap_is_on_stderr(scene, tmp_path, capfd):
    verify(database_of(scene, folder=tmp_path))
    reconstruct(scene.database, scene.photos, tmp_path / "model")
    assert capfd.readouterr().err == ""


def test_what_cannot_be_used(scene, tmp_path):
    with pytest.raises(InputError, match="the mapper is 'magic'"):
        reconstruct(scene.database, scene.photos, tmp_path / "model", mapper="magic")
    with pytest.raises(InputError, match="there is no folder"):
        reconstruct(scene.database, tmp_path / "absent", tmp_path / "model")
    with pytest.raises(InputError, match="no model of COLMAP"):
        read_model(tmp_path)
