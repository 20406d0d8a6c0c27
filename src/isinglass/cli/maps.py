"""`isinglass map` and `export`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import (
    FOLDER,
    MAPS,
    OUTPUT_FILE,
    OUTPUT_FOLDER,
    PAIR_LIST,
    PHOTOS,
    PRESENT,
    Command,
    Number,
)
from isinglass.cli.common import (
    CLUSTER_OPTIONS,
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    WORKER_OPTIONS,
    check_cluster,
    complain,
    make_pipeline,
    options,
    take_computing,
)
from isinglass.cli.photos import FOLDER_OPTIONS, MASKS_HELP, Photos

if TYPE_CHECKING:
    from isinglass.sfm.exchange import Exchanged
    from isinglass.sfm.options import CameraOptions, MapOptions, PairOptions
    from isinglass.sfm.summary import MapSummary

_WAYS = ["auto", "exhaustive", "sequential", "spatial", "retrieval", "covisible", "file"]
_EVERY_S = 20.0  # a line where nobody is looking
# options of isinglass.sfm.cameras.CameraOptions and choice.PairOptions, with their defaults (a test holds them equal)
CAMERA_OPTIONS = (
    click.option(
        "--camera-model",
        default="SIMPLE_RADIAL",
        show_default=True,
        help="Camera model, by COLMAP's name, such as PINHOLE or OPENCV_FISHEYE.",
    ),
    click.option(
        "--camera",
        "share",
        type=click.Choice(["exif", "single", "folder", "image"]),
        default="exif",
        show_default=True,
        help="Photos that share a camera: those whose EXIF agrees, all, those of a folder, or none.",
    ),
    click.option(
        "--camera-params", help="Known intrinsics, such as fx,fy,cx,cy; (0, 0) is the top-left pixel's centre."
    ),
    click.option(
        "--camera-size",
        metavar="WxH",
        help="Size in px of the photos that --camera-params are for; they are scaled for others.  [default: by the "
        "principal point]",
    ),
    click.option(
        "--refine/--no-refine",
        default=None,
        help="Refine intrinsics as the map is made.  [default: unless --camera-params are given]",
    ),
)
PAIR_OPTIONS = (
    click.option(
        "--pairs", "how", type=click.Choice(_WAYS), default="auto", show_default=True, help="Method that chooses pairs."
    ),
    click.option(
        "--pairs-file", "file", type=PAIR_LIST, help="Text file with two names per line; implies --pairs file."
    ),
    click.option(
        "--pairs-model", "model", type=FOLDER, help="COLMAP model of these photos; implies --pairs covisible."
    ),
    click.option(
        "--neighbours", type=click.IntRange(1), default=20, show_default=True, help="Maximum partners per photo."
    ),
    click.option(
        "--overlap",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Next photos to pair each photo with, for --pairs sequential.",
    ),
    click.option(
        "--loops",
        type=click.IntRange(0),
        default=5,
        show_default=True,
        help="Loop-closure partners per photo, for --pairs sequential (0 = off).",
    ),
    click.option(
        "--max-distance-m",
        type=Number(0, min_open=True),
        default=100.0,
        show_default=True,
        help="Maximum GPS distance in m of a pair, for --pairs spatial.",
    ),
    click.option("--first-pass", is_flag=True, help="Match a few keypoints first, and drop pairs that look hopeless."),
)


def _check_map(params: Mapping[str, Any]) -> None:
    """Raise InputError for options of a map that make no sense, and cameras that do not fit the photos."""
    from isinglass.sfm.options import check_rotation

    check_rotation(params["rotation"])
    chosen = map_options(dict(params))
    cameras = chosen.cameras
    if cameras.params is not None or cameras.share in ("single", "folder"):
        from isinglass.images.folder import list_photos
        from isinglass.sfm.cameras import find_cameras

        find_cameras(params["photos"], list_photos(params["photos"], chosen.selection).names, cameras)


@click.command(
    "map",
    cls=Command,
    needs=lambda params: MAPS | ({} if params["address"] is None else {"ray": "ray"}),
    checks=[check_cluster, _check_map],
    short_help="Make a map of a folder of photos.",
)
@click.argument("photos", type=PHOTOS)
@click.option("-o", "--output", type=OUTPUT_FOLDER, default=Path("map"), show_default=True, help="Folder of the map.")
@click.option(
    "--mapper",
    type=click.Choice(["hybrid", "incremental", "global"]),
    default="hybrid",
    show_default=True,
    help="Mapper of COLMAP; hybrid refines and completes the global one's result by the incremental one.",
)
@click.option("--masks", type=PRESENT, help=MASKS_HELP)
@click.option(
    "--least-inliers",
    type=click.IntRange(8),
    default=40,
    show_default=True,
    help="Minimum inliers of a pair that overlaps.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@options(
    *WORKER_OPTIONS,
    *CLUSTER_OPTIONS,
    *PAIR_OPTIONS,
    *CAMERA_OPTIONS,
    *FOLDER_OPTIONS,
    *PIPELINE_OPTIONS,
    *MATCHER_OPTIONS,
)
def make(photos: Path, output: Path, as_json: bool, **settings: Any) -> int:
    """Make a map of all photos in and below PHOTOS: features, pairs, matches, a COLMAP model, and a page to look at.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from isinglass.sfm.mapping import make_map

    settings["photos"] = photos
    chosen = map_options(settings)
    del settings["photos"]
    computing = take_computing(settings, workers=chosen.workers, memory_mb=chosen.memory_mb)
    view = _View(chosen)
    summary = make_map(photos, output, make_pipeline(settings), chosen, computing=computing, tell=view.tell)
    view.end()
    click.echo(json.dumps(asdict(summary)) if as_json else _told(summary, output))
    for text in summary.colmap if summary.models else []:
        complain(f"COLMAP: {text}", OK)
    for name, why in summary.problems.items():
        complain(f"{name}: {why}", SOME_FAILED)
    if not summary.models:
        return complain(f"there is no model: {summary.reason}", SOME_FAILED)
    return SOME_FAILED if summary.problems else OK


