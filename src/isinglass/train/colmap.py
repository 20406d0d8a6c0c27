"""Pairs whose truth COLMAP found: the user's own photos, by a map of theirs.

Files of COLMAP have (0.5, 0.5) at the centre of the top-left pixel; here they are read, and it is (0, 0) from then on.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isinglass.datasets.layout import PathLike, existing_folder
from isinglass.datasets.pairs import Floats
from isinglass.datasets.posed import COLMAP_CENTRE
from isinglass.errors import InputError
from isinglass.files.colmap_model import read_colmap_model
from isinglass.train.batch import IGNORED, UNMATCHABLE, PairBatch
from isinglass.train.posed import (
    OVERLAP,
    PairSampler,
    StoredFeatures,
    Tell,
    digest_of,
    size_of,
    split_by_time,
)

WITHIN_PX = 2.0
COMMON_POINTS = 20
_CHUNK = 256  # keypoints that are held against all observations at once
_NO_POINT = -1


class ColmapPairs:
    """A `PairSource` of photos and a COLMAP model of them, without depth.

    A keypoint has the 3-D point whose observation is nearest, and at most `within_px` away, as the point's projection
    must be, too; of several keypoints the nearest has it. Keypoints of one point match; one whose point projects
    outside the other photo is unmatchable; all others are ignored, as a map says nothing of them.

    model          folder that COLMAP wrote (cameras, images, points3D), or a `pycolmap.Reconstruction`
    photos         folder that the names of its images are relative to
    common_points  that pairs have at least
    overlap        range, drawn evenly, of the points in common as a share of those of the photo with less
    held_out       pairs of the last tenth of the photos by name, for validation; else of the others

    Photos that cannot be used are left out, with the reason in `problems`. Raises InputError where the model cannot be
    read or no pair can be drawn, MissingExtra without pycolmap.
    """

    def __init__(
        self,
        model: Any,
        photos: PathLike,
        features: StoredFeatures,
        *,
        common_points: int = COMMON_POINTS,
        overlap: tuple[float, float] = OVERLAP,
        within_px: float = WITHIN_PX,
        held_out: bool = False,
        tell: Tell = lambda done, of: None,
    ) -> None:
        self.features, self.signature, self.within_px = features, features.signature, within_px
        mapped, self.points_Q3, self.problems = _read_model(model, existing_folder(photos, "photos"), within_px)
        mapped = [mapped[i] for i in split_by_time(len(mapped), held_out=held_out)]
        self.problems |= features.fill([one.file for one in mapped], tell)
        self.photos = [one for one in mapped if str(one.file) not in self.problems]
        self._points: dict[int, np.ndarray] = {}
        settings = common_points, overlap, within_px
        self.digest = digest_of([one.told(features) for one in self.photos], self._told_points(), settings)
        self.sampler = PairSampler(_overlap(self.photos, len(self.points_Q3), common_points), overlap, str(photos))

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """See PairSource."""
        return self.sampler.batch(size, rng, lambda i: self.features.get(self.photos[i].file), self.targets)

    def targets(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """(M,) and (N,) of the keypoints of two photos, see `PairBatch.target_B2N`."""
        point_M, point_N = self.points_of(i), self.points_of(j)
        target_M, target_N = self._without_matches(point_M, j), self._without_matches(point_N, i)
        _, row, column = np.intersect1d(
            np.where(point_M == _NO_POINT, -1, point_M),
            np.where(point_N == _NO_POINT, -2, point_N),
            return_indices=True,
        )
        target_M[row], target_N[column] = column, row
        return torch.from_numpy(target_M), torch.from_numpy(target_N)

    def points_of(self, i: int) -> np.ndarray:
        """(N,) int64, which row of `points_Q3` each keypoint of a photo sees; -1 = not known."""
        if i not in self._points:
            photo = self.photos[i]
            keypoints_N2 = self.features.get(photo.file).keypoints[0].double().numpy()
            self._points[i] = _assigned(keypoints_N2, photo.observed_M2, photo.point_M, self.within_px)
        return self._points[i]

    def _without_matches(self, point_N: np.ndarray, other: int) -> np.ndarray:
        target_N = np.full(len(point_N), IGNORED, np.int64)
        known_N = point_N != _NO_POINT
        photo = self.photos[other]
        landed_K2 = photo.project(self.points_Q3[point_N[known_N]])
        inside_K = ((landed_K2 >= -0.5) & (landed_K2 < np.array(photo.size) - 0.5)).all(axis=1)  # NaN is behind it
        target_N[known_N] = np.where(inside_K, IGNORED, UNMATCHABLE)
        return target_N

    def _told_points(self) -> str:
        return digest_of(self.points_Q3.tobytes())


# ---- reading a model


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Mapped:
    """A photo of a map.

    observed_M2, point_M  px where it observes points of the map, and which they are
    project               points (K, 3) of the world to (K, 2) px; NaN behind the camera
    """

    file: Path
    size: tuple[int, int]
    observed_M2: Floats
    point_M: np.ndarray
    project: Callable[[Floats], Floats]

    def told(self, features: StoredFeatures) -> tuple[object, ...]:
        """What its pairs follow from, beside the points."""
        return features.key(self.file), digest_of(self.observed_M2.tobytes(), self.point_M.tobytes())


def _read_model(model: Any, photos: Path, within_px: float) -> tuple[list[_Mapped], Floats, dict[str, str]]:
    """Photos by name; points (Q, 3); what is wrong with photos that are left out."""
    if isinstance(model, str | os.PathLike):
        model = read_colmap_model(model)
    ids = sorted(model.points3D)
    points_Q3 = np.array([model.points3D[one].xyz for one in ids], np.float64).reshape(-1, 3)
    rows = {one: row for row, one in enumerate(ids)}
    mapped, problems = [], {}
    for image in sorted((one for one in model.images.values() if one.has_pose), key=lambda one: one.name):
        try:
            mapped.append(_mapped(image, photos / image.name, rows, points_Q3, within_px))
        except InputError as error:
            problems[str(photos / image.name)] = str(error)
    return mapped, points_Q3, problems


def _mapped(image: Any, file: Path, rows: dict[int, int], points_Q3: Floats, within_px: float) -> _Mapped:
    """Raises InputError where the photo is missing or has another size than its camera."""
    size = size_of(file)
    camera = copy.copy(image.camera)  # that one is the model's, and goes when the model does
    cam_from_world = np.array(image.cam_from_world().matrix())
    if size != (camera.width, camera.height):
        raise InputError(
            f"{str(file)!r} is {size[0]} x {size[1]} px; expected {camera.width} x {camera.height} as in the map. Give "
            "the photos that the map was made of"
        )

    def project(points_K3: Floats) -> Floats:
        local_K3 = points_K3 @ cam_from_world[:, :3].T + cam_from_world[:, 3]
        landed_K2 = np.full((len(local_K3), 2), np.nan)
        if (ahead_K := local_K3[:, 2] > 0).any():
            landed_K2[ahead_K] = camera.img_from_cam(local_K3[ahead_K])
        return landed_K2 - COLMAP_CENTRE

    observations = [one for one in image.points2D if one.has_point3D()]
    observed_M2 = np.array([one.xy for one in observations], np.float64).reshape(-1, 2) - COLMAP_CENTRE
    point_M = np.array([rows[one.point3D_id] for one in observations], np.int64)
    good_M = np.linalg.norm(project(points_Q3[point_M]) - observed_M2, axis=1) <= within_px  # not where NaN
    return _Mapped(file=file, size=size, observed_M2=observed_M2[good_M], point_M=point_M[good_M], project=project)


def _assigned(keypoints_N2: Floats, observed_M2: Floats, point_M: np.ndarray, within_px: float) -> np.ndarray:
    """(N,) the point of each keypoint, or _NO_POINT; no point twice."""
    point_N = np.full(len(keypoints_N2), _NO_POINT, np.int64)
    if not len(observed_M2):
        return point_N
    nearest_N, distance_N = np.zeros(len(point_N), np.int64), np.zeros(len(point_N))
    for start in range(0, len(point_N), _CHUNK):
        part = slice(start, start + _CHUNK)
        distance_NM = np.linalg.norm(keypoints_N2[part, None] - observed_M2, axis=2)
        nearest_N[part], distance_N[part] = distance_NM.argmin(axis=1), distance_NM.min(axis=1)
    for n in np.argsort(-distance_N, kind="stable"):  # the nearest come last, and so have it
        if distance_N[n] <= within_px:
            point_N[point_N == point_M[nearest_N[n]]] = _NO_POINT
            point_N[n] = point_M[nearest_N[n]]
    return point_N


def _overlap(photos: Sequence[_Mapped], num_points: int, common_points: int) -> Floats:
    """(N, N) points in common, as a share of those of the photo with less; NaN under `common_points`."""
    common_NN = np.zeros((len(photos), len(photos)))
    tracks: list[list[int]] = [[] for _ in range(num_points)]
    for i, photo in enumerate(photos):
        for point in np.unique(photo.point_M):
            tracks[point].append(i)
    for track in tracks:
        common_NN[np.ix_(track, track)] += 1
    observed_N = common_NN.diagonal()
    share_NN = common_NN / np.maximum(np.minimum(observed_N[:, None], observed_N), 1)
    return np.where(common_NN >= common_points, share_NN, np.nan)


# ---- MegaDepth
