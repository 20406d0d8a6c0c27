"""Random views of photos: perspective, turns, light, blur and noise, on any device. What stage 1 learns from.

A view is a matrix (3, 3) that takes its points to those of the photo, with (0, 0) at the corner of the top-left pixel,
as in `isinglass.datasets.views`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.datasets.layout import PathLike, existing_folder
from isinglass.datasets.views import TO_CORNERS, Floats, Shape, middle, random_view
from isinglass.errors import InputError
from isinglass.images import read_image, reading_version
from isinglass.images.folder import Selection, list_photos
from isinglass.kernels.threads import for_each, in_team

DECODED_PHOTOS = 64  # kept in memory
LONG_SIDE_PX = 1600  # that decoded photos are reduced to
MIN_SIDE_PX = 64
_MIN_CONTRAST = 4 / 255  # a photo with less shows only noise that views add
_TOLD_EVERY = 32  # photos


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How views are drawn.

    size           (width, height) px, of a portrait photo turned
    inward         how far a corner comes in at most, as a share of the side; drawn up to that for each view
    max_angle_deg  180 = any turn
    photometric    strength of changes of light, blur and noise; 0 = none
    """

    size: Shape = (640, 480)
    inward: float = 0.45
    max_angle_deg: float = 45.0
    photometric: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.inward < 0.5:
            raise InputError(f"inward is {self.inward}; expected 0 to under 0.5, where opposite corners meet")
        if min(self.size) < MIN_SIDE_PX or self.photometric < 0 or not 0 <= self.max_angle_deg <= 180:
            raise InputError(f"{self} makes no sense; expected a size of at least {MIN_SIDE_PX} px, angles of 0 to 180")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class View:
    """`image_3HW` float32 in [0, 1]; `matrix` takes its points to the photo's."""

    image_3HW: Tensor
    matrix: Floats


class Photos:
    """The photos in and below a folder (of a `selection`, if there is one), and random views of them.

    Files that cannot be used are left out, with the reason in `problems`. Everything follows from the photos, the
    config and the seed. `tell(done, all)` now and then while they are read. Raises InputError where there is no photo.
    """

    def __init__(
        self,
        folder: PathLike,
        config: ViewConfig | None = None,
        *,
        seed: int = 0,
        selection: Selection | None = None,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.config, self.seed = config or ViewConfig(), seed
        listing = list_photos(existing_folder(folder, "photos"), selection, allow_none=True)
        found = [Path(folder) / name for name in listing.names]
        digests: dict[Path, str] = {}
        problems: dict[Path, str] = {}

        def check(file: Path) -> None:
            try:
                digests[file] = _digest_of_photo(file)
            except InputError as error:
                problems[file] = str(error)

        for start in range(0, len(found), _TOLD_EVERY):
            tell(start, len(found))
            in_team(for_each)(check, found[start : start + _TOLD_EVERY])
        tell(len(found), len(found))
        self.files = [file for file in found if file in digests]
        self.problems = {str(file): problems[file] for file in found if file in problems} | listing.problems
        if not self.files:
            reasons = [
                f"; {len(self.problems)} of the files cannot be used, such as {problem}" for problem in self._examples()
            ]
            raise InputError(
                f"{folder} has no photo to learn from; expected images (JPEG, PNG, WebP, ...){''.join(reasons)}"
            )
        self.contents = {
            file.relative_to(folder).as_posix(): digests[file][:16] + digests[file][64:] for file in self.files
        }
        self.settings = f"{self.config}, seed {seed}"
        self.digest = hashlib.sha256(repr((sorted(digests.values()), self.config, seed)).encode()).hexdigest()
        self._decoded = functools.lru_cache(DECODED_PHOTOS)(self._decode)

    def _examples(self) -> list[str]:
        """Return one file that is left out and why, if any is."""
        return [f"{file}: {reason}" for file, reason in list(self.problems.items())[:1]]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, photo: int) -> str:
        """Return the file of a photo."""
        return str(self.files[photo])

    def view(self, photo: int, number: int, device: torch.device | None = None) -> View:
        """View `number` of a photo. Number 0 is its middle as it is, but for the light."""
        rng = np.random.default_rng([self.seed, photo, number])
        pixels_3HW = self._decoded(photo).to(device)
        height, width = pixels_3HW.shape[1:]
        shape = self.config.size if width >= height else (self.config.size[1], self.config.size[0])
        matrix = middle((width, height), shape)
        if number:
            inward = self.config.inward * math.sqrt(rng.uniform())
            matrix = matrix @ random_view(shape, math.radians(self.config.max_angle_deg), rng, inward=inward)
        image_3HW = resampled(pixels_3HW.float() / 255, matrix, shape)
        if self.config.photometric:
            image_3HW = recoloured(image_3HW, self.config.photometric, rng)
        return View(image_3HW=image_3HW, matrix=matrix)

    def _decode(self, photo: int) -> Tensor:
        """(3, H, W) uint8."""
        pixels_3HW = read_image(self.files[photo])
        shrink = LONG_SIDE_PX / max(pixels_3HW.shape[1:])
        if shrink < 1:
            size = [max(round(side * shrink), 1) for side in pixels_3HW.shape[1:]]
            pixels_3HW = F.interpolate(pixels_3HW[None], size, mode="bilinear", antialias=True)[0]
        return (pixels_3HW * 255).round().clamp(0, 255).to(torch.uint8)


