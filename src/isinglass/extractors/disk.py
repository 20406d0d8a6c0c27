"""DISK: Learning local features with policy gradient (Tyszkiewicz, Fua, Trulls; NeurIPS 2020, arXiv 2006.13566).

A U-Net gives every pixel a detection score and a descriptor (section 3, feature extraction network); keypoints are the
local maxima, as at the paper's inference. Parameter names are those of the checkpoint.

The last convolution has 128 + 1 outputs at full resolution, which is four fifths of all the work. Here it gives the
score of every pixel, but the descriptors of keypoints alone.

Shapes: B images, C channels, H x W pixels, K keypoints, T taps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.extractors.disk_streamed import Gate, Streamed
from isinglass.kernels.convolution import product
from isinglass.kernels.deformable import window_taps
from isinglass.kernels.keypoints import flat_to_xy, local_maxima
from isinglass.numbers import ANY_SCORE, MANY, NEAR_PX, check_numbers
from isinglass.runtime.anatomy import is_exactly
from isinglass.runtime.execution import may_be_rearranged
from isinglass.runtime.fused import prepared
from isinglass.types import Features, Signature, check_images
from isinglass.weights import Pretrained

STRIDE = 16  # px of the coarsest map
KERNEL = 5  # px, of all convolutions
DOWN = (16, 32, 64, 64, 64)  # channels on the way down
UP = (64, 64, 64, 128 + 1)  # and up: at last the descriptor's, and the score
LAST = "unet.path_up.3.conv"
HEAD = f"{LAST}.3"  # the last convolution
CHUNK = 256  # keypoints described at once, so that what they read stays in the cache


@dataclass(frozen=True, kw_only=True)
class DISKConfig:
    """Options of DISK; the defaults are those of the published code."""

    max_keypoints: int | None = None  # None = all
    detection_threshold: float = 0.0  # of the score, which is a logit
    nms_radius: int = 2  # px

    def __post_init__(self) -> None:
        check_numbers(self, max_keypoints=MANY, detection_threshold=ANY_SCORE, nms_radius=NEAR_PX)


class InstanceNorm(nn.Module):
    """Every channel of every image to mean 0 and variance 1; a single pixel becomes 0."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return F.instance_norm(x_BCHW) if x_BCHW.shape[2:].numel() > 1 else torch.zeros_like(x_BCHW)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, KERNEL, padding=KERNEL // 2)


def _gated(inputs: int, outputs: int) -> nn.Sequential:
    """The published order: norm, gate, a dropout that does nothing, convolution."""
    return nn.Sequential(InstanceNorm(), nn.PReLU(inputs), nn.Identity(), _convolution(inputs, outputs))


class Up(nn.Module):
    """A coarse map at twice its size, joined with the one of that size from the way down, gated, convolved."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.conv = _gated(coarse + fine, outputs)

    def forward(self, coarse_BChw: Tensor, fine_BCHW: Tensor, *, convolve: bool = True) -> Tensor:
        """(B, outputs, H, W), or what the convolution would read."""
        upsampled = F.interpolate(coarse_BChw, scale_factor=2, mode="bilinear")
        joined = torch.cat([upsampled, fine_BCHW], dim=1)
        return self.conv(joined) if convolve else self.conv[:-1](joined)


class UNet(nn.Module):
    """The network up to what its last convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), _convolution(3, DOWN[0]))
        coarser = (nn.Sequential(nn.AvgPool2d(2), _gated(*channels)) for channels in itertools.pairwise(DOWN))
        self.path_down = nn.ModuleList([nn.Sequential(nn.Identity(), first), *coarser])
        channels_up = zip((DOWN[-1], *UP[:-1]), DOWN[-2::-1], UP, strict=True)
        self.path_up = nn.ModuleList([Up(*channels) for channels in channels_up])

    def forward(self, images_B3HW: Tensor, *, convolve: bool = False) -> Tensor:
        """(B, 80, H, W) of images whose H and W are multiples of 16, or what the last convolution makes of that."""
        maps = [images_B3HW]
        for down in self.path_down:
            maps.append(down(maps[-1]))
        x_BCHW = maps.pop()
        *inner, last = self.path_up
        for up in inner:
            x_BCHW = up(x_BCHW, maps.pop())
        return last(x_BCHW, maps.pop(), convolve=convolve)


