"""One vector an image, of its local descriptors: VLAD, with words that are learnt from the images themselves.

VLAD (Jegou et al., CVPR 2010): each descriptor is assigned to the nearest word of a vocabulary, and what it differs
from that by is summed word by word. Differences count as unit vectors (Delhumeau et al., ACM MM 2013, section 3.1), and
so do the sums (Arandjelovic and Zisserman, CVPR 2013, section 3.1), so that neither far descriptors nor repeated ones
prevail. Vectors of large sets are projected on their principal axes; they are not whitened, as that was measured to
make them worse with as many images as learn here.

Legend: N descriptors of an image, D channels, W words, I images, V = W D numbers, R numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isinglass.errors import InputError, MissingExtra
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore
from isinglass.types import Features, Signature

SAMPLED_IMAGES = 2000  # at most, to learn from
SAMPLED_A_WORD = 1000  # descriptors, at most
LEAST_A_WORD = 16  # fewer descriptors make fewer words
LEAST_WORDS, MOST_WORDS = 16, 256  # where their number is chosen
ITERATIONS = 25  # of k-means
REDUCED_OVER, REDUCED_TO = 2000, 1024  # images, numbers a vector


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """What turns descriptors into a vector. Equal `digest` = vectors that can be compared.

    signature  whose descriptors
    words      (W, D) float32
    mean       (V,) float32 and axes (V, R) float32 to project on; None = vectors stay as they are, R = V
    """

    signature: Signature
    words: np.ndarray
    mean: np.ndarray | None = None
    axes: np.ndarray | None = None

    def __post_init__(self) -> None:
        size, shapes = self.words.size, [one.shape[:1] for one in (self.mean, self.axes) if one is not None]
        if self.words.ndim != 2 or shapes not in ([], [(size,), (size,)]):
            raise InputError(f"words have shape {self.words.shape}, mean and axes {shapes}; expected (W, D), W D twice")

    @property
    def size(self) -> int:
        """R."""
        return self.words.size if self.axes is None else self.axes.shape[1]

    @property
    def digest(self) -> str:
        """12 hex digits."""
        parts = [part.tobytes() for part in (self.words, self.mean, self.axes) if part is not None]
        return hashlib.sha256(str(self.signature).encode() + b"".join(parts)).hexdigest()[:12]

    def describe(self, features: Features) -> np.ndarray:
        """(R,) float32 of unit length, or 0 without keypoints.

        Raises InputError for features of another signature, for batches, and for numbers that are not finite.
        """
        if features.signature != self.signature:
            raise InputError(f"features of {features.signature} came; the vocabulary is of {self.signature}")
        if len(features) != 1 or features.mask is not None:
            raise InputError(f"features are a batch of {len(features)} or padded; expected one image's (use f[i])")
        descriptors_ND = unit_descriptors(features)
        if descriptors_ND.shape[1] != self.words.shape[1] or not np.isfinite(descriptors_ND).all():
            raise InputError(
                f"descriptors have {descriptors_ND.shape[1]} channels, or hold NaN; expected {self.words.shape[1]} "
                "finite ones"
            )
        vector_V = vlad(descriptors_ND, self.words).ravel()
        if self.axes is None or self.mean is None:
            return vector_V
        return unit((vector_V - self.mean) @ self.axes) if vector_V.any() else np.zeros(self.size, np.float32)


def learn_vocabulary(
    features: FeatureStore,
    *,
    words: int | None = None,
    dimensions: int | None = None,
    seed: int = 0,
    tell: Tell = lambda done, of: None,
) -> Vocabulary:
    """Of the images of a store: words by k-means; of more than REDUCED_OVER images also axes to project on.

    words       W; None = by the number of images, a power of two from 16 to 256. Fewer come of few descriptors
    dimensions  R; 0 = V, None = REDUCED_TO for large sets. No more than there are images to learn from

    The same features and seed give the same words. Of large sets a sample is read: memory is bounded. Raises InputError
    where there are no descriptors at all, MissingExtra without faiss.
    """
    if (words is not None and words < 1) or (dimensions is not None and dimensions < 0):
        raise InputError(f"words is {words} and dimensions {dimensions}; expected at least 1 and 0, or None")
    names, rng = list(features), np.random.default_rng(seed)
    wanted = words or int(np.clip(2 ** round(np.log2(max(len(names), 1) / 1.5)), LEAST_WORDS, MOST_WORDS))
    if dimensions is None:
        dimensions = REDUCED_TO if len(names) > REDUCED_OVER else 0
    chosen = [names[i] for i in sorted(rng.choice(len(names), min(len(names), SAMPLED_IMAGES), replace=False))]
    steps = len(chosen) * (2 if dimensions else 1)
    sample_SD = _sample(features, chosen, wanted * SAMPLED_A_WORD, rng, lambda done: tell(done, steps))
    if not len(sample_SD):
        raise InputError(f"the {len(names)} images of {str(features.path)!r} have no keypoints to learn from")
    plain = Vocabulary(signature=features.signature, words=_means(sample_SD, wanted, seed))
    if not dimensions:
        return plain
    vectors_IV = np.zeros((len(chosen), plain.size), np.float32)
    for i, name in enumerate(chosen):
        vectors_IV[i] = plain.describe(features.get(name))
        tell(len(chosen) + i + 1, steps)
    mean_V, axes_VR = principal_axes(vectors_IV, dimensions)
    if not axes_VR.size:  # all images are the same
        return plain
    return Vocabulary(signature=features.signature, words=plain.words, mean=mean_V, axes=axes_VR)


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(W, D) float32 of descriptors (N, D) and words (W, D); of unit length as a whole, or 0."""
    nearest_N = np.argmax(descriptors @ words.T - (words**2).sum(axis=1) / 2, axis=1)
    is_word_WN = (nearest_N == np.arange(len(words))[:, None]).astype(np.float32)
    sums_WD = is_word_WN @ unit(descriptors - words[nearest_N])
    return unit(unit(sums_WD).ravel()).reshape(words.shape)


