"""One image's features, or one pair's matches, in a file: never torn, never pickled, checked wholly when read.

The suffix is the format, and nothing has a batch axis:

.npz   numpy's zip of arrays; strings are arrays without axes
.h5    HDF5 (extra `hdf5`); strings are attributes
.json  matches only, for other programs: indices are pairs [i0, i1] with one score each, and points0 and points1 repeat
       the coordinates of those; what unmatched keypoints scored and when layers stopped is left out

Every file carries a hash of all that it holds (`isinglass.files.integrity`), which is verified before anything is read.
Keypoints are float32 px in the convention of `isinglass.types`, integers int32.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from isinglass.errors import InputError, MissingExtra
from isinglass.files.atomic import PathLike, write_atomically
from isinglass.files.fields import (
    FEATURES,
    MATCHES,
    Field,
    Fields,
    check,
    feature_fields,
    features_of,
    from_disk,
    require_single,
    text_of,
    to_disk,
)
from isinglass.files.hdf5 import FORMAT, check_whole, h5py_module, read_array, read_texts, write_arrays, write_texts
from isinglass.files.integrity import seal, signed_json, unseal, verify_json
from isinglass.files.npz import decode_npz, encode_npz
from isinglass.types import Features, Matches, Signature

FEATURES_SCHEMA = "isinglass features 1"
MATCHES_SCHEMA = "isinglass matches 1"

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SavedMatches:
    """What a file of matches holds.

    matches              of one pair
    keypoints0/1         (N0, 2) / (N1, 2) float32 px of the original images
    image_size0/1        (width, height) px
    signature            who made the features of both views
    """

    matches: Matches
    keypoints0: Tensor
    keypoints1: Tensor
    image_size0: tuple[int, int]
    image_size1: tuple[int, int]
    signature: Signature

    @property
    def points0(self) -> Tensor:
        """(M, 2) px, the matched points of view 0."""
        return self.keypoints0[self.matches.pairs()[:, 0]]

    @property
    def points1(self) -> Tensor:
        """(M, 2) px, the matched points of view 1."""
        return self.keypoints1[self.matches.pairs()[:, 1]]


# ---- features


def save_features(path: PathLike, features: Features, *, half: bool = False) -> None:
    """Write the features of one image as .npz or .h5; with `half` the descriptors as float16, half the size.

    Raises InputError for batches, for numbers that are not finite (also as float16), and as `write_atomically` does.
    """
    fields = feature_fields(features, half=half)
    _save(path, {"schema": FEATURES_SCHEMA, "signature": str(features.signature), **fields}, FEATURES)


def load_features(path: PathLike) -> Features:
    """Read what `save_features` wrote; descriptors are float32.

    Raises InputError where the file is missing, damaged, or of another kind or version.
    """
    return _load(path, FEATURES_SCHEMA, FEATURES, features_of)


# ---- matches


def save_matches(path: PathLike, matches: Matches, features0: Features, features1: Features) -> None:
    """Write the matches of one pair, with both images' keypoints, as .npz, .h5 or .json.

    Raises InputError for batches, for features that the matches do not fit, and as `write_atomically` does.
    """
    if len(matches) != 1:
        raise InputError(f"matches of {len(matches)} pairs came; expected those of one")
    if features0.signature != features1.signature:
        raise InputError(f"features of {features0.signature} and {features1.signature} came; expected the same twice")
    fields: dict[str, Any] = {"schema": MATCHES_SCHEMA, "matcher": matches.matcher}
    fields["signature"] = str(features0.signature)
    for view, features in enumerate((features0, features1)):
        require_single(features, f"features{view}")
        fields[f"keypoints{view}"] = to_disk(features.keypoints, MATCHES["keypoints0"])
        fields[f"image_size{view}"] = to_disk(features.image_size, MATCHES["image_size0"])
    for name, field in MATCHES.items():
        if name not in fields and getattr(matches, name) is not None:
            fields[name] = to_disk(getattr(matches, name), field)
    _save(path, fields, MATCHES)


def load_matches(path: PathLike) -> SavedMatches:
    """Read what `save_matches` wrote.

    Raises InputError where the file is missing, damaged, or of another kind or version.
    """
    return _load(path, MATCHES_SCHEMA, MATCHES, _matches_of)


# ---- reading and writing


def _save(path: PathLike, fields: Fields, table: Mapping[str, Field]) -> None:
    encode, _ = _format_of(path, table)
    try:
        check(fields, table)
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not written: {error}") from error
    content = encode(fields)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _load(path: PathLike, schema: str, table: Mapping[str, Field], build: Callable[[Fields], _Loaded]) -> _Loaded:
    _, decode = _format_of(path, table)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a file of {schema!r}") from error
    try:
        fields = decode(content)
        if fields.get("schema") != schema:
            raise ValueError(f"its schema is {fields.get('schema')!r}, expected {schema!r}")
        check(fields, table)
        return build(fields)
    except MissingExtra:
        raise
    except Exception as error:
        raise InputError(
            f"{str(path)!r} is damaged or not a file of {schema!r}: {error}. Delete it and make it "
            "again with this version"
        ) from error


def _matches_of(fields: Fields) -> SavedMatches:
    own = {name for name in MATCHES if name in fields and not name.startswith(("keypoints", "image_size"))}
    return SavedMatches(
        matches=Matches(**{name: from_disk(fields[name]) for name in own}, matcher=text_of(fields, "matcher")),
        keypoints0=from_disk(fields["keypoints0"])[0],
        keypoints1=from_disk(fields["keypoints1"])[0],
        image_size0=tuple(np.asarray(fields["image_size0"]).tolist()),
        image_size1=tuple(np.asarray(fields["image_size1"]).tolist()),
        signature=Signature.parse(text_of(fields, "signature")),
    )


# ---- formats

Format = tuple[Callable[[Fields], bytes], Callable[[bytes], Fields]]


def _format_of(path: PathLike, table: Mapping[str, Field]) -> Format:
    formats = {".npz": (_encode_npz, _decode_npz), ".h5": (_encode_h5, _decode_h5)}
    if table is MATCHES:
        formats[".json"] = (_encode_json, _decode_json)
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise InputError(f"{str(path)!r} has the suffix {suffix!r}; expected {' or '.join(formats)}")
    return formats[suffix]


def _encode_npz(fields: Fields) -> bytes:
    return encode_npz(fields)


def _decode_npz(content: bytes) -> Fields:
    arrays = decode_npz(content)
    return {name: array.item() if array.dtype.kind == "U" else array for name, array in arrays.items()}


def _encode_h5(fields: Fields) -> bytes:
    buffer = io.BytesIO()
    with h5py_module().File(buffer, "w", libver=FORMAT) as file:
        write_texts(file, {name: value for name, value in fields.items() if isinstance(value, str)})
        write_arrays(file, "", {name: value for name, value in fields.items() if not isinstance(value, str)})
    return seal(buffer.getvalue())


def _decode_h5(content: bytes) -> Fields:
    whole, _ = unseal(content)
    check_whole(whole)
    with h5py_module().File(io.BytesIO(whole), "r") as file:
        return {**{name: read_array(dataset) for name, dataset in file.items()}, **read_texts(file, whole)}


def _encode_json(fields: Fields) -> bytes:
    index0 = np.flatnonzero(np.asarray(fields["indices"]) >= 0)
    index1 = np.asarray(fields["indices"])[index0]
    kept = {name: value for name, value in fields.items() if isinstance(value, str) or name[:-1] in _IN_JSON}
    arrays = {
        **kept,
        "indices": np.stack([index0, index1], axis=1),
        "scores": np.asarray(fields["scores"])[index0],
        "points0": np.asarray(fields["keypoints0"])[index0],
        "points1": np.asarray(fields["keypoints1"])[index1],
    }
    return signed_json({name: _plain(value) for name, value in arrays.items()}).encode()


_IN_JSON = ("keypoints", "image_size")  # of either view


def _plain(value: np.ndarray | str) -> Any:
    """Lists; floats with the fewest digits that give the same float32 again."""
    if isinstance(value, str) or value.dtype.kind != "f":
        return value if isinstance(value, str) else value.tolist()
    return value.astype(str).astype(float).tolist()


def _decode_json(content: bytes) -> Fields:
    fields = verify_json(content)
    for view in (0, 1):
        fields[f"keypoints{view}"] = np.array(fields[f"keypoints{view}"], dtype=np.float32).reshape(-1, 2)
        fields[f"image_size{view}"] = np.array(fields[f"image_size{view}"], dtype=np.int32)
    index0, index1 = np.array(fields["indices"], dtype=np.int32).reshape(-1, 2).T
    count = len(fields["keypoints0"])
    if index0.size and (index0.min() < 0 or index0.max() >= count or len(np.unique(index0)) < len(index0)):
        raise ValueError(f"indices of view 0 repeat, or are not among its {count} keypoints")
    scores = np.array(fields["scores"], dtype=np.float32)
    fields["indices"], fields["scores"] = np.full(count, -1, dtype=np.int32), np.zeros(count, dtype=np.float32)
    fields["indices"][index0], fields["scores"][index0] = index1, scores
    return fields
