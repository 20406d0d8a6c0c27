"""Maps for other programs, and projects of COLMAP read back: what goes out comes in."""

import json
import shutil
import sqlite3
from contextlib import closing

import h5py
import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.colmap import Project, pycolmap_module, quiet
from isinglass.sfm.exchange import export_colmap, export_hloc, export_pairs, import_project
from isinglass.sfm.pairs import read_pairs
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.store import FeatureStore, MatchStore
from mapped_scene import mapped


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A map without its page: stores, database, model."""
    return mapped(tmp_path_factory.mktemp("map"), views=4)


# ---- out


def test_a_project_of_colmap(scene, tmp_path):
    done = export_colmap(scene.folder, tmp_path / "out")
    assert (done.images, done.pairs) == (4, 6)
    assert (tmp_path / "out/image-list.txt").read_text().split() == scene.names
    assert read_model(tmp_path / "out/sparse/0").num_reg_images() == 4
    with Project(tmp_path / "out/database.db") as ours, Project(scene.folder / "database.db") as map_:
        assert ours.inliers == map_.inliers
        assert ours.matched == map_.matched


def test_all_models_go_out(scene, tmp_path):
    source = tmp_path / "map"
    source.mkdir()
    scene.features(source / "features.h5")
    scene.matches(source / "matches.h5")
    for place in ("model", "model/1", "model/10", "model/2"):
        (source / place).mkdir()
        for file in (scene.folder / "model").glob("*.bin"):
            shutil.copy(file, source / place)
        (source / place / "mark.bin").write_text(place)
    export_colmap(source, tmp_path / "out", photos=scene.photos, cameras=CameraOptions(share="single"))
    told = [(tmp_path / f"out/sparse/{i}/mark.bin").read_text() for i in range(4)]
    assert told == ["model", "model/1", "model/2", "model/10"]


def test_stores_without_a_map_need_photos(scene, tmp_path):
    source = tmp_path / "matched"
    source.mkdir()
    scene.features(source / "features.h5")
    scene.matches(source / "matches.h5")
    with pytest.raises(InputError, match="give the folder of the photos"):
        export_colmap(source, tmp_path / "out")
    done = export_colmap(source, tmp_path / "out", photos=scene.photos)
    assert done.pairs == 6
    with Project(tmp_path / "out/database.db") as project:
        assert project.inliers == {}
        assert project.camera("000.png").params[0] == pytest.approx(1.2 * 320)


def test_files_that_hloc_reads(scene, tmp_path):
    """As hloc reads them: `keypoints` and `matches0` by the names of images, pairs from a list."""
    done = export_hloc(scene.folder, tmp_path / "out")
    assert (done.images, done.pairs) == (4, 6)
    pairs = [line.split() for line in (tmp_path / "out/pairs.txt").read_text().splitlines()]
    assert [tuple(pair) for pair in pairs] == scene.pairs
    with h5py.File(tmp_path / "out/features.h5") as features, h5py.File(tmp_path / "out/matches.h5") as matches:
        for name0, name1 in pairs:
            np.testing.assert_allclose(features[name0]["keypoints"].__array__(), scene.keypoints[name0])
            found = matches[name0][name1]["matches0"].__array__()
            np.testing.assert_array_equal(found, scene.matches_of(name0, name1).indices)
            assert matches[name0][name1]["matching_scores0"].shape == found.shape
    assert (tmp_path / "out/features.h5").is_file()


def test_parts_that_were_not_merged_go_out_too(scene, tmp_path):
    source = tmp_path / "matched"
    source.mkdir()
    scene.features(source / "features.h5")
    store = scene.matches(source / "matches.h5", scene.pairs[:2])
    store.add({scene.pairs[2]: scene.matches_of(*scene.pairs[2])})
    store.close()
    assert export_hloc(source, tmp_path / "out").pairs == 3


def test_pairs_go_out_as_a_list(scene, tmp_path):
    assert export_pairs(scene.folder, tmp_path / "verified.txt") == 6
    assert export_pairs(scene.folder / "database.db", tmp_path / "matched.txt", verified=False) == 6
    assert read_pairs(tmp_path / "verified.txt", scene.names) == scene.pairs


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"there is no 'features\.h5'"):
        export_colmap(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"there is no 'features\.h5'"):
        export_hloc(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        export_hloc(tmp_path / "absent.db", tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        export_pairs(tmp_path, tmp_path / "pairs.txt")


# ---- out again


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Maps of five views without the second one, whose number all later ones have now, and without the last two."""
    made = {}
    for removed in (("001.png",), ("003.png", "004.png")):
        scene = mapped(tmp_path_factory.mktemp("grown"), views=5, without=removed)
        made[len(scene.names)] = scene
    return made


