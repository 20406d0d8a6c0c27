"""Views of an image: resized, turned, cropped, with the exact way back to the original pixels.

The original image is the array of pixels as stored: no EXIF turn. Points are (x, y) px, (0, 0) = centre of the
top-left pixel, sizes (width, height). A `View` is what an extractor sees of an image; it carries the affine map from
its own pixels to the original ones, so that keypoints found in it are given in the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.errors import InputError
from isinglass.types import Features

_EXIF_MIRRORED = (2, 4, 5, 7)  # first mirror,
_EXIF_TURNS = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}  # then turn so often counter-clockwise


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class View:
    """What is seen of an image, and where it lies in it.

    image          (3, H, W) float32 in [0, 1], RGB
    to_original    (2, 3) float64: pixels (x, y, 1) of the view to pixels (x, y) of the original
    original_size  (width, height) px
    mask           (H, W) bool, True = keep; None = all
    notes          what a person should know of how the image was read
    """

    image: Tensor
    to_original: Tensor
    original_size: tuple[int, int]
    mask: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) px of the view."""
        return self.image.shape[2], self.image.shape[1]

    @property
    def turns(self) -> int:
        """How the view shows the original: `Features.turns`, quarter turns and 4 if mirrored before."""
        linear = self.to_original[:, :2]
        mirror = bool(linear.det() < 0)
        x, y = (linear[:, 0] * linear.new_tensor([-1 if mirror else 1, 1])).tolist()  # where the view's +x points
        return 4 * mirror + (0 if x > abs(y) else 1 if y > abs(x) else 2 if -x > abs(y) else 3)


def whole(image: Tensor, mask: Tensor | None = None) -> View:
    """The view of all of an image (3, H, W), as `read_image` gives it, under a mask as `read_mask` gives it."""
    identity = torch.eye(2, 3, dtype=torch.float64)
    return View(image=image, to_original=identity, original_size=(image.shape[2], image.shape[1]), mask=mask)


def resized(
    view: View, long_side: int | None = None, *, size: tuple[int, int] | None = None, only_shrink: bool = False
) -> View:
    """The view with its longer side made `long_side` px, or of exactly `size` (width, height); as it is with neither.

    Antialiased bilinear, as the published code of LightGlue resizes: each axis is blurred by a Gaussian of
    sigma = (factor - 1) / 2 px where it shrinks by `factor`, then sampled. Small images are enlarged, as there,
    unless `only_shrink`. The shorter side is rounded down, to 1 px at least. The mask takes the nearest pixel.

    Raises InputError for sizes under 1 px, or where both are given.
    """
    width, height = view.size
    if long_side is not None and size is not None:
        raise InputError(f"both long_side = {long_side} and size = {size} were given; expected one of them")
    if long_side is not None:
        size = _size_of_long_side(width, height, long_side)
    if size is None or (only_shrink and max(size) >= max(width, height)):
        return view
    if min(size) < 1:
        raise InputError(f"an image cannot be resized to {size[0]} x {size[1]} px; expected at least 1 x 1")
    if size == (width, height):
        return view
    if size[0] >= width and size[1] >= height:
        image = F.interpolate(view.image[None], size[::-1], mode="bilinear", align_corners=False)[0]
    else:
        image = _resampled(_resampled(view.image, 1, size[1]), 2, size[0])
    rows, columns = _nearest(height, size[1]), _nearest(width, size[0])
    mask = None if view.mask is None else view.mask[rows][:, columns]
    scale_x, scale_y = width / size[0], height / size[1]
    return _composed(view, image, mask, [[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2]])


def turned(view: View, quarter_turns: int) -> View:
    """The view turned counter-clockwise, as `numpy.rot90` does."""
    for _ in range(quarter_turns % 4):
        view = _rearranged(view, lambda plane: plane.rot90(1, (-2, -1)), [[0, -1, view.size[0] - 1], [1, 0, 0]])
    return view


def mirrored(view: View) -> View:
    """The view with left and right exchanged."""
    return _rearranged(view, lambda plane: plane.flip(-1), [[-1, 0, view.size[0] - 1], [0, 1, 0]])


def upright(view: View, orientation: int) -> View:
    """The view as its EXIF `orientation` wants it shown: 1 to 8, see `exif_orientation`. InputError for others."""
    if orientation not in range(1, 9):
        raise InputError(f"{orientation} is no EXIF orientation; expected 1 (as stored) to 8")
    if orientation in _EXIF_MIRRORED:
        view = mirrored(view)
    return turned(view, _EXIF_TURNS[orientation]) if orientation in _EXIF_TURNS else view


def cropped(view: View, x: int, y: int, width: int, height: int) -> View:
    """The rectangle of `width` x `height` px whose top-left pixel is (x, y). Raises InputError if it is not inside."""
    if x < 0 or y < 0 or min(width, height) < 1 or x + width > view.size[0] or y + height > view.size[1]:
        raise InputError(
            f"the crop of {width} x {height} px at ({x}, {y}) is not inside the image of {view.size[0]} x "
            f"{view.size[1]} px"
        )
    return _rearranged(view, lambda plane: plane[..., y : y + height, x : x + width], [[1, 0, x], [0, 1, y]])


