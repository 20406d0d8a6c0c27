"""`isinglass match`, `extract`, `models` and `doctor`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import FOLDER, IMAGE, OUTPUT_FOLDER, PAIR_LIST, PRESENT, Command
from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    complain,
    make_pipeline,
    options,
    with_progress,
)
from isinglass.cli.photos import FOLDER_OPTIONS, JSON_LINES_HELP, MASKS_HELP, Photos
from isinglass.errors import InputError

if TYPE_CHECKING:
    from isinglass.batch import PairReport
    from isinglass.pipeline import Pipeline


def _match_needs(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the packages that the files to write need."""
    formats = {"h5py": "hdf5"} if "h5" in params["formats"] else {}
    return formats | ({"matplotlib": "viz"} if params["picture"] else {})


def _check_match(params: Mapping[str, Any]) -> None:
    """Raise UsageError where it is not clear what to match."""
    if (params["first"] is None) == (params["pairs"] is None):
        raise click.UsageError("Give two images or folders, or --pairs FILE.")
    if params["first"] is not None and params["second"] is None and params["first"].is_file():
        raise click.UsageError(f"{str(params['first'])!r} is one image; give a second one, or a folder.")
    if params["masks"] is not None and (params["mask0"] is not None or params["mask1"] is not None):
        raise click.UsageError("Give --masks, or --mask0 and --mask1.")


