"""Features of many images and matches of many pairs, in HDF5 files that the tools of Hierarchical-Localization read.

A store is one file, "features.h5", and beside it a folder of parts, "features.h5.parts", which is empty when nobody
writes. What is added comes as one part, a small file of its own, whole or not there at all; several processes may add
at the same time. `merge` puts the parts into the file, which is replaced in one step. So whenever a process is killed,
what was added before is there. Of two records of one name the later one counts.

In the file, as hloc has it:
    features  /<image>/keypoints (N, 2) float32 px, descriptors (D, N), scores (N,), image_size (2,), and of some
              extractors scales, orientations, turns; attribute `digest`: of the image that they were made of
    matches   /<image 0>/<image 1>/matches0 (N0,) int32, -1 = none, matching_scores0 (N0,) float32; attributes: `names`
              of both images (in those of the groups each "/" is "-"), `digests` of both, stop_layer
    file      attributes: `schema`, `signature`, and `settings`, what the records depend on beside the images
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike, write_atomically
from isinglass.files.fields import FEATURES, check, feature_fields, features_of
from isinglass.files.hdf5 import h5py_module, write_array
from isinglass.types import Features, Matches, Signature

FEATURES_SCHEMA, MATCHES_SCHEMA = "isinglass feature store 1", "isinglass match store 1"
OPEN_FILES = 16
_Key = TypeVar("_Key")


class _Store(Generic[_Key]):
    """Records by key; what both kinds of store share. A record is its arrays and attributes."""

    schema: str

    def __init__(self, path: PathLike, signature: Signature | None, settings: str | None) -> None:
        self.path = Path(path)
        self.folder = self.path.with_name(f"{self.path.name}.parts")
        self.problems: dict[str, str] = {}  # files that are damaged, which were set aside
        self._wanted = {"signature": None if signature is None else str(signature), "settings": settings}
        self._about: dict[str, str] | None = None
        self._where: dict[_Key, tuple[Path, str, Any]] = {}  # file, group in it, digest
        self._keys: dict[str, _Key] = {}  # of groups
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self.refresh()
        if self._about is None:
            if signature is None:
                raise InputError(f"there is no store {str(self.path)!r}; expected a file that Isinglass wrote")
            self._about = {"schema": self.schema, "signature": str(signature), "settings": settings or ""}

    @property
    def signature(self) -> Signature:
        """Who made the features."""
        return Signature.parse(self._told["signature"])

    @property
    def settings(self) -> str:
        """What the records depend on beside the images, as text."""
        return self._told["settings"]

    @property
    def _told(self) -> dict[str, str]:
        assert self._about is not None
        return self._about

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[_Key]:
        return iter(sorted(self._where))  # type: ignore[type-var]

    def refresh(self) -> None:
        """Also see what others have added meanwhile. Raises InputError for a store of another signature or settings."""
        self.close()
        self._where.clear()
        self._keys.clear()
        parts = sorted(self.folder.glob("*.h5")) if self.folder.is_dir() else []
        for file in ([self.path] if self.path.is_file() else []) + parts:
            try:
                self._read_index(file)
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                self._set_aside(file, error)

    def merge(self) -> None:
        """Put all parts into the file, which until then stays as it was. Raises WriteError where that cannot be."""
        parts = sorted({file for file, _, _ in self._where.values()} - {self.path})
        old = sorted(self.folder.glob("*.h5")) if self.folder.is_dir() else []
        if not parts and (self.path.is_file() or not old):
            self._remove(old)
            return
        with write_atomically(self.path) as temporary, h5py_module().File(temporary, "w", libver="latest") as merged:
            merged.attrs.update(self._told)
            for file, group, _ in self._where.values():
                self._file(file).copy(group, merged, name=group)
        self.close()
        self._remove(old)
        self.refresh()

    def close(self) -> None:
        """Let go of all files. The store can go on to be used."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for the two kinds

    def _add(self, records: Iterable[tuple[str, Mapping[str, np.ndarray], Mapping[str, Any]]]) -> None:
        """One part of records (group, arrays, attributes)."""
        file = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.h5"
        with write_atomically(file) as temporary, h5py_module().File(temporary, "w", libver="latest") as part:
            part.attrs.update(self._told)
            for name, arrays, attributes in records:
                group = part.create_group(name)
                group.attrs.update(attributes)
                for array_name, array in arrays.items():
                    write_array(group, array_name, array)
        self._read_index(file)

    def _read(self, key: _Key) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        file, name, _ = self._where[key]
        try:
            group = self._file(file)[name]
            return {part: dataset[()] for part, dataset in group.items()}, dict(group.attrs)
        except (OSError, RuntimeError, KeyError) as error:
            raise InputError(
                f"{key!r} in {str(file)!r} is damaged ({error}). Delete that file; what it held is then made again"
            ) from error

    def _digest(self, key: _Key) -> Any:
        return self._where[key][2] if key in self._where else None

    def _key(self, name: str, group: Any) -> tuple[_Key, Any]:
        """Key and digest of a group."""
        raise NotImplementedError

    # --- files

    def _read_index(self, file: Path) -> None:
        opened = self._file(file)
        about = {name: str(value) for name, value in opened.attrs.items()}
        if about.get("schema") != self.schema:
            raise InputError(
                f"{str(file)!r} has the schema {about.get('schema')!r}, expected {self.schema!r}. It is of another "
                "kind or version: give another path"
            )
        for name, wanted in self._wanted.items():
            if wanted is not None and about[name] != wanted:
                raise InputError(
                    f"{str(file)!r} was made with the {name} {about[name]!r}, expected {wanted!r}. Choose the same "
                    "options as then, or another path"
                )
        if self._about is not None and about != self._about:
            raise InputError(f"{str(file)!r} is of {about}, but {str(self.path)!r} of {self._about}. Give another path")
        found: dict[_Key, tuple[Path, str, Any]] = {}
        for name, group in _records(opened):
            key, digest = self._key(name, group)
            found[key] = file, name, digest
        self._about = about
        self._where |= found
        self._keys |= {name: key for key, (_, name, _) in found.items()}

    def _file(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = h5py_module().File(file, "r", locking=False)  # files are never changed in place
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(file)
        return self._open[file]

    def _set_aside(self, file: Path, error: Exception) -> None:
        self._close_one(file)
        aside = file.with_name(f"{file.name}.damaged")
        with suppress(OSError):
            file.replace(aside)
        self.problems[str(file)] = f"damaged ({error}); now {str(aside)!r}, and what it held is to be made again"

    def _close_one(self, file: Path) -> None:
        if file in self._open:
            self._open.pop(file).close()

    def _remove(self, parts: list[Path]) -> None:
        for part in parts:
            self._close_one(part)
            part.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


class FeatureStore(_Store[str]):
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
        records = []
        for name, one in features.items():
            if one.signature != self.signature:
                raise InputError(f"features of {one.signature} came for {name!r}; expected {self.signature}")
            if name != name.strip("/") or {"", ".", ".."} & set(name.split("/")):
                raise InputError(f"an image has the name {name!r}; expected a relative path such as 'left/0001.jpg'")
            fields = feature_fields(one, half=self.half)
            _checked(fields, name)
            fields["descriptors"] = np.ascontiguousarray(fields["descriptors"].T)
            records.append((name, fields, {"digest": (digests or {}).get(name, "")}))
        if records:
            self._add(records)

    def get(self, name: str) -> Features:
        """The features of an image. Raises InputError where there are none, or they are damaged."""
        if name not in self:
            raise InputError(f"there are no features of {name!r} in {str(self.path)!r}, which has {len(self)} images")
        fields, _ = self._read(name)
        fields["descriptors"] = fields["descriptors"].T
        _checked(fields, name)
        return features_of({**fields, "signature": str(self.signature)})

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) float32 px, without reading the descriptors."""
        file, group, _ = self._where[name]
        return self._file(file)[group]["keypoints"][()]

    def digest(self, name: str) -> str | None:
        """What the features were made of, as `add` was told; None where there are none."""
        return self._digest(name)

    def _key(self, name: str, group: Any) -> tuple[str, Any]:
        if "keypoints" not in group:
            raise KeyError("keypoints")
        return name, str(group.attrs["digest"])


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


Pair = tuple[str, str]


class MatchStore(_Store[Pair]):
    """Matches by the names of two images, in this order. Arguments and errors are as of `FeatureStore`.

    settings  which matcher and options made them
    """

    schema = MATCHES_SCHEMA

    def __init__(self, path: PathLike, signature: Signature | None = None, settings: str | None = None) -> None:
        super().__init__(path, signature, settings)

    def add(self, matches: Mapping[Pair, PairMatches], digests: Mapping[str, str] | None = None) -> None:
        """Add pairs' matches in one step; `digests` of the images, to know when their features have changed.

        Raises InputError where two pairs would have one place in hloc's layout, WriteError where the disk is full.
        """
        known = digests or {}
        groups: dict[str, Pair] = {}
        for pair, one in matches.items():
            group = "/".join(name.replace("/", "-") for name in pair)
            if pair[0] == pair[1] or {groups.setdefault(group, pair), self._keys.get(group, pair)} != {pair}:
                raise InputError(f"the pair {pair} has no place of its own: {group!r} is another's. Rename an image")
            if one.indices.shape != one.scores.shape or one.indices.dtype != np.int32:
                raise InputError(f"matches of {pair} have shapes {one.indices.shape} and {one.scores.shape}")
        self._add(
            (
                "/".join(name.replace("/", "-") for name in pair),
                {"matches0": one.indices, "matching_scores0": one.scores.astype(np.float32)},
                {
                    "names": list(pair),
                    "digests": [known.get(name, "") for name in pair],
                    **({} if one.stop_layer is None else {"stop_layer": one.stop_layer}),
                },
            )
            for pair, one in matches.items()
        )

    def get(self, name0: str, name1: str) -> PairMatches:
        """The matches of a pair as it was added. Raises InputError where there are none, or they are damaged."""
        if (name0, name1) not in self:
            raise InputError(f"there are no matches of {(name0, name1)} in {str(self.path)!r}")
        arrays, attributes = self._read((name0, name1))
        stop = attributes.get("stop_layer")
        return PairMatches(
            indices=arrays["matches0"],
            scores=arrays["matching_scores0"],
            stop_layer=None if stop is None else int(stop),
        )

    def digests(self, pair: Pair) -> tuple[str, str] | None:
        """Of what both images' features were made when they were matched; None where the pair is not there."""
        return self._digest(pair)

    def _key(self, name: str, group: Any) -> tuple[Pair, Any]:
        name0, name1 = (str(one) for one in group.attrs["names"])
        digest0, digest1 = (str(one) for one in group.attrs["digests"])
        if "matches0" not in group:
            raise KeyError("matches0")
        return (name0, name1), (digest0, digest1)


def _records(file: Any) -> Iterator[tuple[str, Any]]:
    """All groups that hold arrays, by their path."""
    pending = [("", file)]
    while pending:
        path, group = pending.pop()
        children = [(name, child) for name, child in group.items() if not hasattr(child, "shape")]
        if len(children) < len(group):
            yield path, group
        pending.extend((f"{path}/{name}".strip("/"), child) for name, child in children)


def _checked(fields: Mapping[str, np.ndarray], name: str) -> None:
    try:
        check(fields, FEATURES)
    except ValueError as error:
        raise InputError(f"the features of {name!r}: {error}") from error
