"""SuperGlue: Learning Feature Matching with Graph Neural Networks (Sarlin, DeTone, Malisiewicz, Rabinovich; CVPR 2020).

This file is what runs, in training and in inference: `isinglass.runtime.runner` has the loop over the layers. Equations
by number. Legend of shape suffixes: B batch of pairs, 2 views of a pair, N keypoints of a view (padded), T tokens of
all pairs of a packed buffer, M and N keypoints of view 0 and 1, D width. `...` stands for the token axes of any layout:
(T,) packed or (B, 2, N) dense (isinglass.runtime.layouts).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.assignment import log_sinkhorn, sinkhorn_matches
from isinglass.kernels.linear import rows_product
from isinglass.numbers import MOST_CHANNELS, check_numbers
from isinglass.runtime.anatomy import is_exactly
from isinglass.runtime.fused import FusedBlock, parameters_of
from isinglass.runtime.layouts import Dense, Layout
from isinglass.runtime.packed import MAX_TOKENS, Inputs
from isinglass.runtime.pairs import match_batch
from isinglass.runtime.runner import Exits, Found, Tokens, match_many, run_layers
from isinglass.types import Features, Matches
from isinglass.weights import Pretrained

Sample = Tensor | slice | None  # of tokens, see `MLP.forward`


@dataclass(frozen=True, kw_only=True)
class SuperGlueConfig:
    """Defaults are the published code's. Raises InputError where the heads do not divide the width."""

    input_size: int | None = None  # channels of the descriptors that come in; None = as of the states, as published
    width: int = 256  # of the states
    layers: int = 18  # L of the paper; the first, third, ... attend within a view, the others to the other view
    heads: int = 4
    encoder_widths: tuple[int, ...] = (32, 64, 128, 256)  # hidden layers of the keypoint encoder
    sinkhorn_iterations: int = 100  # T of section 3.2
    filter_threshold: float = 0.2  # least probability of a match, exclusive

    def __post_init__(self) -> None:
        channels = (1, MOST_CHANNELS)
        check_numbers(self, input_size=channels, width=channels, heads=channels, encoder_widths=channels)
        check_numbers(self, layers=(1, 1000), sinkhorn_iterations=(1, 100_000), filter_threshold=(0, 1))
        if self.width % self.heads:
            raise InputError(f"width {self.width} cannot be split into {self.heads} heads of one size")


class MLP(nn.Sequential):
    """Linear layers on the last axis, all but the last followed by batch normalization and ReLU."""

    def __init__(self, *widths: int) -> None:
        modules = []
        for i in range(1, len(widths)):
            modules += [nn.Linear(widths[i - 1], widths[i]), nn.BatchNorm1d(widths[i]), nn.ReLU()]
        super().__init__(*modules[:-2])
        nn.init.zeros_(modules[-3].bias)

    def forward(self, input: Tensor, sample: Sample = None) -> Tensor:
        """(..., C') of tokens (..., C).

        `sample`: the tokens that batch statistics are taken over and that the result holds for, as places (S,) in
        order, or slice(None) = all; None = by the running statistics.
        """
        x = input
        for module in self:
            x = _batch_norm(module, x, sample) if isinstance(module, nn.BatchNorm1d) else module(x)
        return x

    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (C', C) and bias (C',) of each linear layer, with the running statistics of what normalizes it."""
        layers, modules = [], [*self, None]
        for linear, norm in itertools.pairwise(modules):
            if not isinstance(linear, nn.Linear):
                continue
            weight, bias = linear.weight, linear.bias
            if isinstance(norm, nn.BatchNorm1d):
                assert norm.running_mean is not None and norm.running_var is not None
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                weight, bias = scale[:, None] * weight, scale * (bias - norm.running_mean) + norm.bias
            layers.append((weight.detach(), bias.detach()))
        return layers


class AttentionalPropagation(nn.Module):
    """One layer of the graph network: each keypoint takes in a message from one or the other view (eq. 3)."""

    def __init__(self, width: int, heads: int, *, is_cross: bool) -> None:
        super().__init__()
        self.heads, self.is_cross = heads, is_cross
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(2 * width, 2 * width, width)

    def forward(self, x: Tensor, sample: Sample, layout: Layout) -> Tensor:
        """Return the states (..., D) after the layer; `sample` as in `MLP`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # eq. 5
        message = self.out(layout.attend(q, k, v, cross=self.is_cross).flatten(-2))  # eq. 4
        return x + self.mlp(torch.cat([x, message], dim=-1), sample)

    def fused(self, dtype: torch.dtype) -> FusedBlock:
        """Return the same layer for inference, with the projection of the message merged into the MLP."""
        layers = [parameters_of(self.qkv), parameters_of(self.out), *self.mlp.folded()]
        return FusedBlock.merged(layers, torch.relu_, dtype, heads=self.heads, is_cross=self.is_cross)


