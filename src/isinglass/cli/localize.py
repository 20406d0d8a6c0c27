"""`isinglass localize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PATH,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    make_pipeline,
    options,
    pipeline_options,
    with_progress,
)

if TYPE_CHECKING:
    from isinglass.sfm.localised import Localised


@click.command(short_help="Find where photos were taken, in a map.")
@click.argument("map_folder", metavar="MAP", type=PATH)
@click.argument("queries", metavar="QUERY...", type=PATH, nargs=-1, required=True)
@click.option("--photos", type=PATH, help="MAP is any COLMAP model: the photos that it was made of.")
@click.option("-o", "--output", type=PATH, help="File for the poses: .json, or text as hloc has it.")
@click.option("--camera", "camera_model", metavar="MODEL", help="Of all queries, as COLMAP names it, such as PINHOLE.")
@click.option(
    "--camera-params", metavar="A,B,...", help="In COLMAP's order, the centre of the top-left pixel being 0,0."
)
@click.option("--images", type=click.IntRange(1), default=5, show_default=True, help="Of the map, matched first.")
@click.option(
    "--neighbours", type=click.IntRange(0), default=5, show_default=True, help="That see the same, matched then."
)
@click.option(
    "--threshold-px", type=click.FloatRange(0, min_open=True), help="Of inliers; 0.8 % of the long side if not given."
)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Queries matched at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a query on stdout.")
@options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
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
    if (camera_model is None) != (camera_params is None):
        raise click.UsageError("Give --camera and --camera-params, or neither.")
    from isinglass.sfm.localisation import LocaliseOptions, Map
    from isinglass.sfm.localised import write_results

    files = _files(queries)
    camera = None if camera_model is None else _Camera(camera_model, camera_params or "")
    if photos is None:
        given = [name for name in settings if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
        mapped = Map.open(map_folder, **pipeline_options({name: settings[name] for name in given}))
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
    if output is not None:
        write_results(output, results)
    count = sum(one.success for one in results)
    click.echo(f"{count} of {len(results)} found{'' if output is None else f'; poses in {output}'}", err=True)
    return OK if all(one.readable for one in results) else SOME_FAILED


class _Camera:
    """The camera given for all queries, of the size of each."""

    def __init__(self, model: str, parameters: str) -> None:
        try:
            self.model, self.parameters = model, [float(value) for value in parameters.split(",")]
        except ValueError as error:
            raise click.UsageError(f"--camera-params are {parameters!r}; expected numbers with commas") from error

    def __call__(self, name: str) -> Any:
        from PIL import Image

        from isinglass.sfm.colmap import camera_of

        try:
            with Image.open(name) as image:
                size = image.size
        except OSError:
            return None  # it is reported as what cannot be read
        return camera_of(self.model, size, self.parameters)


def _files(queries: tuple[Path, ...]) -> list[Path]:
    from isinglass.sfm.extraction import image_names

    return [file for one in queries for file in ([one / n for n in image_names(one)] if one.is_dir() else [one])]


def _line(result: Localised) -> str:
    if result.centre is None or result.centre_std is None:
        return f"{result.name}: not found: {result.reason}"
    where = ", ".join(f"{value:.4g}" for value in result.centre)
    return (
        f"{result.name}: at ({where}) +- {result.centre_std:.2g}, {result.num_inliers} of {result.num_matches} matches "
        f"agree, camera {result.camera_from}"
    )
