"""The figures of a report, each made from runs of one benchmark; the first papers to draw them are named."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isinglass.eval import series
from isinglass.eval.runs import Run
from isinglass.metrics import auc, expected_calibration_error, reliability
from isinglass.pages.charts import MUTED, STEPS, Chart, Key, line_style, marker_style, new_axes

_MAX_POINTS = 300  # of a curve: more would be finer than the screen
_MAX_HISTOGRAMS = 4
_BINS = 15


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All figures, in the order of the report."""
    return [
        error_curve(runs),
        threshold_sweep(runs),
        precision_curve(runs),
        time_against_accuracy(runs),
        time_against_keypoints(runs),
        calibration(runs),
        *stop_layers(runs),
    ]


def error_curve(runs: Sequence[Run]) -> Chart:
    """Recall against error, up to the largest AUC threshold: the area under it is the AUC (SuperGlue, section 5)."""
    title = "Share of pairs within an error"
    solver, limits = series.best_solver(runs), series.auc_thresholds(runs[0])
    if solver is not None and not limits:
        return Chart(title=title, note=f"Left out: no AUC is taken here, but {series.said_of_maa(runs[0]) or 'mAA'}.")
    if solver is None:
        return Chart(title=title, note="Left out: the runs share no solver, or none with a best threshold.")
    names = [solver] if len(runs) > 1 else series.solvers(runs)
    unit, keys, lines = series.unit(runs[0]), [], []
    for run in runs:
        for name in names:
            threshold = series.best_threshold(run, name)
            values = series.errors(run, name, threshold)
            if values is None:
                continue
            text = f"{run.info['label']}" if len(runs) > 1 else f"{name} at {threshold:g} px"
            keys.append(Key(text=text, number=len(keys), value=f"{100 * auc(values, limits[-1:])[0]:.1f}"))
            lines.append(_recall(values, limits[-1]))
    figure, axes = new_axes(f"error,{unit}" if unit != "°" else "error, degrees", "pairs, %")
    for number, (error, recall) in enumerate(lines):
        axes.plot(error, 100 * recall, **line_style(number))
    for limit in limits[:-1]:
        axes.axvline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlim=(0, limits[-1]), ylim=(0, 100))
    which = f"Solver: {solver}, each run at its best threshold. " if len(runs) > 1 else ""
    note = f"{which}The area under a curve is its AUC@{limits[-1]:g}{unit}, given in bold."
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


def threshold_sweep(runs: Sequence[Run]) -> Chart:
    """AUC or mAA against the inlier threshold of the solver: how much of a number is the choice of that."""
    title, metric = "Accuracy against solver threshold", series.main_metric(runs[0])
    solver = series.best_solver(runs)
    names = series.solvers(runs) if len(runs) == 1 else [solver] if solver else []
    curves = [] if metric is None else [(run, name, _sweep(run, name, metric)) for run in runs for name in names]
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves or metric is None:
        return Chart(title=title, note="Left out: every solver was tried at one threshold.")
    figure, axes = new_axes("inlier threshold, px", f"{series.metric_name(runs[0], metric)}, %")
    keys = []
    for number, (run, name, swept) in enumerate(curves):
        axes.plot(list(swept), list(swept.values()), **marker_style(number))
        best = f"{max(swept.values()):.1f} at {max(swept, key=lambda one: swept[one]):g} px"
        keys.append(Key(text=run.info["label"] if len(runs) > 1 else name, number=number, value=best, kind="marker"))
    _tick_at(axes, "x", sorted({threshold for _, _, swept in curves for threshold in swept}))
    note = f"Solver: {solver}." if len(runs) > 1 else "One curve a solver; the matches are the same."
    return Chart(title=title, note=f"{note} In bold the best.", figure=figure, keys=tuple(keys))