class DISK(Pretrained, nn.Module):
    """The DISK network: images to keypoints at whole pixels with scores and 128-d descriptors of unit length."""

    Config = DISKConfig
    default_weights = "disk"
    bytes_per_pixel = 350

    def __init__(self, config: DISKConfig | None = None) -> None:
        super().__init__()
        self.execution = "auto"  # or "plain": the modules as they are
        self.config = config or DISKConfig()
        self.unet = UNet()

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        return Signature(extractor=self.weights_name, weights=self.weights_id)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, H, W), and what `describe` reads of the padded images: (B, 80, H', W'), or all descriptors."""
        height, width = images_B3HW.shape[2:]
        padded = F.pad(images_B3HW, (0, -width % STRIDE, 0, -height % STRIDE))
        if not self._may_be_split():
            outputs_BCHW = self.unet(padded, convolve=True)
            return outputs_BCHW[:, -1, :height, :width], outputs_BCHW[:, :-1]
        context_BCHW = self.unet(padded)
        weight, bias = self.get_parameter(f"{HEAD}.weight")[-1], self.get_parameter(f"{HEAD}.bias")[-1]
        # A convolution to one output: first over the channels, then over the window, which is several times faster.
        taps_BTP = weight.flatten(1).flip(1).T @ context_BCHW.flatten(2)
        scores_B1HW = F.fold(taps_BTP, context_BCHW.shape[2:], KERNEL, padding=KERNEL // 2) + bias
        return scores_B1HW[:, 0, :height, :width], context_BCHW

    def _may_be_split(self) -> bool:
        """Whether the last convolution is one, so that it may be evaluated in parts."""
        return is_exactly(self.get_submodule(LAST), nn.Sequential) and is_exactly(self.get_submodule(HEAD), nn.Conv2d)

    def describe(self, context: Tensor | Gate, pixels_K2: Tensor) -> Tensor:
        """Descriptors (K, 128) of unit length: the last convolution's other outputs, at those pixels (int64).

        `context` is what `forward` gives beside the scores, of one image, or what gives pixels of it.
        """
        if isinstance(context, Tensor) and not self._may_be_split():
            return F.normalize(context[:, pixels_K2[:, 1], pixels_K2[:, 0]].T, dim=1)
        if isinstance(context, Tensor):
            rows_RC = context.permute(1, 2, 0).reshape(-1, context.shape[0])
            (height, width), at = context.shape[1:], lambda index: F.embedding(index, rows_RC)
        else:
            height, width, at = context.height, context.width, context.at
        weight = self.get_parameter(f"{HEAD}.weight")[:-1].permute(0, 2, 3, 1).flatten(1)
        bias = self.get_parameter(f"{HEAD}.bias")[:-1]
        descriptors = []
        for chunk_K2 in pixels_K2.split(CHUNK):
            index_KT, inside_KT = window_taps(chunk_K2, KERNEL // 2, width, height)
            windows_KTC = at(index_KT.flatten()).unflatten(0, index_KT.shape) * inside_KT[..., None]
            descriptors.append(F.normalize(product(windows_KTC.flatten(1), weight) + bias, dim=1))
        return torch.cat(descriptors)

    def detect(self, scores_HW: Tensor, mask_HW: Tensor | None = None) -> Tensor:
        """Keypoints (K, 2) px int64 in a score map, in raster order.

        Those are the maxima of the square around them, above the threshold. A maximum that has an equal in its
        square, or whose square leaves the image, is none.
        """
        radius, (height, width) = self.config.nms_radius, scores_HW.shape
        peaks_HW = local_maxima(scores_HW[None], radius)[0] & (scores_HW > self.config.detection_threshold)
        if mask_HW is not None:
            peaks_HW &= mask_HW
        scores = scores_HW.flatten()
        index_K = peaks_HW.flatten().nonzero()[:, 0]
        square_KT, inside_KT = window_taps(flat_to_xy(index_K, width), radius, width, height)
        equals_K = (scores[square_KT] == scores[index_K, None]).sum(dim=1)
        index_K = index_K[inside_KT.all(dim=1) & (equals_K == 1)]
        count = self.config.max_keypoints
        if count is not None and len(index_K) > count:
            index_K = index_K[scores[index_K].topk(count).indices.sort().values]
        return flat_to_xy(index_K, width)

    def _dense(self, image_3HW: Tensor) -> tuple[Tensor, Tensor | Gate]:
        """Scores (H, W), and the context of descriptors, of one image."""
        if not may_be_rearranged(self, DISK, image_3HW):
            scores_1HW, context_1CHW = self(image_3HW[None])
            return scores_1HW[0], context_1CHW[0]
        height, width = image_3HW.shape[1:]
        streamed = prepared(self, "streamed", lambda: Streamed(self))
        scores_HW, gate = streamed(F.pad(image_3HW[None], (0, -width % STRIDE, 0, -height % STRIDE)))
        return scores_HW[:height, :width], gate

    @torch.inference_mode()
    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images, in raster order.

        Keypoints are detected only where `mask` (B, H, W) bool is True; it comes before `max_keypoints`, not before
        the suppression of non-maxima. Scores are logits.
        """
        check_images(images, mask)
        height, width = images.shape[2:]
        image_size = torch.tensor([[width, height]], device=images.device)
        singles = []
        for i, image_CHW in enumerate(images):
            scores_HW, context = self._dense(image_CHW.expand(3, -1, -1))
            pixels_K2 = self.detect(scores_HW, None if mask is None else mask[i])
            one = Features(
                keypoints=pixels_K2[None].float(),
                descriptors=self.describe(context, pixels_K2)[None],
                scores=scores_HW[pixels_K2[:, 1], pixels_K2[:, 0]][None],
                image_size=image_size,
                signature=self.signature,
            )
            singles.append(one)
        return Features.stack(singles)
