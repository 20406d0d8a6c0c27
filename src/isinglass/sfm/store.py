"""Features of many images and matches of many pairs, in HDF5 files that the tools of Hierarchical-Localization read.

How they are kept, and what happens to them when a process is killed, is in `isinglass.sfm.records`. In the file, as
hloc has it:
    features  /<image>/keypoints (N, 2) float32 px, descriptors (D, N), scores (N,), image_size (2,), and of some
              extractors scales, orientations, turns
    matches   /<image 0>/<image 1>/matches0 (N0,) int32, -1 = none, matching_scores0 (N0,) float32; in the names of the
              groups each "/" is "-"
    file      attributes: `schema`, `signature`, `settings`, what the records depend on beside the images, and `index`:
              of features name and digest of the image, and how many; of matches both names, both digests, layers run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike
from isinglass.files.fields import FEATURES, check, feature_fields, features_of
from isinglass.sfm.records import Records, Row
from isinglass.types import Features, Matches, Signature

FEATURES_SCHEMA, MATCHES_SCHEMA = "isinglass feature store 1", "isinglass match store 1"
Pair = tuple[str, str]


class FeatureStore(Records[str]):
    """Features by image name, such as "left/0001.jpg". Iterating gives the names, sorted.

    signature  who makes the features; settings: what they depend on beside image and signature, any text. Left out,
               the store must be there, and is taken as it is.
    half       new descriptors are kept as float16

    What is damaged is set aside, with the reason in `problems`; that image is then not in the store.
    Raises InputError for a file of another kind, signature or settings, MissingExtra without h5py.
    """

    schema = FEATURES_SCHEMA

    def __init__(
        self,
        path: PathLike,
        signature: Signature | None = None,
        settings: str | None = None,
        *,
        half: bool = True,
    ) -> None:
        super().__init__(path, signature, settings)
        self.half = half

    def add(self, features: Mapping[str, Features], digests: Mapping[str, str] | None = None) -> None:
        """Add images' features in one step, in place of what there was of them; `digests`: what each was made of.

        Raises InputError for features of another signature or a name that is none, WriteError where the disk is full.
        """
        known = digests or {}
        self._add(
            ((name, known.get(name, ""), str(one.keypoints.shape[1])), self._fields(name, one))
            for name, one in features.items()
        )

    def check(self, name: str, features: Features) -> None:
        """Raises InputError where `add` would for these features."""
        self._fields(name, features)

    def get(self, name: str) -> Features:
        """The features of an image. Raises InputError where there are none, or they are damaged."""
        fields = self._read(name)
        fields["descriptors"] = fields["descriptors"].T
        _checked(fields, name)
        return features_of({**fields, "signature": str(self.signature)})

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) float32 px, without reading the descriptors. Raises InputError likewise."""
        return self._read(name, ("keypoints",))["keypoints"]

    def count(self, name: str) -> int:
        """How many keypoints an image has, without reading them; 0 where there are no features."""
        row = self._row(name)
        return 0 if row is None else int(row[2])

    def digest(self, name: str) -> str | None:
        """What the features were made of, as `add` was told; None where there are none."""
        row = self._row(name)
        return None if row is None else row[1]

    def _fields(self, name: str, features: Features) -> dict[str, np.ndarray]:
        if features.signature != self.signature:
            raise InputError(f"features of {features.signature} came for {name!r}; expected {self.signature}")
        check_name(name)
        fields = feature_fields(features, half=self.half)
        _checked(fields, name)
        fields["descriptors"] = np.ascontiguousarray(fields["descriptors"].T)
        return fields

    def _key(self, row: Row) -> str:
        return row[0]

    def _group(self, row: Row) -> str:
        return row[0]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairMatches:
    """The matches of a pair: `indices` (N0,) int32 into view 1, -1 = none, `scores` (N0,) float32, and layers run."""

    indices: np.ndarray
    scores: np.ndarray
    stop_layer: int | None = None

    @staticmethod
    def of(matches: Matches) -> PairMatches:
        """Of one pair."""
        if len(matches) != 1:
            raise InputError(f"matches of {len(matches)} pairs came; expected those of one")
        stop = matches.stop_layer
        return PairMatches(
            indices=matches.indices[0].cpu().to(torch.int32).numpy(),
            scores=matches.scores[0].detach().float().cpu().numpy(),
            stop_layer=None if stop is None else int(stop[0]),
        )

    def pairs(self) -> np.ndarray:
        """(M, 2) int32, (keypoint of view 0, keypoint of view 1) of each match."""
        index0 = np.flatnonzero(self.indices >= 0).astype(np.int32)
        return np.column_stack([index0, self.indices[index0]])

    def swapped(self, count1: int) -> PairMatches:
        """The same from view 1, of `count1` keypoints, to view 0."""
        indices, scores = np.full(count1, -1, np.int32), np.zeros(count1, np.float32)
        index0, index1 = self.pairs().T
        indices[index1], scores[index1] = index0, self.scores[index0]
        return PairMatches(indices=indices, scores=scores, stop_layer=self.stop_layer)


