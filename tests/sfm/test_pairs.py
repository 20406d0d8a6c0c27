"""Pairs: against COLMAP's own generators, against plain loops, and lists of names of any kind."""

from __future__ import annotations

import itertools

import numpy as np
import pycolmap
import pytest

from isinglass.errors import InputError, WriteError
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.sfm.pairs import (
    covisible,
    exhaustive,
    first_pass,
    in_order,
    in_sequence,
    promising,
    read_pairs,
    sequential,
    spatial,
    write_pairs,
)
from ring_of_images import NAMES, overlapping, steps_between, write_ring

MATCHER = Nearest(NearestConfig(distance=0.6))


def test_exhaustive_is_every_pair_once_in_the_order_given():
    assert exhaustive(["b", "a", "c"]) == [("b", "a"), ("b", "c"), ("a", "c")]
    assert exhaustive(["a"]) == exhaustive([]) == []
    with pytest.raises(InputError, match="'a' comes more than once"):
        exhaustive(["a", "b", "a"])


def test_in_order_drops_repeats_and_images_with_themselves():
    assert in_order([("c", "a"), ("a", "c"), ("b", "b"), ("b", "a")], ["c", "b", "a"]) == [("c", "a"), ("b", "a")]
    with pytest.raises(InputError, match="'d'"):
        in_order([("a", "d")], ["a", "b"])


# --- sequences


@pytest.mark.parametrize("quadratic", [True, False])
@pytest.mark.parametrize(("images", "overlap"), [(40, 5), (40, 1), (7, 10), (2, 3), (1, 3)])
def test_sequential_is_colmaps(tmp_path, images, overlap, quadratic):
    names = [f"{i:03}.jpg" for i in range(images)]
    database = pycolmap.Database.open(tmp_path / "database.db")
    camera = database.write_camera(pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 100.0, 100, 100))
    name_of = {database.write_image(pycolmap.Image(name=name, camera_id=camera)): name for name in names}
    options = pycolmap.SequentialPairingOptions()
    options.overlap, options.quadratic_overlap, options.expand_rig_images = overlap, quadratic, False
    theirs = pycolmap.SequentialPairGenerator(options, database).all_pairs()
    assert sequential(names, overlap, quadratic=quadratic) == sorted((name_of[i], name_of[j]) for i, j in theirs)


def test_loops_are_added_to_a_sequence():
    names = [f"{i}" for i in range(9)]
    plain = sequential(names, 2, quadratic=False)
    looped = sequential(names, 2, quadratic=False, loops=[("8", "0"), ("1", "0"), ("7", "1")])
    assert set(looped) - set(plain) == {("0", "8"), ("1", "7")}
    assert looped == sorted(looped)
    with pytest.raises(InputError, match="'x'"):
        sequential(names, loops=[("0", "x")])
    with pytest.raises(InputError, match="overlap is 0"):
        sequential(names, 0)


def test_numbers_in_names_count_by_their_value():
    assert in_sequence(["f10.jpg", "f9.jpg", "b/f1.jpg", "a/f02.jpg", "a/f1.jpg"]) == [
        "a/f1.jpg",
        "a/f02.jpg",
        "b/f1.jpg",
        "f9.jpg",
        "f10.jpg",
    ]
    assert in_sequence(["x", "10", "9x", ""]) == ["", "9x", "10", "x"]


# --- in space


@pytest.mark.parametrize("altitude", [True, False])
def test_spatial_is_what_a_plain_loop_finds(altitude, monkeypatch):
    monkeypatch.setattr("isinglass.sfm.pairs._DISTANCES", 300)  # in several blocks
    rng = np.random.default_rng(0)
    places = {f"{i}": rng.uniform(0, 100, 3) for i in range(40)}
    expected = set()
    for one, other in itertools.permutations(places, 2):

        def distance(a, b):
            return np.linalg.norm((places[a] - places[b])[: 3 if altitude else 2])

        nearer = sum(distance(one, third) < distance(one, other) for third in places if third != one)
        if nearer < 5 and distance(one, other) <= 30:
            expected.add(tuple(sorted((one, other), key=list(places).index)))
    found = spatial(places, max_neighbours=5, max_distance_m=30, altitude=altitude)
    assert set(found) == expected and len(found) == len(expected) > 40


def test_spatial_of_few_and_of_bad_positions():
    assert spatial({}) == spatial({"a": [0, 0, 0]}) == []
    assert spatial({"a": [0, 0, 0], "b": [0, 0, 0], "c": [0, 100.1, 0]}) == [("a", "b")]
    with pytest.raises(InputError, match="'b'"):
        spatial({"a": [0, 0, 0], "b": [0, np.nan, 0]})
    with pytest.raises(InputError, match="0 neighbours"):
        spatial({}, max_neighbours=0)


# --- from a model


@pytest.fixture(scope="module")
def model():
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 12, 60
    options.match_config = pycolmap.SyntheticDatasetMatchConfig.SPARSE
    pycolmap.set_random_seed(0)
    made = pycolmap.synthesize_dataset(options)
    for point_id in list(made.points3D)[20:]:  # each point is seen by few
        seen = [(element.image_id, element.point2D_idx) for element in made.points3D[point_id].track.elements]
        for image_id, place in sorted(seen)[3 + point_id % 5 :]:
            made.delete_observation(image_id, place)
    return made