def assert_is_whole(folder, names, models=1):
    """Database, models and list agree, and COLMAP's own triangulator takes them together."""
    assert (folder / "image-list.txt").read_text().split() == names
    with Project(folder / "database.db") as project:
        assert project.names == names
        numbers = {name: project.image_id(name) for name in names}
    assert sorted(place.name for place in (folder / "sparse").iterdir()) == [str(i) for i in range(models)]
    for place in (folder / "sparse").iterdir():
        model = read_model(place)
        assert {image.name: number for number, image in model.images.items()}.items() <= numbers.items()
        assert model.num_reg_images() >= 3
    colmap = pycolmap_module()
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    with quiet():
        found = colmap.triangulate_points(read_model(copy / "sparse/0"), copy / "database.db", copy, copy)
    assert found.num_points3D() > 50


def test_a_project_written_twice_is_that_of_now(grown, tmp_path):
    out, user = tmp_path / "out", tmp_path / "out/sparse/notes.txt"
    for count in (4, 3, 4):
        export_colmap(grown[count].folder, out)
        assert_is_whole(out, grown[count].names)
        (out / "dense").mkdir(exist_ok=True)  # what others put there stays
        (out / "dense/notes.txt").write_text("mine")
    assert (out / "dense/notes.txt").read_text() == "mine"
    assert not user.exists()
    assert not list(out.glob(".isinglass-export.*.tmp"))


def test_models_that_are_no_more_go_away(grown, tmp_path):
    source, out = tmp_path / "map", tmp_path / "out"
    shutil.copytree(grown[4].folder, source)
    for file in list((source / "model").glob("*.bin")):
        (source / "model/1").mkdir(exist_ok=True)
        shutil.copy(file, source / "model/1")
    export_colmap(source, out)
    assert_is_whole(out, grown[4].names, models=2)
    shutil.rmtree(source / "model/1")
    export_colmap(source, out)
    assert_is_whole(out, grown[4].names)


def test_what_is_not_ours_or_was_changed_is_never_lost(grown, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "database.db").write_bytes(b"of another project")
    with pytest.raises(
        InputError, match=r"database\.db' is there and is not of an earlier export.*choose another folder"
    ):
        export_colmap(grown[4].folder, out)
    assert [(file.name, file.read_bytes()) for file in out.iterdir()] == [("database.db", b"of another project")]
    (out / "database.db").unlink()
    export_colmap(grown[4].folder, out)
    (out / "sparse/0/points3D.bin").write_bytes(b"refined")
    with pytest.raises(InputError, match=r"points3D\.bin' is there and was changed since it was written"):
        export_colmap(grown[3].folder, out)
    assert (out / "sparse/0/points3D.bin").read_bytes() == b"refined"
    (out / "sparse/0/points3D.bin").unlink()
    export_colmap(grown[3].folder, out)
    assert_is_whole(out, grown[3].names)


def test_a_stale_file_that_was_changed_is_kept_and_named_until_it_is_gone(grown, tmp_path, isinglass):
    source, out = tmp_path / "map", tmp_path / "out"
    shutil.copytree(grown[4].folder, source)
    shutil.copytree(grown[4].folder / "model", source / "model/1")
    assert export_colmap(source, out).kept == []
    changed = out / "sparse/1/points3D.bin"
    changed.write_bytes(b"refined by hand")
    (out / "mine.txt").write_text("not of any export")
    shutil.rmtree(source / "model/1")
    for _ in range(2):  # the second export knows of it, too
        code, told, err = isinglass("export", "colmap", source, "-o", out, "--json")
        assert (code, json.loads(told)["kept"]) == (0, ["sparse/1/points3D.bin"])
        assert "sparse/1/points3D.bin in" in err and "Move it to another folder, or remove it" in err
        assert [file.name for file in changed.parent.iterdir()] == ["points3D.bin"]
        assert changed.read_bytes() == b"refined by hand"
    changed.unlink()
    changed.parent.rmdir()
    code, told, err = isinglass("export", "colmap", source, "-o", out, "--json")
    assert (code, json.loads(told)["kept"], "remove" in err) == (0, [], False)
    assert_is_whole(out, grown[4].names)
    assert (out / "mine.txt").read_text() == "not of any export"


