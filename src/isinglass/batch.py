"""Many pairs of image files: each image is extracted once, each pair matched once, each result written whole.

A folder of results has <name>.npz (or .h5, .json), the picture <name>.png, and two folders that let a killed run go on
where it was: features/ (one file an image) and reports/ (one file a pair). A report is first written as a claim to the
name, and again, with a hash of every file it describes, when these are there. It counts only for the same contents of
images and masks, the same models and options, and the very files that it describes.

The name is "<stem of the first image>-<stem of the second>" where nothing of another pair has that name in the folder;
else a hash of both paths is added. So a pair keeps its name in a folder, whatever else is matched into it.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.cache import FeatureCache, matching_key
from isinglass.errors import InputError, WriteError
from isinglass.files import read_if_whole, read_signed_json, save_matches, write_signed_json
from isinglass.files.lists import problems_by_place, read_pair_list
from isinglass.geometry.robust import RobustResult
from isinglass.images.folder import Selection, list_photos
from isinglass.names import distinguished, exists, folded, is_file, pair_name, printable
from isinglass.pipeline import Pipeline, as_seen
from isinglass.result import MatchResult, geometry_if_installed, turns_of
from isinglass.types import Features

Pair = tuple[Path, Path]
Masks = tuple[Path | None, Path | None] | Mapping[Path, Path]  # of all first and all second images, or by image
_SUFFIXES = (".npz", ".h5", ".json", ".png")  # of what is written of a pair
# What is wrong with one name, where the folder could take another one.
_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What became of a pair, as `--json` prints it. `error` is None unless the pair could not be matched."""

    image0: str
    image1: str
    extractor: str
    matcher: str
    num_keypoints0: int | None = None
    num_keypoints1: int | None = None
    num_matches: int | None = None
    num_inliers: int | None = None  # None also where PoseLib is not installed
    model: str | None = None  # "homography" or "fundamental"; None = none fits
    stop_layer: int | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    reused: bool = False  # the report of an earlier run
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a run writes into `folder`: matches in `formats` ("npz", "h5", "json"), and a picture of each pair."""

    folder: Path
    formats: tuple[str, ...] = ("npz",)
    picture: bool = True


def list_images(path: Path, selection: Selection | None = None) -> list[Path]:
    """Return the photos in and below a folder, by name, or the one file. Raises InputError for an empty folder."""
    return [path] if path.is_file() else [path / name for name in list_photos(path, selection).names]


def list_pairs(
    first: Path, second: Path | None = None, photos_of: Callable[[Path], list[Path]] = list_images
) -> list[Pair]:
    """Return pairs of two files; of a file and all images of a folder; of all of two folders, or within one.

    photos_of  gives the photos of a folder, and of a file that alone
    """
    for path in (first, second):
        if path is not None and not exists(path):
            raise InputError(f"there is no file or folder {str(path)!r}. Check the path")
    views0 = photos_of(first)
    if second is None:
        if first.is_file():
            raise InputError(f"{str(first)!r} is one image; give a second one, or a folder")
        if len(views0) < 2:
            raise InputError(f"there is one image in or below {str(first)!r}; expected two or more, to be matched")
        return list(itertools.combinations(views0, 2))
    views1 = photos_of(second)
    return [(view0, view1) for view0 in views0 for view1 in views1]


def read_pairs(
    path: Path, root: Path | None = None, problem: Callable[[str, str], object] = lambda name, why: None
) -> list[Pair]:
    """Return the pairs of a list as paths, relative to `root` or to the file; see `files.lists`.

    An image that is not there is no reason to refuse the list: `match_files` reports the pair. `problem` is called
    for each line that cannot be read in one way, with the line and what is wrong.
    """
    root = root or path.parent
    found = read_pair_list(path, lambda name: is_file(root / name))
    for name, why in problems_by_place(found, path).items():
        problem(name, why)
    return [(root / name0, root / name1) for name0, name1 in found.pairs]


def match_files(
    pairs: Sequence[Pair], pipeline: Pipeline, outputs: Outputs, *, masks: Masks = (None, None), batch_size: int = 1
) -> Iterator[PairReport]:
    """Match pairs of files and write the results; one report a pair, in order.

    What an earlier run with the same images and options finished is reported again, not computed again. A pair whose
    images cannot be read, or whose results cannot be written under their name, is reported with its error, and the run
    goes on. Raises WriteError where nothing can be written: no permission, a full disk.
    """
    run = _Run(pipeline, outputs, masks)
    for start in range(0, len(pairs), batch_size):
        jobs = [_Job(pair, run) for pair in pairs[start : start + batch_size]]
        for job in jobs:
            job.load()
        todo = [job for job in jobs if job.report is None]
        for job, result in zip(todo, _matched(todo, pipeline), strict=True):
            job.finish(result)
        for job in jobs:
            assert job.report is not None
            yield job.report


def extract_files(
    images: Sequence[Path], pipeline: Pipeline, folder: Path, *, masks: Mapping[Path, Path] | None = None
) -> Iterator[tuple[Path, Path, Features | InputError]]:
    """Features of image files, one by one: (image, file in `folder`, features, or why there are none).

    What is there already is read. Raises WriteError where nothing can be written.
    """
    cache = FeatureCache(pipeline, folder)
    for image in images:
        mask = None if masks is None else masks.get(image)
        path = folder
        try:
            path = cache.path(image, mask)
            yield image, path, cache.get(image, mask)[0]
        except (InputError, OSError) as error:
            if not _is_of_one_image(error):
                raise
            yield image, path, error if isinstance(error, InputError) else InputError(str(error))


def _matched(jobs: Sequence[_Job], pipeline: Pipeline) -> list[MatchResult | InputError]:
    """Match a batch; where that fails, each pair alone, so that one pair's fault is not another's."""
    pipeline.timings_ms.pop("match", None)
    if not jobs:
        return []
    candidates = [job.features for job in jobs]
    try:
        results = pipeline.match_features([first[0] for first, _ in candidates], [second for _, second in candidates])
    except InputError as error:
        return [error] if len(jobs) == 1 else [result for job in jobs for result in _matched([job], pipeline)]
    for job in jobs:
        job.timings_ms["match"] = pipeline.timings_ms["match"] / len(jobs)
    return list(results)


class _Run:
    """What the pairs of a run share."""

    def __init__(self, pipeline: Pipeline, outputs: Outputs, masks: Masks) -> None:
        self.pipeline, self.outputs, self.masks = pipeline, outputs, masks
        self.cache = FeatureCache(pipeline, outputs.folder / "features")
        self.key = repr((matching_key(pipeline), outputs.formats, outputs.picture, _versions()))
        self.reports = outputs.folder / "reports"
        self._reported = {folded(path.stem) for path in self.reports.glob("*.json")}
        files = outputs.folder.iterdir() if outputs.folder.is_dir() else ()
        self._present = {folded(path.stem) for path in files if path.suffix.lower() in _SUFFIXES}
        self._claimed: dict[str, Pair] = {}

    def masks_of(self, images: Pair) -> tuple[Path | None, Path | None]:
        """Return the masks of both images."""
        if isinstance(self.masks, tuple):
            return self.masks
        return self.masks.get(images[0]), self.masks.get(images[1])

    def name(self, images: Pair, key: str) -> str:
        """Return the name of a pair's results, which nothing of another pair has; see the module."""
        plain = pair_name(images[0].stem, images[1].stem)
        name = plain if self._is_free(plain, images, key) else distinguished(plain, "\n".join(_paths(images)))
        self._claimed[folded(name)] = images
        return name

    def report(self, name: str) -> dict[str, Any]:
        """Return what an earlier run reported under a name; nothing where there is no report, or a damaged one."""
        return read_if_whole(self.reports / f"{name}.json", read_signed_json) or {}

    def _is_free(self, name: str, images: Pair, key: str) -> bool:
        if folded(name) in self._claimed:
            return _paths(self._claimed[folded(name)]) == _paths(images)
        if folded(name) not in self._reported:
            return folded(name) not in self._present
        told = self.report(name)
        known = told.get("images") or [str(Path(told[view]).resolve()) for view in ("image0", "image1") if view in told]
        moved = told.get("key") == key and not any(is_file(Path(path)) for path in known)
        return not told or known == _paths(images) or moved


