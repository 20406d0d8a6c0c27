"""Pairs of images with their relative pose, in text lists: SuperGlue's and glue-factory's, one pair a line.

What a line holds is told by how many columns it has:

 2  name0 name1                                             no truth: pairs to be matched
 4  name0 name1 rot0 rot1
38  name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)            SuperGlue's pairs_with_gt.txt: ScanNet, YFCC, PhotoTourism
36  name0 name1 K0(9) K1(9) T_0to1(16)                      glue-factory's pairs_calibrated.txt
32  name0 name1 K0(9) K1(9) R(9) t(3)                       the same, MegaDepth-1500 and ScanNet-1500

K, T and R are row by row, and of the image as stored: rot0 and rot1 only say how it is turned before it is matched.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from isinglass.datasets.layout import PathLike, collected, read_text
from isinglass.datasets.pairs import Benchmark, Depth, EvalPair, Floats, Pose
from isinglass.errors import InputError
from isinglass.files.lists import tokens_of
from isinglass.geometry.camera import is_rotation
from isinglass.names import is_file

COLMAP_CENTRE = 0.5  # where COLMAP has the centre of the top-left pixel
_COLUMNS = (2, 4, 32, 36, 38)
_LISTS = ("pairs_calibrated.txt", "scannet_test_pairs_with_gt.txt", "pairs_with_gt.txt")


def load_superglue_pairs(
    list_file: PathLike,
    images: PathLike | None = None,
    *,
    depth: PathLike | None = None,
    depth_scale: float = 0.001,
    depth_step: int = 1,
    name: str | None = None,
    pixel_centre: float = 0.0,
) -> Benchmark:
    """The pairs of a list, see the module. Blank lines and those that begin with # are skipped.

    images        folder that the names are relative to; default: `images` beside the list, or else the list's folder
    depth         folder of depth images named as the images (.png), or with "depth" for "color" in their path
    depth_scale   metres of one unit of them
    depth_step    their pixel (u, v) is pixel (u, v) * depth_step of the image
    name          of the benchmark; default: of the list's folder
    pixel_centre  what K takes for the centre of the top-left pixel: 0 as OpenCV, ScanNet and SuperGlue's evaluation,
                  COLMAP_CENTRE for cameras that COLMAP found

    The group of a pair is its scene: the folder of image 0 below those that are common to the whole list. A broken
    line, a rotation that is none (not orthonormal with determinant 1), or a missing file makes the pair a problem that
    names the list and the line. Raises InputError where the list cannot be read, or nothing in it can be used.
    """
    file = Path(list_file)
    text = read_text(file)
    beside = file.parent / "images"
    reader = _Reader(
        file=file,
        images=Path(images) if images is not None else beside if beside.is_dir() else file.parent,
        depth=None if depth is None else Path(depth),
        depth_scale=depth_scale,
        depth_step=depth_step,
        pixel_centre=pixel_centre,
        repeats=Counter(),
    )
    lines = [
        (number, tokens_of(line))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    common = _common_folders([columns[0] for _, columns in lines])
    return collected(
        name or file.resolve().parent.name,
        f"pairs/1 {hashlib.sha256(text.encode()).hexdigest()[:12]}",
        "pose",
        lambda line: reader.pair(*line, common=common),
        lines,
    )


def load_scannet1500(folder: PathLike, *, depth: PathLike | None = None) -> Benchmark:
    """ScanNet-1500 of SuperGlue: a folder with its list (or glue-factory's, pairs_calibrated.txt) and the images.

    Raises InputError where nothing can be used.
    """
    return load_superglue_pairs(_list_in(folder), depth=depth, name="scannet1500")


def load_megadepth1500(folder: PathLike) -> Benchmark:
    """MegaDepth-1500 as glue-factory has it: a folder with pairs_calibrated.txt and images/; cameras are COLMAP's.

    LoFTR's scene_info (.npz) of the same pairs holds pickles, which can run any code, and is not read.

    Raises InputError where nothing can be used.
    """
    return load_superglue_pairs(_list_in(folder), name="megadepth1500", pixel_centre=COLMAP_CENTRE)


def _list_in(folder: PathLike) -> Path:
    for name in _LISTS:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise InputError(
        f"{str(folder)!r} has none of {', '.join(_LISTS)}; expected a list of pairs with their poses. LoFTR's .npz are "
        "not read, for they hold pickles: glue-factory gives the same pairs as pairs_calibrated.txt"
    )


def _common_folders(names: list[str]) -> int:
    """How many folders the names begin with in common."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    count = 0
    while len({parts[count] if len(parts) > count else None for parts in folders}) == 1 and len(folders[0]) > count:
        count += 1
    return count


# ---- one line


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Makes pairs of the lines of one list; `repeats` counts the names so far, which must not repeat."""

    file: Path
    images: Path
    depth: Path | None
    depth_scale: float
    depth_step: int
    pixel_centre: float
    repeats: Counter[str]

    def pair(self, number: int, columns: list[str], *, common: int) -> EvalPair:
        """Of line `number` (the first is 1); raises InputError that names it."""
        try:
            return self._pair(columns, common)
        except ValueError as error:
            raise InputError(f"{str(self.file)!r}, line {number}: {error}") from error

    def _pair(self, columns: list[str], common: int) -> EvalPair:
        if len(columns) not in _COLUMNS:
            raise ValueError(f"{len(columns)} columns; expected one of {_COLUMNS}, see isinglass.datasets.posed")
        name0, name1 = columns[:2]
        turns = [int(column) % 4 for column in columns[2:4]] if len(columns) in (4, 38) else [0, 0]
        numbers = np.array(columns[4 if len(columns) in (4, 38) else 2 :], dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("NaN or infinity; expected finite numbers")
        scene = PurePosixPath(name0).parts[common:-1]
        return EvalPair(
            name=self._unique(name0, name1),
            image0=_existing(self.images / name0),
            image1=_existing(self.images / name1),
            group=scene[0] if scene else "all",
            pose=_pose(numbers[18:]) if len(numbers) else None,
            camera0=_camera(numbers[:9], self.pixel_centre) if len(numbers) else None,
            camera1=_camera(numbers[9:18], self.pixel_centre) if len(numbers) else None,
            depth0=self._depth_of(name0),
            depth1=self._depth_of(name1),
            turns0=turns[0],
            turns1=turns[1],
        )

    def _unique(self, name0: str, name1: str) -> str:
        path0, path1 = PurePosixPath(name0).with_suffix(""), PurePosixPath(name1).with_suffix("")
        name = f"{path0}-{path1.name if path0.parent == path1.parent else path1}"
        self.repeats[name] += 1
        return name if self.repeats[name] == 1 else f"{name}#{self.repeats[name]}"

    def _depth_of(self, name: str) -> Depth | None:
        if self.depth is None:
            return None
        path = PurePosixPath(name).with_suffix(".png")
        other = self.depth.joinpath(*("depth" if part == "color" else part for part in path.parts))
        file = other if is_file(other) else _existing(self.depth / path)
        return Depth(file=file, scale=self.depth_scale, step=self.depth_step)


def _existing(file: Path) -> Path:
    if not is_file(file):
        raise ValueError(f"{str(file)!r} does not exist")
    return file


def _camera(numbers: Floats, pixel_centre: float) -> Floats:
    matrix = numbers.reshape(3, 3).copy()
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or not np.array_equal(matrix[2], [0, 0, 1]):
        raise ValueError(f"a camera is {matrix.tolist()}; expected focal lengths above 0, and 0 0 1 in its last row")
    matrix[:2, 2] -= pixel_centre
    return matrix


def _pose(numbers: Floats) -> Pose:
    """Of a 4x4 matrix, or of R and then t."""
    if len(numbers) == 16:
        matrix = numbers.reshape(4, 4)
        if not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise ValueError(f"a pose ends in {matrix[3].tolist()}; expected 0 0 0 1")
        rotation, translation = matrix[:3, :3], matrix[:3, 3]
    else:
        rotation, translation = numbers[:9].reshape(3, 3), numbers[9:]
    if not is_rotation(rotation):
        off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
        raise ValueError(
            f"the pose's matrix is no rotation: R^T R is off by {off:.3g}, its determinant is "
            f"{np.linalg.det(rotation):.3g}; expected 0 and 1"
        )
    return Pose(rotation=rotation, translation=translation)
