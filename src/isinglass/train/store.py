"""Features of views, made once and kept on disk: on a CPU, extraction would take longer than learning from it.

One array a field, as .npy files that are mapped into memory, with room for `per_photo` views of every photo. A view
counts as made when all of it is there: a run that was killed goes on where it was.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isinglass.datasets.layout import PathLike
from isinglass.datasets.views import Floats
from isinglass.errors import InputError
from isinglass.files import read_signed_json, write_signed_json
from isinglass.files.npz import NUMPY_DAMAGE
from isinglass.kernels.threads import for_each, in_team
from isinglass.options import features_key
from isinglass.types import Extractor, Features, Signature

_FIELDS = {"keypoints": (2,), "scores": (), "scales": (), "orientations": ()}
_TOLD_EVERY = 16  # views
_ABOUT = "about.json"
_VERSION = 1  # of how features of views are made: those of another are refused


class Shown(Protocol):
    """A view."""

    @property
    def image_3HW(self) -> Tensor:
        """float32 in [0, 1]."""
        ...

    @property
    def matrix(self) -> Floats:
        """(3, 3), which says where it was taken: to the photo, or a camera's K."""
        ...


class Drawn(Protocol):
    """What draws random views: `Photos`, or `isinglass.train.scenes.Scenes`, where each scene is as a photo here.

    contents  the photos by name, with a hash of each
    settings  all else that views follow from, in words
    """

    digest: str
    problems: dict[str, str]
    contents: dict[str, str]
    settings: str

    def __len__(self) -> int: ...

    def view(self, photo: int, number: int, device: torch.device | None = None, /) -> Shown:
        """View `number` of a photo. Raises InputError where the photo cannot be read any more."""
        ...

    def name(self, photo: int, /) -> str:
        """What a message calls the photo."""
        ...


class Views(Protocol):
    """Features of random views of photos."""

    signature: Signature
    digest: str  # of all that they follow from
    num_photos: int
    per_photo: int  # how many views of a photo there are to draw from
    problems: dict[str, str]  # files that could not be used, and why

    @property
    def empty(self) -> frozenset[int]:
        """Photos in no view of which there is a keypoint."""
        ...

    def prepare(self, views: Sequence[tuple[int, int]], /) -> None:
        """Make what is missing of these views (photo, number), all at once."""
        ...

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """Return features of one view, and its matrix to the photo."""
        ...


class DrawnViews:
    """`Views` that are drawn and extracted each time, on the extractor's device: for GPUs.

    A photo that cannot be read any more gives views without keypoints; `problems` has the reason.
    """

    empty = frozenset[int]()

    def __init__(self, photos: Drawn, extractor: Extractor, *, max_keypoints: int, device: torch.device) -> None:
        self.photos, self.extractor, self.device = photos, extractor, device
        self.max_keypoints = max_keypoints
        self.signature, self.num_photos, self.per_photo = extractor.signature, len(photos), 2**31
        self.digest, self.problems = _digest(photos, extractor, max_keypoints), photos.problems
        self._sample: Features | None = None

    def prepare(self, views: Sequence[tuple[int, int]]) -> None:
        """See Views: here a view is made when it is asked for."""

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """See Views."""
        try:
            view = self.photos.view(photo, number, self.device)
        except (InputError, OSError) as error:
            self.problems[self.photos.name(photo)] = str(error)
            if self._sample is None:
                self._sample = _sample(self.photos, self.extractor, self.device)
            return self._sample.top(0), np.eye(3)
        return self.extractor.extract(view.image_3HW[None])[0].top(self.max_keypoints), view.matrix


