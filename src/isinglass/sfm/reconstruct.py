"""From verified matches in a COLMAP database to models: mapping, colours, and what came of it.

Whatever is left to chance has a fixed seed, so one database gives one result.

Of COLMAP's two mappers the global one places all photos at once, some of them badly where little holds them; the
incremental one judges every photo, but leaves out those that it comes to too early. "hybrid" takes the global one's
photos but for those of few points, and lets the incremental one place these and what is left, and refine all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import InputError, WriteError
from isinglass.files import PathLike
from isinglass.files.colmap_model import read_colmap_model
from isinglass.images import read_image
from isinglass.sfm.colmap import Project, pycolmap_module, quiet
from isinglass.sfm.options import Mapper, check_mapper
from isinglass.sfm.progress import Tell
from isinglass.sfm.verification import SEED, of_size

LEAST_SHARE = 0.5  # of a photo's matches with points that agree with its pose; COLMAP's is a quarter
LEAST_IMAGES = 3  # of a model, unless there are only two
FEW_POINTS = 50  # a photo that sees fewer in a global model is placed anew by the hybrid mapper


def reconstruct(
    database: PathLike,
    photos: PathLike,
    folder: PathLike,
    *,
    mapper: Mapper = "hybrid",
    refine: bool = True,
    threads: int | None = None,
    adjust: Callable[[Sequence[Any]], None] = lambda models: None,
    tell: Tell = lambda done, of: None,
) -> list[Path]:
    """Make models of the verified matches in a database: folders in `folder`, that of most images first; [] = none.

    Each has an image that no larger one has.

    The largest is `folder` itself, others are its "1", "2", ...; each has cameras.bin, images.bin and points3D.bin as
    COLMAP writes them. What was in `folder` is replaced, in one step. Keypoint i of an image in the features that the
    database was made of is point i of the image in the model.

    refine   intrinsics too
    threads  None = one a core; with 1 the same database gives the same bytes, else sums may be rounded differently
    adjust   changes the models before they are written, such as their frame
    tell     hears of images registered, of all there are, where the incremental mapper places them

    Raises InputError where the database or a folder cannot be read, WriteError where the models cannot be written.
    """
    check_mapper(mapper)
    if not Path(photos).is_dir():
        raise InputError(f"there is no folder {str(photos)!r}; expected the one of the photos")
    folder = Path(folder)
    with Project(database, in_place=True) as project:
        names, verified, scale = project.names, any(project.inliers.values()), of_size(project)
    made = folder.with_name(f".{folder.name}.making")  # what a killed run left there goes
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        (made / "all").mkdir()
        settings = _Settings(refine, min(len(names), LEAST_IMAGES), threads, scale)
        run = _Run(Path(database), Path(photos), made / "all", settings, names, tell)
        models = (run.hybrid() if mapper == "hybrid" else run.alone(mapper)) if verified else []
        for model in models:
            _colour(model, Path(photos))
        adjust(models)
        _write(models, made / "model")
        _replace(folder, made / "model")
    except OSError as error:
        raise WriteError(f"the models cannot be written to {str(folder)!r} ({error}). Free space") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [folder, *(folder / str(i) for i in range(1, len(models)))][: len(models)]


@dataclass(frozen=True, slots=True)
class _Settings:
    """Of a reconstruction: refine intrinsics, least images of a model, threads, what limits in px are multiplied by."""

    refine: bool
    least: int
    threads: int | None
    scale: float

    def of_global(self) -> Any:
        colmap = pycolmap_module()
        options = colmap.GlobalPipelineOptions()
        adjustment = options.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = self.refine
        options.mapper.global_positioning.use_gpu = adjustment.ceres.use_gpu = colmap.has_cuda
        return self._common(options)

    def of_incremental(self) -> Any:
        options = pycolmap_module().IncrementalPipelineOptions()
        options.extract_colors = False  # COLMAP cannot read all formats
        options.ba_refine_focal_length = options.ba_refine_extra_params = self.refine
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = self.refine
        _be_strict(options.mapper, self.scale)
        return self._common(options)

    def _common(self, options: Any) -> Any:
        options.random_seed, options.min_model_size = SEED, self.least
        options.num_threads = -1 if self.threads is None else self.threads
        return options


@dataclass(frozen=True, slots=True)
class _Run:
    """COLMAP's mappers on one database; `folder` takes what they write on the way."""

    database: Path
    photos: Path
    folder: Path
    settings: _Settings
    names: Sequence[str]
    tell: Tell

    def alone(self, mapper: Mapper) -> list[Any]:
        """The models of one mapper, largest first."""
        return self._distinct(self._global() if mapper == "global" else self._incremental())

    def hybrid(self) -> list[Any]:
        """The models of the global mapper, refined and completed by the incremental one; of what is left, its own."""
        models = [better for one in self._distinct(self._global()) if (better := self._completed(one)) is not None]
        placed = {name for model in models for name in _placed(model)}
        rest = [name for name in self.names if name not in placed]
        if len(rest) >= self.settings.least:
            models += self._incremental(image_names=rest) if models else self._incremental()
        return self._distinct(models)

    def _completed(self, model: Any) -> Any | None:
        """None where too little is left of it."""
        for image in list(model.images.values()):
            if image.has_pose and image.num_points3D < FEW_POINTS:
                model.deregister_frame(image.frame_id)
        if model.num_reg_images() < self.settings.least:
            return None
        start = self.folder / "start"
        shutil.rmtree(start, ignore_errors=True)
        start.mkdir()
        model.write(start)
        self.tell(model.num_reg_images(), len(self.names))
        found = self._incremental(model.num_reg_images(), start, multiple_models=False)
        return max(found, key=lambda one: one.num_reg_images(), default=None)

    def _global(self) -> list[Any]:
        mapping = pycolmap_module().global_mapping
        with quiet():
            return list(mapping(self.database, self.photos, self.folder, self.settings.of_global()).values())

    def _incremental(self, registered: int = 0, start: Path | None = None, **changes: Any) -> list[Any]:
        """`start`: a folder with a model of so many registered photos, from which it goes on."""
        count, options = [registered], self.settings.of_incremental()
        for name, value in changes.items():
            setattr(options, name, value)

        def one_more() -> None:
            count[0] = min(count[0] + 1, len(self.names))
            self.tell(count[0], len(self.names))

        mapping, other = pycolmap_module().incremental_mapping, {} if start is None else {"input_path": start}
        with quiet():
            found = mapping(self.database, self.photos, self.folder, options, next_image_callback=one_more, **other)
        return list(found.values())

    def _distinct(self, models: Sequence[Any]) -> list[Any]:
        """Largest first, those that have an image that no larger one has: COLMAP also gives parts of larger ones."""
        kept, known = [], set()
        for model in sorted(models, key=lambda one: (-one.num_reg_images(), -one.num_points3D())):
            images = _placed(model)
            if images - known and len(images) >= self.settings.least:
                kept.append(model)
                known |= images
        return kept


