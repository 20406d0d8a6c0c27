"""The numbers that reports and comparisons draw from runs. Numbers in, numbers out: no figures, no text for people.

Errors are px (mean of the four corners) or degrees (the larger one of rotation and translation), inf = failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    prefix = f"error__{solver}__"
    for name, values in run.pairs.items():
        if threshold_px is None or not name.startswith(prefix):
            continue
        if math.isclose(float(name.removeprefix(prefix)), threshold_px):
            return np.where(np.isnan(values), np.inf, values).astype(np.float64)
    return None


def auc_thresholds(run: Run) -> list[float]:
    """px or degrees, ascending: up to where AUC was taken, by the names of the run's metrics ("auc@5")."""
    names = {name for table in run.info["tables"] for name in table["metrics"] if name.startswith("auc@")}
    return sorted(float(name.removeprefix("auc@")) for name in names)


def accuracy_metrics(run: Run) -> list[str]:
    """The metrics that a solver has a part in: AUCs by threshold, then mean average accuracies."""
    names = dict.fromkeys(name for table in run.info["tables"] for name in table["metrics"])
    return [f"auc@{limit:g}" for limit in auc_thresholds(run)] + [name for name in names if name.startswith("maa")]


def best_auc(run: Run, solver: str) -> float:
    """At the largest AUC threshold, with the solver's best threshold; NaN where that is not known."""
    values, limits = errors(run, solver, best_threshold(run, solver)), auc_thresholds(run)
    return auc(values, limits[-1:])[0] if values is not None and len(values) and limits else math.nan


def best_solver(runs: Sequence[Run]) -> str | None:
    """Of the solvers that all runs have, the one with the highest mean AUC: it tells most about the matches."""
    means = {name: float(np.mean([best_auc(run, name) for run in runs])) for name in solvers(runs)}
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
