"""Arrays in numpy's zip, with a seal as the comment of the zip: every byte of the file is under its hash."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.files.atomic import PathLike, write_atomically
from isinglass.files.integrity import SEAL_BYTES, read_own, seal_file, unseal

NUMPY_DAMAGE = (  # what NumPy and zipfile raise of damaged files
    OSError, EOFError, KeyError, MemoryError, NotImplementedError, SyntaxError, TokenError, ValueError,
    zipfile.BadZipFile,
)  # fmt: skip
_END, _END_BYTES = b"PK\x05\x06", 22  # of a zip; its last two bytes are the length of the comment that follows


def encode_npz(arrays: Mapping[str, ArrayLike], *, compressed: bool = False) -> bytes:
    """Return the arrays as the bytes of an .npz file, which `numpy.load` reads as well."""
    buffer = io.BytesIO()
    _write(buffer, arrays, compressed)
    return buffer.getvalue()


def decode_npz(content: bytes) -> dict[str, NDArray]:
    """Return the arrays of an .npz file. Raises ValueError where it is damaged.

    Files of earlier versions have no seal, and are read where the zip ends as they wrote it.
    """
    _, sealed = unseal(content)
    if not sealed and (content[-_END_BYTES:][:4] != _END or content[-2:] != bytes(2)):
        raise ValueError("something other than its seal follows its end, or it was cut short")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except NUMPY_DAMAGE as error:
        raise ValueError(str(error)) from error


def write_npz(path: PathLike, arrays: Mapping[str, ArrayLike], *, compressed: bool = False) -> None:
    """Write arrays as .npz, atomically. Raises WriteError where that cannot be done."""
    with write_atomically(path) as temporary, temporary.open("w+b") as file:
        _write(file, arrays, compressed)


def read_npz(path: PathLike) -> dict[str, NDArray]:
    """Read what `write_npz` or an earlier version wrote. Raises InputError, naming the file, if missing or damaged."""
    return read_own(path, decode_npz)


def _write(file: BinaryIO, arrays: Mapping[str, ArrayLike], compressed: bool) -> None:
    (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **dict(arrays))  # type: ignore[arg-type]
    file.seek(-2, io.SEEK_END)  # of the length of the comment
    file.write(SEAL_BYTES.to_bytes(2, "little"))
    seal_file(file)
