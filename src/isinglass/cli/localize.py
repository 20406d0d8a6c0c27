"""`isinglass localize`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from isinglass.cli.checks import FOLDER, MAPS, OUTPUT_FILE, PHOTOS, PIPELINE, PRESENT, Command, Number
from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    complain,
    make_pipeline,
    options,
    pipeline_options,
    with_progress,
)
from isinglass.cli.maps import camera_numbers
from isinglass.cli.photos import FOLDER_OPTIONS, JSON_LINES_HELP, Photos
from isinglass.errors import InputError

if TYPE_CHECKING:
    from isinglass.sfm.localised import Localised


def _given(context: click.Context) -> dict[str, Any]:
    """Return the options of the pipeline that were given, beside which those of the map hold."""
    given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    return pipeline_options({name: context.params[name] for name in given if name in PIPELINE})


def _settings(context: click.Context) -> dict[str, Any]:
    """Return all options of the pipeline. Raises InputError where there is no map."""
    from isinglass.sfm.map_folder import find_map, options_of

    if context.params["photos"] is not None:
        return dict(context.params)
    return {**options_of(find_map(context.params["map_folder"]).root), **_given(context)}


def _check_localize(params: Mapping[str, Any]) -> None:
    """Raise InputError for a camera that cannot be, or a folder that is no model of COLMAP."""
    from isinglass.sfm.map_folder import is_model
    from isinglass.sfm.options import check_camera

    if (params["camera_model"] is None) != (params["camera_params"] is None):
        raise click.UsageError("Give --camera and --camera-params, or neither.")
    if params["camera_model"] is not None:
        check_camera(params["camera_model"], camera_numbers(params["camera_params"]))
    if params["photos"] is not None and not is_model(params["map_folder"]):
        raise InputError(
            f"{str(params['map_folder'])!r} holds no model of COLMAP; expected a folder with cameras, images and "
            "points3D, as .bin or .txt"
        )


@click.command(
    cls=Command,
    needs=MAPS | {"poselib": "maps"},
    pipeline=_settings,
    checks=[_check_localize],
    short_help="Find where photos were taken, in a map.",
)
@click.argument("map_folder", metavar="MAP", type=FOLDER)
@click.argument("queries", metavar="QUERY...", type=PRESENT, nargs=-1, required=True)
@click.option("--photos", type=PHOTOS, help="Folder of the photos that MAP was made of, where MAP is any COLMAP model.")
@click.option("-o", "--output", type=OUTPUT_FILE, help="File of the poses: .json, or text as hloc has it.")
@click.option(
    "--camera", "camera_model", metavar="MODEL", help="Camera model of all queries, by COLMAP's name, such as PINHOLE."
)
@click.option(
    "--camera-params",
    metavar="A,B,...",
    help="Intrinsics of all queries in COLMAP's order; (0, 0) is the top-left pixel's centre.",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Images of the map to match in the first round.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Covisible images of the map to match in the second round.",
)
@click.option(
    "--threshold-px",
    type=Number(0, min_open=True),
    help="Inlier threshold in px.  [default: 0.8 % of the long side]",
)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Queries to match at once.")
@click.option("--json", "as_json", is_flag=True, help=JSON_LINES_HELP.format("query"))
@options(*FOLDER_OPTIONS, *PIPELINE_OPTIONS, *MATCHER_OPTIONS)
@click.pass_context
def localize(
    context: click.Context,
    map_folder: Path,
    queries: tuple[Path, ...],
    photos: Path | None,
    output: Path | None,
    camera_model: str | None,
    camera_params: str | None,
    images: int,
    neighbours: int,
    threshold_px: float | None,
    batch: int,
    as_json: bool,
    **settings: Any,
) -> int:
    """Find where each QUERY (photos, or folders of them) was taken, in a MAP that `isinglass map` made.

    A query that is not found is reported with the reason, and has no pose. Options of features and matches that are
    not given are those that the map was made with.
    """
    from isinglass.sfm.localisation import LocaliseOptions, Map
    from isinglass.sfm.localised import write_results

    listed = Photos(settings)
    files = [path for query in queries for path in listed.of(query)]
    camera = None if camera_model is None else _Camera(camera_model, camera_params or "")
    if photos is None:
        mapped = Map.open(map_folder, **_given(context))
    else:
        mapped = Map.from_model(map_folder, photos, make_pipeline(settings))
    for name, problem in mapped.problems.items():
        click.echo(f"isinglass: {name} of the map is not used: {problem}", err=True)
    choices = LocaliseOptions(images=images, neighbours=neighbours, threshold_px=threshold_px, batch=batch)
    results = []
    found = mapped.localize_many(files, cameras=camera, options=choices)
    for result in with_progress(found, len(files), "localising"):
        results.append(result)
        click.echo(json.dumps(result.as_dict()) if as_json else _line(result))
    if as_json:
        listed.print_report()
    if output is not None:
        write_results(output, results)
        _say_changed_names(output, results)
    count = sum(result.success for result in results)
    click.echo(f"{count} of {len(results)} found{'' if output is None else f'; poses in {output}'}", err=True)
    used = all(result.readable for result in results) and not listed.problems
    return OK if count and used else SOME_FAILED


def _say_changed_names(output: Path, results: Sequence[Localised]) -> None:
    from isinglass.sfm.localised import column_of

    changed = [result.name for result in results if result.success and column_of(result.name) != result.name]
    if changed and output.suffix != ".json":
        complain(
            f"{len(changed)} names hold white space, at which readers of {output} split: it is written as %20 "
            f"({column_of(changed[0])}). Give --output a name that ends in .json to keep names as they are",
            OK,
        )


class _Camera:
    """The camera given for all queries, of the size of each."""

    def __init__(self, model: str, parameters: str) -> None:
        self.model, self.parameters = model, camera_numbers(parameters)

    def __call__(self, name: str) -> Any:
        from isinglass.errors import InputError
        from isinglass.images import read_header
        from isinglass.sfm.colmap import camera_of

        try:
            size = read_header(name).size
        except InputError:
            return None  # it is reported as what cannot be read
        return camera_of(self.model, size, self.parameters)


def _line(result: Localised) -> str:
    if result.centre is None or result.centre_std is None:
        return f"{result.name}: not found: {result.reason}"
    where = ", ".join(f"{value:.4g}" for value in result.centre)
    place = f"in {result.model} " if result.model else ""
    return (
        f"{result.name}: {place}at ({where}) +- {result.centre_std:.2g}, {result.num_inliers} of {result.num_matches} "
        f"matches agree, camera {result.camera_from}"
    )
