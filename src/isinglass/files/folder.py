"""Folders of files that belong together and are written anew as a whole, in place of what we wrote there before.

".isinglass-export.json" in the folder lists what was written, with hashes. Only files that are still as they are listed
are ever replaced or removed; those that were changed and are no longer written are kept, and stay listed as such. The
new files are made in a folder of their own inside it, which is then renamed to ".isinglass-export.ready": a run that is
killed before that leaves the old files. Then all old files are removed before the first new one is moved into place,
so that a run that is killed in between leaves some files of one time and never a mixture; the next run completes it.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from isinglass.errors import InputError, WriteError
from isinglass.files.integrity import read_signed_json, write_signed_json

LIST = ".isinglass-export.json"
_READY, _MAKING = ".isinglass-export.ready", ".isinglass-export."
_SCHEMA = "isinglass export 1"
_STALE_S = 3600.0
_LOGS = ("-wal", "-shm")  # beside a database of SQLite


@dataclass(frozen=True, slots=True)
class Making:
    """The empty folder `path` to write files into, and after the `write_folder` block what was `kept`: the names of
    files of an earlier time that are not written any more, but were changed since and may be somebody's work.
    """

    path: Path
    kept: list[str] = field(default_factory=list)


@contextmanager
def write_folder(folder: Path) -> Iterator[Making]:
    """Yield an empty folder to write files into; at the end they are the files of `folder`.

    Files of an earlier time that are not written now are removed, if they are as they were written, else kept and named
    in `Making.kept`. Other files stay. Raises InputError where a file is in the way that we did not write or that was
    changed since, WriteError where the folder cannot be written.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _complete(folder)
        for left in folder.glob(f"{_MAKING}*.tmp"):  # of a run that was killed
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        making = Making(folder / f"{_MAKING}{secrets.token_hex(4)}.tmp")
        making.path.mkdir()
        try:
            yield making
            old = _make_ready(folder, making)
        finally:
            shutil.rmtree(making.path, ignore_errors=True)
            if is_new:
                with suppress(OSError):
                    folder.rmdir()  # which holds nothing after an error
        _put_into_place(folder, old)
    except OSError as error:
        raise WriteError(
            f"{str(folder)!r} cannot be written ({error}). Free space, or choose another folder"
        ) from error


def _make_ready(folder: Path, making: Making) -> list[str]:
    """Rename the new files to be put into place, and return the old ones that are to go."""
    new, old = {name: file_hash(making.path / name) for name in _names(making.path)}, _listed(folder)
    there = _hashes(folder, {*new, *old})
    _check_free(folder, there, new, old)
    kept = {name: old[name] for name in sorted(there) if name not in new and there[name] != old[name]}
    write_signed_json(making.path / LIST, {"schema": _SCHEMA, "files": new, "kept": kept})
    making.path.rename(folder / _READY)
    making.kept.extend(kept)
    return [name for name in there if there[name] == old.get(name)]


def _complete(folder: Path) -> None:
    """Put into place what a run that was killed had made ready; nothing if there is none."""
    ready = folder / _READY
    if not (ready / LIST).is_file():
        shutil.rmtree(ready, ignore_errors=True)
        return
    new, old = _read_list(ready)["files"], _listed(folder)
    there = _hashes(folder, {*new, *old})
    _check_free(folder, there, new, old)
    in_place = {name for name in new if not (ready / name).is_file()}
    _put_into_place(folder, [name for name in there if name not in in_place and there[name] == old.get(name)])


def _put_into_place(folder: Path, old: Iterable[str]) -> None:
    """Remove the old files, then move those that are ready to where they belong: there is never a mixture of both."""
    ready = folder / _READY
    for name in old:
        _remove(folder / name)
        with suppress(OSError):  # not empty
            (folder / name).parent.rmdir()
    for name in _names(ready):
        if name != LIST:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _remove(folder / name)  # with logs of a database that was there
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
    about = _read_list(folder)
    return about["kept"] | about["files"]


def _read_list(folder: Path) -> dict[str, dict[str, str]]:
    about = read_signed_json(folder / LIST)
    files, kept = about.get("files"), about.get("kept", {})
    if not (isinstance(files, dict) and isinstance(kept, dict)) or any(
        Path(name).is_absolute() or ".." in Path(name).parts for name in (*files, *kept)
    ):
        raise InputError(f"{str(folder / LIST)!r} lists no files of this folder. Remove it, or choose another folder")
    return {"files": files, "kept": kept}


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the hashes of those of the files that are there."""
    return {name: file_hash(folder / name) for name in sorted(names) if (folder / name).is_file()}


def _check_free(folder: Path, there: Mapping[str, str], new: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Raise InputError where one of the new files is there, and neither as we wrote it nor as it would be."""
    for name, digest in new.items():
        place = folder / name
        if not place.exists():
            continue
        if there.get(name, "a folder") not in (digest, old.get(name)):
            what = "was changed since it was written" if name in old else "is not of an earlier export"
            raise InputError(
                f"{str(place)!r} is there and {what}; it would be lost. Nothing was written: move it away, or choose "
                "another folder"
            )


def _remove(place: Path) -> None:
    for log in (*_LOGS, ""):
        place.with_name(f"{place.name}{log}").unlink(missing_ok=True)
