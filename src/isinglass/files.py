"""Features and matches on disk: never torn, never pickled, checked wholly when read.

One file holds one image's features or one pair's matches, without the batch axis; the suffix is the format:

.npz   numpy's zip of arrays; strings are arrays without axes
.h5    HDF5 (extra `hdf5`); strings are attributes; arrays carry checksums
.json  matches only, for other programs: indices are pairs [i0, i1] with one score each, and points0 and points1 repeat
       the coordinates of those; what unmatched keypoints scored and when layers stopped is left out

Keypoints are float32 px in the convention of `isinglass.types`, integers int32.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from isinglass.errors import InputError, MissingExtra, WriteError
from isinglass.types import Features, Matches, Signature

FEATURES_SCHEMA = "isinglass features 1"
MATCHES_SCHEMA = "isinglass matches 1"

Fields = Mapping[str, np.ndarray | str]
PathLike = str | os.PathLike[str]
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


# ---- features


def save_features(path: PathLike, features: Features, *, half: bool = False) -> None:
    """Write the features of one image as .npz or .h5; with `half` the descriptors as float16, half the size.

    Raises InputError for batches, for numbers that are not finite (also as float16), and as `write_atomically` does.
    """
    _require_single(features, "features")
    values = {name: getattr(features, name) for name in _FEATURES}
    fields = {name: _to_disk(value, _FEATURES[name]) for name, value in values.items() if value is not None}
    if half:
        with np.errstate(over="ignore"):
            fields["descriptors"] = fields["descriptors"].astype(np.float16)
    _save(path, {"schema": FEATURES_SCHEMA, "signature": str(features.signature), **fields}, _FEATURES)


def load_features(path: PathLike) -> Features:
    """Read what `save_features` wrote; descriptors are float32.

    Raises InputError where the file is missing, damaged, or of another kind or version.
    """
    return _load(path, FEATURES_SCHEMA, _FEATURES, _features_of)


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
        _require_single(features, f"features{view}")
        fields[f"keypoints{view}"] = _to_disk(features.keypoints, _MATCHES["keypoints0"])
        fields[f"image_size{view}"] = _to_disk(features.image_size, _MATCHES["image_size0"])
    for name, field in _MATCHES.items():
        if name not in fields and getattr(matches, name) is not None:
            fields[name] = _to_disk(getattr(matches, name), field)
    _save(path, fields, _MATCHES)


def load_matches(path: PathLike) -> SavedMatches:
    """Read what `save_matches` wrote.

    Raises InputError where the file is missing, damaged, or of another kind or version.
    """
    return _load(path, MATCHES_SCHEMA, _MATCHES, _matches_of)


# ---- what a file must hold


@dataclass(frozen=True, slots=True)
class _Field:
    """An array on disk: its axes (letters bind to one length a file) and its dtypes."""

    axes: tuple[str | int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    required: bool = True
    finite: bool = True


_INT = ("int32",)
_FEATURES = {
    "keypoints": _Field(("N", 2)),
    "descriptors": _Field(("N", "D"), ("float32", "float16")),
    "scores": _Field(("N",)),
    "image_size": _Field((2,), _INT),
    "scales": _Field(("N",), required=False),
    "orientations": _Field(("N",), required=False),
    "turns": _Field((), _INT, required=False),
}
_MATCHES = {
    "keypoints0": _Field(("N0", 2)),
    "keypoints1": _Field(("N1", 2)),
    "image_size0": _Field((2,), _INT),
    "image_size1": _Field((2,), _INT),
    "indices": _Field(("N0",), _INT),
    "scores": _Field(("N0",)),
    "stop_layer": _Field((), _INT, required=False),
    "pruned_at0": _Field(("N0",), _INT, required=False),
    "pruned_at1": _Field(("N1",), _INT, required=False),
    "confidences0": _Field(("N0",), required=False, finite=False),
    "confidences1": _Field(("N1",), required=False, finite=False),
}


def _check(fields: Fields, table: Mapping[str, _Field]) -> None:
    """Raises ValueError unless the fields are as the table has them."""
    lengths: dict[str, int] = {}
    for name, field in table.items():
        if name not in fields:
            if field.required:
                raise ValueError(f"it has no {name}")
            continue
        array = np.asarray(fields[name])
        if array.dtype.name not in field.dtypes or array.ndim != len(field.axes):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {field.dtypes[0]} {field.axes}")
        for axis, length in zip(field.axes, array.shape, strict=True):
            expected = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
            if length != expected:
                raise ValueError(f"{name} has shape {array.shape}, expected {axis} = {expected}")
        if field.finite and not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinity as {array.dtype}")
    if "indices" in table:
        indices = np.asarray(fields["indices"])
        if indices.size and (indices.min() < -1 or indices.max() >= lengths["N1"]):
            raise ValueError(f"indices run from {indices.min()} to {indices.max()}, but view 1 has {lengths['N1']}")


def _require_single(features: Features, name: str) -> None:
    if len(features) != 1 or features.mask is not None:
        raise InputError(f"{name} are a batch of {len(features)} or padded; expected one image's (use f[i])")


def _to_disk(value: Tensor, field: _Field) -> np.ndarray:
    """The tensor (1, ...) without its batch axis."""
    return value[0].detach().cpu().to(getattr(torch, field.dtypes[0])).numpy()


def _from_disk(value: np.ndarray | str) -> Tensor:
    tensor = torch.from_numpy(np.array(value))[None]
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)


def _save(path: PathLike, fields: Fields, table: Mapping[str, _Field]) -> None:
    encode, _ = _format_of(path, table)
    try:
        _check(fields, table)
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not written: {error}") from error
    content = encode(fields)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _load(path: PathLike, schema: str, table: Mapping[str, _Field], build: Callable[[Fields], _Loaded]) -> _Loaded:
    _, decode = _format_of(path, table)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a file of {schema!r}") from error
    try:
        fields = decode(content)
        if fields.get("schema") != schema:
            raise ValueError(f"its schema is {fields.get('schema')!r}, expected {schema!r}")
        _check(fields, table)
        return build(fields)
    except MissingExtra:
        raise
    except Exception as error:
        raise InputError(
            f"{str(path)!r} is damaged or not a file of {schema!r}: {error}. Delete it and make it "
            "again with this version"
        ) from error


def _features_of(fields: Fields) -> Features:
    tensors = {name: _from_disk(fields[name]) for name in _FEATURES if name in fields}
    return Features(**tensors, signature=Signature.parse(_text(fields, "signature")))


def _matches_of(fields: Fields) -> SavedMatches:
    own = {name for name in _MATCHES if name in fields and not name.startswith(("keypoints", "image_size"))}
    return SavedMatches(
        matches=Matches(**{name: _from_disk(fields[name]) for name in own}, matcher=_text(fields, "matcher")),
        keypoints0=_from_disk(fields["keypoints0"])[0],
        keypoints1=_from_disk(fields["keypoints1"])[0],
        image_size0=tuple(np.asarray(fields["image_size0"]).tolist()),
        image_size1=tuple(np.asarray(fields["image_size1"]).tolist()),
        signature=Signature.parse(_text(fields, "signature")),
    )


def _text(fields: Fields, name: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        raise ValueError(f"it has no text {name!r}")
    return text


# ---- formats

Format = tuple[Callable[[Fields], bytes], Callable[[bytes], Fields]]


def _format_of(path: PathLike, table: Mapping[str, _Field]) -> Format:
    formats = {".npz": (_encode_npz, _decode_npz), ".h5": (_encode_h5, _decode_h5)}
    if table is _MATCHES:
        formats[".json"] = (_encode_json, _decode_json)
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise InputError(f"{str(path)!r} has the suffix {suffix!r}; expected {' or '.join(formats)}")
    return formats[suffix]


def _encode_npz(fields: Fields) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _decode_npz(content: bytes) -> Fields:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: array.item() if array.dtype.kind == "U" else array for name, array in arrays.items()}


def _encode_h5(fields: Fields) -> bytes:
    buffer = io.BytesIO()
    with _h5py().File(buffer, "w") as file:
        for name, value in fields.items():
            if isinstance(value, str):
                file.attrs[name] = value
            else:
                file.create_dataset(name, data=value, fletcher32=True if value.size and value.ndim else None)
    return buffer.getvalue()


def _decode_h5(content: bytes) -> Fields:
    with _h5py().File(io.BytesIO(content), "r") as file:
        return {**{name: dataset[()] for name, dataset in file.items()}, **dict(file.attrs)}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "hdf5") from error
    return h5py


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
    return json.dumps({name: _plain(value) for name, value in arrays.items()}, allow_nan=False).encode()


_IN_JSON = ("keypoints", "image_size")  # of either view


def _plain(value: np.ndarray | str) -> Any:
    """Lists; floats with the fewest digits that give the same float32 again."""
    if isinstance(value, str) or value.dtype.kind != "f":
        return value if isinstance(value, str) else value.tolist()
    return value.astype(str).astype(float).tolist()


def _decode_json(content: bytes) -> Fields:
    fields = json.loads(content)
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
