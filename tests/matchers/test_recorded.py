"""The path for GPUs, run on the CPU: the same as `match_many` there; and nothing in it makes the host wait."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from isinglass.matchers import recorded
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.recorded import Exits, LightGlueParts, RecordedLightGlue, RecordedSuperGlue, Sizes
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.ops import linear, segments
from isinglass.ops.recording import bucket_of
from support import make_features, make_pair

LIGHTGLUE = LightGlueConfig(input_size=24, width=32, layers=5, heads=2, filter_threshold=0.0)
SUPERGLUE = SuperGlueConfig(input_size=24, width=32, layers=4, heads=2, filter_threshold=0.0, sinkhorn_iterations=9)


def model_of(config):
    """Random weights large enough that points leave at every layer."""
    torch.manual_seed(3)
    model = (LightGlue if isinstance(config, LightGlueConfig) else SuperGlue)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        for head in getattr(model, "confidences", ()):
            head.bias.fill_(2.2)
    return model


def both_ways(model, pairs):
    """By lists, and as on a GPU."""
    views = tuple(zip(*pairs, strict=True))
    expected = model.match_many(*views)
    model.execution = "cuda_graph"
    found = model.match_many(*views)
    model.execution = "auto"
    return expected, found


def assert_same(expected, found):
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.indices, two.indices)
        torch.testing.assert_close(one.scores, two.scores, atol=5e-5, rtol=0)
        for name in ("stop_layer", "pruned_at0", "pruned_at1"):
            if getattr(one, name) is not None:
                assert torch.equal(getattr(one, name), getattr(two, name)), name
        for name in ("confidences0", "confidences1"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=0, equal_nan=True)
        assert one.matcher == two.matcher


PAIRS = [
    make_pair(40, 30),
    make_pair(7, 33, seed=2, size=(320, 500)),
    make_pair(200, 150, seed=3),
    (make_features(9), make_features(0)),
    make_pair(64, 64, seed=6),
    make_pair(1, 1, seed=8),
    (make_features(0), make_features(0)),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth_confidence": 0.7, "width_confidence": 0.6},
        {"depth_confidence": None, "width_confidence": 0.6},
        {"depth_confidence": 0.8, "width_confidence": None},
        {"depth_confidence": None, "width_confidence": None},
    ],
)
def test_lightglue_is_the_same_with_all_kinds_of_exits(options):
    expected, found = both_ways(model_of(dataclasses.replace(LIGHTGLUE, **options)), PAIRS)
    assert_same(expected, found)
    left = torch.cat([one.pruned_at0[0] for one in expected])
    if options.get("width_confidence"):
        assert len(left.unique()) > 2  # points did leave at several layers


def test_superglue_is_the_same():
    model = model_of(SUPERGLUE)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    assert_same(*both_ways(model, PAIRS))


@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
def test_a_workspace_has_nothing_left_of_what_it_was_used_for(config):
    """Sizes of one bucket, one after the other, forth and back."""
    model = model_of(config)
    for pairs in (PAIRS[:3], [make_pair(60, 61, seed=9)], PAIRS[:2], [make_pair(33, 50, seed=12)], PAIRS[:3]):
        assert_same(*both_ways(model, pairs))


def test_new_weights_are_used():
    model = model_of(LIGHTGLUE)
    both_ways(model, PAIRS)
    with torch.no_grad():
        model.assignments[-1].projection.weight.mul_(1.5)
        model.layers[1].self_attention.out.weight.mul_(0.5)
    assert_same(*both_ways(model, PAIRS))


def test_buffers_shrink_a_layer_after_points_left(monkeypatch):
    taken = []
    take_over = recorded._Buffer.taking_over
    monkeypatch.setattr(recorded._Buffer, "taking_over", lambda *both: (taken.append(take_over(*both)), taken[-1])[1])
    model = model_of(dataclasses.replace(LIGHTGLUE, depth_confidence=None, width_confidence=0.5))
    expected, _ = both_ways(model, [make_pair(300, 300, seed=i) for i in range(4)])
    left = torch.cat([torch.cat([one.pruned_at0[0], one.pruned_at1[0]]) for one in expected])
    inside = [int((left > layer).sum()) for layer in range(1, len(taken) + 1)]
    assert [buffer.places for buffer in taken] == [bucket_of(count) for count in inside]
    assert taken[-1].places < bucket_of(len(left))


def test_workspaces_are_few():
    workspaces = recorded.Workspaces()
    for i in range(30):
        assert workspaces.get(i, lambda i=i: i) == i
        assert workspaces.get(0, lambda: 0) == 0
    assert len(workspaces.kept) == recorded.WORKSPACES
    assert 0 in workspaces.kept


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", ["lightglue", "superglue"])
def test_the_host_never_waits(monkeypatch, kind):
    """Tensors without numbers: what wanted one of them on the host would raise."""
    monkeypatch.setattr(segments, "attend_segments", lambda q, k, v, *rest: torch.empty_like(v))
    monkeypatch.setattr(linear, "has_onednn", lambda: False)
    with FakeTensorMode(), torch.inference_mode():
        sizes, half = Sizes(tokens=768, pairs=3, longest=192), torch.float16
        x_AD = torch.zeros(700, 32, dtype=half)
        if kind == "superglue":
            model = SuperGlue(SUPERGLUE).eval()
            model.compute_dtype = half
            network = RecordedSuperGlue(model._prepared(), half)
            space = recorded._SuperGlueWorkspace(network, sizes, x_AD.float(), 5, 0.1)
            space._act()
            assert space.found.indices_PN.shape == (3, 192)
            return
        model = LightGlue(LIGHTGLUE).eval()
        model.compute_dtype = half
        exits = Exits(alpha=0.9, least_matchable=0.01, confident=(0.9,) * 5, filter_threshold=0.1)
        factors_A = torch.zeros(700, 1, 8, 2)
        space = recorded._LightGlueWorkspace(model._recorded().parts, sizes, exits, x_AD, factors_A)
        buffer = space._buffer(512)
        for i in range(5):
            buffer._act(i)
        space._assign()
        with pytest.raises(DataDependentOutputException):
            int(buffer.count)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
def test_recordings_played_back_are_the_same(config):
    """On a GPU, in halves: the first call acts, the second records, the third plays back."""
    model = model_of(config).cuda()
    model.compute_dtype, model.execution = torch.float16, "cuda_graph"
    pairs = [tuple(one.to("cuda") for one in pair) for pair in PAIRS]
    first, *more = [model.match_many(*zip(*pairs, strict=True)) for _ in range(4)]
    for found in more:
        assert_same(first, found)


def test_parts_are_those_of_the_module():
    model = model_of(LIGHTGLUE)
    parts = model._recorded().parts
    assert isinstance(model._recorded(), RecordedLightGlue)
    assert isinstance(parts, LightGlueParts)
    assert model._recorded() is model._recorded()
    assert torch.equal(parts.projection[0][2], model.assignments[2].projection.weight)
    assert torch.equal(parts.confidence[1][3], model.confidences[3].bias[0])
