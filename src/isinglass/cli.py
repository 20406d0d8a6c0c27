"""The command line: one function a command. `--help` answers without importing torch; work is imported when it starts.

What machines read goes to stdout with --json, one object a pair; what people read goes to stderr then. Exit codes:
0 = all done (no match is a result too), 1 = some image or pair could not be processed, 2 = wrong usage,
3 = weights or an extra are missing, or a licence has not been accepted, 130 = interrupted.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.errors import InputError, IsinglassError, MissingExtra, WeightsError

if TYPE_CHECKING:
    from isinglass.batch import PairReport
    from isinglass.pipeline import Pipeline

OK, SOME_FAILED, WRONG_USAGE, NOT_AVAILABLE = 0, 1, 2, 3
PATH = click.Path(path_type=Path)

# options of isinglass.pipeline.Options, with its defaults (a test holds them equal)
PIPELINE_OPTIONS = (
    click.option("--extractor", default="aliked", show_default=True, help="Extractor, see `isinglass models`."),
    click.option("--max-keypoints", type=click.IntRange(0), default=2048, show_default=True, help="An image."),
    click.option("--all-keypoints", is_flag=True, help="No limit on the number of keypoints."),
    click.option("--resize", type=click.IntRange(1), default=1024, show_default=True, help="Long side in px."),
    click.option("--original-size", is_flag=True, help="Do not resize."),
    click.option(
        "--rotation",
        type=click.Choice(["none", "exif", "auto"]),
        default="exif",
        show_default=True,
        help="Turn images as stored, as EXIF says, or try four quarter turns of the second one.",
    ),
    click.option("--tile", type=click.IntRange(64), help="Cut larger images into squares of this many px."),
    click.option("--tile-overlap", type=click.IntRange(0), default=64, show_default=True, help="In px."),
    click.option(
        "--min-distance",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        help="Of keypoints, in px of the resized image.",
    ),
    click.option("--device", help="cpu, cuda or mps; the best there is if not given."),
    click.option("--accept-licence", is_flag=True, help="Accept the non-commercial licence of the weights chosen."),
)
MATCHER_OPTIONS = (
    click.option("--matcher", default="lightglue", show_default=True, help="Matcher, see `isinglass models`."),
    click.option("--all-layers", is_flag=True, help="No early exit and no pruning."),
    click.option(
        "--filter-threshold", type=click.FloatRange(0, 1), help="Least score; the matcher's own if not given."
    ),
)


def main() -> None:
    """The entry point: errors of ours become one line on stderr and an exit code."""
    _show_log()
    try:
        code = cli.main(standalone_mode=False)
    except (WeightsError, MissingExtra) as error:
        code = _complain(error, NOT_AVAILABLE)
    except IsinglassError as error:
        code = _complain(error, SOME_FAILED)
    except click.exceptions.Abort:
        code = _complain("interrupted; what was finished is kept, and the same command goes on from there", 130)
    except click.ClickException as error:
        error.show()
        code = WRONG_USAGE
    except OSError as error:
        code = _complain(error, SOME_FAILED)
    sys.exit(code or OK)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="isinglass")
def cli() -> None:
    """Match sparse local features between images: LightGlue and SuperGlue."""


def _options(*decorators: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)

    return decorate


@cli.command(short_help="Match two images, or many.")
@click.argument("first", type=PATH, required=False)
@click.argument("second", type=PATH, required=False)
@click.option("--pairs", type=PATH, help="Text file with two image names a line.")
@click.option("--root", type=PATH, help="Folder that the names in --pairs are relative to; that of the file.")
@click.option("-o", "--output", type=PATH, default=Path("matches"), show_default=True, help="Folder for results.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["npz", "h5", "json"]),
    multiple=True,
    default=("npz",),
    show_default=True,
    help="Of the matches; may be given several times.",
)
@click.option("--picture/--no-picture", default=True, show_default=True, help="Draw every pair.")
@click.option("--mask0", type=PATH, help="Image of the first view's size: keypoints only where it is not black.")
@click.option("--mask1", type=PATH, help="Likewise for the second view.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pairs matched at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a pair on stdout.")
@_options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
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
    batch: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Match FIRST and SECOND: two images, an image and a folder, two folders; or all pairs within one folder.

    A run that was stopped goes on where it was when the same command is given again.
    """
    if (first is None) == (pairs is None):
        raise click.UsageError("Give two images or folders, or --pairs FILE.")
    from isinglass.batch import Outputs, list_pairs, match_files, read_pairs

    jobs = read_pairs(pairs, root) if pairs is not None else list_pairs(_given(first), second)
    outputs = Outputs(folder=output, formats=formats, picture=picture)
    pipeline = _pipeline(options)
    reports = match_files(jobs, pipeline, outputs, masks=(mask0, mask1), batch_size=batch)
    failed = 0
    for report in _progress(reports, len(jobs), "matching"):
        failed += report.error is not None
        if as_json:
            click.echo(json.dumps(asdict(report)))
        elif len(jobs) == 1 or report.error is not None:
            _show(report, pipeline)
    if len(jobs) > 1:
        click.echo(f"{len(jobs) - failed} of {len(jobs)} pairs matched; results in {output}", err=True)
    return SOME_FAILED if failed else OK


