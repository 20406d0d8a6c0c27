"""Tensors and metadata of a checkpoint file, whatever is in it: a whole state, or WeightsError.

Nothing in a file is ever run: pickles are read by torch's reader of plain weights only. Our own safetensors files carry
a sha256 of all their other bytes, in the metadata; those of earlier versions do not.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isinglass.errors import WeightsError
from isinglass.names import is_file

METADATA = "isinglass"  # the key of our JSON in a safetensors file
TRAINING = "train/"  # before the names of what only training needs
_SEAL, _NO_SEAL = "isinglass_sha256", "0" * 64
_SEALED = re.compile(rb'"isinglass_sha256":"([0-9a-f]{64})"')
_LIKE_A_HASH = re.compile(rb'"[0-9a-f]{40,70}"')
_MOST_DEPTH = 32  # of dicts within dicts
_MOST_NAME = 80  # letters of a name that a message shows
_LARGE_BYTES, _MOST_RATIO = 1 << 26, 20  # of what a zip unpacks to


def read_file(path: Path, *, training: bool = False) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return all tensors of a file, nested names joined by dots, and our metadata; None where it has none.

    Tensors that only training needs are left out unless `training`. Raises WeightsError where the file cannot be read,
    is not the one that was written, or holds tensors that are no plain numbers.
    """
    if not is_file(path):
        raise WeightsError(f"there is no file {path}; expected a checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if len(head) == 9 and head.endswith(b"{"):  # safetensors: 8 bytes of length, then JSON
            _check_seal(path)
            tensors, metadata = _read_safetensors(path, training)
        else:
            _check_zip(path)
            with torch.serialization.safe_globals(_numpy_scalars()):
                content = torch.load(path, map_location="cpu", weights_only=True)
            tensors, metadata = _flat(content), None
        for name, value in tensors.items():
            _check_plain(name, value)
    except Exception as error:  # torch raises a dozen kinds on a damaged file
        first = str(error).strip().split("\n", maxsplit=1)[0][:200]
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: {type(error).__name__}: {first}. "
            f"{_remedy(str(error))}"
        ) from error
    return tensors, metadata


def _remedy(message: str) -> str:
    if "Unsupported global" in message or "GLOBAL" in message:
        return (
            "It holds Python objects, which could run code, besides weights: where you trust it, load it where it "
            "was made and save only the weights, torch.save(model.state_dict(), path)"
        )
    if "expected plain numbers" in message:
        return "Make them dense tensors of numbers where it was made, and save it again"
    return "It is damaged, cut short or no checkpoint at all: get it again"


# ---- safetensors


def encode_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return a safetensors file with our metadata and the sha256 of all its bytes, taken with zeros in its place."""
    content = safetensors.torch.save(dict(tensors), {METADATA: json.dumps(metadata), _SEAL: _NO_SEAL})
    found = _SEALED.search(content)
    assert found is not None
    digest = hashlib.sha256(content).hexdigest().encode("ascii")
    return content[: found.start(1)] + digest + content[found.end(1) :]


def _check_seal(path: Path) -> None:
    """Raise ValueError unless the file has the sha256 that it says, or says none."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
        if (found := _SEALED.search(header)) is None:
            if _SEAL.encode() in header or (METADATA.encode() in header and _LIKE_A_HASH.search(header)):
                raise ValueError("its sha256, or the name of that, is damaged")
            return
        hashed = hashlib.sha256(length + header[: found.start(1)] + _NO_SEAL.encode() + header[found.end(1) :])
        while block := file.read(1 << 20):
            hashed.update(block)
    if hashed.hexdigest().encode("ascii") != found[1]:
        raise ValueError("its bytes do not have the sha256 that they were written with")


def _read_safetensors(path: Path, training: bool) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    with safetensors.safe_open(path, framework="pt") as archive:
        text = (archive.metadata() or {}).get(METADATA)
        metadata = None if text is None else json.loads(text)
        if text is not None and not isinstance(metadata, dict):
            raise ValueError(f"its metadata are a {type(metadata).__name__}, expected an object of JSON")
        keys = [key for key in archive.keys() if training or not key.startswith(TRAINING)]  # noqa: SIM118
        return {key: archive.get_tensor(key) for key in keys}, metadata


# ---- pickles


def _check_zip(path: Path) -> None:
    """Raise ValueError where a zip unpacks to very much more than it is; torch itself does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_LARGE_BYTES, _MOST_RATIO * path.stat().st_size):
        raise ValueError(f"it unpacks to {unpacked} bytes")


def _flat(content: Any) -> dict[str, Tensor]:
    """Return the tensors in nested dicts, each dict once. Raises ValueError for a dict in itself."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", content, ())]
    while waiting:
        name, value, above = waiting.pop()
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            if id(value) in above or len(above) == _MOST_DEPTH:
                raise ValueError(f"its dicts are nested more than {_MOST_DEPTH} deep, or without end")
            if id(value) not in seen:
                seen.add(id(value))
                inner = [
                    (f"{name}.{key}" if name else str(key), one, (*above, id(value))) for key, one in value.items()
                ]
                waiting += reversed(inner)
    return found


def _check_plain(name: str, value: Tensor) -> None:
    """Raise ValueError unless a tensor is dense and all there."""
    for kind, is_so in (
        ("sparse", value.layout != torch.strided),
        ("on the meta device, without numbers", value.is_meta),
        ("quantized", value.is_quantized),
        ("nested", value.is_nested),
    ):
        if is_so:
            raise ValueError(f"{shown(name)} is {kind}; expected plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{shown(name)} of shape {tuple(value.shape)} repeats its numbers; expected plain numbers")


def _numpy_scalars() -> list[Any]:
    """Return what torch's reader needs for numpy's numbers among a trainer's notes; they run nothing."""
    import numpy as np
    from numpy._core.multiarray import scalar

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *dtypes]


def shown(name: str) -> str:
    """Return a tensor's name as messages show it: on one line, and not too long."""
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= _MOST_NAME else f"{plain[:_MOST_NAME]}... ({len(name)} letters)"
