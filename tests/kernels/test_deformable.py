"""Reading maps at free places: against loops over single pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from isinglass.kernels import deformable
from isinglass.kernels.deformable import (
    Frame,
    Squares,
    bilinear_squares,
    bilinear_taps,
    deformable_conv3x3,
    weighted_rows,
    window_taps,
)


def slow_value(map_CHW, x, y):
    """The map's value at (x, y) px, by the definition of bilinear interpolation; 0 outside."""
    total = torch.zeros(map_CHW.shape[0], dtype=map_CHW.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < map_CHW.shape[1] and 0 <= column < map_CHW.shape[2]:
                total += map_CHW[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def slow_deformable_conv3x3(x_BCHW, offsets, weight):
    batch, _, height, width = x_BCHW.shape
    out = torch.zeros(batch, weight.shape[0], height, width, dtype=x_BCHW.dtype)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for tap in range(9):
                    dy, dx = offsets[b, 2 * tap, row, column], offsets[b, 2 * tap + 1, row, column]
                    x, y = column + tap % 3 - 1 + float(dx), row + tap // 3 - 1 + float(dy)
                    out[b, :, row, column] += weight[:, :, tap // 3, tap % 3] @ slow_value(x_BCHW[b], x, y)
    return out


@settings(deadline=None)
@given(
    width=st.integers(1, 6),
    height=st.integers(1, 6),
    points=st.lists(st.tuples(st.floats(-3, 9, width=32), st.floats(-3, 9, width=32)), max_size=6),
)
def test_bilinear_taps_equal_loops(width, height, points):
    map_CHW = torch.arange(2.0 * height * width, dtype=torch.float64).add(1).sqrt().view(2, height, width)
    points_P2 = torch.tensor(points, dtype=torch.float64).view(-1, 2)
    index, weights = bilinear_taps(points_P2, width, height)
    found = weighted_rows(map_CHW.flatten(1).T.contiguous(), index, weights)
    expected = [slow_value(map_CHW, x, y) for x, y in points_P2.tolist()]
    torch.testing.assert_close(found, torch.stack(expected) if expected else torch.zeros(0, 2, dtype=torch.float64))


def test_bilinear_taps_on_pixels_and_just_outside():
    index, weights = bilinear_taps(torch.tensor([[2.0, 1.0], [-1.0, 0.0], [2.5, 1.0], [-0.25, 0.0]]), 3, 2)
    assert index[0, 0] == 5
    assert weights[0].tolist() == [1, 0, 0, 0]
    assert weights[1].sum() == 0
    assert weights[2].sum() == 0.5
    assert weights[3].sum() == 0.75


def test_bilinear_squares_are_the_same_taps():
    points = torch.rand(300, 2) * torch.tensor([13.0, 11.0]) - 3
    points[:3] = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [-1e30, 1e30]])
    corners, weights = bilinear_squares(points, 7, 5)
    index, same = bilinear_taps(points, 7, 5)
    assert torch.equal(weights[1:], same[1:])
    assert bool((weights[1:3] == 0).all())
    assert bool((corners >= -1).all())
    assert bool((corners < torch.tensor([7, 5])).all())
    for tap, (dx, dy) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        x, y = corners[:, 0] + dx, corners[:, 1] + dy
        assert torch.equal(index[:, tap], y.clamp(0, 4) * 7 + x.clamp(0, 6))


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 6), (8, 12)])  # the last is that of the frame
def test_squares_equal_interpolation(side, size):
    """Of an image of 7 x 6 px in a frame of 12 x 8, beyond whose borders the nearest pixel counts."""
    frame = Frame(width=7, height=6, left=2, top=1, right=3, bottom=1)
    map_CHW = torch.randn(3, *size)
    whole = F.interpolate(map_CHW[None], (8, 12), mode="bilinear", align_corners=True)[0]
    image = F.pad(whole[:, 1:7, 2:9], (2, 3, 2, 3), mode="replicate")
    corners = torch.cartesian_prod(torch.arange(-1, 7), torch.arange(-1, 6))
    found = Squares(map_CHW, frame, side)(corners)
    expected = [image[:, y + 2 : y + 2 + side, x + 2 : x + 2 + side].flatten(1).T for x, y in corners.tolist()]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    far = torch.tensor([[-9, 99]])
    torch.testing.assert_close(
        Squares(map_CHW, frame, side)(far), Squares(map_CHW, frame, side)(torch.tensor([[-1, 5]]))
    )


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_window_taps_equal_loops(radius):
    width, height = 5, 4
    pixels = [(0, 0), (4, 3), (2, 1), (-1, 2)]
    index, inside = window_taps(torch.tensor(pixels), radius, width, height)
    for i, (x, y) in enumerate(pixels):
        side = range(-radius, radius + 1)
        taps = [(x + dx, y + dy) for dy in side for dx in side]
        here = [0 <= u < width and 0 <= v < height for u, v in taps]
        assert inside[i].tolist() == here
        assert index[i].tolist() == [v * width + u if ok else 0 for (u, v), ok in zip(taps, here, strict=True)]
    assert window_taps(torch.zeros(0, 2, dtype=torch.int64), radius, width, height)[0].shape == (
        0,
        (2 * radius + 1) ** 2,
    )


@pytest.mark.parametrize("spread_px", [0.7, 6.0])  # 6 px leave the map often
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_deformable_conv_equals_loops(spread_px, memory_format):
    x = torch.randn(2, 3, 5, 7).to(memory_format=memory_format)
    offsets = torch.randn(2, 18, 5, 7) * spread_px
    offsets[:, :, 0] = offsets[:, :, 0].round()
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(
        deformable_conv3x3(x, offsets, weight), slow_deformable_conv3x3(x, offsets, weight), atol=1e-4, rtol=1e-4
    )


def test_deformable_conv_in_chunks(monkeypatch):
    """At inference, where whole chunks take another product than what is left."""
    x, offsets, weight = torch.randn(2, 3, 11, 13), torch.randn(2, 18, 11, 13), torch.randn(4, 3, 3, 3)
    expected = deformable_conv3x3(x, offsets, weight)
    monkeypatch.setattr(deformable, "CHUNK", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            torch.testing.assert_close(deformable_conv3x3(x, offsets, weight), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 5)])
def test_without_offsets_it_is_a_convolution(size):
    x, weight = torch.randn(2, 3, *size), torch.randn(4, 3, 3, 3)
    found = deformable_conv3x3(x, torch.zeros(2, 18, *size), weight)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5)


def test_an_offset_is_dy_then_dx_of_its_own_tap():
    x, weight = torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 3, 3)
    x[0, 0, 5, 4] = 1.0
    weight[0, 0, 0, 2] = 1.0  # tap 2 reads (+1, -1) from its pixel
    offsets = torch.zeros(1, 18, 7, 7)
    offsets[0, 4], offsets[0, 5] = 3.0, 1.0  # and now (+2, +2)
    found = deformable_conv3x3(x, offsets, weight)[0, 0].nonzero().tolist()
    assert found == [[3, 2]]


def test_gradients_equal_finite_differences():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    offsets = (torch.rand(1, 18, 3, 4, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()  # off the kinks at whole px
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(deformable_conv3x3, (x, offsets, weight))
