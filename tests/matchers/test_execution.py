"""A subclass, or an instance that was changed, is matched by what is written in it; each execution is that function."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

from isinglass.errors import InputError
from isinglass.kernels.assignment import mutual_matches
from isinglass.kernels.linear import has_onednn
from isinglass.matchers.lightglue import (
    Assignment,
    AttentionBlock,
    CrossAttention,
    Layer,
    LightGlue,
    LightGlueConfig,
    SelfAttention,
)
from isinglass.matchers.superglue import AttentionalPropagation, SuperGlue, SuperGlueConfig
from isinglass.runtime.anatomy import modification
from isinglass.train.lora import add_low_rank, merged
from support import dense_batch, make_features, make_pair

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

LIGHTGLUE = LightGlueConfig(
    input_size=24, width=32, layers=3, heads=2, filter_threshold=0.0, depth_confidence=None, width_confidence=None
)
SUPERGLUE = SuperGlueConfig(input_size=24, width=32, layers=4, heads=2, filter_threshold=0.0, sinkhorn_iterations=9)
PAIRS = [make_pair(40, 30), make_pair(21, 33, seed=2, size=(320, 500)), make_pair(9, 9, seed=3)]


def model_of(config, kind=None):
    torch.manual_seed(3)
    model = (kind or (LightGlue if isinstance(config, LightGlueConfig) else SuperGlue))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def by_forward(model, pair):
    """Indices and scores of the module's own `forward`."""
    numbers, mask = dense_batch([pair])
    if isinstance(model, SuperGlue):
        keypoints, descriptors, size = numbers
        scores = torch.stack(
            [nn.functional.pad(x.scores[0], (0, keypoints.shape[2] - x.scores.shape[1])) for x in pair]
        )
        log_assignment = model(keypoints, descriptors, scores[None], size, mask)
    else:
        log_assignment = model(*numbers, None, mask)[-1].log_assignment_BNN
    m, n = (view.keypoints.shape[1] for view in pair)
    return mutual_matches(log_assignment[:, :m, :n], 0.0)


def assert_is_its_forward(model, pairs=PAIRS):
    for pair, found in zip(pairs, model.match_many(*zip(*pairs, strict=True)), strict=True):
        indices, scores = by_forward(model, pair)
        assert torch.equal(found.indices, indices)
        torch.testing.assert_close(found.scores, scores.clamp(max=1), atol=2e-5, rtol=0)


def differs(one, other, pairs=PAIRS):
    """Whether two models match otherwise, by much more than rounding."""
    views = list(zip(*pairs, strict=True))
    found = zip(one.match_many(*views), other.match_many(*views), strict=True)
    return max(float((a.scores - b.scores).abs().max()) for a, b in found) > 1e-3


class OtherAttention(SelfAttention):
    def forward(self, x, rotation, layout):
        return x + 0.3 * super().forward(x, rotation, layout).tanh()


class OtherLayer(Layer):
    def forward(self, x, rotation, layout):
        return self.self_attention(self.cross_attention(x, layout), rotation, layout)


class OtherLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input).clamp(-0.5, 0.5)


class OtherHead(Assignment):
    def forward(self, x0_BMD, x1_BND, padding_BMN=None):
        return super().forward(x0_BMD.tanh(), x1_BND.tanh(), padding_BMN)


class OtherForward(LightGlue):
    def forward(self, keypoints_B2N2, descriptors_B2ND, *more, **options):
        return super().forward(keypoints_B2N2, descriptors_B2ND.flip(-1), *more, **options)


class OtherPredict(LightGlue):
    def _predict(self, layer, x_B2ND, mask_B2N):
        return super()._predict(layer, x_B2ND.tanh(), mask_B2N)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def replaced_layer(model):
    model.layers[1] = OtherLayer(32, 2)


def replaced_attention(model):
    model.layers[1].self_attention.__class__ = OtherAttention


def replaced_linear(model):
    model.layers[0].self_attention.out.__class__ = OtherLinear


def replaced_activation(model):
    model.layers[0].cross_attention.ffn[2] = nn.ReLU()


def other_gelu(model):
    model.layers[0].cross_attention.ffn[2] = nn.GELU(approximate="tanh")
    model.layers[0].cross_attention.ffn[1].eps = 0.5


def replaced_norm(model):
    model.layers[0].self_attention.ffn[1] = nn.Identity()


def no_bias(model):
    model.layers[0].self_attention.out = nn.Linear(32, 32, bias=False)


def hook(model):
    model.layers[1].self_attention.qkv.register_forward_hook(lambda module, given, result: result * 1.5)


def early_hook(model):
    model.layers[1].register_forward_pre_hook(lambda module, given: (given[0] * 1.5, *given[1:]))


def hook_of_all(model):
    model.register_forward_hook(lambda module, given, result: result[::-1])


def other_forward_of_an_instance(model):
    unit = model.layers[0].cross_attention
    forward = unit.forward
    unit.forward = lambda *given: forward(*given).tanh()