class _Job:
    """One pair on its way to a report."""

    def __init__(self, images: Pair, run: _Run) -> None:
        self.images, self.run, self.masks = images, run, run.masks_of(images)
        self.report: PairReport | None = None
        self.features: tuple[list[Features], list[Features]] = ([], [])
        self.timings_ms: dict[str, float] = {}
        self.key = self.name = ""

    def load(self) -> None:
        """Find an earlier report, or else the features of both images."""
        cache, pipeline = self.run.cache, self.run.pipeline
        try:
            keys = [cache.key(image, mask) for image, mask in zip(self.images, self.masks, strict=True)]
            self.key = _sha256(repr((keys, self.run.key)).encode())
            self.name = self.run.name(self.images, self.key)
            self.report = self._earlier()
            if self.report is None:
                before = dict(pipeline.timings_ms)
                self.features = (
                    cache.get(self.images[0], self.masks[0]),
                    cache.get(self.images[1], self.masks[1], pipeline.turns),
                )
                after = pipeline.timings_ms
                self.timings_ms = {k: after[k] - before.get(k, 0.0) for k in ("read", "extract") if k in after}
        except (InputError, OSError) as error:
            self._fail(error)

    def finish(self, result: MatchResult | InputError) -> None:
        """Verify, write, and report."""
        try:
            if isinstance(result, InputError):
                raise result
            self._write(result)
        except (InputError, OSError) as error:
            self._fail(error)

    def _write(self, result: MatchResult) -> None:
        run, pipeline = self.run, self.run.pipeline
        self._report({"key": None})  # a claim to the name; from here on no report describes the files that go
        with pipeline.timed("verify"):
            robust = geometry_if_installed(result)
        written = []
        with pipeline.timed("write"):
            for suffix in run.outputs.formats:
                written.append(run.outputs.folder / f"{self.name}.{suffix}")
                save_matches(written[-1], result.matches, result.features0, result.features1)
            if run.outputs.picture:
                path = run.outputs.folder / f"{self.name}.png"
                written.append(_draw(self.images, result, robust, pipeline, path))
        for stage in ("verify", "write"):
            self.timings_ms[stage] = pipeline.timings_ms.pop(stage)
        counts = [features.keypoints.shape[1] for features in (result.features0, result.features1)]
        stop = result.matches.stop_layer
        report = PairReport(
            **self._head(),
            num_keypoints0=counts[0],
            num_keypoints1=counts[1],
            num_matches=len(result.scores),
            num_inliers=None if robust is None else robust.num_inliers,
            model=None if robust is None or robust.model is None else robust.kind,
            stop_layer=None if stop is None else int(stop[0]),
            timings_ms={stage: round(ms, 1) for stage, ms in self.timings_ms.items()},
            outputs=[str(path) for path in written],
        )
        hashes = {path.name: _sha256(path.read_bytes()) for path in written}
        self._report({"key": self.key, "hashes": hashes, **asdict(report)})
        self.report = report

    def _report(self, told: dict[str, Any]) -> None:
        write_signed_json(self.run.reports / f"{self.name}.json", {"images": _paths(self.images), **told})

    def _fail(self, error: InputError | OSError) -> None:
        """Report the error, unless it is not of this pair: a full disk, a folder that cannot be written."""
        if not _is_of_one_image(error):
            raise error
        self.report = PairReport(**self._head(), error=str(error))

    def _head(self) -> dict[str, Any]:
        return {
            "image0": str(self.images[0]),
            "image1": str(self.images[1]),
            "extractor": self.run.pipeline.extractor.signature.extractor,
            "matcher": self.run.pipeline.matcher.name,
        }

    def _earlier(self) -> PairReport | None:
        """Return the report of an earlier run of the same key, if the files it describes are there, and no others."""
        told, folder = self.run.report(self.name), self.run.outputs.folder
        if told.pop("key", None) != self.key:
            return None
        try:
            hashes = told.pop("hashes")
            if not hashes or any(_sha256((folder / name).read_bytes()) != known for name, known in hashes.items()):
                return None
            images = told.pop("images")
            now = {**self._head(), "outputs": [str(folder / name) for name in hashes]}
            report = PairReport(**(told | now))
            if images != _paths(self.images):  # the photos have moved
                self._report({"key": self.key, "hashes": hashes, **asdict(report)})
            return replace(report, reused=True)
        except (OSError, KeyError, TypeError, AttributeError):
            return None


def _draw(images: Pair, result: MatchResult, robust: RobustResult | None, pipeline: Pipeline, path: Path) -> Path:
    """Draw the picture of a pair, both images as the extractor saw them."""
    from isinglass.viz import plot_pair, save_figure

    title = "  -  ".join(printable(image.name).replace("$", r"\$") for image in images)  # "$" begins a formula
    figure = plot_pair(
        as_seen(images[0], turns_of(result.features0)).image,
        as_seen(images[1], turns_of(result.features1)).image,
        result.features0.as_seen(),
        result.features1.as_seen(),
        result.matches,
        inliers=None if robust is None else np.asarray(robust.inliers),
        num_layers=pipeline.num_layers,
        title=title,
    )
    return save_figure(figure, path)


def _is_of_one_image(error: Exception) -> bool:
    """Return whether an error is of one image or name, and others can be done."""
    if isinstance(error, WriteError):
        cause = error.__cause__
        return isinstance(cause, OSError) and cause.errno in _OF_ONE_NAME
    return not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def _paths(images: Pair) -> list[str]:
    return [str(image.resolve()) for image in images]


def _versions() -> list[str]:
    """Versions of what results depend on beside the models."""
    found = []
    for package in ("isinglass", "poselib"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("none")
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
