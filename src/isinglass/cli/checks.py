"""Cheap checks first: paths, names, licences and packages, before torch is imported and before any work."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from isinglass.errors import InputError, MissingExtra, WriteError
from isinglass.options import OptionsDict

_PACKAGES = {  # module: its name for pip, where that is another
    "cv2": "opencv-python-headless",
    "faiss": "faiss-cpu",
    "multipart": "python-multipart",
}
PIPELINE = {*OptionsDict.__annotations__, "all_layers", "all_keypoints", "original_size"}  # options of a pipeline
MAPS = {"h5py": "maps", "pycolmap": "maps", "faiss": "maps"}
Needs = Mapping[str, str] | Callable[[Mapping[str, Any]], Mapping[str, str]]  # module: the extra that brings it


# ---- kinds of values


class _Present(click.ParamType):
    """A file or folder that is there."""

    name = "path"

    def __init__(self, what: str, *, file: bool = True, folder: bool = True) -> None:
        self.what, self.file, self.folder = what, file, folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; fails where there is nothing, or a folder for a file."""
        path, kind = Path(value), "file" if not self.folder else "folder" if not self.file else "file or folder"
        try:
            is_file, is_folder = path.is_file(), path.is_dir()
            there = is_file or is_folder or (self.file and path.exists())
        except (OSError, ValueError) as error:
            raise InputError(f"{_shown(path)} cannot be read ({error}). Check the path") from error
        if not there:
            raise InputError(f"there is no {kind} {_shown(path)}; expected {self.what}. Check the path")
        if (is_folder and not self.folder) or (is_file and not self.file):
            raise InputError(f"{_shown(path)} is a {'folder' if is_folder else 'file'}; expected {self.what}")
        if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
            raise InputError(f"{_shown(path)} cannot be read: permission denied. Change its permissions")
        return path


class _List(_Present):
    """A list of names that can be read."""

    def __init__(self, columns: int) -> None:
        super().__init__("a list", folder=False)
        self.columns = columns

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; fails where no image could make the file a list."""
        from isinglass.files.lists import check_list

        path = super().convert(value, param, ctx)
        check_list(path, columns=self.columns)
        return path


class _Output(click.ParamType):
    """A file or folder that can be written."""

    name = "path"

    def __init__(self, *, folder: bool) -> None:
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; fails where it cannot be written. Nothing is made yet."""
        path = Path(value)
        try:
            self._check(path)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise WriteError(f"{_shown(path)} cannot be written ({error}). Choose another path") from error
        return path

    def _check(self, path: Path) -> None:
        if path.exists() and path.is_dir() != self.folder:
            kinds = ("file", "folder") if self.folder else ("folder", "file")
            raise InputError(f"the output {_shown(path)} is a {kinds[0]}; expected a {kinds[1]}. Choose another path")
        place = path if self.folder else path.absolute().parent
        while not place.exists():
            place = place.absolute().parent
        if not place.is_dir():
            raise WriteError(f"{_shown(path)} cannot be written: {_shown(place)} is a file. Choose another path")
        if not os.access(place, os.W_OK | os.X_OK):
            raise WriteError(f"{_shown(path)} cannot be written: no permission to write to {_shown(place)}")


class Number(click.FloatRange):
    """A finite number within limits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fails for NaN and infinity, too."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


class Device(click.ParamType):
    """The name of a device: cpu, cuda, cuda:1, mps."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; fails where it has another form. Whether there is such a device is seen later."""
        kind, _, number = str(value).partition(":")
        if kind not in ("cpu", "cuda", "mps") or (":" in str(value) and not number.isdecimal()):
            self.fail(f"{value!r} is no device. Choose cpu, cuda, cuda:N or mps.", param, ctx)
        return str(value)


IMAGE = _Present("an image", folder=False)
PHOTOS = _Present("a folder of photos", file=False)
FOLDER = _Present("a folder", file=False)
FILE = _Present("a file", folder=False)
PAIR_LIST, IMAGE_LIST = _List(2), _List(1)
PRESENT = _Present("an image, a folder of images, or a file made from them")
OUTPUT_FOLDER, OUTPUT_FILE = _Output(folder=True), _Output(folder=False)
DEVICE = Device()


# ---- commands


class Command(click.Command):
    """A command that checks what is cheap to check, and only then starts.

    needs     the packages that it cannot do without, or a function of its options that says which
    pipeline  gives the options that its pipeline will have, out of the context; None = its own
    checks    further checks of its options; each raises InputError
    """

    def __init__(
        self,
        *args: Any,
        needs: Needs | None = None,
        pipeline: Callable[[click.Context], Mapping[str, Any]] | None = None,
        checks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self.needs, self.pipeline, self.checks = needs or {}, pipeline, checks

    def invoke(self, ctx: click.Context) -> Any:
        """Check, and run."""
        needs = self.needs(ctx.params) if callable(self.needs) else self.needs
        require(needs)
        for check in self.checks:
            check(ctx.params)
        check_pipeline(ctx.params if self.pipeline is None else self.pipeline(ctx))
        return super().invoke(ctx)


def require(needs: Mapping[str, str]) -> None:
    """Raise MissingExtra for the first package that is not installed."""
    for module, extra in needs.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(_PACKAGES.get(module, module), extra)


def check_pipeline(params: Mapping[str, Any]) -> None:
    """Raise InputError for options of a pipeline that make no sense, LicenceError, or MissingExtra for SIFT.

    A command without --extractor or --matcher has no such part; an extractor of None is not known yet.
    """
    from isinglass.cli.common import pipeline_options
    from isinglass.options import Options
    from isinglass.weights.names import HANDMADE, check_extractor, check_matcher

    given = pipeline_options({name: value for name, value in params.items() if name in PIPELINE})
    Options.of(**{name: value for name, value in given.items() if value is not None})
    accept, extractor = given.get("accept_licence", False), given.get("extractor")
    if extractor is not None:
        check_extractor(extractor, accept_licence=accept)
        if set(extractor.split("+")) & set(HANDMADE):
            require({"cv2": "sift"})
    if given.get("matcher") is not None:
        about = {name: given.get(name) for name in ("ratio", "filter_threshold")}
        check_matcher(given["matcher"], extractor, **about, accept_licence=accept)


def _shown(path: Path) -> str:
    return repr(str(path))