def test_a_stale_file_that_is_as_it_was_again_goes(grown, tmp_path):
    source, out = tmp_path / "map", tmp_path / "out"
    shutil.copytree(grown[4].folder, source)
    shutil.copytree(grown[4].folder / "model", source / "model/1")
    export_colmap(source, out)
    before = (out / "sparse/1/points3D.bin").read_bytes()
    (out / "sparse/1/points3D.bin").write_bytes(b"changed for a while")
    shutil.rmtree(source / "model/1")
    assert export_colmap(source, out).kept == ["sparse/1/points3D.bin"]
    (out / "sparse/1/points3D.bin").write_bytes(before)
    assert export_colmap(source, out).kept == []
    assert_is_whole(out, grown[4].names)


def test_a_database_that_was_opened_is_not_changed_but_one_with_other_rows_is(grown, tmp_path):
    out = tmp_path / "out"
    export_colmap(grown[4].folder, out)
    with quiet():
        pycolmap_module().Database.open(out / "database.db").close()
    export_colmap(grown[3].folder, out)
    assert_is_whole(out, grown[3].names)
    with closing(sqlite3.connect(out / "database.db")) as database:
        database.execute("UPDATE images SET name = 'mine.png' WHERE image_id = 1")
        database.commit()
    with pytest.raises(InputError, match=r"database\.db' is there and was changed"):
        export_colmap(grown[4].folder, out)


