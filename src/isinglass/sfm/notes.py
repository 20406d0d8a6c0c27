"""Notes on how the pixels of photos were read, for the summary of a map: 16-bit values stretched, NaN masked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from isinglass.errors import InputError
from isinglass.files import read_if_whole, read_signed_json, write_signed_json
from isinglass.images import header_of, opened, read_photo
from isinglass.images.values import Stretch

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def photo_notes(photos: Path, digests: Mapping[str, str | None], stretch: Stretch, cache: Path) -> dict[str, list[str]]:
    """Return by name what a person should know of how each photo was read; photos without such notes are left out.

    digests  of the photos, by name
    cache    file of the notes of earlier runs, by digest, which is brought up to date

    Features do not hold these notes, and whoever extracted them may be another process, or have done so long ago. So
    the pixels of photos of more than 8 bits are read once more; of others the header says it all. Raises WriteError
    where the cache cannot be written.
    """
    told = read_if_whole(cache, read_signed_json) if cache.is_file() else None
    known = told.get("notes", {}) if told and told.get("stretch") == stretch else {}
    found: dict[str, list[str]] = {}
    for name, digest in digests.items():
        if digest is None:
            continue
        found[digest] = known[digest] if digest in known else _notes_of(photos / name, stretch)
    write_signed_json(cache, {"stretch": stretch, "notes": found})
    return {name: found[digest] for name, digest in digests.items() if digest is not None and found[digest]}


def _notes_of(photo: Path, stretch: Stretch) -> list[str]:
    try:
        with opened(photo) as image:
            header = header_of(image)
            return list(read_photo(image, stretch=stretch).notes if header.deep else header.notes)
    except (InputError, OSError):  # which is reported where it is extracted
        return []


def group_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each kind of note once, with the first photo that it is of, and how many more there are.

    Notes that differ in numbers alone are of one kind; the numbers are those of the first photo.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, texts in notes.items():
        for text in texts:
            kinds.setdefault(_NUMBER.sub("0", text), []).append((name, text))
    return [
        f"{same[0][0]!r}{f' and {len(same) - 1} more' if len(same) > 1 else ''}: {same[0][1]}"
        for same in kinds.values()
    ]
