"""Attention within and between the two views of a pair, over two layouts of the same tokens.

A layout tells which tokens belong to which view of which pair; the layers of a matcher act on the last axis and never
ask. Shapes: B pairs, P pairs in a packed buffer, T tokens of all of them, N keypoints, H heads, D channels a head.

dense    (B, 2, N, H, D), with a padding mask (B, 2, N) or none: training, compilation, export
packed   (T, H, D), segments in the order view 0 of pair 0, view 1 of pair 0, view 0 of pair 1, ...: inference on
         ragged lists, where pairs leave the buffer and points leave their segment
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
        queries, keys, values = (x.transpose(0, 1).split(self.lengths, dim=1) for x in (q, k, v))
        out = torch.empty_like(q)
        for i, segment in enumerate(out.split(self.lengths)):
            j = i ^ partner  # segments 2 p and 2 p + 1 are the two views of pair p
            if self.lengths[i] and self.lengths[j]:
                attended = F.scaled_dot_product_attention(queries[i][None], keys[j][None], values[j][None])
                segment.copy_(attended[0].transpose(0, 1))
            else:
                segment.zero_()
        return out


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The slow twin: softmax(q k^T / sqrt(D)) v of (H, N, D), (H, M, D), (H, M, D), as in Vaswani et al., eq. 1."""
    similarity = torch.einsum("hnd,hmd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,hmd->hnd", similarity.softmax(dim=-1), v)
