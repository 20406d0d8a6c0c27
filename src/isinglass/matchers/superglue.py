"""SuperGlue: Learning Feature Matching with Graph Neural Networks (Sarlin, DeTone, Malisiewicz, Rabinovich; CVPR 2020).

Equations by number. Legend of shape suffixes: B batch of pairs, 2 views of a pair, N keypoints of a view (padded),
T tokens of all pairs of a packed buffer, M and N keypoints of view 0 and 1, D width. `...` stands for the token axes of
either layout: (T,) packed or (B, 2, N) dense (isinglass.ops.attention).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.matchers.execution import Views, execution_of, mixed_precision
from isinglass.matchers.recorded import RecordedSuperGlue, SuperGlueParts, match_alike
from isinglass.numbers import MOST_CHANNELS, check_numbers
from isinglass.ops.anatomy import is_exactly, is_replaced
from isinglass.ops.assignment import log_sinkhorn, mutual_matches, sinkhorn_matches
from isinglass.ops.attention import Dense, Layout, Packed
from isinglass.ops.linear import Affine, rows_product
from isinglass.ops.ragged import MAX_TOKENS
from isinglass.ops.threads import in_team
from isinglass.ops.units import Unit, parameters_of, prepared
from isinglass.types import Features, Matches, check_pairs, chunk_pairs, match_batch
from isinglass.weights import Pretrained

Sample = Tensor | slice | None  # of tokens, see `MLP.forward`
METHODS = ("forward", "_describe", "_assign")  # that `forward` is made of


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
    """Linear layers on the last axis, all but the last followed by batch normalisation and ReLU."""

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
        """Weight (C', C) and bias (C',) of each linear layer, with the running statistics of what normalises it."""
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

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(2 * width, 2 * width, width)

    def forward(self, x: Tensor, layout: Layout, cross: bool, sample: Sample = None) -> Tensor:
        """States (..., D) after the layer."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # eq. 5
        attended = layout.attend_cross(q, k, v) if cross else layout.attend_self(q, k, v)  # eq. 4
        message = self.out(attended.flatten(-2))
        return x + self.mlp(torch.cat([x, message], dim=-1), sample)

    def prepared(self, dtype: torch.dtype, cross: bool) -> Unit:
        """The same for inference, with the projection of the message merged into the MLP."""
        layers = [parameters_of(self.qkv), parameters_of(self.out), *self.mlp.folded()]
        return Unit.merged(layers, torch.relu_, dtype, heads=self.heads, is_cross=cross)


