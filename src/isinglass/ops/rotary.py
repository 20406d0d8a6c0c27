"""Rotary position encoding: what attention makes of it depends on the difference of two positions alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """R(p) of LightGlue eq. 3: each pair of channels is turned by an angle linear in the position."""

    cos: Tensor  # (..., 1, C), each value twice: for both channels of a pair
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Turn queries or keys (..., H, C)."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.cos + torch.stack([-odd, even], dim=-1).flatten(-2) * self.sin

    def turn(self, streams_STC: Tensor) -> None:
        """The same in place, for (S, T, C) with the first channels of all pairs before the second ones.

        T may go beyond the positions: what is beyond stays as it is.
        """
        even, odd = streams_STC[:, : len(self.cos)].chunk(2, dim=-1)
        cos_TC, sin_TC = (angle[:, 0, ::2].to(streams_STC.dtype) for angle in self)
        turned = even * cos_TC - odd * sin_TC
        odd.mul_(cos_TC).addcmul_(even, sin_TC)
        even.copy_(turned)
