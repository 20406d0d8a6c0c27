"""The page of a map: what came of it, seen from above and from the side, and photos with what the map knows in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from isinglass.datasets.pairs import Floats
from isinglass.errors import InputError, MissingExtra
from isinglass.images import read_image
from isinglass.pages.charts import CARD, INK, MUTED, Chart, new_axes
from isinglass.pages.page import Column, chart_grid, details, escape, facts, heading, table, write_page
from isinglass.sfm.colmap import Project, seen_in
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.summary import MapSummary

_PICTURES, _PICTURE_PX = 12, 300
_MOST_POINTS = 20_000  # drawn
_MOST_ROWS = 400  # of the match graph, and of tables
_CAMERAS, _SEEN, _UNSEEN = "#ff6a1a", (40, 220, 120), (150, 160, 170)
_TITLES = {
    "extract": "features",
    "retrieval": "vectors for retrieval",
    "pairs": "choice of pairs",
    "match": "matching",
    "database": "COLMAP's database",
    "verify": "two-view geometry",
    "reconstruct": "reconstruction",
    "page": "this page",
}


def write_map_page(page: Path, folder: Path, photos: Path, summary: MapSummary, told: Mapping[str, Any]) -> Path:
    """Write index.html of the map in `folder`; `told` are its options. Photos that are gone are left out.

    Raises WriteError where it cannot be written.
    """
    models = [read_model(folder / "model" / (str(i) if i else "")) for i in range(len(summary.models))]
    parts = [
        heading("Map", photos.resolve().name, _lead(summary)),
        _words(summary),
        _numbers(summary),
        "<h2>The map</h2>" + chart_grid(_views(models)) if models else "",
        "<h2>Photos</h2>" + _pictures(models[0], photos) if models else "",
        "<h2>Pairs and tracks</h2>" + chart_grid(_charts(folder, models)),
        "<h2>How it was made</h2>" + _stages(summary) + details("Options", facts(_flat(told))),
        _images(models, summary),
    ]
    return write_page(page, f"Map of {photos.resolve().name}", "\n".join(parts))


# ---- words and tables


def _lead(summary: MapSummary) -> str:
    if not summary.models:
        return f"<b>There is no model:</b> {escape(summary.reason)}."
    best = summary.models[0]
    share = 100 * best.images / summary.photos
    more = "" if len(summary.models) == 1 else f" {len(summary.models) - 1} more of other photos."
    return (
        f"<b>{best.images} of {summary.photos}</b> photos ({share:.0f} %) in one model of <b>{best.points:,}</b> "
        f"points, each seen in {best.track_length:.1f} photos; the mean error is {best.reprojection_error_px:.2f} px."
        f"{more}"
    )


def _words(summary: MapSummary) -> str:
    lines = [
        *(f"COLMAP: {text}" for text in summary.colmap),
        *summary.notes,
        *filter(None, (summary.frame, summary.turned)),
        *(f"{name}: {why}" for name, why in summary.problems.items()),
    ]
    if summary.models and summary.unregistered:
        shown = ", ".join(summary.unregistered[:20]) + (" ..." if len(summary.unregistered) > 20 else "")
        lines.append(f"{len(summary.unregistered)} photos are in no model: {shown}")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:50])
    return f'<ul class="note">{items}</ul>' if items else ""


def _numbers(summary: MapSummary) -> str:
    models = summary.models
    if not models:
        return ""
    return table(
        [
            Column(head="model", values=["model" + (f"/{i}" if i else "") for i in range(len(models))]),
            Column(head="photos", values=[one.images for one in models], digits=0),
            Column(head="points", values=[one.points for one in models], digits=0),
            Column(head="photos a point", values=[one.track_length for one in models], digits=2),
            Column(head="points a photo", values=[one.observations for one in models], digits=0),
            Column(head="reprojection error, px", values=[one.reprojection_error_px for one in models], digits=2),
        ]
    )


def _stages(summary: MapSummary) -> str:
    names = list(summary.seconds)
    return table(
        [
            Column(head="stage", values=[_TITLES.get(name, name) for name in names]),
            Column(head="seconds", values=[summary.seconds[name] for name in names], digits=1),
            Column(head="done", values=["earlier" if name in summary.reused else "in this run" for name in names]),
        ]
    )


def _images(models: Sequence[Any], summary: MapSummary) -> str:
    rows = [
        (image.name, "model" + (f"/{i}" if i else ""), image.num_points2D(), image.num_points3D)
        for i, model in enumerate(models)
        for image in sorted(model.images.values(), key=lambda one: one.name)
        if image.has_pose
    ]
    rows += [(name, "none", None, None) for name in summary.unregistered]
    shown = rows[:_MOST_ROWS]
    if not shown:
        return ""
    columns = [
        Column(head="photo", values=[row[0] for row in shown]),
        Column(head="model", values=[row[1] for row in shown]),
        Column(head="keypoints", values=[row[2] for row in shown], digits=0),
        Column(head="points seen", values=[row[3] for row in shown], digits=0),
    ]
    more = f"<p>and {len(rows) - len(shown)} more</p>" if len(rows) > len(shown) else ""
    return details(f"All {len(rows)} photos", table(columns) + more)


def _flat(told: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in told.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


# ---- figures


def _views(models: Sequence[Any]) -> list[Chart]:
    return [chart for i, model in enumerate(models[:3]) for chart in _views_of(model, f"model/{i}" if i else "model")]


def _views_of(model: Any, name: str) -> list[Chart]:
    """From above and from the side; up is where cameras have it on average."""
    images = sorted((one for one in model.images.values() if one.has_pose), key=lambda one: one.name)
    rotations = np.array([one.cam_from_world().rotation.matrix() for one in images])
    centres = np.array([one.projection_center() for one in images])
    to_map = _upright(rotations, centres)
    points = np.array([one.xyz for one in model.points3D.values()]).reshape(-1, 3)
    colours = np.array([one.color for one in model.points3D.values()]).reshape(-1, 3) / 255
    keep = np.random.default_rng(0).permutation(len(points))[:_MOST_POINTS]
    points, colours = points[keep], colours[keep]
    ends = centres + 0.05 * _extent(centres, points) * rotations[:, 2]
    charts = []
    for title, axes in (("from above", (0, 1)), ("from the side", (0, 2))):
        seen = [(values @ to_map.T)[:, axes] for values in (points, centres, ends)]
        note = "Points in their colours, cameras with where they look. Units are the map's own."
        charts.append(_chart(f"{name}, {title}", note, _draw_view, *seen, colours))
    return charts


def _upright(rotations: np.ndarray, centres: Floats) -> Floats:
    """(3, 3), whose rows are the map's main level direction, the other one, and up."""
    up = -rotations[:, 1].mean(axis=0)
    up /= max(np.linalg.norm(up), 1e-9)
    level = (centres - centres.mean(axis=0)) @ (np.eye(3) - np.outer(up, up))
    first = np.linalg.svd(level, full_matrices=True)[2][0]
    first -= up * (first @ up)
    first /= max(np.linalg.norm(first), 1e-9)
    return np.stack([first, np.cross(up, first), up])


