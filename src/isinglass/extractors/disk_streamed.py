"""DISK's network, `DISK.forward`, rearranged for inference on a CPU: the same numbers, in strips of rows.

Instance norm needs a whole map's mean and variance before anything can follow. Those of an upsampled map are had from
the map that was upsampled, so that neither it nor what it is joined with is ever stored: each strip is upsampled,
joined, normalised, gated and convolved while it is in the cache, and descriptors read what they need at keypoints.
The plain modules are the slow twin.

Shapes: C channels, H x W px of a map, R rows of a strip, P pixels. Maps are framed by REACH rows of anything finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.kernels.convolution import as_conv, clear_outside_, folded_weights, framed, rows_of, strips
from isinglass.kernels.deformable import bilinear_taps, weighted_rows

if TYPE_CHECKING:
    from isinglass.extractors.disk import DISK

KERNEL = 5  # px
REACH = KERNEL // 2  # rows that a convolution reads beyond each end of a strip
EPS = 1e-5  # of instance norm


class Gate:
    """Instance norm and PReLU of a map, or of a coarse map at twice its size joined with a fine one."""

    def __init__(self, prelu: nn.PReLU, fine_1CHW: Tensor, coarse_1Chw: Tensor | None = None) -> None:
        self.slopes, self.fine, self.coarse = prelu.weight.detach(), fine_1CHW, coarse_1Chw
        self.height, self.width = fine_1CHW.shape[2] - 2 * REACH, fine_1CHW.shape[3]
        moments = [_moments(fine_1CHW)]
        if coarse_1Chw is not None:
            coarse_1Chw[:, :, :REACH] = coarse_1Chw[:, :, REACH, None]
            coarse_1Chw[:, :, -REACH:] = coarse_1Chw[:, :, -REACH - 1, None]
            moments.insert(0, _moments(coarse_1Chw, doubled=True))
        mean, variance = (torch.cat(one) for one in zip(*moments, strict=True))
        self.gain = (variance + EPS).rsqrt() if self.height * self.width > 1 else torch.zeros_like(mean)
        self.shift = -mean * self.gain
        rows = strips(self.height, self.width)[0][1] + 2 * REACH
        self.buffers = [framed(len(mean), rows, self.width, like=fine_1CHW) for _ in range(2)]

    def strip(self, first: int, last: int) -> Tensor:
        """(1, C, R + 2 REACH, W): the rows from `first` to `last`, both even, and REACH more at either end.

        The next call writes over it.
        """
        gain, shift, slopes = (one[:, None, None] for one in (self.gain, self.shift, self.slopes))
        fine = self.fine[:, :, first : last + 2 * REACH]
        x, positive = (buffer[:, :, : fine.shape[2]] for buffer in self.buffers)
        split = 0
        if self.coarse is not None:
            split = self.coarse.shape[1]
            coarse = self.coarse[:, :, first // 2 : last // 2 + 2 * REACH]
            double(torch.addcmul(shift[:split], coarse, gain[:split]), out=x[:, :split])
        torch.addcmul(shift[split:], fine, gain[split:], out=x[:, split:])
        torch.clamp(x, min=0, out=positive)
        torch.addcmul(positive, x.sub_(positive), slopes, out=x)
        return clear_outside_(x, first - REACH, self.height)

    def at(self, index_P: Tensor) -> Tensor:
        """(P, C) at pixels given by their flat index; of joined maps."""
        assert self.coarse is not None
        y, x = index_P.div(self.width, rounding_mode="floor").float(), (index_P % self.width).float()
        height, width = self.height // 2, self.width // 2
        places_P2 = torch.stack([(x / 2 - 0.25).clamp(0, width - 1), (y / 2 - 0.25).clamp(0, height - 1)], dim=1)
        index_P4, weights_P4 = bilinear_taps(places_P2, width, height)
        coarse_PC = weighted_rows(rows_of(self.coarse[:, :, REACH:-REACH]), index_P4, weights_P4)
        fine_PC = F.embedding(index_P, rows_of(self.fine[:, :, REACH:-REACH]))
        return F.prelu(torch.addcmul(self.shift, torch.cat([coarse_PC, fine_PC], dim=1), self.gain), self.slopes)


class Streamed:
    """Scores of one image after another, and the gate that gives what descriptors are made of. Weights are copied."""

    def __init__(self, model: DISK) -> None:
        down = [path.get_submodule("1") for path in model.unet.path_down]
        up = [path.get_submodule("conv") for path in model.unet.path_up]
        self.first, *convs = (folded_weights(as_conv(one.get_submodule("3"))) for one in (*down, *up))
        prelus = [one.get_submodule("1") for one in (*down[1:], *up)]
        self.gated = [(one, weights) for one, weights in zip(prelus, convs, strict=True) if isinstance(one, nn.PReLU)]
        weight, bias = convs[-1]
        self.score_taps, self.score_bias = weight[-1].flatten(1).flip(1).T.contiguous(), float(bias[-1])

    def __call__(self, padded_13HW: Tensor) -> tuple[Tensor, Gate]:
        """Scores (H, W), of an image whose sides are multiples of 16 px."""
        image = framed(3, *padded_13HW.shape[2:], frame=REACH, like=padded_13HW)
        image[:, :, REACH:-REACH] = padded_13HW
        maps = [_convolved(lambda first, last: image[:, :, first : last + 2 * REACH], image, self.first)]
        for prelu, weights in self.gated[:4]:
            fine = _halved(maps[-1])
            maps.append(_convolved(Gate(prelu, fine).strip, fine, weights))
        coarse = maps.pop()
        for prelu, weights in self.gated[4:-1]:
            fine = maps.pop()
            coarse = _convolved(Gate(prelu, fine, coarse).strip, fine, weights)
        last = Gate(self.gated[-1][0], maps.pop(), coarse)
        return self._scores(last), last

    def _scores(self, gate: Gate) -> Tensor:
        """The last convolution's one output that is wanted everywhere: first over channels, then over the window."""
        scores = []
        for first, last in strips(gate.height, gate.width):
            x = gate.strip(first, last)
            taps_TN = self.score_taps @ rows_of(x).T
            summed = F.fold(taps_TN[None], x.shape[2:], KERNEL, padding=REACH)
            scores.append(summed[0, 0, REACH:-REACH] + self.score_bias)
        return torch.cat(scores)


