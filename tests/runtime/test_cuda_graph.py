"""CUDA graphs, run on the CPU: the same as the packed buffer; and nothing in a layer makes the host wait."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from isinglass.kernels import linear
from isinglass.kernels.rotary import PackedRotation
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.runtime import cuda_graph
from isinglass.runtime.cuda_graph import (
    AsyncScalar,
    CudaGraph,
    Graphs,
    Segments,
    Sizes,
    Workspace,
    bucket_by_length,
    bucket_of,
    kept_first,
)
from isinglass.runtime.layouts import Packed
from isinglass.runtime.packed import TokenBuffer
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
    take_over = cuda_graph.Buffer.taking_over
    monkeypatch.setattr(cuda_graph.Buffer, "taking_over", lambda *both: (taken.append(take_over(*both)), taken[-1])[1])
    model = model_of(dataclasses.replace(LIGHTGLUE, depth_confidence=None, width_confidence=0.5))
    expected, _ = both_ways(model, [make_pair(300, 300, seed=i) for i in range(4)])
    left = torch.cat([torch.cat([one.pruned_at0[0], one.pruned_at1[0]]) for one in expected])
    inside = [int((left > layer).sum()) for layer in range(1, len(taken) + 1)]
    assert [buffer.places for buffer in taken] == [bucket_of(count) for count in inside]
    assert taken[-1].places < bucket_of(len(left))


def test_workspaces_are_few(monkeypatch):
    monkeypatch.setattr(cuda_graph, "WORKSPACES", 2)
    model = model_of(LIGHTGLUE)
    graphs = Graphs(model, model.fused_layers(torch.float32))
    made = []
    for count in (40, 100, 40, 300, 40, 100):
        x_AD, rotation = torch.randn(2 * count, 32), PackedRotation(torch.randn(2 * count, 1, 8, 2))
        graphs.run(x_AD, rotation, [count, count])
        made.append(list(graphs.workspaces.values())[-1])
        assert len(graphs.workspaces) <= 2
    assert made[0] is made[2] is made[4]  # the one used last stays
    assert made[1] is not made[5]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", [LightGlue, SuperGlue])
def test_the_host_never_waits_within_a_layer(monkeypatch, kind):
    """Tensors without numbers: what wanted one of them on the host would raise."""
    monkeypatch.setattr(cuda_graph.Segments, "attend", lambda self, q, k, v, **options: torch.empty_like(v))
    monkeypatch.setattr(linear, "has_onednn", lambda: False)
    with FakeTensorMode(), torch.inference_mode():
        sizes, half = Sizes(tokens=768, pairs=3, longest=192), torch.float16
        model = kind(LIGHTGLUE if kind is LightGlue else SUPERGLUE).eval()
        model.compute_dtype = half
        position = PackedRotation(torch.zeros(700, 1, 8, 2)) if kind is LightGlue else None
        space = Workspace(model, model.fused_layers(half), sizes, torch.zeros(700, 32, dtype=half), position)
        buffer = space._buffer(512)
        for i in range(len(space.layers)):
            buffer._act(i)
        with pytest.raises(DataDependentOutputException):
            int(buffer.count)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("config", [LIGHTGLUE, SUPERGLUE])
def test_graphs_played_back_are_the_same(config):
    """On a GPU, in halves: the first call acts, the second records, the third plays back."""
    model = model_of(config).cuda()
    model.compute_dtype, model.execution = torch.float16, "cuda_graph"
    pairs = [tuple(one.to("cuda") for one in pair) for pair in PAIRS]
    first, *more = [model.match_many(*zip(*pairs, strict=True)) for _ in range(4)]
    for found in more:
        assert_same(first, found)


# ---- the layout


lengths_of_pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4).map(
    lambda pairs: [n for pair in pairs for n in pair]
)


def make(lengths):
    return Segments.of_lengths(torch.tensor(lengths, dtype=torch.int32), max(lengths))


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_pairs, nobodys=st.integers(0, 4), seed=st.integers(0, 99))
def test_owners_and_counts_are_those_of_lists(lengths, nobodys, seed):
    places = sum(lengths) + nobodys
    owner_T = make(lengths).owner(places)
    expected = [i for i, n in enumerate(lengths) for _ in range(n)] + [len(lengths)] * nobodys
    assert owner_T.tolist() == expected
    flag_T = torch.rand(places, generator=torch.Generator().manual_seed(seed)) < 0.5
    if places:
        counts = [int(part.sum()) for part in flag_T[: sum(lengths)].split(lengths)]
        assert make(lengths).segment_counts(flag_T).tolist() == counts


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_pairs, nobodys=st.integers(0, 4), cross=st.booleans(), scale=st.floats(0.1, 2))
def test_attention_is_that_of_lists(lengths, nobodys, cross, scale):
    count, generator = sum(lengths), torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(count + nobodys, 2, 8, generator=generator) for _ in range(3))
    found = make(lengths).attend(q, k, v, cross=cross, scale=scale)
    expected = Packed(tuple(lengths)).attend(q[:count], k[:count], v[:count], cross=cross, scale=scale)
    torch.testing.assert_close(found[:count], expected)


def test_the_gpu_kernel_is_given_offsets_of_both_sides(monkeypatch):
    """Flash attention is stood in for by the loop, which reads what it takes; it is for halves alone."""
    given = {}

    def stand_in(q, k, v, ends_q, ends_k, max_q, max_k, scale):
        given.update(ends_q=ends_q.tolist(), ends_k=ends_k.tolist(), longest=(max_q, max_k), scale=scale)
        assert ends_q.dtype == ends_k.dtype == torch.int32
        return q

    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    q = torch.randn(12, 2, 8).as_subclass(OnGPU)
    layout = Segments.of_lengths(torch.tensor([3, 4, 5, 0], dtype=torch.int32), 8)
    assert layout.attend(q, q, q, cross=True, scale=0.5) is q
    assert given == {"ends_q": [0, 3, 7, 12, 12], "ends_k": [0, 4, 7, 7, 12], "longest": (8, 8), "scale": 0.5}


@settings(max_examples=40, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=20))
def test_those_to_keep_come_first_in_order(flags):
    order, count = kept_first(torch.tensor(flags))
    assert order[: int(count)].tolist() == [i for i, flag in enumerate(flags) if flag]
    assert len(order) == len(flags)
    assert ((order >= 0) & (order < len(flags))).all()


def test_moving_up_is_what_the_packed_buffer_does():
    lengths = [4, 3, 2, 6]
    keep_T = torch.tensor([True, False] * 7 + [True])
    packed = TokenBuffer.pack(torch.arange(15.0)[:, None], None, lengths)
    packed.drop(keep_T, (), 1)
    order, count = kept_first(keep_T)
    assert order[: int(count)].tolist() == packed.origin_T.tolist()
    assert make(lengths).segment_counts(keep_T).tolist() == packed.lengths


# ---- sizes and launches


def test_buckets_waste_at_most_half():
    assert [bucket_of(n) for n in (0, 1, 256, 257, 384, 385, 512, 513, 769)] == [
        256, 256, 256, 384, 384, 512, 512, 768, 1024,
    ]  # fmt: skip
    assert [bucket_of(n, smallest=1) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 4, 6, 8]


@given(count=st.integers(1, 100_000))
def test_a_bucket_holds_its_count_and_buckets_are_few(count):
    assert count <= bucket_of(count) <= max(1.5 * count, 256)
    assert bucket_of(bucket_of(count)) == bucket_of(count)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20),
    tokens=st.integers(1, 200),
    numbers=st.integers(1, 9000),
)
def test_chunks_have_every_pair_once_and_keep_to_the_limits(lengths, tokens, numbers):
    chunks = list(bucket_by_length(lengths, tokens, numbers))
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest = max(max(lengths[i]) for i in chunk)
        within = sum(sum(lengths[i]) for i in chunk) <= tokens and len(chunk) * longest**2 <= numbers
        assert within or len(chunk) == 1


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_function_acts_each_time(device):
    x = torch.zeros(3, device=device)
    act = CudaGraph(functools.partial(x.add_, 1), x.device)
    for i in range(1, 5):
        act()
        assert AsyncScalar(x[0]).read() == i


def test_a_number_read_later_is_what_it_was():
    x = torch.tensor(3)
    later = AsyncScalar(x)
    x += 1
    assert later.read() == 3
