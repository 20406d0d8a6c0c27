"""Which images look alike: one vector an image, of its local features, whose dot products are similarities.

VLAD (Jegou et al., CVPR 2010): each descriptor is assigned to the nearest word of a vocabulary, and what it differs
from that by is summed word by word. Differences count as unit vectors (Delhumeau et al., ACM MM 2013), and so do the
sums (Arandjelovic and Zisserman, CVPR 2013, section 3.1), so that neither far descriptors nor repeated ones prevail.
The vocabulary is learnt from the set itself; no weights are needed.

Legend: N descriptors of an image, D channels, W words, I images, V = W D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import InputError, MissingExtra
from isinglass.files.atomic import PathLike, write_atomically
from isinglass.sfm.pairs import in_order
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.types import Features, Signature

SCHEMA = "isinglass retrieval 1"
SAMPLED_IMAGES = 2000  # at most, that a vocabulary is learnt from
SAMPLED_A_WORD = 1000  # descriptors, at most
LEAST_A_WORD = 16  # fewer descriptors make fewer words
ITERATIONS = 25  # of k-means
_ROWS = 4096  # of vectors compared at once
Tell = Callable[[int, int], None]


class Retrieval:
    """The vectors of images, and what makes them. `learn` or `load` gives one.

    signature   whose features it describes; those of another are an InputError
    vocabulary  (W, D) float32
    names       of the images added, in the order that they were
    vectors     (I, V) float16, of unit length, or 0 of an image without features
    """

    def __init__(self, signature: Signature, vocabulary: np.ndarray) -> None:
        self.signature, self.vocabulary = signature, np.ascontiguousarray(vocabulary, np.float32)
        self.names: list[str] = []
        self.vectors = np.zeros((0, self.vocabulary.size), np.float16)
        self._digests: list[str] = []
        self._place: dict[str, int] = {}

    @classmethod
    def learn(
        cls,
        features: FeatureStore,
        *,
        words: int = 64,
        seed: int = 0,
        tell: Tell = lambda done, of: None,
    ) -> Retrieval:
        """With a vocabulary of so many words for the descriptors of these images, and no images as yet.

        The same features and seed give the same words. Of large sets a sample is read: memory is bounded. Fewer words
        come of few descriptors. Raises InputError where there are none at all, MissingExtra without faiss.
        """
        if words < 1:
            raise InputError(f"words is {words}; expected at least 1")
        rng = np.random.default_rng(seed)
        sample_SD = _sample(features, words * SAMPLED_A_WORD, rng, tell)
        if not len(sample_SD):
            raise InputError(f"the {len(features)} images of {str(features.path)!r} have no keypoints to learn from")
        words = max(min(words, len(sample_SD) // LEAST_A_WORD), 1)
        faiss = faiss_module()
        means = faiss.Kmeans(
            sample_SD.shape[1],
            words,
            niter=ITERATIONS,
            seed=seed + 1,
            min_points_per_centroid=1,
            max_points_per_centroid=SAMPLED_A_WORD,
        )
        means.train(sample_SD)
        return cls(features.signature, means.centroids)

    @property
    def vocabulary_id(self) -> str:
        """12 hex digits: vectors of two vocabularies cannot be compared."""
        return hashlib.sha256(str(self.signature).encode() + self.vocabulary.tobytes()).hexdigest()[:12]

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, features: Features) -> np.ndarray:
        """(V,) float32 of unit length; 0 without keypoints. Raises InputError for features of another signature."""
        if features.signature != self.signature:
            raise InputError(f"features of {features.signature} came; this retrieval was learnt of {self.signature}")
        if len(features) != 1 or features.mask is not None:
            raise InputError(f"features are a batch of {len(features)} or padded; expected one image's (use f[i])")
        descriptors_ND = _unit_descriptors(features)
        if descriptors_ND.shape[1] != self.vocabulary.shape[1]:
            raise InputError(f"descriptors have {descriptors_ND.shape[1]} channels, words {self.vocabulary.shape[1]}")
        return vlad(descriptors_ND, self.vocabulary).ravel()

    def add(
        self,
        features: FeatureStore,
        names: Iterable[str] | None = None,
        *,
        tell: Tell = lambda done, of: None,
    ) -> Retrieval:
        """Add images of a store, all if no names are given; those that are there with the same digest stay. Gives self.

        Raises InputError for a store of another signature, or a name that it does not have.
        """
        wanted = list(features if names is None else names)
        todo = [name for name in wanted if self._is_new(name, features.digest(name))]
        vectors = np.zeros((len(todo), self.vectors.shape[1]), np.float16)
        for i, name in enumerate(todo):
            vectors[i] = self.describe(features.get(name))
            tell(len(wanted) - len(todo) + i + 1, len(wanted))
        again = set(todo) & set(self.names)
        kept = [i for i, name in enumerate(self.names) if name not in again]
        self.vectors = np.concatenate([self.vectors[kept], vectors])
        self._digests = [self._digests[i] for i in kept] + [features.digest(name) or "" for name in todo]
        self.names = [self.names[i] for i in kept] + todo
        self._place = {name: i for i, name in enumerate(self.names)}
        return self

    def query(
        self, image: Features | np.ndarray, count: int, *, among: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The `count` images most like one, given by its features or its vector (V,), best first, and how alike.

        Similarities are cosines. `among` restricts to some of the images. Without keypoints nothing is alike.
        """
        vector_V = self.describe(image) if isinstance(image, Features) else np.asarray(image, np.float32)
        if vector_V.shape != (self.vectors.shape[1],):
            raise InputError(f"a vector has shape {vector_V.shape}; expected ({self.vectors.shape[1]},)")
        if not vector_V.any():
            return []
        ((places, similarities),) = self._search(vector_V[None], count, among)
        return [(self.names[i], float(s)) for i, s in zip(places, similarities, strict=True)]

    def pairs(
        self,
        names: Sequence[str] | None = None,
        count: int = 20,
        *,
        among: Sequence[str] | None = None,
        least_similarity: float = -1.0,
        apart: int = 0,
    ) -> list[Pair]:
        """Each of the images `names` (None = all) with the `count` that are most like it.

        among             they are looked for among these; None = all
        least_similarity  of a pair, cosine
        apart             only images count whose places in `self.names` differ by more: for loops of a sequence

        Pairs are in the order of `self.names`. Images without keypoints are in none.
        """
        wanted = self.names if names is None else list(names)
        if unknown := [name for name in wanted if name not in self]:
            raise InputError(f"{unknown[0]!r} has not been added to this retrieval, which has {len(self)} images")
        found: list[Pair] = []
        for start in range(0, len(wanted), _ROWS):
            rows = [self._place[name] for name in wanted[start : start + _ROWS]]
            nearest = self._search(self.vectors[rows].astype(np.float32), count + 1 + 2 * apart, among)
            for row, (places, similarities) in zip(rows, nearest, strict=True):
                if not self.vectors[row].any():
                    continue
                good = (np.abs(places - row) > apart) & (similarities >= least_similarity)
                good &= self.vectors[places].any(axis=1)
                found += [(self.names[row], self.names[i]) for i in places[good][:count]]
        return in_order(found, self.names)

    def save(self, path: PathLike) -> None:
        """As .npz. Raises WriteError where it cannot be written."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            schema=np.array(SCHEMA),
            signature=np.array(str(self.signature)),
            vocabulary=self.vocabulary,
            vocabulary_id=np.array(self.vocabulary_id),
            names=np.array(self.names, dtype=np.str_),
            digests=np.array(self._digests, dtype=np.str_),
            vectors=self.vectors,
        )
        with write_atomically(path) as temporary:
            temporary.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: PathLike) -> Retrieval:
        """What `save` wrote. Raises InputError where the file is missing, damaged, or of another kind or version."""
        try:
            with np.load(Path(path), allow_pickle=False) as archive:
                fields = {name: archive[name] for name in archive.files}
            if fields["schema"].item() != SCHEMA:
                raise ValueError(f"its schema is {fields['schema'].item()!r}, expected {SCHEMA!r}")
            made = cls(Signature.parse(fields["signature"].item()), fields["vocabulary"])
            made._take(fields)
        except Exception as error:
            raise InputError(
                f"{str(path)!r} cannot be read as a retrieval ({error}). Delete it and make it again with this version"
            ) from error
        return made

    def _take(self, fields: dict[str, np.ndarray]) -> None:
        self.names, self._digests = fields["names"].tolist(), fields["digests"].tolist()
        self.vectors = fields["vectors"]
        self._place = {name: i for i, name in enumerate(self.names)}
        if self.vectors.shape != (len(self.names), self.vocabulary.size) or len(self._digests) != len(self.names):
            raise ValueError(f"it has {len(self.names)} names and vectors {self.vectors.shape}")
        if fields["vocabulary_id"].item() != self.vocabulary_id:
            raise ValueError("its vocabulary is not the one that its vectors were made with")

    def _is_new(self, name: str, digest: str | None) -> bool:
        return name not in self or not digest or self._digests[self._place[name]] != digest

    def _search(
        self, queries_QV: np.ndarray, count: int, among: Sequence[str] | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query the places of the most similar images, best first, and their similarities."""
        rows = np.arange(len(self)) if among is None else np.array([self._place[name] for name in among], np.int64)
        blocks = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        similar_QI = np.concatenate(
            [np.zeros((len(queries_QV), 0), np.float32)]
            + [queries_QV @ self.vectors[block].astype(np.float32).T for block in blocks],
            axis=1,
        )
        order_QK = np.argsort(-similar_QI, axis=1, kind="stable")[:, :count]
        return [(rows[order], similar[order]) for order, similar in zip(order_QK, similar_QI, strict=True)]