def _convolved(strip: Callable[[int, int], Tensor], like_1CHW: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """The convolution of what `strip(first, last)` gives, of a map of the same size as another."""
    height, width = like_1CHW.shape[2] - 2 * REACH, like_1CHW.shape[3]
    out = framed(len(weights[1]), height, width, frame=REACH, like=like_1CHW)
    for first, last in strips(height, width):
        out[:, :, REACH + first : REACH + last] = F.conv2d(strip(first, last), *weights, padding=(0, REACH))
    return out


def _halved(x_1CHW: Tensor) -> Tensor:
    """The mean of each 2 x 2 px."""
    _, channels, height, width = x_1CHW.shape
    out = framed(channels, height // 2 - REACH, width // 2, frame=REACH, like=x_1CHW)
    for first, last in strips(height - 2 * REACH, width):
        rows = F.avg_pool2d(x_1CHW[:, :, REACH + first : REACH + last], 2)
        out[:, :, REACH + first // 2 : REACH + last // 2] = rows
    return out


def double(x_1CRW: Tensor, *, out: Tensor) -> None:
    """Bilinear upsampling to (1, C, 2 (R - 2), 2 W): of the R rows one at either end only lends itself to the next.

    New pixels lie 1/4 px beside the given ones. Beyond the first and the last column is what is in them.
    """
    rows = x_1CRW.new_empty(1, out.shape[2], x_1CRW.shape[3], out.shape[1]).permute(0, 3, 1, 2)
    torch.lerp(x_1CRW[:, :, 1:-1], x_1CRW[:, :, :-2], 0.25, out=rows[:, :, 0::2])
    torch.lerp(x_1CRW[:, :, 1:-1], x_1CRW[:, :, 2:], 0.25, out=rows[:, :, 1::2])
    torch.lerp(rows[..., 1:], rows[..., :-1], 0.25, out=out[..., 2::2])
    torch.lerp(rows[..., :-1], rows[..., 1:], 0.25, out=out[..., 1:-1:2])
    out[..., 0], out[..., -1] = rows[..., 0], rows[..., -1]


def _moments(x_1CHW: Tensor, *, doubled: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of a framed map, or of that map at twice its size.

    Upsampling by two keeps the mean, and the sum of squares of U X V is a product of X with U'U X V'V: along each axis
    a stencil of 3/8, 5/4, 3/8, the frame being equal to the border.
    """
    height, width = x_1CHW.shape[2] - 2 * REACH, x_1CHW.shape[3]
    ranges = strips(height, width)
    sums = [rows_of(x_1CHW[:, :, REACH + first : REACH + last]).sum(dim=0) for first, last in ranges]
    mean_C = torch.stack(sums).sum(dim=0) / (height * width)
    squares = []
    for first, last in ranges:
        x = x_1CHW[:, :, REACH + first - 1 : REACH + last + 1] - mean_C[:, None, None]
        inner = x[:, :, 1:-1]
        squares.append((rows_of(inner) * rows_of(_stencil(x) if doubled else inner)).sum(dim=0))
    return mean_C, torch.stack(squares).sum(dim=0) / (height * width * (4 if doubled else 1))


def _stencil(x_1CRW: Tensor) -> Tensor:
    rows = (x_1CRW[:, :, :-2] + x_1CRW[:, :, 2:]).mul_(0.375).add_(x_1CRW[:, :, 1:-1], alpha=1.25)
    out = rows * 1.25
    out[..., 1:].add_(rows[..., :-1], alpha=0.375)
    out[..., :-1].add_(rows[..., 1:], alpha=0.375)
    out[..., 0].add_(rows[..., 0], alpha=0.375)
    out[..., -1].add_(rows[..., -1], alpha=0.375)
    return out
