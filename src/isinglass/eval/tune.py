"""`isinglass tune`: the depth, width and filter thresholds of LightGlue for a data set, a machine and a budget.

Every pair is matched with every setting, one after the other, so that whatever slows the machine down slows all of
them. The fastest setting that loses at most the budget is chosen on one half of the pairs; what it loses and saves is
reported on the other half, because the best of many settings on some pairs is worse on others.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isinglass.cache import FeatureCache, matching_key
from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError
from isinglass.eval.calibration import halves
from isinglass.eval.evaluate import SOLVERS, solver_error
from isinglass.eval.runs import machine, versions
from isinglass.eval.trade_off import Figures, Setting, Trial, Tuning
from isinglass.files import SavedMatches, read_if_whole, read_signed_json, write_signed_json
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.metrics import auc, bootstrap_interval
from isinglass.pipeline import MatchResult, Pipeline
from isinglass.types import Matches

AUC_AT = {"homography": 5.0, "pose": 10.0}  # px, or degrees

Judge = Callable[[EvalPair, SavedMatches], float]  # the error of a pair: px or degrees, inf = failed
Progress = Callable[[Iterable["Outcome"], int], Iterable["Outcome"]]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is tried, and how it is judged. Raises InputError on values that make no sense.

    budget       AUC points (of 100) that may be lost against all layers with all keypoints
    solver       and its `threshold_px`, in the units of `isinglass.eval.evaluate`
    auc_at       px or degrees; None = 5 px of homographies, 10 degrees of poses
    depths       depth_confidence: share of confident keypoints to stop at; None = never
    widths       width_confidence: keypoints less matchable than 1 - this leave; None = none
    filters      filter_threshold: least score of a match
    repeats      of each match, whose median is its time
    seed         of the solver, the halves and the bootstrap

    The matcher's own values are always tried too. Weights whose own depth_confidence is None have no trained heads to
    stop by; then `depths` are not tried.
    """

    budget: float = 0.5
    solver: str = "poselib"
    threshold_px: float = 1.0
    auc_at: float | None = None
    depths: tuple[float | None, ...] = (None, 0.95, 0.9, 0.8)
    widths: tuple[float | None, ...] = (None, 0.99, 0.95, 0.9)
    filters: tuple[float, ...] = (0.05, 0.1, 0.2)
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 100:
            raise InputError(f"the budget is {self.budget} AUC points; expected 0 (lose nothing) to under 100")
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats}; expected at least 1")
        for name in ("depths", "widths", "filters"):
            for value in getattr(self, name):
                if not (0 <= value <= 1 if value is not None else name != "filters"):
                    raise InputError(f"{name} has {value}; expected shares in [0, 1]")

    def settings(self, own: LightGlueConfig) -> list[Setting]:
        """All that are tried with weights whose options are `own`: first the full model, then the weights' own."""
        depths = {own.depth_confidence, *(self.depths if own.depth_confidence is not None else ()), None}
        widths = {own.width_confidence, *self.widths, None}
        own_setting = _own(own)
        full = replace(own_setting, depth_confidence=None, width_confidence=None)
        rest = [
            Setting(depth_confidence=depth, width_confidence=width, filter_threshold=threshold)
            for depth in _descending(depths)
            for width in _descending(widths)
            for threshold in sorted({own.filter_threshold, *self.filters})
        ]
        return list(dict.fromkeys([full, own_setting, *rest]))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What every setting, in their order, made of one pair; `problem` instead where it could not be matched."""

    name: str
    errors: tuple[float, ...] = ()  # px or degrees; inf = failed
    match_ms: tuple[float, ...] = ()  # median of the repeats
    problem: str | None = field(default=None)


def tune(
    benchmark: Benchmark,
    pipeline: Pipeline,
    folder: Path,
    search: Search | None = None,
    *,
    judge: Judge | None = None,
    progress: Progress = lambda items, count: items,
) -> Tuning:
    """Measure, choose, and write the result to <folder>/tune-<benchmark>-<matcher>.json.

    A run that was killed goes on where it was. `judge` gives the error of a pair instead of the solver of `search`;
    what it said is kept under its name. Raises InputError where the matcher is no LightGlue, the solver is unknown,
    the benchmark has neither homographies nor poses, too few pairs can be used, or the budget decides nothing.
    """
    search = search or Search()
    if benchmark.task not in AUC_AT:
        raise InputError(
            f"{benchmark.name} is of task {benchmark.task!r}; tune takes AUCs of homographies or poses. Tune on a "
            "benchmark of those, such as hpatches or scannet1500"
        )
    outcomes = list(progress(measure(benchmark, pipeline, folder, search, judge=judge), len(benchmark.pairs)))
    matcher = _lightglue(pipeline)
    trials, sizes = compare(
        search.settings(matcher.config), outcomes, replace(search, auc_at=search.auc_at or AUC_AT[benchmark.task])
    )
    result = Tuning(
        benchmark=benchmark.name,
        protocol=benchmark.protocol,
        judged_by=_judged_by(search, benchmark.task, judge),
        budget=search.budget,
        matcher=matcher.name,
        weights=matcher.weights_id,
        options=asdict(pipeline.options),
        machine=machine(),
        versions=versions(),
        num_pairs=sizes,
        own=_own(matcher.config),
        trials=tuple(trials),
        problems=(*benchmark.problems, *(f"{one.name}: {one.problem}" for one in outcomes if one.problem)),
    )
    write_signed_json(folder / f"tune-{benchmark.name}-{matcher.name}.json", result.as_dict())
    return result


def measure(
    benchmark: Benchmark, pipeline: Pipeline, folder: Path, search: Search, *, judge: Judge | None = None
) -> Iterator[Outcome]:
    """One outcome a pair, in order; from `folder` where an earlier run on this machine left it."""
    matcher = _lightglue(pipeline)
    if search.solver not in (known := SOLVERS[benchmark.task]):
        raise InputError(f"there is no solver {search.solver!r} for a {benchmark.task}; there are {', '.join(known)}")
    settings = search.settings(matcher.config)
    key = matching_key(pipeline), search.solver, search.threshold_px, search.repeats, search.seed, settings
    folder_of_run = folder / "tune" / _hash(*key, _judge_name(judge), machine(), versions())
    judge = judge or functools.partial(_solver_error, search=search)
    cache = FeatureCache(pipeline, folder / "features")
    for pair in benchmark.pairs:
        try:
            file = folder_of_run / f"{_hash(repr(pair), cache.key(pair.image0), cache.key(pair.image1))}.json"
            yield _earlier(file) or _measure_pair(pair, cache, settings, judge, search.repeats, file)
        except InputError as error:
            yield Outcome(name=pair.name, problem=str(error))


def compare(
    settings: Sequence[Setting], outcomes: Iterable[Outcome], search: Search
) -> tuple[list[Trial], tuple[int, int]]:
    """All settings on both halves of the pairs, the first setting being the full model; and the halves' sizes.

    Exactly one is chosen. Raises InputError as `tune` does.
    """
    outcomes = list(outcomes)
    usable = [one for one in outcomes if one.problem is None]
    if len(usable) < 4:
        problems = "".join(f"; {one.name}: {one.problem}" for one in outcomes if one.problem)
        raise InputError(f"{len(usable)} pairs could be used, expected 4 at least, to choose on and to check{problems}")
    first = halves([one.name for one in usable], search.seed)
    errors_PS, times_PS = (np.array([getattr(one, name) for one in usable]) for name in ("errors", "match_ms"))
    here, there = (_Half(errors_PS[half], times_PS[half], search) for half in (first, ~first))
    full = here.auc(0)
    if not search.budget < full:
        raise InputError(
            f"the full model has {full:.1f} AUC points, so a budget of {search.budget:g} decides nothing: any setting "
            "would do. Give a smaller budget, a larger threshold of the error, or pairs that the model can match"
        )
    figures = [here.figures(i) for i in range(len(settings))]
    on_front = [not any(_better(other, one) for other in figures) for one in figures]
    within = [i for i, one in enumerate(figures) if one.lost <= search.budget]  # the full model is, at least
    chosen = min(within, key=lambda i: (figures[i].relative_time, -figures[i].auc))
    trials = []
    for i, setting in enumerate(settings):
        shown = on_front[i] or i == chosen
        trial = Trial(
            setting=setting,
            here=figures[i],
            held_out=there.figures(i, with_interval=shown),
            on_front=on_front[i],
            is_chosen=i == chosen,
        )
        trials.append(trial)
    return trials, (int(first.sum()), int((~first).sum()))


@dataclass(frozen=True)
class _Half:
    """Errors and times (P, S) of half of the pairs by setting."""

    errors_PS: NDArray[np.float64]
    times_PS: NDArray[np.float64]
    search: Search

    def auc(self, setting: int) -> float:
        return self._area(self.errors_PS[:, setting])

    def figures(self, setting: int, *, with_interval: bool = False) -> Figures:
        own, full = self.errors_PS[:, setting], self.errors_PS[:, 0]
        interval = None
        if with_interval:
            low, high = bootstrap_interval(full, own, self._area, seed=self.search.seed)
            interval = None if math.isnan(low) else (low, high)
        return Figures(
            match_ms=float(self.times_PS[:, setting].mean()),
            relative_time=float(self.times_PS[:, setting].sum() / self.times_PS[:, 0].sum()),
            auc=self._area(own),
            lost=self._area(full) - self._area(own),
            lost_interval=interval,
        )

    def _area(self, errors_P: NDArray[np.float64]) -> float:
        assert self.search.auc_at is not None
        return 100 * auc(errors_P, [self.search.auc_at])[0]


def _better(one: Figures, other: Figures) -> bool:
    """At least as good in both time and AUC, and better in one."""
    as_good = one.relative_time <= other.relative_time and one.auc >= other.auc
    return as_good and (one.relative_time < other.relative_time or one.auc > other.auc)


# --- one pair


def _measure_pair(
    pair: EvalPair, cache: FeatureCache, settings: Sequence[Setting], judge: Judge, repeats: int, file: Path
) -> Outcome:
    pipeline = cache.pipeline
    features0 = cache.get(pair.image0, turns=(pair.turns0,))
    candidates = cache.get(pair.image1, turns=[(pair.turns1 + turn) % 4 for turn in pipeline.turns])
    result = pipeline.match_features(features0, [candidates])[0]  # chooses the turn, and warms up
    found, times_ms = _match(result, pipeline, settings, repeats)
    errors = [judge(pair, _saved(result, one)) for one in found]
    outcome = Outcome(name=pair.name, errors=tuple(errors), match_ms=tuple(times_ms))
    written = {**asdict(outcome), "errors": [None if math.isinf(error) else error for error in errors]}
    write_signed_json(file, written, indent=None)
    return outcome


def _match(
    result: MatchResult, pipeline: Pipeline, settings: Sequence[Setting], repeats: int
) -> tuple[list[Matches], list[float]]:
    """Matches and time in ms of each setting. Those that differ in the filter alone are matched once."""
    least = min(setting.filter_threshold for setting in settings)
    own = _lightglue(pipeline)
    models = {
        setting.adaptivity: with_options(
            own,
            depth_confidence=setting.depth_confidence,
            width_confidence=setting.width_confidence,
            filter_threshold=least,
        )
        for setting in settings
    }
    order, found = list(models), {}
    times_ms: dict[Any, list[float]] = {which: [] for which in order}
    for repeat in range(repeats):
        for which in (*order[repeat % len(order) :], *order[: repeat % len(order)]):
            with pipeline.timed("tune"):
                found[which] = models[which].match_many([result.features0], [result.features1])[0]
            times_ms[which].append(pipeline.timings_ms.pop("tune"))
    matches = [_filtered(found[setting.adaptivity], setting.filter_threshold) for setting in settings]
    return matches, [median(times_ms[setting.adaptivity]) for setting in settings]


def with_options(matcher: LightGlue, **options: Any) -> LightGlue:
    """The same weights, not copied, with other options; for those that do not change the network's shape."""
    twin = copy.copy(matcher)
    twin.config = replace(matcher.config, **options)
    return twin


