"""Records in an HDF5 file and in parts beside it: what stores of features and of matches are made of.

A store is one file, "features.h5", and beside it a folder of parts, "features.h5.parts", which is not there when nobody
writes. What is added comes as one part, a small file of its own, whole or not there at all; several processes may add
at the same time. `merge` puts the parts into the file, which is replaced in one step. So whenever a process is killed,
what was added before is there. Of two records of one key the later one counts.

A record is a group of arrays, each with a checksum. The attribute `index` lists a file's records: JSON, compressed by
zlib, of all strings, and of the places of each record's strings among them. So a store of a million records opens in
seconds, without a look at their groups. The attribute `sha256` is of the index and of all attributes that are text;
files of earlier versions lack it.

A record that turns out to be damaged when it is read is lost: the store no longer has it, and a part with a list `lost`
in its index says so to later runs, which make it again.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import filelock
import numpy as np

from isinglass.errors import InputError, WriteError
from isinglass.files.atomic import PathLike, check_room, write_atomically
from isinglass.files.hdf5 import (
    FORMAT,
    attributes_hash,
    h5py_module,
    read_array,
    read_texts,
    write_arrays,
    write_texts,
)
from isinglass.types import Signature

OPEN_FILES = 16
STALE_S = 3600.0  # after which a temporary file is nobody's
_ROOM = 64 * 1024  # bytes that a file takes beyond its parts
_HDF5_BEGINS = b"\x89HDF\r\n\x1a\n"
_TEXTS = ("schema", "signature", "settings")
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, IndexError, TypeError, MemoryError, zlib.error)
_Key = TypeVar("_Key")

Row = tuple[str, ...]  # what the index says of a record


class Records(Generic[_Key]):
    """Records by key. Iterating gives the keys, sorted. See `FeatureStore` for arguments and errors."""

    schema: str

    def __init__(self, path: PathLike, signature: Signature | None, settings: str | None) -> None:
        self.path = Path(path)
        self.folder = self.path.with_name(f"{self.path.name}.parts")
        self.problems: dict[str, str] = {}  # files that are damaged, which were set aside
        self._wanted = {"signature": None if signature is None else str(signature), "settings": settings}
        self._about: dict[str, str] | None = None
        self._where: dict[_Key, tuple[Path, Row]] = {}
        self._files: list[Path] = []  # in which there is or was something
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self.refresh()
        if self._about is None:
            if signature is None:
                raise InputError(f"there is no store {str(self.path)!r}; expected a file that Isinglass wrote")
            self._about = {"schema": self.schema, "signature": str(signature), "settings": settings or ""}

    @property
    def signature(self) -> Signature:
        """Who made the features."""
        return Signature.parse(self._told["signature"])

    @property
    def settings(self) -> str:
        """What the records depend on beside the images, as text."""
        return self._told["settings"]

    @property
    def _told(self) -> dict[str, str]:
        assert self._about is not None
        return self._about

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[_Key]:
        return iter(sorted(self._where))  # type: ignore[type-var]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all files. The store can go on to be used."""
        while self._open:
            self._open.popitem()[1].close()

    def refresh(self) -> None:
        """Also see what others have added meanwhile. Raises InputError for a store of another signature or settings."""
        for _ in range(10):
            self.close()
            self._where, self._files = {}, []
            parts = self._parts()
            try:
                for file in ([self.path] if self.path.is_file() else []) + parts:
                    self._read_index(file)
                return
            except FileNotFoundError:  # merged by another process: look again
                continue
        raise InputError(f"{str(self.path)!r} changes all the time; expected that one process merges it. Try again")

    def merge(self) -> None:
        """Put all parts into the file, which until then stays as it was; parts that others add stay parts.

        Raises WriteError where that cannot be; all is then as it was.
        """
        if self.path.is_file() and not self.folder.is_dir():
            return
        with self._merging():
            self.refresh()
            parts = [file for file in self._files if file != self.path]
            if parts or not self.path.is_file():
                with write_atomically(self.path) as temporary:
                    self._write_merged(temporary)
                self._where = {key: (self.path, row) for key, (_, row) in self._where.items()}
                self._files = [self.path]
            self.close()
            for part in parts:
                part.unlink(missing_ok=True)
            self._clean()

    def copy_to(self, path: Path, keys: Sequence[_Key]) -> None:
        """Write some records, as they are, as a new store. Raises InputError where one is damaged, WriteError."""
        rows = [self._where[key][1] for key in keys]
        with write_atomically(path) as temporary:
            self._check_room(temporary, len(keys) / max(len(self), 1))
            try:
                with h5py_module().File(temporary, "w", libver=FORMAT, locking=False) as copied:
                    for key, row in zip(keys, rows, strict=True):
                        write_arrays(copied, self._group(row), self._read(key))
                    _write_attributes(copied, self._told, _index_of(rows))
            except RuntimeError as error:  # what h5py makes of a full disk
                raise OSError(str(error)) from error

    # --- for the two kinds

    def _add(self, records: Iterable[tuple[Row, Mapping[str, np.ndarray]]]) -> None:
        """One part of records, in place of what there was of their keys. Raises WriteError."""
        with self._part() as part:
            rows = []
            for row, arrays in records:
                write_arrays(part, self._group(row), arrays)
                rows.append(row)
            content = self._content(part, rows)
        if rows:
            file = self._write_part(content)
            self._files.append(file)
            self._where |= {self._key(row): (file, row) for row in rows}

    @staticmethod
    def _part() -> Any:
        """An HDF5 file in memory."""
        return h5py_module().File("part.h5", "w", driver="core", backing_store=False, libver=FORMAT)

    def _content(self, part: Any, rows: list[Row], lost: Sequence[Row] = ()) -> bytes:
        _write_attributes(part, self._told, _index_of(rows, lost))
        part.flush()
        return part.id.get_file_image()

    def _write_part(self, content: bytes) -> Path:
        file = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.h5"
        with write_atomically(file) as temporary:
            temporary.write_bytes(content)
        return file

    def _read(self, key: _Key, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays of a record, all or some. Raises InputError where there is none, or it is damaged."""
        if key not in self._where:
            raise InputError(f"there is nothing of {key!r} in {str(self.path)!r}, which has {len(self)} records")
        file, row = self._where[key]
        try:
            group = self._file(file)[self._group(row)]
            return {name: read_array(group[name]) for name in (only or group)}
        except FileNotFoundError:
            self.refresh()  # another process has merged it
            if key in self._where and self._where[key][0] != file:
                return self._read(key, only)
            raise InputError(f"{str(file)!r} has gone, and {key!r} with it; make it again") from None
        except _DAMAGE as error:
            if _of_system(error):
                raise InputError(f"{key!r} in {str(file)!r} cannot be read ({error}). Check the disk") from error
            self._lose(key, row)
            raise InputError(
                f"{key!r} in {str(file)!r} is damaged ({error}). The others are whole; run again, and it alone is made "
                "again"
            ) from error

    def _lose(self, key: _Key, row: Row) -> None:
        """Take a damaged record out of the store, now and, where the folder can be written, for later runs."""
        del self._where[key]
        with self._part() as part:
            content = self._content(part, [], [row])
        with suppress(WriteError):
            self._files.append(self._write_part(content))

    def _row(self, key: object) -> Row | None:
        return self._where[key][1] if key in self._where else None  # type: ignore[index]

    def _key(self, row: Row) -> _Key:
        raise NotImplementedError

    def _group(self, row: Row) -> str:
        """The path of the record's group."""
        raise NotImplementedError

    # --- files

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.h5")) if self.folder.is_dir() else []

    def _read_index(self, file: Path) -> None:
        try:
            about, index = _attributes_of(self._file(file), file)
            rows, lost = [], []
            if about.get("schema") == self.schema:
                rows, lost = _rows_of(index)
                Signature.parse(about["signature"])
        except FileNotFoundError:
            raise
        except _DAMAGE as error:
            if _of_system(error):  # the file may be whole
                raise InputError(f"{str(file)!r} cannot be read ({error}). Check its permissions") from error
            self._set_aside(file, error)
            return
        self._check(file, about)
        self._about = about
        self._files.append(file)
        self._where |= {self._key(row): (file, row) for row in rows}
        for row in lost:
            self._where.pop(self._key(row), None)

    def _check(self, file: Path, about: dict[str, str]) -> None:
        """Raises InputError unless a file is of what this store is."""
        if (schema := about.get("schema")) != self.schema:
            raise InputError(
                f"{str(file)!r} has the schema {schema!r}, expected {self.schema!r}. It is of another kind or version: "
                "give another path"
            )
        for name, wanted in self._wanted.items():
            if wanted is not None and (given := about.get(name, "")) != wanted:
                was, now = _difference(given, wanted)
                raise InputError(
                    f"{str(file)!r} was made with the {name} {was}, expected {now}. Choose the same options as then, "
                    "or another path"
                )
        if self._about is not None and about != self._about:
            raise InputError(f"{str(file)!r} is of {about}, but {str(self.path)!r} of {self._about}. Give another path")

    def _file(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = h5py_module().File(file, "r", locking=False)  # files are never changed in place
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(file)
        return self._open[file]

    def _set_aside(self, file: Path, error: Exception) -> None:
        """Out of the way, if it was a file of ours."""
        if file in self._open:
            self._open.pop(file).close()
        with file.open("rb") as opened:
            head = opened.read(len(_HDF5_BEGINS))
        if file == self.path and head and head != _HDF5_BEGINS[: len(head)]:
            raise InputError(f"{str(file)!r} is no HDF5 file. Give another path") from error
        aside = file.with_name(f"{file.name}.damaged")
        with suppress(OSError):
            file.replace(aside)
        self.problems[str(file)] = f"damaged ({error}); now {str(aside)!r}, and what it held is to be made again"

    # --- merging

    @contextmanager
    def _merging(self) -> Iterator[None]:
        """One process at a time merges."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.path.with_name(f".{self.path.name}.lock")):
                yield
        except OSError as error:
            raise WriteError(f"{str(self.path)!r} cannot be written ({error}). Choose a folder that may be") from error

    def _write_merged(self, temporary: Path) -> None:
        """All records as one file: those of the present file as they are there, if none has a later one."""
        rows = [row for _, row in self._where.values()]
        added = [(file, row) for file, row in self._where.values() if file != self.path]
        old = self.path.is_file() and self._count_of(self.path) == len(rows) - len(added)
        self._check_room(temporary, 1.0)
        if old:
            shutil.copyfile(self.path, temporary)
        else:
            added = list(self._where.values())
        try:
            with h5py_module().File(temporary, "r+" if old else "w", libver=FORMAT, locking=False) as merged:
                _write_attributes(merged, self._told, _index_of(rows))
                for file, row in added:
                    self._file(file).copy(self._group(row), merged, name=self._group(row))
        except KeyError as error:
            raise InputError(
                f"{str(self.path)!r} or a part is damaged ({error}). Delete it, to be made again"
            ) from error
        except RuntimeError as error:  # what h5py makes of a full disk
            raise OSError(str(error)) from error

    def _check_room(self, file: Path, share: float) -> None:
        """Raise OSError unless a share of all records, with a little more, fits onto the disk as `file`."""
        check_room(file, int(1.05 * share * sum(part.stat().st_size for part in self._files)) + _ROOM)

    def _count_of(self, file: Path) -> int:
        return len(_rows_of(_attributes_of(self._file(file), file)[1])[0])

    def _clean(self) -> None:
        """What killed processes left, and the folder if nothing is in it."""
        with suppress(OSError):
            for left in (*self.folder.glob(".isinglass-*.tmp"), *self.path.parent.glob(".isinglass-*.tmp")):
                if time.time() - left.stat().st_mtime > STALE_S:
                    left.unlink(missing_ok=True)
            self.folder.rmdir()


def _difference(one: str, other: str) -> tuple[str, str]:
    """Two texts; of two JSON objects only what differs."""
    try:
        first, second = json.loads(one), json.loads(other)
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        return json.dumps({key: first.get(key) for key in keys}), json.dumps({key: second.get(key) for key in keys})
    except (ValueError, TypeError, AttributeError):
        return repr(one), repr(other)


def _of_system(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None


def _write_attributes(file: Any, texts: Mapping[str, str], index: np.ndarray) -> None:
    write_texts(file, {**texts, "sha256": attributes_hash(texts, index)})
    file.attrs["index"] = index


def _attributes_of(file: Any, path: Path) -> tuple[dict[str, str], np.ndarray]:
    """Return a file's texts and index. Raises ValueError or KeyError where they are damaged."""
    all_texts = read_texts(file, path)
    texts = {name: all_texts[name] for name in _TEXTS if name in all_texts}
    if "index" not in file.attrs:
        return texts, np.zeros(0, np.uint8)
    index = np.asarray(file.attrs["index"])
    if index.dtype != np.uint8:
        raise ValueError(f"its index is {index.dtype}, expected bytes")
    if "sha256" in all_texts and attributes_hash(texts, index) != all_texts["sha256"]:
        raise ValueError("its attributes do not have the sha256 that they were written with")
    return texts, index


def _index_of(rows: Sequence[Row], lost: Sequence[Row] = ()) -> np.ndarray:
    strings: dict[str, int] = {}
    places = [[[strings.setdefault(text, len(strings)) for text in row] for row in part] for part in (rows, lost)]
    content = {"strings": list(strings), "records": places[0]} | ({"lost": places[1]} if lost else {})
    return np.frombuffer(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1), np.uint8)


def _rows_of(index: np.ndarray) -> tuple[list[Row], list[Row]]:
    """Return the rows of an index, and those that are lost."""
    found = json.loads(zlib.decompress(index.tobytes()))
    strings = found["strings"]
    records, lost = (
        [tuple(strings[place] for place in record) for record in found.get(part, ())] for part in ("records", "lost")
    )
    return records, lost
