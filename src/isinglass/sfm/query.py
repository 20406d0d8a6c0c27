"""One image on its way to a pose in a map: its matches with the map's images, and what they agree on.

The map's images are tried in rounds: those most alike first, then those that see the points of the best pose so far
(co-visibility), be it believed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isinglass.errors import InputError
from isinglass.geometry.two_view import Floats
from isinglass.sfm.absolute_pose import AbsolutePose, Focal, estimate_absolute_pose, reprojection_errors
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import pycolmap_module
from isinglass.sfm.landmarks import Landmarks
from isinglass.sfm.options import GUESSED_FOCAL
from isinglass.types import Features

CameraFrom = Literal["given", "exif", "map", "guessed"]
_FEW, _LEAST_SHARE = 30, 0.3  # fewer keypoints than that must be this share of those that were matched
_LEAST_SUPPORT = 0.2  # of the matches of the images that support a pose, those that agree with it
_RIVAL = 0.5  # another pose with so many of the best one's inliers makes the place ambiguous
_APART, _APART_DEG = 0.1, 10.0  # poses that differ by more are two: of the median distance of points, or in direction
_WORSE = 1.2  # residuals, squared, of the camera believed over those with a free focal length: it is another camera
_CLUSTERS = 4  # groups of images that are tried alone


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Intrinsics:
    """A query's camera (`pycolmap.Camera`), where it is from, and how far it is believed."""

    camera: Any
    source: CameraFrom
    focal: Focal


def intrinsics(given: Any, exif: Any, landmarks: Landmarks, size: tuple[int, int]) -> Intrinsics:
    """Of an image of `size`: as given; as its file says; as the map's photos of that size; else guessed.

    given, exif  `pycolmap.Camera` or None

    The map's camera is the better one (with distortion) where it agrees with the file to 10 percent.
    """
    if given is not None:
        return Intrinsics(camera=given, source="given", focal="known")
    known = landmarks.camera_of_size(size)
    if exif is not None:
        focal_px = float(exif.mean_focal_length())
        if known is None or known[0].is_spherical() or abs(known[0].mean_focal_length() / focal_px - 1) > 0.1:
            return Intrinsics(camera=exif, source="exif", focal="refined")
    if known is not None:
        return Intrinsics(camera=known[0], source="map", focal="known" if known[1] else "refined")
    return Intrinsics(camera=guessed(size), source="guessed", focal="unknown")


def guessed(size: tuple[int, int]) -> Any:
    """COLMAP's guess of the camera of an image of (width, height)."""
    return pycolmap_module().Camera.create_from_model_name(0, "SIMPLE_RADIAL", GUESSED_FOCAL * max(size), *size)


