"""Segments of a packed buffer whose lengths are on the device: nothing here makes the host wait.

What `Ragged` does with lists is done by tensors of fixed shapes, so that a GPU can be given many operations as one
recorded launch (isinglass.ops.recording).

Legend: T places of a buffer, of which the first are taken by tokens; S = 2 P segments, the two views of each pair side
by side; E = S + 1 ends; H heads, C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Segment s is from token `ends_E[s]` to `ends_E[s + 1]`; places behind the last end are nobody's."""

    ends_E: Tensor  # int32
    longest: int  # at most so many tokens has a segment

    @classmethod
    def of_lengths(cls, lengths_S: Tensor, longest: int) -> Segments:
        """Side by side."""
        return cls(_ends(lengths_S), longest)

    def owner(self, places: int) -> Tensor:
        """(T,) int64, the segment of each place; S = nobody's."""
        place_T = torch.arange(places, device=self.ends_E.device, dtype=self.ends_E.dtype)
        return torch.searchsorted(self.ends_E[1:], place_T, right=True)

    def count(self, flag_T: Tensor) -> Tensor:
        """(S,) int64, how many tokens of each segment have the flag."""
        return F.pad(flag_T.cumsum(0), (1, 0))[self.ends_E.long()].diff()

    def attend(self, q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, *, is_cross: bool, scale: float) -> Tensor:
        """(T, H, C): every token attends to its own view, or to the other one of its pair; 0 where that is empty."""
        if not is_cross:
            return attend_segments(q_THC, k_THC, v_THC, self.ends_E, self.ends_E, self.longest, scale)
        lengths_S = self.ends_E.diff().unflatten(0, (-1, 2)).flip(1).flatten()
        source_T = self._swapped(len(q_THC))
        return attend_segments(
            q_THC, k_THC[source_T], v_THC[source_T], self.ends_E, _ends(lengths_S), self.longest, scale
        )

    def _swapped(self, places: int) -> Tensor:
        """(T,) where the token is that comes to each place once the two views of every pair have changed places."""
        place_T = torch.arange(places, device=self.ends_E.device)
        start_P, middle_P, end_P = (self.ends_E[first:last:2] for first, last in ((0, -1), (1, None), (2, None)))
        pair_T = torch.searchsorted(end_P.contiguous(), place_T.to(end_P), right=True)
        is_taken_T, pair_T = pair_T < len(end_P), pair_T.clamp(max=len(end_P) - 1)
        offset_T, second_T = place_T - start_P[pair_T], (end_P - middle_P)[pair_T]
        in_pair_T = offset_T + torch.where(offset_T < second_T, (middle_P - start_P)[pair_T], -second_T)
        return torch.where(is_taken_T, start_P[pair_T] + in_pair_T, place_T)


def kept_first(keep_T: Tensor) -> tuple[Tensor, Tensor]:
    """Places (T,) of the tokens to keep, in order, then anything; and how many they are (0-d)."""
    places, place_T = len(keep_T), torch.arange(len(keep_T), device=keep_T.device)
    running_T = keep_T.cumsum(0)
    order = place_T.new_zeros(places + 1)
    order.scatter_(0, torch.where(keep_T, running_T - 1, places), place_T)
    return order[:places], running_T[-1]


def attend_segments(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, ends_q: Tensor, ends_k: Tensor, longest: int, scale: float
) -> Tensor:
    """Messages (T, H, C) of queries, keys and values: softmax(`scale` q k^T) v within each segment.

    Segment s has queries from `ends_q[s]` to `ends_q[s + 1]`, keys and values likewise, and none is longer than
    `longest`. On CUDA one call of flash attention, for halves; elsewhere a loop, which is its slow twin. The messages
    of places that are nobody's mean nothing; they may not even be finite.
    """
    if q_THC.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn  # 1.6 s, as it brings torch's compiler along

        out = varlen_attn(q_THC, k_THC, v_THC, ends_q, ends_k, longest, longest, scale=scale)
        assert isinstance(out, Tensor)
        return out
    out_THC = torch.full_like(v_THC, torch.nan)
    for i, j in zip(_slices(ends_q), _slices(ends_k), strict=True):
        if i.start == i.stop:
            continue
        if j.start == j.stop:
            out_THC[i] = 0
            continue
        q_HNC, k_HMC, v_HMC = (x.transpose(0, 1)[None] for x in (q_THC[i], k_THC[j], v_THC[j]))
        out_THC[i] = F.scaled_dot_product_attention(q_HNC, k_HMC, v_HMC, scale=scale)[0].transpose(0, 1)
    return out_THC


def _ends(lengths_S: Tensor) -> Tensor:
    return F.pad(lengths_S.cumsum(0, dtype=torch.int32), (1, 0))


def _slices(ends_E: Tensor) -> list[slice]:
    ends = ends_E.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]
