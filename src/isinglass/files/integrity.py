"""Hashes that our files carry, so that no damaged one is taken for a whole one.

JSON files have a field "sha256" of all their other fields. Binary files end with a seal: a mark and the sha256 of every
byte before it. Files of earlier versions have neither and are still read.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike, write_atomically

FIELD = "sha256"
_log = logging.getLogger(__name__)
_Content = TypeVar("_Content")
_LIKE_A_HASH = re.compile(r"(?=(?:[^0-9a-f]*[0-9a-f]){32})\S+")  # 64 hex digits, even if several were damaged
_MARK = b"\nisinglass sha256 "
SEAL_BYTES = len(_MARK) + 64


# ---- JSON


def signed_json(
    content: Mapping[str, Any], *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return the mapping as JSON text with its hash as the last field; arguments are those of `json.dumps`.

    Raises ValueError where a number is NaN or infinite: JSON has no such numbers, and other readers would refuse it.
    """
    plain = json.loads(json.dumps(content, default=default, allow_nan=False))  # tuples are lists now, keys are text
    plain.pop(FIELD, None)
    return json.dumps({**plain, FIELD: _json_hash(plain)}, indent=indent)


def verify_json(text: str | bytes, *, needs_hash: bool = False) -> dict[str, Any]:
    """Return the fields of a JSON object without its hash. Raises ValueError where the text is damaged.

    An object without a hash, as earlier versions wrote it, is returned as it is: they put nothing like a hash last.
    """
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"its JSON is a {type(content).__name__}, expected an object")
    if FIELD not in content:
        if needs_hash:
            raise ValueError("its hash is gone")
        name, value = next(reversed(content.items()), ("", None))
        if isinstance(value, str) and _LIKE_A_HASH.fullmatch(value):
            raise ValueError(f"its hash has the name {name!r}, expected {FIELD!r}")
        return content
    expected = content.pop(FIELD)
    if (found := _json_hash(content)) != expected:
        raise ValueError(f"its content has the sha256 {found[:12]}..., but was written with {str(expected)[:12]}...")
    return content


def write_signed_json(path: PathLike, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Write the mapping as JSON with its hash, atomically. Raises WriteError where the file cannot be written."""
    text = signed_json(content, indent=indent)
    with write_atomically(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def read_signed_json(path: PathLike, *, needs_hash: bool = False) -> dict[str, Any]:
    """Read what `write_signed_json` or (unless it `needs_hash`) an earlier version wrote, without the hash.

    Raises InputError, which names the file, where it is missing, damaged or no JSON object.
    """
    return read_own(path, functools.partial(verify_json, needs_hash=needs_hash))


def read_own(path: PathLike, decode: Callable[[bytes], _Content]) -> _Content:
    """Return what `decode` makes of the bytes of a file of ours.

    Raises InputError, which names the file, where it is missing, or where `decode` raises ValueError: it is damaged.
    """
    try:
        return decode(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}). Check the path") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} is damaged ({error}). Delete it and make it again") from error


def read_if_whole(path: Path, read: Callable[[Path], _Content]) -> _Content | None:
    """Return what `read` makes of a file that can be made again, or None where it is missing or damaged.

    Where it is damaged (InputError), the log says that it is made again.
    """
    if not path.is_file():
        return None
    try:
        return read(path)
    except InputError as error:
        _log.warning("%r is made again: it cannot be used (%s)", str(path), error.__cause__ or error)
        return None


def _json_hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("its JSON has a field twice")
    return content


# ---- bytes


def seal(content: bytes) -> bytes:
    """Return the content with a seal behind it. HDF5 ignores what follows its own end."""
    return content + _MARK + hashlib.sha256(content).hexdigest().encode("ascii")


def seal_file(file: BinaryIO) -> None:
    """Append to an open file, which can be read too, the seal of all that is in it."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0, io.SEEK_END)
    file.write(_MARK + digest.encode("ascii"))


def is_sealed(path: PathLike) -> bool:
    """Return whether a binary file ends with a seal, whatever it says: files of earlier versions do not."""
    with Path(path).open("rb") as file:
        file.seek(-min(SEAL_BYTES, file.seek(0, io.SEEK_END)), io.SEEK_END)
        return file.read().startswith(_MARK)


def unseal(content: bytes) -> tuple[bytes, bool]:
    """Return the content before the seal, and whether there is a seal. Raises ValueError where the two disagree."""
    body, end = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    if not end.startswith(_MARK):
        return content, False
    if hashlib.sha256(body).hexdigest().encode("ascii") != end[len(_MARK) :]:
        raise ValueError("its content does not have the sha256 that it was written with")
    return body, True