def _digest_of_photo(file: Path) -> str:
    """Hex digits of its bytes. Raises InputError where it cannot be read wholly, is too small or of one colour."""
    image_3HW = read_image(file)
    height, width = image_3HW.shape[1:]
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(f"{file} is {width} x {height} px; expected at least {MIN_SIDE_PX} px a side")
    if float((image_3HW.amax(dim=(1, 2)) - image_3HW.amin(dim=(1, 2))).max()) < _MIN_CONTRAST:
        raise InputError(f"{file} is of one colour; expected a photo with something in it")
    return hashlib.sha256(file.read_bytes()).hexdigest() + reading_version(file)


def between(view0: Floats, view1: Floats) -> Floats:
    """The homography of house pixels (see isinglass.types) from one view of a photo to another one."""
    matrix = np.linalg.inv(TO_CORNERS) @ np.linalg.inv(view1) @ view0 @ TO_CORNERS
    return matrix / matrix[2, 2]


def resampled(photo_3HW: Tensor, matrix: Floats, shape: Shape) -> Tensor:
    """What the view (3, height, width) shows: twice as many samples a side, of a photo of about as many pixels."""
    width, height = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ matrix.T
    x, y = corners[:, 0] / corners[:, 2], corners[:, 1] / corners[:, 2]
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    shrink = min(1.0, 2 * math.sqrt(width * height / area))
    photo_1CHW = photo_3HW[None]
    full = photo_3HW.shape[2], photo_3HW.shape[1]
    if shrink < 0.9:
        size = [max(round(side * shrink), 1) for side in photo_3HW.shape[1:]]
        photo_1CHW = F.interpolate(photo_1CHW, size, mode="bilinear", antialias=True)
    like = {"device": photo_3HW.device, "dtype": torch.float32}
    to_unit = torch.tensor(np.diag([2 / full[0], 2 / full[1], 1.0]) @ matrix, **like)
    u = (torch.arange(2 * width, **like) + 0.5) / 2
    v = (torch.arange(2 * height, **like) + 0.5) / 2
    x_HW3 = torch.stack(torch.broadcast_tensors(u, v[:, None], torch.ones((), **like)), dim=-1) @ to_unit.T
    grid_HW2 = x_HW3[..., :2] / x_HW3[..., 2:] - 1
    twice = F.grid_sample(photo_1CHW, grid_HW2[None], mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(twice, 2)[0]


def recoloured(image_3HW: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Another light and another camera: gamma, contrast, brightness, tint, shade, blur, noise."""
    height, width = image_3HW.shape[1:]
    like = {"device": image_3HW.device, "dtype": torch.float32}
    sigma_px = rng.uniform(0, 1.5 * strength) if rng.uniform() < 0.5 else 0.0
    image_3HW = _blurred(image_3HW, sigma_px) if sigma_px > 0.3 else image_3HW
    image_3HW = image_3HW.clamp(min=1e-4) ** math.exp(rng.uniform(-0.5, 0.5) * strength)
    tint_311 = torch.tensor(np.exp(rng.uniform(-0.1, 0.1, (3, 1, 1)) * strength), **like)
    contrast, brightness = math.exp(rng.uniform(-0.5, 0.3) * strength), rng.uniform(-0.2, 0.2) * strength
    image_3HW = (image_3HW * tint_311 - 0.5) * contrast + 0.5 + brightness
    ramp_x, ramp_y = rng.uniform(-0.2, 0.2, 2) * strength  # a light that falls off to one side
    shade_HW = ramp_x * torch.linspace(-1, 1, width, **like) + ramp_y * torch.linspace(-1, 1, height, **like)[:, None]
    noise = torch.from_numpy(rng.standard_normal(image_3HW.shape, dtype=np.float32)).to(**like)
    return (image_3HW + shade_HW + noise * (rng.uniform(0, 0.04) * strength)).clamp(0, 1)


def _blurred(image_3HW: Tensor, sigma_px: float) -> Tensor:
    radius = math.ceil(2.5 * sigma_px)
    steps = torch.arange(-radius, radius + 1, device=image_3HW.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image_3HW[None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)[0]
