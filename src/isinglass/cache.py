"""Features of image files, made once: in memory while there is room, and in a folder that outlives the process."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isinglass.errors import InputError
from isinglass.files import load_features, save_features
from isinglass.images import reading_version
from isinglass.pipeline import Pipeline
from isinglass.types import Features

FEATURES_IN_MEMORY = 64  # images; about 1 MB each


def matching_key(pipeline: Pipeline) -> str:
    """Hex digits, of what matches depend on beside the images: all options, the weights, the matcher's settings."""
    matcher: Any = pipeline.matcher
    made_by = [getattr(matcher, name, None) for name in ("name", "weights_id", "config", "compute_dtype")]
    text = repr((pipeline.options, str(pipeline.extractor.signature), made_by))
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache:
    """What `pipeline` extracts, as <stem>-<key>.npz in `folder`.

    The key is of the contents of image and mask, the extractor, and the options that its features depend on; so a file
    that is there is the right one, and a damaged one is made again.
    """

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline, self.folder = pipeline, folder
        self._memory: OrderedDict[Path, Features] = OrderedDict()
        self._hashes: dict[Path, str] = {}

    def get(self, image: Path, mask: Path | None = None, turns: Sequence[int] = (0,)) -> list[Features]:
        """Features of the image under each number of quarter turns. Raises InputError on a bad image."""
        paths = [self.path(image, mask, turn) for turn in turns]
        missing = [turn for path, turn in zip(paths, turns, strict=True) if self._find(path) is None]
        if missing:
            made = self.pipeline.extract_turns(image, mask, turns=missing)
            for turn, features in zip(missing, made, strict=True):
                path = self.path(image, mask, turn)
                self._memory[path] = features.to("cpu")
                save_features(path, self._memory[path])
        found = [self._memory[path] for path in paths]
        while len(self._memory) > FEATURES_IN_MEMORY:
            self._memory.popitem(last=False)
        return found

    def path(self, image: Path, mask: Path | None = None, turn: int = 0) -> Path:
        """The file of an image's features."""
        return self.folder / f"{image.stem}-{self.key(image, mask)[:12]}{f'-turn{turn}' if turn else ''}.npz"

    def key(self, image: Path, mask: Path | None = None) -> str:
        """Hex digits. Raises InputError where there is no such file."""
        o = self.pipeline.options
        side = () if o.resize_side == "long" else (o.resize_side,)
        stretch = () if o.stretch == "auto" else (o.stretch,)  # files made before there was a choice stay good
        version = reading_version(image)
        how = (o.max_keypoints, o.resize, *side, o.rotation, self.pipeline.tile, o.tile_overlap, o.min_distance)
        how = (*how, *stretch, version) if version else (*how, *stretch)
        contents = self._hash(image), None if mask is None else self._hash(mask)
        text = repr((contents, str(self.pipeline.extractor.signature), how))
        return hashlib.sha256(text.encode()).hexdigest()

    def _find(self, path: Path) -> Features | None:
        """What is in memory or on disk, now in memory."""
        if path not in self._memory:
            if not path.is_file():
                return None
            try:
                self._memory[path] = load_features(path)
            except InputError:
                return None
        self._memory.move_to_end(path)
        return self._memory[path]

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            if not path.is_file():
                raise InputError(f"there is no file {str(path)!r}; expected an image. Check the path")
            self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._hashes[path]
