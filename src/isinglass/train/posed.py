"""Pairs of images with depth and pose: what stage 2 learns from.

What overlaps is found once, pairs are drawn evenly over it, and features of each image are made once.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from isinglass.datasets.covisible import read_depth
from isinglass.datasets.layout import PathLike, existing_folder, image_of, read_text
from isinglass.datasets.pairs import Depth, Floats
from isinglass.errors import InputError, MissingExtra
from isinglass.files import load_features, read_if_whole, save_features
from isinglass.files.lists import tokens_of
from isinglass.files.npz import read_npz, write_npz
from isinglass.geometry.camera import Covisible, covisible, is_rotation, sample_depth
from isinglass.images import features_to_original, read_header, read_photo, reading_version, resized, upright, whole
from isinglass.kernels.threads import for_each, in_team
from isinglass.names import file_name
from isinglass.options import features_key
from isinglass.train.batch import PairBatch, stacked
from isinglass.train.labels import Landing, targets
from isinglass.types import Extractor, Features

HELD_OUT_SHARE = 0.1
OVERLAP = (0.1, 0.7)  # of the pairs that are drawn, least and most
BINS = 6
DEPTHS_IN_MEMORY, FEATURES_IN_MEMORY = 64, 512  # images
_GRID = (24, 16)  # pixels that overlap is sampled at
_THINNED = 128  # columns that depth maps have at most for that, or up to twice as many
_TOLD_EVERY = 64  # images
_MOST_FAILED = 20  # pairs that are drawn for nothing, for each that is wanted
_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
Tell = Callable[[int, int], None]
Label = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosedImage:
    """An image file, its camera K (3, 3) px, and cam_from_world: X of the world is `rotation` X + `translation` in it.

    `depth` has the unit of `translation` (metres, or of unknown scale); None = there is none. An HDF5 file of depth has
    it as the data set "depth".
    """

    file: Path
    camera: Floats
    rotation: Floats
    translation: Floats
    depth: Depth | None = None

    def pose_to(self, other: PosedImage) -> tuple[Floats, Floats]:
        """cam1_from_cam0 (R, t), where `other` is view 1."""
        rotation = other.rotation @ self.rotation.T
        return rotation, other.translation - rotation @ self.translation


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosedImages:
    """The images of one place, in the order that they were taken; what could not be used is in `problems`: file, why.

    overlap_NN  share of each pair's lesser overlap where the data set has that; None = to be found by depth
    """

    images: tuple[PosedImage, ...]
    overlap_NN: Floats | None = None
    problems: dict[str, str] = field(default_factory=dict)


def load_rgbd(folder: PathLike, *, depth_scale: float = 0.001, depth_step: int = 2) -> PosedImages:
    """A folder of K.txt (3x3), poses.txt (lines: name, 4x4 camera-to-world), images/<name>.* and depth/<name>.png.

    A unit of the depth images is `depth_scale` of one of the poses, 0 = unknown; their pixel (u, v) is pixel
    (u, v) * `depth_step` of the image. Raises InputError where nothing can be used.
    """
    folder = existing_folder(folder, "K.txt, poses.txt, images and depth")
    try:
        camera = camera_of(np.array(read_text(folder / "K.txt").split()))
    except InputError as error:
        raise InputError(f"{str(folder / 'K.txt')!r}: {error}") from error
    lines = [columns for line in read_text(folder / "poses.txt").splitlines() if (columns := tokens_of(line))]

    def build(columns: list[str]) -> PosedImage:
        world_R_cam, centre = rigid_of(np.array(columns[1:]))
        depth = Depth(file=folder / "depth" / f"{columns[0]}.png", scale=depth_scale, step=depth_step)
        file = image_of(folder / "images", columns[0])
        rotation = world_R_cam.T
        return PosedImage(file=file, camera=camera, rotation=rotation, translation=-rotation @ centre, depth=depth)

    images, _, problems = usable(folder, [line[0] for line in lines], lines, build)
    return PosedImages(images=images, problems=problems)


def usable(
    source: PathLike, names: Sequence[str], items: Sequence[_Item], build: Callable[[_Item], PosedImage]
) -> tuple[tuple[PosedImage, ...], list[_Item], dict[str, str]]:
    """Images of those items that can be used, these items, and by name what is wrong with the others."""
    images, kept, problems = [], [], {}
    for name, item in zip(names, items, strict=True):
        try:
            image = build(item)
            _check_files(image)
        except ValueError as error:  # and InputError
            problems[name] = f"{str(source)!r}, {name}: {error}"
            continue
        images.append(image)
        kept.append(item)
    if not images:
        found = "; ".join(list(problems.values())[:3]) or "it names none"
        raise InputError(f"no image of {str(source)!r} can be used: {found}. Check the folder and its layout")
    return tuple(images), kept, problems


def size_of(file: Path) -> tuple[int, int]:
    """(width, height) px of an image, by its header. Raises InputError where that cannot be read."""
    return read_header(file).size


def _check_files(image: PosedImage) -> None:
    (width, height), depth = size_of(image.file), image.depth
    if depth is None:
        return
    shape, expected = depth_of(depth, only_shape=True), (math.ceil(height / depth.step), math.ceil(width / depth.step))
    if shape != expected:
        came, wanted = f"{shape[1]} x {shape[0]} px", f"{expected[1]} x {expected[0]}"
        raise InputError(
            f"{str(depth.file)!r} is {came}; expected {wanted}: every pixel in {depth.step} of {width} x {height}"
        )


def depth_of(depth: Depth, *, only_shape: bool = False) -> Any:
    """(H, W) float32 along the optical axis, 0 = unknown; or its shape. Raises InputError where it cannot be read."""
    if depth.file.suffix not in (".h5", ".hdf5"):
        values = read_depth(depth).astype(np.float32)
        return values.shape if only_shape else values
    try:
        import h5py

        with h5py.File(depth.file, "r") as file:
            stored: Any = file["depth"]
            if stored.ndim != 2:
                raise ValueError(f"its depth has shape {stored.shape}")
            return stored.shape if only_shape else np.asarray(stored[()], np.float32) * np.float32(depth.scale)
    except ImportError as error:
        raise MissingExtra("h5py", "hdf5") from error
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{str(depth.file)!r} holds no data set 'depth' (H, W) ({error}); copy it again") from error


def camera_of(values: np.ndarray, centre: float = 0.0) -> Floats:
    """K (3, 3) with (0, 0) at the centre of the top-left pixel, which `values` have at (`centre`, `centre`)."""
    matrix = _square(values, 3) - [[0, 0, centre], [0, 0, centre], [0, 0, 0]]
    if min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise InputError(f"a camera K is {matrix.tolist()}; expected focal lengths above 0")
    return matrix


def rigid_of(values: np.ndarray) -> tuple[Floats, Floats]:
    """R (3, 3) and t (3,) of a 4x4 matrix."""
    rotation, translation = np.split(_square(values, 4)[:3], [3], axis=1)
    if not is_rotation(rotation):
        raise InputError(f"a pose's matrix is {rotation.tolist()}; expected a rotation: R^T R = 1, determinant 1")
    return rotation, translation[:, 0]


def _square(values: np.ndarray, side: int) -> Floats:
    try:
        matrix = values.astype(np.float64)
    except (ValueError, TypeError):
        matrix = np.array(np.nan)
    if matrix.size != side**2 or not np.isfinite(matrix).all():
        raise InputError(f"a matrix is {values.tolist()}; expected {side} x {side} finite numbers")
    return matrix.reshape(side, side)


class StoredFeatures:
    """Features of image files, each made once, as <stem>-<key>.npz in `folder`: a run that was killed goes on.

    Images are turned upright by their EXIF, and shrunk to `long_side` px for the extractor (None = as they are);
    coordinates are those of the stored pixels. At most `max_keypoints` an image, the best.
    """

    def __init__(
        self,
        folder: PathLike,
        extractor: Extractor,
        *,
        max_keypoints: int = 1024,
        long_side: int | None = 1024,
        device: torch.device | None = None,
    ) -> None:
        self.folder, self.extractor, self.signature = Path(folder), extractor, extractor.signature
        self.max_keypoints, self.long_side, self.device = max_keypoints, long_side, device
        self._keys: dict[Path, str] = {}
        self._loaded = functools.lru_cache(FEATURES_IN_MEMORY)(load_features)

    def key(self, file: Path) -> str:
        """Hex digits of all that the features follow from: the file's content, the extractor, the options."""
        if file not in self._keys:
            content = hashlib.sha256(file.read_bytes()).hexdigest() + reading_version(file)
            self._keys[file] = features_key(content, self.signature, self.max_keypoints, self.long_side)
        return self._keys[file]

    def get(self, file: Path) -> Features:
        """Of one image, in px of the stored image. Raises InputError where it cannot be read."""
        path = self._path(file)
        try:
            return self._loaded(path)
        except InputError:  # not there, or damaged
            self._make(file, path)
            return self._loaded(path)

    @in_team
    def fill(self, files: Sequence[Path], tell: Tell = lambda done, of: None) -> dict[str, str]:
        """Make what is missing, on all cores, `tell(done, all)` now and then. Gives what is wrong, by file."""
        problems: dict[str, str] = {}

        def make(file: Path) -> None:
            try:
                path = self._path(file)
                if not path.is_file():
                    self._make(file, path)
            except Exception as error:  # of an extractor, too: one image never ends a run
                problems[str(file)] = str(error)

        for start in range(0, len(files), _TOLD_EVERY):
            tell(start, len(files))
            some = files[start : start + _TOLD_EVERY]
            if self.device is None or self.device.type == "cpu":
                for_each(make, some)
            else:
                for file in some:
                    make(file)
        tell(len(files), len(files))
        return problems

    def _path(self, file: Path) -> Path:
        return self.folder / file_name(file.stem, f"-{self.key(file)[:16]}.npz")

    @torch.inference_mode()
    def _make(self, file: Path, path: Path) -> None:
        photo = read_photo(file)
        view = resized(upright(whole(photo.image, photo.valid), photo.orientation), self.long_side, only_shrink=True)
        mask = None if view.mask is None else view.mask[None].to(self.device)
        found = self.extractor.extract(view.image[None].to(self.device), mask)[0].to("cpu").top(self.max_keypoints)
        save_features(path, features_to_original(view, found), half=True)


