"""LightGlue: Local Feature Matching at Light Speed (Lindenberger, Sarlin, Pollefeys; ICCV 2023). Equations by number.

This file is what runs, in training and in inference: `isinglass.runtime.runner` has the loop over the layers. Blocks
that have `fused` are rearranged for inference where nothing was changed; `execution="plain"` runs them as they are.

Legend of shape suffixes: B batch of pairs, 2 views of a pair, N keypoints of a view (padded), T tokens of the layout in
use, P pairs, M and N keypoints of view 0 and 1 of one pair, D width, H heads, C channels a head. `...` stands for the
token axes of any layout: (T,) packed or (B, 2, N) dense (isinglass.runtime.layouts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.assignment import double_softmax_matches, log_double_softmax
from isinglass.kernels.linear import linear
from isinglass.kernels.rotary import Rotation
from isinglass.numbers import MOST_CHANNELS, check_numbers
from isinglass.runtime.anatomy import is_replaced
from isinglass.runtime.fused import FusedBlock, parameters_of
from isinglass.runtime.layouts import Dense, Layout
from isinglass.runtime.packed import MAX_TOKENS, Inputs
from isinglass.runtime.pairs import match_batch
from isinglass.runtime.runner import Exits, Found, Tokens, match_many, run_layers
from isinglass.types import Features, Matches
from isinglass.weights import Pretrained


@dataclass(frozen=True, kw_only=True)
class LightGlueConfig:
    """Defaults are the paper's. Raises InputError where heads do not divide width into even parts."""

    input_size: int = 256  # channels of the descriptors that come in
    width: int = 256  # of the tokens
    layers: int = 9
    heads: int = 4
    scale_orientation: bool = False  # also encode the keypoints' scale and orientation (SIFT)
    depth_confidence: float | None = 0.95  # alpha of eq. 12: share of confident points to stop at; None = all layers
    width_confidence: float | None = 0.99  # prune points less matchable than 1 - this (section 3.3); None = never
    filter_threshold: float = 0.1  # tau of section 3.2: least score of a match

    def __post_init__(self) -> None:
        channels, share = (1, MOST_CHANNELS), (0, 1)
        check_numbers(self, input_size=channels, width=channels, heads=channels, layers=(1, 1000))
        check_numbers(self, depth_confidence=share, width_confidence=share, filter_threshold=share)
        if self.width % (2 * self.heads):
            raise InputError(f"width {self.width} cannot be split into {self.heads} heads of an even size")


