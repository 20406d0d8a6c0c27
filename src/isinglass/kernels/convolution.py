"""Convolutions for inference on a CPU: batch norm folded in, SELU in fast passes, large maps in strips of rows.

At full resolution small networks wait for memory and for SELU's exponential more than for products. A strip of a few
rows stays in the cache from one layer to the next. Strips are cut from a map framed by rows of 0, and a 3 x 3
convolution leaves one row less at either end; columns are padded as usual. Maps are channels-last.

Shapes: C channels, O output channels, H x W px of a map, R rows of a strip, N pixels or other rows of a matrix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.kernels.linear import ROWS, Affine, rows_product

SELU_SCALE = 1.0507009873554804934193349852946  # lambda and alpha of Klambauer et al., NeurIPS 2017, arXiv 1706.02515
SELU_ALPHA = 1.6732632423543772848170429916717
STRIP_PIXELS = 32 * 1024  # of a strip at full resolution, for each thread
LEAST_ROWS = 16  # of a strip, as each reads a few more at its ends


_Model = TypeVar("_Model", bound=nn.Module)

# ---- layers


def selu_of_scaled_(y: Tensor) -> Tensor:
    """SELU of y / SELU_SCALE, for layers whose weights hold that factor; overwrites y.

    selu(x) is the smaller of scale * max(x, 0) and scale * alpha * (exp(x) - 1). By 2^x, for which torch has a vector
    kernel on every processor, that takes half the time of `F.selu`.
    """
    ceiling = SELU_SCALE * SELU_ALPHA
    power = torch.mul(y, math.log2(math.e) / SELU_SCALE).exp2_()
    torch.add(y.new_tensor(-ceiling), power, alpha=ceiling, out=power)
    return torch.minimum(y.relu_(), power, out=y)


def selu(x: Tensor) -> Tensor:
    """SELU, at inference on CPUs by `selu_of_scaled_`."""
    fast = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    return selu_of_scaled_(x * SELU_SCALE) if fast else F.selu(x)


def product(x_NC: Tensor, weight_OC: Tensor) -> Tensor:
    """(N, O) = x W^T, at inference by oneDNN; odd numbers of rows, for each of which it would compile, are excepted."""
    odd = len(x_NC) % ROWS or {x_NC.dtype, weight_OC.dtype} != {torch.float32}
    return F.linear(x_NC, weight_OC) if odd or torch.is_grad_enabled() else rows_product(x_NC, weight_OC)


def as_conv(module: nn.Module) -> nn.Conv2d:
    """The module, for type checkers, which do not know what a `Sequential` holds."""
    assert isinstance(module, nn.Conv2d)
    return module


def folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight, channels-last, and bias of a convolution with the batch norm after it folded in, times `scale`."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        gain, shift = norm_as_affine(norm)
        weight, bias = weight * gain[:, None, None, None], bias * gain + shift
    dtype = conv.weight.dtype
    return (weight * scale).to(dtype, memory_format=torch.channels_last), (bias * scale).to(dtype)


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and shift (C,) float64 of a batch norm at inference."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = (variance + norm.eps).rsqrt()
    if not norm.affine:
        return gain, -mean * gain
    gain = gain * norm.weight.detach().double()
    return gain, norm.bias.detach().double() - mean * gain


class Folded:
    """A convolution at inference, with the batch norm that follows it, its outputs times `scale`; weights are copied.

    3 x 3 ones, of stride 1, take strips (1, C, R + 2, W) to (1, O, R, W); 1 x 1 ones change only the channels.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, *, scale: float = 1.0) -> None:
        self.weight, self.bias = folded_weights(conv, norm, scale)
        self.affine = Affine(self.weight.flatten(1), self.bias) if conv.kernel_size == (1, 1) else None

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return len(self.weight)

    def __call__(self, x_1CRW: Tensor) -> Tensor:
        """(1, O, R, W)."""
        if self.affine is None:
            return F.conv2d(x_1CRW, self.weight, self.bias, padding=(0, 1))
        return map_of(self.rows(rows_of(x_1CRW)), x_1CRW.shape[3])

    def rows(self, rows_NC: Tensor) -> Tensor:
        """(N, O); of 1 x 1 convolutions, for pixels in any order."""
        assert self.affine is not None
        return self.affine(rows_NC)

    def plus(self, x_1CRW: Tensor, other_1ORW: Tensor) -> Tensor:
        """(1, O, R, W), other added in the same pass; of 1 x 1 convolutions."""
        assert self.affine is not None
        return map_of(self.affine.plus(rows_of(x_1CRW), rows_of(other_1ORW)), x_1CRW.shape[3])


class Fused(nn.Module):
    """A convolution at inference, with the batch norm and the ReLU after it; channels-last whatever comes."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, *, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias = folded_weights(conv, norm)
        self.stride, self.padding, self.relu = conv.stride, conv.padding, relu
        self.affine = Affine(self.weight.flatten(1), self.bias, relu=relu) if conv.kernel_size == (1, 1) else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, O, H, W)."""
        x_BCHW = channels_last(x_BCHW)
        if self.affine is not None:
            rows = self.affine(x_BCHW.permute(0, 2, 3, 1).flatten(0, 2))
            return rows.view(len(x_BCHW), *x_BCHW.shape[2:], -1).permute(0, 3, 1, 2)
        y_BOHW = F.conv2d(x_BCHW, self.weight, self.bias, self.stride, self.padding)
        return y_BOHW.relu_() if self.relu else y_BOHW


