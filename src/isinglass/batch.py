"""Many pairs of image files: each image is extracted once, each pair matched once, each result written whole.

A folder of results has <name>.npz (or .h5, .json), the picture <name>.png, and two folders that let a killed run go on
where it was: features/ (one file an image) and reports/ (one file a pair, written last). A report counts only for the
same image contents and the same options.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.cache import FeatureCache, matching_key
from isinglass.errors import InputError, WriteError
from isinglass.files import save_matches, write_atomically
from isinglass.geometry.robust import RobustResult
from isinglass.images import IMAGE_SUFFIXES
from isinglass.pipeline import MatchResult, Pipeline, as_seen, turns_of, two_view
from isinglass.types import Features


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


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name. Raises InputError where there are none."""
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InputError(f"there is no image in {folder}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return images


def list_pairs(first: Path, second: Path | None = None) -> list[tuple[Path, Path]]:
    """Pairs of two files; of a file and all images of a folder; of all images of two folders, or within one."""
    for path in (first, second):
        if path is not None and not path.exists():
            raise InputError(f"there is no file or folder {str(path)!r}. Check the path")
    views0 = list_images(first) if first.is_dir() else [first]
    if second is None:
        if first.is_file():
            raise InputError(f"{str(first)!r} is one image; give a second one, or a folder")
        return [(views0[i], views0[j]) for i in range(len(views0)) for j in range(i + 1, len(views0))]
    views1 = list_images(second) if second.is_dir() else [second]
    return [(one0, one1) for one0 in views0 for one1 in views1]


def read_pairs(path: Path, root: Path | None = None) -> list[tuple[Path, Path]]:
    """Pairs from a text file: two names a line (further columns are ignored), relative to `root` or to the file."""
    root = root or path.parent
    pairs = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of pairs {str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        names = line.split()
        if not names or line.startswith("#"):
            continue
        if len(names) < 2:
            raise InputError(f"line {number} of {str(path)!r} is {line!r}; expected the names of two images")
        pairs.append((root / names[0], root / names[1]))
    return pairs


def match_files(
    pairs: Sequence[tuple[Path, Path]],
    pipeline: Pipeline,
    outputs: Outputs,
    *,
    masks: tuple[Path | None, Path | None] = (None, None),
    batch_size: int = 1,
) -> Iterator[PairReport]:
    """Match pairs of files and write the results; one report a pair, in order.

    What an earlier run with the same images and options finished is reported again, not computed again. A pair whose
    images cannot be read is reported with its error, and the run goes on.
    """
    cache = FeatureCache(pipeline, outputs.folder / "features")
    names = _names(pairs)
    for start in range(0, len(pairs), batch_size):
        jobs = [_Job(pairs[i], masks, names[i]) for i in range(start, min(start + batch_size, len(pairs)))]
        for job in jobs:
            job.load(cache, outputs)
        todo = [job for job in jobs if job.report is None]
        pipeline.timings_ms.pop("match", None)
        candidates = [job.features for job in todo]
        results = pipeline.match_features([c[0][0] for c in candidates], [c[1] for c in candidates]) if todo else []
        for job, result in zip(todo, results, strict=True):
            job.timings_ms["match"] = pipeline.timings_ms["match"] / len(todo)
            job.finish(result, pipeline, outputs)
        for job in jobs:
            assert job.report is not None
            yield job.report


def extract_files(images: Sequence[Path], pipeline: Pipeline, folder: Path) -> Iterator[tuple[Path, Path, Features]]:
    """Features of image files: (image, file in `folder`, features) one by one; what is there already is read."""
    cache = FeatureCache(pipeline, folder)
    for image in images:
        yield image, cache.path(image), cache.get(image)[0]


class _Job:
    """One pair on its way to a report."""

    def __init__(self, images: tuple[Path, Path], masks: tuple[Path | None, Path | None], name: str) -> None:
        self.images, self.masks, self.name = images, masks, name
        self.report: PairReport | None = None
        self.features: tuple[list[Features], list[Features]] = ([], [])
        self.timings_ms: dict[str, float] = {}
        self.key = ""

    def load(self, cache: FeatureCache, outputs: Outputs) -> None:
        """Find an earlier report, or else the features of both images."""
        pipeline = cache.pipeline
        try:
            keys = [cache.key(image, mask) for image, mask in zip(self.images, self.masks, strict=True)]
            self.key = _sha256(repr((keys, matching_key(pipeline), outputs.formats, outputs.picture)))
            self.report = self._earlier(outputs)
            if self.report is None:
                before = dict(pipeline.timings_ms)
                self.features = (
                    cache.get(self.images[0], self.masks[0]),
                    cache.get(self.images[1], self.masks[1], pipeline.turns),
                )
                after = pipeline.timings_ms
                self.timings_ms = {k: after[k] - before.get(k, 0.0) for k in ("read", "extract") if k in after}
        except WriteError:  # the folder's fault and not the pair's: no use to go on
            raise
        except (InputError, OSError) as error:
            self.report = PairReport(**self._head(pipeline), error=str(error))

    def finish(self, result: MatchResult, pipeline: Pipeline, outputs: Outputs) -> None:
        """Verify, write, and report."""
        with pipeline.timed("verify"):
            robust = two_view(result, pipeline.options)
        written = []
        with pipeline.timed("write"):
            for suffix in outputs.formats:
                path = outputs.folder / f"{self.name}.{suffix}"
                save_matches(path, result.matches, result.features0, result.features1)
                written.append(str(path))
            if outputs.picture:
                written.append(str(_draw(self.images, result, robust, pipeline, outputs.folder / f"{self.name}.png")))
        for stage in ("verify", "write"):
            self.timings_ms[stage] = pipeline.timings_ms.pop(stage)
        counts = [one.keypoints.shape[1] for one in (result.features0, result.features1)]
        stop = result.matches.stop_layer
        self.report = PairReport(
            **self._head(pipeline),
            num_keypoints0=counts[0],
            num_keypoints1=counts[1],
            num_matches=len(result.scores),
            num_inliers=None if robust is None else robust.num_inliers,
            model=None if robust is None or robust.model is None else robust.kind,
            stop_layer=None if stop is None else int(stop[0]),
            timings_ms={stage: round(ms, 1) for stage, ms in self.timings_ms.items()},
            outputs=written,
        )
        with write_atomically(self._report_path(outputs)) as temporary:
            temporary.write_text(json.dumps({"key": self.key, **asdict(self.report)}, indent=1))

    def _head(self, pipeline: Pipeline) -> dict[str, Any]:
        return {
            "image0": str(self.images[0]),
            "image1": str(self.images[1]),
            "extractor": pipeline.extractor.signature.extractor,
            "matcher": pipeline.matcher.name,
        }

    def _report_path(self, outputs: Outputs) -> Path:
        return outputs.folder / "reports" / f"{self.name}.json"

    def _earlier(self, outputs: Outputs) -> PairReport | None:
        """The report of an earlier run of the same pair and options, if all it wrote is still there."""
        try:
            earlier = json.loads(self._report_path(outputs).read_text())
            if earlier.pop("key") != self.key or not all(Path(path).is_file() for path in earlier["outputs"]):
                return None
            return PairReport(**(earlier | {"reused": True}))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _draw(
    images: tuple[Path, Path], result: MatchResult, robust: RobustResult | None, pipeline: Pipeline, path: Path
) -> Path:
    """The picture of a pair, both images as the extractor saw them."""
    from isinglass.viz import plot_pair, save_figure

    figure = plot_pair(
        as_seen(images[0], turns_of(result.features0)).image,
        as_seen(images[1], turns_of(result.features1)).image,
        result.features0.as_seen(),
        result.features1.as_seen(),
        result.matches,
        inliers=None if robust is None else np.asarray(robust.inliers),
        num_layers=pipeline.num_layers,
        title=f"{images[0].name}  -  {images[1].name}",
    )
    return save_figure(figure, path)


def _names(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """A file name for each pair: both stems, and a hash where two pairs would share them."""
    plain = [f"{image0.stem}-{image1.stem}" for image0, image1 in pairs]
    count = Counter(plain)
    hashes = [_sha256(f"{image0}\n{image1}")[:8] for image0, image1 in pairs]
    return [name if count[name] == 1 else f"{name}-{code}" for name, code in zip(plain, hashes, strict=True)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
