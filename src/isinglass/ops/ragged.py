"""Tokens of many pairs in one buffer without padding, where pairs and points leave as they are done.

Legend: T tokens now in the buffer, A all tokens there were at first, P pairs now in the buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_TOKENS = 32768  # of one buffer: enough to fill a machine


@dataclass(slots=True, kw_only=True)
class Ragged:
    """The buffer: segments in the order view 0 of a pair, view 1 of it, view 0 of the next, ...

    state_T      per token, replaced by each layer
    constant_T   per token, kept (positions)
    lengths      2 P segment lengths
    pairs        P pair numbers, in the order of the buffer
    origin_T     (T,) int64, the place each token had at first
    left_at_A    (A,) int64, the layers each token went through when it left; for those inside, 0
    note_A       (A,) float, the last note on each token (its confidence); NaN = none
    """

    state_T: Tensor
    constant_T: tuple[Tensor, ...]
    lengths: list[int]
    pairs: list[int]
    origin_T: Tensor
    left_at_A: Tensor
    note_A: Tensor
    starts: tuple[int, ...] = field(default=())

    @classmethod
    def pack(cls, state_T: Tensor, constant_T: tuple[Tensor, ...], lengths: Sequence[int]) -> Ragged:
        """A buffer of pairs 0, 1, ..., whose segments of `lengths` are already side by side."""
        origin_T = torch.arange(state_T.shape[0], device=state_T.device)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return cls(
            state_T=state_T,
            constant_T=constant_T,
            lengths=list(lengths),
            pairs=list(range(len(lengths) // 2)),
            origin_T=origin_T,
            left_at_A=torch.zeros_like(origin_T),
            note_A=torch.full(origin_T.shape, torch.nan, dtype=torch.float32, device=state_T.device),
            starts=tuple(starts),
        )

    def count(self, flag_T: Tensor) -> list[int]:
        """How many tokens of each pair have the flag."""
        views = self._count_by_segment(flag_T)
        return [a + b for a, b in zip(views[::2], views[1::2], strict=True)]

    def note(self, value_T: Tensor) -> None:
        """Remember a number per token, readable by `report` after the token left."""
        self.note_A[self.origin_T] = value_T.to(self.note_A.dtype)

    def views(self, pairs: Collection[int]) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """Of each of these pairs: its number, the states of both views, and their tokens' first places in the view."""
        states, origins = self.state_T.split(self.lengths), self.origin_T.split(self.lengths)
        for i, pair in enumerate(self.pairs):
            if pair in pairs:
                first = (origins[2 * i] - self.starts[2 * pair], origins[2 * i + 1] - self.starts[2 * pair + 1])
                yield pair, states[2 * i], states[2 * i + 1], *first

    def keep(self, keep_T: Tensor | None, leaving: Collection[int], layer: int) -> None:
        """Compact: tokens without the flag leave, and so do the pairs in `leaving` and those with an empty view."""
        stay = [n > 0 for n in (self.lengths if keep_T is None else self._count_by_segment(keep_T))]
        in_pair = [stay[i] and stay[i ^ 1] and self.pairs[i // 2] not in leaving for i in range(len(stay))]
        if all(in_pair) and keep_T is None:
            return
        device = self.state_T.device
        segment_stays = torch.tensor(in_pair, device=device)
        stays_T = segment_stays.repeat_interleave(torch.tensor(self.lengths, device=device))
        stays_T = stays_T if keep_T is None else stays_T & keep_T
        counts = self._count_by_segment(stays_T)
        self.left_at_A[self.origin_T[~stays_T]] = layer
        self.lengths = [n for n, there in zip(counts, in_pair, strict=True) if there]
        self.pairs = [pair for pair, there in zip(self.pairs, in_pair[::2], strict=True) if there]
        if all(counts[i] == n for i, n in enumerate(self.lengths)) and len(stays_T) == sum(counts):
            return
        stays = stays_T.nonzero().squeeze(-1)
        self.state_T, self.origin_T = self.state_T.index_select(0, stays), self.origin_T.index_select(0, stays)
        self.constant_T = tuple(constant.index_select(0, stays) for constant in self.constant_T)

    def report(self, values_A: Tensor, pair: int) -> tuple[Tensor, Tensor]:
        """The values of the two views of a pair, out of one per first token."""
        lengths = [end - start for start, end in zip(self.starts, (*self.starts[1:], len(values_A)), strict=True)]
        views = values_A.split(lengths)
        return views[2 * pair], views[2 * pair + 1]

    def _count_by_segment(self, flag_T: Tensor) -> list[int]:
        running = torch.cat([flag_T.new_zeros(1, dtype=torch.int64), flag_T.cumsum(0)])
        ends = torch.tensor(self.lengths, device=flag_T.device).cumsum(0)
        at_ends = running[ends]
        return torch.diff(at_ends, prepend=at_ends.new_zeros(1)).tolist()
