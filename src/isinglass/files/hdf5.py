"""HDF5, where it is installed."""

from __future__ import annotations

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
