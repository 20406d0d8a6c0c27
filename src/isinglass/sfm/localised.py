"""How queries are localised, and what became of each; files of results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from isinglass.errors import InputError
from isinglass.files import PathLike, write_atomically
from isinglass.geometry.two_view import Floats
from isinglass.sfm.query import CameraFrom

_NO_COLUMN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, kw_only=True)
class LocaliseOptions:
    """How queries are localised. Raises InputError on values that make no sense.

    images        of the map, the most alike ones, that a query is matched with first; and the next ones, twice, as
                  long as no pose is believed
    neighbours    images that are matched then, those that see most of the points of the pose so far
    enough        inliers that make that unneeded
    points_only   match only keypoints of the map that see a point: faster
    threshold_px  of inliers; None = 0.8 percent of the query's long side
    batch         queries that are matched together
    memory_mb     features of the map's images that are kept in memory
    """

    images: int = 5
    neighbours: int = 5
    enough: int = 100
    points_only: bool = True
    threshold_px: float | None = None
    batch: int = 4
    memory_mb: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("neighbours", 0), ("enough", 0), ("batch", 1), ("memory_mb", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.threshold_px is not None and not self.threshold_px > 0:
            raise InputError(f"threshold_px is {self.threshold_px}; expected more than 0, or None")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Localised:
    """What became of a query.

    name            as given: its path
    model           of the map that the pose is in: "model", "model/1"; "" without success, or where it has no name
    success         whether there is a pose; reason: why there is none, else empty
    readable        False where the image could not even be read
    cam_from_world  (3, 4) float64 of the camera in the map's frame and unit; None without success
    camera          `pycolmap.Camera`, as COLMAP's files have it, with what was refined; None of an unreadable image
    camera_from     "given", "exif" (focal length refined), "map" (the camera of the map's photos of that size), or
                    "guessed" (focal length found with the pose)
    num_matches     keypoints that were matched with points of the map
    num_inliers     those of them that agree with the pose; where it failed, with the best one that was not believed
    images          of the map, that the query was matched with: name -> matches that agree
    covariance      (6, 6) of rotation (rad) and centre, see `AbsolutePose`
    timings_ms      read, extract, retrieve, match, pose
    """

    name: str
    success: bool
    model: str = ""
    reason: str = ""
    readable: bool = True
    cam_from_world: Floats | None = None
    camera: Any = None
    camera_from: CameraFrom | None = None
    num_matches: int = 0
    num_inliers: int = 0
    images: dict[str, int] = field(default_factory=dict)
    covariance: Floats | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def inlier_ratio(self) -> float:
        """Of the matched keypoints; 0 without any."""
        return self.num_inliers / self.num_matches if self.num_matches else 0.0

    @property
    def centre(self) -> Floats | None:
        """(3,) where the camera is in the map."""
        pose = self.cam_from_world
        return None if pose is None else -pose[:, :3].T @ pose[:, 3]

    @property
    def centre_std(self) -> float | None:
        """Of the centre in its least certain direction, in units of the map, as far as inliers tell."""
        return None if self.covariance is None else float(np.sqrt(np.linalg.eigvalsh(self.covariance[3:, 3:])[-1]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the rotation as COLMAP has it, `qvec` (w, x, y, z), and the camera as in COLMAP's files."""
        camera, pose, centre = self.camera, self.cam_from_world, self.centre
        return {
            "name": self.name,
            "success": self.success,
            "model": self.model,
            "reason": self.reason,
            "readable": self.readable,
            "qvec": None if pose is None else quaternion(pose).tolist(),
            "tvec": None if pose is None else pose[:, 3].tolist(),
            "centre": None if centre is None else centre.tolist(),
            "centre_std": self.centre_std,
            "camera": None
            if camera is None
            else {
                "model": camera.model_name,
                "width": camera.width,
                "height": camera.height,
                "params": [float(value) for value in camera.params],
            },
            "camera_from": self.camera_from,
            "num_matches": self.num_matches,
            "num_inliers": self.num_inliers,
            "images": self.images,
            "timings_ms": self.timings_ms,
        }


def quaternion(pose: Floats) -> Floats:
    """(w, x, y, z) of the rotation of a pose (3, 4)."""
    from isinglass.sfm.colmap import pycolmap_module

    x, y, z, w = pycolmap_module().Rotation3d(pose[:, :3]).quat
    return np.array([w, x, y, z]) * (-1.0 if w < 0 else 1.0)


def column_of(name: str) -> str:
    """Return a name as one column of a text that readers split at white space: "my photo.jpg" as "my%20photo.jpg".

    White space, control characters and bytes that are not UTF-8 are written as in a URL. `urllib.parse.unquote` gives
    the name again, where it holds no "%" itself.
    """
    return _NO_COLUMN.sub(lambda match: quote(match[0], safe="", errors="surrogateescape"), name)


def write_results(path: PathLike, results: Sequence[Localised]) -> None:
    """Write all results as JSON where the path ends in .json, else those that were found as text.

    The text is that of Hierarchical-Localization and of the benchmarks of long-term localisation: a line for each
    image, `name qw qx qy qz tx ty tz`, cam_from_world, the name as in `column_of`. Raises WriteError where it cannot be
    written.
    """
    if Path(path).suffix == ".json":
        text = json.dumps([one.as_dict() for one in results], indent=1)
    else:
        lines = []
        for one in results:
            if one.cam_from_world is not None:
                numbers = [*quaternion(one.cam_from_world), *one.cam_from_world[:, 3]]
                lines.append(" ".join([column_of(one.name), *(f"{number:.9g}" for number in numbers)]))
        text = "".join(f"{line}\n" for line in lines)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
