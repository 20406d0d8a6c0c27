"""Features of a folder of photos, into a store; each photo once, whatever stops the run.

Names are relative to the folder, with "/" between folders: "left/0001.jpg".
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from isinglass import options
from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.images import reading_version
from isinglass.images.folder import list_photos
from isinglass.images.masks import find_masks
from isinglass.pipeline import Pipeline
from isinglass.runtime.anatomy import customized
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, check_name
from isinglass.types import Features
from isinglass.weights.pretrained import Pretrained

IMAGES_A_PART, SECONDS_A_PART = 64, 5.0


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What became of photos: how many were extracted, how many were there, and which could not be used, and why."""

    made: int
    reused: int
    problems: dict[str, str]


def image_names(folder: PathLike) -> list[str]:
    """Return the names of the photos in and below a folder, as `images.folder.list_photos` does, which says more."""
    return list_photos(folder).names


def feature_settings(pipeline: Pipeline) -> str:
    """Return what features depend on beside photo, mask and extractor, as a store's `settings`.

    The extractor's signature says which weights it has; what was changed by hand since is here, weights as a digest.
    """
    settings, extractor = options.feature_settings(pipeline.options, pipeline.tile), pipeline.extractor
    if isinstance(extractor, Pretrained) and (digest := extractor.changed_weights()) is not None:
        settings["changed_weights"] = digest
    if (custom := customized(extractor)) is not None:
        settings["custom"] = custom
    return json.dumps(settings)


def extract_images(
    store_path: PathLike,
    photos: PathLike,
    names: Sequence[str],
    pipeline: Pipeline,
    *,
    masks: Path | None = None,
    tell: Tell = lambda done, of: None,
) -> Filled:
    """Put the features of photos `names` of the folder `photos` into a store; `tell` hears of every photo.

    What is there of the same contents (photo and mask) stays. A photo that cannot be read is a problem, and the others
    are done. A run that is killed loses the photos of its last seconds.

    masks  folder of masks, or one mask, see `images.masks`: keypoints only where they are not black

    Raises InputError for masks that fit no photo, and for a store of another extractor or settings; WriteError where
    the store cannot be written.
    """
    with FeatureStore(store_path, pipeline.extractor.signature, feature_settings(pipeline)) as store:
        run = Extraction(store, Path(photos), None if masks is None else Path(masks), names, tell)
        todo: deque[Missing] = deque()
        try:
            for features in pipeline.extract_each(_sources(run.missing(), todo)):
                run.finish(todo.popleft(), features)
        finally:
            run.write()
        store.merge()
    return run.filled()


class Missing(NamedTuple):
    """A photo that is to be extracted."""

    name: str
    digest: str  # of photo and mask
    photo: Path
    mask: Path | None


class Extraction:
    """The book of one run over photos: what is missing, by whom ever it is extracted, and what waits to be written."""

    def __init__(self, store: FeatureStore, photos: Path, masks: Path | None, names: Sequence[str], tell: Tell) -> None:
        self.store, self.photos, self.tell = store, photos, tell
        self.names = list(dict.fromkeys(names))
        self._masks = find_masks(masks, self.names, photos).of
        self.problems: dict[str, str] = {}
        self.made = self.reused = 0
        self._waiting: dict[str, Features] = {}
        self._digests: dict[str, str] = {}
        self._written_s = time.monotonic()

    def missing(self) -> Iterator[Missing]:
        """The photos that are not in the store with these contents; those that cannot be read are problems."""
        for name in self.names:
            photo, mask = self.photos / name, self._masks.get(name)
            try:
                check_name(name)
                version = reading_version(photo)
                digest = "+".join(_sha256(file) for file in (photo, mask) if file is not None)
                digest += f"+{version}" if version else ""
            except (OSError, InputError) as error:
                self._problem(name, f"{name!r} or its mask cannot be read ({error})")
                continue
            if self.store.digest(name) == digest:
                self.reused += 1
                self._tell()
            else:
                yield Missing(name, digest, photo, mask)

    def finish(self, one: Missing, features: Features | InputError) -> None:
        """Keep the features until there are enough for a part. Raises WriteError where that cannot be written."""
        if not isinstance(features, InputError):
            features = features.to("cpu")
            try:
                self.store.check(one.name, features)
            except InputError as error:
                features = error
        if isinstance(features, InputError):
            self._problem(one.name, str(features))
            return
        self._waiting[one.name], self._digests[one.name] = features, one.digest
        self.made += 1
        if len(self._waiting) >= IMAGES_A_PART or time.monotonic() - self._written_s > SECONDS_A_PART:
            self.write()
        self._tell()

    def write(self) -> None:
        """One part of what waits."""
        self.store.add(self._waiting, self._digests)
        self._waiting, self._digests, self._written_s = {}, {}, time.monotonic()

    def filled(self) -> Filled:
        """What became of the photos so far."""
        return Filled(made=self.made, reused=self.reused, problems=self.problems)

    def _problem(self, name: str, why: str) -> None:
        self.problems[name] = why
        self._tell()

    def _tell(self) -> None:
        self.tell(self.made + self.reused + len(self.problems), len(self.names))


def _sources(missing: Iterable[Missing], todo: deque[Missing]) -> Iterator[tuple[Path, Path | None]]:
    """Photo and mask of what is missing, which is put at the end of `todo`."""
    for one in missing:
        todo.append(one)
        yield one.photo, one.mask


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
