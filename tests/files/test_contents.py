"""Results on disk: what is read is what was written, wholly, or a clear error."""

from __future__ import annotations

import io
import json
import pickle
import sys
from dataclasses import fields, replace

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
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="was written with"):
        files.load_matches(path)
    del content["sha256"]  # as earlier versions and other programs write it
    path.write_text(json.dumps(content))
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


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_every_flipped_bit_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    files.save_features(path, make_features(7, turns=torch.tensor([5])))
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 23):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(InputError, match=rf"a\{suffix}' is damaged"):
            files.load_features(path)
    for more in (b" ", bytes(81), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(whole + more)
        with pytest.raises(InputError, match="damaged"):
            files.load_features(path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".json"])
def test_a_flipped_bit_of_matches_is_refused_or_harmless(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    files.save_matches(path, make_matches(), make_features(7), make_features(5))
    expected, whole, refused = files.load_matches(path), path.read_bytes(), 0
    bits = range(0, 8 * len(whole), 19)
    for bit in bits:
        path.write_bytes(flipped(whole, bit))
        try:
            found = files.load_matches(path)
        except InputError:
            refused += 1
        else:  # the name of the hash of JSON
            assert_same(found.matches, expected.matches)
            assert_same(found, replace(expected, matches=found.matches))
    assert refused > 0.95 * len(bits)


def flipped(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_files_of_earlier_versions_are_read(tmp_path):
    """Without seal or hash; what is in nobody's field is not looked at."""
    features, matches = make_features(7), make_matches()
    buffer = io.BytesIO()
    files.save_features(tmp_path / "a.npz", features)
    with np.load(tmp_path / "a.npz") as archive:
        np.savez(buffer, **archive)
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    assert_same(files.load_features(tmp_path / "a.npz"), features)
    files.save_matches(tmp_path / "m.json", matches, features, make_features(5))
    content = json.loads((tmp_path / "m.json").read_text())
    del content["sha256"]
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert_same(files.load_matches(tmp_path / "m.json").matches, matches)


@pytest.mark.parametrize("field", ["turns", "image_size"])
def test_values_that_cannot_be_are_refused_in_files_without_a_hash(tmp_path, field):
    save_npz(tmp_path / "a.npz", **{field: np.array([0, 480] if field == "image_size" else 9, np.int32)})
    with pytest.raises(InputError, match=rf"a\.npz.*{field}"):
        files.load_features(tmp_path / "a.npz")


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
