"""XFeat: Accelerated Features for Lightweight Image Matching (Potje et al., CVPR 2024, arXiv 2404.19174).

Sparse mode: keypoints with descriptors, as `detectAndCompute` of the published code. Its semi-dense mode and the
match refinement that belongs to it (`fine_matcher` in the checkpoint) are absent. Parameter names are those of the
checkpoint.

Coordinates are exact here: the image is resized to multiples of 32 px, and a keypoint k px of the resized image lies
at (k + 1/2) r - 1/2 px of the given one, r = its size / resized size. The published code returns k r, which is
(r - 1) / 2 px less: 0 px for multiples of 32, 0.007 px for 682, at most 0.25 px from 64 px on.

Shapes: B images of C channels and H x W px, h x w cells of 8 x 8 px, D = 64, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.kernels.convolution import fused
from isinglass.kernels.keypoints import flat_to_xy, local_maxima, select_keypoints
from isinglass.numbers import ANY_SCORE, MANY, NEAR_PX, check_numbers
from isinglass.runtime.execution import may_be_rearranged
from isinglass.runtime.fused import prepared
from isinglass.types import Features, Signature, check_images
from isinglass.weights import Pretrained

CELL = 8  # px
STRIDE = 32  # px of the coarsest features; images are resized to multiples of it


@dataclass(frozen=True, kw_only=True)
class XFeatConfig:
    """Options of XFeat; the defaults are those of the published code."""

    max_keypoints: int | None = 4096  # None = all
    detection_threshold: float = 0.05  # of the keypoint's probability within its cell
    nms_radius: int = 2  # px

    def __post_init__(self) -> None:
        check_numbers(self, max_keypoints=MANY, detection_threshold=ANY_SCORE, nms_radius=NEAR_PX)


class Layer(nn.Module):
    """Convolution, batch norm, ReLU: the basic layer (section 3.1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outputs, H / stride, W / stride)."""
        return self.layer(x_BCHW)


class XFeat(Pretrained, nn.Module):
    """The XFeat network: images to keypoints with scores and 64-d descriptors of unit length."""

    Config = XFeatConfig
    default_weights = "xfeat"
    bytes_per_pixel = 75

    def __init__(self, config: XFeatConfig | None = None) -> None:
        super().__init__()
        self.execution = "auto"  # or "plain": the modules as they are
        self.config = config or XFeatConfig()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        # Section 3.1: few channels while the image is large, more as it shrinks.
        self.block1 = nn.Sequential(Layer(1, 4), Layer(4, 8, stride=2), Layer(8, 8), Layer(8, 24, stride=2))
        self.block2 = nn.Sequential(Layer(24, 24), Layer(24, 24))
        self.block3 = nn.Sequential(Layer(24, 64, stride=2), Layer(64, 64), Layer(64, 64, 1))
        self.block4 = nn.Sequential(Layer(64, 64, stride=2), Layer(64, 64), Layer(64, 64))
        self.block5 = nn.Sequential(Layer(64, 128, stride=2), Layer(128, 128), Layer(128, 128), Layer(128, 64, 1))
        # Section 3.2: descriptors from three scales, their reliability, and keypoints from the 8 x 8 px of each cell.
        self.block_fusion = nn.Sequential(Layer(64, 64), Layer(64, 64), nn.Conv2d(64, 64, 1))
        self.heatmap_head = nn.Sequential(Layer(64, 64, 1), Layer(64, 64, 1), nn.Conv2d(64, 1, 1), nn.Sigmoid())
        self.keypoint_head = nn.Sequential(
            Layer(64, 64, 1), Layer(64, 64, 1), Layer(64, 64, 1), nn.Conv2d(64, CELL**2 + 1, 1)
        )

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        return Signature(extractor=self.weights_name, weights=self.weights_id)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Dense maps of images whose H and W are multiples of 32 px.

        Keypoint probabilities (B, H, W), reliabilities (B, 1, h, w) in [0, 1], descriptors (B, D, h, w) of unit
        length. The image is normalised to zero mean and unit variance, so brightness and contrast do not matter.
        """
        x_B1HW = F.instance_norm(_grey(images_BCHW))
        x2 = self.block2(self.block1(x_B1HW) + self.skip1(x_B1HW))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        fused_BDhw = x3
        for x in (x4, x5):
            fused_BDhw = fused_BDhw + F.interpolate(x, x3.shape[-2:], mode="bilinear")
        descriptors_BDhw = self.block_fusion(fused_BDhw)
        logits_BChw = self.keypoint_head(F.pixel_unshuffle(x_B1HW, CELL))
        heatmap_BHW = F.pixel_shuffle(logits_BChw.softmax(dim=1)[:, :-1], CELL)[:, 0]
        return heatmap_BHW, self.heatmap_head(descriptors_BDhw), F.normalize(descriptors_BDhw, dim=1)

    @torch.inference_mode()
    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images, best first.

        A keypoint stays where the pixel of `mask` (B, H, W) bool that it lies in is True. The score is the keypoint's
        probability times its reliability. A side under 32 px is enlarged to 32 px; one under 8 px has no keypoints.
        """
        check_images(images, mask)
        height, width = images.shape[-2:]
        inner_height, inner_width = (max(side // STRIDE, 1) * STRIDE for side in (height, width))
        resized = F.interpolate(_grey(images), (inner_height, inner_width), mode="bilinear")
        network = prepared(self, "streamed", lambda: fused(self)) if may_be_rearranged(self, XFeat, images) else self
        heatmap_BHW, reliability_B1hw, descriptors_BDhw = network(resized)
        maxima_BHW = local_maxima(heatmap_BHW, self.config.nms_radius)
        maxima_BHW[:, -1], maxima_BHW[:, :, -1] = False, False  # where the published code reads beyond its map
        if min(height, width) < CELL:
            maxima_BHW[:] = False
        heatmap_BHW = heatmap_BHW.masked_fill(~maxima_BHW, 0.0)
        ratio = images.new_tensor([width / inner_width, height / inner_height])
        image_size = torch.tensor([[width, height]], device=images.device)
        singles = []
        for i, index_K in enumerate(select_keypoints(heatmap_BHW, self.config.detection_threshold, None)):
            inner_K2 = flat_to_xy(index_K, inner_width).float()
            keypoints_K2 = (inner_K2 + 0.5) * ratio - 0.5
            scores_K = heatmap_BHW[i].flatten()[index_K] * _sample(reliability_B1hw[i], inner_K2, "bilinear")[:, 0]
            if mask is not None:
                x_K, y_K = keypoints_K2.round().long().unbind(dim=1)
                scores_K = scores_K.masked_fill(~mask[i, y_K, x_K], 0.0)
            best_K = scores_K.argsort(descending=True, stable=True)
            best_K = best_K[scores_K[best_K] > 0][: self.config.max_keypoints]
            one = Features(
                keypoints=keypoints_K2[best_K][None],
                descriptors=F.normalize(_sample(descriptors_BDhw[i], inner_K2[best_K], "bicubic"), dim=-1)[None],
                scores=scores_K[best_K][None],
                image_size=image_size,
                signature=self.signature,
            )
            singles.append(one)
        return Features.stack(singles)


def _grey(images_BCHW: Tensor) -> Tensor:
    return images_BCHW if images_BCHW.shape[1] == 1 else images_BCHW.mean(dim=1, keepdim=True)


def _sample(map_Chw: Tensor, points_K2: Tensor, mode: str) -> Tensor:
    """(K, C) values of a map at `points_K2` px, as the published code reads them.

    It scales 0 .. W - 1 px to 0 .. w cells, where exact would be -1/2 .. W - 1/2 px: 1/16 of a cell too far out at
    the borders, nothing in the middle.
    """
    height, width = map_Chw.shape[1] * CELL, map_Chw.shape[2] * CELL
    grid_K2 = points_K2 / points_K2.new_tensor([width - 1, height - 1]) * 2 - 1
    return F.grid_sample(map_Chw[None], grid_K2[None, :, None], mode=mode, align_corners=False)[0, :, :, 0].T
