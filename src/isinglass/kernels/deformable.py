"""Reading a map at places that a network chooses, and the deformable 3 x 3 convolution made of that.

Plain tensor code, no compiled extension. A map is read as rows: one row of C channels a pixel, in raster order.
Shapes: B images, C channels, O output channels, H x W pixels, P points, T taps a point, R rows, S pixels of a square.
Points are (x, y) px, (0, 0) = centre of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.kernels.convolution import product

CHUNK = 1024  # pixels convolved at once for each thread, so that what they read stays in the cache


def bilinear_taps(points_P2: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: rows (P, 4) int32, and weights (P, 4), which are 0 for pixels outside."""
    x, y = points_P2.unbind(-1)
    return _taps(x, y, width, height)


def bilinear_squares(points_P2: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """As `bilinear_taps`, but of the four pixels the top-left one (P, 2) int32, which may be at -1, and the weights."""
    (x, left, right), (y, up, down) = (
        _between(place, n) for place, n in zip(points_P2.unbind(-1), (width, height), strict=True)
    )
    return torch.stack([x, y], dim=-1), torch.stack([left * up, right * up, left * down, right * down], dim=-1)


def window_taps(pixels_P2: Tensor, radius: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The square of 2 radius + 1 px around each pixel (int64), in raster order: rows (P, T), and if inside (P, T).

    The row is 0 for a pixel outside.
    """
    side = torch.arange(-radius, radius + 1, device=pixels_P2.device)
    step = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    x, y = (pixels_P2[:, None] + step).unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (y * width + x).masked_fill(~inside, 0), inside


def weighted_rows(rows_RC: Tensor, index_PT: Tensor, weights_PT: Tensor) -> Tensor:
    """(P, C): for each point the sum of its T rows by their weights."""
    if rows_RC.device.type == "mps":  # whose kernels for this came late
        return torch.einsum("ptc,pt->pc", rows_RC[index_PT.long()], weights_PT.to(rows_RC.dtype))
    return F.embedding_bag(index_PT, rows_RC, per_sample_weights=weights_PT.to(rows_RC.dtype), mode="sum")


def deformable_conv3x3(x_BCHW: Tensor, offsets: Tensor, conv: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """(B, O, H, W): a 3 x 3 convolution, each of whose nine taps is moved, at each pixel, by an offset of its own.

    Deformable Convolutional Networks (Dai et al., ICCV 2017), eq. 2 and 3; stride 1, no bias, 0 outside the map.
    `offsets` (B, 18, H, W) px holds (dy, dx) of each tap, the taps in raster order. `conv` is the weight (O, C, 3, 3),
    or any module that takes maps (P, C, 3, 3) as a padded 3 x 3 convolution does: what it makes of their middle counts.
    """
    batch, channels, height, width = x_BCHW.shape
    device, dtype = x_BCHW.device, torch.promote_types(x_BCHW.dtype, torch.float32)
    row, column, tap = (torch.arange(n, device=device, dtype=dtype) for n in (height, width, 9))
    moves = offsets.permute(0, 2, 3, 1)  # (B, H, W, 18)
    y = (row[:, None] + tap.div(3, rounding_mode="floor") - 1)[:, None] + moves[..., 0::2]
    x = column[:, None] + (tap % 3 - 1) + moves[..., 1::2]
    index, weights = (one.view(-1, 9, 4) for one in _taps(x, y, width, height))
    if batch > 1:
        first_row = torch.arange(batch, device=device, dtype=index.dtype) * (height * width)
        index = index + first_row.repeat_interleave(height * width)[:, None, None]
    rows = x_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)

    def convolved(read_RC: Tensor) -> Tensor:
        if isinstance(conv, Tensor):
            return product(read_RC.view(-1, 9 * channels), conv.permute(0, 2, 3, 1).flatten(1))
        return conv(read_RC.view(-1, 3, 3, channels).permute(0, 3, 1, 2))[:, :, 1, 1]

    size = CHUNK * torch.get_num_threads()
    chunks = [
        convolved(weighted_rows(rows, taps.flatten(0, 1), shares.flatten(0, 1)))
        for taps, shares in zip(index.split(size), weights.split(size), strict=True)
    ]
    return torch.cat(chunks).view(batch, height, width, -1).permute(0, 3, 1, 2)


class Frame(NamedTuple):
    """An image inside a padded one: its size, and the px that were added on each side."""

    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int


class Squares:
    """Reads squares of `side` px of an image from a map that covers its frame, upsampled, corners on corners.

    Where a pixel lies in the map is told by two tables, one of columns and one of rows, so that what is left to do
    for each square are sums. Pixels outside the image are those nearest to them inside.
    """

    def __init__(self, map_CHW: Tensor, frame: Frame, side: int) -> None:
        channels, height, width = map_CHW.shape
        self.rows_RC = map_CHW.permute(1, 2, 0).reshape(-1, channels)
        self.side, self.last = side, torch.tensor([frame.width, frame.height], device=map_CHW.device) - 1
        x, right = _table(frame.width, frame.left, frame.right, width, side)
        y, down = _table(frame.height, frame.top, frame.bottom, height, side)
        # (corner, y of the pixel, x of the pixel, tap in y, tap in x)
        self.x, self.right = (one[:, None, :, None, :].expand(-1, side, -1, y.shape[2], -1) for one in (x, right))
        self.y, self.down = (one[:, :, None, :, None].expand(-1, -1, side, -1, x.shape[2]) for one in (y * width, down))
        self.x, self.y = (one.flatten(1).to(map_CHW.device) for one in (self.x, self.y))
        self.right, self.down = (one.flatten(1).to(map_CHW) for one in (self.right, self.down))

    def __call__(self, corners_P2: Tensor) -> Tensor:
        """(P, S, C) of squares by their top-left pixels (integers), which may be at -1."""
        column, row = (corners_P2.clamp(min=-1).minimum(self.last) + 1).unbind(1)
        index = (self.x.index_select(0, column) + self.y.index_select(0, row)).unflatten(1, (self.side**2, -1))
        if index.shape[2] == 1:
            return F.embedding(index[..., 0], self.rows_RC)
        weights = self.right.index_select(0, column) * self.down.index_select(0, row)
        pixels = weighted_rows(self.rows_RC, index.flatten(0, 1), weights.view(-1, index.shape[2]))
        return pixels.unflatten(0, index.shape[:2])


def _table(length: int, before: int, after: int, coarse: int, side: int) -> tuple[Tensor, Tensor]:
    """Where the pixels of an axis lie in a map of `coarse` px: index int32 and weights, both (length + 1, side, taps).

    A line i holds the pixels from i - 1 on. One tap each if the map is not upsampled, two if it is.
    """
    pixels = (torch.arange(-1, length)[:, None] + torch.arange(side)).clamp(0, length - 1) + before
    padded = before + length + after
    if coarse == padded:
        return pixels[..., None].int(), torch.ones(*pixels.shape, 1, dtype=torch.float32)
    place = pixels.double() * ((coarse - 1) / (padded - 1))
    low = place.floor().clamp(max=max(coarse - 2, 0))
    index = torch.stack([low, (low + 1).clamp(max=coarse - 1)], dim=-1)
    return index.int(), torch.stack([1 - (place - low), place - low], dim=-1)


def _taps(x: Tensor, y: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """`bilinear_taps` of any shape, with a last axis of 4."""
    (x0, left, right), (y0, up, down) = _between(x, width), _between(y, height)
    x0, x1 = x0.clamp(min=0), (x0 + 1).clamp(max=width - 1)
    above, below = y0.clamp(min=0) * width, (y0 + 1).clamp(max=height - 1) * width
    index = torch.stack([above + x0, above + x1, below + x0, below + x1], dim=-1)
    return index, torch.stack([left * up, right * up, left * down, right * down], dim=-1)


def _between(place: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each place on an axis: the pixel at or before it, int32 from -1 to length - 1, its weight, the next one's."""
    place = place.clamp(-1, length)
    low = place.floor()
    beyond = place - low
    near, far = (1 - beyond) * ((low >= 0) & (low < length)), beyond * (low < length - 1)
    return low.to(torch.int32).clamp(-1, length - 1), near, far
