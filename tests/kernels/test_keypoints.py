"""Keypoints from score maps: against loops over single pixels and pairs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isinglass.kernels.keypoints import (
    clear_border,
    distinct,
    flat_to_xy,
    local_maxima,
    sample_bilinear,
    select_keypoints,
    square_maxima,
    suppress_non_maxima,
)

TIED_MAPS = arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 3]))
RADII = st.integers(0, 3)


def square(scores, y, x, radius):
    """The part of the map in the square around a pixel."""
    return scores[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


def slow_local_maxima(scores, radius):
    return np.array(
        [
            [scores[y, x] == square(scores, y, x, radius).max() for x in range(scores.shape[1])]
            for y in range(len(scores))
        ]
    )


def slow_suppress_non_maxima(scores, radius, rounds):
    """Maxima; then, `rounds` times, maxima of the map without all that lies near the maxima so far."""
    maxima = slow_local_maxima(scores, radius)
    for _ in range(rounds):
        near = np.array(
            [[square(maxima, y, x, radius).any() for x in range(scores.shape[1])] for y in range(len(scores))]
        )
        maxima |= slow_local_maxima(np.where(near, 0, scores), radius) & ~near
    return np.where(maxima, scores, 0)


def slow_distinct(points, scores, radius_px):
    """Best first, each point stays unless one that stays is nearer than the radius."""
    kept = []
    for i in sorted(range(len(points)), key=lambda i: (-scores[i], i)):
        if all(math.dist(points[i], points[j]) >= radius_px for j in kept):
            kept.append(i)
    return sorted(kept)


@settings(deadline=None)
@given(scores=TIED_MAPS, radius=RADII)
def test_local_maxima_equal_loops(scores, radius):
    found = local_maxima(torch.from_numpy(scores)[None], radius)[0]
    assert found.tolist() == slow_local_maxima(scores, radius).tolist()


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 8, 30])
def test_square_maxima_equal_max_pool(radius):
    """Of negative numbers too, and of truths; windows may be larger than the map; what is not a number spreads."""
    maps = torch.randn(2, 23, 31) - 1.0
    pool = torch.nn.MaxPool2d(2 * radius + 1, stride=1, padding=radius)
    assert torch.equal(square_maxima(maps, radius), pool(maps))
    truths = maps > 1.5
    assert torch.equal(square_maxima(truths, radius), pool(truths.float()) > 0)
    maps[1, 5, 5] = float("nan")
    assert torch.equal(square_maxima(maps, radius).isnan(), pool(maps).isnan())


@settings(deadline=None)
@given(scores=TIED_MAPS, radius=RADII, rounds=st.integers(0, 3))
def test_suppress_non_maxima_equals_loops(scores, radius, rounds):
    found = suppress_non_maxima(torch.from_numpy(scores)[None], radius, rounds)[0]
    assert found.tolist() == slow_suppress_non_maxima(scores, radius, rounds).tolist()


def test_suppress_non_maxima_in_rounds():
    """5 hides 4, which would have hidden 3; 3 hides 2, which would have hidden 1."""
    row = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0]]])
    for rounds, expected in ((0, [5, 0, 0, 0, 0]), (1, [5, 0, 3, 0, 0]), (2, [5, 0, 3, 0, 1])):
        assert suppress_non_maxima(row, 1, rounds)[0, 0].tolist() == expected


def test_suppression_is_per_image_and_leaves_its_argument():
    scores = torch.rand(3, 20, 30)
    before = scores.clone()
    together = suppress_non_maxima(scores, 2)
    assert torch.equal(scores, before)
    for i in range(3):
        assert torch.equal(together[i], suppress_non_maxima(scores[i : i + 1], 2)[0])


@pytest.mark.parametrize(("border", "left"), [(0, 20), (1, 6), (2, 0), (3, 0), (100, 0)])
def test_clear_border(border, left):
    cleared = clear_border(torch.ones(2, 4, 5), border)
    assert cleared.sum(dim=(1, 2)).tolist() == [left, left]
    if left:
        assert bool(cleared[:, border : 4 - border, border : 5 - border].all())


@settings(deadline=None)
@given(
    scores=TIED_MAPS, count=st.one_of(st.none(), st.integers(0, 60)), threshold=st.sampled_from([-1.0, 0.0, 2.0, 3.0])
)
def test_select_keypoints(scores, count, threshold):
    (index,) = select_keypoints(torch.from_numpy(scores)[None], threshold, count)
    flat = scores.flatten()
    above = np.flatnonzero(flat > threshold).tolist()
    if count is None or len(above) <= count:
        assert index.tolist() == above  # raster order
    else:
        assert flat[index.numpy()].tolist() == sorted(flat[above], reverse=True)[:count]  # best first, any of equals
        assert len(set(index.tolist())) == count
        assert set(index.tolist()) <= set(above)


def test_select_keypoints_of_each_image_alone():
    scores = torch.tensor([[[0.1, 0.9]], [[0.0, 0.0]], [[0.5, 0.4]]])
    assert [index.tolist() for index in select_keypoints(scores, 0.3, 1)] == [[1], [], [0]]


def test_flat_to_xy_inverts_raster_order():
    y, x = torch.meshgrid(torch.arange(4), torch.arange(7), indexing="ij")
    assert torch.equal(flat_to_xy(torch.arange(28), 7), torch.stack([x.flatten(), y.flatten()], dim=1))
    assert flat_to_xy(torch.zeros(0, dtype=torch.int64), 7).shape == (0, 2)


@settings(deadline=None)
@given(
    width=st.integers(1, 5),
    height=st.integers(1, 5),
    points=st.lists(st.tuples(st.floats(-3, 8, width=32), st.floats(-3, 8, width=32)), max_size=5),
)
def test_sample_bilinear_equals_loops(width, height, points):
    map_CHW = torch.arange(2.0 * height * width, dtype=torch.float64).add(1).sqrt().view(2, height, width)
    points_K2 = torch.tensor(points, dtype=torch.float64).view(-1, 2)
    padded = F.pad(map_CHW, (4, 10 - width, 4, 10 - height))  # room for every point
    found = sample_bilinear(map_CHW, points_K2)
    assert found.shape == (len(points), 2)
    for (x, y), value in zip(points_K2.tolist(), found, strict=True):
        column, row = math.floor(x) + 4, math.floor(y) + 4
        right, down = x - math.floor(x), y - math.floor(y)
        above = padded[:, row, column] * (1 - right) + padded[:, row, column + 1] * right
        below = padded[:, row + 1, column] * (1 - right) + padded[:, row + 1, column + 1] * right
        torch.testing.assert_close(value, above * (1 - down) + below * down, atol=1e-9, rtol=1e-9)


@settings(deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(-4, 8), st.integers(-4, 8), st.integers(0, 3)), max_size=25),
    radius_px=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.5, 40.0]),
)
def test_distinct_equals_loops(points, radius_px):
    """On a grid of half pixels, with many ties and many points at exactly the radius."""
    xy = [(x / 2, y / 2) for x, y, _ in points]
    scores = [float(score) for _, _, score in points]
    found = distinct(torch.tensor(xy).view(-1, 2), torch.tensor(scores), radius_px)
    assert found.dtype == torch.int64
    assert found.tolist() == slow_distinct(xy, scores, radius_px)


def test_distinct_of_many():
    points, scores = torch.rand(1500, 2) * torch.tensor([200.0, 90.0]), torch.rand(1500)
    expected = slow_distinct(points.tolist(), scores.tolist(), 3.0)
    assert 100 < len(expected) < 1400
    assert distinct(points, scores, 3.0).tolist() == expected


def test_distinct_chain_and_equals():
    """The best hides the second, so the third, near the second alone, stays; of equals the first stays."""
    row = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert distinct(row, torch.tensor([3.0, 2.0, 1.0]), 1.5).tolist() == [0, 2]
    assert distinct(row, torch.tensor([1.0, 2.0, 1.0]), 1.5).tolist() == [1]
    assert distinct(row[[0, 0, 0]], torch.tensor([1.0, 1.0, 1.0]), 0.1).tolist() == [0]
    assert distinct(row[[0, 0, 0]], torch.tensor([1.0, 1.0, 1.0]), 0.0).tolist() == [0, 1, 2]
    assert distinct(row[:0], torch.zeros(0), 1.0).tolist() == []
