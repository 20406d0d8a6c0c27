"""`isinglass eval`, `report`, `compare`, `calibrate` and `tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from isinglass.cli.common import MATCHER_OPTIONS, OK, PATH, PIPELINE_OPTIONS, make_pipeline, options, with_progress

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
BENCHMARK_OPTIONS = (
    click.argument("benchmark", type=click.Choice(BENCHMARKS)),
    click.argument("data", type=PATH),
    click.option("-o", "--output", type=PATH, default=Path("eval"), show_default=True, help="Folder for results."),
    click.option("--limit", type=click.IntRange(1), help="Only so many pairs, spread over all."),
)


@click.command(name="eval", short_help="Measure on a benchmark.")
@options(*BENCHMARK_OPTIONS)
@click.option("--label", help="Name of the run and its files; extractor and matcher if not given.")
@click.option("--solver", "solvers", multiple=True, help="May be given several times; all there are if not given.")
@click.option("--threshold", "thresholds", type=float, multiple=True, help="Of inliers, in px; several are swept.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--training", type=PATH, help="Images of the weights' training: a leak check (folder, list, manifest).")
@click.option("--report/--no-report", default=True, show_default=True, help="Also write a page to look at.")
@click.option("--json", "as_json", is_flag=True, help="The run's JSON on stdout.")
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
    from isinglass.eval.benchmarks import load_benchmark
    from isinglass.eval.evaluate import SOLVERS, Protocol
    from isinglass.eval.evaluate import evaluate as measure
    from isinglass.eval.summary import summary

    loaded = load_benchmark(benchmark, data, cache=output / "data", limit=limit)
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
    click.echo(json.dumps(run.info) if as_json else summary(run))
    return OK


@click.command(short_help="Make a page of one or several runs.")
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, default=Path("report.html"), show_default=True)
def report(runs: tuple[Path, ...], output: Path) -> int:
    """One self-contained page of RUNS (JSON files of `isinglass eval`): tables, curves, worst pairs."""
    from isinglass.eval.report import write_report
    from isinglass.eval.runs import load_run

    click.echo(write_report([load_run(run) for run in runs], output))
    return OK


@click.command(short_help="Hold one run against another.")
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("-o", "--output", type=PATH, help="Also write a page with the pairs that differ most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare(first: Path, second: Path, output: Path | None, as_json: bool) -> int:
    """Differences of two runs of one benchmark, with bootstrap confidence intervals."""
    from isinglass.eval.compare import compare as hold_against
    from isinglass.eval.compare import write_comparison
    from isinglass.eval.runs import load_run

    comparison = hold_against(load_run(first), load_run(second))
    if output is not None:
        write_comparison(comparison, output)
    click.echo(json.dumps(comparison.as_dict()) if as_json else str(comparison))
    return OK


@click.command(short_help="Find LightGlue's thresholds for your data and machine.")
@options(*BENCHMARK_OPTIONS)
@click.option("--budget", type=float, default=0.5, show_default=True, help="AUC points that may be lost.")
@click.option("--solver", default="poselib", show_default=True)
@click.option("--threshold", type=float, default=1.0, show_default=True, help="Of the solver's inliers, in px.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
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
    """Depth, width and filter thresholds for BENCHMARK in DATA: the fastest that lose at most --budget AUC points."""
    from isinglass.eval.benchmarks import load_benchmark
    from isinglass.eval.tune import Search
    from isinglass.eval.tune import tune as search

    found = search(
        load_benchmark(benchmark, data, cache=output / "data", limit=limit),
        make_pipeline(settings),
        output,
        Search(budget=budget, solver=solver, threshold_px=threshold),
        progress=lambda items, count: with_progress(items, count, "tuning"),
    )
    click.echo(json.dumps(found.as_dict()) if as_json else str(found))
    return OK


@click.command(short_help="Fit what match scores are worth.")
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, default=Path("calibrations.json"), show_default=True)
def calibrate(runs: tuple[Path, ...], output: Path) -> int:
    """Fit a map from score to probability for each matcher of RUNS (JSON files of `isinglass eval`)."""
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
