"""Features of images that stand in a ring and each see a part of it, so that it can be said which ones overlap."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from isinglass.sfm.store import FeatureStore
from isinglass.types import Features, Signature

SIGNATURE = Signature(extractor="ring")
IMAGES, STEP, SEEN, CHANNELS = 24, 15, 60, 16  # an image sees 60 landmarks, the next one those 15 later


def name_of(number):
    return f"{number:02}.jpg"


NAMES = [name_of(number) for number in range(IMAGES)]


def steps_between(name0, name1):
    """How many images apart they are in the ring: under 4 they overlap."""
    apart = abs(int(name0[:2]) - int(name1[:2]))
    return min(apart, IMAGES - apart)


def overlapping():
    return {pair for pair in itertools.combinations(NAMES, 2) if steps_between(*pair) * STEP < SEEN}


def features_at(number, *, seed=0, signature=SIGNATURE, count=SEEN):
    """What image `number` has of the landmarks, each a little different every time that it is seen."""
    landmarks = np.random.default_rng(99).normal(size=(IMAGES * STEP, CHANNELS))
    rng = np.random.default_rng((seed, number))
    seen = (number * STEP + np.arange(SEEN)) % len(landmarks)
    descriptors = landmarks[rng.permutation(seen)[:count]]
    descriptors = descriptors + 0.2 * rng.normal(size=descriptors.shape)
    return Features(
        keypoints=torch.from_numpy(rng.uniform(0, 100, (1, count, 2))).float(),
        descriptors=torch.from_numpy(descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).float()[None],
        scores=torch.from_numpy(rng.uniform(size=(1, count))).float(),
        image_size=torch.tensor([[101, 101]]),
        signature=signature,
    )


def write_ring(path, numbers=range(IMAGES), **more):
    """A store of these images; `more`: further images by name."""
    store = FeatureStore(path, SIGNATURE, "none")
    features = {name_of(number): features_at(number) for number in numbers} | more
    store.add(features, {name: f"digest of {name}" for name in features})
    store.merge()
    return store