@click.command(cls=Command, needs=_match_needs, checks=[_check_match], short_help="Match two images, or many.")
@click.argument("first", type=PRESENT, required=False)
@click.argument("second", type=PRESENT, required=False)
@click.option("--pairs", type=PAIR_LIST, help="Text file with two image names per line.")
@click.option("--root", type=FOLDER, help="Folder that the names in --pairs are relative to.  [default: the file's]")
@click.option(
    "-o", "--output", type=OUTPUT_FOLDER, default=Path("matches"), show_default=True, help="Folder of the results."
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["npz", "h5", "json"]),
    multiple=True,
    default=("npz",),
    show_default=True,
    help="Format of the matches; repeatable.",
)
@click.option("--picture/--no-picture", default=True, show_default=True, help="Draw a picture of every pair.")
@click.option("--mask0", type=IMAGE, help="Mask of the first image, of its size; keypoints only where it is not black.")
@click.option("--mask1", type=IMAGE, help="Mask of the second image.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pairs to match at once.")
@click.option("--json", "as_json", is_flag=True, help=JSON_LINES_HELP.format("pair"))
@click.option("--masks", type=PRESENT, help=MASKS_HELP)
@options(*FOLDER_OPTIONS, *PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def match(
    first: Path | None,
    second: Path | None,
    pairs: Path | None,
    root: Path | None,
    output: Path,
    formats: tuple[str, ...],
    picture: bool,
    mask0: Path | None,
    mask1: Path | None,
    masks: Path | None,
    batch: int,
    as_json: bool,
    **settings: Any,
) -> int:
    """Match FIRST and SECOND: two images, an image and a folder, two folders; or all pairs within one folder.

    Folders are searched with all folders in them. Results are named <FIRST>-<SECOND>, with a hash added where another
    pair has that name in the output.

    A run that was stopped goes on where it was when the same command is given again.
    """
    photos = Photos(settings, masks)
    from isinglass.batch import Outputs, list_pairs, match_files, read_pairs

    if pairs is not None:
        jobs = photos.of_pairs(read_pairs(pairs, root, photos.fail), root or pairs.parent)
    else:
        jobs = list_pairs(_given(first), second, photos.of)
    mask_of = (mask0, mask1) if masks is None else photos.found_masks()
    outputs = Outputs(folder=output, formats=formats, picture=picture)
    pipeline = make_pipeline(settings)
    reports = match_files(jobs, pipeline, outputs, masks=mask_of, batch_size=batch)
    failed = 0
    for report in with_progress(reports, len(jobs), "matching"):
        failed += report.error is not None
        if as_json:
            click.echo(json.dumps(asdict(report)))
        elif len(jobs) == 1 or report.error is not None:
            _show(report, pipeline)
    if as_json:
        photos.print_report()
    if len(jobs) > 1:
        click.echo(f"{len(jobs) - failed} of {len(jobs)} pairs matched; results in {output}", err=True)
    return SOME_FAILED if failed or photos.problems else OK


@click.command(cls=Command, short_help="Extract features of images into files.")
@click.argument("images", type=PRESENT, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=OUTPUT_FOLDER, default=Path("features"), show_default=True, help="Folder of the results."
)
@click.option("--json", "as_json", is_flag=True, help=JSON_LINES_HELP.format("image"))
@click.option("--masks", type=PRESENT, help=MASKS_HELP)
@options(*FOLDER_OPTIONS, *PIPELINE_OPTIONS)
def extract(images: tuple[Path, ...], output: Path, as_json: bool, masks: Path | None, **settings: Any) -> int:
    """Extract features of IMAGES (files, or folders with all folders in them) into one npz file each."""
    photos = Photos(settings, masks)
    files = list(dict.fromkeys(path for image in images for path in photos.of(image)))
    mask_of = photos.found_masks()
    from isinglass.batch import extract_files

    pipeline = make_pipeline({**settings, "matcher": "nearest"})
    extracted = extract_files(files, pipeline, output, masks=mask_of)
    for image, path, features in with_progress(extracted, len(files), "extracting"):
        if isinstance(features, InputError):
            photos.problems[str(image)] = str(features)
            complain(features, SOME_FAILED)
            continue
        count = features.keypoints.shape[1]
        if as_json:
            found = {"image": str(image), "output": str(path), "num_keypoints": count}
            click.echo(json.dumps({**found, "extractor": features.signature.extractor}))
        else:
            click.echo(f"{image}: {count} keypoints of {features.signature.extractor} in {path}")
    if as_json:
        photos.print_report()
    return SOME_FAILED if photos.problems else OK


@click.command(cls=Command, short_help="List or fetch weights, with their licences.")
@click.option("--fetch", "to_fetch", multiple=True, metavar="NAME", help="Fetch and verify these weights now.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence of the weights to fetch, once and for all.")
@click.option("--commercial", is_flag=True, help="List only what may be used commercially.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array on stdout.")
def models(to_fetch: tuple[str, ...], accept_licence: bool, commercial: bool, as_json: bool) -> int:
    """List the weights: name, licence, commercial use, size, and whether they are present."""
    from isinglass.weights.fetch import accept_licence as accept
    from isinglass.weights.fetch import fetch, is_present
    from isinglass.weights.names import names_to_fetch
    from isinglass.weights.records import records

    for name in [full for short in to_fetch for full in names_to_fetch(short)]:
        if accept_licence:
            accept(name)
        click.echo(f"{name}: {fetch(name)}", err=as_json)
    if to_fetch and not as_json:
        return OK
    listed = [one for one in records() if one.commercial_use or not commercial]
    rows = [
        {
            "name": one.name,
            "model": one.model,
            "licence": one.licence,
            "commercial_use": one.commercial_use,
            "size_bytes": one.size_bytes,
            "present": is_present(one.name),
            "accepts": one.accepts,
            "trained_on": one.trained_on,
        }
        for one in listed
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return OK
    heads = ("name", "model", "takes features of", "licence", "commercial", "size", "present")
    yes_no = ("no", "yes")
    lines = [
        (
            row["name"],
            row["model"],
            ", ".join(row["accepts"] or ()) or "-",
            row["licence"],
            yes_no[row["commercial_use"]],
            "?" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f} MB",
            yes_no[row["present"]],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    click.echo("sift and rootsift (OpenCV) and the matcher nearest need no weights.")
    return OK


@click.command(cls=Command, short_help="Say why two images have few matches.")
@click.argument("first", type=IMAGE)
@click.argument("second", type=IMAGE)
@click.option("--thorough", is_flag=True, help="Try rotations and scales even where the pair matches well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def doctor(first: Path, second: Path, thorough: bool, as_json: bool, **settings: Any) -> int:
    """Say why FIRST and SECOND have few matches, and what to do about it."""
    from isinglass.doctor import diagnose

    diagnosis = diagnose(first, second, pipeline=make_pipeline(settings), thorough=thorough)
    click.echo(json.dumps(diagnosis.as_dict()) if as_json else str(diagnosis))
    return OK


def _show(report: PairReport, pipeline: Pipeline) -> None:
    """The summary for a person."""
    click.echo(f"{report.image0}  -  {report.image1}")
    if report.error is not None:
        complain(report.error, SOME_FAILED)
        return
    stop = "" if report.stop_layer is None else f", exit after layer {report.stop_layer} of {pipeline.num_layers}"
    inliers = (
        "not verified: pip install 'isinglass[geometry]'"
        if report.num_inliers is None
        else f"{report.num_inliers} of a {report.model} matrix"
        if report.model
        else "none: no geometry fits these matches"
    )
    rows: Sequence[tuple[str, str]] = (
        ("keypoints", f"{report.num_keypoints0} and {report.num_keypoints1} ({report.extractor})"),
        ("matches", f"{report.num_matches} ({report.matcher}{stop})"),
        ("inliers", inliers),
        ("time", ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in report.timings_ms.items())),
        ("written", ", ".join(report.outputs) + (" (by an earlier run)" if report.reused else "")),
    )
    for name, text in rows:
        click.echo(f"  {name:<10}{text}")
    if report.num_inliers is not None and report.num_inliers < 30:
        click.echo(f"  few matches? isinglass doctor {report.image0} {report.image1}")


def _given(path: Path | None) -> Path:
    assert path is not None
    return path
