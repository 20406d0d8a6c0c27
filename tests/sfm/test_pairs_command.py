"""`isinglass pairs`, and the choice that it is made of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from isinglass.errors import InputError
from isinglass.sfm.choice import PairOptions, choose_pairs
from isinglass.sfm.pairs import exhaustive, read_pairs, sequential
from isinglass.sfm.retrieval import Retrieval
from ring_of_images import IMAGES, NAMES, overlapping, steps_between, write_ring

GPS = ExifTags.GPS


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    path = tmp_path_factory.mktemp("ring") / "features.h5"
    write_ring(path).close()
    return path


def write_photos(folder, names, *, without=()):
    """Photos of noise, 10 m from one to the next by GPS."""
    folder.mkdir()
    for i, name in enumerate(names):
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "maker"  # without any other tag those of GPS are not written
        if name not in without:
            place = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (47.0, 0.0, i * 0.324), GPS.GPSLongitudeRef: "E"}
            exif.get_ifd(ExifTags.IFD.GPSInfo).update({**place, GPS.GPSLongitude: (8.0, 0.0, 0.0)})
        noise = np.random.default_rng(i).integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(np.kron(noise, np.ones((8, 8, 1), np.uint8))).save(folder / name, exif=exif)
    return folder


def test_a_store_and_likeness(isinglass, ring, tmp_path):
    output = tmp_path / "out" / "pairs.txt"
    code, shown, _ = isinglass("pairs", ring, "-o", output, "--pairs", "retrieval", "--neighbours", 4, "--json")
    pairs = read_pairs(output, NAMES)
    summary = json.loads(shown)
    assert code == 0 and summary["pairs"] == len(pairs) and summary["of"] == IMAGES * (IMAGES - 1) // 2
    assert {pair for pair in overlapping() if steps_between(*pair) == 1} <= set(pairs)
    before = (tmp_path / "out" / "retrieval.npz").read_bytes()
    assert isinglass("pairs", ring, "-o", output, "--pairs", "retrieval", "--neighbours", 4)[0] == 0
    assert read_pairs(output, NAMES) == pairs and (tmp_path / "out" / "retrieval.npz").read_bytes() == before


def test_a_sequence_and_its_loops(isinglass, ring, tmp_path):
    output = tmp_path / "pairs.txt"
    common = ("pairs", ring, "-o", output, "--pairs", "sequential", "--overlap", 2)
    assert isinglass(*common, "--loops", 0)[0] == 0
    plain = read_pairs(output)
    assert plain == sequential(NAMES, 2) and not (tmp_path / "retrieval.npz").exists()
    code, _, said = isinglass(*common, "--loops", 2)
    assert code == 0 and "24 images by sequential" in said
    loops = set(read_pairs(output)) - set(plain)
    assert ("00.jpg", "23.jpg") in loops  # the ring's ends meet
    assert all(int(other[:2]) - int(one[:2]) > 2 for one, other in loops)


def test_all_pairs_of_photos_need_no_features(isinglass, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    assert isinglass("pairs", photos, "-o", tmp_path / "pairs.txt", "--pairs", "exhaustive")[0] == 0
    assert read_pairs(tmp_path / "pairs.txt") == exhaustive(["a.png", "b.png", "c.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.txt", "photos"]


def test_a_track_by_gps_and_its_holes(isinglass, tmp_path):
    names = [f"{i}.png" for i in range(6)]
    photos = write_photos(tmp_path / "photos", names)
    common = ("-o", tmp_path / "pairs.txt", "--pairs", "spatial", "--max-distance-m", 15)
    assert isinglass("pairs", photos, *common)[0] == 0
    assert read_pairs(tmp_path / "pairs.txt") == sequential(names, 1) and not (tmp_path / "features.h5").exists()
    holed = write_photos(tmp_path / "holed", names, without=["3.png"])
    code, _, said = isinglass("pairs", holed, *common, "--extractor", "rootsift", "--neighbours", 2)
    found = read_pairs(tmp_path / "pairs.txt")
    assert code == 0 and "1 of 6 photos have no position" in said and "3.png" in said
    assert {("0.png", "1.png"), ("1.png", "2.png"), ("4.png", "5.png")} <= set(found)
    assert [pair for pair in found if "3.png" in pair] and ("0.png", "2.png") not in found


def test_photos_that_cannot_be_read_are_told(isinglass, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    (photos / "c.png").write_bytes(b"no photo")
    common = ("-o", tmp_path / "pairs.txt", "--pairs", "retrieval", "--extractor", "rootsift")
    code, _, said = isinglass("pairs", photos, *common)
    assert code == 1 and "c.png" in said
    assert read_pairs(tmp_path / "pairs.txt") == [("a.png", "b.png")]


def test_wrong_use_is_told(isinglass, ring, tmp_path):
    output = ("-o", tmp_path / "pairs.txt")
    code, _, said = isinglass("pairs", ring, *output, "--pairs", "spatial")
    assert code == 2 and "--photos" in said
    code, _, said = isinglass("pairs", tmp_path / "nothing", *output)
    assert code == 2 and "nothing" in said
    code, _, said = isinglass("pairs", ring, *output, "--pairs-model", tmp_path)
    assert code == 2 and "no model of COLMAP" in said
    code, _, said = isinglass("pairs", ring, *output, "--pairs", "exhaustive", "--first-pass")
    assert code != 0 and "ring" in said
    assert not (tmp_path / "pairs.txt").exists()


def test_numbers_in_names_make_the_sequence(tmp_path):
    names = sorted(f"frame{i}.png" for i in range(8, 12))
    options = PairOptions(how="sequential", overlap=1, loops=0)
    chosen = choose_pairs(names, tmp_path, options, lambda: pytest.fail("no likeness is needed"))
    expected = {("frame8.png", "frame9.png"), ("frame10.png", "frame9.png"), ("frame10.png", "frame11.png")}
    assert set(map(frozenset, chosen.pairs)) == set(map(frozenset, expected))


def test_small_sets_are_matched_wholly_and_large_ones_by_likeness(tmp_path):
    store = write_ring(tmp_path / "features.h5")

    def retrieval():
        return Retrieval.learn(store).add(store)

    small = choose_pairs(NAMES, tmp_path, PairOptions(exhaustive_up_to=IMAGES), retrieval)
    assert (small.how, small.pairs) == ("exhaustive", exhaustive(NAMES))
    large = choose_pairs(NAMES, tmp_path, PairOptions(exhaustive_up_to=IMAGES - 1, neighbours=3), retrieval)
    assert large.how == "retrieval" and len(large.pairs) <= 3 * IMAGES
    with pytest.raises(InputError, match="'nearby'"):
        PairOptions(how="nearby")
