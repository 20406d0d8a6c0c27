"""The dense part of ALIKED, `ALIKED.forward`, rearranged for inference on a CPU: the same numbers, in strips of rows.

At full and half resolution each strip goes through all layers of a block while it is in the cache. Of the aligned map
of full resolution only what the score head makes of it is kept; the pyramid makes again what descriptors need of it.
The plain modules are the slow twin.

Shapes: C channels, H x W px of a map, R rows of a strip, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.convolution import (
    SELU_SCALE,
    Folded,
    Upsampled,
    add_upsampled,
    as_conv,
    clear_outside_,
    framed,
    map_of,
    rows_of,
    selu_of_scaled_,
    strips,
)
from isinglass.kernels.linear import Affine

if TYPE_CHECKING:
    from isinglass.extractors.aliked import ALIKED, Block

REACH = 2  # rows that a block's two convolutions read beyond each end of a strip
HEAD_REACH = 3  # and the score head's three
POOLS = (2, 4, 4)  # from each block to the next


class FoldedBlock:
    """A block of plain convolutions."""

    def __init__(self, block: Block) -> None:
        self.conv1 = Folded(as_conv(block.conv1), block.bn1, scale=SELU_SCALE)
        self.conv2 = Folded(as_conv(block.conv2), block.bn2, scale=SELU_SCALE)
        self.downsample = None if block.downsample is None else Folded(block.downsample, scale=SELU_SCALE)

    def __call__(self, x_1CRW: Tensor, first: int, height: int) -> Tensor:
        """The strip that begins at row `first` of a map of `height`, of one that reaches further by REACH rows."""
        y_1CRW = clear_outside_(selu_of_scaled_(self.conv1(x_1CRW)), first - 1, height)
        y_1CRW = self.conv2(y_1CRW)
        if self.downsample is not None:
            y_1CRW = self.downsample.plus(x_1CRW[:, :, REACH:-REACH], y_1CRW)
        return selu_of_scaled_(y_1CRW)


class Level(NamedTuple):
    """What a resolution leaves for the pyramid, the score head and the next block; framed if strips are cut of it."""

    kept_1CHW: Tensor
    part_1CHW: Tensor
    pooled_1Chw: Tensor


class Streamed:
    """Scores and pyramid of one image after another. Weights are copied, but for those of the coarse blocks."""

    def __init__(self, model: ALIKED) -> None:
        self.fine = FoldedBlock(model.block1), FoldedBlock(model.block2)
        self.coarse = model.block3, model.block4
        aligning = model.conv1, model.conv2, model.conv3, model.conv4
        self.align = [Folded(conv, scale=SELU_SCALE) for conv in aligning]
        first, _, *convs, last = (model.score_head[i] for i in (0, 1, 2, 4, 6))
        parts = as_conv(first).weight.flatten(1).chunk(4, dim=1)
        self.parts = [Affine(weight * SELU_SCALE) for weight in parts]
        self.head = [*(Folded(as_conv(conv), scale=SELU_SCALE) for conv in convs), Folded(as_conv(last))]

    def __call__(self, padded_13HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (H, W) in [0, 1] and the pyramid's maps (C, h, w), the first of which is for `finish`."""
        height, width = padded_13HW.shape[2:]
        x = framed(3, height, width, frame=REACH, like=padded_13HW)
        x[:, :, REACH:-REACH] = padded_13HW
        fine = self._level(0, x)
        half = self._level(1, fine.pooled_1Chw)
        x3 = self.coarse[0](half.pooled_1Chw)
        x4 = self.coarse[1](F.avg_pool2d(x3, POOLS[2]))
        aligned = [selu_of_scaled_(align(x)) for align, x in zip(self.align[2:], (x3, x4), strict=True)]
        parts = [self._part(i, x) for i, x in enumerate(aligned, start=2)]
        scores_HW = self._scores(fine.part_1CHW, [Upsampled(part, height, width) for part in (half.part_1CHW, *parts)])
        return scores_HW, [one[0] for one in (fine.kept_1CHW, half.kept_1CHW, *aligned)]

    def finish(self, rows_PC: Tensor) -> Tensor:
        """Pixels of the pyramid's first map from those that were kept."""
        return selu_of_scaled_(self.align[0].rows(rows_PC))

    def _part(self, i: int, aligned_1CRW: Tensor) -> Tensor:
        """The summand of the score head's first layer that comes from one of the four maps."""
        return map_of(self.parts[i](rows_of(aligned_1CRW)), aligned_1CRW.shape[3])

    def _level(self, i: int, x_1CHW: Tensor) -> Level:
        """A block at full (0) or half (1) resolution, and what is made of it."""
        block, align, pool = self.fine[i], self.align[i], POOLS[i]
        height, width = x_1CHW.shape[2] - 2 * REACH, x_1CHW.shape[3]
        outputs, frame, next_frame = block.conv2.outputs, (HEAD_REACH, 0)[i], (REACH, 0)[i]
        pooled = framed(outputs, height // pool, width // pool, frame=next_frame, like=x_1CHW)
        kept = framed((outputs, align.outputs)[i], height, width, like=x_1CHW)
        part = framed(self.head[0].weight.shape[1], height, width, frame=frame, like=x_1CHW)
        for first, last in strips(height, width, stride=i + 1):
            strip = block(x_1CHW[:, :, first : last + 2 * REACH], first, height)
            aligned = selu_of_scaled_(align(strip))
            kept[:, :, first:last] = aligned if i else strip
            part[:, :, frame + first : frame + last] = self._part(i, aligned)
            pooled[:, :, next_frame + first // pool : next_frame + last // pool] = F.avg_pool2d(strip, pool)
        return Level(kept, part, pooled)

    def _scores(self, part_1CHW: Tensor, coarser: Sequence[Upsampled]) -> Tensor:
        """The score map head (III-C) from the four parts of its first layer."""
        height, width, scores = part_1CHW.shape[2] - 2 * HEAD_REACH, part_1CHW.shape[3], []
        for first, last in strips(height, width):
            x = add_upsampled(part_1CHW[:, :, first : last + 2 * HEAD_REACH], coarser, first - HEAD_REACH)
            for i, conv in enumerate(self.head, start=1):
                x = conv(clear_outside_(selu_of_scaled_(x), first - HEAD_REACH + i - 1, height))
            scores.append(x[0, 0])
        return torch.cat(scores).sigmoid_()
