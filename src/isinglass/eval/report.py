"""One HTML file for people, of one run or of several: tables, the papers' figures, and the worst pairs as pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import InputError
from isinglass.eval import series
from isinglass.eval.figures import charts
from isinglass.eval.pictures import colours, picture
from isinglass.eval.runs import Run
from isinglass.metrics import bootstrap_interval, expected_calibration_error
from isinglass.pages.page import Column, Value, chart_grid, details, escape, facts, heading, table, write_page

MAX_PICTURES = 24  # a report; about 80 kB each
_PICTURES_OF_A_RUN = 6
_SAMPLES = 1000  # of the bootstrap
_NAMES = {"precision": "precision", "recall": "recall", "matching_score": "matching score", "num_matches": "matches"}


def write_report(runs: Sequence[Run], path: Path | str) -> Path:
    """Write the report of `runs` to `path`, a section for each benchmark; needs nothing but a browser to be read.

    What a run has no data for is left out, with a line that says so. Raises InputError without runs, and where the
    file cannot be written.
    """
    if not runs:
        raise InputError("no runs came; expected one or more, as `isinglass eval` writes them")
    runs = _told_apart(runs)
    benchmarks: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        benchmarks.setdefault(series.benchmark_key(run), []).append(run)
    names = " and ".join(dict.fromkeys(name for name, _ in benchmarks))
    title = f"{runs[0].info['label']} on {names}" if len(runs) == 1 else f"{len(runs)} runs on {names}"
    each = max(1, min(_PICTURES_OF_A_RUN, MAX_PICTURES // len(runs)))
    body = [heading("Isinglass evaluation", title, _lead(runs))]
    body += [_section(members, each) for members in benchmarks.values()]
    body.append(_settings(runs))
    return write_page(path, title, "\n".join(body))


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The same runs, those that share a label on one benchmark numbered."""
    seen: Counter[tuple[str, str, str]] = Counter()
    labelled = []
    for run in runs:
        label = run.info["label"]
        seen[*series.benchmark_key(run), label] += 1
        count = seen[*series.benchmark_key(run), label]
        text = label if count == 1 else f"{label} ({count})"
        labelled.append(replace(run, info={**run.info, "label": text}))
    return labelled


def _lead(runs: Sequence[Run]) -> str:
    """What was run on what, in a sentence."""
    version = " and ".join(sorted({str(run.info["versions"].get("isinglass", "?")) for run in runs}))
    machines = sorted({_machine(run) for run in runs})
    return escape(f"Made by Isinglass {version} on {' and '.join(machines)}.")


def _machine(run: Run) -> str:
    machine = run.info["machine"]
    threads = f", {count} thread{'s' * (count > 1)}" if (count := machine.get("threads")) else ""
    return f"{machine.get('gpu') or machine.get('cpu') or 'a machine of no name'}{threads}"


# ---- one benchmark


def _section(runs: Sequence[Run], num_pictures: int) -> str:
    benchmark = runs[0].info["benchmark"]
    counts = sorted({run.info["benchmark"]["num_pairs"] for run in runs})
    pairs = f"{' or '.join(map(str, counts))} pairs"
    parts = [f"<h2>{escape(benchmark['name'])}</h2>"]
    lead = f"{pairs}, protocol {benchmark['protocol']}. {_headline(runs)}"
    parts.append(f"<p>{escape(lead)}</p>")
    problems = list(dict.fromkeys(problem for run in runs for problem in run.info["benchmark"]["problems"]))
    if problems:
        lines = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        parts.append(details(f"{len(problems)} things could not be used", f"<ul>{lines}</ul>"))
    parts += [f"<p>{escape(run.info['label'])}: {escape(line)}</p>" for run in runs for line in series.leak_lines(run)]
    parts.append(_accuracy(runs))
    if groups := series.groups(runs):
        parts.append(details("By group, at the best threshold", _by_group(runs, groups, best=True), is_open=True))
        parts.append(details("By group, at the fixed threshold", _by_group(runs, groups, best=False)))
    parts += [_matches(runs), '<h3 class="part">Figures</h3>', chart_grid(charts(runs))]
    parts.append(_worst(runs, num_pictures))
    return "\n".join(parts)


def _headline(runs: Sequence[Run]) -> str:
    """The best of all runs and solvers, in a sentence."""
    metric = series.main_metric(runs[0])
    tried = [(series.best_accuracy(run, solver, metric), run, solver) for run, solver in _rows(runs)]
    tried = [one for one in tried if math.isfinite(one[0])]
    if not tried or metric is None:
        return ""
    best, run, solver = max(tried, key=lambda one: one[0])
    who = f"{run.info['label']} with {solver}" if len(runs) > 1 else solver
    name, at_px = series.metric_name(run, metric), series.best_threshold(run, solver)
    return f"Best is {who} at {at_px:g} px: {name} {100 * best:.1f}."


