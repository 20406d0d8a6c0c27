"""MegaDepth, as prepared for training by D2-Net's code: cameras by COLMAP, depth by stereo, overlaps of all pairs."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.datasets.layout import PathLike, existing_folder
from isinglass.datasets.pairs import Depth
from isinglass.datasets.posed import COLMAP_CENTRE
from isinglass.errors import InputError
from isinglass.train.posed import PosedImage, PosedImages, camera_of, rigid_of, usable


def megadepth_scenes(root: PathLike) -> list[Path]:
    """The scenes below `root`, as `scene_info/*.npz`, in order. Raises InputError where there is none."""
    folder = existing_folder(root, "scene_info, and the images and depth maps that it names")
    scenes = sorted((folder / "scene_info").glob("*.npz"))
    if not scenes:
        raise InputError(f"{str(folder)!r} has no scene_info/*.npz, which D2-Net's preprocessing makes of MegaDepth")
    return scenes


def load_megadepth(scene_info: PathLike, root: PathLike) -> PosedImages:
    """One scene of MegaDepth, as prepared by D2-Net's code and used by glue-factory: an .npz, its paths below `root`.

    It has image_paths, depth_paths (HDF5), intrinsics (3x3, of COLMAP, so with the half pixel), poses (4x4
    world-to-camera) and overlap_matrix; a None among them says that there is no such image or no depth for it, and is
    passed over. Such files hold pickled objects: they are read word by word here (`_Parts`), and run no code.

    Raises InputError where nothing can be used, MissingExtra without h5py.
    """
    names = ("image_paths", "depth_paths", "intrinsics", "poses")
    *arrays, overlap = arrays_of(Path(scene_info), (*names, "overlap_matrix"))
    rows = list(zip(*arrays, strict=True)) if len({len(one) for one in arrays}) == 1 else []
    if not rows or overlap.shape != (len(rows),) * 2:
        shapes = {name: one.shape for name, one in zip((*names, "overlap_matrix"), (*arrays, overlap), strict=True)}
        raise InputError(f"{str(scene_info)!r} has {shapes}; expected N, N, N, N and (N, N)")

    def build(i: int) -> PosedImage:
        image, depth, intrinsics, pose = rows[i]
        rotation, translation = rigid_of(np.asarray(pose))
        camera = camera_of(np.asarray(intrinsics), COLMAP_CENTRE)
        return PosedImage(
            file=Path(root) / str(image),
            camera=camera,
            rotation=rotation,
            translation=translation,
            depth=Depth(file=Path(root) / str(depth), scale=1.0),
        )

    there = [i for i, row in enumerate(rows) if all(part is not None for part in row)]
    images, kept, problems = usable(scene_info, [str(rows[i][0]) for i in there], there, build)
    lesser = np.minimum(overlap, overlap.T).astype(np.float64)[np.ix_(kept, kept)]
    return PosedImages(images=images, overlap_NN=lesser, problems=problems)


def arrays_of(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of an .npz, of objects too. Raises InputError where one is missing, or holds what is no array."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [_array(archive.read(f"{name}.npy")) for name in names]
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise InputError(
            f"{str(file)!r} cannot be read ({error}); expected an .npz with {', '.join(names)}, numbers and text"
        ) from error


def _array(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if not dtype.hasobject:
        return np.load(io.BytesIO(content), allow_pickle=False)
    array = _plain(_Parts().read(stream.read()))
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError(f"an array is {type(array).__name__}, not of shape {shape}")
    return array


@dataclass(slots=True, eq=False)
class _Part:
    """What a stream says is made by a function, of arguments and a state: an array, its type, a number."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Parts:
    """Reads an array of objects by the words of its stream alone: it imports and calls nothing that the stream names.

    Known are those words that NumPy writes for arrays, numbers, text and None; others raise ValueError.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.kept: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        """What is left at the end."""
        for word, value, _ in pickletools.genops(content):
            if word.name in _VALUES:
                self.stack.append(value)
            elif word.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[word.name]())
            elif word.name in _ACTS:
                _ACTS[word.name](self, value)
            elif word.name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"it has {word.name}, which is of no array")
        return self.stack.pop()

    def taken(self, count: int | None = None) -> list[Any]:
        """The last so many, or all after the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def keep(self, place: int | None) -> None:
        """For later use."""
        self.kept[len(self.kept) if place is None else place] = self.stack[-1]

    def make(self) -> None:
        """Of a function and its arguments."""
        function, arguments = self.taken(2)
        name = str(function).replace("numpy._core.", "numpy.core.")
        if name not in _FUNCTIONS:
            raise ValueError(f"it names {function}, which may run code")
        self.stack.append(arguments[0].encode(arguments[1]) if name == "_codecs encode" else _Part(name, arguments))

    def set_state(self) -> None:
        """Of what was made."""
        state = self.stack.pop()
        self.stack[-1].state = state

    def extend(self, values: list[Any]) -> None:
        """The list on top."""
        self.stack[-1].extend(values)


_FUNCTIONS = ("numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy dtype", "_codecs encode")
_VALUES = {"BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "GLOBAL"} | {
    f"{size}BIN{kind}" for kind in ("BYTES", "UNICODE") for size in ("", "SHORT_")
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
}
_ACTS: dict[str, Callable[[_Parts, Any], object]] = {
    "MARK": lambda parts, _: parts.marks.append(len(parts.stack)),
    "TUPLE": lambda parts, _: parts.stack.append(tuple(parts.taken())),
    "TUPLE1": lambda parts, _: parts.stack.append(tuple(parts.taken(1))),
    "TUPLE2": lambda parts, _: parts.stack.append(tuple(parts.taken(2))),
    "TUPLE3": lambda parts, _: parts.stack.append(tuple(parts.taken(3))),
    "APPEND": lambda parts, _: parts.extend(parts.taken(1)),
    "APPENDS": lambda parts, _: parts.extend(parts.taken()),
    "MEMOIZE": lambda parts, _: parts.keep(None),
    "BINPUT": _Parts.keep,
    "LONG_BINPUT": _Parts.keep,
    "BINGET": lambda parts, place: parts.stack.append(parts.kept[place]),
    "LONG_BINGET": lambda parts, place: parts.stack.append(parts.kept[place]),
    "STACK_GLOBAL": lambda parts, _: parts.stack.append(" ".join(parts.taken(2))),
    "REDUCE": lambda parts, _: parts.make(),
    "BUILD": lambda parts, _: parts.set_state(),
}


def _plain(part: Any) -> Any:
    """The array, type or number that a part is; anything else as it is."""
    if not isinstance(part, _Part):
        return part
    if part.function == "numpy dtype":
        kind = np.dtype(part.arguments[0])
        return kind if part.state is None or kind.hasobject else kind.newbyteorder(part.state[1])
    if part.function.endswith("scalar"):
        return np.frombuffer(part.arguments[1], _plain(part.arguments[0]))[0]
    _, shape, kind, by_column, values = part.state
    if isinstance(values, list):
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            array[i] = _plain(value)
    else:
        array = np.frombuffer(values, _plain(kind))
    return array.reshape(shape, order="F" if by_column else "C")
