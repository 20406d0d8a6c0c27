"""Pairs to try: two photos of scikit-image, where that is installed, and a view that is made on the spot."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

_QUALITY = 92
_TURN_DEG = 25.0
_SIZE = (640, 480)


class Example(NamedTuple):
    """A pair of JPEG files, and the size of both."""

    title: str
    files: tuple[bytes, bytes]
    sizes: tuple[tuple[int, int], tuple[int, int]]


def names() -> tuple[str, ...]:
    """Of all examples that can be had here."""
    return tuple(name for name in _MADE if name != "motorcycle" or _skimage())


@functools.cache
def example(name: str) -> Example:
    """The example of that name; made once. Raises KeyError where there is none."""
    title, make = _MADE[name]
    images = make()
    return Example(title, (_encoded(images[0]), _encoded(images[1])), (images[0].size, images[1].size))


def listed() -> list[dict[str, Any]]:
    """What `GET /choices` says of them."""
    return [{"name": name, "title": example(name).title, "sizes": example(name).sizes} for name in names()]


def _motorcycle() -> tuple[Image.Image, Image.Image]:
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return Image.fromarray(left), Image.fromarray(right)


def _turned() -> tuple[Image.Image, Image.Image]:
    """A photo, or a drawing where there is none, and a view of it that is turned and tilted."""
    if _skimage():
        from skimage import data

        first = Image.fromarray(data.astronaut()).convert("RGB")
    else:
        first = _drawing()
    width, height = first.size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    angle = np.deg2rad(_TURN_DEG)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([width, height]) / 2
    shown = (corners - centre) * np.array([[1, 1], [0.8, 0.9], [0.8, 0.9], [1, 1]]) @ turn.T * 0.78 + centre
    coefficients = _perspective(shown, corners)
    return first, first.transform(first.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def _perspective(from_42: np.ndarray, to_42: np.ndarray) -> list[float]:
    """The eight numbers (a, ..., h) with to = ((a x + b y + c) / w, (d x + e y + f) / w), w = g x + h y + 1."""
    rows, values = [], []
    for (x, y), (u, v) in zip(from_42, to_42, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


def _drawing() -> Image.Image:
    rng = np.random.default_rng(0)
    image = Image.new("RGB", _SIZE, (225, 225, 215))
    pen = ImageDraw.Draw(image)
    for _ in range(150):
        centre, radius = rng.uniform((0, 0), _SIZE), rng.uniform(6, 40)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        corners = [tuple(centre + radius * np.array([np.cos(one), np.sin(one)])) for one in angles]
        pen.polygon(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def _encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=_QUALITY)
    return content.getvalue()


@functools.cache
def _skimage() -> bool:
    return importlib.util.find_spec("skimage") is not None


_MADE: dict[str, tuple[str, Callable[[], tuple[Image.Image, Image.Image]]]] = {
    "motorcycle": ("A motorcycle, from the left and from the right", _motorcycle),
    "turned": (f"A photo, and the same turned by {_TURN_DEG:g} degrees and tilted", _turned),
}
