"""A scene so simple that it can be said what is true: a wall, a board before it, a camera that moves to the right."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from isinglass.train.posed import PosedPairs, StoredFeatures
from isinglass.types import Features, Signature

WIDTH, HEIGHT, FOCAL_PX = 160, 120, 100.0
CAMERA = np.array([[FOCAL_PX, 0, 79.5], [0, FOCAL_PX, 59.5], [0, 0, 1]])
WALL_M, BOARD_M = 4.0, 2.0
STEP_M = 0.4  # to the right from image to image: the wall moves left by 10 px, the board by 20
IMAGES = 12


class Known:
    """An extractor that finds the pixels of an image that are red, and counts the images that it saw."""

    signature = Signature(extractor="known")

    def __init__(self):
        self.seen = 0

    def extract(self, images, mask=None):
        self.seen += 1
        y, x = (images[0, 0] > 0.9).nonzero().T
        count = len(x)
        generator = torch.Generator().manual_seed(count)
        return Features(
            keypoints=torch.stack([x, y], dim=1).float()[None],
            descriptors=torch.randn(1, count, 4, generator=generator),
            scores=torch.linspace(1, 0, count)[None],
            image_size=torch.tensor([[images.shape[3], images.shape[2]]]),
            signature=self.signature,
        )


def depth_at(number):
    """(H, W) metres; the left upper corner is not known."""
    depth = np.full((HEIGHT, WIDTH), WALL_M)
    left = 120 - 20 * number
    depth[40:80, max(left, 0) : max(left + 30, 0)] = BOARD_M
    depth[:20, :20] = 0
    return depth


def keypoints_at(number, count=60):
    """(N, 2) px, some of the same points of the wall in every image."""
    rng = np.random.default_rng(number)
    shared = np.random.default_rng(99).integers([0, 0], [WIDTH + 10 * IMAGES, HEIGHT], (200, 2)) - [10 * number, 0]
    points = np.concatenate([shared, rng.integers([0, 0], [WIDTH, HEIGHT], (count, 2))])
    return points[((points >= 0) & (points < [WIDTH, HEIGHT])).all(axis=1)]


def write_scene(folder, step=2):
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    np.savetxt(folder / "K.txt", CAMERA)
    poses = []
    for number in range(IMAGES):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        x, y = keypoints_at(number).T
        pixels[y, x, 0] = 255
        pixels[0, 0, 1] = number  # no two files are the same
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        depth = (depth_at(number)[::step, ::step] * 1000).astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{number:03}.png")
        pose = np.eye(4)
        pose[0, 3] = STEP_M * number
        poses.append(" ".join([f"{number:03}", *map(str, pose.ravel())]))
    (folder / "poses.txt").write_text("\n".join(poses))
    return folder


def pairs_of(images, tmp_path, **options):
    extractor = options.pop("extractor", None) or Known()
    return PosedPairs(images, StoredFeatures(tmp_path / "features", extractor), **options)
