"""Pairs of views of made-up rooms: perspective, parallax and occlusion with exact labels, learnt from photos alone.

A scene is a room with boxes and posters in it, all papered with pieces of photos, no piece twice, and lit by one lamp.
Scene i follows from the seed and i, view j of it from the seed, i and j. The world is in m, y down, the floor at 0.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.datasets.pairs import Floats
from isinglass.datasets.views import Shape
from isinglass.errors import InputError
from isinglass.images import read_image
from isinglass.train import rendering
from isinglass.train.batch import PairBatch, stacked
from isinglass.train.labels import targets
from isinglass.train.rendering import Camera, box, landing, placed, texture_levels, tiled
from isinglass.train.sources import held_out_numbers
from isinglass.train.store import DrawnViews, StoredViews, Views
from isinglass.train.views import MIN_SIDE_PX, Photos, recoloured
from isinglass.types import Extractor

LONG_SIDE_PX = 1600  # that photos are reduced to
_VERSION = 1  # of how scenes are drawn: features of another are refused
_PANEL_M = 2.2  # of walls
_SPARE = 2.0  # pieces of photos for each one that is needed, so that blank ones can be left out
_EXPOSURE, _MAX_GAIN = 0.45, 3.0  # mean of a view before its light is changed, where gain can bring that about
_TRIES = 30  # cameras drawn until one has a free sight, pairs until one overlaps as it should
_CLEAR_M = 0.6  # what a camera sees is farther than that, but for a tenth of the image
_GRID = (16, 12)  # of points that overlap is measured by


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are drawn; pairs of numbers are from, to.

    count            how many scenes there are
    size             (width, height) px
    photos_a_scene   that are cut up for it
    objects          in a room
    room_m           width and depth of the room
    distance_m       of the camera from what it looks at
    max_azimuth_deg  how far the camera goes round that, to either side
    max_roll_deg     180 = any
    aim_m            standard deviation of where it looks
    focal            focal length as a share of the longer side
    overlap          share of each view that the other one sees, of pairs to learn from
    photometric      strength of changes of light, blur and noise; 0 = none
    """

    count: int = 1000
    size: Shape = (640, 480)
    photos_a_scene: int = 24
    objects: tuple[int, int] = (3, 8)
    room_m: tuple[float, float] = (5.0, 9.0)
    distance_m: tuple[float, float] = (1.8, 4.5)
    max_azimuth_deg: float = 30.0
    max_roll_deg: float = 20.0
    aim_m: float = 0.3
    focal: tuple[float, float] = (0.7, 1.3)
    overlap: tuple[float, float] = (0.1, 0.9)
    photometric: float = 1.0

    def __post_init__(self) -> None:
        for name in ("objects", "room_m", "distance_m", "focal", "overlap"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise InputError(f"{name} is {low} to {high}; expected a range from 0 or more, upwards")
        if min(self.size) < MIN_SIDE_PX or self.count < 2 or self.photos_a_scene < 1 or self.photometric < 0:
            raise InputError(f"{self} makes no sense; expected 2 scenes, 1 photo, {MIN_SIDE_PX} px, light of 0 or more")
        if self.room_m[0] < 2 or self.distance_m[0] < _CLEAR_M or not self.focal[0]:
            raise InputError(f"{self} has no room for a camera; expected rooms of 2 m, {_CLEAR_M} m off, and a focal")
        if self.room_m[1] > 20 or self.objects[1] > 30:
            raise InputError(
                f"{self} is too large; expected rooms of up to 20 m with 30 objects, which photos can paper"
            )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SceneView:
    """`image_3HW` float32 in [0, 1]; `camera` is where from; `matrix` its K, where views of photos have theirs."""

    image_3HW: Tensor
    matrix: Floats
    camera: Camera


class Layout(NamedTuple):
    """A scene without its paper: K rectangles, the lamp, what cameras look at, and where from (m and rad)."""

    rectangles_K33: Floats
    room_3: Floats
    lamp_3: Floats
    target_3: Floats
    azimuth_rad: float


class Scenes:
    """Random scenes papered with photos, and random views of them: for `StoredViews` what `Photos` is.

    Every twentieth scene is for validation, and has only photos that HomographyPairs keeps for it, too; all others
    have the other photos. Raises InputError where there is but one photo.
    """

    def __init__(self, photos: Photos, config: SceneConfig | None = None, *, seed: int = 0) -> None:
        self.photos, self.config, self.seed = photos, config or SceneConfig(), seed
        self.problems, self.contents = photos.problems, photos.contents
        self.settings = f"{self.config}, seed {seed}, version {_VERSION}; {photos.settings}"
        if len(photos) < 2:
            raise InputError(f"there are {len(photos)} photos; expected at least 2, as some are for validation")
        about = (_VERSION, photos.digest, self.config, seed)
        self.digest = hashlib.sha256(repr(about).encode()).hexdigest()
        self.layout = functools.lru_cache(4096)(self._layout)
        self.camera = functools.lru_cache(65536)(self._camera)
        self._papered = functools.lru_cache(3)(self._paper)  # some 60 MB each

    def __len__(self) -> int:
        return self.config.count

    def name(self, scene: int) -> str:
        """Return what a message calls a scene."""
        return f"room {scene}"

    def photos_of(self, scene: int) -> list[int]:
        """Which photos it is papered with."""
        held_out = held_out_numbers(len(self))[scene]
        among = np.flatnonzero(held_out_numbers(len(self.photos)) == held_out)
        rng = np.random.default_rng([self.seed, scene, 1])
        return rng.choice(among, min(len(among), self.config.photos_a_scene), replace=False).tolist()

    def view(self, scene: int, number: int, device: torch.device | None = None) -> SceneView:
        """View `number` of a scene."""
        camera = self.camera(scene, number)
        image_3HW = rendering.render(self.layout(scene).rectangles_K33, self._papered(scene), camera, device)
        image_3HW = (image_3HW * min(_EXPOSURE / max(float(image_3HW.mean()), 1e-6), _MAX_GAIN)).clamp(max=1)
        if self.config.photometric:
            rng = np.random.default_rng([self.seed, scene, 3, number])
            image_3HW = recoloured(image_3HW, self.config.photometric, rng)
        return SceneView(image_3HW=image_3HW, matrix=camera.matrix, camera=camera)

    def overlap(self, scene: int, number0: int, number1: int) -> float:
        """Share of the points of a grid in one view that the other one sees; of both directions the lesser."""
        cameras = self.camera(scene, number0), self.camera(scene, number1)
        rectangles_K33, points_N2 = self.layout(scene).rectangles_K33, _grid(self.config.size)
        forth = landing(rectangles_K33, cameras, points_N2, edge_px=0)
        back = landing(rectangles_K33, (cameras[1], cameras[0]), points_N2, edge_px=0)
        return min(float((~one.hidden_N).double().mean()) for one in (forth, back))

    # --- what is where

    def _layout(self, scene: int) -> Layout:
        rng, config = np.random.default_rng([self.seed, scene, 0]), self.config
        room_3 = np.array([rng.uniform(*config.room_m), rng.uniform(2.6, 4.0), rng.uniform(*config.room_m)])
        parts = []
        for wall_33 in placed(box(room_3, inside=True), np.eye(3), (0, -room_3[1] / 2, 0)):
            columns, rows = (max(1, round(float(np.linalg.norm(edge)) / _PANEL_M)) for edge in wall_33[1:])
            parts.append(tiled(wall_33, columns, rows))
        for _ in range(rng.integers(config.objects[0], config.objects[1] + 1)):
            azimuth, radius = rng.uniform(0, 2 * math.pi), 0.32 * math.sqrt(rng.uniform())
            x, z = radius * room_3[0] * math.cos(azimuth), radius * room_3[2] * math.sin(azimuth)
            parts.append(_object(rng, np.array([x, 0, z]), room_3[1]))
        lamp_3 = np.array([0.3, -0.9, 0.3]) * room_3 * [rng.uniform(-1, 1), 1, rng.uniform(-1, 1)]
        target_3 = np.array([rng.uniform(-0.5, 0.5), -rng.uniform(0.6, 1.4), rng.uniform(-0.5, 0.5)])
        return Layout(np.concatenate(parts), room_3, lamp_3, target_3, rng.uniform(0, 2 * math.pi))

    def _camera(self, scene: int, number: int) -> Camera:
        """Round the target, looking at it; of those drawn the first with a free sight, or the one with the freest."""
        rng, layout = np.random.default_rng([self.seed, scene, 2, number]), self.layout(scene)
        best_m, best = -1.0, None
        for _ in range(_TRIES):
            camera = self._any_camera(layout, rng)
            clear_m = _clear_m(layout.rectangles_K33, camera)
            if best is None or clear_m > best_m:
                best_m, best = clear_m, camera
            if clear_m > _CLEAR_M:
                break
        assert best is not None
        return best

    def _any_camera(self, layout: Layout, rng: np.random.Generator) -> Camera:
        config, (width, height) = self.config, self.config.size
        swing = math.radians(config.max_azimuth_deg)
        azimuth, distance_m = layout.azimuth_rad + rng.uniform(-swing, swing), rng.uniform(*config.distance_m)
        offset_3 = distance_m * np.array([math.cos(azimuth), 0, math.sin(azimuth)])
        centre_3 = layout.target_3 + offset_3
        centre_3[1] = -rng.uniform(0.4, layout.room_3[1] - 0.3)
        side_3 = layout.room_3 / 2 - 0.3
        centre_3[[0, 2]] = centre_3[[0, 2]].clip(-side_3[[0, 2]], side_3[[0, 2]])
        aim_3 = layout.target_3 + rng.normal(0, config.aim_m, 3)
        roll = math.radians(rng.uniform(-config.max_roll_deg, config.max_roll_deg))
        rotation_33 = _turn(2, roll) @ _looking(aim_3 - centre_3)
        focal_px = rng.uniform(*config.focal) * max(config.size)
        matrix_33 = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1.0]])
        return Camera(size=config.size, matrix=matrix_33, rotation=rotation_33, translation=-rotation_33 @ centre_3)

    # --- paper

    def _paper(self, scene: int) -> list[list[Tensor]]:
        """A texture for each rectangle."""
        layout, photos = self.layout(scene), self.photos_of(scene)
        rng = np.random.default_rng([self.seed, scene, 4])
        parts = math.ceil(math.sqrt(_SPARE * len(layout.rectangles_K33) / len(photos)))
        pieces = [piece for photo in photos for piece in _pieces(self._photo(photo), parts)]
        pieces = sorted(pieces, key=_detail, reverse=True)[: len(layout.rectangles_K33)]
        rectangles = zip(layout.rectangles_K33, (pieces[i] for i in rng.permutation(len(pieces))), strict=True)
        return [texture_levels(_lit(_cropped(piece, one), one, layout.lamp_3)) for one, piece in rectangles]

    def _photo(self, photo: int) -> Tensor:
        """(3, H, W) float32, 0 to 255."""
        pixels_3HW = read_image(self.photos.files[photo])
        shrink = LONG_SIDE_PX / max(pixels_3HW.shape[1:])
        if shrink < 1:
            size = [max(round(side * shrink), MIN_SIDE_PX) for side in pixels_3HW.shape[1:]]
            pixels_3HW = F.interpolate(pixels_3HW[None], size, mode="bilinear", antialias=True)[0]
        return pixels_3HW * 255