class SuperGlue(Pretrained, nn.Module):
    """The matcher. `SuperGlue(config)` has random weights; `SuperGlue.pretrained(name)` loads published or own ones.

    The published weights are for SuperPoint and for non-commercial use only; our own are small and for RootSIFT.

    execution      "auto", "plain", "fused" or "cuda_graph", see isinglass.matchers.execution
    compute_dtype  of the layers in `match`; the rest is in that of the weights
    max_tokens     keypoints of all pairs that are matched at once
    """

    Config: ClassVar[type] = SuperGlueConfig
    default_weights: ClassVar[str] = "superglue-sift-small"
    bytes_per_token: ClassVar[int] = 17_000  # measured at width 256, without the assignment of a pair

    def __init__(self, config: SuperGlueConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SuperGlueConfig()
        self.input_size = config.input_size or config.width
        same_size = self.input_size == config.width
        self.input_projection = nn.Identity() if same_size else nn.Linear(self.input_size, config.width)
        self.keypoint_encoder = MLP(3, *config.encoder_widths, config.width)
        self.layers = nn.ModuleList(AttentionalPropagation(config.width, config.heads) for _ in range(config.layers))
        self.final_projection = nn.Linear(config.width, config.width)
        self.bin_score = nn.Parameter(torch.tensor(1.0))  # z of eq. 8
        self.max_tokens = MAX_TOKENS
        self.compute_dtype = torch.float32
        self.execution = "auto"

    @property
    def name(self) -> str:
        """As written into its matches."""
        return self.weights_name

    def forward(
        self,
        keypoints_B2N2: Tensor,
        descriptors_B2ND: Tensor,
        scores_B2N: Tensor,
        image_size_B22: Tensor,
        mask_B2N: Tensor | None = None,
    ) -> Tensor:
        """Log of the augmented assignment (B, N + 1, N + 1) in the dense layout; the last row and column are dustbins.

        Its entries are what the loss of eq. 10 picks from; those of padding are very low. In training mode batch
        normalisation takes its statistics over the keypoints of both views, padding left out; that needs more than one
        keypoint in the batch.
        """
        sample = None
        if self.training:
            sample = slice(None) if mask_B2N is None else mask_B2N.flatten().nonzero().squeeze(1)
        f_B2ND = self._describe(
            keypoints_B2N2, descriptors_B2ND, scores_B2N, image_size_B22[:, :, None], Dense(mask_B2N), sample
        )
        return self._assign(f_B2ND[:, 0], f_B2ND[:, 1], mask_B2N)

    def match(self, features0: Features, features1: Features) -> Matches:
        """Matches of a batch of pairs; see `match_many`, which it is, with padding dropped before and added after."""
        return match_batch(self, features0, features1)

    @torch.inference_mode()
    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """One `Matches` a pair of a ragged list, by the running statistics of batch normalisation in any mode.

        A pair's result does not depend on its batch mates (up to rounding). A subclass or instance that has another
        `forward` is matched by that. Raises InputError on features that this model was not made for, see
        `check_pairs`, and where `execution` cannot be had.
        """
        execution = execution_of(self, SuperGlue, METHODS)
        pairs = check_pairs(
            features0, features1, matcher=self.name, accepts=self.accepts, descriptor_size=self.input_size
        )
        if execution == "cuda_graph":
            return match_alike(self._match_recorded, self._match_plain, pairs, self.max_tokens)
        match_chunk = self._match_packed if execution == "fused" else self._match_plain
        return [matches for chunk in chunk_pairs(pairs, self.max_tokens) for matches in match_chunk(chunk)]

    # --- the parts of `forward` and `match_many`

    def _describe(
        self,
        keypoints: Tensor,
        descriptors: Tensor,
        scores: Tensor,
        image_size: Tensor,
        layout: Layout,
        sample: Sample = None,
    ) -> Tensor:
        """Matching descriptors f (..., D) of keypoints (..., 2) px, as eq. 2 to 6; `sample` as in `MLP`."""
        position = _positions(keypoints, image_size.to(keypoints))
        encoded = self.keypoint_encoder(torch.cat([position, scores[..., None]], dim=-1), sample)
        x = self.input_projection(descriptors) + encoded  # eq. 2
        for i, layer in enumerate(self.layers):
            x = layer(x, layout, i % 2 == 1, sample)
        return self.final_projection(x)  # eq. 6

    def _assign(self, f0_BMD: Tensor, f1_BND: Tensor, mask_B2N: Tensor | None = None) -> Tensor:
        """Log of the augmented assignment (B, M + 1, N + 1), eq. 7 to 9, in the precision of the weights."""
        f0_BMD, f1_BND = f0_BMD.to(self.bin_score), f1_BND.to(self.bin_score)
        with torch.autocast(f0_BMD.device.type, enabled=False):  # likelihoods of bfloat16 would teach little
            similarity_BMN = f0_BMD @ f1_BND.mT / self.config.width**0.5  # eq. 7; the published code divides, too
        masks = () if mask_B2N is None else (mask_B2N[:, 0], mask_B2N[:, 1])
        return log_sinkhorn(similarity_BMN, self.bin_score, self.config.sinkhorn_iterations, *masks)

    @in_team
    def _match_packed(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By fused blocks."""
        lengths, position_T3, x_TD = self._tokens(pairs)
        parts, like = self._prepared(), self.bin_score
        for layer in parts.encoder:
            position_T3 = layer(position_T3)
        x_TD = (x_TD + position_T3).to(self.compute_dtype)
        for unit in parts.units:
            x_TD = unit(x_TD, lengths)
        f = parts.projection(x_TD.to(like)).split(lengths)
        return [self._match_pair(f0_MD, f1_ND) for f0_MD, f1_ND in zip(f[0::2], f[1::2], strict=True)]

    def _match_plain(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By the modules: `forward` where that is not the one above, else the layers, of all pairs side by side."""
        if is_replaced(self, SuperGlue, METHODS):
            return [self._match_by_forward(pair) for pair in pairs]
        lengths, position_T3, x_TD = self._tokens(pairs)
        x_TD, layout = x_TD + self.keypoint_encoder(position_T3), Packed(tuple(lengths))
        with mixed_precision(self, self.bin_score):
            for i, layer in enumerate(self.layers):
                x_TD = layer(x_TD, layout, i % 2 == 1)
        f = [f_ND[None] for f_ND in self.final_projection(x_TD.to(self.bin_score)).split(lengths)]
        return [
            self._report_assignment(self._assign(f0_1MD, f1_1ND)[:, :-1, :-1])
            for f0_1MD, f1_1ND in zip(f[0::2], f[1::2], strict=True)
        ]

    def _match_by_forward(self, pair: tuple[Features, Features]) -> Matches:
        """Matches of a pair by calling the module."""
        both = Views.of(pair)
        if not all(both.counts):
            return self._report_assignment(both.features.scores.new_zeros(1, *both.counts))
        numbers = [getattr(both.features, name) for name in ("keypoints", "descriptors", "scores", "image_size")]
        with mixed_precision(self, self.bin_score):
            log_assignment = self(*(value[None].to(self.bin_score) for value in numbers), both.mask_12N)
        return self._report_assignment(both.cut(log_assignment))

    def _report_assignment(self, log_assignment_1MN: Tensor) -> Matches:
        indices_1M, scores_1M = mutual_matches(log_assignment_1MN, self.config.filter_threshold)
        return self._report(indices_1M[0], scores_1M[0])

    def _match_recorded(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """By recorded CUDA graphs, of pairs of which no view is empty."""
        lengths, position_T3, x_TD = self._tokens(pairs)
        recorded = prepared(
            self, ("recorded", self.compute_dtype), lambda: RecordedSuperGlue(self._parts(), self.compute_dtype)
        )
        iterations, threshold = self.config.sinkhorn_iterations, self.config.filter_threshold
        found = recorded.match(position_T3, x_TD, lengths, iterations, threshold)
        of_pairs = zip(found.indices_PN, found.scores_PN, lengths[::2], strict=False)
        return [self._report(indices_N[:m], scores_N[:m]) for indices_N, scores_N, m in of_pairs]

    def _tokens(self, pairs: Sequence[tuple[Features, Features]]) -> tuple[list[int], Tensor, Tensor]:
        """How many keypoints each view has; positions with scores (T, 3) and projected descriptors (T, D) of all."""
        views, like = [view for pair in pairs for view in pair], self.bin_score
        lengths = [view.keypoints.shape[1] for view in views]
        size_T2 = torch.cat([view.image_size.expand(n, 2) for view, n in zip(views, lengths, strict=True)])
        keypoints_T2, scores_T, descriptors_TD = (
            torch.cat([getattr(view, name)[0] for view in views]).to(like)
            for name in ("keypoints", "scores", "descriptors")
        )
        position_T3 = torch.cat([_positions(keypoints_T2, size_T2.to(like)), scores_T[:, None]], dim=1)
        return lengths, position_T3, self.input_projection(descriptors_TD)

    def _match_pair(self, f0_MD: Tensor, f1_ND: Tensor) -> Matches:
        similarity_MN = rows_product(f0_MD, f1_ND).div_(self.config.width**0.5)
        return self._report(
            *sinkhorn_matches(
                similarity_MN, self.bin_score.detach(), self.config.sinkhorn_iterations, self.config.filter_threshold
            )
        )

    def _report(self, indices_M: Tensor, scores_M: Tensor) -> Matches:
        stop_layer = torch.tensor([self.config.layers], device=indices_M.device)
        scores = scores_M[None].clamp(max=1)
        return Matches(indices=indices_M[None], scores=scores, stop_layer=stop_layer, matcher=self.name)

    def _prepared(self) -> SuperGlueParts:
        """Keypoint encoder, layers and final projection for inference, the layers in `compute_dtype`."""
        return prepared(self, ("parts", self.compute_dtype), self._parts)

    def _parts(self) -> SuperGlueParts:
        *hidden, last = self.keypoint_encoder.folded()
        layers = [layer for layer in self.layers if isinstance(layer, AttentionalPropagation)]
        return SuperGlueParts(
            encoder=[*(Affine(*layer, relu=True) for layer in hidden), Affine(*last)],
            units=[layer.prepared(self.compute_dtype, i % 2 == 1) for i, layer in enumerate(layers)],
            projection=Affine(self.final_projection.weight, self.final_projection.bias),
            bin_score=self.bin_score.detach(),
        )


def _positions(keypoints: Tensor, size: Tensor) -> Tensor:
    """Pixels (..., 2) relative to the image's centre and 0.7 of its long side, the published code's."""
    return (keypoints - size / 2) / (0.7 * size.amax(dim=-1, keepdim=True))


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor, sample: Sample) -> Tensor:
    """Batch normalisation of tokens (..., C), the token axes taken as one; of a changed `norm` in its own mode."""
    tokens = x.reshape(-1, x.shape[-1])
    if sample is None and is_exactly(norm, nn.BatchNorm1d):
        y = F.batch_norm(tokens, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    elif sample is None or isinstance(sample, slice):
        y = norm(tokens)
    else:
        y = torch.zeros_like(tokens).index_copy(0, sample, norm(tokens.index_select(0, sample)))
    return y.view_as(x)
