"""Two runs of one benchmark held against each other, pair by pair: what differs, surely or by luck, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isinglass.errors import InputError
from isinglass.eval import series
from isinglass.eval.figures import error_curve, error_scatter
from isinglass.eval.pictures import colours, picture
from isinglass.eval.runs import Run
from isinglass.metrics import MIN_PAIRS, bootstrap_interval
from isinglass.pages.page import Column, chart_grid, details, escape, facts, heading, table, write_page

Statistic = Callable[[NDArray[Any]], float]
Choice = Callable[[Run, str], float | None]  # of a solver's threshold, px

_PER_PAIR: tuple[tuple[str, str, float, Statistic], ...] = (  # array, what is said of it, its scale, the statistic
    ("precision", "precision, %", 100, np.nanmean),
    ("recall", "recall, %", 100, np.nanmean),
    ("matching_score", "matching score, %", 100, np.nanmean),
    ("num_matches", "matches", 1, np.nanmean),
    ("num_correct", "right matches", 1, np.nanmean),
    ("match_ms", "time to match, ms (median)", 1, np.nanmedian),
)
_LESS_IS_BETTER = ("time to match, ms (median)",)
_NEITHER_IS_BETTER = ("matches",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of both runs on their common pairs. AUCs, mAA and shares are in percent."""

    metric: str  # "AUC@5 px", "mAA"
    setting: str  # solver and threshold: "poselib, best threshold"; "" where no solver has a part in it
    group: str
    num_pairs: int
    a: float
    b: float
    low: float  # 95 % bootstrap interval of b - a over pairs; NaN of too few pairs
    high: float

    @property
    def difference(self) -> float:
        """Of the second run from the first, b - a."""
        return self.b - self.a

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and it leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def interval(self) -> str:
        """The interval for a person."""
        return "too few pairs" if math.isnan(self.low) else f"{self.low:+.1f} to {self.high:+.1f}"

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "other" for the second run, "" where the difference may be luck."""
        if not self.is_clear:
            return ""
        if self.metric in _NEITHER_IS_BETTER:
            return "other"
        return "better" if (self.low > 0) != (self.metric in _LESS_IS_BETTER) else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDifference:
    """What became of one pair in both runs; errors in px or degrees, inf = failed."""

    name: str
    group: str
    error_a: float
    error_b: float
    correct_a: int  # right matches; -1 where they were not counted
    correct_b: int
    accuracy_a: float | None = None  # the pair's part in mAA, in [0, 1]; None in runs without
    accuracy_b: float | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Comparison:
    """What `compare` found. `str()` is the table for people, `as_dict()` the one for machines."""

    label_a: str
    label_b: str
    benchmark: str
    protocol: str
    unit: str  # of errors
    solver: str | None  # whose errors, at the best threshold of each run, say which pairs differ
    num_common: int
    only_a: int  # pairs that the other run has not
    only_b: int
    differences: tuple[Difference, ...]
    pairs: tuple[PairDifference, ...]  # those that differ most, most first
    run_a: Run = field(repr=False)
    run_b: Run = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a failed pair's error is None."""
        rows = [
            {**asdict(row), "difference": row.difference, "verdict": row.verdict or "not clear"}
            for row in self.differences
        ]
        names = ("label_a", "label_b", "benchmark", "protocol", "unit", "solver", "num_common", "only_a", "only_b")
        head = {name: getattr(self, name) for name in names}
        return _finite({**head, "differences": rows, "pairs": [asdict(pair) for pair in self.pairs]})

    def __str__(self) -> str:
        lines = [f"{self.benchmark} ({self.protocol}): a = {self.label_a}, b = {self.label_b}", _counted(self)]
        names = [row.metric if row.group == series.ALL else f"{row.metric}, {row.group}" for row in self.differences]
        wide = max(map(len, names), default=0)
        heading = None
        for name, row in zip(names, self.differences, strict=True):
            if row.setting != heading:
                heading, numbers = row.setting, f"{'pairs':>7}{'a':>9}{'b':>9}{'b - a':>9}   95 % interval"
                lines += ["", f"  {heading or 'matches':<{wide + 2}}{numbers if len(lines) == 2 else ''}".rstrip()]
            numbers = f"{row.num_pairs:>7}{row.a:>9.1f}{row.b:>9.1f}{row.difference:>+9.1f}   {row.interval:<18}"
            lines.append(f"    {name:<{wide}}{numbers}{row.verdict}".rstrip())
        if self.pairs:
            lines += ["", f"  pairs that differ most (by {_judged_by(self.run_a)} with {self.solver}, a -> b)"]
        lines += [f"    {pair.name}: {_both_errors(pair, self.unit)}" for pair in self.pairs]
        return "\n".join(lines)