class ScenePairs:
    """Two random views of a scene, with exact labels: a `PairSource`. `held_out`: of the scenes kept for validation.

    `views` are those of `scenes`, see `scene_views`; raises InputError where they are of other ones.
    """

    def __init__(
        self, views: Views, scenes: Scenes, *, max_keypoints: int | None = None, held_out: bool = False
    ) -> None:
        if views.num_photos != len(scenes):
            raise InputError(f"there are views of {views.num_photos} scenes; expected {len(scenes)}: see scene_views")
        if views.per_photo < 2:
            raise InputError(f"there is {views.per_photo} view of each scene; expected 2 or more, to make pairs of")
        self.views, self.scenes, self.max_keypoints = views, scenes, max_keypoints
        self.signature, self.digest = views.signature, views.digest
        self.numbers = np.flatnonzero(held_out_numbers(len(scenes)) == held_out)

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """See PairSource. Of views whose overlap is never as the config says, those that came nearest."""
        pairs, labels = [], []
        scenes = rng.choice(self.numbers, size, replace=size > len(self.numbers)).tolist()
        drawn = [(scene, self._overlapping(scene, rng)) for scene in scenes]
        self.views.prepare([(scene, number) for scene, numbers in drawn for number in numbers])
        for scene, numbers in drawn:
            features = [self.views.features(scene, number)[0] for number in numbers]
            if self.max_keypoints is not None:
                features = [one.top(self.max_keypoints) for one in features]
            points0, points1 = (one.keypoints[0] for one in features)
            camera0, camera1 = (self.scenes.camera(scene, number) for number in numbers)
            rectangles_K33 = self.scenes.layout(scene).rectangles_K33
            landing0 = landing(rectangles_K33, (camera0, camera1), points0)
            landing1 = landing(rectangles_K33, (camera1, camera0), points1)
            pairs.append((features[0], features[1]))
            labels.append(targets(points0, points1, landing0, landing1))
        return stacked(pairs, labels)

    def _overlapping(self, scene: int, rng: np.random.Generator) -> tuple[int, int]:
        low, high = self.scenes.config.overlap
        nearest, least = (0, 1), math.inf
        for _ in range(_TRIES):
            first, second = rng.choice(self.views.per_photo, 2, replace=False).tolist()
            overlap = self.scenes.overlap(scene, first, second)
            off = max(low - overlap, overlap - high, 0)
            if off < least:
                nearest, least = (first, second), off
            if not off:
                break
        return nearest


