"""Files of maps, tracks, tuning and training: a flipped bit is refused by name or made again, never read as data."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.eval.tune import Outcome, _earlier
from isinglass.files import read_if_whole, read_signed_json, write_signed_json
from isinglass.files.hdf5 import h5py_module, read_array, write_arrays
from isinglass.files.npz import read_npz, write_npz
from isinglass.sfm.map_folder import SCHEMA, read_map
from isinglass.sfm.retrieval import Retrieval, retrieval_of
from isinglass.sfm.scene import _photos_of
from isinglass.sfm.stages import Stages
from mapped_scene import MappedScene
from ring_of_images import write_ring

MAP = {"schema": SCHEMA, "photos": "/photos", "pipeline": {"max_keypoints": 300}, "options": {}}


def damaged(content: bytes, count: int):
    """Yield the content with one of `count` bits flipped."""
    rng = random.Random(0)
    for place in rng.sample(range(8 * len(content)), min(count, 8 * len(content))):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def assert_no_other_data(path, read, same, count=300):
    """Assert that each damaged copy of a file is refused by name or gives what the whole one gives."""
    whole, content, refused = read(path), path.read_bytes(), 0
    for flipped in damaged(content, count):
        path.write_bytes(flipped)
        try:
            found = read(path)
        except InputError as error:
            assert path.name in str(error)
            refused += 1
        else:
            assert same(found, whole)
    path.write_bytes(content)
    assert refused > 0.9 * min(count, 8 * len(content))


def equal_arrays(found, whole):
    return found.keys() == whole.keys() and all(np.array_equal(found[name], whole[name]) for name in whole)


# ---- results


def test_map_json(tmp_path):
    write_signed_json(tmp_path / "map.json", MAP)
    assert_no_other_data(tmp_path / "map.json", lambda path: read_map(path.parent), dict.__eq__)
    (tmp_path / "map.json").write_text(json.dumps(MAP))  # as earlier versions wrote it
    assert read_map(tmp_path) == MAP


def test_a_damaged_map_json_does_not_send_the_viewer_to_other_photos(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "images").mkdir()
    write_signed_json(tmp_path / "map.json", {**MAP, "photos": str(tmp_path / "photos")})
    assert _photos_of(tmp_path, None) == tmp_path / "photos"
    text = (tmp_path / "map.json").read_text()
    (tmp_path / "map.json").write_text(text.replace("photos", "phutos", 1))
    with pytest.raises(InputError, match=r"map\.json' is damaged"):
        _photos_of(tmp_path, None)


def test_retrieval_npz(tmp_path):
    store, path = write_ring(tmp_path / "features.h5"), tmp_path / "retrieval.npz"
    ring = Retrieval.learn(store, words=2).add(store, save=path)
    assert_no_other_data(
        path, Retrieval.load, lambda found, whole: np.array_equal(found.vectors, whole.vectors), count=100
    )
    with np.load(path) as fields:  # as earlier versions wrote it
        np.savez(tmp_path / "old.npz", **fields)
    assert np.array_equal(Retrieval.load(tmp_path / "old.npz").vectors, ring.vectors)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_byte_of_an_npz(tmp_path, compressed):
    path = tmp_path / "tracks.npz"
    write_npz(path, {"frame": np.arange(40, dtype=np.int32), "x": np.zeros(30)}, compressed=compressed)
    with np.load(path) as archive:
        assert archive["frame"].sum() == 780
    assert_no_other_data(path, read_npz, equal_arrays, count=1500)


# ---- caches


def test_what_can_be_made_again_is_and_the_log_says_so(tmp_path, caplog):
    path = tmp_path / "a.json"
    assert read_if_whole(path, read_signed_json) is None and not caplog.messages
    write_signed_json(path, {"a": 1})
    assert read_if_whole(path, read_signed_json) == {"a": 1} and not caplog.messages
    path.write_bytes(path.read_bytes()[:-4])
    assert read_if_whole(path, read_signed_json) is None
    assert "a.json' is made again" in caplog.text


def test_outcomes_of_tuning(tmp_path):
    path = tmp_path / "outcome.json"
    write_signed_json(path, {"name": "a", "errors": [1.5, None], "match_ms": [3.25, 4.0], "problem": None}, indent=None)
    outcome = Outcome(name="a", errors=(1.5, float("inf")), match_ms=(3.25, 4.0))
    assert _earlier(path) == outcome
    for flipped in damaged(path.read_bytes(), 500):
        path.write_bytes(flipped)
        assert _earlier(path) in (None, outcome)
    path.write_text(json.dumps({"name": "a", "errors": [1.5, None], "match_ms": [3.25, 4.0]}))
    assert _earlier(path) == outcome


def test_stages(tmp_path):
    write_signed_json(tmp_path / "match.json", {"key": "a" * 64, "seconds": 1.0, "result": {"pairs": 15}})
    content = (tmp_path / "match.json").read_bytes()
    for flipped in damaged(content, 300):
        (tmp_path / "match.json").write_bytes(flipped)
        assert Stages(tmp_path).run("match", "a" * 64, [], lambda: {"pairs": 15}).result == {"pairs": 15}


def test_a_damaged_retrieval_is_made_again(tmp_path, caplog):
    store, path = write_ring(tmp_path / "features.h5"), tmp_path / "retrieval.npz"
    made = retrieval_of(store, path, words=2)
    path.write_bytes(next(damaged(path.read_bytes(), 1)))
    assert np.array_equal(retrieval_of(store, path, words=2).vectors, made.vectors)
    assert "retrieval.npz' is made again" in caplog.text


# ---- stores


def test_a_hole_of_zeros_in_a_store_is_noticed(tmp_path):
    """Zeros are what a power cut leaves, and HDF5's own checksum of zeros is zero."""
    MappedScene(tmp_path, views=2, count=40).matches().close()
    path = tmp_path / "matches.h5"
    content, h5py = path.read_bytes(), h5py_module()
    with h5py.File(path, "r") as file:
        dataset = file["000.png/001.png/matches0"]
        whole, chunk = dataset[()], dataset.id.get_chunk_info(0)
    start, end = chunk.byte_offset, chunk.byte_offset + chunk.size
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    assert whole.any()
    with h5py.File(path, "r") as file, pytest.raises(OSError, match="filter returned failure"):
        read_array(file["000.png/001.png/matches0"])


def test_arrays_of_a_store_of_earlier_versions_are_read(tmp_path):
    h5py, values = h5py_module(), np.arange(50, dtype=np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("old", data=values, fletcher32=True)
        write_arrays(file, "", {"new": values})
        assert np.array_equal(read_array(file["old"]), values) and np.array_equal(read_array(file["new"]), values)
