"""Keypoints from score maps: suppression, selection, sampling, and the removal of near-duplicates.

Shapes: B images, C channels, H x W pixels, K keypoints. Points are (x, y) px, (0, 0) = centre of the top-left pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_maxima(scores_BHW: Tensor, radius: int) -> Tensor:
    """(B, H, W) bool: pixels that are a maximum of the (2 radius + 1)-wide square around them."""
    return scores_BHW == square_maxima(scores_BHW, radius)


def square_maxima(map_BHW: Tensor, radius: int) -> Tensor:
    """(B, H, W) of the same dtype, bool too: the maximum of the (2 radius + 1)-wide square around each pixel.

    Along columns, then along rows, by windows that double: many times as fast on a CPU as `max_pool2d`.
    """
    outside = float("-inf") if map_BHW.is_floating_point() else 0
    for dim, sides in ((1, (0, 0, radius, radius)), (2, (radius, radius, 0, 0))):
        map_BHW, width = F.pad(map_BHW, sides, value=outside), 1
        while width < 2 * radius + 1:
            step = min(width, 2 * radius + 1 - width)
            rest = map_BHW.shape[dim] - step
            map_BHW = torch.maximum(map_BHW.narrow(dim, 0, rest), map_BHW.narrow(dim, step, rest))
            width += step
    return map_BHW


def suppress_non_maxima(scores_BHW: Tensor, radius: int, rounds: int = 2) -> Tensor:
    """Scores (B, H, W) with all but the local maxima set to 0.

    After the first maxima, `rounds` more find those that only suppressed pixels hid, as SuperPoint's and ALIKED's
    published code does.
    """
    maxima = local_maxima(scores_BHW, radius)
    for _ in range(rounds):
        near = square_maxima(maxima, radius)
        remaining = scores_BHW.masked_fill(near, 0.0)
        maxima = maxima | (local_maxima(remaining, radius) & ~near)
    return scores_BHW.masked_fill(~maxima, 0.0)


def clear_border(scores_BHW: Tensor, border: int) -> Tensor:
    """Scores with a frame of `border` px set to 0."""
    inner = torch.zeros_like(scores_BHW, dtype=torch.bool)
    height, width = scores_BHW.shape[1:]
    inner[:, border : max(height - border, 0), border : max(width - border, 0)] = True
    return scores_BHW.masked_fill(~inner, 0.0)


def select_keypoints(scores_BHW: Tensor, threshold: float, max_keypoints: int | None) -> list[Tensor]:
    """For each image the flat pixel indices (K,) int64 of the scores above `threshold`, the best `max_keypoints`.

    Best first where there are more than `max_keypoints`, in raster order otherwise. Mask the scores before: what is
    not wanted must not take the place of what is.
    """
    selected = []
    for scores in scores_BHW.flatten(1):
        index = (scores > threshold).nonzero()[:, 0]
        if max_keypoints is not None and len(index) > max_keypoints:
            index = index[scores[index].topk(max_keypoints).indices]
        selected.append(index)
    return selected


def flat_to_xy(index_K: Tensor, width: int) -> Tensor:
    """(K, 2) int64 (x, y) of flat pixel indices in an image `width` px wide."""
    return torch.stack([index_K % width, index_K.div(width, rounding_mode="floor")], dim=1)


def sample_bilinear(map_CHW: Tensor, points_K2: Tensor) -> Tensor:
    """(K, C) values of a map at `points_K2` px; outside the map it is 0."""
    height, width = map_CHW.shape[1:]
    grid = ((points_K2 * 2 + 1) / points_K2.new_tensor([width, height]) - 1)[None, :, None]
    return F.grid_sample(map_CHW[None], grid.to(map_CHW.dtype), align_corners=False)[0, :, :, 0].T


def distinct(points_K2: Tensor, scores_K: Tensor, radius_px: float) -> Tensor:
    """Indices (int64, ascending) of the keypoints that remain when near-duplicates go.

    Greedy suppression: of two keypoints nearer than `radius_px` the one of lower score goes, unless it is suppressed
    by one that goes itself. Ties are broken by order. Exact, by rounds over the list of near pairs.
    """
    order = scores_K.argsort(descending=True, stable=True)
    better, worse = _near_pairs(points_K2[order], radius_px)
    kept = torch.ones(len(order), dtype=torch.bool, device=order.device)
    undecided = torch.zeros_like(kept)
    undecided[worse] = True
    while bool(undecided.any()):
        blocked = torch.zeros_like(kept)
        blocked[worse[kept[better] & ~undecided[better]]] = True
        waiting = torch.zeros_like(kept)
        waiting[worse[undecided[better] & ~blocked[better]]] = True
        kept = kept & ~(undecided & blocked)
        undecided = undecided & ~blocked & waiting
    return order[kept].sort().values


def _near_pairs(points_K2: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Index pairs (i < j) of points nearer than the radius, found among the 3 x 3 cells of a grid around each."""
    empty = torch.zeros(0, dtype=torch.int64, device=points_K2.device)
    if len(points_K2) < 2 or radius_px <= 0:
        return empty, empty
    cell = ((points_K2 - points_K2.min(dim=0).values) / radius_px).floor().to(torch.int64) + 1
    stride = int(cell[:, 1].max()) + 2
    key = cell[:, 0] * stride + cell[:, 1]
    sorted_key, sorted_index = key.sort()
    steps = torch.tensor([dx * stride + dy for dx in (-1, 0, 1) for dy in (-1, 0, 1)], device=key.device)
    wanted = (key[:, None] + steps).flatten()
    start = torch.searchsorted(sorted_key, wanted)
    count = torch.searchsorted(sorted_key, wanted, right=True) - start
    i = torch.arange(len(key), device=key.device).repeat_interleave(9).repeat_interleave(count)
    run_start = count.cumsum(0) - count
    within = torch.arange(len(i), device=key.device) - run_start.repeat_interleave(count)
    j = sorted_index[start.repeat_interleave(count) + within]
    near = (i < j) & ((points_K2[i] - points_K2[j]).norm(dim=1) < radius_px)
    return i[near], j[near]