class MatchStore(Records[Pair]):
    """Matches by the names of two images, in this order. Arguments and errors are as of `FeatureStore`.

    settings  which matcher and options made them
    """

    schema = MATCHES_SCHEMA

    def __init__(self, path: PathLike, signature: Signature | None = None, settings: str | None = None) -> None:
        super().__init__(path, signature, settings)

    def add(self, matches: Mapping[Pair, PairMatches], digests: Mapping[str, str] | None = None) -> None:
        """Add pairs' matches in one step; `digests` of the images, to know when their features have changed.

        Raises InputError where `check_names` does, WriteError where the disk is full.
        """
        known = digests or {}
        self.check_names({name for pair in matches for name in pair})
        records = []
        for pair, one in matches.items():
            if pair[0] == pair[1]:
                raise InputError(f"{pair[0]!r} came as a pair with itself; expected two images")
            if one.indices.shape != one.scores.shape or one.indices.ndim != 1 or one.indices.dtype != np.int32:
                raise InputError(
                    f"matches of {pair} are {one.indices.dtype} {one.indices.shape}, scores {one.scores.shape}; "
                    "expected int32 (N0,) and as many scores"
                )
            stop = "" if one.stop_layer is None else str(one.stop_layer)
            arrays = {"matches0": one.indices, "matching_scores0": one.scores.astype(np.float32)}
            records.append(((*pair, *(known.get(name, "") for name in pair), stop), arrays))
        self._add(records)
        if self._flat is not None:
            self._flat |= {_flat(name): name for pair in matches for name in pair}

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InputError where two images, of these and those there, would have one name in hloc's layout."""
        if self._flat is None:
            self._flat = {_flat(name): name for pair in self._where for name in pair}
        taken = dict(self._flat)
        for name in names:
            check_name(name)
            if (other := taken.setdefault(_flat(name), name)) != name:
                raise InputError(
                    f"images {other!r} and {name!r} have one name {_flat(name)!r} in the layout of hloc's files of "
                    "matches. Rename one"
                )

    def refresh(self) -> None:
        """See `Records.refresh`."""
        self._flat: dict[str, str] | None = None  # names in groups -> names; made when needed
        super().refresh()

    def get(self, name0: str, name1: str) -> PairMatches:
        """The matches of a pair as it was added. Raises InputError where there are none, or they are damaged."""
        arrays = self._read((name0, name1), ("matches0", "matching_scores0"))
        stop = self._where[name0, name1][1][4]
        return PairMatches(
            indices=arrays["matches0"],
            scores=arrays["matching_scores0"],
            stop_layer=int(stop) if stop else None,
        )

    def digests(self, pair: Pair) -> tuple[str, str] | None:
        """Of what both images' features were made when they were matched; None where the pair is not there."""
        row = self._row(pair)
        return None if row is None else (row[2], row[3])

    def _key(self, row: Row) -> Pair:
        return row[0], row[1]

    def _group(self, row: Row) -> str:
        return f"{_flat(row[0])}/{_flat(row[1])}"


def check_name(name: str) -> None:
    """Raises InputError unless it is a relative path in Unicode, with "/" between folders."""
    if name != name.strip("/") or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise InputError(f"an image has the name {name!r}; expected a relative path such as 'left/0001.jpg'")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"an image has the name {name!r}, which is no Unicode; rename it") from error


def _flat(name: str) -> str:
    return name.replace("/", "-")


def _checked(fields: Mapping[str, np.ndarray], name: str) -> None:
    try:
        check(fields, FEATURES)
    except ValueError as error:
        raise InputError(f"the features of {name!r}: {error}") from error
