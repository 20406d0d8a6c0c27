"""Features of a folder of photos, into a store; each photo once, whatever stops the run.

Names are relative to the folder, with "/" between folders: "left/0001.jpg".
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.images import IMAGE_SUFFIXES
from isinglass.pipeline import Pipeline
from isinglass.sfm.store import FeatureStore
from isinglass.types import Features

Tell = Callable[[int, int], None]  # done, of
IMAGES_A_PART, SECONDS_A_PART = 64, 5.0


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What became of photos: how many were extracted, how many were there, and which could not be used, and why."""

    made: int
    reused: int
    problems: dict[str, str]


def image_names(folder: PathLike) -> list[str]:
    """The names of all image files in and below a folder, sorted. What is hidden (".x") is left out.

    Raises InputError where there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; expected one of photos. Check the path")
    files = (file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    names = sorted(file.relative_to(root).as_posix() for file in files)
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        raise InputError(f"there is no image in or below {str(root)!r}; expected files {', '.join(IMAGE_SUFFIXES)}")
    return shown


def feature_settings(pipeline: Pipeline) -> str:
    """What features depend on beside photo, mask and extractor, as a store's `settings`."""
    o = pipeline.options
    return json.dumps(
        {
            "max_keypoints": o.max_keypoints,
            "resize": o.resize,
            "resize_side": o.resize_side,
            "rotation": "none" if o.rotation == "none" else "exif",
            "tile": pipeline.tile,
            "tile_overlap": None if pipeline.tile is None else o.tile_overlap,
            "min_distance": o.min_distance,
        }
    )


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

    masks  folder of images <name>.png, as COLMAP has them, or <name>: keypoints only where they are not black

    Raises InputError for a store of another extractor or settings, WriteError where the store cannot be written.
    """
    names = list(dict.fromkeys(names))
    with FeatureStore(store_path, pipeline.extractor.signature, feature_settings(pipeline)) as store:
        run = _Run(store, Path(photos), None if masks is None else Path(masks), len(names), tell)
        todo: list[tuple[str, str]] = []
        for features in pipeline.extract_each(run.sources(names, todo)):
            run.finish(*todo.pop(0), features)
        run.write()
        store.merge()
    return Filled(made=run.made, reused=len(names) - run.made - len(run.problems), problems=run.problems)


class _Run:
    """One run over photos: what waits to be written, and what is said of it."""

    def __init__(self, store: FeatureStore, photos: Path, masks: Path | None, count: int, tell: Tell) -> None:
        self.store, self.photos, self.masks, self.count, self.tell = store, photos, masks, count, tell
        self.problems: dict[str, str] = {}
        self.made = self.done = 0
        self._waiting: dict[str, Features] = {}
        self._digests: dict[str, str] = {}
        self._written_s = time.monotonic()

    def sources(self, names: Iterable[str], todo: list[tuple[str, str]]) -> Iterator[tuple[Path, Path | None]]:
        """Photo and mask of all that are to be made; their names and digests are put at the end of `todo`."""
        for name in names:
            photo, mask = self.photos / name, self._mask(name)
            try:
                digest = "+".join(_sha256(file) for file in (photo, mask) if file is not None)
            except OSError as error:
                self._problem(name, f"{str(photo)!r} or its mask cannot be read ({error})")
                continue
            if self.store.digest(name) == digest:
                self._one_done()
                continue
            todo.append((name, digest))
            yield photo, mask

    def finish(self, name: str, digest: str, features: Features | InputError) -> None:
        """Keep the features until there are enough for a part."""
        if isinstance(features, InputError):
            self._problem(name, str(features))
            return
        self._waiting[name], self._digests[name] = features.to("cpu"), digest
        self.made += 1
        if len(self._waiting) >= IMAGES_A_PART or time.monotonic() - self._written_s > SECONDS_A_PART:
            self.write()
        self._one_done()

    def write(self) -> None:
        """One part of what waits."""
        self.store.add(self._waiting, self._digests)
        self._waiting, self._digests, self._written_s = {}, {}, time.monotonic()

    def _mask(self, name: str) -> Path | None:
        if self.masks is None:
            return None
        return next((file for file in (self.masks / f"{name}.png", self.masks / name) if file.is_file()), None)

    def _problem(self, name: str, why: str) -> None:
        self.problems[name] = why
        self._one_done()

    def _one_done(self) -> None:
        self.done += 1
        self.tell(self.done, self.count)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
