"""Features of views, made once and kept on disk: on a CPU, extraction would take longer than learning from it.

One array a field, as .npy files that are mapped into memory, with room for `per_photo` views of every photo. A view
counts as made when all of it is there: a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isinglass.datasets.layout import PathLike
from isinglass.datasets.views import Floats
from isinglass.errors import InputError
from isinglass.ops.threads import for_each, in_team
from isinglass.types import Extractor, Features, Signature

_FIELDS = {"keypoints": (2,), "scores": (), "scales": (), "orientations": ()}
_TOLD_EVERY = 64  # views


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
    """What draws random views: `Photos`, or `isinglass.train.scenes.Scenes`, where each scene is as a photo here."""

    digest: str
    problems: dict[str, str]

    def __len__(self) -> int: ...

    def view(self, photo: int, number: int, device: torch.device | None = None, /) -> Shown:
        """View `number` of a photo."""
        ...


class Views(Protocol):
    """Features of random views of photos."""

    signature: Signature
    digest: str  # of all that they follow from
    num_photos: int
    per_photo: int  # how many views of a photo there are to draw from
    problems: dict[str, str]  # files that could not be used, and why

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """Of one view, and its matrix to the photo."""
        ...


class DrawnViews:
    """`Views` that are drawn and extracted each time, on the extractor's device: for GPUs."""

    def __init__(self, photos: Drawn, extractor: Extractor, *, max_keypoints: int, device: torch.device) -> None:
        self.photos, self.extractor, self.device = photos, extractor, device
        self.max_keypoints = max_keypoints
        self.signature, self.num_photos, self.per_photo = extractor.signature, len(photos), 2**31
        self.digest, self.problems = _digest(photos, extractor, max_keypoints), photos.problems

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """See Views."""
        view = self.photos.view(photo, number, self.device)
        return self.extractor.extract(view.image_3HW[None])[0].top(self.max_keypoints), view.matrix


class StoredViews:
    """`Views` in a folder, where `fill` puts them. Raises InputError where it has those of something else."""

    def __init__(
        self, folder: PathLike, photos: Drawn, extractor: Extractor, *, per_photo: int = 12, max_keypoints: int = 512
    ) -> None:
        self.folder, self.photos, self.extractor = Path(folder), photos, extractor
        self.signature, self.num_photos, self.per_photo = extractor.signature, len(photos), per_photo
        self.max_keypoints = max_keypoints
        self.digest, self.problems = _digest(photos, extractor, max_keypoints), photos.problems
        sample = extractor.extract(photos.view(0, 0).image_3HW[None])
        self._fields = [name for name in (*_FIELDS, "descriptors") if getattr(sample, name) is not None]
        self._arrays = self._open(sample.descriptors.shape[2])

    @property
    def missing(self) -> list[int]:
        """Views that are not made yet."""
        return np.flatnonzero(self._arrays["count"] < 0).tolist()

    def fill(self, tell: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Make what is missing, on all cores; `tell(done, all)` now and then."""
        missing = self.missing
        for start in range(0, len(missing), _TOLD_EVERY):
            tell(start, len(missing))
            self._make(missing[start : start + _TOLD_EVERY])

    def features(self, photo: int, number: int) -> tuple[Features, Floats]:
        """See Views."""
        row = photo * self.per_photo + number
        count = int(self._arrays["count"][row])
        if count < 0:
            self._make([row])
            count = int(self._arrays["count"][row])
        values: dict[str, Any] = {
            name: torch.from_numpy(self._arrays[name][row, :count].astype(np.float32))[None] for name in self._fields
        }
        size = torch.from_numpy(self._arrays["size"][row : row + 1].astype(np.int64))
        return Features(**values, image_size=size, signature=self.signature), np.array(self._arrays["matrix"][row])

    @in_team
    @torch.inference_mode()
    def _make(self, rows: list[int]) -> None:
        def make(row: int) -> None:
            view = self.photos.view(*divmod(row, self.per_photo))
            found = self.extractor.extract(view.image_3HW[None])[0].top(self.max_keypoints)
            count = found.keypoints.shape[1]
            for name in self._fields:
                self._arrays[name][row, :count] = getattr(found, name)[0].numpy()
            self._arrays["size"][row] = found.image_size[0].numpy()
            self._arrays["matrix"][row] = view.matrix
            self._arrays["count"][row] = count

        for_each(make, rows)

    def _open(self, channels: int) -> Mapping[str, np.ndarray]:
        rows = self.num_photos * self.per_photo
        shapes = {name: ((rows, self.max_keypoints, *_FIELDS.get(name, (channels,))), "f4") for name in self._fields}
        shapes["descriptors"] = (rows, self.max_keypoints, channels), "f2"
        shapes |= {"size": ((rows, 2), "i4"), "matrix": ((rows, 3, 3), "f8"), "count": ((rows,), "i4")}
        about = self.folder / "about.json"
        told = {"digest": self.digest, "per_photo": self.per_photo, "signature": str(self.signature)}
        if about.is_file():
            if (there := json.loads(about.read_text())) != told:
                raise InputError(f"{self.folder} has views of {there}; expected {told}. Choose another folder")
            return {name: np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="r+") for name in shapes}
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in shapes.items()
        }
        arrays["count"][:] = -1
        about.write_text(json.dumps(told))
        return arrays


def _digest(photos: Drawn, extractor: Extractor, max_keypoints: int) -> str:
    return hashlib.sha256(repr((photos.digest, str(extractor.signature), max_keypoints)).encode()).hexdigest()
