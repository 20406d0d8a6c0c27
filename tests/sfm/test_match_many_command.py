"""`isinglass match-many`: a folder or a store in, one file of matches out."""

from __future__ import annotations

import json

import pytest

from isinglass.sfm.store import FeatureStore, MatchStore
from support import write_photos

NAMES = ["0.png", "1.png", "2.png"]
OPTIONS = [
    "--extractor",
    "rootsift",
    "--matcher",
    "nearest",
    "--ratio",
    "0.9",
    "--max-keypoints",
    "80",
    "--device",
    "cpu",
]


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 3, size=(160, 120))


def test_a_folder_and_a_list(tmp_path, photos, isinglass):
    (tmp_path / "pairs.txt").write_text("# two of three\n0.png 1.png\n2.png 0.png\n")
    output = tmp_path / "out" / "m.h5"
    code, out, err = isinglass("match-many", photos, tmp_path / "pairs.txt", "-o", output, *OPTIONS)
    assert (code, out) == (0, "")
    assert "2 pairs matched" in err
    assert list(MatchStore(output)) == [("0.png", "1.png"), ("0.png", "2.png")]
    assert list(FeatureStore(tmp_path / "out" / "features.h5")) == NAMES
    assert json.loads(MatchStore(output).settings)["config"]["ratio"] == 0.9
    code, out, _ = isinglass("match-many", photos, "all", "-o", output, "--json", *OPTIONS)
    told = json.loads(out)
    assert code == 0
    assert (told["made"], told["reused"], told["failed"]) == (1, 2, 0)
    assert told["images"] == {"made": 0, "reused": 3}


def test_a_store(tmp_path, photos, isinglass):
    """Its extractor counts; another one that is asked for is refused."""
    isinglass("match-many", photos, "all", "-o", tmp_path / "m.h5", *OPTIONS)
    nearest = ["--matcher", "nearest", "--device", "cpu"]
    code, out, _ = isinglass("match-many", tmp_path / "features.h5", "all", "-o", tmp_path / "n.h5", "--json", *nearest)
    assert code == 0
    told = json.loads(out)
    assert (told["made"], told["images"]) == (3, None)
    settings = [json.loads(MatchStore(tmp_path / name).settings) for name in ("m.h5", "n.h5")]
    assert settings[0]["features"] == settings[1]["features"]
    assert settings[1]["features"]["max_keypoints"] == 80
    code, _, err = isinglass("match-many", tmp_path / "features.h5", "all", "-o", tmp_path / "m.h5", *nearest)
    assert code == 2
    assert '"ratio": 0.9' in err
    assert "Choose the same options as then, or another path" in err
    given = ["all", "-o", tmp_path / "o.h5", "--extractor", "xfeat", *nearest]
    code, _, err = isinglass("match-many", tmp_path / "features.h5", *given)
    assert (code, (tmp_path / "o.h5").exists()) == (2, False)
    assert "has features of 'rootsift', and --extractor is 'xfeat'" in err


def test_masks(tmp_path, photos, isinglass):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.png").write_bytes((photos / "0.png").read_bytes()[:100])
    code, _, err = isinglass(
        "match-many", photos, "all", "-o", tmp_path / "m.h5", "--masks", tmp_path / "masks", *OPTIONS
    )
    assert code == 1
    assert err.count("0.png") == 2  # the photo and its mask: not its pairs, too
    assert list(MatchStore(tmp_path / "m.h5")) == [("1.png", "2.png")]
    code, _, err = isinglass(
        "match-many", tmp_path / "features.h5", "all", "--masks", tmp_path / "masks", "-o", tmp_path / "m.h5", *OPTIONS
    )
    assert code == 2
    assert "--masks is for a folder of photos" in err


def test_photos_and_pairs_that_cannot_be_used(tmp_path, photos, isinglass):
    (photos / "3.jpg").write_text("no photo")
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n0.png 3.jpg\n2.png none.png\n")
    code, _, err = isinglass("match-many", photos, tmp_path / "pairs.txt", "-o", tmp_path / "m.h5", *OPTIONS)
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("isinglass:")]
    assert len(lines) == 2
    assert "3.jpg" in lines[0]
    assert "none.png: line 3 of " in lines[1] and "is none of the 3 images" in lines[1]
    assert list(MatchStore(tmp_path / "m.h5")) == [("0.png", "1.png")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "all"], "there is no file or folder 'none'"),
        (["photos", "all", "--rotation", "auto"], "--rotation auto matches each pair four times"),
        (["photos", "none.txt"], "there is no file 'none.txt'; expected a list"),
        (["photos/0.png", "all"], "is no HDF5 file. Give another path"),
    ],
)
def test_bad_input(tmp_path, photos, isinglass, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = isinglass("match-many", *arguments, *OPTIONS)
    assert code == 2
    assert message in err
    assert (photos / "0.png").exists()


@pytest.mark.slow
def test_workers(tmp_path, photos, isinglass):
    isinglass("match-many", photos, "all", "-o", tmp_path / "m.h5", *OPTIONS)
    code, _, _ = isinglass("match-many", photos, "all", "-o", tmp_path / "w.h5", "--workers", "2", *OPTIONS)
    assert code == 0
    with MatchStore(tmp_path / "m.h5") as one, MatchStore(tmp_path / "w.h5") as two:
        assert list(one) == list(two)
        assert one.settings == two.settings
        assert all(one.get(*pair).indices.tolist() == two.get(*pair).indices.tolist() for pair in one)