class FeedForward(nn.Sequential):
    """The MLP of eq. 1, on state and message concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )


class AttentionBlock(nn.Module):
    """What self- and cross-attention share: the state is updated by an MLP of itself and a message (eq. 1)."""

    def __init__(self, width: int, heads: int, **projections: nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        for name, projection in projections.items():
            self.add_module(name, projection)
        self.out = nn.Linear(width, width)
        self.ffn = FeedForward(width)

    def update(self, x: Tensor, message: Tensor) -> Tensor:
        """Return the states (..., D), given messages (..., H, C)."""
        return x + self.ffn(torch.cat([x, self.out(message.flatten(-2))], dim=-1))

    def merged(self, projection: tuple[Tensor, Tensor], dtype: torch.dtype, *, is_cross: bool) -> FusedBlock:
        """Return the same block for inference, made of weight and bias of the projections to queries, keys, values."""
        first, norm, _, last = self.ffn
        assert isinstance(first, nn.Linear) and isinstance(norm, nn.LayerNorm) and isinstance(last, nn.Linear)
        shape, scale, shift, eps = norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps

        def activation(hidden: Tensor) -> Tensor:
            return F.gelu(F.layer_norm(hidden, shape, scale.to(dtype), shift.to(dtype), eps))

        layers = [projection, *map(parameters_of, (self.out, first, last))]
        return FusedBlock.merged(layers, activation, dtype, heads=self.heads, is_cross=is_cross)


class SelfAttention(AttentionBlock):
    """Each point attends to all points of its image; scores depend on relative positions (eq. 1 to 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, qkv=nn.Linear(width, 3 * width))
        self.qkv: nn.Linear

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """Return the states (..., D) after the block."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return self.update(x, layout.attend(rotation.apply(q), rotation.apply(k), v, cross=False))

    def fused(self, dtype: torch.dtype) -> FusedBlock:
        """Return the same block for inference."""
        return self.merged(parameters_of(self.qkv), dtype, is_cross=False)


class CrossAttention(AttentionBlock):
    """Each point attends to all points of the other image; one projection is key and query (eq. 4).

    The similarity is symmetric. Computing it once for both directions saves a product but must hold the M x N matrix
    of every head; two fused calls never do, and are faster from a few hundred keypoints on.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, qk=nn.Linear(width, width), v=nn.Linear(width, width))
        self.qk: nn.Linear
        self.v: nn.Linear

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the states (..., D) after the block."""
        qk, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.qk, self.v))
        return self.update(x, layout.attend(qk, qk, v, cross=True))

    def fused(self, dtype: torch.dtype) -> FusedBlock:
        """Return the same block for inference."""
        weights, biases = zip(parameters_of(self.qk), parameters_of(self.v), strict=True)
        return self.merged((torch.cat(weights), torch.cat(biases)), dtype, is_cross=True)


class Layer(nn.Module):
    """One self- and one cross-attention block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout) -> Tensor:
        """Return the states (..., D) after the layer."""
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
        """Return the log of the assignment (B, M, N), eq. 8, very low at padding, and matchability logits of both."""
        scale = x0_BMD.shape[-1] ** -0.25
        similarity_BMN = self.projection(x0_BMD) * scale @ (self.projection(x1_BND) * scale).mT
        z0_BM, z1_BN = self.matchability(x0_BMD).squeeze(-1), self.matchability(x1_BND).squeeze(-1)
        return log_double_softmax(similarity_BMN, z0_BM, z1_BN, padding_BMN), z0_BM, z1_BN

    def fused_match(self, x0_MD: Tensor, x1_ND: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Return `mutual_matches` of the assignment of one pair, (M,) and (M,), for inference on CPUs."""
        scale = x0_MD.shape[-1] ** -0.25
        z0_M, z1_N = self.matchability(x0_MD).squeeze(-1), self.matchability(x1_ND).squeeze(-1)
        projected0_MD, projected1_ND = (linear(x, self.projection) * scale for x in (x0_MD, x1_ND))
        return double_softmax_matches(projected0_MD, projected1_ND, z0_M, z1_N, threshold)


class Prediction(NamedTuple):
    """What one layer predicts for a dense batch; what a loss needs."""

    log_assignment_BNN: Tensor
    matchability_B2N: Tensor  # logits
    confidence_B2N: Tensor | None  # logits, no gradient into the states; None at the last layer


class LightGlue(Pretrained, nn.Module):
    """The matcher. `LightGlue(config)` has random weights; `LightGlue.pretrained(name)` loads published or own ones.

    execution      "auto", "plain", "fused" or "cuda_graph", see isinglass.runtime.execution
    compute_dtype  of the layers in `match`; the rest is in that of the weights
    max_tokens     keypoints of all pairs that are matched at once
    """

    Config: ClassVar[type] = LightGlueConfig
    default_weights: ClassVar[str] = "lightglue-aliked"
    bytes_per_token: ClassVar[int] = 17_000  # measured at width 256
    FORWARD_METHODS: ClassVar[tuple[str, ...]] = ("_predict",)

    def __init__(self, config: LightGlueConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LightGlueConfig()
        same_size = config.input_size == config.width
        self.input_projection = nn.Identity() if same_size else nn.Linear(config.input_size, config.width)
        position_size = 4 if config.scale_orientation else 2
        self.position_encoding = nn.Linear(position_size, config.width // config.heads // 2, bias=False)
        nn.init.normal_(self.position_encoding.weight)
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))
        self.assignments = nn.ModuleList(Assignment(config.width) for _ in range(config.layers))
        self.confidences = nn.ModuleList(nn.Linear(config.width, 1) for _ in range(config.layers - 1))
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
        return self.config.input_size

    # ---- training: all layers for all points

    def forward(
        self,
        keypoints_B2N2: Tensor,
        descriptors_B2ND: Tensor,
        image_size_B22: Tensor,
        scale_orientation_B2N2: Tensor | None = None,
        mask_B2N: Tensor | None = None,
        every_layer: bool = False,
    ) -> list[Prediction]:
        """Return the predictions of the last layer, or of every layer (training), without adaptivity.

        The log assignment of padding is very low, so that it is nobody's match.
        """
        scores = keypoints_B2N2[..., 0]  # LightGlue takes none
        inputs = Inputs(keypoints_B2N2, descriptors_B2ND, scores, image_size_B22[:, :, None], scale_orientation_B2N2)
        predictions: list[Prediction] = []

        def after(i: int, tokens: Tokens) -> Tokens:
            if every_layer or i == len(self.layers) - 1:
                predictions.append(self._predict(i, tokens.x, mask_B2N))
            return tokens

        run_layers(self.layers, Tokens(*self.encode(inputs), Dense(mask_B2N)), after)
        return predictions

    def _predict(self, layer: int, x_B2ND: Tensor, mask_B2N: Tensor | None) -> Prediction:
        """Predict in the precision of the weights, whatever the layers run in: likelihoods of bfloat16 teach little."""
        last, x_B2ND = layer == len(self.layers) - 1, x_B2ND.to(next(self.parameters()).dtype)
        with torch.autocast(x_B2ND.device.type, enabled=False):
            log_assignment_BNN, z0_BN, z1_BN = self.assignments[layer](x_B2ND[:, 0], x_B2ND[:, 1], _padding(mask_B2N))
            confidence_B2N = None if last else self.confidences[layer](x_B2ND.detach()).squeeze(-1)
        return Prediction(log_assignment_BNN, torch.stack([z0_BN, z1_BN], dim=1), confidence_B2N)

    # ---- inference

    def match(self, features0: Features, features1: Features) -> Matches:
        """Match a batch of pairs as `match_many` does; padding is dropped before and added after."""
        return match_batch(self, features0, features1)

    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """Return one `Matches` for each pair of a ragged list, adaptive in depth and width for each pair on its own.

        A pair's result does not depend on its batch mates (up to rounding). A subclass or instance that has another
        `forward` is matched by that, all layers for all points. Raises InputError on features that this model was not
        made for, see `check_pairs`, and where `execution` cannot be had.
        """
        return match_many(self, LightGlue, features0, features1)

    def encode(self, inputs: Inputs) -> tuple[Tensor, Rotation]:
        """Return the states (..., D) before the first layer, and what turns queries and keys (section 3.1)."""
        size = inputs.image_size.to(inputs.keypoints)
        position = (inputs.keypoints - size / 2) / (size.amax(dim=-1, keepdim=True) / 2)
        if self.config.scale_orientation:
            if inputs.scale_orientation is None:
                raise InputError(f"{self.name!r} needs keypoints with scale and orientation (SIFT); these have none")
            position = torch.cat([position, inputs.scale_orientation.to(position)], dim=-1)
        angle = self.position_encoding(position).repeat_interleave(2, dim=-1)[..., None, :]
        return self.input_projection(inputs.descriptors), Rotation(angle.cos(), angle.sin())

    def log_assignment(self, layer: int, x0_BMD: Tensor, x1_BND: Tensor, mask_B2N: Tensor | None = None) -> Tensor:
        """Return the log of the assignment (B, M, N) by the head of a layer."""
        return self.assignments[layer](x0_BMD, x1_BND, _padding(mask_B2N))[0]

    # Adaptive depth and width (section 3.3).

    def confidence_threshold(self, layer: int) -> float:
        """lambda_l of section 3.3 (appendix: 0.8 + 0.1 exp(-4 l / L)) for the 0-based `layer`."""
        return 0.8 + 0.1 * math.exp(-4 * layer / self.config.layers)

    def max_unsure(self, num_points: int) -> int:
        """Return with how many unsure points a pair of so many is finished (eq. 12); -1 = never."""
        if self.config.depth_confidence is None:
            return -1
        count = min(int((1 - self.config.depth_confidence) * num_points) + 1, num_points)
        while count >= 0 and not 1 - count / max(num_points, 1) > self.config.depth_confidence:
            count -= 1
        return count

    def exits(self, layer: int, x_TD: Tensor, layout: Any, max_unsure_P: Tensor) -> Exits:
        """Return which pairs stop after a layer that is not the last, and which points go on.

        A pair stops where more than alpha of its points are sure that their prediction is final (eq. 11 and 12); points
        that were pruned are. A point is pruned where it is sure and unmatchable.
        """
        threshold, config = self.confidence_threshold(layer), self.config
        confidence_T = finished_P = stays_T = None
        if config.depth_confidence is not None:
            confidence_T = self.confidences[layer](x_TD).squeeze(-1).sigmoid()
            finished_P = layout.pair_counts(confidence_T < threshold) <= max_unsure_P
        if config.width_confidence is not None:
            stays_T = self.matchability(layer, x_TD, layout) > 1 - config.width_confidence
            stays_T = stays_T if confidence_T is None else stays_T | (confidence_T <= threshold)
        return Exits(finished_P, stays_T, confidence_T)

    def matchability(self, layer: int, x_TD: Tensor, layout: Any) -> Tensor:
        """Return how likely each token has a match (T,), sigma of eq. 7, as the layer's head has it."""
        head = self.assignments[layer]
        if not is_replaced(head, Assignment, ("forward",)):
            return cast(Assignment, head).matchability(x_TD).squeeze(-1).sigmoid()
        views = x_TD.split(list(layout.lengths))
        logits = [head(x0[None], x1[None])[1:] for x0, x1 in zip(views[::2], views[1::2], strict=True)]
        return torch.cat([logit_1N[0] for pair in logits for logit_1N in pair]).sigmoid()

    # What isinglass.runtime needs besides.

    def predict(self, inputs: Inputs, mask_B2N: Tensor | None) -> Tensor:
        """Return the log of the assignment (B, N, N) by `forward`."""
        image_size_B22 = inputs.image_size[:, :, 0]
        scale_orientation = inputs.scale_orientation if self.config.scale_orientation else None
        numbers = inputs.keypoints, inputs.descriptors, image_size_B22, scale_orientation, mask_B2N
        return self(*numbers)[-1].log_assignment_BNN

    def fused_layers(self, dtype: torch.dtype) -> list[list[Any]]:
        """Return the fused blocks of each layer, which compute in that dtype."""
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]
        return [[layer.self_attention.fused(dtype), layer.cross_attention.fused(dtype)] for layer in layers]

    def fused_matches(self, layer: int, x0_MD: Tensor, x1_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matches of one pair, (M,) and (M,), by the head of a layer, on CPUs."""
        head = self.assignments[layer]
        assert isinstance(head, Assignment)
        return head.fused_match(x0_MD, x1_ND, self.config.filter_threshold)

    def report(self, found: Found) -> Matches:
        """Return the result of a pair as it is handed out."""
        adaptive_depth = self.config.depth_confidence is not None
        pruned_at0, pruned_at1 = found.pruned_at
        return Matches(
            indices=found.matches[0][None],
            scores=found.matches[1][None],
            stop_layer=torch.cat([pruned_at0, pruned_at1, pruned_at0.new_zeros(1)]).max()[None],
            pruned_at0=pruned_at0[None],
            pruned_at1=pruned_at1[None],
            confidences0=found.confidences[0][None] if adaptive_depth else None,
            confidences1=found.confidences[1][None] if adaptive_depth else None,
            matcher=self.name,
        )


def _padding(mask_B2N: Tensor | None) -> Tensor | None:
    """Return where one of both keypoints is none (B, N, N)."""
    return None if mask_B2N is None else ~(mask_B2N[:, 0, :, None] & mask_B2N[:, 1, None, :])
