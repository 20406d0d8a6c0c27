"""Which images look alike: a vector of each (`sfm.vlad`), and an index of them. Similarities are dot products."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isinglass.errors import InputError
from isinglass.files import read_if_whole
from isinglass.files.atomic import PathLike
from isinglass.files.npz import decode_npz, write_npz
from isinglass.sfm.pairs import in_order
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.sfm.vlad import Vocabulary, faiss_module, learn_vocabulary, unit
from isinglass.types import Features, Signature

SCHEMA = "isinglass retrieval 1"
EXPANDED_BY = 5  # images that a query takes on: average query expansion (Chum et al., ICCV 2007), weighted
FLAT = 50_000  # images that are compared one by one; of more those in the cells nearest to a query are
CELLS_SEEN = 32
_ROWS = 4096  # of vectors at once
_SAVED_EVERY_S, _SAVED_EVERY = 60.0, 1000  # s, images


class Found(NamedTuple):
    """Of one query: places of images (K,) int64, the most similar first, and their similarities (K,) float32."""

    places: np.ndarray
    similarities: np.ndarray


class Retrieval:
    """The vectors of images, and the vocabulary that makes them. `learn` or `load` gives one.

    names    of the images added, sorted
    vectors  (I, R) float16, of unit length, or 0 of an image without keypoints
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._take([], [], np.zeros((0, vocabulary.size), np.float16))

    @classmethod
    def learn(
        cls,
        features: FeatureStore,
        *,
        words: int | None = None,
        dimensions: int | None = None,
        seed: int = 0,
        tell: Tell = lambda done, of: None,
    ) -> Retrieval:
        """With a vocabulary of the images of a store, and no images as yet. See `vlad.learn_vocabulary`."""
        return cls(learn_vocabulary(features, words=words, dimensions=dimensions, seed=seed, tell=tell))

    @property
    def signature(self) -> Signature:
        """Whose features it describes; those of another are an InputError."""
        return self.vocabulary.signature

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, features: Features) -> np.ndarray:
        """(R,) float32 of unit length; 0 without keypoints. Raises InputError for features of another signature."""
        return self.vocabulary.describe(features)

    def add(
        self,
        features: FeatureStore,
        names: Iterable[str] | None = None,
        *,
        save: PathLike | None = None,
        tell: Tell = lambda done, of: None,
    ) -> Retrieval:
        """Add images of a store, all if no names are given; those that are there with the same digest stay. Gives self.

        save  where to save now and then if it takes long, so that a killed run goes on from there

        Raises InputError for a store of another signature, or a name that it does not have.
        """
        wanted = list(features if names is None else names)
        todo = [name for name in wanted if not self._has(name, features.digest(name))]
        made: list[np.ndarray] = []
        first, saved_at = 0, time.monotonic()
        for i, name in enumerate(todo):
            made.append(self.describe(features.get(name)).astype(np.float16))
            tell(len(wanted) - len(todo) + i + 1, len(wanted))
            is_time = len(made) >= _SAVED_EVERY and time.monotonic() - saved_at > _SAVED_EVERY_S
            if i + 1 == len(todo) or (save is not None and is_time):
                done = todo[first : i + 1]
                self._join(done, [features.digest(one) or "" for one in done], np.stack(made))
                if save is not None:
                    self.save(save)
                made, first, saved_at = [], i + 1, time.monotonic()
        return self

    def query(
        self, image: Features | np.ndarray, count: int, *, among: Sequence[str] | None = None, expand: bool = True
    ) -> list[tuple[str, float]]:
        """The `count` images most like one, given by its features or its vector (R,), best first, and how alike.

        among   some of the images, to look among only these
        expand  look for what is like the query and its nearest images together; similarities are cosines of that

        Without keypoints nothing is alike.
        """
        vector_R = self.describe(image) if isinstance(image, Features) else np.asarray(image, np.float32)
        if vector_R.shape != (self.vocabulary.size,):
            raise InputError(f"a vector has shape {vector_R.shape}; expected ({self.vocabulary.size},)")
        rows = None if among is None else self._rows(among)
        if not vector_R.any() or not len(self if rows is None else rows):
            return []
        queries_1R = self._expanded(vector_R[None], None, rows) if expand else vector_R[None]
        (found,) = self._search(queries_1R, count, rows)
        return [(self.names[i], float(s)) for i, s in zip(found.places, found.similarities, strict=True)]

    def pairs(
        self,
        names: Sequence[str] | None = None,
        count: int = 20,
        *,
        among: Sequence[str] | None = None,
        least_similarity: float = -1.0,
        apart: int = 0,
        expand: bool = True,
    ) -> list[Pair]:
        """Each of the images `names` (None = all) with the `count` that are most like it. See `sfm.pairs`.

        among             they are looked for among these; None = all
        least_similarity  of a pair, cosine
        apart             only images count that are more places later or earlier in `names`: for loops of a sequence
        expand            as for `query`

        Images without keypoints are in no pair.
        """
        wanted = self.names if names is None else list(names)
        queried, rows = self._rows(wanted), None if among is None else self._rows(among)
        sequence_I = np.full(len(self), -(len(self) + apart + 1))  # far from all, if not of the sequence
        sequence_I[queried] = np.arange(len(wanted))
        found: list[Pair] = []
        for start in range(0, len(wanted), _ROWS):
            block = queried[start : start + _ROWS]
            queries_QR = self.vectors[block].astype(np.float32)
            if expand:
                queries_QR = self._expanded(queries_QR, block, rows)
            for row, one in zip(block, self._search(queries_QR, count + 1 + 2 * apart, rows), strict=True):
                far = np.abs(sequence_I[one.places] - sequence_I[row]) > apart
                good = np.logical_and(far & (one.places != row), one.similarities >= least_similarity)
                good &= self._filled[one.places]
                if self._filled[row]:
                    found += [(self.names[row], self.names[i]) for i in one.places[good][:count]]
        listed = set(wanted)
        return in_order(found, [*wanted, *(name for name in self.names if name not in listed)])

    def save(self, path: PathLike) -> None:
        """As .npz. Raises WriteError where it cannot be written."""
        v = self.vocabulary
        fields: dict[str, Any] = {"schema": SCHEMA, "signature": str(v.signature), "vocabulary": v.digest}
        fields |= {"words": v.words, "vectors": self.vectors}
        fields |= {} if v.axes is None else {"mean": v.mean, "axes": v.axes}
        fields |= {"names": np.array(self.names, np.str_), "digests": np.array(self._digests, np.str_)}
        write_npz(path, fields)

    @classmethod
    def load(cls, path: PathLike, signature: Signature | None = None) -> Retrieval:
        """What `save` wrote. Raises InputError where the file is missing, damaged, of another version or signature."""
        try:
            fields = decode_npz(Path(path).read_bytes())
            if fields["schema"].item() != SCHEMA:
                raise ValueError(f"its schema is {fields['schema'].item()!r}, expected {SCHEMA!r}")
            maker, axes = Signature.parse(fields["signature"].item()), fields.get("axes")
            made = cls(Vocabulary(signature=maker, words=fields["words"], mean=fields.get("mean"), axes=axes))
            if fields["vocabulary"].item() != made.vocabulary.digest:
                raise ValueError("its vocabulary is not the one that its vectors were made with")
            made._take(fields["names"].tolist(), fields["digests"].tolist(), fields["vectors"])
        except Exception as error:
            raise InputError(
                f"{str(path)!r} cannot be read as a retrieval ({error}). Delete it and make it again with this version"
            ) from error
        if signature is not None and made.signature != signature:
            raise InputError(f"{str(path)!r} is of {made.signature}, expected {signature}. Choose another file")
        return made

    # --- what is kept

    def _take(self, names: list[str], digests: list[str], vectors: np.ndarray) -> None:
        if vectors.shape != (len(names), self.vocabulary.size) or len(digests) != len(names) or names != sorted(names):
            raise ValueError(f"it has {len(names)} names, {len(digests)} digests and vectors {vectors.shape}")
        self.names, self._digests, self.vectors = names, digests, vectors
        self._place = {name: i for i, name in enumerate(names)}
        self._filled: np.ndarray = np.asarray(vectors.any(axis=1))
        self._index: Any = None

    def _join(self, names: list[str], digests: list[str], vectors: np.ndarray) -> None:
        again = set(names)
        kept = [i for i, name in enumerate(self.names) if name not in again]
        all_names = [self.names[i] for i in kept] + names
        all_digests = [self._digests[i] for i in kept] + digests
        order = sorted(range(len(all_names)), key=all_names.__getitem__)
        joined = np.concatenate([self.vectors[kept], vectors])[order]
        self._take([all_names[i] for i in order], [all_digests[i] for i in order], joined)

    def _has(self, name: str, digest: str | None) -> bool:
        return name in self and bool(digest) and self._digests[self._place[name]] == digest

    def _rows(self, names: Sequence[str]) -> np.ndarray:
        if unknown := [name for name in names if name not in self]:
            raise InputError(f"{unknown[0]!r} has not been added to this retrieval, which has {len(self)} images")
        return np.array([self._place[name] for name in names], np.int64)

    # --- the index

    def _expanded(self, queries_QR: np.ndarray, own: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray:
        """The queries, and of what is nearest to each as much as it is alike; `own`: the places of the queries."""
        expanded_QR = queries_QR.copy()
        for i, found in enumerate(self._search(queries_QR, EXPANDED_BY + 1, rows)):
            taken = (found.similarities > 0) & (True if own is None else found.places != own[i])
            places, weights = found.places[taken][:EXPANDED_BY], found.similarities[taken][:EXPANDED_BY]
            expanded_QR[i] += weights @ self.vectors[places].astype(np.float32)
        return unit(expanded_QR)

    def _search(self, queries_QR: np.ndarray, count: int, rows: np.ndarray | None) -> list[Found]:
        """For each query the most similar images, among `rows`; of equals those that come first."""
        if rows is not None and len(rows) <= _ROWS < FLAT < len(self):  # few, of which cells may hold none
            similar_QK = queries_QR @ self.vectors[rows].astype(np.float32).T
            places_QK = np.broadcast_to(rows, similar_QK.shape)
        else:
            most = len(self) if rows is None else len(rows)
            params = None if rows is None or most == len(self) else self._only(rows)
            wanted = max(min(count, most), 1)
            similar_QK, places_QK = self._built().search(np.ascontiguousarray(queries_QR), wanted, params=params)
        found = []
        for similarities, places in zip(similar_QK, places_QK, strict=True):
            order = np.lexsort((places, -similarities))
            order = order[places[order] >= 0][:count]
            found.append(Found(places[order], similarities[order]))
        return found

    def _only(self, rows: np.ndarray) -> Any:
        """What makes the index look among these alone."""
        faiss = faiss_module()
        selector = faiss.IDSelectorBatch(rows)
        if len(self) > FLAT:
            return faiss.SearchParametersIVF(sel=selector, nprobe=CELLS_SEEN)
        return faiss.SearchParameters(sel=selector)

    def _built(self) -> Any:
        """The index of all vectors: flat up to FLAT images, else in cells, four times the root of their number."""
        if self._index is None:
            faiss, size = faiss_module(), self.vocabulary.size
            self._index = faiss.IndexFlatIP(size)
            if len(self) > FLAT:
                cells = int(4 * len(self) ** 0.5)
                half, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
                self._index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(size), size, cells, half, inner)
                self._index.nprobe = CELLS_SEEN
                sample = np.random.default_rng(0).choice(len(self), min(len(self), 64 * cells), replace=False)
                self._index.train(self.vectors[np.sort(sample)].astype(np.float32))
            for start in range(0, len(self), _ROWS):
                self._index.add(self.vectors[start : start + _ROWS].astype(np.float32))
        return self._index


def retrieval_of(
    features: FeatureStore,
    file: PathLike | None = None,
    *,
    words: int | None = None,
    seed: int = 0,
    tell: Tell = lambda done, of: None,
) -> Retrieval:
    """With all images of a store; what `file` has of them already is taken from there, and `file` is written.

    A file that is damaged, of another signature, or of less than a half of the images is made again, words and all.
    """
    known = None
    if file is not None:
        known = read_if_whole(Path(file), lambda path: Retrieval.load(path, features.signature))
    missing = [name for name in features if known is None or name not in known]
    if known is None or 2 * len(missing) > len(features):
        known = Retrieval.learn(features, words=words, seed=seed, tell=tell)
    return known.add(features, save=file, tell=tell)
