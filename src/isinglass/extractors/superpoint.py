"""SuperPoint: Self-Supervised Interest Point Detection and Description (DeTone et al., CVPRW 2018, arXiv 1712.07629).

One class for two published checkpoints of one architecture; they differ in the config:
- "superpoint-open" (MIT) has batch norm, after each ReLU;
- "superpoint" (Magic Leap, non-commercial) has none, and its code reads the descriptor map up to 7/16 of a cell off the
  keypoint, at the far border. SuperGlue and LightGlue were trained on what is read there. LightGlue is published with
  a detection threshold of 0.0005 for it.
Parameter names are those of the open checkpoint.

Shapes: B images of C channels and H x W px, h x w cells of 8 x 8 px, D descriptor size, K keypoints, R rows of a
strip, O output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.kernels.colour import luminance
from isinglass.kernels.convolution import (
    Folded,
    clear_outside_,
    framed,
    maxima_2x2,
    norm_as_affine,
    strips,
)
from isinglass.kernels.keypoints import clear_border, flat_to_xy, sample_bilinear, select_keypoints, suppress_non_maxima
from isinglass.numbers import ANY_SCORE, MANY, MOST_CHANNELS, NEAR_PX, check_numbers
from isinglass.runtime.execution import may_be_rearranged
from isinglass.runtime.fused import prepared
from isinglass.types import Features, Signature, check_images
from isinglass.weights import Pretrained

CELL = 8  # px
REACH = 2  # rows that two blocks read beyond each end of a strip


@dataclass(frozen=True, kw_only=True)
class SuperPointConfig:
    """Options of SuperPoint; the defaults are those of the open checkpoint and its code."""

    max_keypoints: int | None = None  # None = all
    detection_threshold: float = 0.005
    nms_radius: int = 4  # px
    remove_borders: int = 4  # px
    descriptor_size: int = 256
    batch_norm: bool = True  # False for Magic Leap's checkpoint
    sampling: Literal["exact", "magic-leap"] = "exact"  # where descriptors are read; see `_descriptors_at`

    def __post_init__(self) -> None:
        check_numbers(self, max_keypoints=MANY, detection_threshold=ANY_SCORE, nms_radius=NEAR_PX)
        check_numbers(self, remove_borders=MANY, descriptor_size=(1, MOST_CHANNELS))


class Block(nn.Module):
    """Convolution, ReLU, batch norm: in this order."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, relu: bool = True, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3) if batch_norm else nn.Identity()
        self.relu = relu

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outputs, H, W)."""
        x_BCHW = self.conv(x_BCHW)
        return self.bn(F.relu(x_BCHW, inplace=True) if self.relu else x_BCHW)


class FoldedBlock:
    """A block at inference, on strips of rows. Batch norm comes after ReLU, so it is a pass of its own."""

    def __init__(self, block: Block) -> None:
        self.conv, self.relu = Folded(block.conv), block.relu
        self.affine = None
        if isinstance(block.bn, nn.BatchNorm2d):
            self.affine = [one.to(block.conv.weight.dtype)[:, None, None] for one in norm_as_affine(block.bn)]

    def __call__(self, x_1CRW: Tensor) -> Tensor:
        """(1, O, R - 2, W) if the kernel is 3 px wide, (1, O, R, W) if 1."""
        y_1CRW = self.conv(x_1CRW)
        if self.relu:
            y_1CRW.relu_()
        return y_1CRW if self.affine is None else torch.addcmul(self.affine[1], y_1CRW, self.affine[0])


class Streamed:
    """`SuperPoint.forward` of one image, rearranged for inference on a CPU: strip by strip, so that it stays in caches.

    The plain modules are the slow twin.
    """

    def __init__(self, model: SuperPoint) -> None:
        parts = (*model.backbone, model.detector, model.descriptor)
        folded = [[FoldedBlock(one) for one in part.children() if isinstance(one, Block)] for part in parts]
        self.stages, self.heads = folded[:-2], folded[-2:]

    def __call__(self, grey_11HW: Tensor) -> tuple[Tensor, Tensor]:
        """What the detector's and the descriptor's last layers give, (1, 65, h, w) and (1, D, h, w)."""
        x = framed(1, *grey_11HW.shape[2:], frame=REACH, like=grey_11HW)
        x[:, :, REACH:-REACH] = grey_11HW
        for i, stage in enumerate(self.stages):
            x = self._stage(stage, x, pool=i + 1 < len(self.stages))
        x = x[:, :, 1:-1]
        detector, descriptor = (last(first(x)) for first, last in self.heads)
        return detector, descriptor

    def _stage(self, blocks: Sequence[FoldedBlock], x_1CHW: Tensor, *, pool: bool) -> Tensor:
        """Two blocks and, perhaps, the maximum of each 2 x 2 px; of a framed map, and framed."""
        block1, block2 = blocks
        height, width, shrink = x_1CHW.shape[2] - 2 * REACH, x_1CHW.shape[3], 1 + pool
        out = framed(block2.conv.outputs, height // shrink, width // shrink, frame=REACH, like=x_1CHW)
        for first, last in strips(height, width):
            y = clear_outside_(block1(x_1CHW[:, :, first : last + 2 * REACH]), first - 1, height)
            y = block2(y)
            rows = out[:, :, REACH + first // shrink : REACH + last // shrink]
            rows[:] = maxima_2x2(y) if pool else y
        return out


class SuperPoint(Pretrained, nn.Module):
    """The SuperPoint network: grey images to keypoints with scores and descriptors of unit length."""

    Config = SuperPointConfig
    default_weights = "superpoint-open"
    bytes_per_pixel = 180

    def __init__(self, config: SuperPointConfig | None = None) -> None:
        super().__init__()
        self.execution = "auto"  # or "plain": the modules as they are
        self.config = config = config or SuperPointConfig()
        norm = config.batch_norm
        self.backbone = nn.Sequential(  # section 3.1: a VGG-style encoder
            nn.Sequential(Block(1, 64, 3, batch_norm=norm), Block(64, 64, 3, batch_norm=norm), nn.MaxPool2d(2)),
            nn.Sequential(Block(64, 64, 3, batch_norm=norm), Block(64, 64, 3, batch_norm=norm), nn.MaxPool2d(2)),
            nn.Sequential(Block(64, 128, 3, batch_norm=norm), Block(128, 128, 3, batch_norm=norm), nn.MaxPool2d(2)),
            nn.Sequential(Block(128, 128, 3, batch_norm=norm), Block(128, 128, 3, batch_norm=norm)),
        )
        self.detector = nn.Sequential(  # section 3.2: a class for each pixel of a cell, and one for none of them
            Block(128, 256, 3, batch_norm=norm), Block(256, CELL**2 + 1, 1, relu=False, batch_norm=norm)
        )
        self.descriptor = nn.Sequential(  # section 3.3: semi-dense, one for each cell
            Block(128, 256, 3, batch_norm=norm), Block(256, config.descriptor_size, 1, relu=False, batch_norm=norm)
        )
        # 1.5 times as fast on a CPU
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # absent from torch's stubs

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        return Signature(extractor=self.weights_name, weights=self.weights_id)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, 8 h, 8 w) and descriptors (B, D, h, w) of unit length, of images at least 8 x 8 px in [0, 1].

        The last H mod 8 rows and W mod 8 columns have no scores.
        """
        grey_B1HW = luminance(images_BCHW)
        if may_be_rearranged(self, SuperPoint, images_BCHW) and not torch.is_grad_enabled():
            streamed = prepared(self, "streamed", lambda: Streamed(self))
            each = [streamed(one[None]) for one in grey_B1HW]
            detector_BChw, descriptor_BDhw = (torch.cat(maps) for maps in zip(*each, strict=True))
        else:
            features_BChw = self.backbone(grey_B1HW)
            detector_BChw, descriptor_BDhw = self.detector(features_BChw), self.descriptor(features_BChw)
        scores_BHW = F.pixel_shuffle(detector_BChw.softmax(dim=1)[:, :-1], CELL)[:, 0]
        return scores_BHW, F.normalize(descriptor_BDhw, dim=1)

    @torch.inference_mode()
    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images.

        Keypoints are detected only where `mask` (B, H, W) bool is True; it comes before `max_keypoints`, not before
        the suppression of non-maxima. Best first where there are more than `max_keypoints`, else in raster order.
        """
        check_images(images, mask)
        height, width = images.shape[-2:]
        scores_BHW, descriptors_BDhw = self(_at_least_a_cell(images))
        scores_BHW = suppress_non_maxima(scores_BHW, self.config.nms_radius)[:, :height, :width]
        scores_BHW = clear_border(scores_BHW, self.config.remove_borders)
        if mask is not None:
            scores_BHW = scores_BHW.masked_fill(~mask[:, : scores_BHW.shape[1], : scores_BHW.shape[2]], 0.0)
        selected = select_keypoints(scores_BHW, self.config.detection_threshold, self.config.max_keypoints)
        image_size = torch.tensor([[width, height]], device=images.device)
        singles = []
        for i, index_K in enumerate(selected):
            keypoints_K2 = flat_to_xy(index_K, scores_BHW.shape[2]).float()
            one = Features(
                keypoints=keypoints_K2[None],
                descriptors=self._descriptors_at(keypoints_K2, descriptors_BDhw[i])[None],
                scores=scores_BHW[i].flatten()[index_K][None],
                image_size=image_size,
                signature=self.signature,
            )
            singles.append(one)
        return Features.stack(singles)

    @torch.inference_mode()
    def describe_points(self, image_CHW: Tensor, points_K2: Tensor) -> Tensor:
        """Descriptors (K, D) of unit length of any points, px of the image (C, H, W), RGB or grey in [0, 1]."""
        return self._descriptors_at(points_K2, self(_at_least_a_cell(image_CHW[None]))[1][0])

    def _descriptors_at(self, keypoints_K2: Tensor, descriptors_Dhw: Tensor) -> Tensor:
        """(K, D) of unit length, interpolated between the centres of the four nearest cells.

        Cell (0, 0) has its centre at (3.5, 3.5) px. Magic Leap's code stretches the map by (w - 9/16) / (w - 1) away
        from there, so that a keypoint at its far end reads 7/16 of a cell too near to the origin.
        """
        cells_K2 = (keypoints_K2 - (CELL - 1) / 2) / CELL
        if self.config.sampling == "magic-leap":
            size = keypoints_K2.new_tensor(descriptors_Dhw.shape[:0:-1])
            cells_K2 = cells_K2 * (size - 1) / (size - 9 / 16)
        return F.normalize(sample_bilinear(descriptors_Dhw, cells_K2), dim=-1)


def _at_least_a_cell(images_BCHW: Tensor) -> Tensor:
    height, width = images_BCHW.shape[-2:]
    return F.pad(images_BCHW, (0, max(CELL - width, 0), 0, max(CELL - height, 0)))