def _extent(centres: Floats, points: Floats) -> float:
    values = np.concatenate([centres, points])
    low, high = np.percentile(values, [5, 95], axis=0)
    return float(np.linalg.norm(high - low))


def _draw_view(axes: Any, points: Floats, centres: Floats, ends: Floats, colours: Floats) -> None:
    axes.scatter(*points.T, s=1.2, c=colours, linewidths=0, rasterized=True)
    for centre, end in zip(centres, ends, strict=True):
        axes.plot(*np.stack([centre, end]).T, color=_CAMERAS, linewidth=1.0, alpha=0.8)
    axes.scatter(*centres.T, s=10, c=_CAMERAS, edgecolors=CARD, linewidths=0.4, zorder=3)
    low, high = np.percentile(np.concatenate([points, centres, centres]), [1, 99], axis=0)
    low, high = np.minimum(low, centres.min(axis=0)), np.maximum(high, centres.max(axis=0))
    margin = 0.05 * (high - low).max()
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axes.set_aspect("equal", adjustable="box")


def _charts(folder: Path, models: Sequence[Any]) -> list[Chart]:
    charts = []
    try:
        with Project(folder / "database.db", in_place=True) as project:
            charts.append(_match_graph(project))
    except InputError as error:
        charts.append(Chart(title="Match graph", note=str(error)))
    if models:
        lengths = [one.track.length() for one in models[0].points3D.values()]
        note = "How many points of the largest model are seen in so many photos."
        charts.append(_chart("Track lengths", note, _draw_lengths, lengths))
    return charts


