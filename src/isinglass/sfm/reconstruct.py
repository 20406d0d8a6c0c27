"""From verified matches in a COLMAP database to models: mapping, colours, and what came of it.

Whatever is left to chance has a fixed seed, so one database gives one result.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isinglass.errors import InputError, WriteError
from isinglass.files import PathLike
from isinglass.images import read_image
from isinglass.sfm.colmap import Project, pycolmap_module, quiet
from isinglass.sfm.progress import Tell
from isinglass.sfm.verification import SEED, of_size

Mapper = Literal["incremental", "global"]
MAPPERS = ("incremental", "global")
LEAST_SHARE = 0.5  # of a photo's matches with points that agree with its pose; COLMAP's is a quarter
LEAST_IMAGES = 3  # of a model, unless there are only two


def reconstruct(
    database: PathLike,
    photos: PathLike,
    folder: PathLike,
    *,
    mapper: Mapper = "incremental",
    refine: bool = True,
    threads: int | None = None,
    tell: Tell = lambda done, of: None,
) -> list[Path]:
    """Make models of the verified matches in a database: folders in `folder`, that of most images first; [] = none.

    Each has an image that no larger one has.

    The largest is `folder` itself, others are its "1", "2", ...; each has cameras.bin, images.bin and points3D.bin as
    COLMAP writes them. What was in `folder` is replaced, in one step. Keypoint i of an image in the features that the
    database was made of is point i of the image in the model.

    refine   intrinsics too
    threads  None = one a core; with 1 the same database gives the same bytes, else sums may be rounded differently
    tell     hears of images registered, of all there are; only of the incremental mapper

    Raises InputError where the database or a folder cannot be read, WriteError where the models cannot be written.
    """
    if mapper not in MAPPERS:
        raise InputError(f"the mapper is {mapper!r}; expected one of {', '.join(map(repr, MAPPERS))}")
    if not Path(photos).is_dir():
        raise InputError(f"there is no folder {str(photos)!r}; expected the one of the photos")
    folder = Path(folder)
    with Project(database, in_place=True) as project:
        of, verified, scale = len(project.names), any(project.inliers.values()), of_size(project)
    made = folder.with_name(f".{folder.name}.making")  # what a killed run left there goes
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        options = _options(mapper, refine, min(of, LEAST_IMAGES), threads)
        if mapper == "incremental":
            _be_strict(options.mapper, scale)
        models = _map(database, photos, made / "all", options, of, tell) if verified else []
        for model in models:
            _colour(model, Path(photos))
        _write(models, made / "model")
        _replace(folder, made / "model")
    except OSError as error:
        raise WriteError(f"the models cannot be written to {str(folder)!r} ({error}). Free space") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [folder, *(folder / str(i) for i in range(1, len(models)))][: len(models)]


def _map(database: PathLike, photos: PathLike, folder: Path, options: Any, of: int, tell: Tell) -> list[Any]:
    """The models, largest first."""
    colmap = pycolmap_module()
    folder.mkdir()
    registered = [0]

    def one_more() -> None:
        registered[0] = min(registered[0] + 1, of)
        tell(registered[0], of)

    with quiet():
        if isinstance(options, colmap.GlobalPipelineOptions):
            found = colmap.global_mapping(database, photos, folder, options)
        else:
            found = colmap.incremental_mapping(database, photos, folder, options, next_image_callback=one_more)
    kept, known = [], set()
    for model in sorted(found.values(), key=lambda one: (-one.num_reg_images(), -one.num_points3D())):
        images = {image.name for image in model.images.values() if image.has_pose}
        if images - known and len(images) >= options.min_model_size:  # COLMAP also gives parts of larger ones
            kept.append(model)
            known |= images
    return kept


def _options(mapper: Mapper, refine: bool, least: int, threads: int | None) -> Any:
    colmap = pycolmap_module()
    if mapper == "global":
        options = colmap.GlobalPipelineOptions()
        adjustment = options.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = refine
        options.mapper.global_positioning.use_gpu = adjustment.ceres.use_gpu = colmap.has_cuda
    else:
        options = colmap.IncrementalPipelineOptions()
        options.extract_colors = False  # COLMAP cannot read all formats
        options.ba_refine_focal_length = options.ba_refine_extra_params = refine
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = refine
    options.random_seed, options.min_model_size = SEED, least
    options.num_threads = -1 if threads is None else threads
    return options


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
        found = pycolmap_module().Reconstruction(place)
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
        registered=sorted(image.name for image in model.images.values() if image.has_pose),
    )


def read_model(folder: PathLike) -> Any:
    """The `pycolmap.Reconstruction` in a folder. Raises InputError where there is none, or it cannot be read."""
    try:
        with quiet():
            return pycolmap_module().Reconstruction(Path(folder))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise InputError(
            f"{str(folder)!r} cannot be read as a model of COLMAP ({error}); expected a folder with cameras, images "
            "and points3D, as .bin or .txt"
        ) from error
