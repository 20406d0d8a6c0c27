"""Pictures of textured rectangles by exact ray casting, on any device, and where a point of one picture is in another.

A rectangle is a (3, 3) array of rows (origin, across, down), m: its points are origin + u across + v down, u and v from
0 to 1, and its texture spans it with u to the right and v down. It has one side: from where it would be mirrored it is
not there. For the pixel x = (x, y, 1) of a pinhole camera with centre c,

    (u, v, 1) / depth = [across  down  origin - c]^-1 R^T K^-1 x

(Hartley and Zisserman, section 8.1: a plane is imaged by a homography), so whether, where and how far a ray hits a
rectangle is linear in the pixel. A texture is a list of tensors (3, h, w) uint8, each half the size of the one before.
Shape letters: K rectangles, N points, H and W rows and columns of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from isinglass.datasets.pairs import Floats
from isinglass.datasets.views import Shape
from isinglass.train.labels import Landing

EDGE_PX = 1.0  # a point is at an edge of depth if another surface is so near to it
_EDGE = 0.05  # by which share inverse depths differ there
_SAMPLES = 2  # a pixel and side
_ROUNDING = 1e-5  # share of the depth, and of the side of a rectangle, by which neighbours may miss each other
_NEAR_M = 1e-6


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Camera:
    """A pinhole camera: a point X of the world, m, is R X + t in its frame.

    size         (width, height) px
    matrix       (3, 3) K, px
    rotation     (3, 3) R of camera_from_world
    translation  (3,) t of camera_from_world, m
    """

    size: Shape
    matrix: Floats
    rotation: Floats
    translation: Floats

    @property
    def centre(self) -> Floats:
        """(3,) where it is in the world, m."""
        return -self.rotation.T @ self.translation

    @property
    def to_rays(self) -> Floats:
        """(3, 3): pixels (x, y, 1) to directions in the world whose depth is 1."""
        return self.rotation.T @ np.linalg.inv(self.matrix)


class Hits(NamedTuple):
    """What the rays of N pixels meet first.

    index_N          int64, which rectangle; -1 = none
    inverse_depth_N  float64, 1/m along the optical axis; 0 where there is none
    """

    index_N: Tensor
    inverse_depth_N: Tensor


# ---- geometry


def box(size_m: ArrayLike, *, inside: bool = False) -> Floats:
    """(6, 3, 3): the faces of a box around the origin, of `size_m` (x, y, z); -x, +x, -y, +y, -z, +z in turn.

    They are seen from without, or all from `inside`. +y is down: the texture of the four sides is upright.
    """
    size_3, axes_33 = np.asarray(size_m, np.float64), np.eye(3)
    faces = []
    for axis in range(3):
        for sign in (-1, 1):
            outward_3 = sign * axes_33[axis]
            down_3 = axes_33[2 if axis == 1 else 1]
            across_3 = np.cross(down_3, outward_3 if inside else -outward_3)
            faces.append([(outward_3 - across_3 - down_3) * size_3 / 2, across_3 * size_3, down_3 * size_3])
    return np.array(faces)


def placed(rectangles_K33: Floats, rotation_33: ArrayLike, translation_3: ArrayLike) -> Floats:
    """(K, 3, 3): turned about the origin, then shifted."""
    turned_K33 = rectangles_K33 @ np.asarray(rotation_33, np.float64).T
    turned_K33[:, 0] += np.asarray(translation_3, np.float64)
    return turned_K33


def tiled(rectangle_33: Floats, columns: int, rows: int) -> Floats:
    """(columns * rows, 3, 3): the parts of a rectangle, row by row."""
    origin_3, across_3, down_3 = rectangle_33[0], rectangle_33[1] / columns, rectangle_33[2] / rows
    return np.array(
        [[origin_3 + i * across_3 + j * down_3, across_3, down_3] for j in range(rows) for i in range(columns)]
    )


def pixel_maps(rectangles_K33: Floats, camera: Camera) -> Floats:
    """(K, 3, 3): matrices that take pixels (x, y, 1) to (u, v, 1) / depth; 0 for rectangles seen from behind."""
    frames_K33 = rectangles_K33.transpose(0, 2, 1)[:, :, [1, 2, 0]].copy()
    frames_K33[:, :, 2] -= camera.centre
    area_K = np.linalg.norm(np.cross(frames_K33[:, :, 0], frames_K33[:, :, 1]), axis=1)
    facing_K = np.linalg.det(frames_K33) > _NEAR_M * area_K
    maps_K33 = np.zeros_like(frames_K33)
    maps_K33[facing_K] = np.linalg.inv(frames_K33[facing_K]) @ camera.to_rays
    return maps_K33


def cast(rectangles_K33: Floats, camera: Camera, points_N2: Tensor) -> Hits:
    """Return what is seen at points (N, 2) px of the camera, inside the image or not.

    Computed on the CPU, where the result lies, since not every device has float64.
    """
    maps_K33 = torch.from_numpy(pixel_maps(rectangles_K33, camera))
    u_KN, v_KN, w_KN = (_homogeneous(points_N2) @ maps_K33.mT).unbind(dim=-1)
    inverse_N, index_N = torch.where(_is_inside(u_KN, v_KN, w_KN), w_KN, 0).max(dim=0)
    return Hits(torch.where(inverse_N > 0, index_N, -1), inverse_N)


def landing(
    rectangles_K33: Floats, cameras: tuple[Camera, Camera], points_N2: Tensor, *, edge_px: float = EDGE_PX
) -> Landing:
    """Return where points (N, 2) px of the first camera are in the second one, computed in float64 on the CPU.

    Hidden: outside of the second image, behind that camera, behind another surface, or on a side that is not seen.
    NaN and not hidden: nothing is there, or within `edge_px` the depth jumps (by more than 5 percent), as which of the
    surfaces such a point belongs to cannot be said. 0 = points are where they are.
    """
    first, second = cameras
    index_N, inverse_N = cast(rectangles_K33, first, points_N2)
    known_N = index_N >= 0
    if edge_px:
        known_N = known_N & ~_at_edge(rectangles_K33, first, points_N2, index_N, edge_px)
    from_rays = torch.from_numpy(second.matrix @ second.rotation)
    rays_N3 = _homogeneous(points_N2) @ torch.from_numpy(first.to_rays).T
    between_3 = torch.from_numpy(first.centre - second.centre)
    seen_N3 = (rays_N3 / inverse_N[:, None] + between_3) @ from_rays.T
    depth_N = torch.where(known_N, seen_N3[:, 2], torch.nan)  # the last row of K is 0, 0, 1
    ahead_N = depth_N > _NEAR_M
    point_N2 = torch.where(ahead_N[:, None], seen_N3[:, :2] / depth_N[:, None], torch.nan)
    width, height = second.size
    inside_N = (point_N2 >= -0.5).all(dim=1) & (point_N2[:, 0] < width - 0.5) & (point_N2[:, 1] < height - 0.5)
    facing_K = torch.from_numpy(pixel_maps(rectangles_K33, second).any(axis=(1, 2)))
    nearest_N = cast(rectangles_K33, second, point_N2).inverse_depth_N
    seen_N = inside_N & facing_K[index_N] & (nearest_N * depth_N <= 1 + _ROUNDING)
    return Landing(point_N2.to(points_N2.dtype).to(points_N2.device), (known_N & ~seen_N).to(points_N2.device))


def _at_edge(rectangles_K33: Floats, camera: Camera, points_N2: Tensor, index_N: Tensor, edge_px: float) -> Tensor:
    """(N,) bool: whether the plane of a point, around it, is not what is seen there."""
    inverse_K3 = torch.from_numpy(pixel_maps(rectangles_K33, camera)[:, 2])
    steps_42 = edge_px * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    around_N42 = points_N2.cpu()[:, None] + steps_42
    plane_N4 = (_homogeneous(around_N42) * inverse_K3[index_N][:, None]).sum(dim=2)
    seen_N4 = cast(rectangles_K33, camera, around_N42.reshape(-1, 2)).inverse_depth_N.reshape(-1, 4)
    return ((seen_N4 - plane_N4).abs() > _EDGE * plane_N4.abs()).any(dim=1)


def _homogeneous(points: Tensor) -> Tensor:
    return F.pad(points.cpu().double(), (0, 1), value=1.0)


def _is_inside(u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Of u, v and 1, over the depth: whether they are in the rectangle and before the camera."""
    least = torch.minimum(torch.minimum(u, w - u), torch.minimum(v, w - v))
    return (w > 0) & (least >= -_ROUNDING * w)


