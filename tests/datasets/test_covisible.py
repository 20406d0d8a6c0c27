"""Which keypoint is which, in a scene small enough to say so: a wall, and a board before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isinglass.datasets.covisible import IGNORED, UNMATCHABLE, covisible_indices, read_depth
from isinglass.datasets.pairs import Depth, EvalPair, Pose
from isinglass.datasets.posed import load_superglue_pairs
from isinglass.errors import InputError

WIDTH, HEIGHT = 160, 120
CAMERA = np.array([[100.0, 0, 79.5], [0, 100, 59.5], [0, 0, 1]])
WALL_M, BOARD_M = 4.0, 2.0
BASELINE_M = 0.4  # camera 1 is so far to the right: the wall moves left by 10 px, the board by 20


@pytest.fixture
def pair(tmp_path):
    for view, left in enumerate((60, 40)):  # the board is 30 px wide
        depth = np.full((HEIGHT, WIDTH), WALL_M)
        depth[40:80, left : left + 30] = BOARD_M
        depth[:20, :20] = 0  # unknown
        Image.fromarray((depth * 1000).astype(np.uint16)).save(tmp_path / f"depth{view}.png")
    return EvalPair(
        name="board",
        image0=Path("0.png"),
        image1=Path("1.png"),
        pose=Pose(rotation=np.eye(3), translation=np.array([-BASELINE_M, 0, 0])),
        camera0=CAMERA,
        camera1=CAMERA,
        depth0=Depth(file=tmp_path / "depth0.png"),
        depth1=Depth(file=tmp_path / "depth1.png"),
    )


def _index(pair, point0, *points1):
    return covisible_indices(pair, np.array([point0]), np.array(points1, dtype=np.float64).reshape(-1, 2)).tolist()[0]


def test_a_point_of_the_wall_and_one_of_the_board(pair):
    assert _index(pair, (120, 30), (90, 30), (110, 30), (120, 30)) == 1
    assert _index(pair, (70, 60), (60, 60), (50, 60), (70, 60)) == 1


@pytest.mark.parametrize(
    ("error_px", "expected"), [(0, 0), (2.9, 0), (3.1, IGNORED), (4.9, IGNORED), (5.1, UNMATCHABLE)]
)
def test_the_two_thresholds(pair, error_px, expected):
    assert _index(pair, (120, 30), (110 + error_px, 30)) == expected
    assert _index(pair, (120, 30), (110, 30 - error_px)) == expected


def test_a_point_that_the_other_view_does_not_see_is_unmatchable(pair):
    assert _index(pair, (5, 60), (0, 60)) == UNMATCHABLE  # lands at x = -5
    assert _index(pair, (59, 60), (49, 60)) == UNMATCHABLE  # of the wall: behind the board, which is from 40 to 69
    assert _index(pair, (120, 30)) == UNMATCHABLE  # there are no keypoints in view 1


def test_a_point_whose_depth_is_not_known_is_ignored(pair):
    assert _index(pair, (10, 10), (0, 10)) == IGNORED
    assert _index(pair, (25, 10), (15, 10)) == IGNORED  # lands where view 1 has no depth
    assert _index(pair, (10, 10)) == IGNORED


def test_only_the_nearest_of_two_keypoints_is_matched(pair):
    keypoints0 = np.array([[120, 30], [121.5, 30]])
    keypoints1 = np.array([[110.5, 30], [30, 30]])
    assert covisible_indices(pair, keypoints0, keypoints1).tolist() == [0, IGNORED]


def test_as_slow_and_obvious(pair):
    rng = np.random.default_rng(0)
    keypoints0, keypoints1 = (rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (300, 2)) for _ in range(2))
    keypoints1[:150] = keypoints0[:150] - [10, 0] + rng.normal(0, 2, (150, 2))
    found = covisible_indices(pair, keypoints0, keypoints1)
    assert {UNMATCHABLE, IGNORED} < set(found.tolist())
    assert (found >= 0).sum() > 50
    depth0, depth1 = read_depth(pair.depth0), read_depth(pair.depth1)
    checked = 0
    for index, (x, y) in enumerate(keypoints0):
        here = depth0[int(y) : int(y) + 2, int(x) : int(x) + 2]
        if np.ptp(here):
            continue  # at an edge, where neighbours decide
        depth = here[0, 0]
        if depth == 0:
            assert found[index] == IGNORED
            continue
        landed = np.array([x - 100 * BASELINE_M / depth, y])
        if landed[0] < -0.5:
            assert found[index] == UNMATCHABLE
            continue
        there = depth1[int(y) : int(y) + 2, max(int(np.floor(landed[0])), 0) : int(landed[0]) + 2]
        if np.ptp(there):
            continue
        distance = np.linalg.norm(keypoints1 - landed, axis=1)
        if there[0, 0] == BOARD_M < depth or (there[0, 0] == depth and distance.min() > 5):
            assert found[index] == UNMATCHABLE
        if found[index] >= 0:
            assert distance[found[index]] < 3
            assert there[0, 0] == depth
        checked += 1
    assert checked > 200


def test_step_and_scale_of_depth_images(pair, tmp_path):
    for view, depth in enumerate((pair.depth0, pair.depth1)):
        half = np.asarray(Image.open(depth.file))[::2, ::2] // 2
        Image.fromarray(half).save(tmp_path / f"half{view}.png")
    halves = [Depth(file=tmp_path / f"half{view}.png", scale=0.002, step=2) for view in (0, 1)]
    half_pair = replace(pair, depth0=halves[0], depth1=halves[1])
    assert _index(half_pair, (120, 30), (90, 30), (110, 30)) == 1
    assert _index(half_pair, (70, 60), (60, 60), (50, 60)) == 1
    assert read_depth(halves[0]).max() == pytest.approx(WALL_M)


def test_what_is_missing_is_named(pair, tmp_path):
    with pytest.raises(InputError, match="'board' lacks"):
        _index(replace(pair, depth1=None), (1, 1), (1, 1))
    with pytest.raises(InputError, match=r"nowhere\.png"):
        read_depth(Depth(file=tmp_path / "nowhere.png"))
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="one channel"):
        read_depth(Depth(file=tmp_path / "colour.png"))


@pytest.mark.shared
def test_real_pairs_overlap_as_they_were_chosen(shared):
    """The list has pairs with 25 to 75 % overlap: of a dense grid about that share has a match."""
    folder = shared / "data" / "eval" / "redkitchen"
    benchmark = load_superglue_pairs(folder / "pairs_with_gt.txt", depth=folder / "depth")
    grid = np.stack(np.meshgrid(np.arange(0, 640, 16), np.arange(0, 480, 16)), axis=-1).reshape(-1, 2)
    dense = np.stack(np.meshgrid(np.arange(0, 640, 10), np.arange(0, 480, 10)), axis=-1).reshape(-1, 2)
    for pair in benchmark.pairs[::30]:
        found = covisible_indices(pair, grid, dense, correct_px=12, unmatchable_px=12)
        known = found != IGNORED
        assert known.mean() > 0.5
        assert 0.15 < (found >= 0).sum() / known.sum() < 0.9
