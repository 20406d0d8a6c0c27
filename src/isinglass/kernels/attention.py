"""Attention: one definition, `attention`, and kernels for CPUs that work on keys and values as they are written.

Shapes: B batch, H heads, N queries, M keys of a view, C channels of a head.
"""

from __future__ import annotations

import functools
import math
import os
import time
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.linear import ROWS, padded, padded_rows, rows_product
from isinglass.kernels.threads import for_each, team_size

BLOCK_NUMBERS = 2**20  # similarities at once: 4 MiB; fewer make products of too few rows


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Return softmax(`scale` q k^T) v (B, H, N, C) of queries (B, H, N, C) and keys and values (B, H, M, C).

    `scale` None = 1 / sqrt(C). Keys are left out where `mask` (broadcast to (B, H, N, M)) is False; a query that is
    left without any gets NaN or 0. Everything else here computes the same, faster on some machine.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def attention_(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slow twin of `attention`, for the tests: (H, N, C), (H, M, C), (H, M, C), as in Vaswani et al., eq. 1."""
    similarity = torch.einsum("hnc,hmc->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,hmc->hnc", similarity.softmax(dim=-1), v)


# ---- on CPUs with oneDNN, by parts of the queries


class KeyValues(Protocol):
    """Keys and values of one view, written by parts and attended to by parts.

    Queries and keys come scaled: weights are 2^(q k^T), normalized.
    """

    def write(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """Write the keys and values of the points from `start` on."""
        ...

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """Write the messages of these queries, in multiples of ROWS, once all keys and values are there."""
        ...


class BlockedKeyValues:
    """`KeyValues` by products of oneDNN, of one head and few queries at a time, whose similarities stay in the cache.

    Similarities are float32: those of trained matchers reach several hundred, where bfloat16 is off by 1 and more. Keys
    come in multiples of ROWS, so that oneDNN meets few shapes; those that fill up get no attention.
    """

    def __init__(self, heads: int, num_keys: int, channels: int, dtype: torch.dtype) -> None:
        self.num_keys = num_keys
        self.key_HMC = torch.empty(heads, padded(num_keys), channels, dtype=torch.float32, device="cpu")
        self.value_HCM = torch.empty(heads, channels, padded(num_keys), dtype=dtype, device="cpu")
        self.key_HMC[:, num_keys:] = 0
        self.value_HCM[:, :, num_keys:] = 0

    def write(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """See KeyValues."""
        rows = slice(start, start + len(key_NHC))
        self.key_HMC[:, rows], self.value_HCM[:, :, rows] = key_NHC.transpose(0, 1), value_HCN

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """See KeyValues."""
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


class TorchKeyValues:
    """`KeyValues` by torch's attention."""

    def __init__(self, heads: int, num_keys: int, channels: int, dtype: torch.dtype) -> None:
        self.key_HMC, self.value_HMC = torch.empty(2, heads, num_keys, channels, dtype=dtype, device="cpu")

    def write(self, start: int, key_NHC: Tensor, value_HCN: Tensor) -> None:
        """See KeyValues."""
        rows = slice(start, start + len(key_NHC))
        self.key_HMC[:, rows], self.value_HMC[:, rows] = key_NHC.transpose(0, 1), value_HCN.mT

    def attend(self, query_NHC: Tensor, out_NHC: Tensor) -> None:
        """See KeyValues."""
        query_HNC = query_NHC.transpose(0, 1).to(self.key_HMC.dtype)
        of_view = query_HNC[None], self.key_HMC[None], self.value_HMC[None]
        out_NHC.copy_(attention(*of_view, scale=math.log(2))[0].transpose(0, 1))


Kernel = type[BlockedKeyValues] | type[TorchKeyValues]
KERNELS: dict[str, Kernel] = {"Blocked": BlockedKeyValues, "Fused": TorchKeyValues}
_agreed: list[str] = []  # the kernel, in a process that is one of several


def agree_on_kernel(name: str) -> None:
    """Let `fastest_kernel` return this one of KERNELS from now on, in a process of the library's own; "" = measure."""
    _agreed[:] = [name]
    fastest_kernel.cache_clear()


def kernel_name(dtype: torch.dtype) -> str:
    """Return the name of the fastest kernel, for `agree_on_kernel` in other processes."""
    return next(name for name, kernel in KERNELS.items() if kernel is fastest_kernel(dtype))


@functools.cache
def fastest_kernel(dtype: torch.dtype) -> Kernel:
    """Return the kernel that is faster on this CPU for values of that dtype.

    Both are timed once (30 ms): torch's is by MKL, and by AMX where there is that, fast on some processors and slow on
    others. They round otherwise: processes whose results must be the same to the bit name one of KERNELS in the
    environment variable ISINGLASS_ATTENTION.
    """
    name = (_agreed and _agreed[0]) or os.environ.get("ISINGLASS_ATTENTION")
    if name in KERNELS:
        return KERNELS[name]
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in KERNELS.values()}

    def time_both(_: int) -> None:
        query = torch.ones(512, 4, 64, device="cpu")
        out = torch.empty(512, 4, 64, dtype=dtype, device="cpu")
        views = [kernel(4, 512, 64, dtype) for kernel in seconds]
        for view in views:
            view.write(0, query, torch.ones(4, 64, 512, device="cpu"))
        for _ in range(8):  # in turn, so that what else the machine does slows both
            for view in views:
                start = time.perf_counter()
                view.attend(query, out)
                seconds[type(view)].append(time.perf_counter() - start)

    with torch.inference_mode():
        for_each(time_both, range(team_size()))
    return min(seconds, key=lambda kernel: min(seconds[kernel]))