def fused(model: _Model) -> _Model:
    """A copy of a model in which each convolution of a `Sequential` takes up the batch norm and ReLU right after it."""
    model = copy.deepcopy(model)
    for module in [one for one in model.modules() if isinstance(one, nn.Sequential)]:
        layers, rest = [], list(module)
        while rest:
            layer = rest.pop(0)
            if isinstance(layer, nn.Conv2d):
                norm = rest.pop(0) if rest and isinstance(rest[0], nn.BatchNorm2d) else None
                relu = bool(rest) and isinstance(rest[0], nn.ReLU)
                layer, rest = Fused(layer, norm, relu=relu), rest[relu:]  # type: ignore[arg-type]
            layers.append(layer)
        module._modules = {str(i): layer for i, layer in enumerate(layers)}
    return model


# ---- maps and strips of them


def rows_of(x_1CHW: Tensor) -> Tensor:
    """(N, C): the pixels of a channels-last map in raster order; a view."""
    return x_1CHW[0].permute(1, 2, 0).flatten(0, 1)


def map_of(rows_NC: Tensor, width: int) -> Tensor:
    """(1, C, H, W): the channels-last map of pixels in raster order; a view."""
    return rows_NC.unflatten(0, (1, -1, width)).permute(0, 3, 1, 2)


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same in memory as channels-last; with strides that say so even of a single channel, as oneDNN wants them."""
    rows = x_BCHW.permute(0, 2, 3, 1).contiguous()
    return rows.view(-1).view(rows.shape).permute(0, 3, 1, 2)


def framed(channels: int, height: int, width: int, *, frame: int = 0, like: Tensor) -> Tensor:
    """(1, C, H + 2 frame, W) channels-last, of the dtype of `like`: `frame` rows of 0 at both ends, undefined between.

    In huge pages, which cost a tenth of what others cost to come by: NumPy asks for them where Linux has them.
    """
    shape = (1, height + 2 * frame, width, channels)
    is_plain = like.device.type == "cpu" and like.dtype == torch.float32
    rows = torch.from_numpy(np.empty(shape, dtype=np.float32)) if is_plain else like.new_empty(shape)
    rows[:, :frame], rows[:, height + frame :] = 0, 0
    return rows.permute(0, 3, 1, 2)


def clear_outside_(x_1CRW: Tensor, first: int, height: int) -> Tensor:
    """The strip that begins at row `first` of a map, its rows that are outside the map's `height` set to 0 in place."""
    x_1CRW[:, :, : max(-first, 0)] = 0
    x_1CRW[:, :, max(height - first, 0) :] = 0
    return x_1CRW


def strips(height: int, width: int, stride: int = 1) -> list[tuple[int, int]]:
    """First row, and the one after the last, of the strips of a map; `stride` is how many px its pixels are wide.

    All but the last have as many rows, a multiple of 8 as long as LEAST_ROWS is one.
    """
    pixels = STRIP_PIXELS * torch.get_num_threads() // stride**2
    rows = max(pixels // width // 8 * 8, LEAST_ROWS)
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def maxima_2x2(x_1CRW: Tensor) -> Tensor:
    """(1, C, R / 2, W / 2), rounded down: the maximum of each 2 x 2 px."""
    rows, columns = x_1CRW.shape[2] // 2 * 2, x_1CRW.shape[3] // 2 * 2
    y_1CRW = torch.maximum(x_1CRW[:, :, 0:rows:2], x_1CRW[:, :, 1:rows:2])
    return torch.maximum(y_1CRW[..., 0:columns:2], y_1CRW[..., 1:columns:2])


class Upsampled:
    """A map upsampled bilinearly, corners on corners: its columns at once, its rows strip by strip, as a product."""

    def __init__(self, x_1Chw: Tensor, height: int, width: int) -> None:
        self.coarse, self.height = x_1Chw.shape[2], height
        wide = F.interpolate(x_1Chw, (self.coarse, width), mode="bilinear", align_corners=True)
        self.lines = wide.permute(0, 2, 3, 1).reshape(self.coarse, -1)  # (h, W C)

    def terms(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is the rows `first` to `last` (R, W C), 0 outside the map."""
        row = torch.arange(first, last, dtype=torch.float64)
        place = row * ((self.coarse - 1) / max(self.height - 1, 1))
        start, stop = max(int(place[0]), 0), min(int(place[-1]) + 2, self.coarse)
        line = torch.arange(start, stop, dtype=torch.float64)
        weights = (1 - (place[:, None] - line).abs()).clamp(min=0)
        weights = weights.masked_fill(((row < 0) | (row >= self.height))[:, None], 0.0)
        return weights.to(self.lines), self.lines[start:stop]


def add_upsampled(x_1CRW: Tensor, others: Sequence[Upsampled], first: int) -> Tensor:
    """The strip (1, C, R, W) of a map, which begins at its row `first`, with the same strip of others added."""
    _, channels, rows, width = x_1CRW.shape
    weights, lines = zip(*(other.terms(first, first + rows) for other in others), strict=True)
    total = torch.addmm(rows_of(x_1CRW).view(rows, -1), torch.cat(weights, dim=1), torch.cat(lines))
    return map_of(total.view(-1, channels), width)
