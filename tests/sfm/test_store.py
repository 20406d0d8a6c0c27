"""Stores of features and matches: what goes in comes out, hloc reads it, and nothing that was added is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.sfm.store import FeatureStore, MatchStore, PairMatches
from isinglass.types import Matches, Signature
from support import make_features

SIGNATURE = Signature(extractor="x")


def features_store(path, **more):
    return FeatureStore(path, SIGNATURE, "settings", **more)


def matches_store(path, settings="settings"):
    return MatchStore(path, SIGNATURE, settings)


def filled(path, names=("a.jpg", "left/b.jpg")):
    store = features_store(path)
    store.add({name: make_features(5 + i) for i, name in enumerate(names)}, {name: f"of {name}" for name in names})
    return store


def some_matches(indices=(2, -1, 0), stop_layer=None):
    scores = np.linspace(0.2, 0.9, len(indices)).astype(np.float32)
    return PairMatches(indices=np.array(indices, np.int32), scores=scores, stop_layer=stop_layer)


def same(one, other):
    for name in ("keypoints", "descriptors", "scores", "image_size", "scales", "orientations", "turns"):
        left, right = getattr(one, name), getattr(other, name)
        if left is None or right is None:
            assert left is right, name
        else:
            torch.testing.assert_close(left.float(), right.float(), rtol=1e-3 if name == "descriptors" else 0, atol=0)
    assert one.signature == other.signature
    return True


FULL = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from test_store import features_store, make_features
from isinglass.errors import WriteError
store = features_store(sys.argv[1])
for i in range(8):
    store.add({f"{i}.jpg": make_features(200)})
sizes = [file.stat().st_size for file in store.folder.iterdir()]
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * max(sizes), 3 * max(sizes)))  # as a disk with room for three
for write in (store.merge, lambda: store.copy_to(store.path.with_name("copy.h5"), list(store))):
    try:
        write()
        print("written")
    except WriteError:
        print("refused")
print(len(store), store.get("7.jpg").keypoints.shape[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of the size of files")
def test_a_full_disk_is_no_crash(tmp_path):
    """HDF5 frees memory twice where it cannot write what it has in memory as it closes a file."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", FULL, tmp_path / "f.h5", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout.split(), run.returncode) == (["refused", "refused", "8", "200"], 0), run.stderr
    assert [path.name for path in tmp_path.glob("*.h5")] == []


# ---- what goes in comes out


@pytest.mark.parametrize("merged", [False, True])
def test_features_come_back(tmp_path, merged):
    plain = make_features(7)
    rich = make_features(3, seed=1, scales=torch.rand(1, 3), orientations=torch.rand(1, 3), turns=torch.tensor([5]))
    with features_store(tmp_path / "f.h5", half=False) as store:
        store.add({"b/1.jpg": plain}, {"b/1.jpg": "d1"})
        store.add({"a.jpg": rich, "none.jpg": make_features(0)})
        if merged:
            store.merge()
    with FeatureStore(tmp_path / "f.h5") as store:
        assert list(store) == ["a.jpg", "b/1.jpg", "none.jpg"]
        assert len(store) == 3
        assert "a.jpg" in store
        assert "c.jpg" not in store
        assert (store.signature, store.settings, store.problems) == (SIGNATURE, "settings", {})
        assert [store.digest(name) for name in ("b/1.jpg", "a.jpg", "c.jpg")] == ["d1", "", None]
        assert [store.count(name) for name in ("b/1.jpg", "none.jpg", "c.jpg")] == [7, 0, 0]
        assert same(store.get("b/1.jpg"), plain)
        assert same(store.get("a.jpg"), rich)
        assert store.get("none.jpg").keypoints.shape == (1, 0, 2)
        assert np.array_equal(store.keypoints("a.jpg"), rich.keypoints[0].numpy())
    assert (tmp_path / "f.h5.parts").exists() is not merged


def test_only_descriptors_are_halved(tmp_path):
    features = make_features(50, size=(4000, 3000))
    with features_store(tmp_path / "f.h5") as store:
        store.add({"a": features})
        found = store.get("a")
    assert torch.equal(found.keypoints, features.keypoints)
    assert torch.equal(found.scores, features.scores)
    assert torch.equal(found.descriptors, features.descriptors.half().float())


