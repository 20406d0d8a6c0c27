"""One rule for the names of results: valid on every file system, never too long, and the same in every run."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

MAX_BYTES = 200  # of a name; file systems allow 255, and readers add suffixes of their own
_DIGITS = 8
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_ALLOWED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]')  # Windows, lines, not Unicode


def file_name(stem: str, ending: str = "") -> str:
    """Return a file name made of a stem, such as a photo's, and an ending that is kept as it is.

    Characters that some file system refuses become "_". A stem that is too long is cut and ends in a hash of the whole.
    """
    return _safe(stem, MAX_BYTES - len(ending.encode())) + ending


def pair_name(stem0: str, stem1: str) -> str:
    """Return the name of a pair's results, without a suffix: "<stem 0>-<stem 1>", each as in `file_name`."""
    return f"{_safe(stem0, MAX_BYTES // 2 - 1)}-{_safe(stem1, MAX_BYTES // 2 - 1)}"


def distinguished(name: str, identity: str) -> str:
    """Return the name with a hash of what it is of, for a name that something else has already."""
    return f"{name}-{short_hash(identity)}"


def folded(name: str) -> str:
    """Return the same text for names that some file system takes for one: other case, other form of an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def short_hash(text: str) -> str:
    """Return eight hex digits of any text, also of the name of a file that is not UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def is_one_line(name: str) -> bool:
    """Return whether a name can be written as text, within a line: no control character, no byte that is not UTF-8."""
    return _UNPRINTABLE.search(name) is None


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False, and no OSError, for a path that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def exists(path: Path) -> bool:
    """Return whether there is such a file or folder; False, and no OSError, for a path that nothing can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def printable(name: str) -> str:
    r"""Return the name as it can be shown and written: "\udce9" for a byte that is not UTF-8, "\n" for a line break."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def _safe(stem: str, max_bytes: int) -> str:
    name = _NOT_ALLOWED.sub("_", stem)
    name = "_" + name[1:] if name.startswith(".") else name  # a result is not hidden
    if len(name.encode()) <= max_bytes:
        return name
    kept = name.encode()[: max_bytes - _DIGITS - 1].decode(errors="ignore")
    return f"{kept}-{short_hash(stem)}"
