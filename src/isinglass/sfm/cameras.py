"""Cameras of photos: what EXIF says of them, and which photos share one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.sfm.colmap import camera_of, pycolmap_module, quiet

Share = Literal["exif", "single", "folder", "image"]
SHARES = ("exif", "single", "folder", "image")
_EXIF_IFD, _MAKE, _MODEL = 0x8769, 0x010F, 0x0110
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _LENS = 0x920A, 0xA405, 0xA434


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """What cameras of a map are.

    model   as COLMAP names it: "SIMPLE_RADIAL", "PINHOLE", "OPENCV", "OPENCV_FISHEYE", ...
    share   which photos are of one camera: "exif" = those whose EXIF agrees in maker, model, lens and focal length
            (a photo without EXIF has its own), "single" = all, "folder" = those of a folder, "image" = none
    params  known intrinsics, see `colmap.camera_of`, of all cameras; None = as COLMAP guesses them from EXIF, or a
            focal length of 1.2 times the long side
    refine  intrinsics are refined as the map is made; None = unless they are known
    """

    model: str = "SIMPLE_RADIAL"
    share: Share = "exif"
    params: tuple[float, ...] | None = None
    refine: bool | None = None

    def __post_init__(self) -> None:
        if self.share not in SHARES:
            raise InputError(f"share is {self.share!r}; expected one of {', '.join(map(repr, SHARES))}")

    @property
    def refined(self) -> bool:
        """Whether intrinsics change as the map is made."""
        return self.params is None if self.refine is None else self.refine


def cameras_of(photos: PathLike, names: Sequence[str], options: CameraOptions) -> list[tuple[Any, list[str]]]:
    """Each camera of the photos `names` of a folder, a `pycolmap.Camera`, with the names of its photos.

    Raises InputError where photos that are to share a camera differ in size, for an unknown model or wrong number of
    parameters, and for a photo that cannot be read; MissingExtra without pycolmap.
    """
    folder = Path(photos)
    groups: dict[object, list[str]] = {}
    sizes: dict[object, tuple[int, int]] = {}
    for name in names:
        header = _header(folder / name)
        key = _KEYS[options.share](name, header)
        if sizes.setdefault(key, header.size) != header.size:
            raise InputError(
                f"{name!r} is {header.size[0]} x {header.size[1]} px, {groups[key][0]!r} {sizes[key][0]} x "
                f"{sizes[key][1]}; photos that share a camera are expected to be of one size. Choose another way to "
                "share cameras, such as 'exif'"
            )
        groups.setdefault(key, []).append(name)
    return [(_camera(folder / group[0], sizes[key], options), group) for key, group in groups.items()]


def _camera(photo: Path, size: tuple[int, int], options: CameraOptions) -> Any:
    if options.params is not None:
        return camera_of(options.model, size, options.params)
    colmap = pycolmap_module()
    if options.model not in colmap.CameraModelId.__members__ or options.model == "INVALID":
        camera_of(options.model, size, ())  # which says what is wrong
    reading = colmap.ImageReaderOptions(camera_model=options.model)
    with quiet():
        try:
            return colmap.infer_camera_from_image(photo, reading)
        except ValueError:  # a format that COLMAP cannot read: an empty picture with the same EXIF says as much
            with tempfile.TemporaryDirectory() as folder:
                stand_in = Path(folder) / "stand-in.png"
                Image.new("1", size).save(stand_in, exif=_header(photo).exif)
                return colmap.infer_camera_from_image(stand_in, reading)


@dataclass(frozen=True, slots=True, eq=False)
class _Header:
    size: tuple[int, int]
    exif: Image.Exif


def _header(photo: Path) -> _Header:
    try:
        with Image.open(photo) as opened:
            return _Header(opened.size, opened.getexif())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(photo)!r} cannot be read as an image ({error}). Copy it again") from error


def _by_exif(name: str, header: _Header) -> object:
    exif = header.exif
    details = exif.get_ifd(_EXIF_IFD)
    camera = exif.get(_MAKE), exif.get(_MODEL)
    focal = details.get(_FOCAL_LENGTH), details.get(_FOCAL_LENGTH_35MM)
    if camera == (None, None) or focal == (None, None):
        return name
    return header.size, str((camera, focal, details.get(_LENS)))


_KEYS: dict[str, Callable[[str, _Header], object]] = {
    "exif": _by_exif,
    "single": lambda name, header: "",
    "folder": lambda name, header: str(PurePosixPath(name).parent),
    "image": lambda name, header: name,
}