def test_a_model_of_another_database_is_refused(grown, tmp_path):
    source = tmp_path / "map"
    shutil.copytree(grown[4].folder, source)
    shutil.copy(grown[3].folder / "database.db", source / "database.db")
    with pytest.raises(InputError, match=r"other images, or other numbers of them, than the database"):
        export_colmap(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_for_hloc_are_those_of_now(grown, tmp_path):
    for count in (4, 3):
        names = grown[count].names
        done = export_hloc(grown[count].folder, tmp_path / "out")
        assert (done.images, done.pairs) == (count, count * (count - 1) // 2)
        with FeatureStore(tmp_path / "out/features.h5") as features:
            assert list(features) == names
            assert np.array_equal(features.keypoints(names[2]), grown[count].keypoints[names[2]])
        pairs = {tuple(line.split()) for line in (tmp_path / "out/pairs.txt").read_text().splitlines()}
        assert pairs == set(MatchStore(tmp_path / "out/matches.h5")) == set(grown[count].pairs)
    shown = sorted(file.name for file in (tmp_path / "out").iterdir() if not file.name.startswith("."))
    assert shown == ["features.h5", "matches.h5", "pairs.txt"]


# ---- in


@pytest.fixture(scope="module")
def project(tmp_path_factory, motorcycle):
    """What COLMAP itself makes of a real pair: SIFT of its own, matched and verified by it; and the photos."""
    from PIL import Image

    colmap = pycolmap_module()
    folder = tmp_path_factory.mktemp("project")
    (folder / "photos").mkdir()
    for name, image in zip(("left.png", "right.png"), motorcycle[:2], strict=True):
        pixels = (255 * image).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((494, 333)).save(folder / "photos" / name)
    options = colmap.FeatureExtractionOptions()
    options.sift.max_num_features, options.sift.first_octave = 600, 0
    database = folder / "database.db"
    with quiet():
        colmap.Database.open(database).close()
        colmap.extract_features(database, folder / "photos", extraction_options=options, device=colmap.Device.cpu)
        colmap.match_exhaustive(database, device=colmap.Device.cpu)
    return folder


def test_a_project_of_colmap_becomes_stores(project, tmp_path):
    before = (project / "database.db").read_bytes()
    done = import_project(project / "database.db", tmp_path / "features.h5", tmp_path / "matches.h5")
    assert (done.images, done.pairs) == (2, 1)
    features, matches = FeatureStore(tmp_path / "features.h5"), MatchStore(tmp_path / "matches.h5")
    with Project(project / "database.db") as theirs:
        for name in theirs.names:
            np.testing.assert_array_equal(features.keypoints(name), theirs.keypoints(name))
            assert features.get(name).image_size.tolist() == [[494, 333]]
        found = {tuple(pair) for pair in matches.get("left.png", "right.png").pairs().tolist()}
        assert found == {tuple(pair) for pair in theirs.matches("left.png", "right.png").tolist()}
        verified = import_project(project / "database.db", tmp_path / "f.h5", tmp_path / "verified.h5", verified=True)
        assert verified.pairs == 1
        inliers = MatchStore(tmp_path / "verified.h5").get("left.png", "right.png").pairs().tolist()
        assert len(inliers) == theirs.inliers["left.png", "right.png"]
        assert {tuple(pair) for pair in inliers} <= found
    assert (project / "database.db").read_bytes() == before


def test_sift_of_colmap_is_as_ours(project, tmp_path):
    """Where both find a keypoint, it has about the same scale, orientation and descriptor."""
    import_project(project / "database.db", tmp_path / "features.h5", tmp_path / "matches.h5")
    theirs = FeatureStore(tmp_path / "features.h5").get("left.png")
    pipeline = Pipeline(extractor="rootsift", matcher="nearest", resize=None, max_keypoints=2000, min_distance=0.0)
    ours = pipeline.extract(project / "photos/left.png")
    distance, nearest = torch.cdist(theirs.keypoints[0], ours.keypoints[0]).min(dim=1)
    both = torch.nonzero(distance < 0.3)[:, 0]
    assert len(both) > 100
    assert float((theirs.keypoints[0, both] - ours.keypoints[0, nearest[both]]).median()) == pytest.approx(0, abs=0.1)
    assert theirs.orientations is not None and ours.orientations is not None
    turn = torch.remainder(theirs.orientations[0, both] - ours.orientations[0, nearest[both]] + torch.pi, 2 * torch.pi)
    assert float(((turn - torch.pi).abs() < 0.15).float().mean()) > 0.6  # others have two orientations
    assert theirs.scales is not None and ours.scales is not None
    assert float((theirs.scales[0, both] / ours.scales[0, nearest[both]]).median()) == pytest.approx(1, abs=0.15)
    alike = (theirs.descriptors[0, both] * ours.descriptors[0, nearest[both]]).sum(dim=1)
    assert float(alike.median()) > 0.9


def test_matchers_take_sift_of_colmap(project, tmp_path):
    import_project(project / "database.db", tmp_path / "features.h5", tmp_path / "matches.h5")
    features = FeatureStore(tmp_path / "features.h5")
    views = [features.get(name) for name in features]
    pipeline = Pipeline(extractor="rootsift", matcher="lightglue-sift-small", device="cpu")
    (found,) = pipeline.match_many(views[:1], views[1:])
    assert len(found.pairs()) > 100


def test_features_without_descriptors(scene, tmp_path):
    done = import_project(scene.folder / "database.db", tmp_path / "features.h5", tmp_path / "matches.h5")
    assert (done.images, done.pairs) == (4, 6)
    features, matches = FeatureStore(tmp_path / "features.h5"), MatchStore(tmp_path / "matches.h5")
    assert features.signature.extractor == "colmap"
    assert features.get("000.png").descriptors.shape[2] == 0
    np.testing.assert_allclose(features.keypoints("000.png"), scene.keypoints["000.png"], atol=1e-4)
    np.testing.assert_array_equal(
        matches.get("000.png", "001.png").indices, scene.matches_of("000.png", "001.png").indices
    )


def test_hloc_files_of_a_database(scene, tmp_path):
    assert export_hloc(scene.folder / "database.db", tmp_path / "out").pairs == 6
    assert len((tmp_path / "out/pairs.txt").read_text().splitlines()) == 6
