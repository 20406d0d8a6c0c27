"""What `isinglass tune` found: accuracy against time of every setting, and the one to take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = "isinglass tune 1"
PLOT_SIZE = 60, 14  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The options of LightGlue's Config that trade accuracy for time."""

    depth_confidence: float | None
    width_confidence: float | None
    filter_threshold: float

    @property
    def adaptivity(self) -> tuple[float | None, float | None]:
        """What decides the work: filtering costs nothing."""
        return self.depth_confidence, self.width_confidence

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one setting on some pairs; AUC in points of 100.

    match_ms        mean over pairs; relative_time is that over the full model's
    lost            AUC points, full model minus this one
    lost_interval   95 % bootstrap interval of that, paired; None = not computed, or of too few pairs
    """

    match_ms: float
    relative_time: float
    auc: float
    lost: float
    lost_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting on the pairs to choose on (here) and on those held out; on_front = none is faster and better here."""

    setting: Setting
    here: Figures
    held_out: Figures
    on_front: bool
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result. `str` is for people, `as_dict` for JSON; the first of the trials is the full model."""

    benchmark: str
    protocol: str
    judged_by: str
    budget: float  # AUC points
    matcher: str
    weights: str
    options: Mapping[str, Any]  # of the pipeline
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    num_pairs: tuple[int, int]  # to choose on, held out
    own: Setting  # that the weights come with
    trials: tuple[Trial, ...]
    problems: tuple[str, ...] = ()

    @property
    def chosen(self) -> Trial:
        """The fastest within the budget, on the pairs to choose on."""
        return next(one for one in self.trials if one.is_chosen)

    @property
    def is_certain(self) -> bool:
        """Whether the held-out pairs, too, say that the budget is kept: the whole interval lies within it."""
        interval = self.chosen.held_out.lost_interval
        return interval is not None and interval[1] <= self.budget

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {"schema": SCHEMA, **asdict(self), "chosen": asdict(self.chosen.setting), "certain": self.is_certain}
        return json.loads(json.dumps(values))

    def __str__(self) -> str:
        full, own = self.trials[0], next(one for one in self.trials if one.setting == self.own)
        shown = [one for one in self.trials if one.on_front or one.is_chosen or one in (full, own)]
        shown.sort(key=lambda one: (one.here.relative_time, -one.here.auc))
        lines = [
            f"{self.matcher} on {self.benchmark} ({self.protocol})",
            f"{self.judged_by}",
            f"{self.num_pairs[0]} pairs to choose on, {self.num_pairs[1]} held out; at most {self.budget:g} AUC points "
            f"may be lost. The full model takes {full.here.match_ms:.0f} ms a pair",
            *(f"not used: {problem}" for problem in self.problems),
            "",
            *_table(shown, full, own),
            "",
            *_plot(self.trials),
            "",
            *self._verdict(),
        ]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        one = self.chosen.held_out
        interval = "too few pairs for an interval"
        if one.lost_interval is not None:
            interval = "95 % interval {:+.2f} to {:+.2f}".format(*one.lost_interval)
        lines = [
            f"chosen: {self.chosen.setting}",
            f"  on the held-out pairs {1 / one.relative_time:.2f} times as fast as the full model, "
            f"with {one.lost:+.2f} AUC points lost ({interval})",
        ]
        if one.lost > self.budget:
            lines.append(
                f"  that is MORE than the budget of {self.budget:g}: choose on more pairs, or a smaller budget"
            )
        elif not self.is_certain:
            why = "there are too few pairs" if one.lost_interval is None else "the interval goes beyond the budget"
            lines.append(f"  not certain that the budget of {self.budget:g} is kept: {why}. Choose on more pairs")
        if self.chosen is self.trials[0]:
            lines.append("  nothing faster keeps the budget")
        lines.append(f"  use: LightGlue.pretrained({self.matcher!r}, {self.chosen.setting})")
        return lines


def _table(trials: Sequence[Trial], full: Trial, own: Trial) -> list[str]:
    lines = [
        f"  {'depth':>6}{'width':>7}{'filter':>8}{'time':>7}{'AUC':>7}{'lost':>7}  | {'time':>5}{'lost':>7}  held out"
    ]
    for one in trials:
        setting, here, there = one.setting, one.here, one.held_out
        columns = (
            f"{'*' if one.is_chosen else ' '} {_or_off(setting.depth_confidence):>6}"
            f"{_or_off(setting.width_confidence):>7}{setting.filter_threshold:>8g}"
            f"{here.relative_time:>7.2f}{here.auc:>7.1f}{here.lost:>+7.2f}  | "
            f"{there.relative_time:>5.2f}{there.lost:>+7.2f}  "
        )
        interval = "[{:+.2f}, {:+.2f}]".format(*there.lost_interval) if there.lost_interval else ""
        notes = [interval, "full model" if one is full else "", "the weights' own" if one is own else ""]
        lines.append(columns + "  ".join(note for note in notes if note))
    return [line.rstrip() for line in lines]


def _plot(trials: Sequence[Trial]) -> list[str]:
    """AUC upwards, time to the right, on the pairs to choose on."""
    columns, rows = PLOT_SIZE
    times, areas = [one.here.relative_time for one in trials], [one.here.auc for one in trials]
    left, right, low, high = min(times), max(times), min(areas), max(areas)
    cells = [[" "] * columns for _ in range(rows)]

    def place(one: Trial, mark: str) -> None:
        x = (one.here.relative_time - left) / ((right - left) or 1)
        y = (high - one.here.auc) / ((high - low) or 1)
        cells[round(y * (rows - 1))][round(x * (columns - 1))] = mark

    for mark, which in (
        (".", trials),
        ("o", [one for one in trials if one.on_front]),
        ("F", trials[:1]),
        ("*", [one for one in trials if one.is_chosen]),
    ):
        for one in which:
            place(one, mark)
    labels = {0: f"{high:.1f}", rows - 1: f"{low:.1f}"}
    return [
        "   AUC   * chosen   F full model   o no other is both as fast and as accurate   . others",
        *(f"{labels.get(i, ''):>6} |{''.join(row).rstrip()}" for i, row in enumerate(cells)),
        f"{'':>6} +{'-' * columns}",
        f"{'':>8}{left:<8.2f}{'time, full model = 1':^{columns - 16}}{right:>8.2f}",
    ]


def _or_off(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"