def compare(run_a: Run, run_b: Run, *, num_pairs: int = 10, samples: int = 2000) -> Comparison:
    """Compare two runs on the pairs that both have; differences are of `run_b` from `run_a`.

    Intervals are paired bootstraps of `samples` draws over pairs: what makes a pair hard for both cancels. At the best
    threshold each run has its own. `num_pairs` of the pairs that differ most are named, with the solver that does best:
    by error, up to the largest AUC threshold, or by their part in mAA; then by number of right matches.

    Raises InputError where the runs are of two benchmarks or protocols, or have no pair in common.
    """
    key_a, key_b = series.benchmark_key(run_a), series.benchmark_key(run_b)
    if key_a != key_b:
        raise InputError(
            f"{str(run_a.path)!r} is a run of {key_a[0]} (protocol {key_a[1]}), {str(run_b.path)!r} one of {key_b[0]} "
            f"(protocol {key_b[1]}); expected runs of the same benchmark and protocol, others cannot be compared"
        )
    names_a, names_b = run_a.pairs["names"], run_b.pairs["names"]
    common, index_a, index_b = np.intersect1d(names_a, names_b, return_indices=True)
    if not len(common):
        raise InputError(
            f"{str(run_a.path)!r} and {str(run_b.path)!r} have no pair in common; the first has "
            f"{names_a[:1].tolist()}, the second {names_b[:1].tolist()}. Run both on the same pairs"
        )
    both = _Both(run_a, run_b, index_a, index_b)
    solver = series.best_solver([run_a, run_b])
    rows = (*_accuracy_rows(both, samples), *_pair_rows(both, samples))
    return Comparison(
        label_a=run_a.info["label"],
        label_b=run_b.info["label"],
        benchmark=key_a[0],
        protocol=key_a[1],
        unit=series.unit(run_a),
        solver=solver,
        num_common=len(common),
        only_a=len(names_a) - len(common),
        only_b=len(names_b) - len(common),
        differences=rows,
        pairs=_most_different(both, solver)[:num_pairs],
        run_a=run_a,
        run_b=run_b,
    )


def write_comparison(comparison: Comparison, path: Path | str, *, num_pictures: int = 8) -> Path:
    """Write it as one HTML file: the tables, errors of all pairs, and both pictures of pairs that differ most.

    Raises InputError where the file cannot be written.
    """
    c = comparison
    title = f"{c.label_b} against {c.label_a}"
    lead = escape(f"On {c.benchmark}, protocol {c.protocol}. {_counted(c)}")
    parts = [heading("Isinglass comparison", title, lead)]
    overall = [row for row in c.differences if row.group == series.ALL]
    grouped = [row for row in c.differences if row.group != series.ALL]
    parts += [f'<h3 class="part">Differences</h3>{_table(c, overall)}']
    luck = f"one that holds 0 may be luck, and of fewer than {MIN_PAIRS} pairs there is none"
    parts.append(f'<p class="note">Intervals are paired bootstraps over pairs; {luck}.</p>')
    if grouped:
        parts.append(details("By group", _table(c, grouped)))
    if c.solver is not None:
        parts.append(chart_grid([error_curve([c.run_a, c.run_b]), error_scatter(c.run_a, c.run_b, c.solver)]))
    parts.append('<h3 class="part">Pairs that differ most</h3>')
    note = f"By {_judged_by(c.run_a)} with {c.solver}, each run at its best threshold. {colours(c.run_a)}"
    parts.append(f'<p class="note">{escape(note)}</p>')
    parts += [_beside(c, pair) for pair in c.pairs[:num_pictures]]
    runs = [(name, run.path.name) for name, run in ((c.label_a, c.run_a), (c.label_b, c.run_b))]
    parts.append(f"<footer>{facts(runs)}</footer>")
    return write_page(path, title, "\n".join(parts))


