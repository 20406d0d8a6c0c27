"""Stores whose files are damaged, whose disk is full, or whose writer is killed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from isinglass.errors import InputError, WriteError
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.types import Signature
from support import make_features

SIGNATURE = Signature(extractor="x")


def filled(path, names=("a", "b")):
    store = FeatureStore(path, SIGNATURE, "settings")
    for i, name in enumerate(names):
        store.add({name: make_features(30 + i)}, {name: f"of {name}"})
    return store


def shown(folder):
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def damages(content):
    """Of a file: cut at many places, and wrong bytes at many."""
    for length in (0, 1, 7, 8, 9, 48, 100, len(content) // 2, len(content) - 1):
        yield content[:length]
    yield bytes(len(content))
    for place in range(0, len(content), max(1, len(content) // 150)):
        yield content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :]


def test_damage_of_any_byte_is_seen_or_does_no_harm(tmp_path):
    """Every record is then as it was, missing with a reason, or refused; never another one."""
    with filled(tmp_path / "f.h5") as store:
        store.merge()
    path, content = tmp_path / "f.h5", (tmp_path / "f.h5").read_bytes()
    seen = {"whole": 0, "aside": 0, "refused": 0}
    for damaged in damages(content):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path.write_bytes(damaged)
        try:
            store = FeatureStore(path, SIGNATURE, "settings")
            if store.problems:
                assert not list(store)
                assert shown(tmp_path) == ["f.h5.damaged"]
                seen["aside"] += 1
                continue
            for i, name in enumerate(("a", "b")):
                assert store.digest(name) == f"of {name}"
                found = store.get(name)
                assert torch.equal(found.keypoints, make_features(30 + i).keypoints)
                assert torch.equal(found.descriptors, make_features(30 + i).descriptors.half().float())
            seen["whole"] += 1
            store.close()
        except InputError as error:
            assert "f.h5" in str(error)
            assert path.read_bytes() == damaged
            seen["refused"] += 1
    assert all(seen.values()), seen


def test_a_damaged_part_is_set_aside_and_the_others_stay(tmp_path):
    store = filled(tmp_path / "f.h5", ["a", "b", "c"])
    store.close()
    parts = sorted((tmp_path / "f.h5.parts").iterdir())
    parts[1].write_bytes(parts[1].read_bytes()[:-50])
    store = FeatureStore(tmp_path / "f.h5", SIGNATURE, "settings")
    assert list(store) == ["a", "c"]
    ((file, problem),) = store.problems.items()
    assert file == str(parts[1])
    assert "truncated" in problem
    assert "made again" in problem
    store.merge()
    assert list(FeatureStore(tmp_path / "f.h5")) == ["a", "c"]
    store.add({"b": make_features(9)})
    store.merge()
    assert list(FeatureStore(tmp_path / "f.h5")) == ["a", "b", "c"]
    assert shown(tmp_path / "f.h5.parts") == [f"{parts[1].name}.damaged"]


def test_a_damaged_file_is_set_aside_and_the_parts_stay(tmp_path):
    store = filled(tmp_path / "f.h5", ["a"])
    store.merge()
    store.add({"b": make_features(9)})
    store.close()
    (tmp_path / "f.h5").write_bytes((tmp_path / "f.h5").read_bytes()[:-1])
    store = FeatureStore(tmp_path / "f.h5")
    assert list(store) == ["b"]
    store.merge()
    assert list(FeatureStore(tmp_path / "f.h5")) == ["b"]
    assert shown(tmp_path) == ["f.h5", "f.h5.damaged"]


def test_a_damaged_record_names_its_file(tmp_path):
    with filled(tmp_path / "f.h5") as store:
        store.merge()
    content = bytearray((tmp_path / "f.h5").read_bytes())
    place = content.find(make_features(31).keypoints.numpy().tobytes())
    content[place + 17] ^= 1
    (tmp_path / "f.h5").write_bytes(content)
    store = FeatureStore(tmp_path / "f.h5")
    assert store.get("a").keypoints.shape == (1, 30, 2)
    with pytest.raises(InputError, match=r"'b' in .*f\.h5' is damaged .*run again, and it alone is made again"):
        store.get("b")
    with pytest.raises(InputError, match=r"nothing of 'b'"):
        store.keypoints("b")
    assert (tmp_path / "f.h5").read_bytes() == content


@pytest.mark.parametrize("merged", [False, True])
def test_a_damaged_record_alone_is_made_again(tmp_path, merged):
    with filled(tmp_path / "f.h5", ["a", "b", "c"]) as store:
        store.merge()
    content = bytearray((tmp_path / "f.h5").read_bytes())
    content[content.find(make_features(31).descriptors.half()[0].T.numpy().tobytes()) + 40] ^= 128
    (tmp_path / "f.h5").write_bytes(content)
    with FeatureStore(tmp_path / "f.h5") as store, pytest.raises(InputError, match=r"'b'.*damaged"):
        store.get("b")
    with FeatureStore(tmp_path / "f.h5", SIGNATURE, "settings") as later:  # another run
        if merged:
            later.merge()
        assert (list(later), later.digest("b"), later.count("b"), later.problems) == (["a", "c"], None, 0, {})
        later.add({"b": make_features(31)}, {"b": "new"})
        later.merge()
    assert shown(tmp_path) == ["f.h5"]
    with FeatureStore(tmp_path / "f.h5") as store:
        assert [store.digest(name) for name in ("a", "b", "c")] == ["of a", "new", "of c"]
        assert [store.get(name).keypoints.shape[1] for name in ("a", "b", "c")] == [30, 31, 32]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are of Unix")
def test_a_file_that_may_not_be_read_is_not_damaged():
    superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.h5")
        with filled(path) as store:
            store.merge()
        Path(folder).chmod(0o755)
        path.chmod(0)
        if superuser:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"f\.h5' cannot be read .*Permission denied"):
                FeatureStore(path)
        finally:
            if superuser:
                os.seteuid(0)
        path.chmod(0o644)
        assert list(FeatureStore(path)) == ["a", "b"]


# ---- a full disk


def test_a_full_disk_is_told_and_leaves_all_as_it_was(tmp_path, monkeypatch):
    store = filled(tmp_path / "f.h5")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.h5")}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name, act in (
        (os, "fsync", lambda: store.add({"c": make_features(9)})),
        (Path, "write_bytes", lambda: store.add({"c": make_features(9)})),
        (os, "fsync", store.merge),
        (Path, "replace", store.merge),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(WriteError, match=r"No space left on device.*Free space"):
                act()
        assert {
            file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size
        } == before
        assert list(store) == ["a", "b"]
        assert store.get("b").keypoints.shape == (1, 31, 2)
    store.add({"c": make_features(9)})
    store.merge()
    assert list(FeatureStore(tmp_path / "f.h5")) == ["a", "b", "c"]


STOPPED_BY_THE_SYSTEM = """
    import resource, sys
    from isinglass.errors import WriteError
    from isinglass.sfm.store import FeatureStore
    from isinglass.types import Signature
    from support import make_features
    store = FeatureStore(sys.argv[1], Signature(extractor="x"), "settings")
    for round in range(2):
        for i in range(8):
            store.add({f"{round}-{i}": make_features(200, channels=128)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        for act in (store.merge, lambda: store.add({f"x{i}": make_features(1000, channels=256) for i in range(3)})):
            try:
                act()
                raise SystemExit("it should not fit")
            except WriteError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert store.get(f"{round}-7").keypoints.shape == (1, 200, 2)
        store.merge()
        store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are of Unix")
def test_a_write_that_the_system_stops_half_way(tmp_path):
    """A limit on file sizes stops the write in the kernel, as a full disk does; the same process can go on later."""
    told = _run(STOPPED_BY_THE_SYSTEM, tmp_path / "f.h5").stdout
    assert told.count("cannot be written") == 4
    store = FeatureStore(tmp_path / "f.h5")
    assert (len(store), store.problems) == (16, {})
    assert shown(tmp_path) == ["f.h5"]
    assert not list(tmp_path.glob(".*.tmp"))


# ---- a killed writer

KILLED_WRITERS = """
    import os, pathlib, random, signal, sys, time
    import numpy as np
    from isinglass.sfm.store import MatchStore, PairMatches
    from isinglass.types import Signature
    path, made = sys.argv[1], 0
    def opened():
        return MatchStore(path, Signature(extractor="x"), "settings")
    for kill in range(30):
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            store = opened()
            for i in range(made, 10**9):
                one = PairMatches(indices=np.full(50, i, np.int32), scores=np.zeros(50, np.float32))
                store.add({(f"a{i}", "b"): one}, {"b": str(i)})
                os.write(tell, b"!")  # it is there, whatever happens from now on
                if random.Random(i).random() < 0.3:
                    store.merge()
        os.read(told, 1)
        made += 1
        time.sleep(random.Random(kill).random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.set_blocking(told, False)
        try:
            made += len(os.read(told, 10**6))
        except BlockingIOError:
            pass
        os.close(told), os.close(tell)
        store = opened()
        assert not store.problems, store.problems
        assert len(store) in (made, made + 1), (kill, made, len(store))
        made = len(store)
        assert all(store.get(f"a{i}", "b").indices.tolist() == [i] * 50 for i in range(made))
        store.close()
    print(made, len(list(pathlib.Path(path).parent.rglob('.isinglass-*.tmp'))))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_a_killed_writer_loses_nothing_that_was_added(tmp_path):
    """Processes that add and merge are killed at thirty moments; a parent counts what they said was there."""
    made, torn = map(int, _run(KILLED_WRITERS, tmp_path / "m.h5").stdout.split())
    assert made > 30  # some were killed after more than one
    assert torn > 0  # and some within a write
    with MatchStore(tmp_path / "m.h5") as store:
        store.merge()
        assert sorted(int(name0[1:]) for name0, _ in store) == list(range(made))
    assert np.array_equal(MatchStore(tmp_path / "m.h5").get("a7", "b").indices, np.full(50, 7))


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    store = filled(tmp_path / "f.h5")
    old, new = tmp_path / "f.h5.parts" / ".isinglass-1.tmp", tmp_path / ".isinglass-2.tmp"
    old.touch(), new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    store.merge()
    assert shown(tmp_path) == ["f.h5"]
    assert new.exists()


def _run(script, path):
    """In a process of its own, which ends well."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        timeout=200,
        check=False,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done