def _rows(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, solver) for run in runs for solver in run.info["solvers"]]


def _who(rows: Sequence[tuple[Run, str]]) -> list[Column]:
    return [Column(head="solver", values=[solver for _, solver in rows])]


def _labels(rows: Sequence[tuple[Run, str]]) -> list[str]:
    """The sections of a table of these rows; one run needs none."""
    labels = [run.info["label"] for run, _ in rows]
    return labels if len(set(labels)) > 1 else []


def _auc_columns(
    rows: Sequence[tuple[Run, str]], thresholds: Sequence[float | None], over: str, group: str = series.ALL
) -> list[Column]:
    """A column for each AUC threshold, and for mAA where there is one."""
    unit = series.unit(rows[0][0])
    found = [series.metrics_of(run, solver, at, group) for (run, solver), at in zip(rows, thresholds, strict=True)]
    return [
        Column(
            head=name.replace("maa", "mAA").removeprefix("auc") + (unit if "@" in name else ""),
            values=[metrics.get(name) for metrics in found],
            scale=100,
            best="high",
            over=over,
        )
        for name in series.accuracy_metrics(rows[0][0])
    ]


def _accuracy(runs: Sequence[Run]) -> str:
    """Every run and solver at its best and at the fixed threshold, with an interval for the last metric."""
    rows = _rows(runs)
    best = [series.best_threshold(run, solver) for run, solver in rows]
    fixed = [series.fixed_threshold(run, solver) for run, solver in rows]
    what, metric = _what(runs[0]), series.main_metric(runs[0])
    over, fixed_over = f"{what} at the best threshold", f"{what} at the fixed threshold"
    intervals = [_interval(run, solver, at, metric) for (run, solver), at in zip(rows, best, strict=True)]
    columns = [*_who(rows), _px(best, over), *_auc_columns(rows, best, over)]
    columns.append(Column(head="95 % interval", values=intervals, numeric=True, over=over))
    columns += [_px(fixed, fixed_over)]
    columns += _auc_columns(rows, fixed, fixed_over)
    numbers = " and ".join(filter(None, ("AUC" if what == "AUC" else "", series.said_of_maa(runs[0]))))
    note = (
        f"{numbers}, times 100. The best threshold was chosen on these very pairs, so it "
        "flatters; the interval is a bootstrap over pairs, of the last number before it."
    )
    return f'<h3 class="part">Accuracy</h3>{table(columns, sections=_labels(rows))}<p class="note">{note}</p>'


def _what(run: Run) -> str:
    return "AUC" if series.auc_thresholds(run) else "Accuracy"


def _px(thresholds: Sequence[float | None], over: str) -> Column:
    values = [None if one is None else f"{one:g}" for one in thresholds]
    return Column(head="px", values=values, numeric=True, over=over)


def _interval(run: Run, solver: str, threshold_px: float | None, metric: str | None) -> str | None:
    values = None if metric is None else series.metric_values(run, solver, threshold_px, metric)
    if values is None or metric is None or not len(values):
        return None
    low, high = bootstrap_interval(values, None, series.metric_of(metric), _SAMPLES)
    return "too few pairs" if math.isnan(low) else f"{100 * low:.1f}–{100 * high:.1f}"


def _by_group(runs: Sequence[Run], groups: Sequence[str], *, best: bool) -> str:
    rows = _rows(runs)
    choose = series.best_threshold if best else series.fixed_threshold
    thresholds = [choose(run, solver) for run, solver in rows]
    columns = _who(rows)
    for group in groups:
        counts = {
            row["num_pairs"] for run in runs for row in run.info["tables"] if row["group"] == group
        }  # alike, but for pairs that a run could not use
        over = f"{_what(runs[0])}, {group}, {' or '.join(map(str, sorted(counts)))} pairs"
        of_group = _auc_columns(rows, thresholds, over, group)
        columns += of_group if len(groups) <= 3 else of_group[-1:]
    return table(columns, sections=_labels(rows))


