"""HDF5, where it is installed: arrays and texts that a damaged file cannot give wrongly, and that never hang a reader.

Written are only arrays with a checksum, and texts of a fixed length, in a format whose own structures have checksums.
Texts of variable length, which earlier versions wrote, lie in HDF5's global heap, which has no checksum: one wrong bit
in the size of an entry sends the HDF5 library into an endless loop. `check_heaps` walks that heap before HDF5 does.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import MissingExtra

FORMAT = ("v110", "v110")  # read by all HDF5 since 2016; structures have checksums
_MAGIC = b"\x89HDF\r\n\x1a\n"
_END_AT = {0: 40, 1: 44, 2: 28, 3: 28}  # version of the superblock: where it says how long the file is
_COMPACT_BYTES = 1024  # up to which an array is kept in its header, which has a checksum
_HEAP, _HEAP_HEAD, _HEAP_LEAST = b"GCOL", 16, 4096


def h5py_module() -> Any:
    """Return h5py. Raises MissingExtra without it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "hdf5") from error
    return h5py


# ---- writing


def write_arrays(file: Any, group: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as data sets of a group, each under a checksum that reading verifies.

    The functions are HDF5's, not h5py's, which take three times as long.
    """
    h5py = h5py_module()
    h5d, h5p, h5s, h5t = h5py.h5d, h5py.h5p, h5py.h5s, h5py.h5t
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5t.CSET_UTF8)
    for name, value in arrays.items():
        how = h5p.create(h5p.DATASET_CREATE)
        if value.size and value.ndim:
            how.set_chunk(value.shape)
            how.set_deflate(0)  # not compressed, but zeros, which a power cut leaves, have no valid head
            how.set_fletcher32()  # which of zeros is zero
        elif value.nbytes <= _COMPACT_BYTES:
            how.set_layout(h5d.COMPACT)
        contiguous = np.ascontiguousarray(value).reshape(value.shape)
        space, kind = h5s.create_simple(value.shape), h5t.py_create(value.dtype, logical=True)
        dataset = h5d.create(file.id, f"{group}/{name}".encode(), kind, space, dcpl=how, lcpl=links)
        dataset.write(h5s.ALL, h5s.ALL, contiguous)


def write_texts(file: Any, texts: Mapping[str, str]) -> None:
    """Write texts as attributes of the file, of fixed length."""
    string_dtype = h5py_module().string_dtype
    for name, text in texts.items():
        encoded = text.encode()
        file.attrs.create(name, encoded, dtype=string_dtype("utf-8", max(1, len(encoded))))


def attributes_hash(texts: Mapping[str, str], index: np.ndarray) -> str:
    """Return the sha256 of a store's texts and of the index of its records."""
    hashed = hashlib.sha256()
    for name in sorted(texts):
        hashed.update(f"{name}={texts[name]}\0".encode())
    hashed.update(index.tobytes())
    return hashed.hexdigest()


# ---- reading


def read_texts(file: Any, content: bytes | Path) -> dict[str, str]:
    """Return the attributes of an open HDF5 file that are text.

    content  the bytes of the file, or its path, in which `check_heaps` looks before texts of variable length are read

    Raises ValueError where they are damaged.
    """
    h5t, texts, checked = h5py_module().h5t, {}, False
    for name in file.attrs:
        attribute = file.attrs.get_id(name)
        kind = attribute.get_type()
        if kind.get_class() != h5t.STRING or attribute.shape != ():
            continue
        if kind.is_variable_str() and not checked:
            _check_heaps_of(content)
            checked = True
        value = file.attrs[name]
        texts[name] = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    return texts


def _check_heaps_of(content: bytes | Path) -> None:
    if isinstance(content, bytes):
        check_heaps(content)
        return
    with content.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        check_heaps(mapped)


def read_array(dataset: Any) -> np.ndarray:
    """Return a data set of numbers. Raises ValueError where it is another one, or says that it is larger than it is."""
    h5t = h5py_module().h5t
    kind = dataset.id.get_type()
    if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT):
        raise ValueError(f"{dataset.name!r} holds no numbers")
    if dataset.dtype.newbyteorder("<").str not in _DTYPES or dataset.dtype.byteorder == ">":
        raise ValueError(f"{dataset.name!r} is {dataset.dtype.str}, expected one of {', '.join(_DTYPES)}")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored:
        raise ValueError(f"{dataset.name!r} has {stored} bytes; its shape {dataset.shape} needs {dataset.nbytes}")
    return dataset[()]


def check_whole(content: bytes) -> None:
    """Raise ValueError unless HDF5's own end of the file is that of the content."""
    start = content[: len(_MAGIC)]
    at = _END_AT.get(content[8]) if start == _MAGIC and len(content) > 64 else None
    if at is None:
        raise ValueError("it does not begin as an HDF5 file does")
    end = int.from_bytes(content[at : at + 8], "little")
    if end != len(content):
        raise ValueError(f"it has {len(content)} bytes; its header says {end}")


def check_heaps(content: bytes | mmap.mmap) -> None:
    """Raise ValueError where HDF5's global heap is damaged in a way that HDF5 does not survive.

    In files of bytes, whose structures have no checksum in the format of earlier versions, the reference to each text
    is looked for, too.

    Collections that HDF5 itself refuses (of another version, or with both a wrong size and wrong reserved bytes) are
    passed over, so that the four letters among the numbers of an array are not taken for a heap.
    """
    end = len(content)
    for found in re.finditer(_HEAP, content):
        at = found.start()
        size = int.from_bytes(content[at + 8 : at + 16], "little")
        fits = _HEAP_LEAST <= size <= end - at
        if content[at + 4 : at + 5] != b"\x01" or not (fits or content[at + 5 : at + 8] == bytes(3)):
            continue
        if not fits:
            raise ValueError(f"its heap of texts at byte {at} has the size {size}")
        lengths = _check_heap(content[at : at + size], at)
        if isinstance(content, bytes):
            for index, length in lengths.items():
                if struct.pack("<IQI", length, at, index) not in content:
                    raise ValueError(f"its text {index} of {length} bytes in the heap at byte {at} belongs to nothing")


def _check_heap(heap: bytes, at: int) -> dict[int, int]:
    """Return the length of each text."""
    place, seen = _HEAP_HEAD, {}
    while len(heap) - place >= _HEAP_HEAD:
        index = int.from_bytes(heap[place : place + 2], "little")
        length = int.from_bytes(heap[place + 8 : place + 16], "little")
        room = _HEAP_HEAD + -(-length // 8) * 8 if index else length  # that of the free space counts its own head
        if index in seen or not _HEAP_HEAD <= room <= len(heap) - place or (not index and place + room != len(heap)):
            raise ValueError(f"its heap of texts at byte {at} has a wrong entry {index} of {length} bytes")
        seen[index] = length
        place += room
    return {index: length for index, length in seen.items() if index and length}


_DTYPES = ("<f2", "<f4", "<f8", "|i1", "|u1", "<i4", "<i8", "<u4", "<u8")