@pytest.mark.parametrize("merged", [False, True])
def test_matches_come_back(tmp_path, merged):
    with matches_store(tmp_path / "m.h5") as store:
        store.add({("l/a.jpg", "b.jpg"): some_matches(stop_layer=4)}, {"b.jpg": "db", "l/a.jpg": "da"})
        store.add({("b.jpg", "c.jpg"): some_matches(()), ("c.jpg", "b.jpg"): some_matches((1,))})
        if merged:
            store.merge()
    with MatchStore(tmp_path / "m.h5") as store:
        assert list(store) == [("b.jpg", "c.jpg"), ("c.jpg", "b.jpg"), ("l/a.jpg", "b.jpg")]
        found = store.get("l/a.jpg", "b.jpg")
        assert found.indices.dtype == np.int32
        assert found.indices.tolist() == [2, -1, 0]
        assert np.array_equal(found.scores, some_matches().scores)
        assert found.stop_layer == 4
        assert store.digests(("l/a.jpg", "b.jpg")) == ("da", "db")
        assert store.digests(("b.jpg", "l/a.jpg")) is None
        assert store.get("b.jpg", "c.jpg").pairs().shape == (0, 2)
        assert store.get("b.jpg", "c.jpg").stop_layer is None
        assert store.get("c.jpg", "b.jpg").pairs().tolist() == [[0, 1]]


def test_matches_of_a_matcher_and_of_swapped_views():
    indices, scores = torch.tensor([[2, -1, 0]]), torch.tensor([[0.5, 0.4, 0.25]])
    one = PairMatches.of(Matches(indices=indices, scores=scores, stop_layer=torch.tensor([3]), matcher="m"))
    assert one.pairs().tolist() == [[0, 2], [2, 0]]
    swapped = one.swapped(4)
    assert (swapped.indices.tolist(), swapped.scores.tolist()) == ([2, -1, 0, -1], [0.25, 0, 0.5, 0])
    assert swapped.stop_layer == one.stop_layer == 3
    assert swapped.swapped(3).pairs().tolist() == one.pairs().tolist()
    with pytest.raises(InputError, match="matches of 2 pairs"):
        PairMatches.of(Matches(indices=indices.repeat(2, 1), scores=scores.repeat(2, 1), matcher="m"))


def test_the_later_record_counts(tmp_path):
    store = features_store(tmp_path / "f.h5")
    store.add({"a": make_features(5), "b": make_features(6)}, {"a": "1"})
    store.merge()
    store.add({"a": make_features(7)}, {"a": "2"})
    assert (len(store), store.digest("a"), store.count("a")) == (2, "2", 7)
    store.merge()
    for one in (store, FeatureStore(tmp_path / "f.h5")):
        assert (len(one), one.digest("a")) == (2, "2")
        assert one.get("a").keypoints.shape[1] == 7
        assert same(one.get("b"), make_features(6))


