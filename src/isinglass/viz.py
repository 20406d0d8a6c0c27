"""Pictures of matches and keypoints. Functions return a matplotlib Figure; nothing is shown, no global state is set.

Images are (3, H, W) or (1, H, W) tensors, or (H, W, 3) or (H, W) arrays, of floats in [0, 1] or uint8. Points are
(x, y) px of those images, (0, 0) = centre of the top-left pixel; axes are in px of the first image. What colours tell
is also told by line styles and markers, for readers who do not see the colours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from isinglass.errors import InputError, MissingExtra
from isinglass.files import write_atomically
from isinglass.types import Features, Matches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")

_GREEN, _RED, _BLUE, _DARK = "#00e676", "#ff3b4e", "#29b6f6", "#14181d"
_WIDTH_IN, _ROW_IN = (9.0, 12.0), (0.5, 7.0)  # narrowest and widest figure, thinnest and tallest row of images
_STRIP_IN, _MARGIN_IN = 0.36, 0.1
_DPI = (130.0, 260.0)
_LONGEST_PX = 2400  # an image twice as long or more is reduced: no figure could show its pixels
_FADE = 0.7  # how far photos are turned to grey, so that colours belong to what is drawn on them


class _View(NamedTuple):
    """Where an image lies on the axes: its point p is drawn at (p + 0.5) scale - 0.5 + (shift, 0)."""

    picture: NDArray[np.uint8]  # as drawn, perhaps reduced
    width: int  # px of the image as given
    height: int
    scale: float = 1.0
    shift: float = 0.0

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return (points + 0.5) * self.scale - 0.5 + np.array([self.shift, 0.0])

    @property
    def right(self) -> float:
        return self.shift + self.width * self.scale


def plot_matches(
    image0: ArrayLike | Tensor,
    image1: ArrayLike | Tensor,
    points0: ArrayLike | Tensor,
    points1: ArrayLike | Tensor,
    *,
    inliers: ArrayLike | Tensor | None = None,
    scores: ArrayLike | Tensor | None = None,
    max_lines: int = 150,
    title: str | None = None,
) -> Figure:
    """Both images side by side at one height, with a line for every match.

    `points0`, `points1` (M, 2) px and `scores` (M,) are those of the matches; `inliers` (M,) bool tells which ones a
    geometric model explains. Inliers are green: solid lines, discs. Outliers are red: dashed lines, crosses. Beyond
    `max_lines` every match keeps its markers, and lines are drawn for some, spread evenly over the first image, best
    scores first, inliers and outliers in proportion. Raises InputError where shapes disagree.
    """
    ends = _points(points0, "points0"), _points(points1, "points1")
    if len(ends[0]) != len(ends[1]):
        raise InputError(f"{len(ends[0])} points0 and {len(ends[1])} points1; expected as many, one of each a match")
    views = _side_by_side(image0, image1)
    figure, (axes,) = _new_figure(views, rows=1, title=title)
    known = _values(inliers, len(ends[0]), "inliers"), _values(scores, len(ends[0]), "scores")
    _draw_matches(axes, views, ends, *known, max_lines)
    return figure


def plot_keypoints(
    image: ArrayLike | Tensor,
    points: ArrayLike | Tensor,
    *,
    layers: ArrayLike | Tensor | None = None,
    matched: ArrayLike | Tensor | None = None,
    num_layers: int | None = None,
    title: str | None = None,
) -> Figure:
    """Keypoints (N, 2) px of one image, coloured by how many layers of the matcher they went through.

    `layers` (N,) is `pruned_at0` or `pruned_at1` of the pair's Matches: who has fewer than the most left early.
    `matched` (N,) bool tells which ones have a match. Discs are matched, rings are not, crosses left early. Colours
    reach from layer 1 to `num_layers` (None = the most in `layers`). Raises InputError where shapes disagree.
    """
    where = _points(points, "points")
    view = _View(*_picture(image))
    figure, (axes,) = _new_figure([view], rows=1, title=title)
    known = _values(layers, len(where), "layers"), _values(matched, len(where), "matched")
    _draw_keypoints(axes, where, *known, num_layers)
    return figure


def plot_pair(
    image0: ArrayLike | Tensor,
    image1: ArrayLike | Tensor,
    features0: Features,
    features1: Features,
    matches: Matches,
    *,
    inliers: ArrayLike | Tensor | None = None,
    num_layers: int | None = None,
    title: str | None = None,
) -> Figure:
    """One pair whole: its matches as in `plot_matches`, and below them all keypoints as in `plot_keypoints`.

    `features0`, `features1` and `matches` hold one pair; the images may be resized since. `inliers` (M,) bool is in
    the order of `matches.pairs()`, `num_layers` the depth of the matcher. The title is followed by a summary.
    """
    if not len(features0) == len(features1) == len(matches) == 1:
        raise InputError(f"got {len(features0)} and {len(features1)} images, {len(matches)} pairs; expected one pair")
    pairs, pruned_at = _array(matches.pairs()), (matches.pruned_at0, matches.pruned_at1)
    is_inlier = _values(inliers, len(pairs), "inliers")
    views = _side_by_side(image0, image1)
    points = _keypoints(features0, views[0]), _keypoints(features1, views[1])
    counts = [len(p) for p in points]
    summary = _summary(matches, counts, is_inlier, num_layers)
    figure, (top, bottom) = _new_figure(views, rows=2, title=f"{title}\n{summary}" if title else summary)
    ends = [p[pairs[:, view]] for view, p in enumerate(points)]
    _draw_matches(top, views, ends, is_inlier, _array(matches.pair_scores()), max_lines=150)

    placed = np.concatenate([view.place(p) for view, p in zip(views, points, strict=True)])
    matched = np.concatenate([np.isin(np.arange(count), pairs[:, view]) for view, count in enumerate(counts)])
    left = [_array(at)[0, :count] for at, count in zip(pruned_at, counts, strict=True) if at is not None]
    _draw_keypoints(bottom, placed, np.concatenate(left) if len(left) == 2 else None, matched, num_layers)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as PNG, PDF or SVG, by the suffix of `path`, whole or not at all.

    Raises InputError for another suffix, and where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}; a figure is written as one of {', '.join(SUFFIXES)}")
    with write_atomically(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:].lower())
    return path


# ------------------------------------------------------------------------------------------------- drawing


def _draw_matches(
    axes: Axes,
    views: Sequence[_View],
    ends: Sequence[NDArray[Any]],
    inliers: NDArray[Any] | None,
    scores: NDArray[Any] | None,
    max_lines: int,
) -> None:
    from matplotlib.collections import LineCollection

    count = len(ends[0])
    starts, stops = (view.place(points) for view, points in zip(views, ends, strict=True))
    groups = [("matches", np.ones(count, dtype=bool), _BLUE, "disc", "-")]
    if inliers is not None:
        inlier = inliers.astype(bool)
        groups = [("inliers", inlier, _GREEN, "disc", "-"), ("outliers", ~inlier, _RED, "cross", (0, (4, 2.5)))]
    handles = []
    for name, chosen, colour, kind, dashes in groups:
        index = np.flatnonzero(chosen)
        budget = round(max_lines * max(len(index) / max(count, max_lines), 0.25))  # a few outliers are worth seeing
        drawn = index[_spread(ends[0][index], None if scores is None else scores[index], budget)]
        above = 1 - len(index) / max(count, 1)  # the smaller group lies on top
        segments = list(np.stack([starts[drawn], stops[drawn]], axis=1))
        lines = LineCollection(segments, colors=colour, linestyles=[dashes], alpha=0.8, label=name)
        axes.add_collection(lines, autolim=False)
        lines.set(zorder=1 + above, linewidth=0.7 + 0.5 * above)
        axes.plot(*np.concatenate([starts[index], stops[index]]).T, **_look(kind, colour), label=name, zorder=2 + above)
        text = f"{len(index)} {name}" + (f", {len(drawn)} drawn" if len(drawn) < len(index) else "")
        handles.append((text, _look(kind, colour) | {"linestyle": dashes}))
    _legend(axes, handles)


def _draw_keypoints(
    axes: Axes,
    points: NDArray[Any],
    layers: NDArray[Any] | None,
    matched: NDArray[Any] | None,
    num_layers: int | None,
) -> None:
    from matplotlib import colormaps

    has_match = np.zeros(len(points), dtype=bool) if matched is None else matched.astype(bool)
    stop = 1 if layers is None else int(layers.max(initial=1))
    layer = np.full(len(points), stop) if layers is None else layers.clip(1)
    early, depth = (layer < stop) & ~has_match, max(stop, num_layers or 1)
    states = [
        ("left early", "cross", early),
        ("not matched", "ring", ~early & ~has_match),
        ("matched", "disc", has_match),
    ]
    if matched is None:
        states = [states[0], ("keypoints" if layers is None else "stayed", "disc", ~early)]
    colours = [_BLUE] if layers is None else list(colormaps["turbo"](np.linspace(0.1, 0.88, depth)))
    handles = []
    for name, kind, chosen in states if layers is not None else states[1:]:
        for k, colour in enumerate(colours, start=1):
            axes.plot(*points[chosen & (layer == k)].T, **_look(kind, colour), label=name, zorder=2)
        handles.append((f"{int(chosen.sum())} {name}", _look(kind, "#667079" if layers is not None else _BLUE)))
    _legend(axes, handles)
    if layers is not None:
        _layer_bar(axes, colours)


def _look(kind: str, colour: Any) -> dict[str, Any]:
    """How a disc, a ring or a cross is drawn: with a dark outline, so that it shows on any photo."""
    from matplotlib.patheffects import withStroke

    look = {"color": colour, "linestyle": "none", "marker": "x" if kind == "cross" else "o", "markersize": 3.2}
    if kind == "disc":
        return look | {"markeredgecolor": _DARK, "markeredgewidth": 0.4}
    return look | {
        "markerfacecolor": "none",
        "markeredgewidth": 0.9,
        "path_effects": [withStroke(linewidth=1.9, foreground=_DARK)],
    }


def _legend(axes: Axes, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One line of text in the strip over the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            label=text,
            **look | {"markersize": 6, "markeredgewidth": 1.2, "linewidth": 1.6, "path_effects": None},
        )
        for text, look in entries
    ]
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, axes.get_position().y1)}
    style: dict[str, Any] = {"ncols": len(handles), "frameon": False, "fontsize": 10, "borderaxespad": 0.3}
    _figure_of(axes).legend(handles=handles, **where, **style)


def _layer_bar(axes: Axes, colours: Sequence[Any]) -> None:
    """The colour of every layer, at the right end of the strip over the axes."""
    from matplotlib.colors import ListedColormap

    figure, top = _figure_of(axes), axes.get_position().y1
    width_in, height_in = figure.get_size_inches()
    place = 1 - 3.1 / width_in, top + 0.21 / height_in, 3.0 / width_in, 0.11 / height_in
    bar = figure.add_axes(place, label="layers")
    depth = len(colours)
    bar.imshow([range(depth)], cmap=ListedColormap(colours), aspect="auto", extent=(0.5, depth + 0.5, 0, 1))
    bar.set(xticks=range(1, depth + 1), yticks=[])
    bar.tick_params(labelsize=8, length=0, pad=2)
    bar.set_ylabel("left after layer", rotation=0, ha="right", va="center", fontsize=10)


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


# ------------------------------------------------------------------------------------------------- layout


def _new_figure(views: Sequence[_View], *, rows: int, title: str | None) -> tuple[Figure, list[Axes]]:
    """Rows of axes that show the views, a strip over each for its legend, and a title."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "viz") from error
    right, height = views[-1].right, views[0].height
    row_width_in = min(max(_ROW_IN[1] * right / height, _ROW_IN[0]), _WIDTH_IN[1])
    row_in = min(max(row_width_in * height / right, _ROW_IN[0]), _ROW_IN[1])  # so a very thin image is shown thicker
    width_in = max(row_width_in, _WIDTH_IN[0]) + 2 * _MARGIN_IN
    title_lines = title.splitlines() if title else []
    title_in = 0.7 * _STRIP_IN * len(title_lines)
    height_in = title_in + rows * (_STRIP_IN + row_in) + _MARGIN_IN
    native_dpi = max(view.width / (view.right - view.shift) for view in views) * right / row_width_in
    figure = Figure(figsize=(width_in, height_in), dpi=min(max(native_dpi, _DPI[0]), _DPI[1]), facecolor="white")
    for i, line in enumerate(title_lines):
        size = min(11.0, 110 * width_in / len(line))  # pt, so that a long line still fits
        top = 1 - (i + 0.75) * title_in / len(title_lines) / height_in
        figure.text(0.5, top, line, ha="center", va="center", fontsize=size, fontweight="normal" if i else "bold")
    all_axes = []
    for row in range(rows):
        bottom_in = height_in - title_in - (row + 1) * (_STRIP_IN + row_in)
        left_in = (width_in - row_width_in) / 2
        axes = figure.add_axes(
            (left_in / width_in, bottom_in / height_in, row_width_in / width_in, row_in / height_in), label=f"row {row}"
        )
        for view in views:
            extent = (view.shift - 0.5, view.right - 0.5, height - 0.5, -0.5)
            axes.imshow(view.picture, extent=extent, aspect="auto", interpolation="antialiased")
        axes.set(xlim=(-0.5, right - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_axis_off()
        all_axes.append(axes)
    return figure, all_axes


def _side_by_side(image0: ArrayLike | Tensor, image1: ArrayLike | Tensor) -> list[_View]:
    """View 1 to the right of view 0, scaled to its height."""
    view0, view1 = _View(*_picture(image0)), _View(*_picture(image1))
    scale = view0.height / view1.height
    gap = 0.01 * (view0.width + view1.width * scale)
    return [view0, view1._replace(scale=scale, shift=view0.width + gap)]


def _spread(points: NDArray[Any], scores: NDArray[Any] | None, count: int) -> NDArray[np.int64]:
    """Indices of `count` points spread evenly: the best of every cell of a grid, then the second best, and so on."""
    if count >= len(points):
        return np.arange(len(points))
    order = np.arange(len(points)) if scores is None else np.argsort(-scores, kind="stable")
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(np.sqrt((high - low).prod() / count), (high - low).max() / count, 1e-6)
    cells = ((points[order] - low) / side).astype(int)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    by_cell = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[by_cell], cell[by_cell])
    rank = np.empty(len(points), dtype=int)
    rank[by_cell] = np.arange(len(points)) - first
    return order[np.argsort(rank, kind="stable")[:count]]


def _summary(matches: Matches, counts: Sequence[int], inliers: NDArray[Any] | None, num_layers: int | None) -> str:
    parts = [f"{counts[0]} and {counts[1]} keypoints", f"{len(matches.pairs())} matches"]
    if inliers is not None:
        share = f" ({inliers.mean():.0%})" if len(inliers) else ""
        parts.append(f"{int(inliers.sum())} inliers{share}")
    if matches.stop_layer is not None:
        parts.append(f"stopped after layer {int(matches.stop_layer)}" + (f" of {num_layers}" if num_layers else ""))
    return f"{matches.matcher}: " + ", ".join(parts)


# ------------------------------------------------------------------------------------------------- input


def _picture(image: ArrayLike | Tensor) -> tuple[NDArray[np.uint8], int, int]:
    """(H, W, 3) uint8 for drawing, and the width and height of what came."""
    pixels = _array(image)
    if isinstance(image, Tensor) and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise InputError(
            f"image has shape {tuple(np.shape(image))}; expected a tensor (3, H, W) or (1, H, W), or an array "
            "(H, W, 3) or (H, W)"
        )
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InputError(f"image has numbers of type {pixels.dtype}; expected uint8, or floats in [0, 1]")
        pixels = (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    width, height = picture.size
    picture = picture.reduce(max(1, max(width, height) // _LONGEST_PX))
    return np.asarray(Image.blend(picture, picture.convert("L").convert("RGB"), _FADE)), width, height


def _array(values: ArrayLike | Tensor) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype.itemsize == 2 else values.numpy()  # numpy knows no bfloat16
    return np.asarray(values)


def _points(points: ArrayLike | Tensor, name: str) -> NDArray[np.float64]:
    array = _array(points)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"{name} has shape {array.shape}; expected (N, 2)")
    return array.astype(np.float64)


def _keypoints(features: Features, view: _View) -> NDArray[np.float64]:
    """Keypoints of one image, in px of the perhaps resized image of the view."""
    scale = np.array([view.width, view.height]) / _array(features.image_size)[0]
    return (_points(features[0].keypoints[0], "keypoints") + 0.5) * scale - 0.5


def _values(values: ArrayLike | Tensor | None, count: int, name: str) -> NDArray[Any] | None:
    if values is None:
        return None
    array = _array(values)
    if array.shape != (count,):
        raise InputError(f"{name} has shape {array.shape}; expected ({count},)")
    return array
