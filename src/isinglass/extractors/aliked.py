"""ALIKED: A Lighter Keypoint and Descriptor Extraction Network via Deformable Transformation.

Zhao, Wu, Chen, Chen, Xu, Li; IEEE Transactions on Instrumentation and Measurement 2023, arXiv 2304.03608. Named by the
paper's parts: feature encoding (section III-A), feature aggregation (III-B), score map head and differentiable keypoint
detection, DKD (III-C), sparse deformable descriptor head, SDDH. Parameter names are those of the checkpoints.

The paper aggregates by upsampling four maps to full resolution and concatenating them. Here that map of 128 channels is
never made: the score head begins with a 1 x 1 convolution, which commutes with upsampling and so comes before it, and
SDDH reads the four maps only at the pixels that it needs.

Shapes: B images, C channels, H x W pixels, K keypoints, M sample positions a keypoint, P pixels, T taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.extractors.aliked_streamed import Streamed
from isinglass.kernels.convolution import product, selu
from isinglass.kernels.deformable import (
    Frame,
    Squares,
    bilinear_squares,
    deformable_conv3x3,
    weighted_rows,
    window_taps,
)
from isinglass.kernels.keypoints import clear_border, flat_to_xy, sample_bilinear, select_keypoints, suppress_non_maxima
from isinglass.numbers import ANY_SCORE, MANY, NEAR_PX, check_numbers
from isinglass.runtime.anatomy import is_exactly
from isinglass.runtime.execution import may_be_rearranged
from isinglass.runtime.fused import prepared
from isinglass.types import Features, Signature, check_images
from isinglass.weights import Pretrained

STRIDE = 32  # px of the coarsest map
TEMPERATURE = 0.1  # of DKD's softmax, as published
OFFSET_LAYERS = (nn.Conv2d, nn.SELU, nn.Conv2d)  # of SDDH
CHUNK = 256  # keypoints described at once, so that what they read stays in the cache


class Architecture(NamedTuple):
    """In what the published networks differ."""

    channels: tuple[int, int, int, int]  # c1 to c4, of the four blocks
    descriptor_size: int
    samples: int  # M of SDDH


ARCHITECTURES = {
    "t16": Architecture((8, 16, 32, 64), 64, 16),
    "n16": Architecture((16, 32, 64, 128), 128, 16),
    "n16rot": Architecture((16, 32, 64, 128), 128, 16),  # n16 trained with turned images
    "n32": Architecture((16, 32, 64, 128), 128, 32),
}


@dataclass(frozen=True, kw_only=True)
class ALIKEDConfig:
    """Options of ALIKED; the defaults are those of the published code. Raises InputError for an unknown variant."""

    variant: str = "n16"  # t16, n16, n16rot or n32
    max_keypoints: int | None = 20000  # None = all
    detection_threshold: float = 0.2  # an image without any score above it takes its mean score instead
    nms_radius: int = 2  # px; also of the window in which DKD refines

    def __post_init__(self) -> None:
        if self.variant not in ARCHITECTURES:
            raise InputError(f"ALIKED has no variant {self.variant!r}; expected one of {', '.join(ARCHITECTURES)}")
        check_numbers(self, max_keypoints=MANY, detection_threshold=ANY_SCORE, nms_radius=NEAR_PX)


class DeformableConv(nn.Module):
    """A 3 x 3 convolution whose taps are moved by what another one says."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 18, 3, padding=1)
        self.regular_conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outputs, H, W). A tap moves by at most a quarter of the map's longer side."""
        limit_px = max(x_BCHW.shape[2:]) / 4
        offsets = self.offset_conv(x_BCHW).clamp(-limit_px, limit_px)
        conv = self.regular_conv
        return deformable_conv3x3(x_BCHW, offsets, conv.weight if is_exactly(conv, nn.Conv2d) else conv)