def test_merging_adds_to_what_is_there(tmp_path):
    store = features_store(tmp_path / "f.h5")
    for i in range(20):  # more parts than files are held open
        store.add({f"{i:02}": make_features(3, seed=i)})
        if i in (5, 11):
            store.merge()
    assert all(same(store.get(f"{i:02}"), make_features(3, seed=i)) for i in range(20))
    store.merge()
    store.merge()
    assert {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")} == {"f.h5"}
    assert list(FeatureStore(tmp_path / "f.h5")) == [f"{i:02}" for i in range(20)]


def test_an_empty_store_can_be_opened(tmp_path):
    with matches_store(tmp_path / "m.h5") as store:
        store.add({})
        store.merge()
    assert list(MatchStore(tmp_path / "m.h5")) == []


# ---- several processes (here: several stores)


def test_others_add_and_merge_meanwhile(tmp_path):
    one = filled(tmp_path / "f.h5", ["a"])
    other = filled(tmp_path / "f.h5", ["b"])
    reader = FeatureStore(tmp_path / "f.h5")
    assert list(reader) == ["a", "b"]
    third = filled(tmp_path / "f.h5", ["c"])
    assert list(one) == ["a"]
    one.merge()  # also what the others added, which it has not seen yet
    assert not (tmp_path / "f.h5.parts").exists()
    assert list(one) == ["a", "b", "c"]
    assert same(reader.get("b"), make_features(5))  # from the part, which it holds open
    reader.close()
    assert same(reader.get("b"), make_features(5))  # the part has gone, into the file
    assert same(third.get("c"), make_features(5))
    other.add({"d": make_features(9)})
    assert list(reader) == ["a", "b", "c"]
    reader.refresh()
    assert list(reader) == ["a", "b", "c", "d"]
    other.merge()
    assert list(FeatureStore(tmp_path / "f.h5")) == ["a", "b", "c", "d"]


def test_what_has_gone_is_told(tmp_path):
    store = filled(tmp_path / "f.h5", ["a"])
    store.close()
    for part in (tmp_path / "f.h5.parts").iterdir():
        part.unlink()
    with pytest.raises(InputError, match=r"has gone, and 'a' with it; make it again"):
        store.get("a")


# ---- hloc


def hloc_keypoints(path, name):
    """hloc.utils.io.get_keypoints"""
    with h5py.File(str(path), "r", libver="latest") as file:
        dset = file[name]["keypoints"]
        return dset.__array__(), dset.attrs.get("uncertainty")


def hloc_names(path):
    """hloc.utils.io.list_h5_names"""
    names = []
    with h5py.File(str(path), "r", libver="latest") as file:
        file.visititems(
            lambda _, obj: names.append(obj.parent.name.strip("/")) if isinstance(obj, h5py.Dataset) else None
        )
    return list(set(names))


def hloc_matches(path, name0, name1):
    """hloc.utils.io.find_pair and get_matches"""
    with h5py.File(str(path), "r", libver="latest") as file:
        pair, reverse = "/".join((name0.replace("/", "-"), name1.replace("/", "-"))), False
        if pair not in file:
            pair, reverse = "/".join((name1.replace("/", "-"), name0.replace("/", "-"))), True
        matches, scores = file[pair]["matches0"].__array__(), file[pair]["matching_scores0"].__array__()
    idx = np.where(matches != -1)[0]
    matches = np.stack([idx, matches[idx]], -1)
    return (np.flip(matches, -1) if reverse else matches), scores[idx]


def hloc_matcher_input(path, name):
    """What hloc.match_features reads of an image"""
    with h5py.File(str(path), "r") as file:
        data = {key: torch.from_numpy(value.__array__()).float() for key, value in file[name].items()}
        return data, (1, *tuple(file[name]["image_size"])[::-1])


def test_hloc_reads_it(tmp_path):
    features = make_features(6, size=(640, 480))
    with features_store(tmp_path / "f.h5", half=False) as store:
        store.add({"q/1.jpg": features, "db/1.jpg": make_features(4)})
        store.merge()
    keypoints, uncertainty = hloc_keypoints(tmp_path / "f.h5", "q/1.jpg")
    assert np.array_equal(keypoints, features.keypoints[0].numpy())
    assert uncertainty is None
    assert sorted(hloc_names(tmp_path / "f.h5")) == ["db/1.jpg", "q/1.jpg"]
    data, shape = hloc_matcher_input(tmp_path / "f.h5", "q/1.jpg")
    assert shape == (1, 480, 640)
    assert torch.equal(data["descriptors"], features.descriptors[0].T)  # (D, N)
    assert torch.equal(data["scores"], features.scores[0])
    with matches_store(tmp_path / "m.h5") as store:
        store.add({("q/1.jpg", "db/1.jpg"): some_matches((2, -1, 0))})
        store.merge()
    matches, scores = hloc_matches(tmp_path / "m.h5", "q/1.jpg", "db/1.jpg")
    assert matches.tolist() == [[0, 2], [2, 0]]
    assert np.array_equal(scores, some_matches().scores[[0, 2]])
    assert hloc_matches(tmp_path / "m.h5", "db/1.jpg", "q/1.jpg")[0].tolist() == [[2, 0], [0, 2]]


def test_the_format_is_that_of_hdf5_1_10(tmp_path):
    with filled(tmp_path / "f.h5") as store:
        store.merge()
    assert (tmp_path / "f.h5").read_bytes()[8] == 3  # its superblock; later ones are not read by 1.10 and 1.12


# ---- what cannot be


def test_names_that_hloc_cannot_tell_apart(tmp_path):
    store = matches_store(tmp_path / "m.h5")
    store.add({("a/b", "c"): some_matches()})
    message = r"'a/b' and 'a-b' have one name 'a-b' in the layout of hloc.*Rename one"
    for one in (store, matches_store(tmp_path / "m.h5")):
        with pytest.raises(InputError, match=message):
            one.add({("a-b", "d"): some_matches()})
    assert list(store) == [("a/b", "c")]
    with pytest.raises(InputError, match="one name 'x-y'"):
        store.add({("x/y", "x-y"): some_matches()})


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0b", "\udcff.jpg"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(InputError, match=r"an image has the name .*(expected a relative path|rename it)"):
        features_store(tmp_path / "f.h5").add({name: make_features(3)})
    with pytest.raises(InputError, match="an image has the name"):
        matches_store(tmp_path / "m.h5").add({(name, "b"): some_matches()})
    assert not list(tmp_path.iterdir())


def test_features_that_cannot_be_kept(tmp_path):
    store = features_store(tmp_path / "f.h5")
    good = make_features(3)
    with pytest.raises(InputError, match=r"features of y@none.* came for 'a'; expected x@none"):
        store.add({"b": good, "a": make_features(3, extractor="y")})
    with pytest.raises(InputError, match="a batch of 2"):
        store.add({"b": good, "a": type(good).stack([good, good])})
    large, broken = make_features(3), make_features(4)
    large.descriptors[0, 0, 0], broken.keypoints[0, 1, 1] = 1e6, float("nan")
    with pytest.raises(InputError, match=r"the features of 'a': descriptors hold NaN or infinity as float16"):
        store.add({"b": good, "a": large})
    with pytest.raises(InputError, match=r"the features of 'a': keypoints hold NaN"):
        store.check("a", broken)
    store.check("a", good)
    assert len(store) == 0
    assert not list(tmp_path.iterdir())


def test_matches_that_cannot_be_kept(tmp_path):
    store = matches_store(tmp_path / "m.h5")
    with pytest.raises(InputError, match="a pair with itself"):
        store.add({("a", "a"): some_matches()})
    wide = PairMatches(indices=np.zeros(3, np.int64), scores=np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"matches of \('a', 'b'\) are int64 \(3,\).*expected int32"):
        store.add({("a", "b"): wide})
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no store .*f\.h5"):
        FeatureStore(tmp_path / "f.h5")
    with pytest.raises(InputError, match=r"there is nothing of 'c' in .*f\.h5.*2 records"):
        filled(tmp_path / "f.h5").get("c")
    with pytest.raises(InputError, match=r"there is nothing of \('a', 'b'\)"):
        matches_store(tmp_path / "m.h5").get("a", "b")


@pytest.mark.parametrize("merged", [False, True])
def test_another_kind_signature_or_settings(tmp_path, merged):
    path = tmp_path / "f.h5"
    store = FeatureStore(path, SIGNATURE, '{"resize": 1024, "tile": null}')
    store.add({"a": make_features(3)})
    if merged:
        store.merge()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.h5")}
    with pytest.raises(InputError, match=r"schema 'isinglass feature store 1', expected 'isinglass match store 1'"):
        MatchStore(path, SIGNATURE, "settings")
    with pytest.raises(InputError, match=r"made with the signature 'x@none/\S+', expected 'y@none"):
        FeatureStore(path, Signature(extractor="y"), "settings")
    settings = re.escape('made with the settings {"resize": 1024}, expected {"resize": 640}')
    with pytest.raises(InputError, match=settings):  # only what differs
        FeatureStore(path, SIGNATURE, '{"resize": 640, "tile": null}')
    with pytest.raises(InputError, match="made with the settings"):
        FeatureStore(path, SIGNATURE, "others")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.h5")} == before
    assert list(FeatureStore(path)) == ["a"]


def test_parts_of_another_run(tmp_path):
    FeatureStore(tmp_path / "f.h5", SIGNATURE, "one").add({"a": make_features(3)})
    (tmp_path / "f.h5.parts").rename(tmp_path / "kept")
    with FeatureStore(tmp_path / "f.h5", SIGNATURE, "other") as store:
        store.add({"b": make_features(3)})
        store.merge()
    (tmp_path / "kept").rename(tmp_path / "f.h5.parts")
    with pytest.raises(InputError, match=r"settings.*one.*other"):
        FeatureStore(tmp_path / "f.h5")


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("to be kept, and longer than the head of an HDF5 file")
    with pytest.raises(InputError, match=r"notes\.txt' is no HDF5 file"):
        features_store(tmp_path / "notes.txt")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(InputError, match=r"has the schema None"):
        features_store(tmp_path / "other.h5")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "other.h5"]