class PairSampler:
    """Draws pairs of images: a bin of overlap evenly, then a pair of it evenly, then which of them is view 0.

    overlap_NN  share, symmetric, NaN = never drawn; pairs from `overlap[0]` to `overlap[1]` are, in `BINS` bins

    Raises InputError where there is none.
    """

    def __init__(self, overlap_NN: Floats, overlap: tuple[float, float], source: str) -> None:
        least, most = overlap
        if not 0 <= least < most <= 1:
            raise InputError(f"overlap is {overlap}; expected two shares, 0 <= least < most <= 1")
        upper_NN = np.triu(np.ones_like(overlap_NN, dtype=bool), 1)
        pairs_P2 = np.argwhere(upper_NN & (overlap_NN >= least) & (overlap_NN <= most))
        if not len(pairs_P2):
            found = overlap_NN[upper_NN & ~np.isnan(overlap_NN)]
            seen = f"overlaps run from {found.min():.2f} to {found.max():.2f}" if found.size else "there is no pair"
            wanted = f"none of the pairs of {len(overlap_NN)} images of {source} overlaps by {least} to {most}"
            raise InputError(f"{wanted}: {seen}. Use more images, or another range")
        share_P = (overlap_NN[tuple(pairs_P2.T)] - least) / (most - least)
        bin_P = np.minimum((share_P * BINS).astype(int), BINS - 1)
        self.bins = [pairs_P2[bin_P == one] for one in np.unique(bin_P)]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Of the images the numbers of view 0 and view 1."""
        pairs_P2 = self.bins[rng.integers(len(self.bins))]
        i, j = rng.permutation(pairs_P2[rng.integers(len(pairs_P2))]).tolist()
        return i, j

    def batch(
        self, size: int, rng: np.random.Generator, features: Callable[[int], Features], label: Label
    ) -> PairBatch:
        """Return so many pairs, of `features` of an image, and the `label` of two: targets of both.

        For a pair whose files cannot be read any more another one is drawn; raises InputError where none can be read.
        """
        views, labels, failed = [], [], 0
        while len(views) < size:
            i, j = self.draw(rng)
            try:
                pair, target = (features(i).as_seen(), features(j).as_seen()), label(i, j)
            except (InputError, OSError) as error:
                failed += 1
                if failed > _MOST_FAILED * size:
                    raise InputError(f"hardly any pair of images can be read any more: {error}") from error
                _log.warning("a pair is left out: %s", error)
                continue
            views.append(pair)
            labels.append(target)
        return stacked(views, labels)


def split_by_time(count: int, *, held_out: bool) -> np.ndarray:
    """Numbers of the images to learn from, or of those held out: the last tenth, as neighbours in time are alike."""
    kept = max(round(HELD_OUT_SHARE * count), min(count, 2))
    return np.arange(count)[-kept:] if held_out else np.arange(count)[:-kept]


def digest_of(*parts: object) -> str:
    """Hex digits of values whose `repr` is all of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class PosedPairs:
    """A `PairSource`: pairs of posed images, labelled by depth and pose; a point behind another surface is unmatchable.

    overlap   shares of the pairs that are drawn, evenly over that range
    held_out  those of the last tenth of the images, for validation; else those of the others

    Images without depth or that cannot be read are left out, with the reason in `problems`. Overlap that the data set
    does not have is found by depth and kept with the features. Raises InputError where no pair can be drawn.
    """

    def __init__(
        self,
        images: PosedImages,
        features: StoredFeatures,
        *,
        overlap: tuple[float, float] = OVERLAP,
        held_out: bool = False,
        tell: Tell = lambda done, of: None,
    ) -> None:
        chosen = split_by_time(len(images.images), held_out=held_out)
        self.features, self.signature = features, features.signature
        self.problems = images.problems | features.fill([images.images[i].file for i in chosen], tell)
        without = [str(one.file) for one in images.images if one.depth is None]
        self.problems |= {name: f"{name!r} has no depth; expected it of every image" for name in without}
        kept = [i for i in chosen if str(images.images[i].file) not in self.problems]
        self.images = [images.images[i] for i in kept]
        known_NN = None if images.overlap_NN is None else images.overlap_NN[np.ix_(kept, kept)]
        self.digest = digest_of([self._told(one) for one in self.images], overlap, np.asarray(known_NN).tolist())
        self._sight = functools.lru_cache(DEPTHS_IN_MEMORY)(lambda i: _sight(self.images[i]))
        overlap_NN = self._kept_overlap(overlap[0]) if known_NN is None else known_NN
        self.sampler = PairSampler(overlap_NN, overlap, "posed images")

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """See PairSource."""
        return self.sampler.batch(size, rng, lambda i: self.features.get(self.images[i].file), self.targets)

    def targets(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """(M,) and (N,) of the keypoints of two images, see `PairBatch.target_B2N`."""
        points0, points1 = (self.features.get(self.images[one].file).keypoints[0].double() for one in (i, j))
        return targets(points0, points1, self._landing(points0, i, j), self._landing(points1, j, i))

    def _landing(self, points_N2: Tensor, i: int, j: int) -> Landing:
        seen = _seen(points_N2.numpy(), (self._sight(i), self._sight(j)))
        known_N2 = np.where(seen.visible[:, None], seen.points, np.nan)
        return Landing(torch.from_numpy(known_N2), torch.from_numpy(seen.hidden))

    def _kept_overlap(self, least: float) -> Floats:
        """Return the overlaps as found before, or find them now; their key has the contents of all depth files."""
        depths = [hashlib.sha256(image.depth.file.read_bytes()).hexdigest() for image in self.images if image.depth]
        path = self.features.folder / f"overlap-{digest_of(self.digest, least, depths)[:16]}.npz"
        if (kept := read_if_whole(path, read_npz)) is not None:
            return kept["overlap_NN"]
        overlap_NN = overlap_by_depth(self.images, least)
        write_npz(path, {"overlap_NN": overlap_NN})
        return overlap_NN

    def _told(self, image: PosedImage) -> tuple[object, ...]:
        """What its pairs follow from; of a depth file, which may be large, the name and size."""
        assert image.depth is not None  # others are left out
        numbers = [one.tolist() for one in (image.camera, image.rotation, image.translation)]
        depth = image.depth.file.name, image.depth.file.stat().st_size, image.depth.scale, image.depth.step
        return self.features.key(image.file), *numbers, *depth


class _Sight(NamedTuple):
    """A posed image with its depth read, of which pixel (u, v) is pixel (u, v) * `step` of the image."""

    image: PosedImage
    depth_HW: np.ndarray
    step: int

    def grid(self) -> Floats:
        """(P, 2) px evenly over the image, where its depth is known."""
        size = np.array(self.depth_HW.shape[::-1]) * self.step
        x, y = ((np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(_GRID, size, strict=True))
        points_P2 = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return points_P2[~np.isnan(sample_depth(self.depth_HW, points_P2, self.step))]


def overlap_by_depth(images: Sequence[PosedImage], least: float) -> Floats:
    """(N, N) share of the pixels of known depth of one view that the other sees, the smaller of both directions.

    Of a grid of pixels, and with thinned maps of depth. 0 where the first direction is under `least`.
    """
    sights = [_sight(one, most_columns=_THINNED) for one in images]
    grids = [one.grid() for one in sights]
    overlap_NN = np.zeros((len(images),) * 2)
    for i, j in itertools.combinations([n for n, grid_P2 in enumerate(grids) if len(grid_P2)], 2):
        forth = _seen(grids[i], (sights[i], sights[j])).visible.mean()
        back = _seen(grids[j], (sights[j], sights[i])).visible.mean() if forth >= least else 0.0
        overlap_NN[i, j] = overlap_NN[j, i] = min(forth, back)
    return overlap_NN


def _seen(points: Floats, sights: tuple[_Sight, _Sight]) -> Covisible:
    """Which points (N, 2) px of the first the second sees."""
    (image0, depth0, step0), (image1, depth1, step1) = sights
    cameras, pose = (image0.camera, image1.camera), image0.pose_to(image1)
    return covisible(points, depth0, depth1, cameras, pose, steps=(step0, step1))


def _sight(image: PosedImage, most_columns: int | None = None) -> _Sight:
    """With its depth read, and thinned to fewer than twice so many columns."""
    assert image.depth is not None  # others are left out
    depth_HW = depth_of(image.depth)
    stride = max(1, depth_HW.shape[1] // most_columns) if most_columns else 1
    return _Sight(image, depth_HW[::stride, ::stride], image.depth.step * stride)
