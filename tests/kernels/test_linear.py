"""Prepared linear layers against torch's own; what they do where oneDNN is missing."""

import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError
from isinglass.kernels import linear
from isinglass.kernels.linear import Affine, compute_dtype, rows_product

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.fixture(params=[True, False], ids=["onednn", "without"])
def kernel(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(linear, "has_onednn", lambda: False)
    elif not linear.has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    return request.param


def random(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 200])
def test_a_prepared_layer_is_the_layer(kernel, dtype, rows):
    x, weight, bias = random(rows, 32, seed=1), random(48, 32, seed=2), random(48, seed=3)
    given = [one.to(dtype) for one in (x, weight, bias)]
    expected, tolerance = F.linear(x, weight, bias), 10 * TOLERANCE[dtype]
    layer = Affine(*given[1:])
    assert layer.is_packed == kernel
    close(layer(given[0]), expected, tolerance)
    close(Affine(*given[1:], relu=True)(given[0]), expected.relu(), tolerance)
    close(Affine(given[1])(given[0]), F.linear(x, weight), tolerance)
    other = random(rows, 48, seed=4, dtype=dtype)
    close(layer.plus(given[0], other), expected + other.float(), tolerance)
    assert torch.equal(other, random(rows, 48, seed=4, dtype=dtype))


def close(found, expected, tolerance):
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


def test_the_weight_is_copied():
    weight = torch.eye(4)
    layer = Affine(weight)
    weight.zero_()
    assert torch.equal(layer(torch.ones(1, 4)), torch.ones(1, 4))


def test_products_of_rows(kernel):
    x, y = random(70, 16, seed=1), random(33, 16, seed=2)
    torch.testing.assert_close(rows_product(x, y), x @ y.T)
    torch.testing.assert_close(rows_product(x[::2], y.T.contiguous().T), x[::2] @ y.T)


def test_what_auto_means(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(linear, "has_amx", lambda: True)
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if linear.has_onednn() else torch.float32)
    assert compute_dtype("auto", gpu) == torch.float16
    monkeypatch.setattr(linear, "has_amx", lambda: False)
    assert compute_dtype("auto", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("float16", gpu) == torch.float16
    with pytest.raises(InputError, match="use 'bfloat16'"):
        compute_dtype("float16", cpu)
