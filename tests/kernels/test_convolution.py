"""Convolutions in strips: against torch's own on whole maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isinglass.kernels import convolution
from isinglass.kernels.convolution import (
    SELU_SCALE,
    Folded,
    Upsampled,
    add_upsampled,
    clear_outside_,
    framed,
    map_of,
    product,
    rows_of,
    selu,
    selu_of_scaled_,
    strips,
)


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def test_selu_equals_torch():
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    for found in (selu_of_scaled_(x * SELU_SCALE), torch.inference_mode()(selu)(x)):
        torch.testing.assert_close(found, F.selu(x), atol=3e-7, rtol=3e-7)
    assert bool(selu(torch.tensor([float("nan")])).isnan())
    y = torch.randn(5, requires_grad=True)
    assert torch.autograd.gradcheck(selu, y.double())


@pytest.mark.parametrize("rows", [0, 1, 64, 100, 128])
def test_product_equals_torch(rows):
    x, weight = torch.randn(rows, 48), torch.randn(7, 48)
    with torch.inference_mode():
        torch.testing.assert_close(product(x, weight), x @ weight.T, atol=1e-4, rtol=1e-4)
        doubled = product(x.double(), weight.double())
    torch.testing.assert_close(doubled, x.double() @ weight.double().T)
    product(x, weight.requires_grad_()).sum().backward()
    torch.testing.assert_close(weight.grad[0], x.sum(dim=0), atol=1e-4, rtol=1e-4)


def normed(outputs):
    norm = nn.BatchNorm2d(outputs).eval()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.uniform_(values, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@torch.inference_mode()
def test_folded_equals_convolution_and_batch_norm(kernel, bias):
    conv, norm = nn.Conv2d(5, 8, kernel, padding=kernel // 2, bias=bias), normed(8)
    x = channels_last(1, 5, 9, 11)
    inner = slice(1, -1) if kernel == 3 else slice(None)  # strips come with the rows that the padding would be
    for given in (None, norm):
        expected = 0.7 * (conv(x) if given is None else given(conv(x)))
        torch.testing.assert_close(Folded(conv, given, scale=0.7)(x), expected[:, :, inner], atol=1e-5, rtol=1e-4)
    if kernel == 1:
        torch.testing.assert_close(Folded(conv, norm).plus(x, expected), norm(conv(x)) + expected, atol=1e-5, rtol=1e-4)


def test_strips_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(convolution, "STRIP_PIXELS", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert strips(130, 80) == [(0, 48), (48, 96), (96, 130)]
    assert strips(32, 40, stride=2) == [(0, 24), (24, 32)]
    assert strips(32, 10**6) == [(0, 16), (16, 32)]


@torch.inference_mode()
def test_layers_on_strips_equal_layers_on_the_map():
    """Two 3 x 3 convolutions with a bias, between which the rows outside the map must be 0 again."""
    conv1, conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
    x = channels_last(1, 3, 13, 9)
    frame = framed(3, 13, 9, frame=2, like=x)
    frame[:, :, 2:-2] = x
    first_layer, second_layer = Folded(conv1), Folded(conv2)
    parts = []
    for first, last in ((0, 5), (5, 10), (10, 13)):
        y = clear_outside_(first_layer(frame[:, :, first : last + 4]), first - 1, 13)
        parts.append(second_layer(y))
    torch.testing.assert_close(torch.cat(parts, dim=2), conv2(conv1(x)), atol=1e-5, rtol=1e-4)


def test_rows_of_a_map_are_a_view():
    x = channels_last(1, 3, 4, 5)
    assert rows_of(x).data_ptr() == x.data_ptr()
    assert torch.equal(map_of(rows_of(x), 5), x)
    assert map_of(rows_of(x), 5).is_contiguous(memory_format=torch.channels_last)
    assert framed(3, 4, 5, frame=1, like=x).is_contiguous(memory_format=torch.channels_last)
    assert rows_of(x)[7].tolist() == x[0, :, 1, 2].tolist()


@pytest.mark.parametrize("coarse", [(1, 1), (1, 4), (5, 3), (11, 20)])
def test_upsampled_strips_equal_interpolation(coarse):
    """Of two maps at once, and 0 in the rows outside."""
    height, width = 22, 20
    x, others = channels_last(1, 2, height, width), [channels_last(1, 2, *coarse), channels_last(1, 2, 2, 2)]
    upsampled = [F.interpolate(one, (height, width), mode="bilinear", align_corners=True) for one in others]
    expected = F.pad(x + sum(upsampled), (0, 0, 3, 3))
    padded = F.pad(x, (0, 0, 3, 3)).contiguous(memory_format=torch.channels_last)
    sources = [Upsampled(one, height, width) for one in others]
    for first, last in ((-3, 4), (4, 5), (5, 19), (19, 25)):
        found = add_upsampled(padded[:, :, first + 3 : last + 3], sources, first)
        torch.testing.assert_close(found, expected[:, :, first + 3 : last + 3], atol=1e-5, rtol=1e-5)
