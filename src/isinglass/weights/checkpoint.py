"""Checkpoint files: read any known one, write our own, load strictly.

Ours is a safetensors file whose metadata say what it is. Of others are read: .pth and .pt state dicts, the .tar files
of glue-factory, and safetensors of the transformers classes. Nothing in a file is ever run: pickles are read by
torch's reader of plain weights only. Reading is in `isinglass.weights.reading`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isinglass.errors import WeightsError
from isinglass.weights.convert import FORMATS, State, find, infer_config
from isinglass.weights.fetch import file_sha256
from isinglass.weights.reading import TRAINING, encode_safetensors, read_file, shown
from isinglass.weights.records import known_file

FORMAT = 1
_FACTS = {"model": str, "config": dict, "name": str, "licence": str, "trained_on": str, "accepts": list | None}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A file's content, with our names of parameters."""

    state: State
    model: str  # name of the class
    origin: str  # who wrote the file
    config: Mapping[str, Any]  # options of the model's Config, as far as the file tells
    name: str  # of these weights: as the file says, else as published, else the file's stem
    weights_id: str  # first 12 hex digits of the file's sha256
    accepts: tuple[str, ...] | None = None  # matchers: extractors it was trained on; None = not told
    licence: str | None = None
    trained_on: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """What training needs to go on, beside the weights: `tensors`, and `about`, which is plain JSON."""

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


def read_checkpoint(path: Path | str, model: str | None = None) -> Checkpoint:
    """The weights in a file, of whichever known format.

    `model`: the class whose weights are wanted, where a file holds an extractor and a matcher; None = the matcher.
    Raises WeightsError where the file cannot be read or does not hold such a model.
    """
    path = Path(path)
    tensors, metadata = read_file(path)
    digest = file_sha256(path)
    checkpoint = _foreign(tensors, model, path, digest) if metadata is None else _own(tensors, metadata, path, digest)
    if model not in (None, checkpoint.model):
        raise WeightsError(f"{path} holds {checkpoint.model} as {checkpoint.origin} writes it; expected {model}")
    return checkpoint


def _own(state: State, metadata: Mapping[str, Any], path: Path, digest: str) -> Checkpoint:
    """By what our metadata say. JSON has lists where a Config has tuples."""
    if metadata.get("format") != FORMAT:
        told = shown(repr(metadata.get("format")))
        raise WeightsError(f"{path} is of another version of Isinglass: its format is {told}; update Isinglass")
    for name, kind in _FACTS.items():
        if name not in metadata or not isinstance(metadata[name], kind):
            told = shown(repr(metadata.get(name)))
            raise WeightsError(f"{path} is damaged: its metadata have the {name} {told}. Get it again")
    accepts = metadata["accepts"]
    if not all(isinstance(name, str) for name in accepts or ()):
        raise WeightsError(f"{path} is damaged: it accepts {shown(repr(accepts))}, expected names. Get it again")
    return Checkpoint(
        state=state,
        model=metadata["model"],
        origin="isinglass",
        config={key: tuple(value) if isinstance(value, list) else value for key, value in metadata["config"].items()},
        name=metadata["name"],
        weights_id=digest[:12],
        accepts=None if accepts is None else tuple(accepts),
        licence=metadata["licence"],
        trained_on=metadata["trained_on"],
    )


def _foreign(tensors: State, model: str | None, path: Path, digest: str) -> Checkpoint:
    """By the names and shapes of the tensors, and by the record of the file if it is a published one."""
    found = find(tensors, model) or find(tensors)
    if found is None:
        known = ", ".join(sorted({form.model for form in FORMATS}))
        raise WeightsError(
            f"{path} has {len(tensors)} tensors ({_some(list(tensors))}), which are of no known model; expected "
            f"one of {known} as its authors, glue-factory, transformers or Isinglass write it"
        )
    form, part = found
    try:
        state = form.convert(part)
        config = infer_config(form.model, state)
    except WeightsError:
        raise
    except Exception as error:  # names and shapes that no such model has
        raise WeightsError(
            f"{path} has a part of {form.model} as {form.origin} writes it, but not all of it, or not in its shapes "
            f"({type(error).__name__}: {shown(str(error))}). Get it again"
        ) from error
    published = known_file(path.name, digest, form.model)
    return Checkpoint(
        state=state,
        model=form.model,
        origin=form.origin,
        config={**config, **(published.config if published else {})},
        name=published.name if published else path.stem,
        weights_id=digest[:12],
        accepts=published.accepts if published else None,
        licence=published.licence if published else None,
        trained_on=published.trained_on if published else None,
    )