def scene_views(
    scenes: Scenes,
    extractor: Extractor,
    *,
    folder: Path | str | None = None,
    per_scene: int = 12,
    max_keypoints: int = 512,
    device: torch.device | None = None,
) -> Views:
    """Features of views of the scenes, kept in a folder (`StoredViews`), or drawn each time where there is none."""
    if folder is None:
        place = device or torch.device("cpu")
        return DrawnViews(scenes, extractor, max_keypoints=max_keypoints, device=place)
    return StoredViews(folder, scenes, extractor, per_photo=per_scene, max_keypoints=max_keypoints, device=device)


def _object(rng: np.random.Generator, at_3: Floats, room_height_m: float) -> Floats:
    """A box (6, 3, 3) or the two sides of a poster (2, 3, 3), standing at a point of the floor or in the air."""
    is_box, stands = rng.uniform() < 0.7, rng.uniform() < 0.6
    size_3 = rng.uniform((0.4, 0.4, 0.4), (1.5, 1.8, 1.5)) if is_box else rng.uniform((0.7, 0.7, 0), (1.9, 1.9, 0))
    faces_K33 = box(size_3)[slice(None) if is_box else slice(4, 6)]
    rotation_33 = _turn(1, rng.uniform(-math.pi, math.pi))
    lift_m = size_3[1] / 2
    if not stands:
        rotation_33 = rotation_33 @ _turn(0, rng.uniform(-0.5, 0.5)) @ _turn(2, rng.uniform(-0.5, 0.5))
        lift_m = rng.uniform(0.3, 0.7) * room_height_m
    return placed(faces_K33, rotation_33, at_3 - [0, lift_m, 0])


