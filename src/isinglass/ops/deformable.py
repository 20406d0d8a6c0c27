"""Reading a map at places that a network chooses, and the deformable 3 x 3 convolution made of that.

Plain tensor code, no compiled extension. A map is read as rows: one row of C channels a pixel, in raster order.
Shapes: B images, C channels, O output channels, H x W pixels, P points, T taps a point, R rows. Points are (x, y) px,
(0, 0) = centre of the top-left pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_taps(points_P2: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: rows (P, 4) int64, and weights (P, 4), which are 0 for pixels outside."""
    corner_P2 = points_P2.floor()
    right, down = (points_P2 - corner_P2).unbind(-1)
    left, up = 1 - right, 1 - down
    step = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=points_P2.device)
    index, inside = _rows_of(corner_P2.to(torch.int64)[:, None] + step, width, height)
    weights = torch.stack([left * up, right * up, left * down, right * down], dim=-1)
    return index, weights.masked_fill(~inside, 0.0)


def window_taps(pixels_P2: Tensor, radius: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The square of 2 radius + 1 px around each pixel (int64), in raster order: rows (P, T), and if inside (P, T)."""
    side = torch.arange(-radius, radius + 1, device=pixels_P2.device)
    step = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    return _rows_of(pixels_P2[:, None] + step, width, height)


def weighted_rows(rows_RC: Tensor, index_PT: Tensor, weights_PT: Tensor) -> Tensor:
    """(P, C): for each point the sum of its T rows by their weights."""
    return F.embedding_bag(index_PT, rows_RC, per_sample_weights=weights_PT.to(rows_RC.dtype), mode="sum")


def deformable_conv3x3(x_BCHW: Tensor, offsets: Tensor, weight_OC33: Tensor) -> Tensor:
    """(B, O, H, W): a 3 x 3 convolution, each of whose nine taps is moved, at each pixel, by an offset of its own.

    Deformable Convolutional Networks (Dai et al., ICCV 2017), eq. 2 and 3; stride 1, no bias, 0 outside the map.
    `offsets` (B, 18, H, W) px holds (dy, dx) of each tap, the taps in raster order.
    """
    batch, channels, height, width = x_BCHW.shape
    device, dtype = x_BCHW.device, torch.promote_types(x_BCHW.dtype, torch.float32)
    sizes = (height, width, 3, 3)
    y, x, tap_y, tap_x = torch.meshgrid(*(torch.arange(n, device=device, dtype=dtype) for n in sizes), indexing="ij")
    places = torch.stack([x + tap_x - 1, y + tap_y - 1], dim=-1).flatten(2, 3)  # (H, W, 9, 2)
    moves = offsets.permute(0, 2, 3, 1).unflatten(-1, (9, 2)).flip(-1)
    index, weights = bilinear_taps((places + moves).flatten(0, -2), width, height)
    first_row = torch.arange(batch, device=device).repeat_interleave(height * width * 9) * (height * width)
    rows = x_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    columns = weighted_rows(rows, index + first_row[:, None], weights).view(batch, height, width, 9 * channels)
    return F.linear(columns, weight_OC33.permute(0, 2, 3, 1).flatten(1)).permute(0, 3, 1, 2)


def _rows_of(pixels: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Rows of pixels (..., 2), 0 for those outside the map, and whether they are inside."""
    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (y * width + x).masked_fill(~inside, 0), inside