# ---- numbers


@dataclass(frozen=True, slots=True, eq=False)
class _Both:
    """Two runs, and where their common pairs are in each."""

    run_a: Run
    run_b: Run
    index_a: NDArray[np.int64]
    index_b: NDArray[np.int64]

    def of_each(self, values: Callable[[Run], NDArray[np.float64] | None]) -> list[NDArray[np.float64]] | None:
        """(P,) of each run, what `values` takes from it on the common pairs; None where one has none."""
        found_a, found_b = values(self.run_a), values(self.run_b)
        return None if found_a is None or found_b is None else [found_a[self.index_a], found_b[self.index_b]]

    def at(self, solver: str, choose: Choice, metric: str) -> list[NDArray[np.float64]] | None:
        """(P,) of each run, what the metric is made from, with the threshold that `choose` takes for the run."""
        return self.of_each(lambda run: series.metric_values(run, solver, choose(run, solver), metric))

    def column(self, name: str) -> list[NDArray[np.float64]] | None:
        """(P,) of each run; None where one has none."""
        return self.of_each(lambda run: series.column(run, name))

    def groups(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """All pairs, and each group where there are several."""
        of_pair = self.run_a.pairs["groups"][self.index_a]
        names = series.groups([self.run_a])
        return [(series.ALL, np.ones(len(of_pair), dtype=bool)), *((name, of_pair == name) for name in names)]


def _accuracy_rows(both: _Both, samples: int) -> Iterator[Difference]:
    metrics = series.accuracy_metrics(both.run_a)
    for solver in series.solvers([both.run_a, both.run_b]):
        for said, choose in _thresholds(both, solver):
            for group, inside in both.groups() if said.startswith("best") else both.groups()[:1]:
                for metric in metrics if group == series.ALL else metrics[-1:]:
                    values = both.at(solver, choose, metric)
                    if values is not None and inside.any():
                        row = (values[0][inside], values[1][inside])
                        named = (series.metric_name(both.run_a, metric), f"{solver}, {said}", group)
                        yield _difference(named, row, 100, series.metric_of(metric), samples)


def _thresholds(both: _Both, solver: str) -> Iterator[tuple[str, Choice]]:
    """Each run's best threshold; the fixed one where that is another, the same for both."""
    best, fixed = (
        [choose(run, solver) for run in (both.run_a, both.run_b)]
        for choose in (series.best_threshold, series.fixed_threshold)
    )
    if None not in best:
        yield f"best threshold ({' and '.join(dict.fromkeys(f'{one:g}' for one in best))} px)", series.best_threshold
    if fixed[0] is not None and fixed[0] == fixed[1] and fixed != best:
        yield f"fixed threshold ({fixed[0]:g} px)", series.fixed_threshold


def _pair_rows(both: _Both, samples: int) -> Iterator[Difference]:
    for name, said, scale, statistic in _PER_PAIR:
        values = both.column(name)
        if values is None:
            continue
        known = np.isfinite(values[0]) & np.isfinite(values[1])
        if known.any():
            row = (values[0][known], values[1][known])
            yield _difference((said, "", series.ALL), row, scale, statistic, samples)


def _difference(
    named: tuple[str, str, str],
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    scale: float,
    statistic: Statistic,
    samples: int,
) -> Difference:
    low, high = bootstrap_interval(values[1], values[0], statistic, samples)
    metric, setting, group = named
    a, b = (scale * float(statistic(one)) for one in values)
    counts: dict[str, Any] = {"num_pairs": len(values[0]), "low": scale * low, "high": scale * high}
    return Difference(metric=metric, setting=setting, group=group, a=a, b=b, **counts)


def _most_different(both: _Both, solver: str | None) -> tuple[PairDifference, ...]:
    """All common pairs whose error or number of right matches differs, the largest difference first."""
    if solver is None:
        return ()
    errors = both.of_each(lambda run: series.errors(run, solver, series.best_threshold(run, solver)))
    shares = both.at(solver, series.best_threshold, "maa")
    if errors is None:
        return ()
    cap = series.error_limit(both.run_a) or math.inf  # beyond it an error is as bad as any
    counts = both.column("num_correct") or [np.full(len(errors[0]), -1.0)] * 2
    by_error = np.abs(np.subtract(*(shares or [np.minimum(one, cap) for one in errors])))
    by_count = np.abs(counts[0] - counts[1])
    order = [i for i in np.lexsort((-by_count, -by_error)).tolist() if by_error[i] or by_count[i]]
    names, groups = both.run_a.pairs["names"][both.index_a], both.run_a.pairs["groups"][both.index_a]
    return tuple(
        PairDifference(
            name=str(names[i]),
            group=str(groups[i]),
            error_a=float(errors[0][i]),
            error_b=float(errors[1][i]),
            correct_a=int(counts[0][i]),
            correct_b=int(counts[1][i]),
            accuracy_a=None if shares is None else float(shares[0][i]),
            accuracy_b=None if shares is None else float(shares[1][i]),
        )
        for i in order
    )


# ---- words


def _counted(c: Comparison) -> str:
    only = [f"{count} only in {label}" for count, label in ((c.only_a, c.label_a), (c.only_b, c.label_b)) if count]
    return f"{c.num_common} pairs in common" + (f"; left out: {', '.join(only)}." if only else ".")


def _both_errors(pair: PairDifference, unit: str) -> str:
    a, b = ("failed" if math.isinf(one) else f"{one:.2f}{unit}" for one in (pair.error_a, pair.error_b))
    shares = pair.accuracy_a, pair.accuracy_b
    accuracy = "" if None in shares else ", accuracy {:.0%} -> {:.0%}".format(*shares)
    matches = f", {pair.correct_a} -> {pair.correct_b} right matches" if pair.correct_a >= 0 else ""
    return f"{a} -> {b}{accuracy}{matches}"


def _judged_by(run: Run) -> str:
    return "part in mAA" if series.main_metric(run) == "maa" else "error"


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(c: Comparison, rows: list[Difference]) -> str:
    parts = [(row.setting or "matches") + ("" if row.group == series.ALL else f", {row.group}") for row in rows]
    return table(
        [
            Column(head="metric", values=[row.metric for row in rows]),
            Column(head=c.label_a, values=[row.a for row in rows]),
            Column(head=c.label_b, values=[row.b for row in rows]),
            Column(head="difference", values=[f"{row.difference:+.1f}" for row in rows], numeric=True),
            Column(head="95 % interval", values=[row.interval for row in rows], numeric=True),
            Column(head="", values=[row.verdict for row in rows], marks={"better": "good", "worse": "bad"}),
        ],
        sections=parts,
    )


def _beside(c: Comparison, pair: PairDifference) -> str:
    drawn = []
    for run in (c.run_a, c.run_b):
        number = int(np.flatnonzero(run.pairs["names"] == pair.name)[0])
        label = f'<p class="note">{escape(run.info["label"])}</p>'
        drawn.append(f"<div>{label}{picture(run, number).html(alt=f'Matches of {pair.name}')}</div>")
    text = escape(f"{pair.name}: {_both_errors(pair, c.unit)}").replace("-&gt;", "→")
    return f'<section class="beside"><h4>{text}</h4><div>{"".join(drawn)}</div></section>'
