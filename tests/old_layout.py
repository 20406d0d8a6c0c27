"""HDF5 files as version 0.1.0 wrote them: texts of variable length in the global heap, and no hash."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from isinglass.files.fields import feature_fields
from isinglass.types import Features

HEAP_BYTES = 120  # of the global heap, in which all sizes and the beginnings of texts are


def old_feature_file(features: Features) -> bytes:
    """A file of one image's features."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["schema"] = "isinglass features 1"
        file.attrs["signature"] = str(features.signature)
        for name, value in feature_fields(features).items():
            file.create_dataset(name, data=value, fletcher32=True if value.size and value.ndim else None)
    return buffer.getvalue()


def old_store(path: Path) -> bytes:
    """A store of today, merged, in the layout of then."""
    buffer = io.BytesIO()
    with h5py.File(path) as new, h5py.File(buffer, "w", libver=("v110", "v110")) as old:
        for name in ("schema", "signature", "settings"):
            old.attrs[name] = new.attrs[name].decode()
        old.attrs["index"] = new.attrs["index"]
        new.visititems(lambda name, item: _copy(old, name, item) if isinstance(item, h5py.Dataset) else None)
    return buffer.getvalue()


def _copy(old: h5py.File, name: str, item: h5py.Dataset) -> None:
    value = np.asarray(item[()])
    old.create_dataset(name, data=value, fletcher32=True if value.size and value.ndim else None)


def heap_flips(content: bytes):
    """The content with each bit of the heap's beginning changed in turn."""
    start = content.index(b"GCOL")
    for bit in range(8 * HEAP_BYTES):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)
