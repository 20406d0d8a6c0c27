"""The page that reports are written on: one HTML file with its style inside, for any screen, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from isinglass.files import write_atomically
from isinglass.pages.charts import Chart, legend, to_svg

STYLE = Path(__file__).with_name("page.css")
Value = float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: text, or numbers of which the best is bold. None and NaN are shown as a dash."""

    head: str
    values: Sequence[Value]
    digits: int = 1
    scale: float = 1.0
    best: str = ""  # "high", "low", or "" for none
    over: str = ""  # a heading that neighbouring columns share
    numeric: bool = False  # text that is set as numbers are
    marks: Mapping[str, str] = field(default_factory=dict)  # text -> how it is coloured: "good" or "bad"


def escape(text: object) -> str:
    """Text for HTML."""
    return html.escape(str(text))


def document(title: str, body: str) -> str:
    """The whole file."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text('utf-8')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write_page(path: Path | str, title: str, body: str) -> Path:
    """Write it whole or not at all. Raises InputError where the file cannot be written."""
    path = Path(path)
    with write_atomically(path) as temporary:
        temporary.write_text(document(title, body), encoding="utf-8")
    return path


def heading(kind: str, title: str, lead: str) -> str:
    """The head of the page; `lead` is HTML."""
    return f'<header><p class="kind">{escape(kind)}</p><h1>{escape(title)}</h1><p class="lead">{lead}</p></header>'


def table(columns: Sequence[Column], *, sections: Sequence[str] = ()) -> str:
    """A table that scrolls sideways where the screen is narrow; its first column stays.

    `sections` has one text a row: where it changes, a line with it goes before the row.
    """
    count = len(columns[0].values)
    best = [_best(column) for column in columns]
    above = ""
    if any(column.over for column in columns):
        runs = [(over, len(list(run))) for over, run in groupby(columns, key=lambda column: column.over)]
        cells = (f'<th colspan="{span}"{_class("over" if over else "")}>{escape(over)}</th>' for over, span in runs)
        above = f"<tr>{''.join(cells)}</tr>"
    heads = "".join(f"<th{_class(_kind(column))}>{_wrappable(column.head)}</th>" for column in columns)
    rows = []
    for row in range(count):
        if sections and (not row or sections[row] != sections[row - 1]):
            text = f"<span>{escape(sections[row])}</span>"
            rows.append(f'<tr class="section"><th colspan="{len(columns)}">{text}</th></tr>')
        cells = [_cell(column, row, row in best[i]) for i, column in enumerate(columns[1:], start=1)]
        first = f'<th scope="row">{_wrappable(columns[0].values[row])}</th>'
        rows.append(f"<tr>{first}{''.join(cells)}</tr>")
    head, body = f"<thead>{above}<tr>{heads}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def details(summary: str, inner: str, *, is_open: bool = False) -> str:
    """A part that can be folded; `inner` is HTML."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{inner}</details>"


def chart_grid(charts: Sequence[Chart]) -> str:
    """The figures side by side where there is room, and below them a line for each one that was left out."""
    drawn = [_card(chart) for chart in charts if chart.figure is not None]
    absent = [chart for chart in charts if chart.figure is None]
    lines = "".join(f"<li><b>{escape(chart.title)}.</b> {escape(chart.note)}</li>" for chart in absent)
    return (f'<div class="charts">{"".join(drawn)}</div>' if drawn else "") + (
        f'<ul class="absent">{lines}</ul>' if lines else ""
    )


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and what they are, as a list of two columns."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def _card(chart: Chart) -> str:
    assert chart.figure is not None
    keys = f'<p class="keys">{legend(chart.keys)}</p>' if chart.keys else ""
    title, note = f"<h3>{escape(chart.title)}</h3>", f'<p class="note">{escape(chart.note)}</p>'
    return f'<section class="card">{title}{keys}{to_svg(chart.figure, chart.title)}{note}</section>'


def _cell(column: Column, row: int, is_best: bool) -> str:
    value = column.values[row]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '<td class="number">–</td>'
    if isinstance(value, str):
        return f"<td{_class(column.marks.get(value) or _kind(column))}>{_wrappable(value)}</td>"
    text = f"{value * column.scale:,.{column.digits}f}"
    return f'<td class="number">{f"<b>{text}</b>" if is_best else text}</td>'


def _best(column: Column) -> set[int]:
    """The rows whose number is the best, as far as is shown; none where all are alike."""
    shown = {
        row: round(value * column.scale, column.digits)
        for row, value in enumerate(column.values)
        if isinstance(value, float | int) and not math.isnan(value)
    }
    if not column.best or len(set(shown.values())) < 2:
        return set()
    top = max(shown.values()) if column.best == "high" else min(shown.values())
    return {row for row, value in shown.items() if value == top}


def _kind(column: Column) -> str:
    is_text = all(isinstance(value, str) for value in column.values if value is not None)
    return "" if is_text and not column.numeric else "number"


def _wrappable(text: object) -> str:
    """Long names may break after a plus sign."""
    return escape(text).replace("+", "+<wbr>")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
