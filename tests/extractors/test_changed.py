"""An extractor that was subclassed, hooked or rebuilt gives what its modules give."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, weight_norm

from isinglass.extractors.aliked import ALIKED, ALIKEDConfig, Block
from isinglass.extractors.disk import DISK
from isinglass.extractors.superpoint import SuperPoint, SuperPointConfig
from isinglass.extractors.xfeat import XFeat, XFeatConfig

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))


def network(kind):
    torch.manual_seed(1)
    configs = {
        ALIKED: ALIKEDConfig(variant="t16", max_keypoints=50),
        SuperPoint: SuperPointConfig(detection_threshold=0, max_keypoints=50),
        XFeat: XFeatConfig(detection_threshold=0, max_keypoints=50),
    }
    return kind(next((config for of, config in configs.items() if issubclass(kind, of)), None)).eval()


def dense(model):
    """Scores of every pixel by the path that extraction takes."""
    with torch.inference_mode():
        if hasattr(model, "_dense"):
            return model._dense(IMAGE[0])[0]
        return torch.cat([found.flatten() for found in model_maps(model)])


def model_maps(model):
    """What SuperPoint and XFeat make of the image, by the network that `extract` takes."""
    if isinstance(model, SuperPoint):
        return model(IMAGE)
    found = model.extract(IMAGE)
    return found.scores.sort().values, found.descriptors.sum(dim=1)


class OtherALIKED(ALIKED):
    def _scores(self, maps):
        return super()._scores(maps) / 2


class OtherBlock(Block):
    def forward(self, x_BCHW):
        return super().forward(x_BCHW) / 2


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


KINDS = [ALIKED, DISK, SuperPoint, XFeat]


def first_conv(model):
    """Which is before all else in each of them."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_execution_is_the_same(kind):
    model = network(kind)
    expected = dense(model)
    model.execution = "plain"
    torch.testing.assert_close(dense(model), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_parametrizations_run(kind):
    model, seen = network(kind), []
    before = dense(model)
    hooked = copy.deepcopy(model)
    first_conv(hooked).register_forward_hook(lambda module, given, result: seen.append(1) or result + 1)
    assert not torch.equal(dense(hooked), before) and seen
    halved = copy.deepcopy(model)
    parametrize.register_parametrization(first_conv(halved), "weight", Halved())
    with torch.no_grad():
        first_conv(model).weight.mul_(0.5)
    torch.testing.assert_close(dense(halved), dense(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_runs_its_forward(kind):
    def forward(self, images):
        first, *rest = kind.forward(self, images)
        return (first / 2, *rest)

    model, other = network(kind), network(type("Other", (kind,), {"forward": forward}))
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(dense(model), dense(other))
    assert type(other).forward is forward


def test_methods_and_blocks_of_aliked_are_run():
    model = network(ALIKED)
    expected = dense(model)
    other = network(OtherALIKED)
    torch.testing.assert_close(dense(other), expected / 2, atol=1e-5, rtol=1e-4)
    model.block1.__class__ = OtherBlock
    assert not torch.allclose(dense(model), expected)


OFFSETS = "desc_head.offset_conv"
PARTS_OF_ALIKED = ["score_head", "score_head.0", "block3.conv1.regular_conv", "block4.conv2.regular_conv"]
PARTS_OF_ALIKED += [OFFSETS, f"{OFFSETS}.0", f"{OFFSETS}.1", "desc_head.sf_conv"]


@pytest.mark.parametrize("part", PARTS_OF_ALIKED)
def test_layers_of_aliked_that_are_rearranged_run_where_they_are_hooked(part):
    """First a hook that does nothing, which the numbers must survive; then one that does something."""
    model = network(ALIKED)
    expected, points = dense(model), torch.tensor([[10.0, 20.0], [50.5, 30.25], [3.0, 3.0]])

    def all_of(model):
        scores, pyramid = model._dense(IMAGE[0])
        return torch.cat([scores.flatten(), model.desc_head(pyramid, points).flatten()])

    with torch.inference_mode():
        before, factor = all_of(model), [1.0]
        model.get_submodule(part).register_forward_hook(lambda module, given, result: result * factor[0])
        torch.testing.assert_close(all_of(model), before, atol=2e-4, rtol=1e-3)
        factor[0] = 50.0
        assert not torch.allclose(all_of(model), before, atol=1e-3)
    assert expected.isfinite().all()


@pytest.mark.parametrize("part", [*PARTS_OF_ALIKED, "block3.conv1", "desc_head"])
def test_any_part_of_aliked_may_stand_in_a_wrapper(part):
    """A wrapper around a layer, as adapters such as LoRA are."""
    model = network(ALIKED)
    with torch.inference_mode():
        before = model.extract(IMAGE)
        parent, _, leaf = part.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Around(model.get_submodule(part)))
        model.get_submodule(part).factor = 1.0
        torch.testing.assert_close(model.extract(IMAGE).scores, before.scores, atol=2e-4, rtol=1e-3)
        model.get_submodule(part).factor = 50.0
        assert not torch.allclose(model.extract(IMAGE).descriptors, before.descriptors, atol=1e-3)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.factor = inner, 1.0

    def forward(self, *given):
        return (self.inner(*given) - 0.01) * self.factor + 0.01


@pytest.mark.parametrize("weight_of", [prune.identity, weight_norm])
def test_weights_that_hooks_make_anew_are_those_of_now(weight_of):
    """Pruning and the old weight_norm set `weight` in a hook before `forward`, so that it is stale until then."""
    model = network(ALIKED)
    expected = network(ALIKED)
    conv = model.block3.conv1.regular_conv
    weight_of(conv, "weight")
    with torch.no_grad():
        (conv.weight_orig if hasattr(conv, "weight_orig") else conv.weight_g).mul_(3)
        expected.block3.conv1.regular_conv.weight.mul_(3)
    torch.testing.assert_close(dense(model), dense(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("part", ["unet.path_up.3.conv", "unet.path_up.3.conv.3"])
def test_the_last_layer_of_disk_runs_where_it_is_hooked(part):
    model, factor, pixels = network(DISK), [1.0], torch.tensor([[0, 0], [50, 30], [95, 63]])

    def all_of(model):
        scores, context = model._dense(IMAGE[0])
        return torch.cat([scores.flatten(), model.describe(context, pixels).flatten()])

    with torch.inference_mode():
        before = all_of(model)
        model.get_submodule(part).register_forward_hook(lambda module, given, result: (result + 1) * factor[0] - 1)
        torch.testing.assert_close(all_of(model), before, atol=2e-3, rtol=1e-3)
        factor[0] = 1.5
        assert not torch.allclose(all_of(model), before, atol=1e-2)


def test_statistics_that_are_learnt_are_those_of_the_batch():
    """A network whose norm is in training mode is not in evaluation mode."""
    model = network(SuperPoint)
    before = dense(model)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).train()
    assert not torch.allclose(dense(model), before)
