"""Figures of an inspection, for papers and notebooks: functions return a matplotlib Figure and show nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isinglass.errors import InputError, MissingExtra
from isinglass.inspection.payload import array_of, seen
from isinglass.inspection.record import Attention, Step, Trace
from isinglass.inspection.tracing import Inspection
from isinglass.result import turns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PHOTO_PX = 800  # long side of a photo in a figure
_HEADS = ("#ffb000", "#35e0dc", "#ff6ec7", "#9be86a", "#86a8ff", "#ff8a5c", "#d3b8ff", "#f2f26b")
_GONE, _GOING, _DARK = "#8b96a3", "#ff4d4d", "#14181d"
_WIDE_IN = 12.0
_LEAST_ERROR, _LEAST_PROBABILITY = 1e-8, 2e-3  # that are drawn


def plot_layers(inspection: Inspection) -> Figure:
    """One picture a step: the matches it predicts, by score, dashed where they are none in the end.

    Of LightGlue also the points, by confidence: discs reach the layer's threshold, rings do not; of the last layer,
    which has none, by matchability. Crosses are red where points leave after this layer, grey where they left before.
    Raises InputError where nothing was matched, MissingExtra without matplotlib.
    """
    trace = _with_steps(inspection)
    columns = 1 if len(trace.steps) == 1 else 2
    rows = math.ceil(len(trace.steps) / columns)
    photos = _Photos(inspection)
    figure = _figure(_WIDE_IN, rows * (_WIDE_IN / columns / photos.aspect + 0.4))
    final = set(map(tuple, trace.matches.pairs().tolist()))
    gone = [np.zeros(len(points), dtype=bool) for points in photos.points]
    for i, step in enumerate(trace.steps):
        axes = figure.add_subplot(rows, columns, i + 1)
        photos.draw(axes, step.name + ": " + _told(step))
        _lines(axes, photos, step, final)
        if trace.kind == "lightglue":
            _marks(axes, photos, step, gone)
    return figure


def plot_exit(inspection: Inspection) -> Figure:
    """By layer of LightGlue: the share of confident points against alpha (eq. 12), points left, matches.

    Raises InputError of another matcher, MissingExtra without matplotlib.
    """
    trace = _of_kind(inspection, "lightglue", "the exit criterion")
    layers = np.arange(1, len(trace.steps) + 1)
    share = np.array([np.nan if step.confident_share is None else step.confident_share for step in trace.steps])
    pruned_at = [at for at in (trace.matches.pruned_at0, trace.matches.pruned_at1) if at is not None]
    left = np.concatenate([array_of(at[0]) for at in pruned_at])
    series = [
        ("share of points that are sure", share, (0.0, 1.02)),
        ("points in the layer", np.array([(left >= layer).sum() for layer in layers]), (0.0, len(left) * 1.02)),
        ("matches", np.array([len(step.pairs) for step in trace.steps]), None),
    ]
    figure, all_axes = _charts(layers, series, "layer")
    if trace.exit_share is not None:
        text = f"α = {trace.exit_share:g}"
        all_axes[0].axhline(trace.exit_share, color="#d1560b", linestyle="--", linewidth=1.2, label=text)
        all_axes[0].legend(loc="lower right", frameon=False)
    return figure


def plot_sinkhorn(inspection: Inspection) -> Figure:
    """By iteration of SuperGlue's Sinkhorn: the probability in another row than it should be, and the matches.

    Raises InputError of another matcher, MissingExtra without matplotlib.
    """
    trace = _of_kind(inspection, "superglue", "Sinkhorn's iterations")
    error = np.array([step.marginal_error for step in trace.steps], dtype=float)
    matches = np.array([len(step.pairs) for step in trace.steps])
    iterations = np.array([step.iteration for step in trace.steps])
    series = [("probability out of place", np.maximum(error, _LEAST_ERROR), None), ("matches", matches, None)]
    figure, (first, _) = _charts(iterations, series, "iteration")
    first.set_ylim(auto=True)
    first.set_yscale("log")
    return figure


def plot_keypoint(inspection: Inspection, view: int, keypoint: int, layer: int) -> Figure:
    """Where a keypoint of view 0 or 1 looks in a layer (from 1), a colour for each head, and what it might match.

    Rings are partners in the assignment of that layer; of SuperGlue and nearest, of the last step. Raises InputError
    where there is no such view, keypoint or layer, MissingExtra without matplotlib.
    """
    trace = _with_steps(inspection)
    photos = _Photos(inspection)
    if view not in (0, 1) or not 0 <= keypoint < len(photos.points[view]):
        counts = " and ".join(str(len(points)) for points in photos.points)
        raise InputError(f"there is no keypoint {keypoint} of view {view}; the views 0 and 1 have {counts}, from 0")
    most = max([len(trace.steps) if trace.kind == "lightglue" else 1, *(one.layer for one in trace.attention)])
    if not 1 <= layer <= most:
        raise InputError(f"there is no layer {layer} in this inspection; expected 1 to {most}")
    step = trace.steps[layer - 1] if trace.kind == "lightglue" else trace.steps[-1]
    figure = _figure(_WIDE_IN, _WIDE_IN / photos.aspect + 0.5)
    axes = figure.add_subplot()
    photos.draw(axes, "")
    here = photos.points[view][keypoint]
    looked = [one for one in trace.attention if one.layer == layer]
    for one in looked:
        _rays(axes, photos, one, view, keypoint)
    for head in range(looked[0].index[0].shape[1] if looked else 0):
        axes.plot([], [], color=_HEADS[head % len(_HEADS)], linewidth=3, label=f"head {head + 1}")
    if looked:
        axes.legend(loc="upper left", fontsize=8, ncols=4)
    partners = [array_of(values[view][keypoint]) for values in (step.alternatives.index, step.alternatives.probability)]
    for index, probability in zip(*partners, strict=True):
        if index >= 0 and probability >= _LEAST_PROBABILITY:
            ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8}
            axes.plot(*photos.points[1 - view][index], color=_plasma(probability), **ring, zorder=4)
    axes.plot(*here, marker="o", markersize=12, markerfacecolor="none", color="white", markeredgewidth=3, zorder=5)
    axes.plot(*here, marker="o", markersize=12, markerfacecolor="none", color=_DARK, markeredgewidth=1, zorder=5)
    axes.set_title(_headline(inspection, step, view, keypoint, layer), fontsize=11)
    return figure


# ---- drawing


class _Photos:
    """Both photos side by side at one height, and where their keypoints are on the axes."""

    def __init__(self, inspection: Inspection) -> None:
        result, shift = inspection.result, 0.0
        self.pictures: list[tuple[NDArray[np.uint8], tuple[float, float, float, float]]] = []
        self.points: list[NDArray[np.float64]] = []
        height = 0
        for image, features in zip(inspection.images, (result.features0, result.features1), strict=True):
            pixels, matrix, _ = seen(image, turns_of(features), _PHOTO_PX)
            height = height or pixels.shape[0]
            scale = height / pixels.shape[0]
            places = array_of(features.keypoints[0]).astype(float) @ matrix[:, :2].T + matrix[:, 2]
            self.points.append((places + 0.5) * scale - 0.5 + np.array([shift, 0.0]))
            right = shift + pixels.shape[1] * scale
            self.pictures.append((pixels, (shift - 0.5, right - 0.5, height - 0.5, -0.5)))
            shift = right + 0.01 * height
        self.height, self.width = height, shift - 0.01 * height

    @property
    def aspect(self) -> float:
        return self.width / self.height

    def draw(self, axes: Axes, title: str) -> None:
        for pixels, extent in self.pictures:
            axes.imshow(pixels, extent=extent, aspect="equal", interpolation="antialiased")
        axes.set(xlim=(-0.5, self.width - 0.5), ylim=(self.height - 0.5, -0.5))
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)


def _lines(axes: Axes, photos: _Photos, step: Step, final: set[tuple[int, ...]]) -> None:
    from matplotlib.collections import LineCollection

    pairs, scores = array_of(step.pairs), array_of(step.scores)
    lost = np.array([tuple(pair) not in final for pair in pairs.tolist()], dtype=bool)
    ends = np.stack([photos.points[view][pairs[:, view]] for view in (0, 1)], axis=1)
    for chosen, dashes in ((~lost, "-"), (lost, (0, (4, 3)))):
        lines = LineCollection(list(ends[chosen]), colors=_plasma(scores[chosen]), linestyles=[dashes])
        lines.set(linewidth=0.6, alpha=0.35 if len(pairs) > 100 else 0.9)
        axes.add_collection(lines, autolim=False)


def _marks(axes: Axes, photos: _Photos, step: Step, gone: list[NDArray[np.bool_]]) -> None:
    """The points of one layer; `gone` tells who left before, and learns who leaves now."""
    values = step.confidence or step.matchability
    assert values is not None and step.pruned is not None
    for view, points in enumerate(photos.points):
        going = np.zeros(len(points), dtype=bool)
        going[array_of(step.pruned[view])] = True
        value = array_of(values[view])
        there = ~gone[view] & ~going
        enough = there & (value >= (step.threshold or 0.0))
        axes.scatter(*points[enough].T, s=7, c=_plasma(value[enough]), linewidths=0)
        axes.scatter(*points[there & ~enough].T, s=9, facecolors="none", edgecolors=_plasma(value[there & ~enough]))
        for chosen, colour in ((gone[view], _GONE), (going, _GOING)):
            axes.scatter(*points[chosen].T, s=9, c=colour, marker="x", linewidths=0.7)
        gone[view] |= going


def _rays(axes: Axes, photos: _Photos, one: Attention, view: int, keypoint: int) -> None:
    start, there = photos.points[view][keypoint], photos.points[view ^ one.cross]
    index_HK, weight_HK = array_of(one.index[view][keypoint]), array_of(one.weight[view][keypoint])
    most = max(float(weight_HK.max(initial=0)), 1e-6)
    for head, (indices, weights) in enumerate(zip(index_HK, weight_HK, strict=True)):
        for index, weight in zip(indices, weights, strict=True):
            if index >= 0:
                share = float(weight) / most
                (line,) = axes.plot(*np.stack([start, there[index]]).T, color=_HEADS[head % len(_HEADS)])
                line.set(linewidth=0.4 + 2.4 * share, alpha=0.15 + 0.85 * share)


def _charts(
    x: NDArray[Any], series: Sequence[tuple[str, NDArray[Any], tuple[float, float] | None]], xlabel: str
) -> tuple[Figure, list[Axes]]:
    figure = _figure(_WIDE_IN * len(series) / 3, 3.2)
    all_axes = []
    for i, (title, values, limits) in enumerate(series):
        axes = figure.add_subplot(1, len(series), i + 1)
        axes.plot(x, values, color="#1f66c7", marker="o", markersize=4)
        axes.set(title=title, xlabel=xlabel, ylim=limits if limits else None)
        if not limits:
            axes.set_ylim(bottom=0)
        axes.set_xticks(x)
        axes.grid(color="#dfe4e9", linewidth=0.8)
        all_axes.append(axes)
    return figure, all_axes


# ---- words and checks


def _told(step: Step) -> str:
    parts = [f"{len(step.pairs)} matches"]
    if step.confident_share is not None:
        parts.append(f"{step.confident_share:.1%} sure (λ = {step.threshold:.2f})")
    if step.marginal_error is not None:
        parts.append(f"{step.marginal_error:.2%} out of place")
    return ", ".join(parts)


def _headline(inspection: Inspection, step: Step, view: int, keypoint: int, layer: int) -> str:
    parts = [f"keypoint {keypoint} of {inspection.names[view]}, layer {layer}"]
    for name, values in (("confidence", step.confidence), ("matchability", step.matchability)):
        value = math.nan if values is None else float(values[view][keypoint])
        if not math.isnan(value):
            parts.append(f"{name} {value:.2f}")
    return ", ".join(parts)


def _plasma(values: float | NDArray[Any] | Tensor) -> Any:
    """Colours of numbers in [0, 1], without the dark end."""
    from matplotlib import colormaps

    return colormaps["plasma"](0.12 + 0.83 * np.clip(values, 0, 1))


def _figure(width_in: float, height_in: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "viz") from error
    return Figure(figsize=(width_in, height_in), dpi=130, facecolor="white", layout="constrained")


def _with_steps(inspection: Inspection) -> Trace:
    if not inspection.trace.steps:
        raise InputError(
            "there is nothing to draw: a photo has no keypoints. Look at `isinglass doctor` for the reason"
        )
    return inspection.trace


def _of_kind(inspection: Inspection, kind: str, what: str) -> Trace:
    if inspection.trace.kind != kind:
        raise InputError(f"only {kind} has {what}; this is an inspection of {inspection.trace.kind}")
    return _with_steps(inspection)
