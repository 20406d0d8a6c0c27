"""Leak check: whether images that a model was trained on are among those that it is judged by.

What is known of training images is a manifest, one line each: sha256 of the file, hash of the picture, name; "-" for
what is not known. It can be kept with a checkpoint where the images cannot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isinglass.datasets.layout import PathLike, image_files, read_text
from isinglass.datasets.pairs import Benchmark
from isinglass.errors import InputError
from isinglass.files import write_atomically
from isinglass.images import load, opened
from isinglass.names import is_file

BITS = 128  # of the hash of a picture
MAX_BITS = 10  # that may differ
_SIDE = 8
_MIN_CONTRAST = 16  # grey levels of the small picture: a blank one is like any other
_SUREST = ("bytes", "picture", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Of one image; None = not known, because the file is not there, or is no picture or a blank one."""

    name: str
    sha256: str | None = None
    picture: str | None = None  # 32 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A training and an evaluation image that may be the same.

    reason  "bytes": equal sha256; "picture": the hashes of the pictures differ by `bits` of BITS; "name": no more is
            known of the training image than its name, which is a hint
    """

    training: str
    evaluation: str
    reason: Literal["bytes", "picture", "name"]
    bits: int = 0


def leak_report(training: PathLike, benchmark: Benchmark, *, max_bits: int = MAX_BITS) -> list[Leak]:
    """Training images that are also images of the benchmark, surest first.

    training  a folder of images, searched with all that is in it; a manifest; or a list of image files, one a line,
              relative to its own folder. Blank lines and those that begin with # are skipped
    max_bits  how many bits of two pictures' hashes may differ. Of 220 smaller and recompressed copies (JPEG, quality 30
              to 90, down to a quarter of the size) all but one stay within MAX_BITS; among 1098 photos no two do that
              are not copies or neighbouring shots. A crop, a turn or another view of a scene is not found

    Names are compared without suffix, where nothing else is known; those of digits only with their folder's. Raises
    InputError where there are no training images, or a line is no path and no part of a manifest.
    """
    trained = fingerprints(training)
    files = sorted({file for pair in benchmark.pairs for file in (pair.image0, pair.image1)})
    judged = [_fingerprint(file, str(file)) for file in files]
    bits_TE = _differing_bits([one.picture for one in trained], [one.picture for one in judged])
    leaks = []
    for row, one in enumerate(trained):
        for column, other in enumerate(judged):
            bits = int(bits_TE[row, column])
            if one.sha256 is not None and one.sha256 == other.sha256:
                leaks.append(Leak(training=one.name, evaluation=other.name, reason="bytes"))
            elif bits <= max_bits:
                leaks.append(Leak(training=one.name, evaluation=other.name, reason="picture", bits=bits))
            elif one.sha256 is None and one.picture is None and _plain_name(one.name) == _plain_name(other.name):
                leaks.append(Leak(training=one.name, evaluation=other.name, reason="name"))
    return sorted(leaks, key=lambda leak: (_SUREST.index(leak.reason), leak.bits))


def fingerprints(images: PathLike) -> list[Fingerprint]:
    """Of a folder, a manifest or a list, as for `leak_report`, which says more."""
    path = Path(images)
    if path.is_dir():
        found = [_fingerprint(file, file.relative_to(path).as_posix()) for file in image_files(path)]
    else:
        lines = [line.strip() for line in read_text(path).splitlines()]
        found = [_of_line(line, path.parent) for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"{str(path)!r} has no images; expected those that a model was trained on")
    return found


def save_manifest(path: PathLike, images: Iterable[Fingerprint]) -> None:
    """Write what `leak_report` and `fingerprints` read. Raises InputError where the file cannot be written."""
    lines = [f"{one.sha256 or '-'} {one.picture or '-'} {one.name}\n" for one in images]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def picture_hash(image: Image.Image) -> str | None:
    """32 hex digits: where a picture of 9 x 9 grey pixels brightens, along rows and along columns; None if blank.

    The difference hash: it hardly changes with size, compression, brightness or contrast.
    """
    small = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    grey_HW = np.asarray(small, dtype=np.int16)
    if np.ptp(grey_HW) < _MIN_CONTRAST:
        return None
    along_rows, along_columns = np.diff(grey_HW[:_SIDE], axis=1) > 0, np.diff(grey_HW[:, :_SIDE], axis=0) > 0
    return np.packbits(np.concatenate([along_rows, along_columns], axis=None)).tobytes().hex()


def _fingerprint(file: Path, name: str) -> Fingerprint:
    if not is_file(file):
        return Fingerprint(name=name)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        with opened(file) as image:
            return Fingerprint(name=name, sha256=digest, picture=picture_hash(load(image, str(file))))
    except (OSError, ValueError):  # and InputError
        return Fingerprint(name=name, sha256=digest)


def _of_line(line: str, folder: Path) -> Fingerprint:
    found = re.fullmatch(r"([0-9a-f]{64}|-)\s+([0-9a-f]{32}|-)\s+(.+)", line)
    if not found:
        return _fingerprint(folder / line, line)
    digest, picture, name = (None if part == "-" else part for part in found.groups())
    return Fingerprint(name=name or "-", sha256=digest, picture=picture)


def _differing_bits(pictures0: list[str | None], pictures1: list[str | None]) -> NDArray[np.int64]:
    """(T, E) how many bits differ; more than there are where one is not known."""
    signs_T, signs_E = (
        np.array([_signs(picture) for picture in pictures], np.float32).reshape(-1, BITS)
        for pictures in (pictures0, pictures1)
    )
    known_TE = np.outer(np.abs(signs_T).max(axis=1) > 0, np.abs(signs_E).max(axis=1) > 0)
    return np.where(known_TE, (BITS - signs_T @ signs_E.T) / 2, BITS + 1).astype(np.int64)


def _signs(picture: str | None) -> NDArray[np.float32]:
    """(BITS,) -1 and 1, or all 0 where it is not known."""
    if picture is None:
        return np.zeros(BITS, np.float32)
    return np.unpackbits(np.frombuffer(bytes.fromhex(picture), np.uint8)).astype(np.float32) * 2 - 1


def _plain_name(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return f"{path.parent.name}/{path.stem}" if path.stem.isdigit() else path.stem