class StoredViews:
    """`Views` in a folder, where `fill` puts them, extracted on `device`. Each has a checksum.

    A view that cannot be made has no keypoints; `problems` has the reason, and the next run tries again. Raises
    InputError where the folder has views of other photos, of another extractor or with other settings.
    """

    def __init__(
        self,
        folder: PathLike,
        photos: Drawn,
        extractor: Extractor,
        *,
        per_photo: int = 12,
        max_keypoints: int = 512,
        device: torch.device | None = None,
    ) -> None:
        self.folder, self.photos, self.extractor = Path(folder), photos, extractor
        self.signature, self.num_photos, self.per_photo = extractor.signature, len(photos), per_photo
        self.max_keypoints, self.device = max_keypoints, device or torch.device("cpu")
        self.digest, self.problems = _digest(photos, extractor, max_keypoints), photos.problems
        self._check_about()
        self._sample = _sample(photos, extractor, self.device).top(0)
        self._fields = [name for name in (*_FIELDS, "descriptors") if getattr(self._sample, name) is not None]
        self._arrays = self._open(self._sample.descriptors.shape[2])
        self._failed: set[int] = set()

    @property
    def missing(self) -> list[int]:
        """Views that are not made yet."""
        return np.flatnonzero(self._arrays["count"] < 0).tolist()

    @property
    def empty(self) -> frozenset[int]:
        """See Views; photos of which no view is made yet are not among them."""
        count_PV = np.array(self._arrays["count"]).reshape(self.num_photos, self.per_photo)
        failed_PV = np.zeros_like(count_PV, dtype=bool)
        failed_PV.reshape(-1)[list(self._failed)] = True
        return frozenset(np.flatnonzero(((count_PV == 0) | failed_PV).all(axis=1)).tolist())

    def fill(self, tell: Callable[[int, int], None] = lambda done, of: None, *, until: float = math.inf) -> None:
        """Make what is missing, on all cores; `tell(done, all)` now and then.

        What is not made by `until`, by `time.monotonic`, is made when it is asked for: for that, views are made in an
        order that gives each photo a pair of views first. Raises InputError where no view has a keypoint.
        """
        missing = self.missing
        if until < math.inf:
            missing = sorted(missing, key=lambda row: (row % self.per_photo // 2, row))
        for start in range(0, len(missing), _TOLD_EVERY):
            if time.monotonic() >= until:
                return
            tell(start, len(missing))
            self._make(missing[start : start + _TOLD_EVERY])
        tell(len(missing), len(missing))
        for photo in self.empty:
            text = f"{self.photos.name(photo)!r} has no keypoint in any of its views: nothing is to be learnt from it"
            self.problems.setdefault(self.photos.name(photo), text)
        if len(self.empty) == self.num_photos:
            found = "; ".join(list(self.problems.values())[:3])
            raise InputError(f"no view of {self.num_photos} photos has a keypoint ({found}). Use other photos")

    def prepare(self, views: Sequence[tuple[int, int]]) -> None:
        """See Views."""
        rows = sorted({photo * self.per_photo + number for photo, number in views} - self._failed)
        if missing := [row for row in rows if self._arrays["count"][row] < 0]:
            self._make(missing)

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """See Views."""
        row = photo * self.per_photo + number
        if not self._is_whole(row) and row not in self._failed:
            self._make([row])
        count = int(self._arrays["count"][row])
        if count < 0:
            return self._sample, np.eye(3)
        values: dict[str, Any] = {
            name: torch.from_numpy(self._arrays[name][row, :count].astype(np.float32))[None] for name in self._fields
        }
        size = torch.from_numpy(self._arrays["size"][row : row + 1].astype(np.int64))
        return Features(**values, image_size=size, signature=self.signature), np.array(self._arrays["matrix"][row])

    @in_team
    @torch.inference_mode()
    def _make(self, rows: list[int]) -> None:
        def make(row: int) -> None:
            photo, number = divmod(row, self.per_photo)
            try:
                view = self.photos.view(photo, number)
                found = self.extractor.extract(view.image_3HW[None].to(self.device))[0].to("cpu")
            except Exception as error:  # of an extractor, too: one photo never ends a run
                self._failed.add(row)
                self._arrays["count"][row] = -1
                self.problems[self.photos.name(photo)] = f"{self.photos.name(photo)!r}: view {number}: {error}"
                return
            found = found.top(self.max_keypoints)
            count = found.keypoints.shape[1]
            self._arrays["count"][row] = -1
            for name in self._fields:
                self._arrays[name][row, :count] = getattr(found, name)[0].numpy()
            self._arrays["size"][row] = found.image_size[0].numpy()
            self._arrays["matrix"][row] = view.matrix
            self._arrays["checksum"][row] = self._checksum(row, count)
            self._arrays["count"][row] = count

        if self.device.type == "cpu":
            for_each(make, rows)
        else:
            for row in rows:
                make(row)

    def _is_whole(self, row: int) -> bool:
        """Whether a view is there as it was written; of stores without checksums (0), whether it is there."""
        count, checksum = int(self._arrays["count"][row]), int(self._arrays["checksum"][row])
        return 0 <= count <= self.max_keypoints and checksum in (0, self._checksum(row, count))

    def _checksum(self, row: int, count: int) -> int:
        parts = [self._arrays[name][row, :count] for name in self._fields]
        value = count
        for part in (*parts, self._arrays["size"][row], self._arrays["matrix"][row]):
            value = zlib.crc32(np.ascontiguousarray(part).tobytes(), value)
        return value or 1

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "per_photo": self.per_photo,
            "signature": str(self.signature),
            "max_keypoints": self.max_keypoints,
            "settings": self.photos.settings,
            "photos": dict(self.photos.contents),
            "version": _VERSION,
        }

    def _check_about(self) -> None:
        """Raise InputError where the folder has views of something else, and say what is not the same."""
        file = self.folder / _ABOUT
        if not file.is_file():
            return
        try:
            there = read_signed_json(file)
            differing = _difference(there, self._about)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{str(file)!r} cannot be read ({error}); delete the folder, to make the views anew"
            ) from error
        if differing:
            raise InputError(
                f"{str(self.folder)!r} has features of something else: {differing}. Choose another folder for the run "
                "and its features, or restore what was"
            )

    def _open(self, channels: int) -> Mapping[str, np.ndarray]:
        rows = self.num_photos * self.per_photo
        shapes: dict[str, tuple[tuple[int, ...], str]]
        shapes = {name: ((rows, self.max_keypoints, *_FIELDS.get(name, (channels,))), "f4") for name in self._fields}
        shapes["descriptors"] = (rows, self.max_keypoints, channels), "f2"
        shapes |= {"size": ((rows, 2), "i4"), "matrix": ((rows, 3, 3), "f8"), "count": ((rows,), "i4")}
        shapes["checksum"] = (rows,), "u4"
        if (self.folder / _ABOUT).is_file():
            return {name: self._reopened(name, *like) for name, like in shapes.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: self._new(name, *like) for name, like in shapes.items()}
        arrays["count"][:] = -1
        write_signed_json(self.folder / _ABOUT, self._about)
        return arrays

    def _new(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def _reopened(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        file = self.folder / f"{name}.npy"
        if name == "checksum" and not file.exists():  # of version 0.1
            return self._new(name, shape, dtype)
        try:
            array = np.lib.format.open_memmap(file, mode="r+")
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise ValueError(f"it has shape {array.shape} of {array.dtype}, expected {shape} of {dtype}")
        except NUMPY_DAMAGE as error:
            raise InputError(
                f"{str(file)!r} cannot be read ({error}); delete {str(self.folder)!r}, to make the views anew"
            ) from error
        return array


def _sample(photos: Drawn, extractor: Extractor, device: torch.device) -> Features:
    """Return features of the first view that has any. Raises InputError where no photo can be read."""
    problem: Exception | None = None
    for photo in range(len(photos)):
        try:
            return extractor.extract(photos.view(photo, 0).image_3HW[None].to(device))[0].to("cpu")
        except (InputError, OSError) as error:
            problem = error
    raise InputError(f"none of the {len(photos)} photos can be read any more: {problem}") from problem


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return what differs in words; of what an older version did not write, nothing is known."""
    words = []
    before, now = there.get("photos", here["photos"]), here["photos"]
    if before != now:
        kinds = {
            "new": now.keys() - before.keys(),
            "missing": before.keys() - now.keys(),
            "changed": {name for name in now.keys() & before.keys() if now[name] != before[name]},
        }
        for kind, names in kinds.items():
            if names:
                some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
                words.append(f"{len(names)} {kind} photo{'s' if len(names) > 1 else ''} ({some})")
    for key in ("signature", "per_photo", "max_keypoints", "settings", "version"):
        if there.get(key, here[key]) != here[key]:
            words.append(f"{key} {there[key]!r}, now {here[key]!r}")
    if not words and there.get("digest") != here["digest"]:
        words.append("other photos, or other settings of views")
    return ", ".join(words)


def _digest(photos: Drawn, extractor: Extractor, max_keypoints: int) -> str:
    return features_key(photos.digest, extractor.signature, max_keypoints)