class SuperGlue(Pretrained, nn.Module):
    """The matcher. `SuperGlue(config)` has random weights; `SuperGlue.pretrained(name)` loads published or own ones.

    The published weights are for SuperPoint and for non-commercial use only; our own are small and for RootSIFT.

    execution      "auto", "plain", "fused" or "cuda_graph", see isinglass.runtime.execution
    compute_dtype  of the layers in `match`; the rest is in that of the weights
    max_tokens     keypoints of all pairs that are matched at once
    """

    Config: ClassVar[type] = SuperGlueConfig
    default_weights: ClassVar[str] = "superglue-sift-small"
    bytes_per_token: ClassVar[int] = 17_000  # measured at width 256, without the assignment of a pair
    FORWARD_METHODS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: SuperGlueConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SuperGlueConfig()
        self.input_size = config.input_size or config.width
        same_size = self.input_size == config.width
        self.input_projection = nn.Identity() if same_size else nn.Linear(self.input_size, config.width)
        self.keypoint_encoder = MLP(3, *config.encoder_widths, config.width)
        self.layers = nn.ModuleList(
            AttentionalPropagation(config.width, config.heads, is_cross=i % 2 == 1) for i in range(config.layers)
        )
        self.final_projection = nn.Linear(config.width, config.width)
        self.bin_score = nn.Parameter(torch.tensor(1.0))  # z of eq. 8
        self.max_tokens = MAX_TOKENS
        self.compute_dtype = torch.float32
        self.execution = "auto"

    @property
    def name(self) -> str:
        """Name that is written into its matches."""
        return self.weights_name

    @property
    def descriptor_size(self) -> int:
        """Channels of the descriptors that it takes."""
        return self.input_size

    # ---- training

    def forward(
        self,
        keypoints_B2N2: Tensor,
        descriptors_B2ND: Tensor,
        scores_B2N: Tensor,
        image_size_B22: Tensor,
        mask_B2N: Tensor | None = None,
    ) -> Tensor:
        """Return the log of the augmented assignment (B, N + 1, N + 1); the last row and column are dustbins.

        Its entries are what the loss of eq. 10 picks from; those of padding are very low. In training mode batch
        normalization takes its statistics over the keypoints of both views, padding left out; that needs more than one
        keypoint in the batch.
        """
        inputs = Inputs(keypoints_B2N2, descriptors_B2ND, scores_B2N, image_size_B22[:, :, None], None)
        layout = Dense(mask_B2N)
        sample = layout.keypoints() if self.training else None
        tokens = Tokens(self._encoded(inputs, sample), sample, layout)
        run_layers(self.layers, tokens, lambda _, tokens: tokens)
        return self.log_augmented_assignment(tokens.x[:, 0], tokens.x[:, 1], mask_B2N)

    # ---- inference, by the running statistics of batch normalization in any mode

    def match(self, features0: Features, features1: Features) -> Matches:
        """Match a batch of pairs as `match_many` does; padding is dropped before and added after."""
        return match_batch(self, features0, features1)

    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """Return one `Matches` for each pair of a ragged list.

        A pair's result does not depend on its batch mates (up to rounding). A subclass or instance that has another
        `forward` is matched by that. Raises InputError on features that this model was not made for, see
        `check_pairs`, and where `execution` cannot be had.
        """
        return match_many(self, SuperGlue, features0, features1)

    def encode(self, inputs: Inputs) -> tuple[Tensor, None]:
        """Return the states (..., D) before the first layer (eq. 2); layers ask for no positions."""
        return self._encoded(inputs, None), None

    def _encoded(self, inputs: Inputs, sample: Sample) -> Tensor:
        """Positions are relative to the image's centre and 0.7 of its long side, the published code's."""
        size = inputs.image_size.to(inputs.keypoints)
        position = (inputs.keypoints - size / 2) / (0.7 * size.amax(dim=-1, keepdim=True))
        encoded = self.keypoint_encoder(torch.cat([position, inputs.scores[..., None]], dim=-1), sample)
        return self.input_projection(inputs.descriptors) + encoded

    def similarity(self, x0_BMD: Tensor, x1_BND: Tensor) -> Tensor:
        """Return the similarities (B, M, N) of states after the last layer (eq. 6 and 7), in the weights' precision."""
        f0_BMD, f1_BND = (self.final_projection(x).to(self.bin_score) for x in (x0_BMD, x1_BND))
        with torch.autocast(x0_BMD.device.type, enabled=False):  # likelihoods of bfloat16 would teach little
            return f0_BMD @ f1_BND.mT / self.config.width**0.5  # the published code divides, too

    def log_augmented_assignment(self, x0_BMD: Tensor, x1_BND: Tensor, mask_B2N: Tensor | None = None) -> Tensor:
        """Return the log of the augmented assignment (B, M + 1, N + 1), eq. 6 to 9."""
        masks = () if mask_B2N is None else (mask_B2N[:, 0], mask_B2N[:, 1])
        similarity_BMN = self.similarity(x0_BMD, x1_BND)
        return log_sinkhorn(similarity_BMN, self.bin_score, self.config.sinkhorn_iterations, *masks)

    def log_assignment(self, layer: int, x0_BMD: Tensor, x1_BND: Tensor, mask_B2N: Tensor | None = None) -> Tensor:
        """Return the log of the assignment (B, M, N) without dustbins, of states after the last layer."""
        return self.log_augmented_assignment(x0_BMD, x1_BND, mask_B2N)[:, :-1, :-1]

    # What isinglass.runtime needs besides.

    def max_unsure(self, num_points: int) -> int:
        """Return -1: no pair stops before the last layer."""
        return -1

    def exits(self, layer: int, x_TD: Tensor, layout: Any, max_unsure_P: Tensor) -> Exits:
        """Return that nothing leaves."""
        return Exits()

    def predict(self, inputs: Inputs, mask_B2N: Tensor | None) -> Tensor:
        """Return the log of the assignment (B, N, N) by `forward`."""
        numbers = inputs.keypoints, inputs.descriptors, inputs.scores, inputs.image_size[:, :, 0], mask_B2N
        return self(*numbers)[:, :-1, :-1]

    def fused_layers(self, dtype: torch.dtype) -> list[list[Any]]:
        """Return the fused block of each layer, which computes in that dtype."""
        return [[layer.fused(dtype)] for layer in self.layers if isinstance(layer, AttentionalPropagation)]

    def fused_matches(self, layer: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matches of one pair, (M,) and (M,), on CPUs."""
        f0_MD, f1_ND = self.final_projection(x0_MD), self.final_projection(x1_ND)
        similarity_MN = rows_product(f0_MD, f1_ND).div_(self.config.width**0.5)
        config = self.config
        return sinkhorn_matches(
            similarity_MN, self.bin_score.detach(), config.sinkhorn_iterations, config.filter_threshold
        )

    def report(self, found: Found) -> Matches:
        """Return the result of a pair as it is handed out."""
        indices_M, scores_M = found.matches
        return Matches(
            indices=indices_M[None],
            scores=scores_M[None].clamp(max=1),
            stop_layer=torch.tensor([self.config.layers], device=indices_M.device),
            matcher=self.name,
        )


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor, sample: Sample) -> Tensor:
    """Normalize tokens (..., C), the token axes taken as one; a changed `norm` does so in its own mode."""
    tokens = x.reshape(-1, x.shape[-1])
    if sample is None and is_exactly(norm, nn.BatchNorm1d):
        y = F.batch_norm(tokens, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    elif sample is None or isinstance(sample, slice):
        y = norm(tokens)
    else:
        y = torch.zeros_like(tokens).index_copy(0, sample, norm(tokens.index_select(0, sample)))
    return y.view_as(x)