def _turn(axis: int, angle_rad: float) -> Floats:
    """(3, 3): a rotation about an axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation_33 = np.eye(3)
    rotation_33[first, first] = rotation_33[second, second] = math.cos(angle_rad)
    rotation_33[second, first] = math.sin(angle_rad)
    rotation_33[first, second] = -math.sin(angle_rad)
    return rotation_33


def _looking(along_3: Floats) -> Floats:
    """(3, 3) camera_from_world of a camera that looks along a direction that is not vertical, upright."""
    ahead_3 = along_3 / np.linalg.norm(along_3)
    right_3 = np.cross([0, 1, 0], ahead_3)
    right_3 = right_3 / np.linalg.norm(right_3)
    return np.array([right_3, np.cross(ahead_3, right_3), ahead_3])


@functools.lru_cache(8)
def _grid(size: Shape) -> Tensor:
    """(N, 2) px: points evenly over an image."""
    x, y = ((torch.arange(n, dtype=torch.float64) + 0.5) * side / n - 0.5 for n, side in zip(_GRID, size, strict=True))
    return torch.cartesian_prod(x, y)


def _pieces(photo_3HW: Tensor, parts: int) -> list[Tensor]:
    """A photo in parts x parts pieces that share no pixel, or in fewer where they would be tiny."""
    height, width = (side // min(parts, side) for side in photo_3HW.shape[1:])
    return [
        photo_3HW[:, j * height : (j + 1) * height, i * width : (i + 1) * width]
        for j in range(parts)
        for i in range(parts)
    ]


def _detail(piece_3HW: Tensor) -> float:
    """How much neighbouring pixels differ, 2 px apart so that noise counts less; 0 = blank."""
    grey_HW = F.avg_pool2d(piece_3HW.mean(dim=0, keepdim=True), 2)[0]
    return sum(float(grey_HW.diff(dim=axis).abs().mean()) for axis in (0, 1) if grey_HW.shape[axis] > 1)


def _cropped(piece_3HW: Tensor, rectangle_33: Floats) -> Tensor:
    """The middle of a piece, in the shape of the rectangle."""
    height, width = piece_3HW.shape[1:]
    across_m, down_m = np.linalg.norm(rectangle_33[1:], axis=1)
    per_px = min(width / across_m, height / down_m)
    crop_w, crop_h = (max(int(side_m * per_px), 1) for side_m in (across_m, down_m))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return piece_3HW[:, top : top + crop_h, left : left + crop_w]


def _lit(piece_3HW: Tensor, rectangle_33: Floats, lamp_3: Floats) -> Tensor:
    """By the lamp, whose light falls off, and from all sides alike; between its corners light changes evenly."""
    origin_3, across_3, down_3 = rectangle_33
    corners_43 = origin_3 + np.array([0 * across_3, across_3, down_3, across_3 + down_3])
    normal_3 = np.cross(down_3, across_3)
    normal_3 = normal_3 / np.linalg.norm(normal_3)
    to_lamp_43 = lamp_3 - corners_43
    distance_4 = np.linalg.norm(to_lamp_43, axis=1)
    light_4 = 0.7 + 0.7 * np.maximum(to_lamp_43 @ normal_3 / distance_4, 0) / (1 + (distance_4 / 5) ** 2)
    light_22 = torch.from_numpy(light_4.reshape(1, 1, 2, 2)).to(piece_3HW)
    return piece_3HW * F.interpolate(light_22, piece_3HW.shape[1:], mode="bilinear", align_corners=True)[0]


def _clear_m(rectangles_K33: Floats, camera: Camera) -> float:
    """How far what a camera sees is, but for a tenth of its image; 0 for what it sees from within a box."""
    points_N2 = _grid(camera.size)
    from_front_N = rendering.cast(rectangles_K33, camera, points_N2).inverse_depth_N
    from_behind_N = rendering.cast(rectangles_K33[:, [0, 2, 1]], camera, points_N2).inverse_depth_N
    is_within_N = from_behind_N > from_front_N * 1.001  # the two sides of a poster are equally near
    return float(torch.where(is_within_N, 0, 1 / from_front_N).quantile(0.1))
