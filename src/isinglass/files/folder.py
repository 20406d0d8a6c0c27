"""Folders of files that belong together and are written anew as a whole, in place of what we wrote there before.

".isinglass-export.json" in the folder lists what was written, with hashes. Only files that are still as they are listed
are ever replaced or removed. The new files are made in a folder of their own beside it, which is then renamed to
".isinglass-export.ready" and emptied into place: a run that is killed before that leaves the old files, one that is
killed later is completed by the next one.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from isinglass.errors import InputError, WriteError
from isinglass.files.integrity import read_signed_json, write_signed_json

LIST = ".isinglass-export.json"
_READY, _MAKING = ".isinglass-export.ready", ".isinglass-export."
_SCHEMA = "isinglass export 1"
_STALE_S = 3600.0
_LOGS = ("-wal", "-shm")  # beside a database of SQLite


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into; at the end they are the files of `folder`.

    Files of an earlier time that are not written now are removed, if they are as they were written. Other files stay.
    Raises InputError where a file is in the way that we did not write or that was changed since, WriteError where the
    folder cannot be written.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        complete(folder)
        for left in folder.glob(f"{_MAKING}*.tmp"):  # of a run that was killed
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        making = folder / f"{_MAKING}{secrets.token_hex(4)}.tmp"
        making.mkdir()
        try:
            yield making
            files = {name: file_hash(making / name) for name in _names(making)}
            _check_free(folder, files)
            write_signed_json(making / LIST, {"schema": _SCHEMA, "files": files})
            making.rename(folder / _READY)
        finally:
            shutil.rmtree(making, ignore_errors=True)
            if is_new:
                with suppress(OSError):
                    folder.rmdir()  # which holds nothing after an error
        complete(folder)
    except OSError as error:
        raise WriteError(
            f"{str(folder)!r} cannot be written ({error}). Free space, or choose another folder"
        ) from error


def complete(folder: Path) -> None:
    """Put into place what a run that was killed had made ready; nothing if there is none."""
    ready = folder / _READY
    if not (ready / LIST).is_file():
        shutil.rmtree(ready, ignore_errors=True)
        return
    new, old = _listed(ready), _listed(folder)
    for name, digest in old.items():
        place = folder / name
        if name not in new and place.is_file() and file_hash(place) == digest:
            _remove(place)
            with suppress(OSError):  # not empty
                place.parent.rmdir()
    for name in new:
        if (ready / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            for log in _LOGS:
                (folder / f"{name}{log}").unlink(missing_ok=True)
            (ready / name).replace(folder / name)
    (ready / LIST).replace(folder / LIST)
    shutil.rmtree(ready)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file; of a database of SQLite that of its rows, as opening it changes its bytes."""
    if path.suffix == ".db":
        with suppress(sqlite3.Error):
            return _rows_hash(path)
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _rows_hash(path: Path) -> str:
    hashed = hashlib.sha256()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        for (table,) in tables:
            hashed.update(f"{table}\n".encode())
            for row in database.execute(f'SELECT * FROM "{table}"'):
                hashed.update(repr(row).encode())
    return hashed.hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _listed(folder: Path) -> dict[str, str]:
    """Return the files that were written to a folder, and their hashes. Raises InputError where the list is damaged."""
    if not (folder / LIST).is_file():
        return {}
    files = read_signed_json(folder / LIST).get("files")
    if not isinstance(files, dict) or any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise InputError(f"{str(folder / LIST)!r} lists no files of this folder. Remove it, or choose another folder")
    return files


def _check_free(folder: Path, files: dict[str, str]) -> None:
    """Raise InputError where one of the files is there, and neither as we wrote it nor as it would be."""
    listed = _listed(folder)
    for name, digest in files.items():
        place = folder / name
        if not place.exists():
            continue
        if place.is_dir() or file_hash(place) not in (digest, listed.get(name)):
            what = "was changed since it was written" if name in listed else "is not of an earlier export"
            raise InputError(
                f"{str(place)!r} is there and {what}; it would be lost. Nothing was written: move it away, or choose "
                "another folder"
            )


def _remove(place: Path) -> None:
    for log in (*_LOGS, ""):
        place.with_name(f"{place.name}{log}").unlink(missing_ok=True)