def save_checkpoint(
    model: nn.Module,
    path: Path | str,
    *,
    name: str,
    licence: str,
    trained_on: str,
    accepts: Sequence[str] | None = None,
    half: bool = False,
    training: TrainingState | None = None,
) -> Path:
    """Write the weights of one of our models, with what people must know of them. Returns the path.

    `half`: floats as float16, at half the size; they are read back as float32. `training` is for
    `read_training_state`; who loads the weights never sees it. A file of that name is replaced only when the new one
    is whole. Raises WeightsError where it cannot be written.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": dataclasses.asdict(model.config),  # pyright: ignore[reportArgumentType]
        "name": name,
        "licence": licence,
        "trained_on": trained_on,
        "accepts": None if accepts is None else list(accepts),
    }
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    if half:
        state = {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}
    if training is not None:
        metadata["training"] = training.about
        state |= {
            f"{TRAINING}{key}": value.detach().cpu().contiguous().clone() for key, value in training.tensors.items()
        }
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(encode_safetensors(state, metadata))
        part.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error}. Make room, or choose a folder you may write to") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def read_training_state(path: Path | str) -> TrainingState:
    """What `save_checkpoint` was given as `training`. Raises WeightsError where the file has none."""
    tensors, metadata = read_file(Path(path), training=True)
    about = None if metadata is None else metadata.get("training")
    if not isinstance(about, dict):
        raise WeightsError(f"{path} has weights alone; expected a checkpoint that training goes on from")
    of_training = {key.removeprefix(TRAINING): value for key, value in tensors.items() if key.startswith(TRAINING)}
    return TrainingState(tensors=of_training, about=about)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load all parameters and buffers of `model`. Raises WeightsError where `check_fits` does."""
    check_fits(model, state, source)
    model.load_state_dict(dict(state))


def check_fits(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Raise WeightsError, with a report, unless names and shapes agree, and the numbers are of the model's kind."""
    wanted = model.state_dict()
    # a count of batches that only a trainer without momentum would use; files of before 2018 lack it
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    foreign = [key for key in state if key not in wanted]
    common = [key for key in wanted if key in state]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in common
        if state[key].shape != wanted[key].shape
    ]
    mistyped = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key in common
        if not _is_castable(state[key].dtype, wanted[key].dtype)
    ]
    spoilt = [key for key in common if not mistyped and not _is_finite(state[key], wanted[key].dtype)]
    kinds = {
        "missing": missing,
        "foreign": foreign,
        "of another shape": misshaped,
        "of another type": mistyped,
        "with NaN or infinity": spoilt,
    }
    report = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys)
    if report:
        what = type(model).__name__
        if not common:
            hint = f"No name agrees: the file is of another model than {what}"
        elif misshaped and not (missing or foreign):
            hint = f"{what} was configured for other sizes: leave out options such as widths and layers"
        elif mistyped:
            hint = "Weights are float32, float16, bfloat16 or float64, and counts are integers: save them as such"
        else:
            hint = f"The file is of another variant of {what}, or not whole"
        raise WeightsError(f"{source} does not fit {what}. Keys: {report}. {hint}")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _is_castable(dtype: torch.dtype, wanted: torch.dtype) -> bool:
    return dtype == wanted or any(dtype in kind and wanted in kind for kind in (_FLOATS, _INTEGERS))


def _is_finite(value: Tensor, wanted: torch.dtype) -> bool:
    """Return whether all numbers are finite in the dtype that they are loaded as."""
    return not wanted.is_floating_point or math.isfinite(value.to(wanted).sum(dtype=torch.float64))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(map(shown, keys[:3])) + (", ..." if len(keys) > 3 else "")
