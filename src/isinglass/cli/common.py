"""What the commands share: options, exit codes, progress, complaints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from isinglass.pipeline import Pipeline
    from isinglass.sfm.computing import Computing

OK, SOME_FAILED, WRONG_USAGE, NOT_AVAILABLE = 0, 1, 2, 3
PATH = click.Path(path_type=Path)

# options of isinglass.pipeline.Options, with its defaults (a test holds them equal)
PIPELINE_OPTIONS = (
    click.option("--extractor", default="aliked", show_default=True, help="Extractor, see `isinglass models`."),
    click.option("--max-keypoints", type=click.IntRange(0), default=2048, show_default=True, help="An image."),
    click.option("--all-keypoints", is_flag=True, help="No limit on the number of keypoints."),
    click.option("--resize", type=click.IntRange(1), default=1024, show_default=True, help="Px of the long side."),
    click.option("--resize-side", type=click.Choice(["long", "short"]), default="long", show_default=True),
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
        "--memory-mb", type=click.IntRange(1), help="What extraction and matching may take beyond models and images."
    ),
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
    click.option("--ratio", type=click.FloatRange(0, 1, min_open=True), help="Lowe's test, of the matcher nearest."),
    click.option(
        "--filter-threshold", type=click.FloatRange(0, 1), help="Least score; the matcher's own if not given."
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Of the matcher's layers; auto is bfloat16 on CPUs with matrix units for it.",
    ),
)


CLUSTER_OPTIONS = (
    click.option("--ray", "address", help='Compute on the Ray cluster at host:port; "local" = one of this machine.'),
    click.option("--ray-threads", type=click.IntRange(1), default=1, show_default=True, help="Cores of one task."),
    click.option("--ray-gpus", type=click.FloatRange(0), default=0, show_default=True, help="Share of one of a task."),
)


def options(*decorators: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Several click options as one decorator."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)

    return decorate


def make_pipeline(settings: dict[str, Any]) -> Pipeline:
    """The pipeline that the command's options describe."""
    from isinglass.pipeline import Pipeline

    return Pipeline(**pipeline_options(settings))


def pipeline_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Fields of isinglass.options.Options, of the command's options, or of some of these."""
    values = dict(settings)
    if values.pop("all_layers", False):
        values["adaptive"] = False
    if values.pop("all_keypoints", False):
        values["max_keypoints"] = None
    if values.pop("original_size", False):
        values["resize"] = None
    return values


def take_computing(settings: dict[str, Any], *, workers: int, memory_mb: int) -> Computing:
    """Who extracts and matches, by CLUSTER_OPTIONS, which are taken out of a command's."""
    address, threads, gpus = (settings.pop(name) for name in ("address", "ray_threads", "ray_gpus"))
    if address is None:
        from isinglass.sfm.computing import Here

        return Here(workers=workers, memory_mb=memory_mb)
    if workers > 1:
        raise click.UsageError("--workers are of this machine; a cluster has as many as fit. Leave one of both out.")
    from isinglass.distributed import Cluster

    return Cluster(address=address, threads=threads, gpus=gpus)


def with_progress(items: Iterable[Any], count: int, label: str) -> Iterator[Any]:
    """The items, with a bar and the time that is left on stderr where there are many and a person is looking."""
    if count < 2 or not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=count, label=label, show_pos=True, file=sys.stderr) as bar:
        yield from bar


def complain(problem: object, code: int) -> int:
    """One line on stderr; gives back the exit code."""
    click.echo(f"isinglass: {problem}", err=True)
    return code
