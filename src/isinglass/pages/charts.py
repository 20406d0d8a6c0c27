"""What a figure of a report is, and how it becomes SVG whose colours are those of the page, light or dark.

matplotlib writes colours as hex digits. So figures are drawn in made-up colours, one for each colour of the page's
style sheet, and the digits are replaced by its variables.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isinglass.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, CARD = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0a0c0{i}" for i in range(1, 9))
STEPS = tuple(f"#0a0d0{i}" for i in range(1, 4))  # of an ordered scale: easy, medium, hard
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", RULE: "rule", CARD: "card"},
    **{colour: f"s{i}" for i, colour in enumerate(SERIES, start=1)},
    **{colour: f"o{i}" for i, colour in enumerate(STEPS, start=1)},
}
_DASHES = ((), (6, 2), (2, 1.6), (7, 2, 1.5, 2))
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))
_SIZE_IN = (5.0, 3.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One entry of a legend. `number` says which series it is: its colour, and its dashes or its marker."""

    text: str
    number: int = 0
    value: str = ""
    kind: str = "line"  # or "marker", "step" (of an ordered scale), "none" (a reference line)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chart:
    """One figure of a report, or, without `figure`, the reason in `note` why there is none."""

    title: str
    note: str
    figure: Figure | None = None
    keys: tuple[Key, ...] = ()


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Empty axes in the page's colours. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "viz") from error
    figure = Figure(figsize=_SIZE_IN, facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(xlabel, color=MUTED, fontsize=10)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=10)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=10, length=0, which="both")
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    return figure, axes


def line_style(number: int) -> dict[str, Any]:
    """Of series `number`: colours repeat after eight, and dashes tell series apart without colour."""
    dashes = _DASHES[number % len(_DASHES)]
    return {
        "color": SERIES[number % len(SERIES)],
        "linewidth": 1.8,
        "linestyle": (0, dashes) if dashes else "-",
        "solid_capstyle": "round",
    }


def marker_style(number: int) -> dict[str, Any]:
    """Of series `number`: markers tell series apart without colour."""
    marker = _MARKERS[number % len(_MARKERS)][0]
    look = {"marker": marker, "markersize": 7.0, "markeredgecolor": CARD, "markeredgewidth": 1.2}
    return {"color": SERIES[number % len(SERIES)], "linewidth": 1.4, **look}


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element for a page whose style sheet has the colours; `label` is read aloud."""
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#0a0[bcd]0\d", lambda found: f"var(--{_VARIABLES[found.group()]})", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the family is the page's
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def legend(keys: Sequence[Key]) -> str:
    """The entries as HTML, with what lines and markers look like in the figure."""
    return "".join(
        f'<span class="key">{_swatch(key)}{html.escape(key.text)}'
        + (f" <b>{html.escape(key.value)}</b>" if key.value else "")
        + "</span>"
        for key in keys
    )


def _swatch(key: Key) -> str:
    colour = f"var(--s{key.number % len(SERIES) + 1})"
    if key.kind == "marker":
        return f'<i style="color:{colour}">{_MARKERS[key.number % len(_MARKERS)][1]}</i>'
    if key.kind == "step":
        return f'<i style="color:var(--o{key.number + 1})">■</i>'
    if key.kind == "none":
        colour, dashes = "var(--muted)", "2 2"
    else:
        dashes = " ".join(str(dash * 1.8) for dash in _DASHES[key.number % len(_DASHES)])
    line = f'<line x1="1" y1="5" x2="25" y2="5" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
    return f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'
