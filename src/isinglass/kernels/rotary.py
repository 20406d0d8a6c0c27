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

    def packed(self) -> PackedRotation:
        """Return the same rotation with each number once."""
        return PackedRotation(torch.stack([self.cos[..., ::2].float(), self.sin[..., ::2].float()], dim=-1))


class PackedRotation(NamedTuple):
    """A `Rotation` in float32, as cosine and sine of each pair of channels side by side."""

    factors: Tensor  # (..., 1, C / 2, 2)

    def apply_(self, x: Tensor, rows: slice = slice(None)) -> None:
        """Do what `Rotation.apply` does, in place, to float32 queries or keys of these rows.

        On CPUs pairs of channels are taken as complex numbers, which is one product; not every device has those.
        """
        pairs, factors = x.unflatten(-1, (-1, 2)), self.factors[rows]
        if x.device.type == "cpu":
            torch.view_as_complex(pairs).mul_(torch.view_as_complex(factors))
            return
        (even, odd), (cos, sin) = pairs.unbind(-1), factors.unbind(-1)
        pairs.copy_(torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1))
