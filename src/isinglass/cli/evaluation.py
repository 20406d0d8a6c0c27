"""`isinglass eval`, `report`, `compare`, `calibrate` and `tune`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import FILE, OUTPUT_FILE, OUTPUT_FOLDER, PRESENT, Command, Number
from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    make_pipeline,
    options,
    with_progress,
)
from isinglass.cli.photos import FOLDER_OPTIONS, Photos

if TYPE_CHECKING:
    from isinglass.datasets.pairs import Benchmark

BENCHMARKS = (
    "hpatches",
    "evd",
    "wxbs",
    "megadepth1500",
    "scannet1500",
    "pairs",
    "synthetic",
    "rotation",
    "scale",
)  # as isinglass.eval.benchmarks knows them (a test holds them equal)
OF_PHOTOS = ("synthetic", "rotation", "scale")  # likewise: those that are made of a folder of photos
BENCHMARK_OPTIONS = (
    click.argument("benchmark", type=click.Choice(BENCHMARKS)),
    click.argument("data", type=PRESENT),
    click.option(
        "-o", "--output", type=OUTPUT_FOLDER, default=Path("eval"), show_default=True, help="Folder of the results."
    ),
    click.option("--limit", type=click.IntRange(1), help="Maximum number of pairs, spread evenly over all."),
    *FOLDER_OPTIONS,
)


def _check_selection(params: Mapping[str, Any]) -> None:
    """Raise UsageError where photos of a data set are to be left out."""
    if params["benchmark"] not in OF_PHOTOS and (params["exclude"] or params["image_list"] is not None):
        raise click.UsageError(f"--exclude and --image-list are for benchmarks made of photos: {', '.join(OF_PHOTOS)}.")


def _benchmark(name: str, data: Path, cache: Path, limit: int | None, photos: Photos) -> Benchmark:
    """Return a benchmark, and say what photos of its folder are left out."""
    from isinglass.eval.benchmarks import load_benchmark

    selection = None
    if name in OF_PHOTOS and data.is_dir():
        photos.listing(data)
        selection = photos.selection(data)
    return load_benchmark(name, data, cache=cache, limit=limit, selection=selection)


def _code(name: str, photos: Photos, problems: Sequence[str]) -> int:
    """Return the exit code: photos of a folder count as everywhere, what a data set lacks is a note of the result."""
    return SOME_FAILED if photos.problems or (name in OF_PHOTOS and problems) else OK


@click.command(
    name="eval",
    cls=Command,
    needs=lambda params: {"matplotlib": "viz"} if params["report"] else {},
    checks=[_check_selection],
    short_help="Measure on a benchmark.",
)
@options(*BENCHMARK_OPTIONS)
@click.option("--label", help="Name of the run and its files.  [default: benchmark, extractor and matcher]")
@click.option(
    "--solver", "solvers", multiple=True, help="Solver of the geometry; repeatable.  [default: all available]"
)
@click.option(
    "--threshold",
    "thresholds",
    type=Number(0, min_open=True),
    multiple=True,
    help="Inlier threshold in px; repeatable.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the solvers.")
@click.option("--training", type=PRESENT, help="Folder, list or manifest of training images, to check for overlap.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write a page with tables and curves, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the run as one JSON object on stdout.")
@options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def evaluate(
    benchmark: str,
    data: Path,
    output: Path,
    limit: int | None,
    label: str | None,
    solvers: tuple[str, ...],
    thresholds: tuple[float, ...],
    seed: int,
    training: Path | None,
    report: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Measure on BENCHMARK, whose files are in DATA: a folder, or for `pairs` a list in SuperGlue's format.

    Writes <label>.json and <label>.npz. A run that was stopped goes on where it was when the same command is given
    again; other solvers and thresholds reuse its matches.
    """
    photos = Photos(settings)
    from isinglass.eval.evaluate import SOLVERS, Protocol
    from isinglass.eval.evaluate import evaluate as measure
    from isinglass.eval.summary import summary

    loaded = _benchmark(benchmark, data, output / "data", limit, photos)
    pipeline = make_pipeline(settings)
    chosen: dict[str, Any] = {"thresholds_px": thresholds, "fixed_threshold_px": thresholds[0]} if thresholds else {}
    protocol = Protocol(solvers=solvers or SOLVERS[loaded.task], seed=seed, **chosen)
    name = label or f"{loaded.name}-{pipeline.extractor.signature.extractor}-{pipeline.matcher.name}"
    run = measure(
        loaded,
        pipeline,
        output,
        label=name,
        protocol=protocol,
        training=training,
        progress=lambda items, count: with_progress(items, count, "measuring"),
    )
    if report:
        from isinglass.eval.report import write_report

        write_report([run], output / f"{name}.html")
    click.echo(json.dumps({**run.info, **photos.report()}) if as_json else summary(run))
    return _code(benchmark, photos, run.info["benchmark"]["problems"])