def _matches(runs: Sequence[Run]) -> str:
    """What does not depend on a solver: a row for each run."""
    found: list[dict[str, float | None]] = []
    for run in runs:
        rows = [row["metrics"] for row in run.info["tables"] if row["group"] == series.ALL]
        found.append(rows[0] if rows else {})
    columns = [Column(head="run", values=[run.info["label"] for run in runs])]
    columns.append(Column(head="keypoints", values=[series.mean_keypoints(run) for run in runs], digits=0))
    for metric in dict.fromkeys(name for metrics in found for name in metrics if not name.startswith(("auc@", "maa"))):
        share, values = series.is_share(metric), [metrics.get(metric) for metrics in found]
        scale, digits = (100, 1) if share else (1, 0)
        name = _NAMES.get(metric, metric) + (", %" if share else "")
        columns.append(Column(head=name, values=values, scale=scale, digits=digits, best="high" if share else ""))
    columns += [
        Column(head="ECE, %", values=[_ece(run) for run in runs], best="low"),
        Column(head="layers", values=[_layers(run) for run in runs]),
        Column(head="match, ms", values=[series.match_ms(run) for run in runs], digits=0, best="low"),
        Column(head="extract, ms", values=[_extract_ms(run) for run in runs], digits=0),
    ]
    columns = [one for one in columns if any(_is_known(value) for value in one.values)]
    note = "Means over pairs. Times are medians of a pair; extraction only of images that were not in the cache."
    return f'<h3 class="part">Matches</h3>{table(columns)}<p class="note">{note}</p>'


def _is_known(value: Value) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _ece(run: Run) -> float:
    scores, correct = series.judged_scores(run)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return math.nan
    return 100 * expected_calibration_error(scores, correct)


def _layers(run: Run) -> float:
    layers = run.pairs.get("stop_layer", np.zeros(0))
    return float(layers[layers > 0].mean()) if (layers > 0).any() else math.nan


def _extract_ms(run: Run) -> float:
    """Median of the pairs whose images were not in the cache."""
    spent = run.pairs.get("extract_ms", np.zeros(0))
    return float(np.median(spent[spent > 0])) if (spent > 0).any() else math.nan


def _worst(runs: Sequence[Run], count: int) -> str:
    """Pictures of the pairs with the largest errors; among those that failed, the ones with fewest right matches."""
    solver = series.best_solver(runs)
    if solver is None:
        return '<ul class="absent"><li><b>Worst pairs.</b> Left out: the runs share no solver.</li></ul>'
    unit, shown = series.unit(runs[0]), []
    for run in runs[:MAX_PICTURES]:
        values = series.errors(run, solver, series.best_threshold(run, solver))
        if values is None:
            continue
        right = run.pairs.get("num_correct", np.zeros(len(values)))
        for pair in np.lexsort((right, -values))[:count].tolist():
            name, error = str(run.pairs["names"][pair]), values[pair]
            text = f"{name}: {error:,.{int(error < 100)}f}{unit} off" if math.isfinite(error) else f"{name}: failed"
            whose = f'<p class="note">{escape(run.info["label"])}</p>' if len(runs) > 1 else ""
            drawn = picture(run, pair).html(alt=f"Matches of {name}")
            shown.append(f"<section><h4>{escape(text)}</h4>{whose}{drawn}</section>")
    note = f"By error with {solver} at its best threshold. {colours(runs[0])}"
    return (
        f'<h3 class="part">Worst pairs</h3><p class="note">{escape(note)}</p><div class="pairs">{"".join(shown)}</div>'
    )


# ---- how it was run


def _settings(runs: Sequence[Run]) -> str:
    """What all runs have in common as a list, what tells them apart as a table."""
    told = [_flat(run) for run in runs]
    names = list(dict.fromkeys(name for one in told for name in one))
    common = {name: told[0].get(name, "–") for name in names if all(one.get(name) == told[0].get(name) for one in told)}
    columns = [Column(head="run", values=[run.info["label"] for run in runs])]
    columns += [Column(head=name, values=[one.get(name, "–") for one in told]) for name in names if name not in common]
    parts = ["<h2>How it was run</h2>"]
    if len(columns) > 1:
        parts.append(f'<h3 class="part">What differs</h3>{table(columns)}')
    shared = facts(list(common.items()))
    parts.append(shared if len(runs) == 1 else details(f"What all {len(runs)} runs share", shared, is_open=True))
    return "\n".join(parts)


def _flat(run: Run) -> dict[str, str]:
    info = run.info
    whole: dict[str, Any] = {"benchmark": info["benchmark"]["name"], "protocol": info["benchmark"]["protocol"]}
    whole |= {"extractor": info["extractor"], "matcher": info["matcher"]}
    whole |= {name: value for name, value in series.settings(run).items() if name not in whole}
    whole |= {f"weights of {name}": value for name, value in info["weights"].items()}
    whole |= {"solvers": info["solvers"], "thresholds, px": info["thresholds_px"], "seed": info["seed"]}
    whole |= {f"{name} version": value for name, value in info["versions"].items()}
    whole |= {f"machine: {name}": value for name, value in info["machine"].items()}
    return {name: _text(value) for name, value in whole.items()}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
