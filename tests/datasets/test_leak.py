"""The leak check finds copies, whatever was done to their files, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from isinglass.datasets.homography import load_hpatches
from isinglass.datasets.leak import MAX_BITS, Leak, fingerprints, leak_report, picture_hash, save_manifest
from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError


def _photo(seed, size=(200, 150)):
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return noise.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "eval").mkdir()
    for seed in range(4):
        _photo(seed).save(tmp_path / "eval" / f"photo{seed}.png")
    images = [tmp_path / "eval" / f"photo{seed}.png" for seed in range(4)]
    pairs = tuple(EvalPair(name=f"{i}", image0=images[0], image1=images[i]) for i in (1, 2, 3))
    return Benchmark(name="four", protocol="four/1", task="homography", pairs=pairs)


@pytest.fixture
def training(tmp_path, benchmark):
    folder = tmp_path / "train"
    (folder / "sub").mkdir(parents=True)
    _photo(2).resize((90, 70)).save(folder / "sub" / "small.jpg", quality=60)
    (folder / "same.png").write_bytes(benchmark.pairs[0].image1.read_bytes())
    for seed in range(10, 20):
        _photo(seed).save(folder / f"other{seed}.png")
    return folder


def test_copies_are_found_by_bytes_and_by_picture(training, benchmark):
    same, small = leak_report(training, benchmark)
    assert same == Leak(training="same.png", evaluation=str(benchmark.pairs[0].image1), reason="bytes")
    assert (small.training, small.evaluation) == ("sub/small.jpg", str(benchmark.pairs[1].image1))
    assert small.reason == "picture"
    assert small.bits <= MAX_BITS
    assert [leak.reason for leak in leak_report(training, benchmark, max_bits=-1)] == ["bytes"]


def test_no_leak_is_an_empty_report(training, benchmark):
    (training / "same.png").unlink()
    (training / "sub" / "small.jpg").unlink()
    assert leak_report(training, benchmark) == []


def test_a_manifest_says_the_same_without_the_images(training, benchmark, tmp_path):
    save_manifest(tmp_path / "manifest.txt", fingerprints(training))
    assert fingerprints(tmp_path / "manifest.txt") == fingerprints(training)
    assert leak_report(tmp_path / "manifest.txt", benchmark) == leak_report(training, benchmark)


def test_a_list_of_files_and_of_mere_names(training, benchmark):
    (training / "list.txt").write_text("# names\n\nsame.png\ngone/photo3.jpg\nsub/small.jpg\nother11.png\n")
    found = leak_report(training / "list.txt", benchmark)
    assert [(leak.training, leak.reason) for leak in found] == [
        ("same.png", "bytes"),
        ("sub/small.jpg", "picture"),
        ("gone/photo3.jpg", "name"),
    ]


def test_mere_numbers_are_compared_with_their_folder(tmp_path):
    pair = EvalPair(name="0", image0=Path("hpatches/v_boat/1.ppm"), image1=Path("hpatches/v_boat/2.ppm"))
    benchmark = Benchmark(name="one", protocol="one/1", task="homography", pairs=(pair,))
    (tmp_path / "list.txt").write_text("v_bird/1.ppm\nold/v_boat/2.jpg\n")
    assert [leak.training for leak in leak_report(tmp_path / "list.txt", benchmark)] == ["old/v_boat/2.jpg"]


@pytest.mark.parametrize("quality", [30, 90])
@pytest.mark.parametrize("scale", [0.25, 0.6, 1.7])
def test_the_hash_outlives_resizing_recompression_and_brightness(tmp_path, quality, scale):
    for seed in range(5):
        photo = _photo(seed, (480, 360))
        changed = photo.resize((int(480 * scale), int(360 * scale)), Image.Resampling.BILINEAR)
        changed.point(lambda value: 0.7 * value + 40).save(tmp_path / "copy.jpg", quality=quality)
        assert _bits(picture_hash(photo), picture_hash(Image.open(tmp_path / "copy.jpg"))) <= MAX_BITS
        assert _bits(picture_hash(photo), picture_hash(_photo(seed + 100, (480, 360)))) > 2 * MAX_BITS


def _bits(hash0, hash1):
    """Slow and obvious: how many bits of two numbers in hex differ."""
    return bin(int(hash0, 16) ^ int(hash1, 16)).count("1")


def test_the_hash_in_closed_form():
    brighter_to_the_right = np.tile(np.arange(0, 252, 28, dtype=np.uint8), (9, 1))
    assert picture_hash(Image.fromarray(brighter_to_the_right)) == "f" * 16 + "0" * 16
    assert picture_hash(Image.fromarray(brighter_to_the_right.T.copy())) == "0" * 16 + "f" * 16


def test_blank_and_broken_images_match_nothing(tmp_path, benchmark):
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (60, 40), (7, 7, 7)).save(folder / "blank.png")
    Image.new("RGB", (60, 40), (9, 9, 9)).save(tmp_path / "eval" / "photo0.png")
    (folder / "broken.png").write_bytes(b"no image")
    blank, broken = fingerprints(folder)
    assert blank.picture is None
    assert broken.picture is None
    assert blank.sha256 != broken.sha256
    assert leak_report(folder, benchmark) == []


def test_nothing_to_compare_is_an_error(tmp_path, benchmark):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="has no images"):
        leak_report(tmp_path / "none", benchmark)
    with pytest.raises(InputError, match="cannot be read"):
        leak_report(tmp_path / "nowhere.txt", benchmark)


@pytest.mark.shared
@pytest.mark.slow
def test_the_training_photos_are_none_of_the_sequences(shared):
    benchmark = load_hpatches(shared / "data" / "eval" / "homography")
    assert leak_report(shared / "data" / "train" / "photos", benchmark) == []
