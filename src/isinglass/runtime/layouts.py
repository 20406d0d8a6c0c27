"""Where a token may look: attention within and between the two views of a pair, over three layouts of the same tokens.

The layers of a matcher act on the last axis and never ask which token is whose. Shapes: B pairs of a batch, T tokens of
all pairs of a buffer, N keypoints of a view, H heads, C channels of a head.

Dense     (B, 2, N, H, C), with a padding mask (B, 2, N) or none: training, compilation, export
Packed    (T, H, C), segments in the order view 0 of pair 0, view 1 of pair 0, view 0 of pair 1, ...: inference on
          ragged lists, where pairs leave the buffer and points leave their segment
Segments  the same with lengths that only the device knows (isinglass.runtime.cuda_graph)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isinglass.kernels.attention import attention


class Layout(Protocol):
    """Tokens of pairs, in some order."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, cross: bool, scale: float | None = None) -> Tensor:
        """Return the messages (..., H, C): each token attends to its own view, or to the other view of its pair.

        softmax(`scale` q k^T) v; `scale` None = 1 / sqrt(C). Messages are 0 where there is nothing to attend to.
        """
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Tokens (B, 2, N, H, C); `mask_B2N` is False at padding, which no token attends to."""

    mask_B2N: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, cross: bool, scale: float | None = None) -> Tensor:
        """See Layout."""
        mask_B2N = self.mask_B2N
        if cross:
            k, v, mask_B2N = k.flip(1), v.flip(1), None if mask_B2N is None else mask_B2N.flip(1)
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # torch has fused kernels for four axes only
        mask = None if mask_B2N is None else mask_B2N.flatten(0, 1)[:, None, None, :]
        out = attention(q, k, v, scale=scale, mask=mask).transpose(1, 2).unflatten(0, (-1, 2))
        return out if mask is None else out.nan_to_num()  # a view without any keypoint has nothing to attend to

    def keypoints(self) -> slice | Tensor:
        """Places of the tokens that are keypoints, among all tokens flattened."""
        return slice(None) if self.mask_B2N is None else self.mask_B2N.flatten().nonzero().squeeze(1)


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens (T, H, C) of P pairs; `lengths` holds 2 P segment lengths that sum to T."""

    lengths: tuple[int, ...]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, cross: bool, scale: float | None = None) -> Tensor:
        """See Layout."""
        segments = slices_of(self.lengths)
        sources = [segments[i ^ cross] for i in range(len(segments))]  # segments 2 p and 2 p + 1 are the views of p
        return attend_slices(q, k, v, segments, sources, scale)

    def segment_counts(self, flag_T: Tensor) -> Tensor:
        """Return the number (2 P,) of tokens of each segment that have the flag."""
        running = torch.cat([flag_T.new_zeros(1, dtype=torch.int64), flag_T.cumsum(0)])
        ends = torch.tensor([0, *self.lengths], device=flag_T.device).cumsum(0)
        return running[ends].diff()

    def pair_counts(self, flag_T: Tensor) -> Tensor:
        """Return the number (P,) of tokens of each pair that have the flag."""
        return self.segment_counts(flag_T).unflatten(0, (-1, 2)).sum(dim=1)


def slices_of(lengths: Sequence[int]) -> list[slice]:
    """Return where each segment is in a buffer."""
    slices, end = [], 0
    for length in lengths:
        slices.append(slice(end, end + length))
        end += length
    return slices


def attend_slices(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, queries: Sequence[slice], keys: Sequence[slice], scale: float | None
) -> Tensor:
    """Return messages (T, H, C): the tokens of each slice of `queries` attend to those of its slice of `keys`."""
    q_THC, k_THC = q_THC.to(v_THC.dtype), k_THC.to(v_THC.dtype)
    out_THC = torch.zeros_like(v_THC)
    for i, j in zip(queries, keys, strict=True):
        if i.start < i.stop and j.start < j.stop:
            q_1HNC, k_1HMC, v_1HMC = (x.transpose(0, 1)[None] for x in (q_THC[i], k_THC[j], v_THC[j]))
            out_THC[i] = attention(q_1HNC, k_1HMC, v_1HMC, scale=scale)[0].transpose(0, 1)
    return out_THC
