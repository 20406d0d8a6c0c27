"""SIFT (Lowe, IJCV 2004) and RootSIFT (Arandjelovic and Zisserman, CVPR 2012), by OpenCV.

No network and no weights. The extra `sift` installs OpenCV. Defaults are those of the SIFT that LightGlue's code runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isinglass.errors import MissingExtra
from isinglass.kernels.colour import luminance
from isinglass.numbers import MANY, check_numbers
from isinglass.types import Features, Signature, check_images

# OpenCV doubles the image so that its pixel x covers 2 x and 2 x + 1, whose centre is 2 x + 1/2, and halves positions
# without undoing that half pixel.
OPENCV_OFFSET_PX = 0.25
DESCRIPTOR_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class SIFTConfig:
    """Options of SIFT."""

    max_keypoints: int | None = 4096  # None = all
    contrast_threshold: float = 0.0066667  # of the difference of Gaussians in [0, 1], times `octave_layers`
    edge_threshold: float = 10.0  # largest ratio of principal curvatures
    octave_layers: int = 4
    sigma: float = 1.6  # px, of octave 0
    rootsift: bool = True  # False: Lowe's descriptors
    one_per_pixel: bool = True  # False: also the weaker keypoints and the further orientations within a pixel

    def __post_init__(self) -> None:
        check_numbers(self, max_keypoints=MANY, contrast_threshold=(0, 1e9), edge_threshold=(0, 1e9))
        check_numbers(self, octave_layers=(1, 100), sigma=(0.01, 1000))


class SIFT:
    """SIFT on the CPU: grey images to keypoints with scale, orientation and 128-d descriptors of unit length.

    Raises MissingExtra where OpenCV is not installed.
    """

    Config = SIFTConfig
    bytes_per_pixel = 280

    def __init__(self, config: SIFTConfig | None = None) -> None:
        self.config = config or SIFTConfig()
        _import_opencv()

    @property
    def signature(self) -> Signature:
        """Who it is, as written into its features."""
        return Signature(extractor="rootsift" if self.config.rootsift else "sift")

    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Features of `images` (B, C, H, W) float32 in [0, 1], RGB or grey, in pixels of those images, best first.

        A keypoint stays where the pixel of `mask` (B, H, W) bool that it lies in is True. The images are rounded to
        8 bits. Scores are the absolute difference of Gaussians.
        """
        check_images(images, mask)
        grey_BHW = (luminance(images)[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        masks = [None] * len(images) if mask is None else [*mask.cpu().numpy()]
        singles = [self._extract_one(grey_HW, mask_HW) for grey_HW, mask_HW in zip(grey_BHW, masks, strict=True)]
        return Features.stack(singles).to(images.device)

    def _extract_one(self, grey_HW: np.ndarray, mask_HW: np.ndarray | None) -> Features:
        config = self.config
        sift = _import_opencv().SIFT_create(
            nfeatures=0,
            nOctaveLayers=config.octave_layers,
            contrastThreshold=config.contrast_threshold,
            edgeThreshold=config.edge_threshold,
            sigma=config.sigma,
            enable_precise_upscale=False,
        )
        found, descriptors_ND = sift.detectAndCompute(grey_HW, None)
        if not found:
            descriptors_ND = np.zeros((0, DESCRIPTOR_SIZE), np.float32)
        columns = [(*point.pt, point.size, point.angle, point.response) for point in found]
        points_N5 = np.array(columns, np.float32).reshape(-1, 5)
        xy_N2, size_N, angle_N, response_N = points_N5[:, :2], points_N5[:, 2], points_N5[:, 3], points_N5[:, 4]
        kept = np.argsort(-response_N, kind="stable")
        if config.one_per_pixel:
            kept = kept[_best_of_pixel(xy_N2[kept], response_N[kept], angle_N[kept])]
        xy_N2 = xy_N2 - np.float32(OPENCV_OFFSET_PX)
        if mask_HW is not None:
            x_N, y_N = np.rint(xy_N2[kept]).astype(np.int64).T
            kept = kept[mask_HW[y_N, x_N]]
        kept = kept[: config.max_keypoints]
        return Features(
            keypoints=torch.from_numpy(xy_N2[kept])[None],
            descriptors=torch.from_numpy(_normalised(descriptors_ND[kept], config.rootsift))[None],
            scores=torch.from_numpy(response_N[kept])[None],
            scales=torch.from_numpy(size_N[kept])[None],
            orientations=torch.from_numpy(np.deg2rad(angle_N[kept]))[None],
            image_size=torch.tensor([[grey_HW.shape[1], grey_HW.shape[0]]], device="cpu"),
            signature=self.signature,
        )


def _best_of_pixel(xy_N2: np.ndarray, response_N: np.ndarray, angle_deg_N: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the best keypoint of each pixel of OpenCV's grid; of equals the one of least angle.

    OpenCV emits a keypoint for each dominant orientation of a place; LightGlue's code keeps one a pixel, in this way.
    """
    pixel_N2 = np.floor(xy_N2)
    order = np.lexsort((angle_deg_N, -response_N, pixel_N2[:, 0], pixel_N2[:, 1]))
    _, first = np.unique(pixel_N2[order], axis=0, return_index=True)
    return np.sort(order[first])


def _normalised(descriptors_ND: np.ndarray, rootsift: bool) -> np.ndarray:
    """Descriptors of unit length; for RootSIFT the square root of those whose sum is 1 (section 2 of the paper)."""
    order = 1 if rootsift else 2
    norm_N1 = np.linalg.norm(descriptors_ND, ord=order, axis=1, keepdims=True)
    unit_ND = descriptors_ND / np.maximum(norm_N1, np.finfo(np.float32).tiny)
    return np.sqrt(unit_ND) if rootsift else unit_ND


def _import_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "sift") from error
    return cv2