# ---- pictures


def texture_levels(texture_3HW: Tensor) -> list[Tensor]:
    """A texture (3, h, w), values 0 to 255, as uint8, and reduced by 2 again and again until a side is 1 px."""
    level_3HW = texture_3HW.float()
    levels = [level_3HW]
    while min(level_3HW.shape[1:]) > 1:
        size = [side // 2 for side in level_3HW.shape[1:]]
        level_3HW = F.interpolate(level_3HW[None], size, mode="bilinear", antialias=True)[0]
        levels.append(level_3HW)
    return [one.round().clamp(0, 255).to(torch.uint8) for one in levels]


def render(
    rectangles_K33: Floats, textures: Sequence[list[Tensor]], camera: Camera, device: torch.device | None = None
) -> Tensor:
    """(3, height, width) float32 in [0, 1]: 2 x 2 samples a pixel, of textures reduced to as many. Nothing is 0."""
    width, height = camera.size
    maps_K33, windows = pixel_maps(rectangles_K33, camera), _windows(rectangles_K33, camera, _SAMPLES)
    x_W, y_H = (_samples(side, _SAMPLES, torch.float32, device) for side in camera.size)
    index_HW = _nearest(maps_K33, windows, x_W, y_H)[1]
    image_3HW = torch.zeros(3, len(y_H), len(x_W), dtype=torch.float32, device=device)
    for k in index_HW.unique().tolist():
        if k < 0:
            continue
        down, right = windows[k]
        rows_M, columns_M = (index_HW[down, right] == k).nonzero(as_tuple=True)
        x_M, y_M = x_W[right][columns_M], y_H[down][rows_M]
        image_3HW[:, rows_M + down.start, columns_M + right.start] = _colours(maps_K33[k], textures[k], x_M, y_M)
    return F.avg_pool2d(image_3HW, _SAMPLES).reshape(3, height, width) / 255


def depth_map(rectangles_K33: Floats, camera: Camera) -> Tensor:
    """Return (height, width) float64, m along the optical axis at the centres of pixels; inf where nothing is."""
    x_W, y_H = (_samples(side, 1, torch.float64, None) for side in camera.size)
    windows = _windows(rectangles_K33, camera, 1)
    return 1 / _nearest(pixel_maps(rectangles_K33, camera), windows, x_W, y_H)[0]


def _samples(side: int, of_pixel: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """(side * of_pixel,) px: where the samples of a row are."""
    return (torch.arange(side * of_pixel, dtype=dtype, device=device) + 0.5) / of_pixel - 0.5


def _windows(rectangles_K33: Floats, camera: Camera, of_pixel: int) -> list[tuple[slice, slice]]:
    """Rows and columns of samples that hold each rectangle: between its corners, or all if one is not ahead."""
    origin_K13, across_K13, down_K13 = np.split(rectangles_K33, 3, axis=1)
    corners_K43 = origin_K13 + np.concatenate([0 * across_K13, across_K13, down_K13, across_K13 + down_K13], axis=1)
    seen_K43 = (corners_K43 @ camera.rotation.T + camera.translation) @ camera.matrix.T
    windows = []
    for seen_43 in seen_K43:
        low, high = np.zeros(2), np.array(camera.size) * of_pixel
        if (seen_43[:, 2] > _NEAR_M).all():
            samples_42 = (seen_43[:, :2] / seen_43[:, 2:] + 0.5) * of_pixel - 0.5
            low, high = (edge.clip(low, high) for edge in (samples_42.min(axis=0) - 1, samples_42.max(axis=0) + 2))
        windows.append((slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))))
    return windows


