"""Features of image files, made once: in memory while there is room, and in a folder that outlives the process."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.files import load_features, read_if_whole, save_features
from isinglass.images import reading_version
from isinglass.names import file_name
from isinglass.options import feature_settings, features_key, matching_options
from isinglass.pipeline import Pipeline
from isinglass.runtime.anatomy import PARTS, customized
from isinglass.types import Features
from isinglass.weights.pretrained import state_digest

FEATURES_IN_MEMORY = 64  # images; about 1 MB each
_SETTINGS = ("name", "weights_id", "config", "compute_dtype")  # of a model of this package


def matching_key(pipeline: Pipeline) -> str:
    """Return hex digits of all that matches depend on beside the images: features, options, and both models' weights.

    Weights count by their content, so a model that was changed after it was loaded has another key. It takes some
    hundredths of a second.
    """
    text = repr((
        str(pipeline.extractor.signature),
        _identity(pipeline.extractor),
        _identity(pipeline.matcher),
        feature_settings(pipeline.options, pipeline.tile),
        matching_options(pipeline.options),
    ))  # fmt: skip
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class FeatureCache:
    """Features that `pipeline` extracts, as <stem>-<key>.npz in `folder`; of one run, during which no model changes.

    The key covers the contents of image and mask, the extractor and its weights, and the options that features depend
    on. So a file that is there is the right one, and a damaged one is made again.
    """

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline, self.folder = pipeline, folder
        self._memory: OrderedDict[Path, Features] = OrderedDict()
        self._hashes: dict[tuple[Path, int, int], str] = {}  # by path, size and time of the last change
        settings = json.dumps(feature_settings(pipeline.options, pipeline.tile))
        self._settings = settings, _identity(pipeline.extractor)

    def get(self, image: Path, mask: Path | None = None, turns: Sequence[int] = (0,)) -> list[Features]:
        """Return features of the image under each number of quarter turns. Raises InputError on a bad image."""
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
        """Return the file of an image's features."""
        return self.folder / file_name(image.stem, f"-{self.key(image, mask)[:12]}{f'-turn{turn}' if turn else ''}.npz")

    def key(self, image: Path, mask: Path | None = None) -> str:
        """Return hex digits of all that the image's features depend on. Raises InputError where there is no file."""
        version = reading_version(image)  # of how its format is read, where that has changed
        contents = self._hash(image), None if mask is None else self._hash(mask)
        settings = (*self._settings, version) if version else self._settings
        return features_key(contents, self.pipeline.extractor.signature, *settings)

    def _find(self, path: Path) -> Features | None:
        """Return what is in memory or on disk, which is in memory then."""
        if path not in self._memory:
            if (features := read_if_whole(path, load_features)) is None:
                return None
            self._memory[path] = features
        self._memory.move_to_end(path)
        return self._memory[path]

    def _hash(self, path: Path) -> str:
        if not path.is_file():
            raise InputError(f"there is no file {str(path)!r}; expected an image. Check the path")
        stat = path.stat()
        known = path, stat.st_size, stat.st_mtime_ns
        if known not in self._hashes:
            try:
                self._hashes[known] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise InputError(f"{str(path)!r} cannot be read ({error}). Check its permissions") from error
        return self._hashes[known]


def _identity(model: Any) -> list[object]:
    """Return what a model computes with: its class, settings and weights, by content.

    Of a class of somebody else all attributes count. An attribute that says nothing but its address differs in every
    process, and so nothing of such a model is taken from an earlier one.
    """
    kind = type(model)
    told: list[object] = [f"{kind.__module__}.{kind.__qualname__}"]
    if changed := customized(model):
        told.append(changed)
    if isinstance(model, torch.nn.Module):
        told.append(state_digest(model.state_dict()))
    if kind.__module__.split(".")[0] == "isinglass":
        parts = (getattr(model, name, None) for name in PARTS)
        return [
            *told,
            *(getattr(model, name, None) for name in _SETTINGS),
            *(_identity(part) for part in parts if part is not None),
        ]
    hidden = isinstance(model, torch.nn.Module)  # what torch keeps there is in the weights
    own = {name: value for name, value in getattr(model, "__dict__", {}).items() if not (hidden and name[0] == "_")}
    return [*told, sorted((name, _digest({name: value})) for name, value in own.items())]


def _digest(values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            digest.update(state_digest({name: value}).encode())
        elif isinstance(value, np.ndarray):
            digest.update(repr((name, value.dtype, value.shape)).encode() + value.tobytes())
        else:
            digest.update(repr((name, value)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