_EXPORT = {"h5py": "maps", "pycolmap": "maps"}
_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")


@click.group(short_help="Write a map for other programs.")
def export() -> None:
    """Write a map, or a project of COLMAP, in the form of another program."""


@export.command("colmap", cls=Command, needs=_EXPORT, short_help="Write a COLMAP project.")
@click.argument("source", type=PRESENT)
@click.option("-o", "--output", type=OUTPUT_FOLDER, required=True, help="Folder of the project.")
@click.option("--photos", type=PHOTOS, help="Folder of the photos, where SOURCE is no map.")
@click.option("--descriptors", is_flag=True, help="Put SIFT descriptors into the database, too.")
@_JSON
@options(*CAMERA_OPTIONS)
def export_to_colmap(
    source: Path, output: Path, photos: Path | None, descriptors: bool, as_json: bool, **settings: Any
) -> int:
    """Write database.db, sparse/0, ... and image-list.txt of SOURCE: a map, or what `match-many` wrote."""
    from isinglass.sfm.exchange import export_colmap

    cameras = _camera_options(settings)
    done = export_colmap(source, output, photos=photos, cameras=cameras, descriptors=descriptors)
    return _show_exchanged(done, as_json)


@export.command("hloc", cls=Command, needs=_EXPORT, short_help="Write files of hloc.")
@click.argument("source", type=PRESENT)
@click.option("-o", "--output", type=OUTPUT_FOLDER, required=True, help="Folder of the files.")
@_JSON
def export_to_hloc(source: Path, output: Path, as_json: bool) -> int:
    """Write features.h5, matches.h5 and pairs.txt of SOURCE: a map, or a database of COLMAP."""
    from isinglass.sfm.exchange import export_hloc

    return _show_exchanged(export_hloc(source, output), as_json)


@export.command("pairs", cls=Command, needs=_EXPORT, short_help="Write the pairs of a COLMAP project.")
@click.argument("source", type=PRESENT)
@click.option("-o", "--output", type=OUTPUT_FILE, required=True, help="List to write.")
@click.option(
    "--verified/--matched",
    default=True,
    show_default=True,
    help="Pairs to write: those with a two-view geometry, or all with matches.",
)
def export_to_pairs(source: Path, output: Path, verified: bool) -> int:
    """Write the pairs of SOURCE, a database of COLMAP or a map, as a list for --pairs-file and `match-many`."""
    from isinglass.sfm.exchange import export_pairs

    click.echo(f"{export_pairs(source, output, verified=verified)} pairs in {output}", err=True)
    return OK


def _show_exchanged(done: Exchanged, as_json: bool) -> int:
    """Print what was written, and which files of an earlier export stay beside it; return the exit code."""
    click.echo(f"{done.images} images and {done.pairs} pairs in {done.folder}", err=True)
    if done.kept:
        complain(
            f"{', '.join(done.kept)} in {str(done.folder)!r}: of an earlier export, changed since, and therefore kept, "
            "but not of this project. Move it to another folder, or remove it",
            OK,
        )
    if as_json:
        click.echo(json.dumps({**asdict(done), "folder": str(done.folder)}))
    return OK


