"""HDF5, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isinglass.errors import MissingExtra


def h5py_module() -> Any:
    """Raises MissingExtra without it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "hdf5") from error
    return h5py


def write_array(group: Any, name: str, value: np.ndarray) -> None:
    """As a data set of the group, with a checksum that reading verifies."""
    group.create_dataset(name, data=value, fletcher32=True if value.size and value.ndim else None)


def write_arrays(file: Any, group: str, arrays: Mapping[str, np.ndarray]) -> None:
    """The same of several, in a new group of the file: a third of the time, as it is HDF5's functions, not h5py's."""
    h5py = h5py_module()
    h5d, h5p, h5s, h5t = h5py.h5d, h5py.h5p, h5py.h5s, h5py.h5t
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5t.CSET_UTF8)
    for name, value in arrays.items():
        how = h5p.create(h5p.DATASET_CREATE)
        if value.size and value.ndim:
            how.set_chunk(value.shape)
            how.set_fletcher32()
        contiguous = np.ascontiguousarray(value).reshape(value.shape)
        space, kind = h5s.create_simple(value.shape), h5t.py_create(value.dtype, logical=True)
        dataset = h5d.create(file.id, f"{group}/{name}".encode(), kind, space, dcpl=how, lcpl=links)
        dataset.write(h5s.ALL, h5s.ALL, contiguous)