def _placed(model: Any) -> set[str]:
    return {image.name for image in model.images.values() if image.has_pose}


def _be_strict(mapper: Any, scale: float) -> None:
    """Limits in px are for photos of this size, and a photo is not placed where most of its matches disagree."""
    mapper.filter_max_reproj_error *= scale
    mapper.abs_pose_max_error *= scale
    mapper.abs_pose_min_inlier_ratio = LEAST_SHARE


def _write(models: Sequence[Any], folder: Path) -> None:
    folder.mkdir()
    for i, model in enumerate(models):
        place = folder / str(i) if i else folder
        place.mkdir(exist_ok=True)
        model.write(place)
        if not _is_whole(place, model):
            raise OSError("what was written is not what is read back: the disk is full")


def _is_whole(place: Path, model: Any) -> bool:
    """COLMAP does not notice that a file has no room for all of it."""
    try:
        found = read_colmap_model(place)
    except Exception:  # whatever a file that ends too early leads to
        return False
    return _numbers(found) == _numbers(model)


def _numbers(model: Any) -> tuple[object, ...]:
    cameras = [(number, camera.params.tolist()) for number, camera in sorted(model.cameras.items())]
    observed = [(number, image.num_points2D(), image.num_points3D) for number, image in sorted(model.images.items())]
    tracks = sum(point.track.length() for point in model.points3D.values())
    error_px = round(float(model.compute_mean_reprojection_error()), 6)  # points are read in another order
    return cameras, observed, model.num_points3D(), tracks, error_px


def _replace(folder: Path, made: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = made.with_name("old")
    with suppress(FileNotFoundError):
        folder.replace(old)
    made.replace(folder)


def _colour(model: Any, photos: Path) -> None:
    """Give each point the mean colour of where it is seen, whatever format the photos are in."""
    sums: dict[int, np.ndarray] = {}
    for image in model.images.values():
        seen = [one for one in image.points2D if one.has_point3D()] if image.has_pose else []
        try:
            pixels = (255 * read_image(photos / image.name)).numpy() if seen else None
        except InputError:  # gone meanwhile
            pixels = None
        if pixels is None:
            continue
        height, width = pixels.shape[1:]
        for one in seen:
            x, y = (int(min(max(value, 0), size - 1)) for value, size in zip(one.xy, (width, height), strict=True))
            total = sums.setdefault(one.point3D_id, np.zeros(4))
            total += (*pixels[:, y, x], 1)
    for point_id, total in sums.items():
        model.points3D[point_id].color = np.round(total[:3] / total[3]).astype(np.uint8)


# ---- what came of it


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Of one model: its images, points, and means: images a point, reprojection error (px), observations an image."""

    images: int
    points: int
    track_length: float
    reprojection_error_px: float
    observations: float
    registered: list[str]


def report_of(folder: PathLike) -> ModelReport:
    """Of a folder that a model is in. Raises InputError where it cannot be read."""
    model = read_model(folder)
    return ModelReport(
        images=model.num_reg_images(),
        points=model.num_points3D(),
        track_length=float(model.compute_mean_track_length()),
        reprojection_error_px=float(model.compute_mean_reprojection_error()),
        observations=float(model.compute_mean_observations_per_reg_image()),
        registered=sorted(_placed(model)),
    )


def read_model(folder: PathLike) -> Any:
    """The `pycolmap.Reconstruction` in a folder. Raises InputError where there is none, or it cannot be read."""
    with quiet():
        return read_colmap_model(folder)
