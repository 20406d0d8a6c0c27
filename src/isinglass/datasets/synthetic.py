"""Benchmarks made of any photos: random homographies, a sweep of rotations, and a sweep of scales.

Views are cut from a photo so that they lie wholly inside it: no border is filled, so none can be matched. They are
written as PNG into a cache folder, under the hash of the photo's bytes and of all that was done, and made only once.
Everything follows from the photos, the options and the seed.

In this file points have (0, 0) at the corner of the top-left pixel, as Pillow resamples. A view is a matrix (3, 3) that
takes its points to those of the photo, and a shape (width, height) px.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFilter

from isinglass.datasets.layout import PathLike, collected, existing_folder, image_files
from isinglass.datasets.pairs import Benchmark, EvalPair, Floats
from isinglass.datasets.views import TO_CORNERS, Shape, middle, random_view, shift, turn, zoom
from isinglass.errors import InputError
from isinglass.files import write_atomically
from isinglass.images import read_header, read_image
from isinglass.images.folder import Selection
from isinglass.names import is_file

Photos = PathLike | Sequence[Path]
View = tuple[Floats, Shape]
_Item = TypeVar("_Item")

SUPERGLUE_AUC_AT = (1, 3, 5, 10)  # px: 10 is the one of its table 1
_VERSION = 1  # of how views are cut: files of another are made again
_MIN_SIDE_PX = 16  # of a photo


def synthetic_homographies(
    images: Photos,
    count: int,
    seed: int,
    cache: PathLike,
    *,
    size: Shape = (640, 480),
    max_angle_deg: float = 45.0,
    photometric: bool = True,
    selection: Selection | None = None,
) -> Benchmark:
    """`count` pairs: a photo and a random view of it, in turn through the photos (SuperGlue, section 5.1).

    images         a folder, searched with all that is in it, or image files
    size           (width, height) px of both views, of a portrait photo turned. View 0 is the middle of the photo in
                   that shape, view 1 a quadrilateral of it: each corner comes in by up to 0.4 of the side, then all
                   are turned by up to `max_angle_deg` and shifted as far as there is room. That is how glue-factory
                   draws them; what SuperGlue drew, with SuperPoint's sampler, is not published
    photometric    gamma, contrast, brightness, blur and noise, drawn for each view
    selection      which photos of a folder are used; None = all

    SuperGlue's numbers are precision, recall, and AUC of the corner error at 10 px by RANSAC and by DLT, with 512
    keypoints.

    Raises InputError where no photo can be used.
    """
    photos = _photos(images, selection)

    def pair(index: int) -> EvalPair:
        photo = photos[index % len(photos)]
        rng = np.random.default_rng([seed, index])
        shape = size if photo.size[0] >= photo.size[1] else (size[1], size[0])
        view0 = middle(photo.size, shape)
        view1 = view0 @ random_view(shape, math.radians(max_angle_deg), rng)
        seeds = rng.integers(2**32, size=2).tolist() if photometric else (None, None)
        return _pair(f"{photo.name}/{index}", "all", photo, Path(cache), ((view0, shape), (view1, shape)), seeds)

    options = f"seed {seed}, {size[0]}x{size[1]}, {max_angle_deg:g} deg{', photometric' if photometric else ''}"
    return replace(_benchmark("synthetic", options, photos, pair, range(count)), auc_at=SUPERGLUE_AUC_AT)


def rotation_sweep(
    images: Photos, step_deg: float, cache: PathLike, *, side_px: int = 480, selection: Selection | None = None
) -> Benchmark:
    """Every photo against itself turned by 0, `step_deg`, ... below 360 degrees, counter-clockwise as seen.

    Both views are the square that fits into the circle that fits into the photo, once upright and once turned about
    the middle: nothing is filled, and they share at least 83 % of their area. Its side is `side_px`, or less if the
    photo has less. The group of a pair is its angle: "030".

    Raises InputError where no photo can be used, or for a step that is not in (0, 360].
    """
    if not 0 < step_deg <= 360:
        raise InputError(f"step_deg is {step_deg}; expected more than 0 and at most 360")
    photos = _photos(images, selection)

    def pair(item: tuple[_Photo, float]) -> EvalPair:
        photo, angle_deg = item
        whole = min(photo.size) / math.sqrt(2)
        side = min(side_px, int(whole))
        to_middle = shift(photo.size[0] / 2, photo.size[1] / 2)
        view0 = to_middle @ zoom(whole / side) @ shift(-side / 2, -side / 2)
        view1 = to_middle @ turn(math.radians(angle_deg)) @ np.linalg.inv(to_middle) @ view0
        views = (view0, (side, side)), (view1, (side, side))
        return _pair(f"{photo.name}/{angle_deg:g}", f"{angle_deg:03g}", photo, Path(cache), views)

    angles = np.arange(0, 360 - 1e-9, step_deg).tolist()
    items = [(photo, angle) for photo in photos for angle in angles]
    return _benchmark("rotation", f"step {step_deg:g} deg, {side_px} px", photos, pair, items)


def scale_sweep(
    images: Photos,
    factors: Sequence[float],
    cache: PathLike,
    *,
    long_side_px: int = 640,
    selection: Selection | None = None,
) -> Benchmark:
    """Every photo against its middle magnified by each of the factors, which are 1 or more.

    Both views have the photo's shape, and a long side of `long_side_px` or less if the photo has less: so resizing all
    images to one size before extraction does not undo the factor. A view is blurred where the photo has fewer pixels:
    choose photos with a long side of `long_side_px` times the greatest factor. The group of a pair is "x2".

    Raises InputError where no photo can be used, or for factors below 1.
    """
    if not factors or not min(factors) >= 1:
        raise InputError(f"factors are {list(factors)}; expected at least one, and none below 1")
    photos = _photos(images, selection)

    def pair(item: tuple[_Photo, float]) -> EvalPair:
        photo, factor = item
        shrink = min(1.0, long_side_px / max(photo.size))
        shape = max(round(photo.size[0] * shrink), 1), max(round(photo.size[1] * shrink), 1)
        view0 = np.diag([photo.size[0] / shape[0], photo.size[1] / shape[1], 1.0])
        view1 = view0 @ shift(shape[0] / 2, shape[1] / 2) @ zoom(1 / factor) @ shift(-shape[0] / 2, -shape[1] / 2)
        views = (view0, shape), (view1, shape)
        return _pair(f"{photo.name}/x{factor:g}", f"x{factor:g}", photo, Path(cache), views)

    options = f"{long_side_px} px, x{' x'.join(f'{factor:g}' for factor in factors)}"
    return _benchmark("scale", options, photos, pair, [(photo, factor) for photo in photos for factor in factors])


# ---- photos and pairs


class _Photo:
    """A file, of which the pixels are read only when a view must be cut."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    @cached_property
    def digest(self) -> str:
        """Hex digits of its bytes, none where it cannot be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return ""

    @cached_property
    def size(self) -> Shape:
        """(width, height) px. Raises InputError where it is no image, or too small to cut a view from."""
        size = read_header(self.path).size
        if min(size) < _MIN_SIDE_PX:
            raise InputError(f"{str(self.path)!r} is {size[0]} x {size[1]} px; expected at least {_MIN_SIDE_PX} px")
        return size

    def pixels(self) -> Image.Image:
        """RGB, as stored. Raises InputError where it cannot be read wholly."""
        image_HWC = read_image(self.path).permute(1, 2, 0).numpy()
        return Image.fromarray((image_HWC * 255).round().astype(np.uint8))


def _photos(images: Photos, selection: Selection | None) -> list[_Photo]:
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [_Photo(Path(path).as_posix(), Path(path)) for path in images]
    folder = existing_folder(images, "photos")
    return [_Photo(path.relative_to(folder).as_posix(), path) for path in image_files(folder, selection)]


def _benchmark(
    name: str, options: str, photos: list[_Photo], pair: Callable[[_Item], EvalPair], items: Iterable[_Item]
) -> Benchmark:
    """With a protocol that also tells the photos."""
    digest = hashlib.sha256("".join(photo.digest for photo in photos).encode()).hexdigest()[:12]
    protocol = f"{name}/{_VERSION} {options}, {len(photos)} photos {digest}"
    return collected(name, protocol, "homography", pair, items if photos else ())


def _pair(
    name: str,
    group: str,
    photo: _Photo,
    cache: Path,
    views: tuple[View, View],
    seeds: Sequence[int | None] = (None, None),
) -> EvalPair:
    (view0, _), (view1, _) = views
    between = np.linalg.inv(TO_CORNERS) @ np.linalg.inv(view1) @ view0 @ TO_CORNERS
    image0, image1 = (_cut(photo, cache, view, seed) for view, seed in zip(views, seeds, strict=True))
    return EvalPair(name=name, image0=image0, image1=image1, group=group, homography=between / between[2, 2])


def _cut(photo: _Photo, cache: Path, view: View, seed: int | None) -> Path:
    """The file of a view, made if it is not there; with a seed its colours are changed."""
    identity = _VERSION, photo.digest, view[0].round(9).tolist(), view[1], seed
    file = cache / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:24]}.png"
    if not is_file(file):
        image = _resampled(photo.pixels(), *view)
        if seed is not None:
            image = _recoloured(image, np.random.default_rng(seed))
        with write_atomically(file) as temporary:
            image.save(temporary, format="PNG", compress_level=1)
    return file


# ---- pixels


def _resampled(photo: Image.Image, view: Floats, shape: Shape) -> Image.Image:
    """What the view shows: bicubic with twice as many samples a side, of a photo shrunk to about as many pixels."""
    width, height = shape
    corners_43 = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ view.T
    x_4, y_4 = corners_43[:, 0] / corners_43[:, 2], corners_43[:, 1] / corners_43[:, 2]
    area = abs(float(x_4 @ np.roll(y_4, -1) - y_4 @ np.roll(x_4, -1))) / 2
    shrink = min(1.0, 2 * math.sqrt(width * height / area))
    small = photo.resize(
        (max(round(photo.width * shrink), 1), max(round(photo.height * shrink), 1)), Image.Resampling.LANCZOS
    )
    scale = np.diag([small.width / photo.width, small.height / photo.height, 1.0])
    matrix = scale @ view @ zoom(0.5)
    coefficients = (matrix / matrix[2, 2]).reshape(-1)[:8].tolist()
    return small.transform(
        (2 * width, 2 * height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    ).reduce(2)


def _recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gamma, contrast, brightness, then blur and noise: mild enough that a person sees the same photo."""
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    values_HWC = (np.asarray(blurred, dtype=np.float64) / 255) ** math.exp(rng.uniform(-0.4, 0.4))
    values_HWC = (values_HWC - 0.5) * rng.uniform(0.6, 1.2) + 0.5 + rng.uniform(-0.15, 0.15)
    values_HWC = values_HWC + rng.normal(0, rng.uniform(0, 0.03), values_HWC.shape)
    return Image.fromarray((values_HWC.clip(0, 1) * 255).round().astype(np.uint8))
