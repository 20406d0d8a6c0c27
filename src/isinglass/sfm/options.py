"""Options of a map: its cameras, its pairs, its mapper. Needs no torch, so that they are checked before any work."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from isinglass.errors import InputError, MissingExtra
from isinglass.images.folder import Selection

Share = Literal["exif", "single", "folder", "image"]
SHARES = ("exif", "single", "folder", "image")
How = Literal["auto", "exhaustive", "sequential", "spatial", "retrieval", "covisible", "file"]
WAYS = ("auto", "exhaustive", "sequential", "spatial", "retrieval", "covisible", "file")
Mapper = Literal["hybrid", "incremental", "global"]
MAPPERS = ("hybrid", "incremental", "global")
GUESSED_FOCAL = 1.2  # of the long side, as COLMAP guesses it
LEAST_INLIERS = 40  # learnt matchers give 20 to 30 that agree with some geometry where nothing overlaps


def pycolmap_module() -> Any:
    """Return the module `pycolmap`. Raises MissingExtra without it."""
    try:
        import PIL.Image  # noqa: F401  before pycolmap, else Pillow crashes as it writes PNG files
        import pycolmap
    except ImportError as error:
        raise MissingExtra("pycolmap", "maps") from error
    return pycolmap


def camera_models() -> list[str]:
    """Return the names of COLMAP's camera models."""
    return [name for name in pycolmap_module().CameraModelId.__members__ if name != "INVALID"]


def check_camera(model: str, params: tuple[float, ...] | None = None) -> None:
    """Raise InputError for a camera model that COLMAP does not have, or parameters that cannot be its."""
    known = camera_models()
    if model not in known:
        near = difflib.get_close_matches(model.upper(), known, n=2, cutoff=0.6)
        guess = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise InputError(f"the camera model is {model!r}; {guess}expected one of {', '.join(known)}")
    if params is None:
        return
    camera = pycolmap_module().Camera.create_from_model_name(0, model, 1.0, 1, 1)
    if len(params) != len(camera.params):
        raise InputError(
            f"{len(params)} camera parameters came; {model} has {len(camera.params)}: {camera.params_info}"
        )
    focal = [params[i] for i in camera.focal_length_idxs()]
    if not all(map(math.isfinite, params)) or min(focal, default=1.0) <= 0:
        raise InputError(
            f"the camera parameters are {', '.join(f'{value:g}' for value in params)}; expected finite numbers and a "
            f"focal length of more than 0 px, in the order {camera.params_info}"
        )


def check_rotation(rotation: str) -> None:
    """Raise InputError for "auto", which many photos cannot have: each pair would turn its second image its own way."""
    if rotation == "auto":
        raise InputError(
            "rotation 'auto' turns the second image of each pair, which a map of many photos cannot have; expected "
            "'exif' or 'none'. A map finds out itself where photos are turned by 90 or 180 degrees without EXIF saying "
            "so, and names them"
        )


def check_mapper(mapper: str) -> None:
    """Raise InputError for a mapper that COLMAP does not have."""
    if mapper not in MAPPERS:
        raise InputError(f"the mapper is {mapper!r}; expected one of {', '.join(map(repr, MAPPERS))}")


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """What cameras of a map are. Raises InputError for an unknown model, wrong parameters or a size that is none.

    model   as COLMAP names it: "SIMPLE_RADIAL", "PINHOLE", "OPENCV", "OPENCV_FISHEYE", ...
    share   which photos are of one camera: "exif" = those whose EXIF agrees in maker, model, lens and focal length
            (a photo without EXIF has its own), "single" = all, "folder" = those of a folder, "image" = none
    params  known intrinsics, see `colmap.camera_of`, of all cameras; None = as COLMAP guesses them from EXIF, or a
            focal length of 1.2 times the long side
    size    (width, height) px of the photos that `params` are of; None = the size of photos whose centre is nearest to
            the principal point. For photos of another size they are scaled
    refine  intrinsics are refined as the map is made; None = unless they are known
    """

    model: str = "SIMPLE_RADIAL"
    share: Share = "exif"
    params: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    refine: bool | None = None

    def __post_init__(self) -> None:
        if self.share not in SHARES:
            raise InputError(f"share is {self.share!r}; expected one of {', '.join(map(repr, SHARES))}")
        if self.model != "SIMPLE_RADIAL" or self.params is not None:
            check_camera(self.model, self.params)
        if self.size is not None and (self.params is None or min(self.size) < 1):
            raise InputError(f"the camera's size is {self.size}; expected (width, height) px, and params of that size")

    @property
    def refined(self) -> bool:
        """Whether intrinsics change as the map is made."""
        return self.params is None if self.refine is None else self.refine


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are chosen.

    how             "auto" = "exhaustive" up to `exhaustive_up_to` photos, else "retrieval"
    neighbours      of an image, at most: those most alike, nearest, or with most points in common
    overlap         "sequential": so many of the next photos; in the order of their names
    loops           "sequential": so many of those most alike of each photo, too, to close loops; 0 = none
    max_distance_m  "spatial": by GPS; photos without a position are paired by likeness
    file            "file": of two names a line
    model           "covisible": folder of a COLMAP model of these photos
    first_pass      few keypoints are matched first, and pairs dropped that seem hopeless then
    """

    how: How = "auto"
    exhaustive_up_to: int = 50
    neighbours: int = 20
    overlap: int = 10
    loops: int = 5
    max_distance_m: float = 100.0
    file: Path | None = None
    model: Path | None = None
    first_pass: bool = False

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise InputError(f"pairs are to be chosen by {self.how!r}; expected one of {', '.join(map(repr, WAYS))}")
        for how, name in (("file", "file"), ("covisible", "model")):
            if self.how == how and getattr(self, name) is None:
                raise InputError(f"pairs by {how!r} need {name!r}, which is not given")
        if not self.max_distance_m > 0:
            raise InputError(f"max_distance_m is {self.max_distance_m}; expected more than 0 m")


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How a map is made.

    masks          folder of masks or one mask, see `images.masks`: keypoints only where they are not black
    selection      which photos of the folder are used
    workers        processes that match; 1 = this one
    memory_mb      MB of features that are held as pairs are matched
    max_error_px   of matches that agree with a two-view geometry; None = see `verification.verify`
    least_inliers  matches that agree with it; fewer = none
    """

    pairs: PairOptions = field(default_factory=PairOptions)
    cameras: CameraOptions = field(default_factory=CameraOptions)
    mapper: Mapper = "hybrid"
    masks: Path | None = None
    selection: Selection = field(default_factory=Selection)
    workers: int = 1
    memory_mb: int = 1000
    max_error_px: float | None = None
    least_inliers: int = LEAST_INLIERS

    def __post_init__(self) -> None:
        check_mapper(self.mapper)
        if self.masks is not None and not Path(self.masks).exists():
            raise InputError(f"there are no masks at {str(self.masks)!r}. Check the path")
