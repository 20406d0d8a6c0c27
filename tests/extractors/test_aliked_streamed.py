"""ALIKED in strips: equal to its plain modules, whatever becomes of the weights."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isinglass.extractors.aliked import ALIKED, Pyramid
from isinglass.kernels import convolution


def random_model(seed=0, **options):
    torch.manual_seed(seed)
    model = ALIKED(ALIKED.Config(**options)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    return model


def plain(model, image):
    """Scores, and the pyramid at every pixel, by the modules as they are trained."""
    height, width = image.shape[1:]
    with torch.no_grad():
        scores, maps = model(image[None])
        return scores[0], Pyramid([level[0] for level in maps], width, height).at(torch.arange(height * width))


@torch.inference_mode()
def streamed(model, image):
    scores, pyramid = model._dense(image)
    assert pyramid.finish is not None  # it is the fast path
    return scores, pyramid.at(torch.arange(scores.numel()))


def assert_equal_maps(model, image):
    for found, expected in zip(streamed(model, image), plain(model, image), strict=True):
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("strip", [8, 16, 32])  # several strips, and a shorter last one
@pytest.mark.parametrize(("variant", "size"), [("n16", (90, 70)), ("t16", (33, 100)), ("t16", (17, 5))])
def test_equals_plain_modules(monkeypatch, strip, variant, size):
    monkeypatch.setattr(convolution, "STRIP_PIXELS", 1)
    monkeypatch.setattr(convolution, "LEAST_ROWS", strip)
    assert_equal_maps(random_model(variant=variant), torch.rand(3, *size))


def test_samples_equal_interpolation_of_the_dense_map():
    model, image = random_model(variant="t16"), torch.rand(3, 40, 51)
    dense = plain(model, image)[1].T.view(1, -1, 40, 51)
    points = torch.rand(200, 2) * torch.tensor([60.0, 50.0]) - 5
    points[:4] = torch.tensor([[0.0, 0.0], [50.0, 39.0], [-1.0, 3.0], [51.0, 40.0]])
    grid = (points * 2 + 1) / torch.tensor([51, 40]) - 1
    expected = F.grid_sample(dense, grid[None, :, None], align_corners=False)[0, :, :, 0].T
    with torch.inference_mode():
        found = model._dense(image)[1].sample(points)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def change_in_place(model):
    with torch.no_grad():
        model.block1.conv1.weight.mul_(1.3)


def change_statistics(model):
    model.block2.bn2.running_var.mul_(2.0)


def change_score_head(model):
    with torch.no_grad():
        model.score_head[4].weight.neg_()


def load_another(model):
    model.load_state_dict(random_model(seed=5, variant="t16").state_dict())


def there_and_back(model):
    change_in_place(model.double().float())


@pytest.mark.parametrize("act", [change_in_place, change_statistics, change_score_head, load_another, there_and_back])
def test_changed_weights_are_noticed(act):
    model, image = random_model(variant="t16"), torch.rand(3, 40, 50)
    before = streamed(model, image)[0]
    act(model)
    assert float((streamed(model, image)[0] - before).abs().max()) > 1e-3
    assert_equal_maps(model, image)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_models_of_their_own(twin):
    model, image = random_model(variant="t16"), torch.rand(3, 40, 50)
    before = streamed(model, image)[0]
    other = twin(model)
    assert torch.equal(streamed(other, image)[0], before)
    change_in_place(other)
    assert_equal_maps(other, image)
    assert torch.equal(streamed(model, image)[0], before)


def test_training_keeps_to_the_plain_modules():
    """With the statistics of the batch, as batch norm has it there."""
    model, image = random_model(variant="t16").train(), torch.rand(3, 64, 64)
    scores, pyramid = model._dense(image)
    assert pyramid.finish is None
    scores.sum().backward()
    assert model.block1.conv1.weight.grad is not None
