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

    def as_factors(self) -> Tensor:
        """The same as complex numbers (..., 1, C / 2), one a pair of channels, for `turn`."""
        return torch.complex(self.cos[..., ::2].float(), self.sin[..., ::2].float())


def turn(x: Tensor, factors: Tensor) -> None:
    """As `Rotation.apply`, in place and float32: pairs of channels are complex numbers, turned by products."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(factors)
