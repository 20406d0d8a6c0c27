"""What the commands share: options of pipelines and clusters, and progress."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import DEVICE, Number
from isinglass.cli.exits import (  # noqa: F401  from here the commands have them
    NOT_AVAILABLE,
    OK,
    SOME_FAILED,
    WRONG_USAGE,
    complain,
)

if TYPE_CHECKING:
    from isinglass.pipeline import Pipeline
    from isinglass.sfm.computing import Computing

PATH = click.Path(path_type=Path)

# options of isinglass.pipeline.Options, with its defaults (a test holds them equal)
PIPELINE_OPTIONS = (
    click.option("--extractor", default="aliked", show_default=True, help="Extractor, see `isinglass models`."),
    click.option(
        "--max-keypoints",
        type=click.IntRange(0),
        default=2048,
        show_default=True,
        help="Maximum keypoints per image.",
    ),
    click.option("--all-keypoints", is_flag=True, help="Keep all keypoints, without a limit."),
    click.option(
        "--resize",
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        help="Size in px that the side of --resize-side is resized to before extraction.",
    ),
    click.option(
        "--resize-side",
        type=click.Choice(["long", "short"]),
        default="long",
        show_default=True,
        help="Side of the image that --resize is the size of.",
    ),
    click.option("--original-size", is_flag=True, help="Do not resize images."),
    click.option(
        "--rotation",
        type=click.Choice(["none", "exif", "auto"]),
        default="exif",
        show_default=True,
        help="Turn images as stored, as EXIF says, or try four turns by 90 degrees of the second image.",
    ),
    click.option("--tile", type=click.IntRange(64), help="Side in px of the tiles that larger images are cut into."),
    click.option(
        "--tile-overlap",
        type=click.IntRange(0),
        default=64,
        show_default=True,
        help="Overlap of neighbouring tiles in px.",
    ),
    click.option(
        "--memory-mb",
        type=click.IntRange(1),
        help="Memory in MB that extraction and matching may take beyond models and images.",
    ),
    click.option(
        "--min-distance",
        type=Number(0),
        default=1.0,
        show_default=True,
        help="Minimum distance between keypoints, in px of the resized image; the weaker one is dropped.",
    ),
    click.option(
        "--stretch",
        type=click.Choice(["auto", "none", "percentile"]),
        default="auto",
        show_default=True,
        help="Stretch values to the whole range: auto does so for 16-bit images that use under a tenth of theirs.",
    ),
    click.option("--device", type=DEVICE, help="Device: cpu, cuda, cuda:N or mps.  [default: the fastest]"),
    click.option("--accept-licence", is_flag=True, help="Accept the non-commercial licence of the weights chosen."),
)
MATCHER_OPTIONS = (
    click.option("--matcher", default="lightglue", show_default=True, help="Matcher, see `isinglass models`."),
    click.option("--all-layers", is_flag=True, help="Run all layers on all keypoints: no early exit, no pruning."),
    click.option(
        "--ratio", type=Number(0, 1, min_open=True), help="Threshold of Lowe's ratio test, for the matcher nearest."
    ),
    click.option("--filter-threshold", type=Number(0, 1), help="Minimum match score.  [default: the matcher's]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Precision of the matcher's layers; auto chooses by the device.",
    ),
    click.option(
        "--execution",
        type=click.Choice(["auto", "plain", "fused", "cuda_graph"]),
        default="auto",
        show_default=True,
        help="How the matcher's layers run; auto is fused on CPUs and plain on GPUs, cuda_graph needs CUDA in halves.",
    ),
)


WORKER_OPTIONS = (
    click.option(
        "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of processes that match."
    ),
    click.option(
        "--cache-mb",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="Memory in MB for features while matching.",
    ),
)
CLUSTER_OPTIONS = (
    click.option("--ray", "address", help='Ray cluster to compute on, as host:port; "local" starts one here.'),
    click.option("--ray-threads", type=click.IntRange(1), default=1, show_default=True, help="CPU cores per task."),
    click.option("--ray-gpus", type=Number(0), default=0, show_default=True, help="GPUs per task (fractions allowed)."),
)


def options(*decorators: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return several click options as one decorator."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)

    return decorate


def make_pipeline(settings: dict[str, Any]) -> Pipeline:
    """Return the pipeline that the command's options describe."""
    from isinglass.pipeline import Pipeline

    return Pipeline(**pipeline_options(settings))


def pipeline_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of isinglass.options.Options that the command's options (or some of them) stand for."""
    values = dict(settings)
    if values.pop("all_layers", False):
        values["adaptive"] = False
    if values.pop("all_keypoints", False):
        values["max_keypoints"] = None
    if values.pop("original_size", False):
        values["resize"] = None
    return values


def check_cluster(params: Mapping[str, Any]) -> None:
    """Raise UsageError where workers of this machine and a cluster are both asked for."""
    if params.get("address") is not None and params.get("workers", 1) > 1:
        raise click.UsageError("--workers are of this machine; a cluster has as many as fit. Leave one of both out.")


def take_computing(settings: dict[str, Any], *, workers: int, memory_mb: int) -> Computing:
    """Return who extracts and matches, by CLUSTER_OPTIONS, which are taken out of a command's."""
    address, threads, gpus = (settings.pop(name) for name in ("address", "ray_threads", "ray_gpus"))
    if address is None:
        from isinglass.sfm.computing import Here

        return Here(workers=workers, memory_mb=memory_mb)
    from isinglass.distributed import Cluster

    return Cluster(address=address, threads=threads, gpus=gpus)


def with_progress(items: Iterable[Any], count: int, label: str) -> Iterator[Any]:
    """Yield the items, with a bar and the time left on stderr where there are many and a person is looking."""
    if count < 2 or not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=count, label=label, show_pos=True, file=sys.stderr) as bar:
        yield from bar
