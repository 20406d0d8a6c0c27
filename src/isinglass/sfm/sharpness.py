"""How sharp each frame of a sequence is, against the frames around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from isinglass.errors import InputError
from isinglass.images import read_image
from isinglass.sfm.frames import Frame

NEIGHBORS = 3  # frames before and after
_LONG_SIDE_PX = 640  # what sharpness is measured at: a blur that is gone at this size hurts no extractor
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def sharpness(image_3HW: Tensor) -> float:
    """Return the energy of the second derivative in the direction where it is least.

    Defocus lowers it in all directions, motion in one; so the least tells of both.
    """
    grey_HW = image_3HW.mean(dim=0)
    factor = _LONG_SIDE_PX / max(grey_HW.shape)
    if factor < 1:
        size = [max(round(side * factor), 3) for side in grey_HW.shape]
        grey_HW = interpolate(grey_HW[None, None], size=size, mode="area")[0, 0]
    height, width = grey_HW.shape
    if min(height, width) < 3:
        return 0.0

    def shifted(y: int, x: int) -> Tensor:
        return grey_HW[1 + y : height - 1 + y, 1 + x : width - 1 + x]

    return min(float((2 * shifted(0, 0) - shifted(y, x) - shifted(-y, -x)).square().mean()) for y, x in _DIRECTIONS)


def with_sharpness(frames: Iterable[Frame], every: int = 1) -> Iterator[tuple[Frame, float]]:
    """Yield each frame with its sharpness as a ratio to the median of the NEIGHBORS frames on either side.

    At most 2 * NEIGHBORS + 1 frames are held at a time. `every` is the step of their numbers: a frame that is missing
    is no reason to look further. The ratio is 1 where nothing can be compared: alone, blank, or not readable.
    """
    reach = NEIGHBORS * every
    held: list[tuple[Frame, float | None]] = []
    waiting = 0  # the first of `held` that has not been given yet
    for frame in frames:
        held.append((frame, _measured(frame)))
        while held[waiting][0].number + reach <= frame.number:
            yield held[waiting][0], _ratio(held, waiting, reach)
            waiting += 1
        while held[0][0].number + reach < held[waiting][0].number:
            held.pop(0)
            waiting -= 1
    for i in range(waiting, len(held)):
        yield held[i][0], _ratio(held, i, reach)


def _measured(frame: Frame) -> float | None:
    try:
        with torch.inference_mode():
            return sharpness(read_image(frame.image))
    except InputError:  # told when it is extracted
        return None


def _ratio(held: list[tuple[Frame, float | None]], i: int, reach: int) -> float:
    frame, own = held[i]
    others = [
        value
        for j, (other, value) in enumerate(held)
        if j != i and value is not None and abs(other.number - frame.number) <= reach
    ]
    around = median(others) if others else 0.0
    return own / around if own is not None and around > 0 else 1.0
