import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isinglass.kernels import attention
from isinglass.kernels.attention import KERNELS, agree_on_kernel, attention_, fastest_kernel, kernel_name
from isinglass.kernels.linear import has_onednn
from isinglass.runtime.layouts import Dense, Packed

HEADS, SIZE = 2, 8


def tokens(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, HEADS, SIZE, generator=generator) for _ in range(3))
    return q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], cross: bool) -> Tensor:
    """The segments one by one; nothing to attend to gives 0."""
    qs, ks, vs = (x.split(lengths) for x in (q, k, v))
    out = []
    for i in range(len(lengths)):
        j = i ^ 1 if cross else i
        heads_first = (x.transpose(0, 1) for x in (qs[i], ks[j], vs[j]))
        out.append(attention_(*heads_first).transpose(0, 1) if lengths[j] else torch.zeros_like(qs[i]))
    return torch.cat(out)


def run(layout: Dense | Packed, q: Tensor, k: Tensor, v: Tensor, cross: bool) -> Tensor:
    return layout.attend(q, k, v, cross=cross)


def dense_of(x: Tensor, lengths: list[int], fill: float) -> Tensor:
    """Packed tokens (T, ...) as (B, 2, N, ...), padded with `fill`."""
    longest = max(lengths)
    rows = [torch.cat([one, one.new_full((longest - len(one), *one.shape[1:]), fill)]) for one in x.split(lengths)]
    return torch.stack(rows).unflatten(0, (-1, 2))


def test_reference_by_hand():
    q = torch.tensor([[[2.0]]])  # one head, one query, one channel
    k, v = torch.tensor([[[0.0], [0.5]]]), torch.tensor([[[3.0], [7.0]]])
    weight = torch.e / (1 + torch.e)  # of the second: softmax of (0, 1)
    assert attention_(q, k, v).item() == pytest.approx(3 + 4 * weight)


@pytest.mark.parametrize("cross", [False, True])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_is_dense_is_reference(cross, lengths, seed):
    lengths = lengths + lengths[::-1]  # two segments a pair
    q, k, v = tokens(sum(lengths), seed=seed)
    expected = reference(q, k, v, lengths, cross)
    torch.testing.assert_close(run(Packed(tuple(lengths)), q, k, v, cross), expected)
    if max(lengths):
        mask = dense_of(torch.ones(sum(lengths), dtype=torch.bool), lengths, False)
        padded = (dense_of(x, lengths, 1e3) for x in (q, k, v))
        torch.testing.assert_close(run(Dense(mask), *padded, cross)[mask], expected)


@pytest.mark.parametrize("cross", [False, True])
def test_dense_without_padding_is_packed(cross):
    q, k, v = tokens(3, 2, 5)
    flat = run(Packed((5,) * 6), *(x.flatten(0, 2) for x in (q, k, v)), cross)
    dense = run(Dense(), q, k, v, cross)
    torch.testing.assert_close(dense.flatten(0, 2), flat)
    torch.testing.assert_close(run(Dense(torch.ones(3, 2, 5, dtype=torch.bool)), q, k, v, cross), dense)


def test_cross_looks_at_the_partner_only():
    q, k, v = tokens(12)
    layout, changed = Packed((3, 4, 2, 3)), v.clone()
    changed[3:7] += 1.0  # view 1 of pair 0
    same = (layout.attend(q, k, v, cross=True) == layout.attend(q, k, changed, cross=True)).flatten(1).all(dim=1)
    assert same.tolist() == [False] * 3 + [True] * 9
    same = (layout.attend(q, k, v, cross=False) == layout.attend(q, k, changed, cross=False)).flatten(1).all(dim=1)
    assert same.tolist() == [True] * 3 + [False] * 4 + [True] * 5


@pytest.mark.parametrize("cross", [False, True])
def test_empty_views_give_zeros_and_finite_gradients(cross):
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    q, k, v = (x.requires_grad_() for x in tokens(1, 2, 3))
    out = run(Dense(mask), q, k, v, cross)
    assert (out[0, 0 if cross else 1] == 0).all()
    assert (run(Packed((2, 0)), *(x.detach()[mask] for x in (q, k, v)), cross=True) == 0).all()
    out.sum().backward()
    assert all(x.grad is None or bool(x.grad.isfinite().all()) for x in (q, k, v))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (64, 64), (100, 130), (700, 65), (513, 512)])
@torch.inference_mode()
def test_either_kernel_is_the_reference(monkeypatch, name, dtype, queries, keys):
    """Several blocks, keys that only fill up, keys in two parts, and similarities that bfloat16 cannot hold."""
    if name == "Blocked" and not has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(attention, "BLOCK_NUMBERS", 128 * 192)
    generator = torch.Generator().manual_seed(queries)
    q, k, v = (torch.randn(n, HEADS, 64, generator=generator).to(dtype) for n in (queries, keys, keys))
    if name == "Blocked":
        q, k = q.float() * 10, k.float() * 2
    view, cut = KERNELS[name](HEADS, keys, 64, dtype), keys // 3
    for start, end in ((cut, keys), (0, cut)):
        view.write(start, k[start:end], v[start:end].permute(1, 2, 0))
    out = torch.full((queries, HEADS, 64), torch.nan, dtype=dtype)
    view.attend(q.float() * (64**-0.5 / math.log(2)), out)
    expected = attention_(*(x.float().transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=5e-5 if dtype == torch.float32 else 0.03)


def test_the_kernel_is_chosen_once():
    assert fastest_kernel(torch.float32) is fastest_kernel(torch.float32)
    assert fastest_kernel(torch.bfloat16) in KERNELS.values()
    assert KERNELS[kernel_name(torch.float32)] is fastest_kernel(torch.float32)


def test_the_kernel_can_be_agreed_on(monkeypatch):
    """By an environment variable, or by processes that belong together."""
    fastest_kernel.cache_clear()
    try:
        for name, kernel in KERNELS.items():
            monkeypatch.setenv("ISINGLASS_ATTENTION", name)
            fastest_kernel.cache_clear()
            assert fastest_kernel(torch.float32) is kernel
        agree_on_kernel("Blocked")
        assert kernel_name(torch.float32) == "Blocked"
    finally:
        agree_on_kernel("")
    monkeypatch.delenv("ISINGLASS_ATTENTION")
    assert fastest_kernel(torch.float32) in KERNELS.values()
