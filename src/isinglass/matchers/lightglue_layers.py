"""What LightGlue is made of: attention units, and the head that predicts matches. Equations of its paper by number.

Legend of shape suffixes as in isinglass.matchers.lightglue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.ops.assignment import double_softmax_matches, log_double_softmax
from isinglass.ops.attention import Layout
from isinglass.ops.linear import linear
from isinglass.ops.rotary import Rotation
from isinglass.ops.units import Unit, parameters_of


class FeedForward(nn.Sequential):
    """The MLP of eq. 1, on state and message concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )


class SelfAttention(nn.Module):
    """Each point attends to all points of its image; scores depend on relative positions (eq. 1 to 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """States (..., D) after the unit."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        message = layout.attend_self(rotation.apply(q), rotation.apply(k), v)
        return x + self.ffn(torch.cat([x, self.out(message.flatten(-2))], dim=-1))

    def prepared(self, dtype: torch.dtype) -> Unit:
        """The same for inference."""
        return _unit(parameters_of(self.qkv), self, dtype, is_cross=False)


class CrossAttention(nn.Module):
    """Each point attends to all points of the other image; one projection is key and query (eq. 4).

    The similarity is symmetric. Computing it once for both directions saves a product but must hold the M x N matrix
    of every head; two fused calls never do, and are faster from a few hundred keypoints on.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """States (..., D) after the unit."""
        qk, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.qk, self.v))
        message = layout.attend_cross(qk, qk, v)
        return x + self.ffn(torch.cat([x, self.out(message.flatten(-2))], dim=-1))

    def prepared(self, dtype: torch.dtype) -> Unit:
        """The same for inference."""
        weights, biases = zip(parameters_of(self.qk), parameters_of(self.v), strict=True)
        return _unit((torch.cat(weights), torch.cat(biases)), self, dtype, is_cross=True)


def _unit(
    project: tuple[Tensor, Tensor], unit: SelfAttention | CrossAttention, dtype: torch.dtype, *, is_cross: bool
) -> Unit:
    first, norm, _, last = unit.ffn
    assert isinstance(first, nn.Linear) and isinstance(norm, nn.LayerNorm) and isinstance(last, nn.Linear)
    shape, scale, shift, eps = norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps

    def between(hidden: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(hidden, shape, scale.to(dtype), shift.to(dtype), eps))

    layers = [project, *map(parameters_of, (unit.out, first, last))]
    return Unit.merged(layers, between, dtype, heads=unit.heads, is_cross=is_cross)


class Layer(nn.Module):
    """One self- and one cross-attention unit."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """States (..., D) after the layer."""
        return self.cross_attention(self.self_attention(x, rotation, layout), layout)


class Assignment(nn.Module):
    """The prediction head of one layer (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(width, 1)  # eq. 7, a logit
        self.projection = nn.Linear(width, width)  # eq. 6

    def forward(
        self, x0_BMD: Tensor, x1_BND: Tensor, padding_BMN: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log of the partial assignment (B, M, N), eq. 8, very low at padding; matchability logits (B, M), (B, N)."""
        scale = x0_BMD.shape[-1] ** -0.25
        similarity_BMN = self.projection(x0_BMD) * scale @ (self.projection(x1_BND) * scale).mT
        z0_BM, z1_BN = self.matchability(x0_BMD).squeeze(-1), self.matchability(x1_BND).squeeze(-1)
        return log_double_softmax(similarity_BMN, z0_BM, z1_BN, padding_BMN), z0_BM, z1_BN

    def match(self, x0_MD: Tensor, x1_ND: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """For inference: `mutual_matches` of what this head says of one pair, (M,) and (M,)."""
        scale = x0_MD.shape[-1] ** -0.25
        z0_M, z1_N = self.matchability(x0_MD).squeeze(-1), self.matchability(x1_ND).squeeze(-1)
        projected0_MD, projected1_ND = (linear(x, self.projection) * scale for x in (x0_MD, x1_ND))
        return double_softmax_matches(projected0_MD, projected1_ND, z0_M, z1_N, threshold)

    def probability(self, x: Tensor) -> Tensor:
        """sigma of eq. 7 for states (..., D): how likely each point has a match."""
        return self.matchability(x).squeeze(-1).sigmoid()
