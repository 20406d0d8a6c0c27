"""Attention within and between the two views of a pair, over two layouts of the same tokens.

A layout tells which tokens belong to which view of which pair; the layers of a matcher act on the last axis and never
ask. Shapes: B pairs, P pairs in a packed buffer, T tokens of all of them, N keypoints, H heads, D channels a head.

dense    (B, 2, N, H, D), with a padding mask (B, 2, N) or none: training, compilation, export
packed   (T, H, D), segments in the order view 0 of pair 0, view 1 of pair 0, view 0 of pair 1, ...: inference on
         ragged lists, where pairs leave the buffer and points leave their segment
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.ops.linear import ROWS, padded, padded_rows, rows_product
from isinglass.ops.threads import for_each, team_size

BLOCK_NUMBERS = 2**20  # similarities at once: 4 MiB; fewer make products of too few rows


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
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # torch has fused kernels for four axes only
        bias = None if mask_B2N is None else mask_B2N.flatten(0, 1)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).unflatten(0, (-1, 2))
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
    q_HTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, lengths: Sequence[int], partner: int, scale: float | None = None
) -> Tensor:
    """(T, H, D): every token attends to its own view (`partner` 0) or to the other one of its pair (1).

    softmax(`scale` q k^T) v, `scale` being 1 / sqrt(D) unless given; 0 where there is nothing to attend to.
    """
    queries, keys, values = (x.to(v_HTD.dtype).split(list(lengths), dim=1) for x in (q_HTD, k_HTD, v_HTD))
    out_THD = v_HTD.new_zeros(q_HTD.shape[1], q_HTD.shape[0], q_HTD.shape[2])
    for i, segment in enumerate(out_THD.split(list(lengths))):
        j = i ^ partner  # segments 2 p and 2 p + 1 are the two views of pair p
        if lengths[i] and lengths[j]:
            of_pair = queries[i][None], keys[j][None], values[j][None]
            segment.copy_(F.scaled_dot_product_attention(*of_pair, scale=scale)[0].transpose(0, 1))
    return out_THD


# ---- on CPUs with oneDNN, by parts of the queries


class Seen(Protocol):
    """What one view shows to those that attend to it. Queries and keys are scaled: weights are 2^(q k^T), normalised.

    Legend: N points of a part, M keys of the view.
    """

    def put(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """Keys and values of the points from `start` on."""
        ...

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """Write what these queries get, in multiples of ROWS, once all keys and values are there."""
        ...


class Blocked:
    """`Seen` of products by oneDNN, of one head and few queries at a time, whose similarities stay in the cache.

    Similarities are float32: those of trained matchers reach several hundred, where bfloat16 is off by 1 and more. Keys
    come in multiples of ROWS, so that oneDNN meets few shapes; those that fill up get no attention.
    """

    def __init__(self, heads: int, num_keys: int, channels: int, dtype: torch.dtype) -> None:
        self.num_keys = num_keys
        self.key_HMC = torch.empty(heads, padded(num_keys), channels, dtype=torch.float32)
        self.value_HCM = torch.empty(heads, channels, padded(num_keys), dtype=dtype)
        self.key_HMC[:, num_keys:] = 0
        self.value_HCM[:, :, num_keys:] = 0

    def put(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """See Seen."""
        rows = slice(start, start + len(key_NHC))
        self.key_HMC[:, rows], self.value_HCM[:, :, rows] = key_NHC.transpose(0, 1), value_HCN

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """See Seen."""
        most = max(BLOCK_NUMBERS // self.key_HMC.shape[1], ROWS)
        block = padded(-(-len(query_NHC) // -(-len(query_NHC) // most)))  # even ones
        heads = zip(query_NHC.unbind(1), self.key_HMC, self.value_HCM, out_NHC.unbind(1), strict=True)
        for query_NC, key_MC, value_CM, out_NC in heads:
            for query, out in zip(query_NC.split(block), out_NC.split(block), strict=True):
                weight_NM = rows_product(padded_rows(query), key_MC)
                if weight_NM.shape[1] > self.num_keys:
                    weight_NM[:, self.num_keys :] = -torch.inf
                weight_NM.sub_(weight_NM.amax(dim=1, keepdim=True)).exp2_()  # torch's exp is 4 times as slow
                total_N1 = weight_NM.sum(dim=1, keepdim=True)
                value_NC = rows_product(weight_NM.to(value_CM.dtype), value_CM)
                torch.div(value_NC[: len(out)], total_N1[: len(out)], out=out)


class Fused:
    """`Seen` of torch's fused attention."""

    def __init__(self, heads: int, num_keys: int, channels: int, dtype: torch.dtype) -> None:
        self.key_HMC, self.value_HMC = torch.empty(2, heads, num_keys, channels, dtype=dtype)

    def put(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """See Seen."""
        rows = slice(start, start + len(key_NHC))
        self.key_HMC[:, rows], self.value_HMC[:, rows] = key_NHC.transpose(0, 1), value_HCN.mT

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """See Seen."""
        query_HNC = query_NHC.transpose(0, 1).to(self.key_HMC.dtype)
        of_view = query_HNC[None], self.key_HMC[None], self.value_HMC[None]
        out_NHC.copy_(F.scaled_dot_product_attention(*of_view, scale=math.log(2))[0].transpose(0, 1))


_agreed: list[str] = []  # the kernel, in a process that is one of several


def agree_on_kernel(name: str) -> None:
    """The name of the class that `fastest_kernel` gives from now on, for a process of the library's own."""
    _agreed[:] = [name]
    fastest_kernel.cache_clear()


@functools.cache
def fastest_kernel(dtype: torch.dtype) -> type[Blocked] | type[Fused]:
    """Which is faster on this CPU for values of that dtype.

    Timed once (30 ms): torch's is by MKL, and by AMX where there is that, fast on some processors and slow on others.
    They round otherwise: processes whose results are to be the same to the bit say "Blocked" or "Fused" in the
    environment variable ISINGLASS_ATTENTION.
    """
    name = (_agreed and _agreed[0]) or os.environ.get("ISINGLASS_ATTENTION")
    if name in ("Blocked", "Fused"):
        return Blocked if name == "Blocked" else Fused
    spent: dict[type[Blocked] | type[Fused], list[float]] = {Blocked: [], Fused: []}

    def try_both(_: int) -> None:
        query, out = torch.ones(512, 4, 64), torch.empty(512, 4, 64, dtype=dtype)
        views = [kernel(4, 512, 64, dtype) for kernel in spent]
        for view in views:
            view.put(0, query, torch.ones(4, 64, 512))
        for _ in range(8):  # in turn, so that what else the machine does slows both
            for view in views:
                start = time.perf_counter()
                view.attend(query, out)
                spent[type(view)].append(time.perf_counter() - start)

    with torch.inference_mode():
        for_each(try_both, range(team_size()))
    return min(spent, key=lambda kernel: min(spent[kernel]))


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The slow twin: softmax(q k^T / sqrt(D)) v of (H, N, D), (H, M, D), (H, M, D), as in Vaswani et al., eq. 1."""
    similarity = torch.einsum("hnd,hmd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,hmd->hnd", similarity.softmax(dim=-1), v)
