"""The numbers that reports and comparisons draw from runs. Numbers in, numbers out: no figures, no text for people.

Errors are px or degrees, inf = failed; `isinglass.eval.evaluate` says of what. A metric is named as in a run's tables:
"auc@5", or "maa", which is the mean over pairs of their accuracies in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isinglass.eval.runs import Run
from isinglass.metrics import auc

Floats = NDArray[np.float64]

ALL = "all"  # the group that every pair is in
ADAPTIVE = ("adaptive", "depth_confidence", "width_confidence", "filter_threshold")  # what a trade-off curve sweeps


def benchmark_key(run: Run) -> tuple[str, str]:
    """(name, protocol): runs with the same one may be held against each other."""
    return run.info["benchmark"]["name"], run.info["benchmark"]["protocol"]


def unit(run: Run) -> str:
    """Of errors."""
    return "°" if run.info["benchmark"]["task"] == "pose" else " px"


def solvers(runs: Sequence[Run]) -> list[str]:
    """Those that all runs have, in the first one's order."""
    return [name for name in runs[0].info["solvers"] if all(name in run.info["solvers"] for run in runs)]


def solver_thresholds(run: Run, solver: str) -> list[float]:
    """px, ascending: where the solver was tried."""
    prefix = f"error__{solver}__"
    return sorted(float(name.removeprefix(prefix)) for name in run.pairs if name.startswith(prefix))


def fixed_threshold(run: Run, solver: str) -> float | None:
    """The run's fixed threshold; the solver's own where it has just one (weighted DLT), None where it was not tried."""
    tried, fixed = solver_thresholds(run, solver), run.info.get("fixed_threshold_px")
    if fixed is not None and any(math.isclose(fixed, one) for one in tried):
        return float(fixed)
    return tried[0] if len(tried) == 1 else None


def best_threshold(run: Run, solver: str) -> float | None:
    """px, the threshold at which the solver did best; its only one where the run names none."""
    best = (run.info.get("best") or {}).get(solver, {}).get("threshold_px")
    tried = solver_thresholds(run, solver)
    if best is not None and any(math.isclose(best, one) for one in tried):
        return float(best)
    return tried[0] if len(tried) == 1 else None


def errors(run: Run, solver: str, threshold_px: float | None) -> Floats | None:
    """(P,) in the order of the pairs' names; None where the solver was not tried at that threshold."""
    values = _at_threshold(run, f"error__{solver}__", threshold_px)
    return None if values is None else np.where(np.isnan(values), np.inf, values)


def accuracies(run: Run, solver: str, threshold_px: float | None) -> Floats | None:
    """(P,) in [0, 1]: of each pair the share of thresholds within; None where there are none, or not at that one."""
    values = _at_threshold(run, f"accuracy__{solver}__", threshold_px)
    return None if values is None else np.nan_to_num(values)


def _at_threshold(run: Run, prefix: str, threshold_px: float | None) -> Floats | None:
    for name, values in run.pairs.items():
        if threshold_px is None or not name.startswith(prefix):
            continue
        if math.isclose(float(name.removeprefix(prefix)), threshold_px):
            return values.astype(np.float64)
    return None


def auc_thresholds(run: Run) -> list[float]:
    """px or degrees, ascending: up to where AUC was taken, by the names of the run's metrics ("auc@5")."""
    names = {name for table in run.info["tables"] for name in table["metrics"] if name.startswith("auc@")}
    return sorted(float(name.removeprefix("auc@")) for name in names)


def accuracy_metrics(run: Run) -> list[str]:
    """The metrics that a solver has a part in: AUCs by threshold, then mean average accuracies."""
    names = dict.fromkeys(name for table in run.info["tables"] for name in table["metrics"])
    return [f"auc@{limit:g}" for limit in auc_thresholds(run)] + [name for name in names if name.startswith("maa")]


def main_metric(run: Run) -> str | None:
    """The last of `accuracy_metrics`: mAA, or the AUC at the largest threshold; None where there is neither."""
    metrics = accuracy_metrics(run)
    return metrics[-1] if metrics else None


def metric_name(run: Run, metric: str) -> str:
    """For people: "AUC@5 px", "mAA"."""
    return f"AUC{metric.removeprefix('auc')}{unit(run)}" if metric.startswith("auc@") else metric.replace("maa", "mAA")


def said_of_maa(run: Run) -> str:
    """What mAA is in this run: "mAA over 10 thresholds from 1 to 20 px"; "" without."""
    thresholds = run.info["benchmark"].get("maa_px")
    if not thresholds:
        return ""
    return f"mAA over {len(thresholds)} thresholds from {min(thresholds):g} to {max(thresholds):g}{unit(run)}"


def leak_lines(run: Run) -> list[str]:
    """What the leak check found, for people; nothing where it was not asked for."""
    leaks = run.info.get("leaks")
    if leaks is None:
        return []
    if not leaks:
        return ["leak check: no image that the weights were trained on is among the images"]
    return [
        f"LEAK: {leak['evaluation']} is {leak['training']}, which the weights were trained on (same {leak['reason']})"
        for leak in leaks
    ]


