"""Where pairs come from: a source gives batches, each by its own random numbers, so that any step can be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.train.batch import PairBatch, stacked
from isinglass.train.labels import landing_by_homography, targets
from isinglass.train.store import Views
from isinglass.train.views import between
from isinglass.types import Signature

HELD_OUT_EVERY = 20  # of so many photos one is for validation


class PairSource(Protocol):
    """Pairs with labels. `batch` is a function of its arguments alone."""

    signature: Signature  # of the features
    digest: str  # of all data that pairs are made of

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """So many pairs."""
        ...


def held_out_numbers(count: int) -> np.ndarray:
    """(count,) bool: which of so many photos or scenes are for validation; of several at least one is."""
    held_out = np.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held_out.any():
        held_out[-1:] = count > 1
    return held_out


class HomographyPairs:
    """Two random views of one photo, with exact labels (stage 1). `held_out`: of the photos kept for validation."""

    def __init__(self, views: Views, *, max_keypoints: int | None = None, held_out: bool = False) -> None:
        self.views, self.max_keypoints = views, max_keypoints
        self.signature, self.digest = views.signature, views.digest
        chosen = np.flatnonzero(held_out_numbers(views.num_photos) == held_out)
        if not len(chosen):
            raise InputError(f"there are {views.num_photos} photos; expected at least 2, as some are for validation")
        self.photos = np.setdiff1d(chosen, list(views.empty))
        if not len(self.photos):
            what = "held out for validation" if held_out else "to learn from"
            raise InputError(f"none of the {len(chosen)} photos {what} has a keypoint. Use more photos, or other ones")

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """See PairSource."""
        pairs, labels = [], []
        drawn = [
            (photo, *rng.choice(self.views.per_photo, 2, replace=False).tolist())
            for photo in rng.choice(self.photos, size, replace=size > len(self.photos)).tolist()
        ]
        self.views.prepare([(photo, number) for photo, *numbers in drawn for number in numbers])
        for photo, *numbers in drawn:
            (features0, view0), (features1, view1) = (self.views.features(photo, number) for number in numbers)
            if self.max_keypoints is not None:
                features0, features1 = features0.top(self.max_keypoints), features1.top(self.max_keypoints)
            forth = torch.from_numpy(between(view0, view1))
            points0, points1 = features0.keypoints[0], features1.keypoints[0]
            size0, size1 = (tuple(one.image_size[0].tolist()) for one in (features0, features1))
            landing0 = landing_by_homography(points0, forth, size1)
            landing1 = landing_by_homography(points1, torch.linalg.inv(forth), size0)
            pairs.append((features0, features1))
            labels.append(targets(points0, points1, landing0, landing1))
        return stacked(pairs, labels)


class MixedPairs:
    """Several sources, one a batch, by their shares: of many data sets, or of many detectors with one descriptor."""

    def __init__(self, sources: Sequence[PairSource], shares: Sequence[float] | None = None) -> None:
        if not sources:
            raise InputError("there is no source of pairs to mix")
        self.sources = list(sources)
        weights = np.ones(len(sources)) if shares is None else np.asarray(shares, float)
        if weights.shape != (len(sources),) or not (weights > 0).all():
            raise InputError(f"shares are {shares}; expected {len(sources)} numbers over 0")
        self.shares = weights / weights.sum()
        self.signature = sources[0].signature
        self.digest = hashlib.sha256(repr([one.digest for one in sources]).encode()).hexdigest()

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """See PairSource."""
        return self.sources[rng.choice(len(self.sources), p=self.shares)].batch(size, rng)