def map_options(settings: dict[str, Any]) -> MapOptions:
    """Return the options of a map, taken out of a command's."""
    from isinglass.sfm.options import MapOptions

    pairs = take_pair_options(settings)
    rest = {name: settings.pop(name) for name in ("mapper", "masks", "workers", "least_inliers")}
    memory_mb = settings.pop("cache_mb")
    selection = Photos(settings, rest["masks"]).selection(settings["photos"])
    cameras = _camera_options(settings)
    return MapOptions(pairs=pairs, cameras=cameras, memory_mb=memory_mb, selection=selection, **rest)


def take_pair_options(settings: dict[str, Any]) -> PairOptions:
    """How pairs are chosen, by PAIR_OPTIONS, which are taken out of a command's."""
    from isinglass.sfm.options import PairOptions

    if settings["file"] is not None:
        settings["how"] = "file"
    elif settings["model"] is not None:
        settings["how"] = "covisible"
    return PairOptions(**{one.name: settings.pop(one.name) for one in fields(PairOptions) if one.name in settings})


def _camera_options(settings: dict[str, Any]) -> CameraOptions:
    from isinglass.sfm.options import CameraOptions

    params, size = settings.pop("camera_params"), settings.pop("camera_size")
    return CameraOptions(
        model=settings.pop("camera_model"),
        share=settings.pop("share"),
        params=None if params is None else camera_numbers(params),
        size=None if size is None else _size(size),
        refine=settings.pop("refine"),
    )


def camera_numbers(params: str) -> tuple[float, ...]:
    """Return the numbers of --camera-params. Raises UsageError where they are none."""
    try:
        return tuple(map(float, params.split(",")))
    except ValueError:
        raise click.UsageError(f"--camera-params is {params!r}; expected numbers with commas between them") from None


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.UsageError(f"--camera-size is {text!r}; expected width and height in px, such as 640x480")
    return int(width), int(height)


def _told(summary: MapSummary, output: Path) -> str:
    """For a person."""
    lines = [
        f"{summary.pairs} pairs, {summary.matched} with matches, {summary.verified} with a two-view geometry "
        f"({summary.inliers} matches)",
        *summary.notes,
        *filter(None, (summary.frame, summary.turned)),
    ]
    for i, one in enumerate(summary.models):
        lines.append(
            f"model{f'/{i}' if i else ''}: {one.images} of {summary.photos} photos, {one.points} points, each in "
            f"{one.track_length:.1f} photos, reprojection error {one.reprojection_error_px:.2f} px"
        )
    if len(summary.models) > 1:
        lines.append(f"{len(summary.models)} models: these photos do not hang together, or show more than one scene")
    if summary.models and summary.unregistered:
        lines.append(f"in no model: {', '.join(summary.unregistered)}")
    times = (f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items())
    return "\n".join([*lines, ", ".join(times), f"see {output / 'index.html'}"])


class _View:
    """One line on stderr for all stages; where a person is looking it changes in place."""

    def __init__(self, chosen: MapOptions) -> None:
        self.chosen, self.progress = chosen, None
        self.told_s, self.width, self.is_live = 0.0, 0, sys.stderr.isatty()

    def tell(self, stage: str, done: int, of: int) -> None:
        """A stage has done so many of its units."""
        from isinglass.sfm.choice import expected_pairs
        from isinglass.sfm.mapping import STAGES
        from isinglass.sfm.progress import Progress

        if self.progress is None:  # the first stage that tells anything is of photos, or knows better itself
            pairs = expected_pairs(of, self.chosen.pairs)
            by_photo = ("extract", "retrieval", "reconstruct")
            first_pass = self.chosen.pairs.first_pass
            units = {name: of if name in by_photo else pairs for name in STAGES}
            self.progress = Progress(units | {"pairs": pairs if first_pass else 0})
        self.progress.update(stage, done, of)
        now = time.monotonic()
        if now - self.told_s < (0.2 if self.is_live else _EVERY_S) and done < of:
            return
        self.told_s = now
        place = STAGES.index(stage) + 1
        self._show(f"{stage} {done} of {of} (stage {place} of {len(STAGES)}), about {_time(self.progress.left_s)} left")

    def end(self) -> None:
        """Leave the line."""
        if self.is_live and self.width:
            click.echo(err=True)

    def _show(self, line: str) -> None:
        if self.is_live:
            click.echo(f"\r{line.ljust(self.width)}", nl=False, err=True)
            self.width = len(line)
        else:
            click.echo(line, err=True)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