@dataclass(eq=False, kw_only=True)
class Query:
    """An image, what it has been matched with, and the best pose so far.

    likely      images of the map, most alike first
    matched     of each image that it was matched with (K, 2) int64, (keypoint, row of the point) of each match
    pose        None before the first `solve`; source: where its camera is from
    """

    name: str
    features: Features
    intrinsics: Intrinsics
    likely: list[int]
    threshold_px: float | None = None
    seed: int = 0
    matched: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    pose: AbsolutePose | None = None
    source: CameraFrom = "guessed"
    rounds: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    _matches: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # of `pose`

    @property
    def success(self) -> bool:
        """Whether there is a pose that is believed."""
        return self.pose is not None and self.pose.cam_from_world is not None

    def next_images(self, landmarks: Landmarks, first: int, more: int) -> list[int]:
        """Which images to match next.

        `more` of those that see most of the points of the pose so far; and unless that is believed, the next `first`
        likely ones.
        """
        self.rounds += 1
        left = [image for image in self.likely if image not in self.matched]
        chosen = [] if self.success else left[:first]
        if self.pose is not None and self.pose.num_inliers:
            seen_I = landmarks.seen_by(self._matches[self.pose.inliers, 1])
            seen_I[[*self.matched, *chosen]] = 0
            best = np.argsort(-seen_I, kind="stable")[:more]
            chosen += [int(image) for image in best if seen_I[image]]
        return chosen

    def solve(self, landmarks: Landmarks) -> None:
        """The best pose for all matches so far; where none is believed, for those of images that see the same."""
        everything = self._joined(list(self.matched))
        candidates = [(*self._estimated(landmarks, everything), everything)]
        if candidates[0][0].cam_from_world is None:
            groups = landmarks.clusters(list(self.matched)) if len(self.matched) > 1 else []
            tables = sorted((self._joined(group) for group in groups), key=len, reverse=True)
            for table in tables[:_CLUSTERS] if len(tables) > 1 else []:
                candidates.append((*self._estimated(landmarks, table), table))
        pose, self.source, self._matches = max(
            candidates, key=lambda one: (one[0].cam_from_world is not None, one[0].num_inliers)
        )
        self.pose = pose
        reason = self._doubt(landmarks, everything) if self.success else ""
        if reason:
            self.pose = replace(pose, cam_from_world=None, covariance=None, reason=reason)

    def counts(self) -> tuple[int, int]:
        """Keypoints that have a match with a point, and those of them that agree with the pose."""
        agreeing = self._matches[self.pose.inliers] if self.pose is not None else self._matches[:0]
        return len(np.unique(self._joined(list(self.matched))[:, 0])), len(np.unique(agreeing[:, 0]))

    def inliers_by_image(self) -> dict[int, int]:
        """Of each image that it was matched with, how many of their matches agree with the pose; most first."""
        agreeing = self._matches[self.pose.inliers] if self.pose is not None else self._matches[:0]
        known = {(int(keypoint), int(row)) for keypoint, row in agreeing}
        counts = {i: sum((int(k), int(row)) in known for k, row in table) for i, table in self.matched.items()}
        return dict(sorted(counts.items(), key=lambda one: -one[1]))

    def _joined(self, images: Sequence[int]) -> NDArray[np.int64]:
        tables = [self.matched[image] for image in images]
        return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *tables]), axis=0)

    def _points(self, landmarks: Landmarks, table_K2: NDArray[np.int64]) -> tuple[Floats, Floats]:
        pixels_N2 = self.features.keypoints[0].double().cpu().numpy()
        return pixels_N2[table_K2[:, 0]], landmarks.xyz[table_K2[:, 1]]

    def _estimated(self, landmarks: Landmarks, table_K2: NDArray[np.int64]) -> tuple[AbsolutePose, CameraFrom]:
        """With the camera as it is believed; where nobody gave it, a free focal length may replace it."""
        pixels_K2, points_K3 = self._points(landmarks, table_K2)
        about = self.intrinsics
        best = estimate_absolute_pose(
            pixels_K2, points_K3, about.camera, focal=about.focal, threshold_px=self.threshold_px, seed=self.seed
        )
        if about.source in ("given", "guessed"):
            return best, about.source
        other = estimate_absolute_pose(
            pixels_K2, points_K3, about.camera, focal="unknown", threshold_px=self.threshold_px, seed=self.seed
        )
        if other.cam_from_world is None:
            return best, about.source
        before, after = (_cost(one, pixels_K2, points_K3) for one in (best, other))
        return (other, "guessed") if before > _WORSE * after else (best, about.source)

    def _doubt(self, landmarks: Landmarks, table_K2: NDArray[np.int64]) -> str:
        """Why a pose is not believed that its matches determine; "" where it is.

        Wrong matches are not as random as chance has it: those of one image lie alike, and a few may agree.
        """
        assert self.pose is not None
        matches, inliers = self.counts()
        of = [(count, len(self.matched[image])) for image, count in self.inliers_by_image().items()]
        support = [one for one in of if 4 * one[0] >= of[0][0]]
        share = sum(count for count, _ in support) / max(sum(total for _, total in support), 1)
        if (inliers < _FEW and inliers < _LEAST_SHARE * matches) or share < _LEAST_SUPPORT:
            return f"only {inliers} of {matches} matched keypoints agree on a pose"
        if self._has_rival(landmarks, self.pose, table_K2):
            return f"two places explain the image: {inliers} matched keypoints agree on one, others on another"
        return ""

    def _has_rival(self, landmarks: Landmarks, pose: AbsolutePose, table_K2: NDArray[np.int64]) -> bool:
        """Whether the matches that do not agree with the pose agree on another one, nearly as well."""
        assert pose.cam_from_world is not None
        agreeing = {(int(keypoint), int(row)) for keypoint, row in self._matches[pose.inliers]}
        rest_K2 = np.array([one for one in table_K2 if (int(one[0]), int(one[1])) not in agreeing]).reshape(-1, 2)
        if len(rest_K2) < _RIVAL * pose.num_inliers:
            return False
        pixels_K2, points_K3 = self._points(landmarks, rest_K2)
        rival = estimate_absolute_pose(
            pixels_K2, points_K3, pose.camera, threshold_px=pose.threshold_px, seed=self.seed
        )
        if rival.cam_from_world is None or rival.num_inliers < _RIVAL * pose.num_inliers:
            return False
        _, inlier_points_K3 = self._points(landmarks, self._matches[pose.inliers])
        return differ(pose.cam_from_world, rival.cam_from_world, inlier_points_K3)


def _cost(pose: AbsolutePose, pixels: Floats, points: Floats) -> float:
    """Mean squared error of all matches, of outliers that of the threshold; inf without a pose."""
    if pose.cam_from_world is None:
        return np.inf
    return float((np.minimum(reprojection_errors(pose, pixels, points), pose.threshold_px) ** 2).mean())


def differ(pose0: Floats, pose1: Floats, points: Floats) -> bool:
    """Whether two poses (3, 4) are two places, by the distance of the points (K, 3) that the first one sees."""
    centre0, centre1 = (-pose[:, :3].T @ pose[:, 3] for pose in (pose0, pose1))
    distance = float(np.median(np.linalg.norm(points - centre0, axis=1)))
    cosine = (np.trace(pose0[:, :3] @ pose1[:, :3].T) - 1) / 2
    turned_deg = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return bool(np.linalg.norm(centre0 - centre1) > _APART * distance or turned_deg > _APART_DEG)


def exif_camera(photo: Path, size: tuple[int, int]) -> Any:
    """The camera that a photo's file names, None where it names no focal length or is of another size."""
    try:
        ((camera, _),) = cameras_of(photo.parent, [photo.name], CameraOptions(share="single"))
    except InputError:
        return None
    return camera if camera.has_prior_focal_length and (camera.width, camera.height) == size else None
