"""What is made once of the weights of a network follows them, however they are written."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from isinglass.extractors.aliked import ALIKED, ALIKEDConfig
from isinglass.extractors.disk import DISK
from isinglass.extractors.superpoint import SuperPoint
from isinglass.extractors.xfeat import XFeat, XFeatConfig
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.runtime import fused
from isinglass.runtime.anatomy import Snapshot, modification
from isinglass.runtime.fused import prepared
from isinglass.train.lora import add_low_rank, merged
from support import make_pair

LIGHTGLUE = LightGlueConfig(input_size=24, width=32, layers=3, heads=2, filter_threshold=0.0)
SUPERGLUE = SuperGlueConfig(input_size=24, width=32, layers=2, heads=2, filter_threshold=0.0, sinkhorn_iterations=9)
PAIR = make_pair(40, 30)


def network(kind):
    torch.manual_seed(5)
    model = (LightGlue(LIGHTGLUE) if kind == "lightglue" else SuperGlue(SUPERGLUE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def other_numbers(model):
    torch.manual_seed(6)
    return {name: 1.3 * value + 0.2 * torch.randn_like(value) for name, value in model.named_parameters()}


def data_copy(model):
    for name, value in model.named_parameters():
        value.data.copy_(other_numbers(model)[name])


def data_set(model):
    for value in model.parameters():
        value.data = 1.3 * value.data + 0.1


def numpy_write(model):
    for value in model.parameters():
        value.detach().numpy()[...] = value.detach().numpy() * 1.5 + 0.05


def in_inference_mode(model):
    with torch.inference_mode():
        for value in model.parameters():
            value.mul_(1.5)


def optimizer_steps(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for value in model.parameters():
        value.grad = 0.2 * torch.randn_like(value)
    optimizer.step()


def state_dict(model):
    model.load_state_dict(other_numbers(model), strict=False)


def assigned_state_dict(model):
    model.load_state_dict(model.state_dict() | other_numbers(model), assign=True)


def swapped_rows(model):
    """Every sum of numbers stays."""
    for value in model.parameters():
        if value.ndim == 2 and len(value) > 8:
            value.data[[1, 5]] = value.data[[5, 1]]


def new_parameters(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(1.5 * module.weight.detach())


def new_modules(model):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        for name in ("layers", "assignments", "final_projection"):
            if hasattr(model, name):
                setattr(model, name, getattr(type(model)(model.config), name).eval())


def one_number(model):
    """The first of one bias; the smallest change there is to see."""
    value = next(value for name, value in model.named_parameters() if name.endswith("out.bias"))
    value.data[0] += 1


def low_rank(model):
    """Added, learnt, and merged by hand into the same parameters."""
    other = copy.deepcopy(model)
    add_low_rank(other, 2)
    for module in other.modules():
        if hasattr(module, "a") and hasattr(module, "b"):
            nn.init.normal_(module.b, std=0.3)
    for mine, theirs in zip(model.parameters(), merged(other).parameters(), strict=True):
        mine.data.copy_(theirs.data)


WRITES = [
    data_copy, data_set, numpy_write, in_inference_mode, optimizer_steps, state_dict, assigned_state_dict, swapped_rows,
    new_parameters, new_modules, one_number, low_rank,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("kind", "execution"), [("lightglue", "fused"), ("superglue", "cuda_graph")])
def test_matches_are_those_of_the_weights_as_they_are(kind, execution, write):
    model = network(kind)
    model.execution = execution
    before = model.match(*PAIR).scores
    write(model)
    found, expected = model.match(*PAIR).scores, copy.deepcopy(model).match(*PAIR).scores
    assert torch.equal(found, expected)
    assert not torch.allclose(found, before, atol=1e-4)


@pytest.mark.parametrize("execution", ["fused", "cuda_graph"])
@pytest.mark.parametrize("name", ["bin_score", "keypoint_encoder", "final_projection", "running"])
def test_each_part_of_superglue_is_noticed_alone(execution, name):
    model = network("superglue")
    model.execution = execution
    before = model.match(*PAIR).scores
    for key, value in model.state_dict().items():
        if name in key and value.is_floating_point():
            value.data.mul_(1.7).add_(0.1)
    found = model.match(*PAIR).scores
    assert torch.equal(found, copy.deepcopy(model).match(*PAIR).scores)
    assert not torch.allclose(found, before, atol=1e-4)


@pytest.mark.parametrize("name", ["confidences", "assignments", "position_encoding", "input_projection"])
def test_each_part_of_lightglue_is_noticed_alone(name):
    model = network("lightglue")
    model.execution = "cuda_graph"
    model.match(*PAIR)
    for value in model.get_submodule(name).parameters():
        value.data.mul_(1.7).add_(0.3)
    for one, other in ((model, copy.deepcopy(model)),):
        assert torch.equal(one.match(*PAIR).scores, other.match(*PAIR).scores)
        torch.testing.assert_close(
            one.match(*PAIR).confidences0, other.match(*PAIR).confidences0, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("kind", ["lightglue", "superglue"])
def test_an_eps_that_was_changed_is_used(kind):
    model = network(kind)
    model.match(*PAIR)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            module.eps = 0.7
    fused, model.execution = model.match(*PAIR).scores, "plain"
    torch.testing.assert_close(fused, model.match(*PAIR).scores, atol=2e-5, rtol=0)


def test_dtypes_of_one_model_do_not_mix():
    model = network("lightglue")
    expected = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        expected[dtype] = model.match(*PAIR).scores
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model.compute_dtype = dtype
        assert torch.equal(model.match(*PAIR).scores, expected[dtype])
    assert not torch.equal(*expected.values())


def test_a_model_moved_and_back_is_itself():
    model = network("lightglue")
    expected = model.match(*PAIR).scores
    model.to(torch.bfloat16)
    rounded = model.match(*PAIR).scores
    model.to(torch.float32)
    again = model.match(*PAIR).scores
    assert torch.equal(again, copy.deepcopy(model).match(*PAIR).scores)
    assert not torch.equal(rounded, expected) and not torch.equal(again, expected)


EXTRACTORS = [
    lambda: ALIKED(ALIKEDConfig(variant="t16")),
    DISK,
    SuperPoint,
    lambda: XFeat(XFeatConfig(detection_threshold=0)),
]


def maps_of(model, image):
    """Every dense number that its extraction is made of."""
    with torch.inference_mode():
        if hasattr(model, "_dense"):
            return model._dense(image[0])[0]
        features = model.extract(image)
        return torch.cat([features.scores.flatten(), features.descriptors.flatten(), features.keypoints.flatten()])


@pytest.mark.parametrize("make", EXTRACTORS, ids=["aliked", "disk", "superpoint", "xfeat"])
@pytest.mark.parametrize("what", ["data", "numpy", "buffers"])
def test_extractors_follow_their_weights(make, what):
    torch.manual_seed(4)
    model, image = make().eval(), torch.rand(1, 3, 96, 128)
    before = maps_of(model, image)
    if what == "buffers" and not any(value.is_floating_point() for value in model.buffers()):
        pytest.skip("it has no statistics")
    for value in model.buffers() if what == "buffers" else model.parameters():
        if what == "numpy":
            value.detach().numpy()[...] *= 1.3
        elif value.is_floating_point():
            value.data.mul_(1.3).add_(0.05)
    found = maps_of(model, image)
    assert modification(model, type(model)) is None
    torch.testing.assert_close(found, maps_of(copy.deepcopy(model), image), rtol=0, atol=0)
    assert found.shape != before.shape or not torch.allclose(found, before, atol=1e-5)


def test_products_of_one_network_do_not_collide():
    module = nn.Linear(2, 2)
    for name in ("a", ("b", torch.float32), ("b", torch.float16)):
        assert prepared(module, name, lambda name=name: [name]) == [name]
        assert prepared(module, name, lambda: ["another"]) == [name]


def test_what_is_written_while_it_is_made_is_not_kept():
    module, made = nn.Linear(2, 2), []

    def make():
        made.append(float(module.bias[0].detach()))
        if len(made) == 1:
            module.bias.data[0] = 7
        return made[-1]

    prepared(module, "x", make)
    assert prepared(module, "x", make) == 7
    assert prepared(module, "x", make) == 7 and len(made) == 2


def test_threads_make_it_once():
    module, made, found = nn.Linear(64, 64), [], []
    begin = threading.Barrier(4)

    def run():
        begin.wait()
        found.append(prepared(module, "x", lambda: made.append(1) or object()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(map(id, found))) == 1


def test_threads_that_match_while_another_writes_end_with_the_last_weights():
    model, wrong = network("lightglue"), []

    def match():
        for _ in range(10):
            if not model.match(*PAIR).scores.isfinite().all():
                wrong.append(1)

    threads = [threading.Thread(target=match) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        for value in model.parameters():
            value.data.mul_(1.01)
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(model.match(*PAIR).scores, copy.deepcopy(model).match(*PAIR).scores)


@pytest.mark.parametrize("kind", ["lightglue", "superglue"])
def test_what_is_prepared_dies_with_its_model(kind):
    model = network(kind)
    for execution in ("fused", "cuda_graph"):
        model.execution = execution
        model.match(*PAIR)
    gc.collect()
    before, kept = len(fused._PREPARED), weakref.ref(fused._PREPARED[model])
    del model
    gc.collect()
    assert len(fused._PREPARED) == before - 1 and kept() is None


def test_a_snapshot_sees_odd_tensors():
    """Tensors may be empty, have no axis, other strides or dtypes, or be a plain attribute of the module."""
    module = nn.Module()
    dtypes = (torch.bfloat16, torch.bool, torch.complex64, torch.int8)
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    odd = [torch.zeros(0, 3), torch.tensor(1.0), torch.randn(4, 6).T, channels_last]
    for i, value in enumerate([*odd, *(torch.ones(3, dtype=dtype) for dtype in dtypes)]):
        module.register_buffer(f"b{i}", value)
    module.register_buffer("none", None)
    module.mere = torch.ones(3)
    snapshot = Snapshot(module)
    assert snapshot.holds(module)
    for value in [*module.buffers(), module.mere]:
        if value.numel():
            kept = value.clone()
            value[(-1,) * value.ndim] = 0
            assert not snapshot.holds(module), value.dtype
            value.copy_(kept)
            assert snapshot.holds(module)
    module.b1 = module.b1.double()
    assert not snapshot.holds(module)


def test_weights_are_compared_once_a_call_however_many_chunks(monkeypatch):
    model, calls = network("lightglue"), []
    model.max_tokens = 1
    model.match(*PAIR)
    holds = Snapshot.holds
    monkeypatch.setattr(Snapshot, "holds", lambda self, network: (calls.append(1), holds(self, network))[1])
    model.match_many([PAIR[0]] * 3, [PAIR[1]] * 3)
    assert calls == [1]