def precision_curve(runs: Sequence[Run]) -> Chart:
    """Precision against right matches (against recall, up to a factor), as the least score of a match falls."""
    title, keys = "Precision against number of right matches", []
    known = [(run, *series.judged_scores(run)) for run in runs]
    known = [one for one in known if len(one[1])]
    if not known:
        return Chart(title=title, note="Left out: the truth of no single match is known.")
    figure, axes = new_axes("right matches, a pair", "precision, %")
    lowest = 100.0
    for number, (run, scores, correct) in enumerate(known):
        order = np.argsort(-scores, kind="stable")
        right = np.cumsum(correct[order])
        precision = 100 * right / np.arange(1, len(right) + 1)
        pairs = len(run.pairs["names"])
        drawn = np.unique(np.geomspace(min(50, len(right)), len(right), _MAX_POINTS).astype(int)) - 1
        axes.plot(right[drawn] / pairs, precision[drawn], **line_style(number))
        axes.plot(right[-1] / pairs, precision[-1], **marker_style(number))
        lowest = min(lowest, precision[drawn].min())
        text = f"{precision[-1]:.1f} % of {len(right) / pairs:.0f}"
        keys.append(Key(text=run.info["label"], number=number, value=text))
    axes.set(xlim=(0, None), ylim=(max(0.0, math.floor(lowest / 10) * 10), 101))
    note = "Best scores first, all pairs together; the marker is the run as it is, with all its matches."
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


def time_against_accuracy(runs: Sequence[Run]) -> Chart:
    """AUC or mAA against time (LightGlue, figure 1); runs that differ in adaptive settings alone are joined."""
    title, solver, metric = "Accuracy against time", series.best_solver(runs), series.main_metric(runs[0])
    points = [(run, series.match_ms(run)) for run in runs]
    points = [(run, ms) for run, ms in points if math.isfinite(ms)]
    if solver is None or metric is None or len(points) < 2:
        return Chart(title=title, note="Left out: it takes two or more runs with times and a solver in common.")
    families: dict[object, list[tuple[float, float, Run]]] = {}
    for run, ms in points:
        key = series.family(run, swept=series.ADAPTIVE)
        families.setdefault(key, []).append((ms, 100 * series.best_accuracy(run, solver, metric), run))
    figure, axes = new_axes("time to match a pair, ms (median)", f"{series.metric_name(runs[0], metric)}, %")
    keys = []
    for number, members in enumerate(families.values()):
        members.sort(key=lambda one: one[0])
        ms, areas = [one[0] for one in members], [one[1] for one in members]
        axes.plot(ms, areas, **marker_style(number))
        if len(members) > 1:
            for x, y, run in members:
                text = _swept_text(run, [one[2] for one in members])
                axes.annotate(text, (x, y), (0, 6), textcoords="offset points", fontsize=7, color=MUTED, ha="center")
        name = f"{members[0][2].info['extractor']} + {members[0][2].info['matcher']}"
        text = members[0][2].info["label"] if len(members) == 1 else name
        keys.append(Key(text=text, number=number, value=f"{min(ms):.0f} ms", kind="marker"))
    axes.margins(x=0.12, y=0.18)
    _logarithmic(axes, "x", [ms for _, ms in points])
    joined = " Joined: the same models with other adaptive settings." if len(families) < len(points) else ""
    note = f"Solver: {solver} at its best threshold. Upper left is better.{joined}"
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


