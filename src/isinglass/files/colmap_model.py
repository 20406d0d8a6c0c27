"""Models of COLMAP on disk: read by pycolmap, once the files are known to hold what their counts say.

pycolmap believes the counts in a binary file: a damaged one makes it loop or allocate without end. So the records are
walked first. The layout is that of COLMAP's `src/colmap/scene/reconstruction_io_binary.cc` (little endian, no padding).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isinglass.errors import InputError, MissingExtra
from isinglass.files.atomic import PathLike

_COUNT = struct.Struct("<Q")
_MAX_NAME_BYTES = 4096
_MODELS = ("cameras", "images", "points3D")


def read_colmap_model(folder: PathLike) -> Any:
    """Return the `pycolmap.Reconstruction` in a folder of cameras, images and points3D, as .bin or .txt.

    Raises InputError where there is none or where it is damaged, MissingExtra without pycolmap.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingExtra("pycolmap", "maps") from error
    path = Path(folder)
    kind = _kind_of(path)
    if kind == ".bin":
        for name, size_of in _SIZES.items():
            if (file := path / f"{name}.bin").is_file():
                _check_counts(file, size_of)
    try:
        return pycolmap.Reconstruction(path)
    except (ValueError, RuntimeError, OSError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read as a model of COLMAP ({error}); expected a folder with cameras, images and "
            "points3D, as .bin or .txt. Copy it again, or write it anew"
        ) from error


@functools.cache
def parameter_counts() -> dict[int, int]:
    """How many parameters each camera model has, by its number."""
    import pycolmap

    known = {name: int(number) for name, number in pycolmap.CameraModelId.__members__.items() if int(number) >= 0}
    camera = pycolmap.Camera.create_from_model_name
    return {number: len(camera(0, name, 1.0, 1, 1).params) for name, number in known.items()}


def _kind_of(folder: Path) -> str:
    for suffix in (".bin", ".txt"):
        if all((folder / f"{name}{suffix}").is_file() for name in _MODELS):
            return suffix
    raise InputError(
        f"{str(folder)!r} is no model of COLMAP; expected a folder with cameras, images and points3D, as .bin or .txt. "
        "Check the path"
    )


def _check_counts(file: Path, size_of: Callable[[bytes, int], int]) -> None:
    """Raise InputError unless the file ends where its last record ends."""
    data = file.read_bytes()
    try:
        (count,) = _COUNT.unpack_from(data)
        place = _COUNT.size
        for _ in range(count):
            place += size_of(data, place)
            if place > len(data):
                raise ValueError(f"a record ends at byte {place}")
        if place < len(data):
            raise ValueError(f"the last of {count} records ends at byte {place}")
    except (struct.error, ValueError, IndexError) as error:
        raise InputError(
            f"{str(file)!r} of a model of COLMAP is damaged: it has {len(data)} bytes, but {error}. Copy it again, or "
            "write it anew"
        ) from error


def _camera_size(data: bytes, place: int) -> int:
    (model,) = struct.unpack_from("<i", data, place + 4)
    if model not in (counts := parameter_counts()):
        raise ValueError(f"camera model {model} is none of {sorted(counts)}")
    return 24 + 8 * counts[model]


def _image_size(data: bytes, place: int) -> int:
    name = place + 64
    end = data.index(b"\0", name, name + _MAX_NAME_BYTES)
    (points,) = _COUNT.unpack_from(data, end + 1)
    return end + 1 + _COUNT.size + 24 * points - place


def _point_size(data: bytes, place: int) -> int:
    (track,) = _COUNT.unpack_from(data, place + 43)
    return 51 + 8 * track


def _rig_size(data: bytes, place: int) -> int:
    (sensors,) = struct.unpack_from("<I", data, place + 4)
    size = 8 + (8 if sensors else 0)
    for _ in range(sensors - 1):
        has_pose = data[place + size + 8]
        size += 9 + (56 if has_pose else 0)
    return size


def _frame_size(data: bytes, place: int) -> int:
    (sensors,) = struct.unpack_from("<I", data, place + 64)
    return 68 + 16 * sensors


_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "cameras": _camera_size,
    "images": _image_size,
    "points3D": _point_size,
    "rigs": _rig_size,
    "frames": _frame_size,
}