def tiles(view: View, size: int, overlap: int = 0) -> Iterator[View]:
    """Equal squares of `size` px that cover the view, row by row, neighbours sharing at least `overlap` px.

    Each is a copy, made when it is asked for. A side shorter than `size` is not cut. Raises InputError unless
    0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise InputError(f"tiles of {size} px cannot overlap by {overlap} px; expected 0 <= overlap < size")
    width, height = (min(size, side) for side in view.size)
    return (
        cropped(view, x, y, width, height)
        for y in _tile_starts(view.size[1], height, overlap)
        for x in _tile_starts(view.size[0], width, overlap)
    )


def points_to_original(view: View, points: Tensor) -> Tensor:
    """Points (..., 2) px of the view in pixels of the original, in the dtype and on the device they came in.

    Computed in float64 on the CPU, as some devices have no float64.
    """
    mapped = points.cpu().double() @ view.to_original[:, :2].T + view.to_original[:, 2]
    return mapped.to(points.dtype).to(points.device)


def features_to_original(view: View, features: Features) -> Features:
    """The features of one view (a batch of one) in pixels of the original: all but descriptors and scores.

    Scales grow with the square root of the area; orientations follow turns and mirrors; `turns` tells of them.
    """
    if len(features) != 1:
        raise InputError(f"features of {len(features)} images came with one view; expected a batch of one (use f[i])")
    linear = view.to_original[:, :2]
    scales, orientations = features.scales, features.orientations
    if scales is not None:
        scales = scales * float(linear.det().abs().sqrt())
    if orientations is not None:  # in float64, on the CPU as above
        direction = torch.stack([orientations.cos(), orientations.sin()], dim=-1).cpu().double() @ linear.T
        angles = torch.atan2(direction[..., 1], direction[..., 0])
        orientations = angles.to(orientations.dtype).to(orientations.device)
    return replace(
        features,
        keypoints=points_to_original(view, features.keypoints),
        scales=scales,
        orientations=orientations,
        image_size=features.image_size.new_tensor([view.original_size]),
        turns=torch.tensor([view.turns], device=features.device) if view.turns else None,
    )


def _composed(view: View, image: Tensor, mask: Tensor | None, step: Sequence[Sequence[float]]) -> View:
    """The view whose pixels `step` (2, 3) maps to those of `view`."""
    step_3x3 = torch.tensor([*step, [0, 0, 1]], dtype=torch.float64)
    return replace(view, image=image, mask=mask, to_original=view.to_original @ step_3x3)


def _rearranged(view: View, act: Callable[[Tensor], Tensor], step: Sequence[Sequence[float]]) -> View:
    """The view with the same done to all its planes (..., H, W)."""
    mask = None if view.mask is None else act(view.mask)
    return _composed(view, act(view.image).contiguous(), mask, step)


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    count = 1 if tile >= length else math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


# ---- resampling


def _size_of_long_side(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) with the rounding of the published code, but never 0."""
    aspect = width / height
    if aspect < 1:
        return max(int(long_side * aspect), 1), long_side
    return long_side, max(int(long_side / aspect), 1)


def _nearest(length: int, new_length: int) -> Tensor:
    """For each new pixel the old one that holds its centre."""
    return ((torch.arange(new_length, dtype=torch.float64) + 0.5) * (length / new_length)).long().clamp(max=length - 1)


def _resampled(image_CHW: Tensor, dim: int, new_length: int) -> Tensor:
    """Blur and bilinear sampling along one axis, in one go: only those blurred pixels are made that are sampled."""
    index_NT, weight_NT = (one.to(image_CHW.device) for one in _taps(image_CHW.shape[dim], new_length))
    planes = image_CHW if dim == 1 else image_CHW.mT
    lines = [
        F.embedding_bag(index_NT, plane.contiguous(), per_sample_weights=weight_NT, mode="sum") for plane in planes
    ]
    return torch.stack(lines) if dim == 1 else torch.stack(lines).mT.contiguous()


def _taps(length: int, new_length: int) -> tuple[Tensor, Tensor]:
    """For each of N new pixels the T old ones it is made of, (N, T) int64, and their weights, (N, T) float32."""
    factor = length / new_length
    position_N = ((torch.arange(new_length, dtype=torch.float32) + 0.5) * factor - 0.5).clamp(0, length - 1)
    first_N = position_N.floor()
    fraction_N1 = (position_N - first_N)[:, None]
    sigma = max((factor - 1) / 2, 0.001)
    radius = int(max(4 * sigma, 3)) // 2 if factor > 1 else 0
    kernel_K = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    kernel_K = kernel_K / kernel_K.sum()
    index_NT = (first_N.long()[:, None] + torch.arange(-radius, radius + 2)).abs()
    index_NT = length - 1 - (length - 1 - index_NT).abs()  # reflected at both ends, the end pixel not repeated
    weight_NT = F.pad(kernel_K, (0, 1)) * (1 - fraction_N1) + F.pad(kernel_K, (1, 0)) * fraction_N1
    return index_NT.clamp(min=0), weight_NT
