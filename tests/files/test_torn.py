"""Results on disk are whole or not there, whatever stops the writer."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from isinglass import files
from isinglass.errors import InputError
from support import make_features

# ---- never torn


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_in_one_step_with_its_folders(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with files.write_atomically(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with files.write_atomically(tmp_path / "a") as temporary:
        temporary.touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_earlier_file(tmp_path, error):
    (tmp_path / "a").write_text("earlier")

    def write():
        with files.write_atomically(tmp_path / "a") as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert (tmp_path / "a").read_text() == "earlier"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_told_and_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    files.save_features(path, make_features(7))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((os, "fsync"), (Path, "write_bytes"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(InputError, match=r"a\.npz.*No space left on device.*Free space"):
                files.save_features(path, make_features(9))
        assert path.read_bytes() == before
        assert names(tmp_path) == ["a.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are of Unix")
def test_a_write_that_the_system_stops_half_way(tmp_path):
    """A limit on file sizes stops the write in the kernel after 4096 bytes, as a full disk does."""
    import resource

    path = tmp_path / "a.npz"
    files.save_features(path, make_features(7))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.npz.*cannot be written"):
            files.save_features(path, make_features(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.npz"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.npz.*cannot be written"):
        files.save_features(tmp_path / "file" / "a.npz", make_features(7))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=r"folder\.npz.*cannot be written"):
        files.save_features(tmp_path / "folder.npz", make_features(7))
    assert names(tmp_path) == ["file", "folder.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission there")
def test_a_read_only_folder_is_named():
    superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        files.save_features(Path(folder, "a.npz"), make_features(7))
        Path(folder).chmod(0o555)
        if superuser:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"a\.npz.*Permission denied.*may be written"):
                files.save_features(Path(folder, "a.npz"), make_features(9))
            assert files.load_features(Path(folder, "a.npz")).keypoints.shape == (1, 7, 2)
        finally:
            if superuser:
                os.seteuid(0)
            Path(folder).chmod(0o755)


KILLED_WRITERS = """
    import os, pathlib, random, signal, sys, time
    from isinglass.files import write_atomically
    path = pathlib.Path(sys.argv[1])
    path.write_bytes(bytes(64 * 4096))
    stale = 0
    for kill in range(40):
        ready, started = os.pipe()
        child = os.fork()
        if not child:
            os.write(started, b"!")
            for i in range(kill, 10**9):
                with write_atomically(path) as temporary, temporary.open("wb") as file:
                    for _ in range(64):
                        file.write(bytes([i % 256]) * 4096)
                        file.flush()
        os.read(ready, 1)
        time.sleep(random.Random(kill).random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = path.read_bytes()
        assert len(content) == 64 * 4096 and len(set(content)) == 1, (kill, len(content), set(content))
    print(len(set(path.parent.glob(".isinglass-*.tmp"))), set(content).pop())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_a_killed_writer_never_leaves_a_torn_file(tmp_path):
    """Processes that write one file over and over are killed at forty moments; what is there is whole each time."""
    path = tmp_path / "a.bin"
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WRITERS), str(path)]
    stale, last = subprocess.run(command, timeout=100, check=True, capture_output=True, text=True).stdout.split()
    assert int(stale) > 0  # some were killed within a write
    assert int(last) > 0  # and some after one
    assert all(name == "a.bin" or name.startswith(".isinglass-") for name in names(tmp_path))
    with files.write_atomically(path) as temporary:  # what they left is in nobody's way
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_stale_temporary_file_is_no_result(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, schema="isinglass features 1")
    (tmp_path / ".isinglass-0123.tmp").write_bytes(buffer.getvalue()[:50])
    files.save_features(tmp_path / "a.npz", make_features(7))
    assert [path.name for path in tmp_path.glob("*.npz")] == ["a.npz"]
    assert torch.equal(files.load_features(tmp_path / "a.npz").keypoints, make_features(7).keypoints)
