"""Lists of posed pairs: every kind of line, and what is wrong with lines; a real list."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from isinglass.datasets.posed import COLMAP_CENTRE, load_megadepth1500, load_scannet1500, load_superglue_pairs
from isinglass.errors import InputError
from isinglass.geometry.camera import EPIPOLAR_THRESHOLD, epipolar_distance_normalised, lift, project, sample_depth

K0 = "585.5 0 320.5 0 586 240 0 0 1"
K1 = "600 0 319 0 601 239 0 0 1"
R = "0 -1 0 1 0 0 0 0 1"
T = "0 -1 0 0.5 1 0 0 -2 0 0 1 3 0 0 0 1"


def _images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    _images(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    return tmp_path


def _list(folder, *lines, name="pairs.txt"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize(
    "line", [f"a.jpg b.jpg 0 0 {K0} {K1} {T}", f"a.jpg b.jpg {K0} {K1} {T}", f"a.jpg b.jpg {K0} {K1} {R} 0.5 -2 3"]
)
def test_the_three_kinds_of_lines_with_truth_are_alike(folder, line):
    benchmark = load_superglue_pairs(_list(folder, line))
    (pair,) = benchmark.pairs
    assert benchmark.task == "pose"
    assert (pair.name, pair.group, pair.turns0, pair.turns1) == ("a-b", "all", 0, 0)
    assert (pair.image0, pair.image1) == (folder / "images" / "a.jpg", folder / "images" / "b.jpg")
    np.testing.assert_array_equal(pair.camera0, [[585.5, 0, 320.5], [0, 586, 240], [0, 0, 1]])
    np.testing.assert_array_equal(pair.camera1, [[600, 0, 319], [0, 601, 239], [0, 0, 1]])
    np.testing.assert_array_equal(pair.pose.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(pair.pose.translation, [0.5, -2, 3])


def test_lists_without_truth(folder):
    benchmark = load_superglue_pairs(_list(folder, "a.jpg b.jpg", "a.jpg c.jpg 3 1"))
    assert [pair.pose for pair in benchmark.pairs] == [None, None]
    assert [pair.camera0 for pair in benchmark.pairs] == [None, None]
    assert (benchmark.pairs[1].turns0, benchmark.pairs[1].turns1) == (3, 1)


def test_blank_lines_comments_and_other_ends_of_lines(folder):
    (folder / "pairs.txt").write_bytes(b"\xef\xbb\xbf# name0 name1\r\n\r\na.jpg   b.jpg \r\n\t\r\nb.jpg\tc.jpg")
    benchmark = load_superglue_pairs(folder / "pairs.txt")
    assert [pair.name for pair in benchmark.pairs] == ["a-b", "b-c"]
    assert not benchmark.problems


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg", "1 columns"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} 1 0 0", "25 columns"),
        (f"a.jpg b.jpg 0 x {K0} {K1} {T}", "invalid literal"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} {T.replace('0.5', 'half')}", "could not convert"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} {T.replace('0.5', 'nan')}", "NaN or infinity"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} {T.replace('-1', '-1.1')}", "no rotation: R.T R is off by 0.21"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} {T.replace('-1', '1')}", "its determinant is -1"),
        (f"a.jpg b.jpg 0 0 {K0} {K1} {T[:-1]}2", "a pose ends in"),
        (f"a.jpg b.jpg 0 0 0 0 1 0 1 1 0 0 1 {K1} {T}", "focal lengths"),
        ("a.jpg missing.jpg", "missing.jpg' does not exist"),
        (f"a.jpg {'b' * 5000}.jpg", "b.jpg' does not exist"),
        ("a.jpg b\0.jpg", "does not exist"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_kept(folder, line, message):
    benchmark = load_superglue_pairs(_list(folder, "a.jpg b.jpg", "", line, f"b.jpg c.jpg {K0} {K1} {T}"))
    assert [pair.name for pair in benchmark.pairs] == ["a-b", "b-c"]
    (problem,) = benchmark.problems
    assert "pairs.txt', line 3: " in problem
    assert re.search(message, problem)


def test_nothing_usable_is_an_error(folder):
    with pytest.raises(InputError, match="cannot be read"):
        load_superglue_pairs(folder / "nowhere.txt")
    with pytest.raises(InputError, match="line 1: 1 columns"):
        load_superglue_pairs(_list(folder, "a.jpg"))
    with pytest.raises(InputError, match="there is none"):
        load_superglue_pairs(_list(folder, "# nothing"))
    with pytest.raises(InputError, match=r"pairs_calibrated\.txt"):
        load_scannet1500(folder)


def test_rounded_rotations_are_rotations(folder):
    pose = "0.97598 0.05925 0.20966 -0.04 -0.08203 0.99143 0.10171 0 -0.20184 -0.11647 0.97247 0.5 0 0 0 1"
    assert not load_superglue_pairs(_list(folder, f"a.jpg b.jpg 0 0 {K0} {K1} {pose}")).problems


def test_names_are_unique(folder):
    _images(folder / "images", "s/a.jpg", "t/b.jpg")
    lines = ["a.jpg b.jpg", "a.jpg b.jpg", "s/a.jpg t/b.jpg"]
    names = [pair.name for pair in load_superglue_pairs(_list(folder, *lines)).pairs]
    assert names == ["a-b", "a-b#2", "s/a-t/b"]


def test_the_group_is_the_first_folder_that_tells_pairs_apart(tmp_path):
    names = [f"scans/{scene}/color/{number}.jpg" for scene in ("scene0707_00", "scene0708_00") for number in (1, 2)]
    _images(tmp_path, *names)
    benchmark = load_superglue_pairs(_list(tmp_path, " ".join(names[:2]), " ".join(names[2:])))
    assert [pair.group for pair in benchmark.pairs] == ["scene0707_00", "scene0708_00"]
    assert {pair.group for pair in load_superglue_pairs(_list(tmp_path, " ".join(names[:2]))).pairs} == {"all"}


def test_results_of_two_lists_have_two_protocols(folder):
    one, other = (load_superglue_pairs(_list(folder, *lines)) for lines in (["a.jpg b.jpg"], ["a.jpg c.jpg"]))
    assert one.protocol != other.protocol
    assert one.protocol == load_superglue_pairs(_list(folder, "a.jpg b.jpg")).protocol


def test_depth_images(tmp_path):
    _images(tmp_path / "images", "a.jpg", "s/color/1.jpg", "b.jpg")
    _images(tmp_path / "depths", "a.png", "s/depth/1.png")
    file = _list(tmp_path, "a.jpg s/color/1.jpg", "a.jpg b.jpg")
    benchmark = load_superglue_pairs(file, depth=tmp_path / "depths", depth_scale=0.002, depth_step=2)
    (pair,) = benchmark.pairs
    assert (pair.depth1.file, pair.depth1.scale, pair.depth1.step) == (tmp_path / "depths/s/depth/1.png", 0.002, 2)
    assert "line 2" in benchmark.problems[0]
    assert "b.png" in benchmark.problems[0]


def test_the_two_benchmarks_of_1500_pairs(folder):
    line = f"a.jpg b.jpg {K0} {K1} {R} 0.5 -2 3"
    _list(folder, line, name="pairs_calibrated.txt")
    scannet, megadepth = load_scannet1500(folder), load_megadepth1500(folder)
    assert (scannet.name, megadepth.name) == ("scannet1500", "megadepth1500")
    assert (scannet.pairs[0].camera0[0, 2], scannet.pairs[0].camera0[1, 2]) == (320.5, 240)
    np.testing.assert_array_equal(
        megadepth.pairs[0].camera0, [[585.5, 0, 320.5 - COLMAP_CENTRE], [0, 586, 240 - COLMAP_CENTRE], [0, 0, 1]]
    )


# ---- real data


@pytest.mark.shared
def test_a_real_list(shared):
    folder = shared / "data" / "eval" / "redkitchen"
    benchmark = load_superglue_pairs(folder / "pairs_with_gt.txt", depth=folder / "depth")
    assert (benchmark.name, len(benchmark.pairs), benchmark.problems) == ("redkitchen", 120, ())
    pair = benchmark.pairs[0]
    depth = np.asarray(Image.open(pair.depth0.file)) * pair.depth0.scale
    assert 0.5 < np.median(depth[depth > 0]) < 6  # metres, of a kitchen
    points = np.stack(np.meshgrid(np.arange(20, 640, 40), np.arange(20, 480, 40)), axis=-1).reshape(-1, 2)
    moved = lift(points, sample_depth(depth, points), pair.camera0) @ pair.pose.rotation.T + pair.pose.translation
    landed = project(moved, pair.camera1)
    known = np.isfinite(landed).all(axis=1)
    truth = pair.camera0, pair.camera1, pair.pose.rotation, pair.pose.translation
    assert known.sum() > 100
    assert (epipolar_distance_normalised(points[known], landed[known], *truth) < EPIPOLAR_THRESHOLD / 100).all()
