"""Files of earlier versions whose heap of texts is damaged: opening them ends, with their content or an error.

One wrong bit in a size sends the HDF5 library into an endless loop, which only a process of its own survives.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import pytest
import torch

from isinglass import files
from isinglass.files.hdf5 import check_heaps
from isinglass.sfm.store import FeatureStore
from old_layout import old_feature_file, old_store
from support import make_features

OPENED = """
    import sys
    from pathlib import Path
    import torch
    from isinglass import files
    from isinglass.errors import InputError
    from isinglass.sfm.store import FeatureStore
    from old_layout import heap_flips
    kind, path, read = sys.argv[1], Path(sys.argv[2]), {"refused": 0, "aside": 0, "whole": 0}
    content = path.read_bytes()
    for i, damaged in enumerate(heap_flips(content)):
        print(i, end=" ", flush=True)
        path.write_bytes(damaged)
        try:
            if kind == "file":
                found = files.load_features(path)
            else:
                store = FeatureStore(path)
                if store.problems:
                    assert list(store) == [] and not path.exists()
                    read["aside"] += 1
                    continue
                found = store.get("a")
                store.close()
            assert found.keypoints.sum().item() == float(sys.argv[3])
            read["whole"] += 1
        except InputError as error:
            assert path.name in str(error), error
            read["refused"] += 1
    print(read)
"""


@pytest.mark.parametrize("kind", ["file", "store"])
def test_no_bit_of_the_heap_hangs_a_reader(tmp_path, kind):
    path = tmp_path / f"old-{kind}.h5"
    features = make_features(7)
    if kind == "file":
        path.write_bytes(old_feature_file(features))
    else:
        with FeatureStore(path, features.signature, "settings") as store:
            store.add({"a": features})
            store.merge()
        path.write_bytes(old_store(path))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(OPENED), kind, str(path), str(features.keypoints.sum().item())]
    done = subprocess.run(command, timeout=120, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, (done.stdout[-30:], done.stderr)
    assert "959 {" in done.stdout


def test_texts_of_earlier_versions_are_read(tmp_path):
    features = make_features(7, scales=torch.rand(1, 7), turns=torch.tensor([5]))
    (tmp_path / "a.h5").write_bytes(old_feature_file(features))
    found = files.load_features(tmp_path / "a.h5")
    assert torch.equal(found.descriptors, features.descriptors)
    assert (found.signature, found.turns.tolist()) == (features.signature, [5])


def test_a_store_of_an_earlier_version_is_read_added_to_and_brought_up_to_date(tmp_path):
    path = tmp_path / "f.h5"
    plain = make_features(7, turns=torch.tensor([3]))
    with FeatureStore(path, plain.signature, "settings") as store:
        store.add({"a": plain, "left/b": make_features(9)}, {"a": "of a"})
        store.merge()
    path.write_bytes(old_store(path))
    assert b"GCOL" in path.read_bytes()
    with FeatureStore(path, plain.signature, "settings") as store:
        assert (list(store), store.digest("a"), store.settings, store.problems) == (
            ["a", "left/b"],
            "of a",
            "settings",
            {},
        )
        assert torch.equal(store.get("a").keypoints, plain.keypoints)
        assert store.get("a").turns.tolist() == [3]
        store.add({"c": make_features(3)})
        store.merge()
    with h5py.File(path) as file:
        assert not file.attrs.get_id("signature").get_type().is_variable_str()
        assert len(file.attrs["sha256"]) == 64
    with FeatureStore(path) as store:
        assert list(store) == ["a", "c", "left/b"]
        assert torch.equal(store.get("left/b").keypoints, make_features(9).keypoints)


def test_the_letters_of_a_heap_among_numbers_are_no_heap():
    content = old_feature_file(make_features(7))
    check_heaps(content)
    check_heaps(content + b"GCOL" + bytes(range(100)))
    check_heaps(content + b"GCOL\x01" + bytes(range(1, 100)))
    check_heaps(b"")
    heap = content.index(b"GCOL")
    for place, byte in ((heap + 8, 0), (heap + 24, 255), (heap + 16, 2)):
        damaged = bytearray(content)
        damaged[place + 1 if place == heap + 8 else place] = byte
        with pytest.raises(ValueError, match="heap of texts at byte"):
            check_heaps(bytes(damaged))


@pytest.mark.shared
def test_the_file_that_was_found(shared, tmp_path):
    """In a process of its own, as it hung for ever."""
    script = f"from isinglass.files import load_features; load_features({str(shared / 'cases/h5_hang.h5')!r})"
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False, capture_output=True, text=True)
    assert "InputError" in done.stderr and "h5_hang.h5' is damaged" in done.stderr
    assert "heap of texts" in done.stderr
