"""A run in a few lines for a person."""

from __future__ import annotations

from isinglass.eval import series
from isinglass.eval.runs import Run


def summary(run: Run) -> str:
    """The table of solvers at their best and at the fixed threshold, matches, times, and problems."""
    info, benchmark = run.info, run.info["benchmark"]
    rows = {(row["solver"], row["threshold_px"]): row["metrics"] for row in info["tables"] if row["group"] == "all"}
    areas, said = series.accuracy_metrics(run), series.said_of_maa(run)
    lines = [
        f"{benchmark['name']} ({benchmark['protocol']}), {benchmark['num_pairs']} pairs: "
        f"{info['extractor']} + {info['matcher']}",
        f"  {'solver':<16}{'threshold':>12}"
        + "".join(f"{name.replace('maa', 'mAA'):>9}" for name in areas)
        + (f"  ({said})" if said else ""),
    ]
    for solver, best in info["best"].items():
        shown = [(best["threshold_px"], "best"), (info["fixed_threshold_px"], "fixed")]
        for threshold, why in shown:
            metrics = rows.get((solver, threshold))
            if metrics is not None and (why == "best" or threshold != best["threshold_px"]):
                numbers = "".join(f"{100 * metrics[name]:>9.1f}" for name in areas)
                lines.append(f"  {solver:<16}{f'{threshold:g} px {why}':>12}{numbers}")
    first = next(iter(rows.values()))
    known = [(name, first[name]) for name in ("precision", "recall", "matching_score") if first[name] is not None]
    told = ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f}" for name, value in known)
    lines.append(f"  {told or 'which matches are right is not known'}")
    times = ", ".join(f"{stage} {spent['median']:.0f} ms" for stage, spent in info["timings_ms"].items())
    lines.append(f"  {first['num_matches']:.0f} matches a pair; median {times}")
    lines += [f"  not used: {problem}" for problem in benchmark["problems"]]
    lines += [f"  {line}" for line in series.leak_lines(run)]
    return "\n".join([*lines, f"  written {run.path}"])
