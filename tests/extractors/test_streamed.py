"""DISK, SuperPoint and XFeat as rearranged for inference: equal to their plain modules, whatever becomes of weights."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isinglass.extractors import disk_streamed
from isinglass.extractors.disk import DISK
from isinglass.extractors.disk_streamed import Gate
from isinglass.extractors.superpoint import SuperPoint
from isinglass.extractors.xfeat import XFeat
from isinglass.kernels import convolution
from isinglass.kernels.convolution import framed, fused, rows_of
from isinglass.runtime.fused import prepared


def random_model(kind, seed=0, **options):
    torch.manual_seed(seed)
    model = kind(kind.Config(**options)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)  # of either sign: ReLU and maxima are not to be swapped
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


@torch.no_grad()
def plain(model, image):
    """The dense outputs, by the modules as they are trained."""
    if isinstance(model, SuperPoint):
        with torch.enable_grad():
            return [one.detach() for one in model(image[None])]
    return list(model(image[None]))


@torch.inference_mode()
def rearranged(model, image):
    if isinstance(model, DISK):
        scores, gate = model._dense(image)
        rows = gate.at(torch.arange(gate.height * gate.width))
        return [scores[None], rows.T.reshape(1, -1, gate.height, gate.width)]
    if isinstance(model, XFeat):
        return list(prepared(model, image.dtype, lambda: fused(model))(image[None]))
    return list(model(image[None]))


def assert_equal_maps(model, image):
    for found, expected in zip(rearranged(model, image), plain(model, image), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


CASES = [
    (DISK, {}, (16, 16)),  # one pixel at the bottom
    (DISK, {}, (33, 17)),
    (DISK, {}, (80, 112)),
    (SuperPoint, {}, (8, 8)),
    (SuperPoint, {}, (61, 75)),
    (SuperPoint, {"batch_norm": False, "descriptor_size": 64}, (96, 40)),
    (XFeat, {}, (32, 32)),
    (XFeat, {}, (64, 96)),
]


@pytest.mark.parametrize("strip", [8, 16, 32])  # several strips, and a shorter last one
@pytest.mark.parametrize(("kind", "options", "size"), CASES)
def test_equals_plain_modules(monkeypatch, strip, kind, options, size):
    monkeypatch.setattr(convolution, "STRIP_PIXELS", 1)
    monkeypatch.setattr(convolution, "LEAST_ROWS", strip)
    assert_equal_maps(random_model(kind, **options), torch.rand(3 if kind is DISK else 1, *size))


@pytest.mark.parametrize("kind", [DISK, SuperPoint, XFeat])
def test_changed_weights_are_noticed(kind):
    """Other tensors, the same tensors with other values, and copies with weights of their own."""
    model, image = random_model(kind), torch.rand(3 if kind is DISK else 1, 32, 64)
    before = rearranged(model, image)[0]
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    model.load_state_dict(random_model(kind, seed=1).state_dict())
    assert float((rearranged(model, image)[0] - before).abs().max()) > 1e-3
    assert_equal_maps(model, image)
    for other in copies:
        assert torch.equal(rearranged(other, image)[0], before)
        with torch.no_grad():
            next(module for module in other.modules() if isinstance(module, nn.Conv2d)).weight.mul_(-1.5)
        assert_equal_maps(other, image)


def test_training_keeps_to_the_plain_modules():
    model = random_model(SuperPoint).train()
    model(torch.rand(2, 1, 32, 40))[0].sum().backward()
    assert all(one.grad is not None for name, one in model.named_parameters() if "descriptor" not in name)
    scores, context = random_model(DISK).train()._dense(torch.rand(3, 32, 48))
    assert isinstance(context, torch.Tensor)
    scores.sum().backward()


def framed_like(x):
    frame = framed(*x.shape[1:], frame=disk_streamed.REACH, like=x)
    frame[:, :, disk_streamed.REACH : -disk_streamed.REACH] = x
    return frame


@pytest.mark.parametrize("strip", [2, 6, 32])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (9, 12)])
def test_gate_equals_upsampling_joining_and_norm(monkeypatch, size, strip):
    """Of maps with means and scales of their own, which instance norm must take away."""
    monkeypatch.setattr(convolution, "STRIP_PIXELS", 1)
    monkeypatch.setattr(convolution, "LEAST_ROWS", strip)
    scales = torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    coarse, fine = torch.randn(1, 3, *size) * scales + 2 * scales, torch.randn(1, 2, 2 * size[0], 2 * size[1]) + 5
    prelu = nn.PReLU(5)
    nn.init.uniform_(prelu.weight, -0.5, 1.5)
    joined = torch.cat([F.interpolate(coarse, scale_factor=2, mode="bilinear"), fine], dim=1)
    with torch.inference_mode():
        expected = F.pad(prelu(F.instance_norm(joined)), (0, 0, 2, 2))
        gate = Gate(prelu, framed_like(fine), framed_like(coarse))
        for first, last in convolution.strips(2 * size[0], 2 * size[1]):
            torch.testing.assert_close(gate.strip(first, last), expected[:, :, first : last + 4], atol=1e-3, rtol=0)
        found = gate.at(torch.arange(fine[0, 0].numel()))
        torch.testing.assert_close(found, rows_of(expected[:, :, 2:-2]), atol=1e-3, rtol=0)


def test_describing_from_the_gate_equals_describing_from_the_map():
    """At the very border too, where the windows leave the map."""
    model, image = random_model(DISK), torch.rand(3, 32, 48)
    pixels = torch.tensor([[0, 0], [47, 31], [20, 9], [1, 30]])
    with torch.inference_mode():
        expected = model.describe(model(image[None])[1][0], pixels)
        found = model.describe(model._dense(image)[1], pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
