"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isinglass.errors import WriteError

PathLike = str | os.PathLike[str]


@contextmanager
def write_atomically(path: PathLike) -> Iterator[Path]:
    """The path of a temporary file to write; it becomes `path` in one step when the block ends without an error.

    A reader sees the earlier file or the new one, whole, whenever this process is killed; what a killed process leaves
    are files ".isinglass-*.tmp" in the folder, which nobody reads. Folders are made as needed.

    Raises WriteError where the file cannot be written (no permission, a full disk); the earlier file stays.
    """
    path = Path(path)
    temporary = path.parent / f".isinglass-{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise WriteError(
            f"{str(path)!r} cannot be written ({error}); what it held before is still there. Free space, or choose a "
            "folder that may be written"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
