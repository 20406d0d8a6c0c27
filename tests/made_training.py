"""What tests of training share: pairs of points made up, a small config, an extractor of bright pixels."""

import json

import numpy as np
import torch

from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.matchers.superglue import SuperGlueConfig
from isinglass.train.batch import stacked
from isinglass.train.config import TrainConfig
from isinglass.train.labels import landing_by_homography, targets
from isinglass.train.loop import LOG, Trainer
from isinglass.types import Features, Signature

SIZE, CHANNELS = (200, 150), 16
LIGHTGLUE = LightGlueConfig(input_size=CHANNELS, width=32, heads=2, layers=2)
SUPERGLUE = SuperGlueConfig(
    input_size=CHANNELS, width=32, heads=2, layers=4, encoder_widths=(16,), sinkhorn_iterations=10
)
SIGNATURE = Signature(extractor="made-up")


class MadeUp:
    """Random points under a random shift, with descriptors that nearly agree, and points of one view alone."""

    signature, digest = SIGNATURE, "made up"

    def __init__(self, common=20, alone=8, noise=0.3, spoilt=()):
        self.common, self.alone, self.noise, self.spoilt, self.asked = common, alone, noise, spoilt, 0

    def batch(self, size, rng):
        pairs, labels = [], []
        for _ in range(size):
            shift = torch.eye(3, dtype=torch.float64)
            shift[:2, 2] = torch.from_numpy(rng.uniform(-20, 20, 2))
            points0 = rng.uniform(20, 130, (self.common + self.alone, 2)).astype(np.float32)
            points1 = points0 + shift[:2, 2].numpy().astype(np.float32)
            points1[self.common :] = rng.uniform(20, 130, (self.alone, 2))
            known = rng.standard_normal((self.common + self.alone, CHANNELS)).astype(np.float32)
            noisy = known + self.noise * rng.standard_normal(known.shape).astype(np.float32)
            noisy[self.common :] = rng.standard_normal((self.alone, CHANNELS))
            order = rng.permutation(len(points1))
            views = [self._view(points0, known), self._view(points1[order], noisy[order])]
            landings = [
                landing_by_homography(view.keypoints[0], matrix, SIZE)
                for view, matrix in zip(views, (shift, torch.linalg.inv(shift)), strict=True)
            ]
            pairs.append(tuple(views))
            labels.append(targets(views[0].keypoints[0], views[1].keypoints[0], *landings))
        self.asked += 1
        batch = stacked(pairs, labels)
        if self.asked in self.spoilt:
            batch.descriptors_B2ND[0, 0, 0] = torch.nan
        return batch

    def _view(self, points, descriptors):
        return Features(
            keypoints=torch.from_numpy(points)[None],
            descriptors=torch.from_numpy(descriptors)[None],
            scores=torch.ones(1, len(points)),
            image_size=torch.tensor([SIZE]),
            signature=SIGNATURE,
        )


class OneBatch(MadeUp):
    """The same batch again and again."""

    def batch(self, size, rng):
        return super().batch(size, np.random.default_rng(0))


def config(model=LIGHTGLUE, **changes):
    settled = {"steps": 12, "batch_size": 4, "warmup_steps": 0, "learning_rate": 2e-3, "precision": "float32"}
    settled |= {"log_every": 1, "validate_every": 6, "save_every": 4}
    return TrainConfig(name="test", model=model, **{**settled, **changes})


def trainer(folder, made=None, source=None, **changes):
    return Trainer(made or config(**changes), source or MadeUp(), MadeUp(), folder, trained_on="made-up points")


def losses(folder):
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


class Corners:
    """An extractor that finds the brightest pixels of a smooth photo, and describes them by their surroundings."""

    signature = Signature(extractor="corners")

    def __init__(self):
        self.calls = 0

    def extract(self, images, mask=None):
        self.calls += 1
        height, width = images.shape[2:]
        blurred = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 5, 1, 2)
        top = blurred.flatten().topk(30)
        points = torch.stack([top.indices % width, top.indices // width], dim=-1).float()
        return Features(
            keypoints=points[None],
            descriptors=torch.nn.functional.unfold(blurred, 3, padding=1)[0].T[top.indices][None],
            scores=top.values[None],
            image_size=torch.tensor([[width, height]], device=images.device),
            signature=self.signature,
        )