def error_limit(run: Run) -> float | None:
    """px or degrees beyond which an error is as bad as any: the largest threshold of AUC or else of mAA."""
    return max([*auc_thresholds(run)] or run.info["benchmark"].get("maa_px") or [], default=None)


def metric_values(run: Run, solver: str, threshold_px: float | None, metric: str) -> Floats | None:
    """(P,) of what `metric_of` makes the metric; None where the run does not tell."""
    return (errors if metric.startswith("auc@") else accuracies)(run, solver, threshold_px)


def metric_of(metric: str) -> Callable[[Floats], float]:
    """From `metric_values` (P,) of some pairs, in [0, 1]."""
    if metric.startswith("auc@"):
        limit = float(metric.removeprefix("auc@"))
        return lambda values: auc(values, [limit])[0]
    return lambda values: float(values.mean()) if len(values) else math.nan


def best_accuracy(run: Run, solver: str, metric: str | None) -> float:
    """The metric at the solver's best threshold; NaN where that is not known."""
    values = None if metric is None else metric_values(run, solver, best_threshold(run, solver), metric)
    return metric_of(metric)(values) if metric is not None and values is not None else math.nan


def best_solver(runs: Sequence[Run]) -> str | None:
    """Of the solvers that all runs have, the one with the highest mean of the first run's main metric.

    It tells most about the matches.
    """
    metric = main_metric(runs[0])
    means = {name: float(np.mean([best_accuracy(run, name, metric) for run in runs])) for name in solvers(runs)}
    known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return max(known, key=lambda name: known[name]) if known else None


def metrics_of(run: Run, solver: str, threshold_px: float | None, group: str = ALL) -> dict[str, float | None]:
    """The row of the run's tables, empty where there is none."""
    for row in run.info["tables"]:
        if row["solver"] != solver or row["group"] != group or threshold_px is None:
            continue
        if row["threshold_px"] is None or math.isclose(row["threshold_px"], threshold_px):
            return row["metrics"]
    return {}


def groups(runs: Sequence[Run]) -> list[str]:
    """Those that tables have beside "all", in order of their names; none where there is only one."""
    found = sorted({row["group"] for run in runs for row in run.info["tables"]} - {ALL})
    return found if len(found) > 1 else []


def is_share(metric: str) -> bool:
    """Whether it is in [0, 1], and shown as percent."""
    return metric.startswith(("auc@", "maa", "precision", "recall", "matching_score"))


def settings(run: Run) -> dict[str, Any]:
    """The options and whatever was swept: everything that was chosen before the models ran."""
    return {**run.info.get("options", {}), **(run.info.get("matcher_config") or {}), **(run.info.get("swept") or {})}


def family(run: Run, *, swept: Sequence[str]) -> tuple[Any, ...]:
    """Equal for runs that differ in the settings `swept` only."""
    kept = {name: value for name, value in settings(run).items() if name not in swept}
    return run.info["extractor"], run.info["matcher"], repr(sorted(kept.items()))


def column(run: Run, name: str) -> Floats | None:
    """(P,) a per-pair array as floats; None where the run has none, or nothing but NaN."""
    values = run.pairs.get(name)
    if values is None or not len(values):
        return None
    known = np.asarray(values, dtype=np.float64)
    return known if bool(np.isfinite(known).any()) else None


def match_ms(run: Run) -> float:
    """Median time to match a pair, NaN where it was not taken."""
    values = column(run, "match_ms")
    return math.nan if values is None else float(np.nanmedian(values))


def mean_keypoints(run: Run) -> float:
    """An image, NaN where they were not counted."""
    counts = [column(run, f"num_keypoints{view}") for view in (0, 1)]
    known = [np.nanmean(one) for one in counts if one is not None]
    return float(np.mean(known)) if known else math.nan


def judged_scores(run: Run) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores (M,) of all matches whose truth is known, and whether they are right (M,)."""
    scores, correct = run.pairs.get("match_scores"), run.pairs.get("match_correct")
    if scores is None or correct is None:
        return np.zeros(0), np.zeros(0, dtype=bool)
    known = correct >= 0
    return scores[known].astype(np.float64), correct[known] > 0


def difficulty(run: Run, solver: str | None) -> tuple[NDArray[np.int64], str] | None:
    """0 easy, 1 medium, 2 hard for each pair (P,), as terciles of what the second value names.

    Of the overlap where the run has it; else of the error, failed pairs being the hardest.
    """
    overlap = column(run, "overlap")
    values = None if solver is None else errors(run, solver, best_threshold(run, solver))
    if overlap is not None:
        values = -overlap
    if values is None or len(values) < 3:
        return None
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * 3 // len(values), "overlap" if overlap is not None else f"error with {solver}"