def _match_graph(project: Project) -> Chart:
    names = sorted(project.names)[:_MOST_ROWS]
    if not names:
        return Chart(title="Match graph", note="There are no photos with keypoints.")
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for (one, other), count in project.inliers.items():
        if one in place and other in place:
            counts[place[one], place[other]] = counts[place[other], place[one]] = count
    note = "Matches of each pair that agree with a two-view geometry; photos in the order of their names."
    return _chart("Match graph", note, _draw_graph, counts)


def _draw_graph(axes: Any, counts: Floats) -> None:
    shown = np.ma.masked_less(counts, 1)
    drawn = axes.imshow(shown, cmap="viridis", interpolation="nearest", rasterized=True)
    axes.set(xlabel="photo", ylabel="photo")
    axes.grid(visible=False)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.85)
    bar.ax.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=9, length=0)
    bar.outline.set_visible(False)


def _draw_lengths(axes: Any, lengths: Sequence[int]) -> None:
    values, counts = np.unique(np.minimum(lengths, 30), return_counts=True)
    axes.bar(values, counts, color="#0a0c01", width=0.8)
    axes.set(xlabel="photos that see a point" + (" (30 = 30 or more)" if max(values) == 30 else ""), ylabel="points")


def _chart(title: str, note: str, draw: Any, *values: Any) -> Chart:
    """Without matplotlib a chart that says so."""
    try:
        figure, axes = new_axes("", "")
    except MissingExtra as error:
        return Chart(title=title, note=str(error))
    draw(axes, *values)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    return Chart(title=title, note=note, figure=figure)


# ---- photos


def _pictures(model: Any, photos: Path) -> str:
    """Some of the photos, evenly chosen, with their keypoints: those that see a point of the map, and others."""
    images = sorted((one for one in model.images.values() if one.has_pose), key=lambda one: one.name)
    places = np.unique(np.linspace(0, len(images) - 1, _PICTURES).round().astype(int))
    cards = []
    for image in (images[i] for i in places):
        try:
            picture = _picture(image, photos / image.name)
        except InputError:
            continue
        text = f"{image.name}: {image.num_points3D} of {image.num_points2D()} keypoints see a point"
        cards.append(
            f'<section class="card"><img src="data:image/jpeg;base64,{picture}" alt="{escape(text)}" '
            f'style="width:100%;border-radius:4px"><p class="note">{escape(text)}</p></section>'
        )
    style = "grid-template-columns:repeat(auto-fill,minmax(230px,1fr))"
    note = '<p class="note">Green: keypoints whose point in space is known. Grey: all others.</p>'
    return f'{note}<div class="charts" style="{style}">{"".join(cards)}</div>'


def _picture(image: Any, photo: Path) -> str:
    """A small JPEG in base64."""
    pixels = (255 * read_image(photo)).byte().permute(1, 2, 0).numpy()
    scale = min(_PICTURE_PX / max(pixels.shape[:2]), 1.0)
    size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    drawing = ImageDraw.Draw(small)
    keypoints, known = seen_in(image)
    for colour, chosen in ((_UNSEEN, ~known), (_SEEN, known)):
        for x, y in keypoints[chosen] * scale:
            drawing.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