def principal_axes(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V,) and the first axes (V, R) of vectors (I, V), R <= count, I - 1; by the Gram matrix, as V is large."""
    mean_V = vectors.mean(axis=0)
    centred_IV = vectors - mean_V
    values_I, sides_II = np.linalg.eigh((centred_IV @ centred_IV.T).astype(np.float64))
    order_R = np.argsort(-values_I)[: min(count, len(vectors))]
    order_R = order_R[values_I[order_R] > 1e-6 * max(values_I.max(), 1e-6)]
    axes_VR = centred_IV.T @ (sides_II[:, order_R] / np.sqrt(values_I[order_R])).astype(np.float32)
    return mean_V, np.ascontiguousarray(axes_VR, np.float32)


def unit(values: np.ndarray) -> np.ndarray:
    """Along the last axis of length 1, where it is not 0."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


def unit_descriptors(features: Features) -> np.ndarray:
    """(N, D) float32; SIFT as RootSIFT, whose Euclidean distance is Hellinger's (CVPR 2012)."""
    descriptors_ND = features.descriptors[0].detach().float().cpu().numpy()
    is_sift = features.signature.descriptors == "sift"
    return unit(np.sqrt(np.maximum(descriptors_ND, 0)) if is_sift else descriptors_ND)


def faiss_module() -> Any:
    """Raises MissingExtra without it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "maps") from error
    return faiss


def _means(sample_SD: np.ndarray, words: int, seed: int) -> np.ndarray:
    """(W, D) by k-means."""
    words = max(min(words, len(sample_SD) // LEAST_A_WORD), 1)
    means = faiss_module().Kmeans(
        sample_SD.shape[1],
        words,
        niter=ITERATIONS,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLED_A_WORD,
    )
    means.train(sample_SD)
    return np.ascontiguousarray(means.centroids, np.float32)


def _sample(
    features: FeatureStore, names: list[str], most: int, rng: np.random.Generator, tell: Callable[[int], None]
) -> np.ndarray:
    """(S, D) float32, up to `most` descriptors, as many of each image."""
    parts = [np.zeros((0, 1), np.float32)]
    for done, name in enumerate(names, start=1):
        descriptors_ND = unit_descriptors(features.get(name))
        count = min(len(descriptors_ND), -(-most // len(names)))
        parts.append(descriptors_ND[np.sort(rng.choice(len(descriptors_ND), count, replace=False))])
        tell(done)
    filled = [part for part in parts if len(part)] or parts[:1]
    return np.ascontiguousarray(np.concatenate(filled)[:most])