def test_covisible_is_what_a_plain_loop_finds(model, tmp_path):
    seen = {image.name: {p.point3D_id for p in image.points2D if p.has_point3D()} for image in model.images.values()}
    names = sorted(seen)
    for neighbours, common in ((3, 15), (20, 25), (1, 1)):
        expected = set()
        for name in names:
            counts = [(-len(seen[name] & seen[other]), other) for other in names if other != name]
            enough = [other for count, other in sorted(counts) if -count >= common][:neighbours]
            expected |= {tuple(sorted((name, other))) for other in enough}
        assert covisible(model, neighbours=neighbours, common_points=common) == sorted(expected) != []
    assert covisible(model, common_points=1000) == []
    model.write(tmp_path)
    assert covisible(tmp_path, neighbours=3) == covisible(model, neighbours=3)


def test_a_folder_without_a_model_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="model of COLMAP"):
            covisible(folder)
    for name in ("cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"):
        (tmp_path / name).write_bytes(b"\x05\0\0")
    with pytest.raises(InputError, match="model of COLMAP"):
        covisible(tmp_path)


# --- lists


def test_lists_keep_names_of_any_kind(tmp_path):
    names = ["a.jpg", "left/a b.jpg", "left/a b.jpg c.jpg", "c.jpg", "ä ö.jpg", "#1.jpg"]
    pairs = [("a.jpg", "c.jpg"), ("left/a b.jpg", "c.jpg"), ("a.jpg", "#1.jpg"), ("ä ö.jpg", "left/a b.jpg c.jpg")]
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert read_pairs(tmp_path / "pairs.txt", names) == in_order(pairs, names)
    assert set(map(frozenset, read_pairs(tmp_path / "pairs.txt"))) == set(map(frozenset, pairs))
    assert (tmp_path / "pairs.txt").read_text("utf-8").splitlines()[0] == "a.jpg c.jpg"  # as COLMAP and hloc have it


def test_lists_of_others_are_read(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# two names\n\nb.jpg a.jpg 0 1\nmy photo.jpg a.jpg\nb.jpg  a.jpg\n")
    assert read_pairs(file, ["my photo.jpg", "b.jpg", "a.jpg"]) == [("my photo.jpg", "a.jpg"), ("b.jpg", "a.jpg")]
    file.write_text("b a\n a c")
    assert read_pairs(file) == [("a", "b"), ("a", "c")]
    file.write_text("")
    assert read_pairs(file) == []


def test_bad_lists_are_told_by_line(tmp_path):
    file = tmp_path / "list.txt"
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(file)
    file.write_text("a b\na\n")
    with pytest.raises(InputError, match=r"line 2 .*'a'; expected the names of two images"):
        read_pairs(file)
    file.write_text("a b\na x\n")
    with pytest.raises(InputError, match=r"line 2 .*two names of the 2 images"):
        read_pairs(file, ["a", "b"])
    file.write_bytes(b"\xff\xfe\x00 a")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(file)


def test_what_a_list_cannot_hold_is_not_written(tmp_path):
    file = tmp_path / "list.txt"
    write_pairs(file, [("a", "b")])
    for pair in (("a\tb", "c"), ("a\nb", "c"), ("a", "\udce9"), ("", "b")):
        with pytest.raises(InputError, match="cannot be a line"):
            write_pairs(file, [pair])
    with pytest.raises(WriteError):
        write_pairs(file / "below a file", [("a", "b")])
    assert file.read_text() == "a b\n"


# --- the first pass


def test_the_first_pass_drops_the_hopeless_and_keeps_the_order(tmp_path):
    store = write_ring(tmp_path / "features.h5")
    pairs = exhaustive(NAMES[:12])[::-1]
    overlap = overlapping() & set(pairs)
    told = []
    kept = promising(store, pairs, MATCHER, keypoints=40, least=4, tell=lambda done, of: told.append((done, of)))
    assert kept == [pair for pair in pairs if pair in set(kept)]
    assert {pair for pair in overlap if steps_between(*pair) <= 2} <= set(kept)
    assert len(set(kept) - overlap) < 0.1 * len(pairs)
    assert told[-1] == (len(pairs), len(pairs))


def test_the_first_pass_sees_the_best_keypoints_only(tmp_path):
    store = write_ring(tmp_path / "features.h5")
    counts = dict(first_pass(store, [("00.jpg", "01.jpg")], MATCHER, 30))
    best = [store.get(name).top(30) for name in ("00.jpg", "01.jpg")]
    assert counts == {("00.jpg", "01.jpg"): pytest.approx(float(MATCHER.match(*best).pair_scores().sum()))}
    assert counts["00.jpg", "01.jpg"] > 1


def test_the_first_pass_reads_an_image_once_and_drops_what_is_not_there(tmp_path, monkeypatch):
    store = write_ring(tmp_path / "features.h5")
    read = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda name: read.append(name) or get(name))
    told = []
    pairs = [("00.jpg", "not there.jpg"), *exhaustive(NAMES[:6])]
    found = dict(first_pass(store, pairs, MATCHER, tell=lambda done, of: told.append((done, of))))
    assert list(found) == exhaustive(NAMES[:6]) and sorted(read) == NAMES[:6] and told == [(16, 16)]
    assert promising(store, [], MATCHER) == promising(store, pairs[:1], MATCHER) == []