@cli.command(short_help="Extract features of images into files.")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, default=Path("features"), show_default=True, help="Folder for results.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image on stdout.")
@_options(*PIPELINE_OPTIONS)
def extract(images: tuple[Path, ...], output: Path, as_json: bool, **options: Any) -> int:
    """Extract features of IMAGES (files or folders) into one npz file each."""
    from isinglass.batch import extract_files, list_images

    files = [file for image in images for file in (list_images(image) if image.is_dir() else [image])]
    pipeline = _pipeline({**options, "matcher": "nearest", "all_layers": False, "filter_threshold": None})
    failed = 0
    for image in _progress(files, len(files), "extracting"):
        try:
            ((_, path, features),) = extract_files([image], pipeline, output)
        except InputError as error:
            failed += 1
            _complain(error, SOME_FAILED)
            continue
        count = features.keypoints.shape[1]
        if as_json:
            found = {"image": str(image), "output": str(path), "num_keypoints": count}
            click.echo(json.dumps({**found, "extractor": features.signature.extractor}))
        else:
            click.echo(f"{image}: {count} keypoints of {features.signature.extractor} in {path}")
    return SOME_FAILED if failed else OK


@cli.command(short_help="List or fetch weights, with their licences.")
@click.option("--fetch", "to_fetch", multiple=True, metavar="NAME", help="Fetch and verify these weights now.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence of the weights to fetch, once and for all.")
@click.option("--commercial", is_flag=True, help="List only what may be used commercially.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array on stdout.")
def models(to_fetch: tuple[str, ...], accept_licence: bool, commercial: bool, as_json: bool) -> int:
    """List the weights: name, licence, commercial use, size, and whether they are present."""
    from isinglass.weights.fetch import accept_licence as accept
    from isinglass.weights.fetch import fetch, is_present
    from isinglass.weights.records import records

    for name in to_fetch:
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
    click.echo(f"{'name':<22}{'model':<12}{'licence':<28}{'commercial':<12}{'size':>8}  present")
    for row in rows:
        size = "?" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f} MB"
        yes_no = ["no", "yes"]
        click.echo(
            f"{row['name']:<22}{row['model']:<12}{row['licence']:<28}{yes_no[row['commercial_use']]:<12}{size:>8}  "
            f"{yes_no[row['present']]}"
        )
    click.echo("sift and rootsift (OpenCV) and the matcher nearest need no weights.")
    return OK


@cli.command(short_help="Say why two images have few matches.")
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--thorough", is_flag=True, help="Try turns and scales even where the pair matches well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@_options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def doctor(first: Path, second: Path, thorough: bool, as_json: bool, **options: Any) -> int:
    """Say why FIRST and SECOND have few matches, and what to do about it."""
    from isinglass.doctor import diagnose

    diagnosis = diagnose(first, second, pipeline=_pipeline(options), thorough=thorough)
    click.echo(json.dumps(diagnosis.as_dict()) if as_json else str(diagnosis))
    return OK


# --- helpers


def _pipeline(options: dict[str, Any]) -> Pipeline:
    """The pipeline that the command's options describe."""
    from isinglass.pipeline import Pipeline

    values = dict(options)
    values["adaptive"] = not values.pop("all_layers")
    if values.pop("all_keypoints"):
        values["max_keypoints"] = None
    if values.pop("original_size"):
        values["resize"] = None
    return Pipeline(**values)


def _progress(items: Iterable[Any], count: int, label: str) -> Iterator[Any]:
    """The items, with a bar and the time that is left on stderr where there are many and a person is looking."""
    if count < 2 or not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=count, label=label, show_pos=True, file=sys.stderr) as bar:
        yield from bar


def _show(report: PairReport, pipeline: Pipeline) -> None:
    """The summary for a person."""
    click.echo(f"{report.image0}  -  {report.image1}")
    if report.error is not None:
        _complain(report.error, SOME_FAILED)
        return
    layers = getattr(getattr(pipeline.matcher, "config", None), "layers", None)
    stop = "" if report.stop_layer is None else f", stopped after layer {report.stop_layer} of {layers}"
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


def _show_log() -> None:
    """What the library logs (weights being fetched) goes to stderr."""
    logger = logging.getLogger("isinglass")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("isinglass: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _complain(problem: object, code: int) -> int:
    click.echo(f"isinglass: {problem}", err=True)
    return code


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


if __name__ == "__main__":
    main()
