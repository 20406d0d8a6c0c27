"""The two-view geometry of every pair in a COLMAP database, by COLMAP's own estimators.

`pycolmap.verify_matches` does the same, but a full disk ends its process, and it does not take names with spaces.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from isinglass.errors import WriteError
from isinglass.files import PathLike
from isinglass.sfm.colmap import Project, pycolmap_module, quiet
from isinglass.sfm.options import LEAST_INLIERS
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import Pair

MAX_ERROR_PX = 4.0  # COLMAP's, of large photos
SEED = 0  # of RANSAC, for each pair anew: the order of pairs changes nothing
_AHEAD = 8  # pairs a thread that are read before they are needed
_IMAGES = 200  # whose keypoints are held


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Pairs that had matches, those of them with a two-view geometry, and all matches that agree with one."""

    pairs: int
    verified: int
    inliers: int


def verify(
    database: PathLike,
    *,
    max_error_px: float | None = None,
    least_inliers: int = LEAST_INLIERS,
    threads: int | None = None,
    tell: Tell = lambda done, of: None,
) -> Verified:
    """Find the two-view geometry of every pair of a database that has matches and has not been verified.

    The file is changed in place, pair by pair: after a kill it can go on, and what comes of it is the same. Pairs
    without a geometry are kept as such. Raises InputError where the database cannot be read, WriteError where it cannot
    be written.

    max_error_px   of a match that agrees with a geometry; None = MAX_ERROR_PX `of_size` of the photos
    least_inliers  matches that agree with a geometry, else there is none
    """
    colmap = pycolmap_module()
    options = colmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.min_num_inliers = SEED, least_inliers
    with quiet(), Project(database, in_place=True) as project:
        options.ransac.max_error = max_error_px or of_size(project) * MAX_ERROR_PX
        todo = [pair for pair, count in project.matched.items() if count and pair not in project.inliers]
        counts, of = dict(project.inliers), len(project.matched)
        done = of - len(todo)
        tell(done, of)
        for pair, geometry in _geometries(project, todo, options, threads or os.cpu_count() or 1):
            try:
                project.write_geometry(*pair, geometry)
            except RuntimeError as error:
                raise WriteError(
                    f"{str(database)!r} cannot be written ({error}); pairs that were verified before are kept. Free "
                    "space, and run again"
                ) from error
            counts[pair], done = len(geometry.inlier_matches), done + 1
            tell(done, of)
    return Verified(pairs=of, verified=sum(count > 0 for count in counts.values()), inliers=sum(counts.values()))


def of_size(project: Project) -> float:
    """What COLMAP's limits in px are to be multiplied with: 1 for photos of 1280 px and more, 0.5 up to 640 px."""
    sides = [max(camera.width, camera.height) for camera in map(project.camera, project.names)]
    return float(np.clip(np.median(sides) / 1280, 0.5, 1.0)) if sides else 1.0


def _geometries(project: Project, pairs: list[Pair], options: Any, threads: int) -> Iterator[tuple[Pair, Any]]:
    """The geometry of each pair, in order; the database is read by this thread alone."""
    points = functools.lru_cache(_IMAGES)(project.colmap_points)

    def job(pair: Pair) -> tuple[Any, ...]:
        cameras = [project.camera(name) for name in pair]
        matches = project.matches(*pair).astype(np.uint32)
        return cameras[0], points(pair[0]), cameras[1], points(pair[1]), matches, options

    estimate = pycolmap_module().estimate_two_view_geometry
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pairs), threads * _AHEAD):
            part = pairs[start : start + threads * _AHEAD]
            waiting = [pool.submit(estimate, *job(pair)) for pair in part]
            for pair, one in zip(part, waiting, strict=True):
                yield pair, one.result()