def other_forward_of_the_model(model):
    forward = model.forward
    model.forward = lambda keypoints, descriptors, *more: forward(keypoints, descriptors.flip(-1), *more)


def parametrization(model):
    parametrize.register_parametrization(model.layers[0].self_attention.qkv, "weight", Twice())


def pruned(model):
    prune.l1_unstructured(model.layers[0].self_attention.ffn[0], "weight", 0.7)


def other_head(model):
    model.assignments[-1].__class__ = OtherHead


def other_projection(model):
    model.assignments[-1].projection.register_forward_hook(lambda module, given, result: result * 1.5)


def one_head_only(model):
    model.layers[1].cross_attention.heads = 1


def shared_layer(model):
    model.layers[2] = model.layers[0]


CHANGES = [
    replaced_layer, replaced_attention, replaced_linear, replaced_activation, other_gelu, replaced_norm, no_bias, hook,
    early_hook, other_forward_of_an_instance, other_forward_of_the_model, parametrization, pruned, other_head,
    other_projection, one_head_only, shared_layer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_lightglue_runs_what_it_says(change):
    plain = model_of(LIGHTGLUE)
    plain.match(*PAIRS[0])  # what is kept of the time before must not matter
    model = copy.deepcopy(plain)
    model.match(*PAIRS[0])
    change(model)
    assert_is_its_forward(model)
    assert differs(model, plain)
    model.execution = "fused"
    with pytest.raises(InputError, match="unmodified LightGlue"):
        model.match(*PAIRS[0])


@pytest.mark.parametrize("kind", [OtherForward, OtherPredict])
def test_a_subclass_with_its_own_forward_runs_it(kind):
    model = model_of(LIGHTGLUE, kind)
    assert_is_its_forward(model)
    plain = LightGlue(LIGHTGLUE)
    plain.load_state_dict(model.state_dict())
    assert differs(model, plain)
    empty = model.match(make_features(5), make_features(0))
    assert empty.indices.tolist() == [[-1] * 5] and empty.stop_layer.tolist() == [0]
    assert model.match(*PAIRS[0]).stop_layer.tolist() == [3]


def test_a_hook_on_the_whole_model_runs():
    model, seen = model_of(LIGHTGLUE), []
    model.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    assert_is_its_forward(model, PAIRS[:1])
    assert seen == [1, 1]  # by `match_many`, and by `forward`


def test_methods_patched_in_the_class_itself_run(monkeypatch):
    model, forward = model_of(LIGHTGLUE), SelfAttention.forward
    before = model.match(*PAIRS[0]).scores
    monkeypatch.setattr(SelfAttention, "forward", lambda self, *given: forward(self, *given).tanh())
    assert_is_its_forward(model)
    assert not torch.allclose(model.match(*PAIRS[0]).scores, before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_whose_code_was_changed_runs_as_it_is_written(monkeypatch, dtype):
    """A gate on the message, say, in the file of the network itself: nothing about the class tells of it."""
    model, update = model_of(LIGHTGLUE), AttentionBlock.update
    model.compute_dtype = dtype
    before = model.match(*PAIRS[0]).scores
    monkeypatch.setattr(AttentionBlock, "update", lambda self, x, message: update(self, x, 0.8 * message))
    model = copy.deepcopy(model)
    after = model.match(*PAIRS[0]).scores
    assert not torch.allclose(after, before, atol=1e-2)
    model.execution = "plain"
    assert torch.equal(model.match(*PAIRS[0]).scores, after)
    model.execution = "fused"
    with pytest.raises(InputError, match="compute something else than the layers of this LightGlue"):
        model.match(*PAIRS[0])


def test_hooks_of_all_modules_run():
    model, seen = model_of(LIGHTGLUE), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, result: seen.append(type(module)))
    model.match(*PAIRS[0])
    handle.remove()
    assert {SelfAttention, CrossAttention, nn.GELU} <= set(seen)
    model.match(*PAIRS[0])
    assert model.match(*PAIRS[0]).scores.isfinite().all()


@pytest.mark.parametrize("name", ["NoMatchability", "Absolute", "TwoWay"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_variants_of_the_ablation_are_their_forward(name, adaptive):
    import training_variants

    kind = getattr(training_variants, name)
    more = {} if adaptive else {"depth_confidence": None, "width_confidence": None}
    config = kind.Config(input_size=24, width=32, layers=3, heads=2, filter_threshold=0.0, **more)
    model = model_of(config, kind)
    if adaptive:  # nobody is sure of random weights, nobody unmatchable
        with torch.no_grad():
            for head in model.confidences:
                head.bias.fill_(-9)
    assert_is_its_forward(model)


def test_a_changed_model_is_still_adaptive():
    """By the plain modules, pairs leave and points are pruned as by the fused block."""
    config = LightGlueConfig(input_size=24, width=32, layers=5, heads=2, filter_threshold=0.0, depth_confidence=0.8,
                             width_confidence=0.6)  # fmt: skip
    model = model_of(config)
    with torch.no_grad():
        for head in model.confidences:
            head.bias.fill_(2.2)
    pairs = [*PAIRS, (make_features(9), make_features(0)), make_pair(200, 150, seed=5), make_pair(1, 1)]
    fused = model.match_many(*zip(*pairs, strict=True))
    model.layers[0].self_attention.qkv.register_forward_hook(lambda *given: None)
    plain = model.match_many(*zip(*pairs, strict=True))
    for one, other in zip(fused, plain, strict=True):
        for name in ("indices", "stop_layer", "pruned_at0", "pruned_at1"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        torch.testing.assert_close(one.scores, other.scores, atol=5e-5, rtol=0)
        torch.testing.assert_close(one.confidences0, other.confidences0, atol=1e-5, rtol=0, equal_nan=True)
    assert len(torch.cat([torch.cat([one.pruned_at0[0], one.pruned_at1[0]]) for one in plain]).unique()) > 2


# ---- SuperGlue


class OtherAssign(SuperGlue):
    def log_augmented_assignment(self, x0_BMD, x1_BND, mask_B2N=None):
        return super().log_augmented_assignment(x0_BMD * 3, x1_BND, mask_B2N)


class OtherPropagation(AttentionalPropagation):
    def forward(self, x, sample, layout):
        return super().forward(x, sample, layout).tanh()


def other_propagation(model):
    model.layers[1].__class__ = OtherPropagation


def other_relu(model):
    model.layers[0].mlp[2] = nn.GELU()


def no_norm(model):
    model.keypoint_encoder[1] = nn.Identity()


def hook_on_a_norm(model):
    model.layers[1].mlp[1].register_forward_hook(lambda module, given, result: result * 3)


def other_norm(model):
    model.layers[1].mlp[1].__class__ = OtherNorm


class OtherNorm(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input).abs()


def hook_on_the_projection(model):
    model.final_projection.register_forward_hook(lambda module, given, result: result * 3)


def hook_on_the_encoder(model):
    model.keypoint_encoder.register_forward_hook(lambda module, given, result: result * 3)


def other_assignment(model):
    model.__class__ = OtherAssign


@pytest.mark.parametrize(
    "change",
    [
        other_propagation,
        other_relu,
        no_norm,
        hook_on_a_norm,
        other_norm,
        hook_on_the_projection,
        hook_on_the_encoder,
        other_assignment,
    ],
)
def test_a_changed_superglue_runs_what_it_says(change):
    plain = model_of(SUPERGLUE)
    model = copy.deepcopy(plain)
    model.match(*PAIRS[0])
    change(model)
    assert_is_its_forward(model)
    assert differs(model, plain)
    assert model.match(make_features(5), make_features(0)).indices.tolist() == [[-1] * 5]
    model.execution = "cuda_graph"
    with pytest.raises(InputError, match="unmodified SuperGlue"):
        model.match(*PAIRS[0])


# ---- what is asked for


class PublicOperations(TorchDispatchMode):
    """Refuses what is private to a build of torch, or to one device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func.name().split("::")
        assert space in ("aten", "prim", "prims", "profiler"), func
        assert "mkldnn" not in name and "onednn" not in name, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_execution_is_the_same_by_public_operations_alone(monkeypatch, config, dtype):
    """What GPUs run by default; in halves by autocast."""
    model = model_of(config)
    model.compute_dtype = dtype
    views = list(zip(*PAIRS, strict=True))
    usual = model.match_many(*views)
    model.execution = "plain"
    with PublicOperations():
        plain = model.match_many(*views)
    for one, other in zip(usual, plain, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=2e-5 if dtype == torch.float32 else 0.1, rtol=0)
        assert (one.indices == other.indices).float().mean() >= (1 if dtype == torch.float32 else 0.7)
    model.execution = "fused"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that it is this thread that acts
    if has_onednn():
        with pytest.raises(AssertionError, match="mkldnn"), PublicOperations():
            model.match_many(*views)


@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
def test_a_path_that_cannot_be_had_is_refused(config):
    model = model_of(config)
    model.execution = "fast"
    with pytest.raises(InputError, match="'fast'; expected one of 'auto', 'plain', 'fused', 'cuda_graph'"):
        model.match(*PAIRS[0])


@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("execution", ["auto", "plain"])
def test_weights_of_doubles_and_halves_match(config, dtype, execution):
    model = model_of(config)
    expected = model.match(*PAIRS[0])
    model.to(dtype).execution = execution
    loose = 2e-5 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(model.match(*PAIRS[0]).scores.float(), expected.scores, atol=loose, rtol=0)


@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
def test_lora_matches_with_its_additions_and_when_merged(config):
    model = model_of(config)
    plain = copy.deepcopy(model)
    add_low_rank(model, 2)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "b") and hasattr(module, "a"):
                module.b.normal_(std=0.3)
    assert modification(model, type(model)) is not None
    assert_is_its_forward(model)
    whole = merged(model).eval()
    assert modification(whole, type(whole)) is None
    assert differs(model, plain) and not differs(model, whole)