def time_against_keypoints(runs: Sequence[Run]) -> Chart:
    """Time of a pair against keypoints, for runs that differ in that alone (a figure of SuperGlue's appendix)."""
    title = "Run time against keypoints"
    families: dict[object, list[tuple[float, float, Run]]] = {}
    for run in runs:
        key = series.family(run, swept=("max_keypoints",))
        families.setdefault(key, []).append((series.mean_keypoints(run), series.match_ms(run), run))
    swept = [
        sorted(members, key=lambda one: one[0])
        for members in families.values()
        if len({one[2].info["options"].get("max_keypoints") for one in members}) > 1
        and all(math.isfinite(x) and math.isfinite(ms) for x, ms, _ in members)
    ]
    if not swept:
        return Chart(title=title, note="Left out: no two runs differ in max_keypoints alone.")
    figure, axes = new_axes("keypoints an image (mean)", "time to match a pair, ms (median)")
    keys = []
    for number, members in enumerate(swept):
        counts, ms = [one[0] for one in members], [one[1] for one in members]
        axes.plot(counts, ms, **marker_style(number))
        info = members[0][2].info
        adaptive = ", adaptive" if info["options"].get("adaptive") and info["matcher"] != "nearest" else ""
        text, value = f"{info['extractor']} + {info['matcher']}{adaptive}", f"{ms[0]:.0f} to {ms[-1]:.0f} ms"
        keys.append(Key(text=text, number=number, value=value, kind="marker"))
    axes.set(xlim=(0, None), ylim=(0, None))
    return Chart(title=title, note="Matching alone, without extraction.", figure=figure, keys=tuple(keys))