def _filtered(matches: Matches, threshold: float) -> Matches:
    return replace(matches, indices=torch.where(matches.scores > threshold, matches.indices, -1))


def _saved(result: MatchResult, matches: Matches) -> SavedMatches:
    sizes = [one.image_size[0].long().tolist() for one in (result.features0, result.features1)]
    return SavedMatches(
        matches=matches.to("cpu"),
        keypoints0=result.features0.keypoints[0].cpu(),
        keypoints1=result.features1.keypoints[0].cpu(),
        image_size0=(sizes[0][0], sizes[0][1]),
        image_size1=(sizes[1][0], sizes[1][1]),
        signature=result.features0.signature,
    )


def _earlier(file: Path) -> Outcome | None:
    """What an earlier run wrote, unless it is not there or damaged."""
    try:
        if (values := read_if_whole(file, read_signed_json)) is None:
            return None
        errors = tuple(math.inf if error is None else float(error) for error in values["errors"])
        return Outcome(name=values["name"], errors=errors, match_ms=tuple(map(float, values["match_ms"])))
    except (ValueError, KeyError, TypeError):
        return None


# --- what is tuned, and by what


def _lightglue(pipeline: Pipeline) -> LightGlue:
    matcher = pipeline.matcher
    if not isinstance(matcher, LightGlue):
        raise InputError(f"the matcher is {matcher.name!r}, which has no adaptive settings; tune is for LightGlue")
    if not pipeline.options.adaptive:
        raise InputError("the pipeline was made with adaptive=False; tune needs the matcher's own adaptive settings")
    return matcher


def _own(config: LightGlueConfig) -> Setting:
    return Setting(
        depth_confidence=config.depth_confidence,
        width_confidence=config.width_confidence,
        filter_threshold=config.filter_threshold,
    )


def _solver_error(pair: EvalPair, saved: SavedMatches, search: Search) -> float:
    if pair.homography is None and (pair.pose is None or pair.camera0 is None or pair.camera1 is None):
        raise InputError("neither its homography nor its pose is known")
    return solver_error(pair, saved, search.solver, search.threshold_px, search.seed)


def _judge_name(judge: Judge | None) -> str:
    return "solver" if judge is None else getattr(judge, "__qualname__", type(judge).__qualname__)


def _judged_by(search: Search, task: str, judge: Judge | None) -> str:
    at = search.auc_at or AUC_AT[task]
    unit = "px" if task == "homography" else "degrees"
    how = f"{search.solver}, inliers within {search.threshold_px:g} px" if judge is None else _judge_name(judge)
    return f"AUC at {at:g} {unit} of {task} errors by {how}"


def _descending(values: Iterable[float | None]) -> list[float | None]:
    """None first, then from careful to bold."""
    return sorted(values, key=lambda value: -math.inf if value is None else -value)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