def _nearest(maps_K33: Floats, windows: list[tuple[slice, slice]], x_W: Tensor, y_H: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse depth (H, W), 0 where nothing is, and which rectangle (H, W) int16 is there, or -1."""
    inverse_HW = x_W.new_zeros(len(y_H), len(x_W))
    index_HW = torch.full_like(inverse_HW, -1, dtype=torch.int16)
    for k, (map_33, window) in enumerate(zip(maps_K33.tolist(), windows, strict=True)):
        if not any(map_33[2]):
            continue
        x, y = x_W[window[1]], y_H[window[0], None]
        u, v, w = (a * x + (b * y + c) for a, b, c in map_33)
        before = inverse_HW[window]
        is_nearer = _is_inside(u, v, w) & (w > before)
        inverse_HW[window] = torch.where(is_nearer, w, before)
        index_HW[window].masked_fill_(is_nearer, k)
    return inverse_HW, index_HW


def _colours(map_33: Floats, texture: list[Tensor], x_M: Tensor, y_M: Tensor) -> Tensor:
    """(3, M): the texture at M samples, between the two levels whose pixels are as large as a sample."""
    height, width = texture[0].shape[1:]
    rows_33 = np.diag([width, height, 1]) @ map_33
    (ux, uy, u0), (vx, vy, v0), (wx, wy, w0) = rows_33.tolist()
    depth_M = 1 / (wx * x_M + wy * y_M + w0)
    u_M, v_M = (ux * x_M + uy * y_M + u0) * depth_M, (vx * x_M + vy * y_M + v0) * depth_M
    per_sample_M = depth_M / _SAMPLES
    right_u, right_v = (ux - wx * u_M) * per_sample_M, (vx - wx * v_M) * per_sample_M
    down_u, down_v = (uy - wy * u_M) * per_sample_M, (vy - wy * v_M) * per_sample_M
    area_M = (right_u * down_v - right_v * down_u).abs()
    longest_M = torch.maximum(right_u.square() + right_v.square(), down_u.square() + down_v.square())
    # Of a slanted surface, samples are long: half their length at least, so that at most every other pixel is skipped.
    level_M = 0.5 * torch.maximum(area_M, longest_M / 4).log2().clamp(0, 2 * len(texture) - 2)
    grid_M2 = torch.stack([2 * u_M / width - 1, 2 * v_M / height - 1], dim=1)
    lower_M = level_M.floor()
    colours_3M = torch.empty_like(x_M).expand(3, -1).clone()
    for lower in lower_M.unique().int().tolist():
        at = (lower_M == lower).nonzero().squeeze(1)
        fine_3M, coarse_3M = (_sampled(texture[min(one, len(texture) - 1)], grid_M2[at]) for one in (lower, lower + 1))
        colours_3M[:, at] = torch.lerp(fine_3M, coarse_3M, level_M[at] - lower)
    return colours_3M


def _sampled(level_3HW: Tensor, grid_M2: Tensor) -> Tensor:
    pixels_13HW = level_3HW[None].to(grid_M2)
    found = F.grid_sample(pixels_13HW, grid_M2[None, None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0]