class Block(nn.Module):
    """Two 3 x 3 convolutions (III-A), deformable in the coarse blocks, residual in all blocks but the first."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool = True, deformable: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            DeformableConv(c, outputs) if deformable else nn.Conv2d(c, outputs, 3, padding=1, bias=False)
            for c in (inputs, outputs)
        )
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1) if residual else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outputs, H, W)."""
        y_BCHW = F.selu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        if self.downsample is not None:
            y_BCHW = y_BCHW + self.downsample(x_BCHW)
        return F.selu(y_BCHW, inplace=True)


class Pyramid:
    """The aggregated feature map (III-B) of one image, kept as the four maps of a quarter of its channels each.

    Its value at a pixel: the four maps upsampled bilinearly with corners on corners, concatenated and normalised.
    """

    def __init__(
        self, maps_CHW: Sequence[Tensor], width: int, height: int, finish: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """The maps cover the padded image; `width` and `height` are those of the image itself.

        `finish` makes pixels (P, C) of the finest map of those given, which saves making all of it.
        """
        self.width, self.height, self.finish = width, height, finish
        self.maps, self.frame = maps_CHW, Frame(width, height, *_padding(width, height))
        self.readers: dict[int, list[Squares]] = {}

    def squares(self, corners_P2: Tensor, side: int) -> list[Tensor]:
        """The four parts (P, S, C) of squares by their top-left pixels, before they are normalised together."""
        if side not in self.readers:
            self.readers[side] = [Squares(level, self.frame, side) for level in self.maps]
        finest, *coarser = (read(corners_P2) for read in self.readers[side])
        if self.finish is not None:
            finest = self.finish(finest.flatten(0, 1)).unflatten(0, finest.shape[:2])
        return [finest, *coarser]

    def at(self, index_P: Tensor) -> Tensor:
        """(P, C) at pixels of the image, given by their flat index."""
        return F.normalize(torch.cat(self.squares(flat_to_xy(index_P, self.width), 1), dim=2), dim=2)[:, 0]

    def sample(self, points_P2: Tensor) -> Tensor:
        """(P, C) between pixels, interpolated bilinearly; outside the image it is 0."""
        corners_P2, weights_P4 = bilinear_squares(points_P2, self.width, self.height)
        parts = self.squares(corners_P2, 2)
        squares_P4 = torch.stack([torch.linalg.vector_norm(part, dim=2) for part in parts]).square().sum(dim=0)
        weights_P4 = weights_P4 / squares_P4.sqrt().clamp(min=1e-12)
        index_P4 = torch.arange(weights_P4.numel(), dtype=torch.int32, device=weights_P4.device).view(-1, 4)
        return torch.cat([weighted_rows(part.flatten(0, 1), index_P4, weights_P4) for part in parts], dim=1)


class SDDH(nn.Module):
    """Each keypoint chooses M places around it; their features, each with weights of its own, make its descriptor."""

    def __init__(self, size: int, samples: int) -> None:
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(size, 2 * samples, 3), nn.SELU(), nn.Conv2d(2 * samples, 2 * samples, 1)
        )
        self.sf_conv = nn.Conv2d(size, size, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.rand(samples, size, size))

    def forward(self, pyramid: Pyramid, points_K2: Tensor) -> Tensor:
        """Descriptors (K, C) of unit length."""
        return torch.cat([self._describe(pyramid, chunk_K2) for chunk_K2 in points_K2.split(CHUNK)])

    def _describe(self, pyramid: Pyramid, points_K2: Tensor) -> Tensor:
        positions_KM2 = points_K2[:, None] + self._offsets(pyramid, points_K2)
        sampled_PC = pyramid.sample(positions_KM2.flatten(0, 1))
        if is_exactly(self.sf_conv, nn.Conv2d):
            features_PC = selu(product(sampled_PC, self.sf_conv.weight.flatten(1)))
        else:
            features_PC = selu(self.sf_conv(sampled_PC[..., None, None]).flatten(1))
        features_KMC = features_PC.unflatten(0, positions_KM2.shape[:2])
        return F.normalize(product(features_KMC.flatten(1), self.agg_weights.flatten(0, 1).T), dim=1)

    def _offsets(self, pyramid: Pyramid, points_K2: Tensor) -> Tensor:
        """(K, M, 2) px, from the 3 x 3 window of the keypoint, which stays off the last row and column."""
        last = torch.tensor([pyramid.width - 3, pyramid.height - 3], device=points_K2.device)
        corners_K2 = points_K2.to(torch.int64).clamp(min=1).minimum(last) - 1
        windows_K9C = F.normalize(torch.cat(pyramid.squares(corners_K2, 3), dim=2), dim=2)
        conv = self.offset_conv
        if is_exactly(conv, nn.Sequential) and all(map(is_exactly, conv, OFFSET_LAYERS)):
            (weight1, bias1), (weight2, bias2) = (
                (self.get_parameter(f"offset_conv.{i}.weight"), self.get_parameter(f"offset_conv.{i}.bias"))
                for i in (0, 2)
            )
            hidden = F.selu(product(windows_K9C.flatten(1), weight1.permute(0, 2, 3, 1).flatten(1)) + bias1)
            offsets = F.linear(hidden, weight2.flatten(1), bias2)
        else:
            offsets = conv(windows_K9C.mT.unflatten(2, (3, 3))).flatten(1)
        limit_px = max(pyramid.width, pyramid.height) / 4
        return offsets.clamp(-limit_px, limit_px).unflatten(1, (2, -1)).mT


