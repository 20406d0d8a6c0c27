"""Checkpoint files: read any known one, write our own, load strictly.

Ours is a safetensors file whose metadata say what it is. Of others are read: .pth and .pt state dicts, the .tar files
of glue-factory, and safetensors of the transformers classes. Nothing in a file is ever run: pickles are read by
torch's reader of plain weights only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from isinglass.errors import WeightsError
from isinglass.weights.convert import FORMATS, State, find, infer_config
from isinglass.weights.fetch import file_sha256
from isinglass.weights.records import known_file

METADATA = "isinglass"  # the key of our JSON in a safetensors file
FORMAT = 1
_TRAINING = "train/"  # before the names of what only training needs


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
    tensors, metadata = _read_file(path)
    digest = file_sha256(path)
    checkpoint = _own(tensors, metadata, path, digest) if metadata else _foreign(tensors, model, path, digest)
    if model not in (None, checkpoint.model):
        raise WeightsError(f"{path} holds {checkpoint.model} as {checkpoint.origin} writes it; expected {model}")
    return checkpoint


def _own(state: State, metadata: Mapping[str, Any], path: Path, digest: str) -> Checkpoint:
    """By what our metadata say. JSON has lists where a Config has tuples."""
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is of another version of Isinglass: its metadata are {metadata}; update Isinglass")
    accepts = metadata["accepts"]
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
    state = form.convert(part)
    published = known_file(path.name, digest, form.model)
    return Checkpoint(
        state=state,
        model=form.model,
        origin=form.origin,
        config={**infer_config(form.model, state), **(published.config if published else {})},
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
            f"{_TRAINING}{key}": value.detach().cpu().contiguous().clone() for key, value in training.tensors.items()
        }
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(safetensors.torch.save(state, {METADATA: json.dumps(metadata)}))
        part.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error}. Make room, or choose a folder you may write to") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def read_training_state(path: Path | str) -> TrainingState:
    """What `save_checkpoint` was given as `training`. Raises WeightsError where the file has none."""
    tensors, metadata = _read_file(Path(path), training=True)
    if "training" not in metadata:
        raise WeightsError(f"{path} has weights alone; expected a checkpoint that training goes on from")
    of_training = {key.removeprefix(_TRAINING): value for key, value in tensors.items() if key.startswith(_TRAINING)}
    return TrainingState(tensors=of_training, about=metadata["training"])


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load all parameters and buffers of `model`. Raises WeightsError, with a report, unless names and shapes agree."""
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
    spoilt = [key for key in common if not math.isfinite(state[key].sum(dtype=torch.float64))]
    kinds = {"missing": missing, "foreign": foreign, "of another shape": misshaped, "with NaN or infinity": spoilt}
    report = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys)
    if report:
        what = type(model).__name__
        if not common:
            hint = f"No name agrees: the file is of another model than {what}"
        elif misshaped and not (missing or foreign):
            hint = f"{what} was configured for other sizes: leave out options such as widths and layers"
        else:
            hint = f"The file is of another variant of {what}, or not whole"
        raise WeightsError(f"{source} does not fit {what}. Keys: {report}. {hint}")
    model.load_state_dict(dict(state))


# --- reading files


def _read_file(path: Path, *, training: bool = False) -> tuple[State, dict[str, Any]]:
    """All tensors of a file, nested names joined by dots, and our metadata if it has them.

    What only training needs is left out unless it is asked for.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; expected a checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if len(head) == 9 and head.endswith(b"{"):  # safetensors: 8 bytes of length, then JSON
            with safetensors.safe_open(path, framework="pt") as archive:
                metadata = json.loads((archive.metadata() or {}).get(METADATA, "{}"))
                keys = [key for key in archive.keys() if training or not key.startswith(_TRAINING)]  # noqa: SIM118
                return {key: archive.get_tensor(key) for key in keys}, metadata
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on a damaged file
        first = str(error).strip().split("\n", maxsplit=1)[0][:200]
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: {type(error).__name__}: {first}. "
            f"{_remedy(str(error))}"
        ) from error
    return dict(_flat(content)), {}


def _remedy(message: str) -> str:
    if "Unsupported global" in message or "GLOBAL" in message:
        return (
            "It holds Python objects, which could run code, besides weights: where you trust it, load it where it "
            "was made and save only the weights, torch.save(model.state_dict(), path)"
        )
    return "It is damaged, cut short or no checkpoint at all: get it again"


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}{key}.")


def _numpy_scalars() -> list[Any]:
    """What numpy numbers among a trainer's notes need; they run nothing."""
    import numpy as np
    from numpy._core.multiarray import scalar

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *dtypes]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
