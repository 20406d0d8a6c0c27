"""Attention within and between the two views of a pair, over two layouts of the same tokens.

A layout tells which tokens belong to which view of which pair; the layers of a matcher act on the last axis and never
ask. Shapes: B pairs, P pairs in a packed buffer, T tokens of all of them, N keypoints, H heads, D channels a head.

dense    (B, 2, N, H, D), with a padding mask (B, 2, N) or none: training, compilation, export
packed   (T, H, D), segments in the order view 0 of pair 0, view 1 of pair 0, view 0 of pair 1, ...: inference on
         ragged lists, where pairs leave the buffer and points leave their segment
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from isinglass.ops.linear import has_onednn, padded_rows, rows_product

BLOCK = 256  # queries at once, for each thread


class Layout(Protocol):
    """Where a token may look. All arguments and results have the layout's shape (..., H, D)."""

    def attend_self(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every token attends to the tokens of its own view."""
        ...

    def attend_cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every token attends to the tokens of the other view of its pair."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Tokens (B, 2, N, H, D); `mask_B2N` is False at padding, which nobody attends to."""

    mask_B2N: Tensor | None = None

    def attend_self(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See Layout."""
        return self._attend(q, k, v, self.mask_B2N)

    def attend_cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See Layout."""
        return self._attend(q, k.flip(1), v.flip(1), None if self.mask_B2N is None else self.mask_B2N.flip(1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask_B2N: Tensor | None) -> Tensor:
        heads_first = (x.transpose(-2, -3) for x in (q, k, v))
        bias = None if mask_B2N is None else mask_B2N[:, :, None, None, :]
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=bias).transpose(-2, -3)
        return out if bias is None else out.nan_to_num()  # a view without any keypoint has nothing to attend to


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens (T, H, D) of P pairs; `lengths` has 2 P segment lengths that sum to T."""

    lengths: tuple[int, ...]

    def attend_self(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See Layout."""
        return self._attend(q, k, v, partner=0)

    def attend_cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See Layout."""
        return self._attend(q, k, v, partner=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, partner: int) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return attend_packed(q, k, v, self.lengths, partner)


def attend_packed(
    q_HTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, lengths: Sequence[int], partner: int, rows: int | None = None
) -> Tensor:
    """(T, H, D): every token attends to its own view (`partner` 0) or to the other one of its pair (1).

    With more `rows` than T those that follow are 0.
    """
    if v_HTD.device.type == "cuda" and v_HTD.dtype in (torch.float16, torch.bfloat16):
        out_THD = attend_at_once(q_HTD, k_HTD, v_HTD, lengths, partner)
        return F.pad(out_THD, (0, 0, 0, 0, 0, (rows or len(out_THD)) - len(out_THD)))
    queries, keys, values = (x.split(list(lengths), dim=1) for x in (q_HTD, k_HTD, v_HTD))
    used = q_HTD.shape[1]
    out_THD = v_HTD.new_empty(rows or used, q_HTD.shape[0], q_HTD.shape[2])
    out_THD[used:] = 0
    for i, segment in enumerate(out_THD[:used].split(list(lengths))):
        j = i ^ partner  # segments 2 p and 2 p + 1 are the two views of pair p
        if lengths[i] and lengths[j]:
            attend(queries[i], keys[j], values[j], segment)
        else:
            segment.zero_()
    return out_THD


def attend_at_once(q_HTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, lengths: Sequence[int], partner: int) -> Tensor:
    """As `attend_packed`, all segments in one call of flash attention for variable lengths; for GPUs, in halves."""
    order = [i ^ partner for i in range(len(lengths))]
    key_lengths = [lengths[i] for i in order]
    q_THD, k_THD, v_THD = (x.transpose(0, 1).to(v_HTD.dtype) for x in (q_HTD, k_HTD, v_HTD))
    if partner:
        k_THD, v_THD = (torch.cat([x.split(list(lengths))[i] for i in order]) for x in (k_THD, v_THD))
    ends_q, ends_k = (
        torch.tensor([0, *itertools.accumulate(some)], dtype=torch.int32, device=q_THD.device)
        for some in (lengths, key_lengths)
    )
    out_THD = varlen_attn(
        q_THD.contiguous(), k_THD.contiguous(), v_THD.contiguous(), ends_q, ends_k, max(lengths), max(key_lengths)
    )
    assert isinstance(out_THD, Tensor)
    return out_THD


def attend(q_HND: Tensor, k_HMD: Tensor, v_HMD: Tensor, out_NHD: Tensor) -> None:
    """Write softmax(q k^T / sqrt(D)) v into `out_NHD`, by the kernel that is fastest here."""
    if v_HMD.device.type == "cpu" and fastest_kernel(v_HMD.dtype) == "blocked":
        attend_blocked(q_HND, k_HMD, v_HMD, out_NHD)
    else:
        q_HND, k_HMD = q_HND.to(v_HMD.dtype), k_HMD.to(v_HMD.dtype)
        attended = F.scaled_dot_product_attention(q_HND[None], k_HMD[None], v_HMD[None])
        out_NHD.copy_(attended[0].transpose(0, 1))


def attend_blocked(q_HND: Tensor, k_HMD: Tensor, v_HMD: Tensor, out_NHD: Tensor) -> None:
    """As `attend`, by oneDNN: one head and BLOCK queries at a time, so that their similarities stay in the cache.

    Similarities are float32: those of trained matchers reach several hundred, where bfloat16 is off by 1 and more.
    Queries and keys come in multiples of ROWS, so that oneDNN meets few shapes; those that fill up get no attention.
    """
    num_queries, num_keys = q_HND.shape[1], k_HMD.shape[1]
    q_HND = padded_rows(q_HND.float() * q_HND.shape[-1] ** -0.5)
    k_HMD, v_HMD = padded_rows(k_HMD.float()), padded_rows(v_HMD)
    block = min(BLOCK * torch.get_num_threads(), q_HND.shape[1])
    starts = [min(start, q_HND.shape[1] - block) for start in range(0, q_HND.shape[1], block)]
    for h in range(q_HND.shape[0]):
        k_MD, v_DM = k_HMD[h].contiguous(), v_HMD[h].T.contiguous()
        for start in starts:  # the last block may overlap the one before: all are of one shape
            similarity_NM = rows_product(q_HND[h, start : start + block], k_MD)
            if k_MD.shape[0] > num_keys:
                similarity_NM[:, num_keys:] = -torch.inf
            torch.softmax(similarity_NM, dim=-1, out=similarity_NM)
            attended_ND = rows_product(similarity_NM.to(v_DM.dtype), v_DM)
            out_NHD[start : start + block, h] = attended_ND[: num_queries - start]


@functools.cache
def fastest_kernel(dtype: torch.dtype) -> Literal["blocked", "fused"]:
    """Which of `attend_blocked` and torch's fused attention is faster on this CPU for values of that dtype.

    Timed once (30 ms): torch's is by MKL, and by AMX where there is that, fast on some processors and slow on others.
    """
    if not has_onednn() or dtype not in (torch.float32, torch.bfloat16):
        return "fused"
    with torch.inference_mode():
        q, k, v = torch.ones(3, 4, 512, 64, dtype=dtype).unbind()
        out = torch.empty(512, 4, 64, dtype=dtype)
        kernels = {
            "blocked": lambda: attend_blocked(q, k, v, out),
            "fused": lambda: F.scaled_dot_product_attention(q[None], k[None], v[None]),
        }
        spent = {name: [_time(kernel) for _ in range(2)] for name, kernel in kernels.items()}  # warm up
        for _ in range(6):  # in turn, so that what else the machine does slows both
            for name, kernel in kernels.items():
                spent[name].append(_time(kernel))
    return "blocked" if min(spent["blocked"]) < min(spent["fused"]) else "fused"


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The slow twin: softmax(q k^T / sqrt(D)) v of (H, N, D), (H, M, D), (H, M, D), as in Vaswani et al., eq. 1."""
    similarity = torch.einsum("hnd,hmd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,hmd->hnd", similarity.softmax(dim=-1), v)