class ALIKED(Pretrained, nn.Module):
    """The ALIKED network: images to sub-pixel keypoints with scores and descriptors of unit length."""

    Config = ALIKEDConfig
    default_weights = "aliked-n16"
    bytes_per_pixel = 240

    def __init__(self, config: ALIKEDConfig | None = None) -> None:
        super().__init__()
        self.execution = "auto"  # or "plain": the modules as they are
        self.config = config = config or ALIKEDConfig()
        (c1, c2, c3, c4), size, samples = ARCHITECTURES[config.variant]
        self.block1 = Block(3, c1, residual=False)
        self.block2 = Block(c1, c2)
        self.block3 = Block(c2, c3, deformable=True)
        self.block4 = Block(c3, c4, deformable=True)
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(c, size // 4, 1, bias=False) for c in (c1, c2, c3, c4)
        )
        self.score_head = nn.Sequential(
            nn.Conv2d(size, 8, 1, bias=False),
            nn.SELU(inplace=True),
            nn.Conv2d(8, 4, 3, padding=1, bias=False),
            nn.SELU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.SELU(inplace=True),
            nn.Conv2d(4, 1, 3, padding=1, bias=False),
        )
        self.desc_head = SDDH(size, samples)

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        return Signature(extractor=self.weights_name, weights=self.weights_id)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (B, H, W) in [0, 1], and the pyramid's maps of the padded images, at strides of 1, 2, 8 and 32 px."""
        height, width = images_B3HW.shape[2:]
        left, top, right, bottom = _padding(width, height)
        padded = F.pad(images_B3HW, (left, right, top, bottom), mode="replicate")
        x1 = self.block1(padded.contiguous(memory_format=torch.channels_last))
        x2 = self.block2(F.avg_pool2d(x1, 2))
        x3 = self.block3(F.avg_pool2d(x2, 4))
        x4 = self.block4(F.avg_pool2d(x3, 4))
        aligned = zip((self.conv1, self.conv2, self.conv3, self.conv4), (x1, x2, x3, x4), strict=True)
        maps = [F.selu(conv(x), inplace=True) for conv, x in aligned]
        return self._scores(maps)[:, 0, top : top + height, left : left + width], maps

    def _scores(self, maps: Sequence[Tensor]) -> Tensor:
        """The score map head (III-C), (B, 1, H, W)."""
        head = self.score_head
        if not (is_exactly(head, nn.Sequential) and is_exactly(head[0], nn.Conv2d)):  # may not commute with upsampling
            full = {"size": maps[0].shape[2:], "mode": "bilinear", "align_corners": True}
            upsampled = [maps[0], *(F.interpolate(level, **full) for level in maps[1:])]
            return head(torch.cat(upsampled, dim=1)).float().sigmoid()
        weights = head.get_parameter("0.weight").chunk(4, dim=1)
        x_BCHW, *coarser = (F.conv2d(level, weight) for level, weight in zip(maps, weights, strict=True))
        for part in coarser:
            x_BCHW += F.interpolate(part, size=x_BCHW.shape[2:], mode="bilinear", align_corners=True)
        return head[1:](x_BCHW).float().sigmoid()

    def detect(self, scores_HW: Tensor, mask_HW: Tensor | None = None) -> Tensor:
        """Keypoints (K, 2) px in a score map, differentiable in it (DKD, III-C).

        Each local maximum above the threshold moves to the mean of the window around it, under the softmax of its
        scores. Best first where there are more than `max_keypoints`, in raster order otherwise.
        """
        radius, (height, width) = self.config.nms_radius, scores_HW.shape
        peaks_1HW = clear_border(suppress_non_maxima(scores_HW.detach()[None], radius), radius)
        threshold = self.config.detection_threshold
        if not bool((peaks_1HW > threshold).any()):
            threshold = float(scores_HW.mean())
        if mask_HW is not None:
            peaks_1HW = peaks_1HW.masked_fill(~mask_HW, 0.0)
        index_K = select_keypoints(peaks_1HW, threshold, self.config.max_keypoints)[0]
        pixels_K2 = flat_to_xy(index_K, width)
        window_KT, _ = window_taps(pixels_K2, radius, width, height)
        weights_KT = (scores_HW.flatten()[window_KT] / TEMPERATURE).softmax(dim=1)
        steps_KT2 = flat_to_xy(window_KT.flatten(), width).unflatten(0, window_KT.shape) - pixels_K2[:, None]
        return pixels_K2 + (weights_KT[..., None] * steps_KT2).sum(dim=1)

    def _dense(self, image_3HW: Tensor) -> tuple[Tensor, Pyramid]:
        """Scores (H, W) and the pyramid of one image."""
        height, width = image_3HW.shape[1:]
        if not may_be_rearranged(self, ALIKED, image_3HW):
            scores_BHW, maps = self(image_3HW[None])
            return scores_BHW[0], Pyramid([level[0] for level in maps], width, height)
        left, top, right, bottom = _padding(width, height)
        streamed = prepared(self, "streamed", lambda: Streamed(self))
        scores_HW, maps = streamed(F.pad(image_3HW[None], (left, right, top, bottom), mode="replicate"))
        pyramid = Pyramid(maps, width, height, streamed.finish)
        return scores_HW[top : top + height, left : left + width], pyramid

    @torch.inference_mode()
    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images.

        Keypoints are detected only where `mask` (B, H, W) bool is True; it comes before `max_keypoints`, not before
        the suppression of non-maxima. A score is the score map's value at the refined keypoint. Order as in `detect`.
        """
        check_images(images, mask)
        height, width = images.shape[2:]
        image_size = torch.tensor([[width, height]], device=images.device)
        singles = []
        for i, image_CHW in enumerate(images):
            scores_HW, pyramid = self._dense(image_CHW.expand(3, -1, -1))
            points_K2 = self.detect(scores_HW, None if mask is None else mask[i])
            one = Features(
                keypoints=points_K2[None],
                descriptors=self.desc_head(pyramid, points_K2)[None],
                scores=sample_bilinear(scores_HW[None], points_K2).T,
                image_size=image_size,
                signature=self.signature,
            )
            singles.append(one)
        return Features.stack(singles)

    @torch.inference_mode()
    def describe_points(self, image_CHW: Tensor, points_K2: Tensor) -> Tensor:
        """Descriptors (K, D) of unit length of any points, px of the image (C, H, W), RGB or grey in [0, 1]."""
        return self.desc_head(self._dense(image_CHW.expand(3, -1, -1))[1], points_K2)


def _padding(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom px that make both sides multiples of the stride, half at each end."""
    x, y = -width % STRIDE, -height % STRIDE
    return x // 2, y // 2, x - x // 2, y - y // 2
