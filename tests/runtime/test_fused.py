"""The fused attention block against the plain modules; what is prepared follows the weights."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isinglass.kernels.linear import ROWS, has_onednn
from isinglass.kernels.rotary import Rotation
from isinglass.kernels.threads import in_team
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig, SelfAttention
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.runtime import fused
from isinglass.runtime.fused import chunks_of, prepared
from isinglass.runtime.layouts import Packed
from isinglass.runtime.runner import fused_layers
from support import make_pair

WIDTH, HEADS, LENGTHS = 64, 4, (40, 70, 3, 0, 90, 11)
LOOSE = {torch.float32: 2e-5, torch.bfloat16: 0.06}


def states(seed=0):
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


def lively(module):
    """With biases, norms and running statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and value.ndim == 1:
            least = 0.5 if "var" in name or "weight" in name else 0
            value.data = torch.rand(value.shape, generator=generator) + least
    return module.eval()


@pytest.fixture(params=["chunks", "at once"])
def way(request, monkeypatch):
    """As CPUs with oneDNN do it, and as all else does."""
    if request.param == "at once":
        monkeypatch.setattr(fused, "has_onednn", lambda: False)
    elif not has_onednn():
        pytest.skip("this build of torch has no oneDNN")


def same(found, expected, dtype):
    """For all but the points of the view whose partner is empty."""
    alone = slice(sum(LENGTHS[:2]), sum(LENGTHS[:3]))
    assert found.isfinite().all()
    for x in (found, expected):
        x[alone] = 0
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=LOOSE[dtype])


@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("chunk", [64, 1024])
@pytest.mark.usefixtures("way")
@in_team
@torch.inference_mode()
def test_blocks_of_lightglue_are_its_layers(monkeypatch, dtype, chunk):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    torch.manual_seed(0)
    layer = lively(LightGlue(LightGlueConfig(input_size=WIDTH, width=WIDTH, heads=HEADS, layers=1)).layers[0])
    angle = torch.randn(sum(LENGTHS), 1, WIDTH // HEADS // 2).repeat_interleave(2, dim=-1)
    rotation = Rotation(angle.cos(), angle.sin())
    x = states()
    for block, expected in (
        (layer.self_attention, layer.self_attention(x, rotation, Packed(LENGTHS))),
        (layer.cross_attention, layer.cross_attention(x, Packed(LENGTHS))),
    ):
        same(block.fused(dtype)(x.to(dtype), rotation.packed(), Packed(LENGTHS)), expected, dtype)


@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.usefixtures("way")
@torch.inference_mode()
def test_blocks_of_superglue_are_its_layers(dtype, cross):
    torch.manual_seed(0)
    model = SuperGlue(SuperGlueConfig(width=WIDTH, heads=HEADS, layers=2, encoder_widths=(8,)))
    layer, x = lively(model.layers[int(cross)]), states()
    same(layer.fused(dtype)(x.to(dtype), None, Packed(LENGTHS)), layer(x, None, Packed(LENGTHS)), dtype)


@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=9).filter(any),
    threads=st.integers(1, 5),
)
def test_chunks_have_every_token_once(lengths, threads):
    chunks = chunks_of(lengths, threads)
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    tokens = [(one.segment, place) for one in pieces for place in range(one.place, one.place + one.end - one.start)]
    assert tokens == [(segment, place) for segment, n in enumerate(lengths) for place in range(n)]
    assert [row for one in pieces for row in range(one.start, one.end)] == list(range(sum(lengths)))
    sizes = [chunk.end - chunk.start for chunk in chunks]
    assert max(sizes) <= fused.CHUNK and all(size % ROWS == 0 for size in sizes[:-1])
    assert max(sizes) - min(sizes) < 2 * ROWS
    assert len(chunks) % threads == 0 or max(sizes) <= ROWS
    assert all(chunk.pieces[0].start == chunk.start and chunk.pieces[-1].end == chunk.end for chunk in chunks)


def test_what_is_prepared_follows_the_weights_and_never_travels():
    """Made once, made again after a change; copies and pickles of a module that was used are whole."""
    model = LightGlue(LightGlueConfig(input_size=WIDTH, width=WIDTH, heads=HEADS, layers=2))
    pair = make_pair(20, 30, channels=WIDTH)
    first = model.match(*pair).scores
    kept = fused_layers(model)
    assert fused_layers(model) is kept
    with torch.no_grad():
        model.layers[0].self_attention.qkv.weight.mul_(3)
    assert fused_layers(model) is not kept
    changed = model.match(*pair).scores
    assert not torch.allclose(first, changed)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin.match(*pair).scores, changed)
    model.load_state_dict(LightGlue(model.config).state_dict())
    assert not torch.allclose(model.match(*pair).scores, changed)


def test_a_module_is_not_kept_alive():
    made = []
    module = torch.nn.Linear(2, 2)
    prepared(module, torch.float32, lambda: made.append(1))
    before = len(fused._PREPARED)
    del module
    assert len(fused._PREPARED) == before - 1 and made == [1]


def test_self_attention_needs_no_rotation():
    block = SelfAttention(WIDTH, HEADS).fused(torch.float32)
    with torch.inference_mode():
        assert block(states(), None, Packed(LENGTHS)).isfinite().all()
