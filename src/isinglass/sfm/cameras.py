"""Cameras of photos: what EXIF says of them, which photos share one, and known intrinsics scaled to their size."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from isinglass.errors import InputError
from isinglass.images import Header, read_header
from isinglass.sfm.notes import group_notes
from isinglass.sfm.options import GUESSED_FOCAL, CameraOptions, pycolmap_module

if TYPE_CHECKING:
    from isinglass.files import PathLike

Size = tuple[int, int]  # (width, height) px
_OFF_CENTRE = 0.2  # share of a side that a principal point is off the centre where the size is another one
_FISHEYE_FOCAL = 0.5  # of the long side: an equidistant lens that sees 115 degrees along it


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """The cameras of photos.

    groups    each `pycolmap.Camera` with the names of its photos
    notes     what a person should know of them
    problems  photos that have no camera, by name, and why
    """

    groups: list[tuple[Any, list[str]]]
    notes: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def cameras_of(photos: PathLike, names: Sequence[str], options: CameraOptions) -> list[tuple[Any, list[str]]]:
    """Return each camera of the photos `names` of a folder, a `pycolmap.Camera`, with the names of its photos.

    Raises InputError as `find_cameras` does, and for a photo that cannot be read; MissingExtra without pycolmap.
    """
    found = find_cameras(photos, names, options)
    for problem in found.problems.values():
        raise InputError(problem)
    return found.groups


def find_cameras(photos: PathLike, names: Sequence[str], options: CameraOptions) -> Cameras:
    """Find the cameras of the photos `names` of a folder; photos that cannot be read are among its problems.

    Raises InputError where photos that are to share a camera differ in size, and where known parameters cannot be
    scaled to a photo's size; MissingExtra without pycolmap.
    """
    folder, problems = Path(photos), {}
    headers: dict[str, Header] = {}
    for name in names:
        try:
            headers[name] = read_header(folder / name)
        except InputError as error:
            problems[name] = str(error)
    groups: dict[object, list[str]] = {}
    for name, header in headers.items():
        groups.setdefault(_key(name, header, options), []).append(name)
    _check_sizes(groups, headers)
    if options.params is not None:
        known, notes = _known_cameras([header.size for header in headers.values()], options)
        found = [(known[headers[group[0]].size], group) for group in groups.values()]
        return Cameras(groups=[(copy.copy(camera), group) for camera, group in found], notes=notes, problems=problems)
    cameras = [(_camera(headers[group[0]], options), group) for group in groups.values()]
    notes = group_notes({name: header.exif.notes for name, header in headers.items()})
    return Cameras(groups=cameras, notes=[*_give_priors(cameras), *notes], problems=problems)


# ---- known intrinsics


def _known_cameras(sizes: Sequence[Size], options: CameraOptions) -> tuple[dict[Size, Any], list[str]]:
    """Return the camera of each size by the parameters given, and a note where they were scaled."""
    from isinglass.sfm.colmap import camera_of

    if not sizes:
        return {}, []
    size = options.size or _size_of_params(sizes, options)
    camera = camera_of(options.model, size, options.params or ())
    cameras, scaled = {}, []
    for other, count in Counter(sizes).items():
        if abs(other[0] * size[1] - other[1] * size[0]) > max(size):  # off by more than the rounding of a pixel
            raise InputError(
                f"the camera parameters are for {_px(size)}; they cannot be scaled to photos of {_px(other)} "
                f"({count}), whose sides have another ratio. Map these photos alone, or leave the parameters out"
            )
        cameras[other] = copy.copy(camera)
        if other != size:
            cameras[other].rescale(*other)
            scaled.append(f"{count} of {_px(other)}")
    note = f"the camera parameters are for photos of {_px(size)}; they were scaled for {', '.join(scaled)}"
    return cameras, [note] if scaled else []


def _size_of_params(sizes: Sequence[Size], options: CameraOptions) -> Size:
    """Return the size whose centre is nearest to the principal point; the largest of equals.

    Raises InputError where it is near none: then the parameters are those of another size.
    """
    from isinglass.sfm.colmap import camera_of

    if len(camera_of(options.model, sizes[0], options.params or ()).principal_point_idxs()) != 2:
        return max(sizes)

    def off(size: Size) -> float:
        camera = camera_of(options.model, size, options.params or ())
        return max(abs(camera.principal_point_x / size[0] - 0.5), abs(camera.principal_point_y / size[1] - 0.5))

    best = min(set(sizes), key=lambda size: (round(off(size), 3), -size[0] * size[1]))
    if off(best) > _OFF_CENTRE:
        camera = camera_of(options.model, best, options.params or ())
        meant = round(2 * camera.principal_point_x), round(2 * camera.principal_point_y)
        raise InputError(
            f"the principal point of the camera parameters is far from the centre of photos of {_px(best)}; they look "
            f"like those of {_px(meant)}. Give the size that they are for (--camera-size {meant[0]}x{meant[1]}); they "
            "are scaled from it"
        )
    return best


def _px(size: Size) -> str:
    return f"{size[0]} x {size[1]} px"


# ---- cameras of EXIF, or guessed


def _camera(header: Header, options: CameraOptions) -> Any:
    """Return the camera of a photo: its focal length by EXIF, or COLMAP's guess of 1.2 times the long side.

    COLMAP itself is not asked to read the file: it believes any EXIF, and knows fewer formats.
    """
    width, height = header.size
    focal_px = header.exif.focal_px(header.size)
    camera = pycolmap_module().Camera.create_from_model_name(
        0, options.model, GUESSED_FOCAL * max(width, height) if focal_px is None else focal_px, width, height
    )
    camera.has_prior_focal_length = focal_px is not None
    return camera


def _give_priors(cameras: Sequence[tuple[Any, list[str]]]) -> list[str]:
    """Give fisheye cameras without a focal length a usual one, as COLMAP takes none without; return a note of that."""
    guessed = [camera for camera, _ in cameras if camera.is_perspective_fisheye() and not camera.has_prior_focal_length]
    for camera in guessed:
        params = np.array(camera.params, np.float64)
        params[list(camera.focal_length_idxs())] = _FISHEYE_FOCAL * max(camera.width, camera.height)
        camera.params = params
        camera.has_prior_focal_length = True
    if not guessed:
        return []
    return [
        f"the focal length of {len(guessed)} fisheye camera{'s' if len(guessed) > 1 else ''} is not known: "
        f"{_FISHEYE_FOCAL:g} times the long side was assumed. Give --camera-params where they are known"
    ]


# ---- which photos share a camera


def _key(name: str, header: Header, options: CameraOptions) -> object:
    """What photos of one camera have in common; with known parameters those of each size have one."""
    return _KEYS[options.share](name, header), header.size if options.params is not None else None


def _check_sizes(groups: dict[object, list[str]], headers: dict[str, Header]) -> None:
    for names in groups.values():
        first = headers[names[0]].size
        for name in names:
            if (size := headers[name].size) != first:
                turned = " It is turned." if size == first[::-1] else ""
                raise InputError(
                    f"{name!r} is {_px(size)}, {names[0]!r} {_px(first)};{turned} photos that share a camera are "
                    "expected to be of one size. Choose another way to share cameras, such as 'exif'"
                )


def _by_exif(name: str, header: Header) -> object:
    exif = header.exif
    if (exif.make, exif.model) == (None, None) or (exif.focal_mm, exif.focal_35mm) == (None, None):
        return name
    return header.size, exif.make, exif.model, exif.lens, exif.focal_mm, exif.focal_35mm


_KEYS: dict[str, Callable[[str, Header], object]] = {
    "exif": _by_exif,
    "single": lambda name, header: "",
    "folder": lambda name, header: str(PurePosixPath(name).parent),
    "image": lambda name, header: name,
}
