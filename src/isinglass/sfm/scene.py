"""What a viewer shows of a map: a model's points and cameras, the pairs of its images, and what is known of a pair."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from isinglass.datasets.pairs import Floats
from isinglass.datasets.posed import COLMAP_CENTRE
from isinglass.errors import InputError
from isinglass.files import PathLike, read_signed_json
from isinglass.images import load, opened
from isinglass.sfm.colmap import Project
from isinglass.sfm.reconstruct import read_model

MOST_LINES = 120
_GREEN, _RED, _GREY = (0, 200, 90), (255, 59, 78), (52, 56, 61)
_FOLDERS_UP = 3  # that photos and database are looked for in: map/model, project/sparse/0


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneCamera:
    """A registered image: its name, `world_from_cam` (3, 4), vertical field of view, and width over height."""

    name: str
    world_from_cam: Floats
    fov_rad: float
    aspect: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenePair:
    """Matches of a pair, (M, 2) px of the photos as stored; `inliers` (M,) are those of the geometry found."""

    points0: Floats
    points1: Floats
    inliers: np.ndarray
    text: str


class Scene:
    """A map's folder, or one of a COLMAP model alone, as arrays.

    points_P3     float64, in coordinates of the model
    colours_P3    uint8
    errors_px_P   mean reprojection error; NaN = not known
    lengths_P     images that see the point
    cameras       `SceneCamera`s by name of the image
    weights       of pairs (i, j) of cameras with i < j: how many matches were verified, or points they have in common
    weights_are   "verified matches" or "common points"
    photos        folder of the photos; None = not known

    model   a folder that `isinglass map` wrote, or of cameras, images and points3D
    photos  folder that the names of images are relative to; that of map.json, or a folder "images" beside the model

    A database beside the model ("database.db") gives verified matches. Raises InputError where there is no model,
    MissingExtra without pycolmap.
    """

    def __init__(self, model: PathLike, photos: PathLike | None = None) -> None:
        folder = Path(model)
        if not folder.is_dir():
            raise InputError(f"there is no folder {str(folder)!r}; expected a map or a model of COLMAP. Check the path")
        inner = folder / "model"
        self.folder = inner if inner.is_dir() else folder
        self._model = read_model(self.folder)
        self.photos = _photos_of(folder, photos)
        self._lock = threading.Lock()
        self._project = _project_of(folder)
        images = {image.name: image for image in self._model.images.values() if image.has_pose}
        if not images:
            raise InputError(f"the model in {str(self.folder)!r} has no image with a pose: nothing to look at")
        self.cameras = [_camera(images[name]) for name in sorted(images)]
        self._images = [images[one.name] for one in self.cameras]
        self.index = {one.name: i for i, one in enumerate(self.cameras)}
        points = list(self._model.points3D.values())
        self.points_P3 = np.array([one.xyz for one in points], np.float64).reshape(-1, 3)
        self.colours_P3 = np.array([one.color for one in points], np.uint8).reshape(-1, 3)
        self.errors_px_P = np.array([one.error if one.has_error() else np.nan for one in points], np.float64)
        self.lengths_P = np.array([one.track.length() for one in points], np.int64)
        self.weights_are, self.weights = "common points", self._common_points(points)
        if self._project is not None:
            pairs = {self._pair(*pair): count for pair, count in self._project.inliers.items() if count}
            self.weights_are, self.weights = "verified matches", {pair: n for pair, n in pairs.items() if pair}

    def close(self) -> None:
        """Let go of the database."""
        if self._project is not None:
            self._project.close()

    def neighbours(self, i: int) -> list[tuple[int, int]]:
        """(camera, weight) of those that share a pair with camera `i`, the heaviest first."""
        found = [(b if a == i else a, weight) for (a, b), weight in self.weights.items() if i in (a, b)]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def matches(self, i: int, j: int) -> ScenePair:
        """What is known of a pair of cameras: its matches if there is a database, else the points in common."""
        names = self.cameras[i].name, self.cameras[j].name
        if self._project is not None and set(names) <= set(self._project.names):
            with self._lock:  # callbacks come from several threads
                return self._matched(self._project, *names)
        points0, points1 = self._seen_by_both(i, j)
        return ScenePair(
            points0=points0,
            points1=points1,
            inliers=np.ones(len(points0), bool),
            text=f"{len(points0)} points in common",
        )

    def photo(self, i: int, longest_px: int) -> Image.Image | None:
        """RGB, its longer side at most `longest_px`; None where it cannot be read. Pixels as stored, not turned."""
        if self.photos is None:
            return None
        try:
            with opened(self.photos / self.cameras[i].name) as image:
                image.draft("RGB", (longest_px, longest_px))
                picture = load(image, self.cameras[i].name).convert("RGB")
        except Exception:  # whatever the decoders raise: the map can be looked at without that photo
            return None
        picture.thumbnail((longest_px, longest_px))
        return picture

    def picture(self, i: int, j: int, height_px: int = 480) -> tuple[Image.Image, str]:
        """Both photos side by side with lines for the matches, and what they are in words.

        Green: verified; red: matched, but not verified. At most `MOST_LINES` are drawn, verified ones last.
        """
        pair = self.matches(i, j)
        views = [self._view(one, height_px) for one in (i, j)]
        canvas = Image.new("RGB", (sum(view.width for view, _ in views) + 4, height_px), (255, 255, 255))
        canvas.paste(views[0][0], (0, 0))
        canvas.paste(views[1][0], (views[0][0].width + 4, 0))
        draw = ImageDraw.Draw(canvas)
        starts = (pair.points0 + 0.5) * views[0][1]  # Pillow's lines have 0 at the corner of the first pixel
        ends = (pair.points1 + 0.5) * views[1][1] + np.array([views[0][0].width + 4, 0])
        for chosen, colour in ((~pair.inliers, _RED), (pair.inliers, _GREEN)):
            index = np.flatnonzero(chosen)
            budget = max(MOST_LINES * len(index) // max(len(chosen), 1), 20)
            for k in index[np.linspace(0, len(index) - 1, min(len(index), budget)).astype(int)] if len(index) else []:
                draw.line([*starts[k], *ends[k]], fill=colour, width=1)
                for x, y in (starts[k], ends[k]):
                    draw.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour)
        return canvas, pair.text

    # --- of the model

    def _view(self, i: int, height_px: int) -> tuple[Image.Image, Floats]:
        """A photo of that height, grey where there is none, and its scale in x and y."""
        camera = self._images[i].camera
        size = max(1, round(height_px * camera.width / camera.height)), height_px
        photo = self.photo(i, 2 * max(size))
        picture = Image.new("RGB", size, _GREY) if photo is None else photo.resize(size)
        return picture, np.array([size[0] / camera.width, size[1] / camera.height])

    def _pair(self, name0: str, name1: str) -> tuple[int, int] | None:
        if name0 not in self.index or name1 not in self.index:
            return None
        i, j = sorted((self.index[name0], self.index[name1]))
        return i, j

    def _matched(self, project: Project, name0: str, name1: str) -> ScenePair:
        pairs = project.matches(name0, name1)
        verified = {tuple(pair) for pair in project.matches(name0, name1, verified=True).tolist()}
        inliers = np.array([tuple(pair) in verified for pair in pairs.tolist()], bool)
        points = [project.keypoints(name)[pairs[:, k]] for k, name in enumerate((name0, name1))]
        text = f"{int(inliers.sum())} verified of {len(pairs)} matches"
        return ScenePair(points0=points[0], points1=points[1], inliers=inliers, text=text)

    def _seen_by_both(self, i: int, j: int) -> tuple[Floats, Floats]:
        seen = []
        for image in (self._images[i], self._images[j]):
            seen.append({one.point3D_id: one.xy for one in image.points2D if one.has_point3D()})
        both = sorted(set(seen[0]) & set(seen[1]))
        points0, points1 = (np.array([one[p] for p in both], np.float64).reshape(-1, 2) for one in seen)
        return points0 - COLMAP_CENTRE, points1 - COLMAP_CENTRE

    def _common_points(self, points: list[Any]) -> dict[tuple[int, int], int]:
        place = {image.image_id: i for i, image in enumerate(self._images)}
        counts: dict[int, int] = {}
        for keys in _pair_keys(points, place):
            found, times = np.unique(keys, return_counts=True)
            for key, count in zip(found.tolist(), times.tolist(), strict=True):
                counts[key] = counts.get(key, 0) + count
        return {divmod(key, len(place)): count for key, count in sorted(counts.items())}


class Layout:
    """Where things are: coordinates of the model less `origin`, so that they fit into float32.

    origin       (3,) the middle of the points; radius: of most of them around it, and of all cameras
    centres_C3   of the cameras
    up           mean up of the photos; position: of the eye, behind the cameras and above them
    """

    def __init__(self, scene: Scene) -> None:
        poses_C34 = np.stack([camera.world_from_cam for camera in scene.cameras])
        all_N3 = np.concatenate([scene.points_P3, poses_C34[:, :, 3]])
        self.origin = np.median(all_N3, axis=0)
        self.centres_C3 = poses_C34[:, :, 3] - self.origin
        away_N = np.linalg.norm(all_N3 - self.origin, axis=1)
        self.radius = float(max(np.quantile(away_N, 0.9), np.linalg.norm(self.centres_C3, axis=1).max(), 1e-6))
        self.up = _unit(-poses_C34[:, :, 1].mean(axis=0), np.array([0.0, -1.0, 0.0]))
        ahead = poses_C34[:, :, 2].mean(axis=0)
        level = _unit(ahead - (ahead @ self.up) * self.up, np.cross(self.up, [1.0, 0.3, 0.2]))
        self.position = self.radius * (-2.0 * level + 1.0 * self.up)
        self.point_size = 0.006 * self.radius
        self.camera_size = self._camera_size()

    def _camera_size(self) -> float:
        some = self.centres_C3[:: max(1, len(self.centres_C3) // 500)]
        distance = np.linalg.norm(some[:, None] - self.centres_C3[None], axis=2)
        distance[distance < 1e-9 * self.radius] = np.inf
        nearest = distance.min(axis=1)
        nearest = nearest[np.isfinite(nearest)]
        typical = float(np.median(nearest)) if len(nearest) else self.radius
        return float(np.clip(0.35 * typical, 0.02 * self.radius, 0.1 * self.radius))


def angle_to_segments(origin: Floats, direction: Floats, start_E3: Floats, stop_E3: Floats) -> Floats:
    """(E,) rad, the least angle, seen from `origin`, between a ray and each segment; pi = it is behind."""
    direction = direction / np.linalg.norm(direction)
    ends_2E3 = np.stack([start_E3, stop_E3]) - origin
    least = 1e-6 * np.linalg.norm(ends_2E3, axis=2).max(axis=0)
    depth_2E = ends_2E3 @ direction
    behind_E = (depth_2E < least).all(axis=0)
    span_E3 = ends_2E3[1] - ends_2E3[0]
    for k in (0, 1):  # what is behind the eye is cut off
        cut_E = (depth_2E[k] < least) & ~behind_E
        share_E = (least - depth_2E[k])[cut_E] / (depth_2E[1] - depth_2E[0])[cut_E]
        ends_2E3[k, cut_E] += share_E[:, None] * span_E3[cut_E]
    depth_2E = np.where(behind_E, 1.0, np.maximum(ends_2E3 @ direction, least + 1e-300))
    seen_2E3 = ends_2E3 / depth_2E[..., None] - direction  # in the plane before the eye, where the ray is at 0
    span_E3 = seen_2E3[1] - seen_2E3[0]
    length2_E = np.maximum((span_E3**2).sum(axis=1), 1e-300)
    share_E = np.clip(-(seen_2E3[0] * span_E3).sum(axis=1) / length2_E, 0, 1)
    away_E = np.linalg.norm(seen_2E3[0] + share_E[:, None] * span_E3, axis=1)
    return np.where(behind_E, np.pi, np.arctan(away_E))


def _unit(vector: Floats, otherwise: Floats) -> Floats:
    length = np.linalg.norm(vector)
    vector = vector if length > 1e-6 else otherwise
    return vector / np.linalg.norm(vector)


def _pair_keys(points: list[Any], place: dict[int, int], chunk: int = 20_000) -> Iterator[np.ndarray]:
    """i * len(place) + j of each pair of cameras i < j that sees a point, for runs of points."""
    keys: list[np.ndarray] = []
    for number, point in enumerate(points, start=1):
        views = np.unique([place[one.image_id] for one in point.track.elements if one.image_id in place])
        first, second = np.triu_indices(len(views), 1)
        keys.append(views[first] * len(place) + views[second])
        if number % chunk == 0:
            yield np.concatenate(keys)
            keys = []
    if keys:
        yield np.concatenate(keys)


def _camera(image: Any) -> SceneCamera:
    camera = image.camera
    focal = camera.focal_length_y if len(camera.focal_length_idxs()) > 1 else camera.mean_focal_length()
    return SceneCamera(
        name=image.name,
        world_from_cam=np.array(image.cam_from_world().inverse().matrix()),
        fov_rad=float(2 * np.arctan2(camera.height / 2, focal)),
        aspect=camera.width / camera.height,
    )


def _around(folder: Path) -> list[Path]:
    """The folder and those above it, which photos and database may be in."""
    folder = folder.resolve()
    return [folder, *list(folder.parents)[: _FOLDERS_UP - 1]]


def _photos_of(folder: Path, photos: PathLike | None) -> Path | None:
    if photos is not None:
        if not Path(photos).is_dir():
            raise InputError(f"there is no folder {str(photos)!r}; expected one of photos. Check the path")
        return Path(photos)
    for place in _around(folder):
        told = read_signed_json(place / "map.json").get("photos") if (place / "map.json").is_file() else None
        for found in (Path(told) if isinstance(told, str) else None, place / "images"):
            if found is not None and found.is_dir():
                return found
    return None


def _project_of(folder: Path) -> Project | None:
    for place in _around(folder):
        if (place / "database.db").is_file():
            try:
                return Project(place / "database.db")
            except InputError:
                return None
    return None