def calibration(runs: Sequence[Run]) -> Chart:
    """The share of right matches against their score (Guo et al., ICML 2017), with the calibration error."""
    title, keys = "Calibration of match scores", []
    known = [(run, *series.judged_scores(run)) for run in runs]
    known = [one for one in known if len(one[1]) and one[1].min() >= 0 and one[1].max() <= 1]
    if not known:
        return Chart(title=title, note="Left out: the truth of no single match is known, or scores leave [0, 1].")
    figure, axes = new_axes("score of a match", "share that is right, %")
    axes.plot([0, 1], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    for number, (run, scores, correct) in enumerate(known):
        bins = reliability(scores, correct, _BINS)
        used = bins.count >= max(10, 0.001 * len(scores))  # fewer say nothing
        axes.plot(bins.confidence[used], 100 * bins.accuracy[used], **{**marker_style(number), "markersize": 5})
        value = f"ECE {100 * expected_calibration_error(scores, correct, _BINS):.1f} %"
        keys.append(Key(text=run.info["label"], number=number, value=value, kind="marker"))
    axes.set(xlim=(0, 1.01), ylim=(0, 101))
    keys.append(Key(text="as good as they say", kind="none"))
    note = "Over the dotted line scores are too modest, under it too sure. ECE: mean distance from it."
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


def error_scatter(run_a: Run, run_b: Run, solver: str) -> Chart:
    """The errors of every common pair in two runs; failed pairs lie on the edges."""
    title, limit, unit = "Every pair", series.error_limit(run_a), series.unit(run_a)
    found = [series.errors(run, solver, series.best_threshold(run, solver)) for run in (run_a, run_b)]
    _, *index = np.intersect1d(run_a.pairs["names"], run_b.pairs["names"], return_indices=True)
    if found[0] is None or found[1] is None or limit is None:
        return Chart(title=title, note=f"Left out: no errors with {solver} at a best threshold.")
    low, high = limit / 500, limit * 4
    a, b = np.clip(found[0][index[0]], low, high), np.clip(found[1][index[1]], low, high)
    label = "degrees" if unit == "°" else unit.strip()
    figure, axes = new_axes(f"error of {run_a.info['label']}, {label}", f"error of {run_b.info['label']}, {label}")
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    for number, chosen in enumerate((b < a, b > a, b == a)):
        look = {**marker_style(number), "markersize": 5, "linestyle": "none", "markeredgewidth": 0.6}
        axes.plot(a[chosen], b[chosen], **look)
    axes.set(xlim=(low * 0.9, high * 1.1), ylim=(low * 0.9, high * 1.1))
    _logarithmic(axes, "x", [low, high])
    _logarithmic(axes, "y", [low, high])
    whose = (f"{run_b.info['label']} nearer", f"{run_a.info['label']} nearer", "alike")
    counts = int((b < a).sum()), int((b > a).sum()), int((b == a).sum())
    keys = [
        Key(text=text, number=number, value=str(count), kind="marker")
        for number, (text, count) in enumerate(zip(whose, counts, strict=True))
    ]
    note = f"Solver: {solver}. Beyond {high:g}{unit} or failed: at the upper and the right edge."
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


def stop_layers(runs: Sequence[Run]) -> list[Chart]:
    """After which layer easy and hard pairs stopped (LightGlue's table has the means): one chart a run that tells."""
    title = "Layers that pairs needed, by difficulty"
    solver, made = series.best_solver(runs), []
    for run in runs:
        layers, level = run.pairs.get("stop_layer"), series.difficulty(run, solver)
        if layers is not None and level is not None and len(set(layers[layers > 0].tolist())) > 1:
            made.append(_stop_layers_of(run, layers, *level, title if len(runs) == 1 else ""))
    if not made:
        return [Chart(title=title, note="Left out: no run stopped early, pairs all went through as many layers.")]
    if len(made) > _MAX_HISTOGRAMS:
        more = Chart(title=title, note=f"{len(made) - _MAX_HISTOGRAMS} more runs stopped early; the first are shown.")
        return [*made[:_MAX_HISTOGRAMS], more]
    return made


def _stop_layers_of(run: Run, layers: np.ndarray, level: np.ndarray, by: str, title: str) -> Chart:
    figure, axes = new_axes("stopped after layer", "pairs, %")
    keys, depth = [], int(layers.max())
    for step, name in enumerate(("easy", "medium", "hard")):
        chosen = layers[(level == step) & (layers > 0)]
        if not len(chosen):
            continue
        share = 100 * np.bincount(chosen, minlength=depth + 1)[1:] / len(chosen)
        axes.bar(np.arange(1, depth + 1) + 0.27 * (step - 1), share, width=0.25, color=STEPS[step])
        keys.append(Key(text=name, number=step, value=f"mean {chosen.mean():.1f}", kind="step"))
    axes.set(xticks=range(1, depth + 1))
    axes.grid(visible=False, axis="x")
    note = f"Thirds of the pairs by {by}."
    title = title or f"Layers that pairs needed: {run.info['label']}"
    return Chart(title=title, note=note, figure=figure, keys=tuple(keys))


# ---- helpers


def _recall(values: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve whose area metrics.auc takes: straight lines between errors, level from the last one to the limit."""
    below = np.sort(values[values < limit])
    error = np.concatenate([[0.0], below, [limit]])
    recall = np.append(np.arange(len(below) + 1), len(below)) / len(values)
    return error, recall


def _sweep(run: Run, solver: str, metric: str) -> dict[float, float]:
    """The metric in percent by the solver's threshold in px."""
    values = {at: series.metric_values(run, solver, at, metric) for at in series.solver_thresholds(run, solver)}
    return {at: 100 * series.metric_of(metric)(one) for at, one in values.items() if one is not None}


def _swept_text(run: Run, members: Sequence[Run]) -> str:
    """What tells the run from the others of its family."""
    own = series.settings(run)
    told = {name: own.get(name) for name in own if len({repr(series.settings(one).get(name)) for one in members}) > 1}
    short = {"depth_confidence": "depth", "width_confidence": "width", "filter_threshold": "filter"}
    if told.pop("adaptive", None) is False:
        return "all layers"
    return ", ".join(f"{short.get(name, name)} {_plain(value)}" for name, value in told.items()) or "adaptive"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "off" if value is None else str(value)


def _logarithmic(axes: object, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where values differ by five times or more, with plain numbers at round ticks."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < 5:
        return
    getattr(axes, f"set_{which}scale")("log")
    round_numbers = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    _tick_at(axes, which, [one for one in round_numbers if low * 0.8 <= one <= high * 1.25])


def _tick_at(axes: object, which: str, values: Sequence[float]) -> None:
    getattr(axes, f"set_{which}ticks")(values, labels=[f"{value:g}" for value in values])
    getattr(axes, f"set_{which}ticks")([], minor=True)