def vlad(descriptors: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """(W, D) float32 of descriptors (N, D) and words (W, D); of unit length as a whole, or 0."""
    nearest_N = np.argmax(descriptors @ vocabulary.T - (vocabulary**2).sum(axis=1) / 2, axis=1)
    is_word_WN = (nearest_N == np.arange(len(vocabulary))[:, None]).astype(np.float32)
    return _unit(_unit(is_word_WN @ _unit(descriptors - vocabulary[nearest_N])).ravel()).reshape(vocabulary.shape)


def faiss_module() -> Any:
    """Raises MissingExtra without it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "maps") from error
    return faiss


def _unit(values: np.ndarray) -> np.ndarray:
    """Along the last axis of length 1, where it is not 0."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


def _unit_descriptors(features: Features) -> np.ndarray:
    """(N, D) float32; SIFT as RootSIFT, whose Euclidean distance is Hellinger's (CVPR 2012)."""
    descriptors_ND = features.descriptors[0].detach().float().cpu().numpy()
    if features.signature.descriptors == "sift":
        descriptors_ND = np.sqrt(np.maximum(descriptors_ND, 0))
        return _unit(descriptors_ND)
    return _unit(descriptors_ND)


def _sample(features: FeatureStore, most: int, rng: np.random.Generator, tell: Tell) -> np.ndarray:
    """(S, D) float32, up to `most` descriptors of up to SAMPLED_IMAGES images, as many of each."""
    names = list(features)
    chosen = sorted(rng.choice(len(names), min(len(names), SAMPLED_IMAGES), replace=False).tolist())
    parts = [np.zeros((0, 1), np.float32)]
    for done, place in enumerate(chosen, start=1):
        descriptors_ND = _unit_descriptors(features.get(names[place]))
        count = min(len(descriptors_ND), -(-most // len(chosen)))
        parts.append(descriptors_ND[np.sort(rng.choice(len(descriptors_ND), count, replace=False))])
        tell(done, len(chosen))
    filled = [part for part in parts if len(part)] or parts[:1]
    return np.ascontiguousarray(np.concatenate(filled)[:most])
