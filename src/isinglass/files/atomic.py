"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
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


def check_room(path: PathLike, size: int) -> None:
    """Raise OSError unless a file of `size` bytes can be written as `path`, which is left empty.

    For libraries that do not survive a full disk: HDF5 frees memory twice when it closes a file that it cannot write.
    """
    with Path(path).open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(0)
        except (AttributeError, OSError) as error:  # the system, or the file system, knows no such call
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            if shutil.disk_usage(Path(path).parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
