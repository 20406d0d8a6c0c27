"""Results on disk: what is read is what was written, wholly, or a clear error."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isinglass import files
from isinglass.errors import InputError, MissingExtra
from isinglass.types import Features, Matches, Signature

SIGNATURE = Signature(extractor="aliked-n16", weights="5be8704840ed")


def make_features(count=7, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    values = {
        "keypoints": torch.rand(1, count, 2, generator=generator) * 1500,
        "descriptors": torch.nn.functional.normalize(torch.randn(1, count, 16, generator=generator), dim=2),
        "scores": torch.rand(1, count, generator=generator),
        "image_size": torch.tensor([[1600, 1200]]),
        "signature": SIGNATURE,
    }
    return Features(**(values | changes))


def make_matches(indices=(3, -1, 0, -1, 4, -1, 1), count1=5, **changes):
    indices = torch.tensor([indices], dtype=torch.int64)
    scores = torch.where(indices >= 0, 0.25 + indices / 10, 0.0)
    return Matches(**({"indices": indices, "scores": scores, "matcher": "lightglue-aliked"} | changes))


def adaptive(matches, count1=5):
    count0 = matches.indices.shape[1]
    return replace(
        matches,
        stop_layer=torch.tensor([5]),
        pruned_at0=torch.arange(count0)[None],
        pruned_at1=torch.arange(count1)[None],
        confidences0=torch.full((1, count0), float("nan")),
        confidences1=torch.rand(1, count1),
    )


def assert_same(one, other):
    for field in fields(one):
        value, expected = getattr(one, field.name), getattr(other, field.name)
        if isinstance(expected, Tensor):
            assert value.dtype == expected.dtype, field.name
            torch.testing.assert_close(value, expected, atol=0, rtol=0, equal_nan=True)
        else:
            assert value == expected, field.name


# ---- what is written is read


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_features_come_back_exactly(tmp_path, suffix, count):
    plain = make_features(count)
    full = replace(plain, scales=torch.rand(1, count) * 9, orientations=torch.rand(1, count), turns=torch.tensor([6]))
    for features in (plain, full):
        files.save_features(tmp_path / f"a{suffix}", features)
        assert_same(files.load_features(str(tmp_path / f"a{suffix}")), features)


def test_half_descriptors_take_half_the_room_and_keypoints_stay_exact(tmp_path):
    features = make_features(500)
    files.save_features(tmp_path / "whole.npz", features)
    files.save_features(tmp_path / "half.npz", features, half=True)
    back = files.load_features(tmp_path / "half.npz")
    assert torch.equal(back.keypoints, features.keypoints)
    assert back.descriptors.dtype == torch.float32
    assert torch.equal(back.descriptors, features.descriptors.half().float())
    saved = (tmp_path / "whole.npz").stat().st_size - (tmp_path / "half.npz").stat().st_size
    assert saved == features.descriptors.numel() * 2


def test_the_npz_is_as_documented(tmp_path):
    files.save_features(tmp_path / "a.npz", make_features())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["schema"] == "isinglass features 1"
        assert archive["signature"] == "aliked-n16@5be8704840ed/pixel-centre-0"
        arrays = {name: archive[name] for name in archive.files if archive[name].dtype.kind != "U"}
        assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
            "keypoints": ("float32", (7, 2)),
            "descriptors": ("float32", (7, 16)),
            "scores": ("float32", (7,)),
            "image_size": ("int32", (2,)),
        }


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("change", [lambda matches: matches, adaptive])
def test_matches_come_back_exactly(tmp_path, suffix, change):
    matches, features0, features1 = change(make_matches()), make_features(7), make_features(5, seed=1)
    files.save_matches(tmp_path / f"m{suffix}", matches, features0, features1)
    back = files.load_matches(tmp_path / f"m{suffix}")
    assert_same(back.matches, matches)
    assert torch.equal(back.keypoints0, features0.keypoints[0])
    assert torch.equal(back.keypoints1, features1.keypoints[0])
    assert (back.image_size0, back.image_size1) == ((1600, 1200), (1600, 1200))
    assert back.signature == SIGNATURE
    assert torch.equal(back.points0, features0.keypoints[0, [0, 2, 4, 6]])
    assert torch.equal(back.points1, features1.keypoints[0, [3, 0, 4, 1]])


def test_json_holds_the_matches_for_other_programs(tmp_path):
    matches, features0, features1 = make_matches(), make_features(7), make_features(5, seed=1)
    files.save_matches(tmp_path / "m.json", adaptive(matches), features0, features1)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["indices"] == [[0, 3], [2, 0], [4, 4], [6, 1]]
    assert content["scores"] == [0.55, 0.25, 0.65, 0.35]  # not 0.550000011920929
    assert np.array_equal(np.float32(content["points1"]), features1.keypoints[0, [3, 0, 4, 1]].numpy())
    back = files.load_matches(tmp_path / "m.json")
    assert_same(back.matches, matches)
    assert torch.equal(back.points0, features0.keypoints[0, [0, 2, 4, 6]])


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".json"])
@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_no_match_is_a_result(tmp_path, suffix, count0, count1):
    matches = make_matches([-1] * count0)
    path = tmp_path / f"m{suffix}"
    files.save_matches(path, matches, make_features(count0), make_features(count1))
    back = files.load_matches(path)
    assert_same(back.matches, matches)
    assert back.points0.shape == back.points1.shape == (0, 2)
    assert back.keypoints1.shape == (count1, 2)


# ---- what is refused


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    features = make_features(7)
    padded = Features.stack([features, make_features(4)])
    for wrong, message in (
        (padded, "batch of 2"),
        (replace(features, keypoints=features.keypoints * torch.inf), "keypoints hold NaN or infinity"),
        (replace(features, scores=features.scores * torch.nan), "scores hold NaN"),
    ):
        with pytest.raises(InputError, match=message):
            files.save_features(tmp_path / "a.npz", wrong)
    with pytest.raises(InputError, match="descriptors hold NaN or infinity as float16"):
        files.save_features(tmp_path / "a.npz", replace(features, descriptors=features.descriptors * 1e6), half=True)
    with pytest.raises(InputError, match="indices run from -1 to 4, but view 1 has 3"):
        files.save_matches(tmp_path / "m.npz", make_matches(), features, make_features(3))
    with pytest.raises(InputError, match=r"indices has shape \(7,\), expected N0 = 6"):
        files.save_matches(tmp_path / "m.npz", make_matches(), make_features(6), make_features(5))
    with pytest.raises(InputError, match="matches of 2 pairs"):
        files.save_matches(tmp_path / "m.npz", Matches.stack([make_matches()] * 2), features, features)
    foreign = make_features(5, signature=Signature(extractor="disk"))
    with pytest.raises(InputError, match="disk"):
        files.save_matches(tmp_path / "m.npz", make_matches(), features, foreign)
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_are_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"'\.txt'; expected \.npz or \.h5$"):
        files.save_features(tmp_path / "a.txt", make_features())
    with pytest.raises(InputError, match=r"\.npz or \.h5 or \.json"):
        files.load_matches(tmp_path / "m")
    with pytest.raises(InputError, match=r"'\.json'"):
        files.save_features(tmp_path / "a.json", make_features())


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_missing_foreign_and_empty_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError, match="cannot be read"):
        files.load_features(path)
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        files.load_features(path)
    path.rmdir()
    for content in (b"", b"hello " * 100, pickle.dumps({"keypoints": 1})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a\{suffix}.*damaged.*Delete it and make it again"):
            files.load_features(path)
    files.save_matches(path, make_matches(), make_features(7), make_features(5))
    with pytest.raises(InputError, match="'isinglass matches 1', expected 'isinglass features 1'"):
        files.load_features(path)


def save_npz(path, **changes):
    """A file of features, changed; a change to None leaves the field out."""
    files.save_features(path, make_features(7))
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": None}, "schema is None"),
        ({"schema": "isinglass features 2"}, "features 2"),
        ({"signature": None}, "no text 'signature'"),
        ({"signature": np.array(3)}, "no text 'signature'"),
        ({"signature": "someone"}, "no feature signature"),
        ({"keypoints": None}, "no keypoints"),
        ({"keypoints": np.zeros((7, 2), np.float16)}, r"keypoints is float16 \(7, 2\), expected float32"),
        ({"keypoints": np.zeros((7, 3), np.float32)}, "expected 2 = 2"),
        ({"keypoints": np.full((7, 2), np.nan, np.float32)}, "keypoints hold NaN"),
        ({"scores": np.zeros(6, np.float32)}, r"scores has shape \(6,\), expected N = 7"),
        ({"descriptors": np.zeros((6, 16), np.float32)}, "expected N = 7"),
        ({"image_size": np.zeros(2, np.int64)}, "int64"),
        ({"scales": np.zeros((7, 1), np.float32)}, "scales"),
        ({"keypoints": np.array([{}], dtype=object)}, "pickle"),
    ],
)
def test_every_field_is_checked(tmp_path, changes, message):
    save_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=message) as raised:
        files.load_features(tmp_path / "a.npz")
    assert "a.npz" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [[0, 5]], "scores": [1.0]}, "view 1 has 5"),
        ({"indices": [[7, 0]], "scores": [1.0]}, "not among its 7"),
        ({"indices": [[0, 1], [0, 2]], "scores": [1.0, 1.0]}, "repeat"),
        ({"indices": [[0, 1]]}, "json"),
        ({"scores": "many"}, "json"),
        ({"keypoints0": [1.0]}, "json"),
        ({"matcher": 3}, "no text 'matcher'"),
    ],
)
def test_json_is_checked_too(tmp_path, changes, message):
    path = tmp_path / "m.json"
    files.save_matches(path, make_matches(), make_features(7), make_features(5))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        files.load_matches(path)
    for text in ("[]", "{}", '{"schema"', "\x00\xff", "[" * 100000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"m\.json"):
            files.load_matches(path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".json"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    files.save_matches(path, adaptive(make_matches()), make_features(7), make_features(5))
    whole = path.read_bytes()
    for cut in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged"):
            files.load_matches(path)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    path = tmp_path / "a.npz"
    features = make_features(7)
    files.save_features(path, features)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert_same(files.load_features(path), features)  # a date of the zip, say
        except InputError:
            refused += 1
    assert refused > len(whole) / 11 / 2


def test_damaged_hdf5_data_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    features = make_features(100)
    files.save_features(path, features)
    whole = path.read_bytes()
    place = whole.index(features.descriptors[0, 50].numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x00\x01\x02" + whole[place + 3 :])
    with pytest.raises(InputError, match=r"a\.h5"):
        files.load_features(path)


def test_hdf5_without_its_package_names_the_extra(tmp_path, monkeypatch):
    files.save_features(tmp_path / "a.h5", make_features())
    monkeypatch.setitem(sys.modules, "h5py", None)
    for act in (
        lambda: files.save_features(tmp_path / "b.h5", make_features()),
        lambda: files.load_features(tmp_path / "a.h5"),
    ):
        with pytest.raises(MissingExtra, match=r"isinglass\[hdf5\]"):
            act()
    assert not (tmp_path / "b.h5").exists()


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
        files.save_features(tmp_path / "file" / "a.npz", make_features())
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=r"folder\.npz.*cannot be written"):
        files.save_features(tmp_path / "folder.npz", make_features())
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
    files.save_features(tmp_path / "a.npz", make_features())
    assert [path.name for path in tmp_path.glob("*.npz")] == ["a.npz"]
    assert_same(files.load_features(tmp_path / "a.npz"), make_features())