@click.command(cls=Command, needs={"matplotlib": "viz"}, short_help="Make a page of one or several runs.")
@click.argument("runs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=OUTPUT_FILE, default=Path("report.html"), show_default=True, help="Page to write.")
def report(runs: tuple[Path, ...], output: Path) -> int:
    """Write one self-contained page about RUNS (JSON files of `isinglass eval`): tables, curves, worst pairs."""
    from isinglass.eval.report import write_report
    from isinglass.eval.runs import load_run

    click.echo(write_report([load_run(run) for run in runs], output))
    return OK


@click.command(
    cls=Command,
    needs=lambda params: {"matplotlib": "viz"} if params["output"] else {},
    short_help="Compare two runs.",
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("-o", "--output", type=OUTPUT_FILE, help="Page to write, with the pairs that differ most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def compare(first: Path, second: Path, output: Path | None, as_json: bool) -> int:
    """Compare two runs of one benchmark, with bootstrap confidence intervals where there are enough pairs."""
    from isinglass.eval.compare import compare as hold_against
    from isinglass.eval.compare import write_comparison
    from isinglass.eval.runs import load_run

    comparison = hold_against(load_run(first), load_run(second))
    if output is not None:
        write_comparison(comparison, output)
    click.echo(json.dumps(comparison.as_dict()) if as_json else str(comparison))
    return OK


@click.command(
    cls=Command, checks=[_check_selection], short_help="Find LightGlue's thresholds for your data and machine."
)
@options(*BENCHMARK_OPTIONS)
@click.option("--budget", type=Number(0), default=0.5, show_default=True, help="Maximum loss in AUC points.")
@click.option("--solver", default="poselib", show_default=True, help="Solver of the geometry.")
@click.option(
    "--threshold", type=Number(0, min_open=True), default=1.0, show_default=True, help="Inlier threshold in px."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def tune(
    benchmark: str,
    data: Path,
    output: Path,
    limit: int | None,
    budget: float,
    solver: str,
    threshold: float,
    as_json: bool,
    **settings: Any,
) -> int:
    """Find the fastest thresholds of LightGlue for BENCHMARK in DATA that lose at most --budget AUC points."""
    photos = Photos(settings)
    from isinglass.eval.tune import Search
    from isinglass.eval.tune import tune as search

    found = search(
        _benchmark(benchmark, data, output / "data", limit, photos),
        make_pipeline(settings),
        output,
        Search(budget=budget, solver=solver, threshold_px=threshold),
        progress=lambda items, count: with_progress(items, count, "tuning"),
    )
    told = {**found.as_dict(), "left_out": photos.left_out}
    click.echo(json.dumps(told) if as_json else str(found))
    return _code(benchmark, photos, found.problems)


@click.command(cls=Command, short_help="Calibrate match scores.")
@click.argument("runs", type=FILE, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=OUTPUT_FILE, default=Path("calibrations.json"), show_default=True, help="File to write."
)
def calibrate(runs: tuple[Path, ...], output: Path) -> int:
    """Fit a mapping from score to probability for each matcher of RUNS (JSON files of `isinglass eval`)."""
    from isinglass.eval.calibration import fit_calibrations, write_calibrations
    from isinglass.eval.runs import load_run

    fitted = fit_calibrations([load_run(run) for run in runs])
    write_calibrations(output, fitted)
    for name, one in fitted.items():
        click.echo(
            f"{name}: expected calibration error {100 * one.ece_before:.1f} % before, {100 * one.ece_after:.1f} % after"
            f" (pairs not fitted on); from {one.num_matches} matches of {one.fitted_on}"
        )
    click.echo(f"written {output}")
    return OK
