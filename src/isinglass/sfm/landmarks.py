"""A COLMAP model as arrays: which point of the map each keypoint of each image sees, and which images share points.

Legend: I images, Q points, N keypoints of an image. Pixels are ours, (0, 0) the centre of the top-left one; cameras
are COLMAP's, as in its files.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.geometry.two_view import Floats
from isinglass.sfm.colmap import COLMAP_CENTRE, pycolmap_module
from isinglass.sfm.reconstruct import read_model

NO_POINT = -1
_SAME_PX = 0.01  # keypoints nearer than that, all of an image, are those that the model was made of
_CHUNK = 256  # keypoints that are held against all observations at once
_SIMILAR_FOCAL = 0.05  # cameras of one size whose focal lengths differ by no more are of one make

Ints = NDArray[np.int32]


class Landmarks:
    """The registered images of a model and its points.

    names           of the images, sorted; the arrays below are in this order
    cam_from_world  (I, 3, 4) float64
    centres         (I, 3) of the cameras, in the map's frame
    cameras         `pycolmap.Camera` of each image
    xyz             (Q, 3) float64
    keypoints       of each image (N, 2) float64 px, as the model has them
    rows            of each image (N,) int32, which of the points a keypoint sees, -1 = none

    Raises InputError for a model without images or points.
    """

    def __init__(self, model: Any) -> None:
        images = sorted((one for one in model.images.values() if one.has_pose), key=lambda one: one.name)
        if not images or not model.num_points3D():
            raise InputError(
                f"the model has {len(images)} registered images and {model.num_points3D()} points; expected some of "
                "both. Map more photos, that overlap more"
            )
        row_of = {point: row for row, point in enumerate(model.points3D)}
        self.names = [one.name for one in images]
        self.place = {name: i for i, name in enumerate(self.names)}
        self.cam_from_world = np.stack([one.cam_from_world().matrix() for one in images])
        self.centres = -np.einsum("iba,ib->ia", self.cam_from_world[:, :, :3], self.cam_from_world[:, :, 3])
        cameras = {number: copy.copy(camera) for number, camera in model.cameras.items()}
        self.cameras = [cameras[one.camera_id] for one in images]
        self.xyz = np.stack([point.xyz for point in model.points3D.values()])
        self.keypoints: list[Floats] = []
        self.rows: list[Ints] = []
        unit = pycolmap_module().Camera.create_from_model_name(0, "SIMPLE_PINHOLE", 1.0, 0, 0)  # pixels as they are
        for one in images:
            rows = [row_of.get(point.point3D_id, NO_POINT) for point in one.points2D]
            self.rows.append(np.array(rows, np.int32))
            self.keypoints.append(np.asarray(unit.cam_from_img(one.points2D), np.float64) - COLMAP_CENTRE)
        pairs = [np.unique(np.column_stack([rows, np.full_like(rows, i)]), axis=0) for i, rows in enumerate(self.rows)]
        table = np.concatenate(pairs)
        table = table[table[:, 0] != NO_POINT]
        table = table[np.argsort(table[:, 0], kind="stable")]
        self._seen_by = np.ascontiguousarray(table[:, 1])
        self._start = np.searchsorted(table[:, 0], np.arange(len(self.xyz) + 1))

    @classmethod
    def read(cls, folder: PathLike) -> Landmarks:
        """Of a folder that COLMAP wrote. Raises InputError where it cannot be read, MissingExtra without pycolmap."""
        return cls(read_model(folder))

    def __len__(self) -> int:
        return len(self.names)

    def seen_by(self, rows: ArrayLike) -> NDArray[np.int64]:
        """(I,) how many of the points `rows` (K,) each image sees."""
        rows_K = np.unique(np.asarray(rows, np.int64))
        lengths_K = self._start[rows_K + 1] - self._start[rows_K]
        ends_K = np.cumsum(lengths_K)
        total = int(ends_K[-1]) if len(ends_K) else 0
        places = np.arange(total) + np.repeat(self._start[rows_K] - (ends_K - lengths_K), lengths_K)
        return np.bincount(self._seen_by[places], minlength=len(self))

    def shared(self, image: int) -> NDArray[np.int64]:
        """(I,) points that each image has in common with one, and 0 for that one itself."""
        rows_N = self.rows[image]
        counts_I = self.seen_by(rows_N[rows_N != NO_POINT])
        counts_I[image] = 0
        return counts_I

    def clusters(self, images: Sequence[int], least: int = 1) -> list[list[int]]:
        """The images in groups that points in common connect, `least` of them a pair, in the order of their first."""
        left, groups = list(images), []
        while left:
            group, pending = [], [left.pop(0)]
            while pending:
                one = pending.pop()
                group.append(one)
                counts_I = self.shared(one)
                pending += [other for other in left if counts_I[other] >= least]
                left = [other for other in left if counts_I[other] < least]
            groups.append([one for one in images if one in group])
        return groups

    def camera_of_size(self, size: tuple[int, int]) -> tuple[Any, bool] | None:
        """A camera of the map with this (width, height), and whether all such are this one; None = there is none.

        Where they are several, but much alike, it is the one of median focal length; where they differ, none.
        """
        cameras = {one.camera_id: one for one in self.cameras if (one.width, one.height) == size}
        found = sorted(cameras.values(), key=_focal_px)
        if not found or _focal_px(found[-1]) - _focal_px(found[0]) > _SIMILAR_FOCAL * _focal_px(found[0]):
            return None
        if len({one.model_name for one in found}) > 1:
            return None
        return found[len(found) // 2], len(found) == 1

    def assigned(self, image: int, keypoints: ArrayLike, within_px: float) -> Ints:
        """(N,) int32, which point each of other keypoints (N, 2) px of an image sees, -1 = none.

        That whose observation is nearest, and at most `within_px` away, as the point's projection must be; of several
        keypoints the nearest has it. Where the keypoints are those of the model itself it is as the model says.
        """
        x_N2, own_M2, rows_M = np.asarray(keypoints, np.float64), self.keypoints[image], self.rows[image]
        if x_N2.shape == own_M2.shape and (len(x_N2) == 0 or np.abs(x_N2 - own_M2).max() <= _SAME_PX):
            return rows_M
        seen_M = rows_M != NO_POINT
        own_M2, rows_M = own_M2[seen_M], rows_M[seen_M]
        result = np.full(len(x_N2), NO_POINT, np.int32)
        if not len(x_N2) or not len(rows_M):
            return result
        projected_M2 = self.project(image, self.xyz[rows_M])
        nearest, distance = _nearest(x_N2, own_M2)
        off = np.linalg.norm(projected_M2[nearest] - x_N2, axis=1)
        chosen = np.flatnonzero((distance <= within_px) & (off <= within_px))
        chosen = chosen[np.argsort(distance[chosen], kind="stable")]
        _, first = np.unique(rows_M[nearest[chosen]], return_index=True)
        result[chosen[first]] = rows_M[nearest[chosen[first]]]
        return result

    def project(self, image: int, points: ArrayLike) -> Floats:
        """(M, 2) px, where an image sees points (M, 3); NaN behind it."""
        pose = self.cam_from_world[image]
        seen_M3 = np.asarray(points, np.float64) @ pose[:, :3].T + pose[:, 3]
        return np.asarray(self.cameras[image].img_from_cam(seen_M3), np.float64) - COLMAP_CENTRE


def _focal_px(camera: Any) -> float:
    return 0.0 if camera.is_spherical() else float(camera.mean_focal_length())


def _nearest(points_N2: Floats, others_M2: Floats) -> tuple[NDArray[np.int64], Floats]:
    """(N,) which of the others is nearest, and how far it is."""
    nearest, distance = [], []
    for start in range(0, len(points_N2), _CHUNK):
        delta_KM2 = points_N2[start : start + _CHUNK, None] - others_M2[None]
        squared_KM = (delta_KM2**2).sum(axis=2)
        nearest.append(squared_KM.argmin(axis=1))
        distance.append(np.sqrt(squared_KM.min(axis=1)))
    return np.concatenate(nearest), np.concatenate(distance)
