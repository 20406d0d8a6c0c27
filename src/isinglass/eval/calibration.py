"""Fitting what the scores of a matcher are worth: isotonic regression on judged matches, held against others.

Pairs are split in two: the map is fitted on one half, the calibration errors are those of the other. Pairs of one scene
stay together where there are several scenes, so that no image is on both sides.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError
from isinglass.eval.runs import Run
from isinglass.files import write_atomically
from isinglass.kernels.calibration import Calibration
from isinglass.metrics import MIN_PAIRS, expected_calibration_error

MAX_KNOTS = 64
MIN_SCENES = 4  # with fewer, pairs are split without regard to scenes

Floats = NDArray[np.float64]


def fit_calibrations(runs: Iterable[Run], *, seed: int = 0) -> dict[str, Calibration]:
    """By matcher's name, from the matches of all runs that it made, of which a pair is on one side always.

    Matchers without weights ("nearest") are left out: their scores mean something else for every extractor. What is
    right is what the benchmark's protocol says. Raises InputError as `fit` does, naming the matcher.
    """
    by_matcher: dict[str, list[Run]] = {}
    for run in runs:
        if run.info["weights"].get(run.info["matcher"], "none") != "none":
            by_matcher.setdefault(run.info["matcher"], []).append(run)
    fitted = {}
    for matcher, own in by_matcher.items():
        scores, correct = (
            np.concatenate([run.pairs[f"match_{name}"] for run in own]) for name in ("scores", "correct")
        )
        pairs = np.concatenate([_names(run)[run.pairs["match_pair"]] for run in own])
        sources = sorted({f"{run.info['benchmark']['name']} ({run.info['benchmark']['protocol']})" for run in own})
        try:
            fitted[matcher] = fit(scores, correct, pairs, fitted_on=", ".join(sources), seed=seed)
        except InputError as error:
            raise InputError(f"{matcher!r} cannot be calibrated: {error}") from error
    return fitted


def write_calibrations(path: Path, fitted: Mapping[str, Calibration]) -> None:
    """Put them into the JSON file `path`, by name; those of other matchers stay. Raises InputError if it is no such."""
    try:
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        known |= {name: one.as_dict() for name, one in fitted.items()}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} holds no calibrations ({error}); delete it, or name another file") from error
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def fit(scores: ArrayLike, correct: ArrayLike, pairs: ArrayLike, *, fitted_on: str, seed: int = 0) -> Calibration:
    """The map of one matcher.

    `scores` (M,) in [0, 1]; `correct` (M,) 1, 0, or -1 = not known, which are left out; `pairs` (M,) the name (or
    number) of each match's pair. Raises InputError unless two pairs at least have matches whose truth is known.
    """
    scores_M, correct_M, pairs_M = np.asarray(scores, np.float64), np.asarray(correct), np.asarray(pairs)
    if scores_M.ndim != 1 or not scores_M.shape == correct_M.shape == pairs_M.shape:
        shapes = f"{scores_M.shape}, {correct_M.shape} and {pairs_M.shape}"
        raise InputError(f"scores, correct and pairs have shapes {shapes}; expected (M,) three times")
    known_M = correct_M >= 0
    scores_M, correct_M, pairs_M = scores_M[known_M], correct_M[known_M], pairs_M[known_M]
    names, pair_M = np.unique(pairs_M, return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"of {len(known_M)} matches {len(scores_M)} are known to be right or wrong, in {len(names)} pairs; "
            "expected some in two pairs at least, one to fit on and one to hold it against. Evaluate more pairs"
        )
    if len(names) < MIN_PAIRS:
        warnings.warn(
            f"the calibration is fitted on matches of {len(names)} pairs, which say little about others; evaluate "
            f"{MIN_PAIRS} or more",
            stacklevel=2,
        )
    if not ((scores_M >= 0) & (scores_M <= 1)).all():
        raise InputError("scores are outside [0, 1] or NaN; expected those of `Matches.pair_scores`")
    fitting_M = halves(names.astype(str).tolist(), seed)[pair_M]
    knots_score, knots_probability = _knots(scores_M[fitting_M], correct_M[fitting_M] == 1)
    other, truth = scores_M[~fitting_M], correct_M[~fitting_M] == 1
    found = Calibration(
        knots_score=tuple(knots_score.tolist()),
        knots_probability=tuple(knots_probability.tolist()),
        fitted_on=fitted_on,
        ece_before=expected_calibration_error(other, truth),
        ece_after=0.0,
        num_matches=int(fitting_M.sum()),
    )
    after = expected_calibration_error(found.apply(torch.from_numpy(other)).numpy(), truth)
    return Calibration.from_dict({**found.as_dict(), "ece_after": after})


def halves(names: Sequence[str], seed: int = 0) -> NDArray[np.bool_]:
    """(P,) bool, True = in the first half of the pairs `names`, drawn by scene: what precedes the last "/" of a name.

    Each scene in turn goes to the smaller half. With fewer than MIN_SCENES scenes, pairs are drawn alone.
    """
    scenes = [name.rpartition("/")[0] or name for name in names]
    if len(set(scenes)) < MIN_SCENES:
        scenes = list(names)
    num_pairs, sizes = Counter(scenes), [0, 0]
    side: dict[str, int] = {}
    for scene in np.random.default_rng(seed).permutation(sorted(num_pairs)).tolist():
        side[scene] = int(sizes[1] < sizes[0])
        sizes[side[scene]] += num_pairs[scene]
    return np.array([side[scene] == 0 for scene in scenes], dtype=bool)


def isotonic(values: ArrayLike, weights: ArrayLike) -> Floats:
    """(K,) the never falling values nearest to `values` (K,) in weighted least squares, by pooling adjacent violators.

    Barlow et al., Statistical Inference under Order Restrictions, 1972; for probabilities Zadrozny and Elkan, KDD 2002.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many values
    for value, weight in zip(np.asarray(values, np.float64).tolist(), np.asarray(weights).tolist(), strict=True):
        mean, total, count = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            other, more, others = blocks.pop()
            mean, total, count = (mean * total + other * more) / (total + more), total + more, count + others
        blocks.append((mean, total, count))
    return np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks])


def _knots(scores: Floats, correct: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The isotonic fit, averaged in at most MAX_KNOTS runs of scores with about as many matches each."""
    score_K, place, count_K = np.unique(scores, return_inverse=True, return_counts=True)
    fitted_K = isotonic(np.bincount(place, correct) / count_K, count_K)
    middle = np.cumsum(count_K) - count_K / 2
    _, run_K = np.unique((middle / len(scores) * MAX_KNOTS).astype(int), return_inverse=True)
    total = np.bincount(run_K, count_K)
    knots_score, knots_value = (np.bincount(run_K, count_K * one) / total for one in (score_K, fitted_K))
    return knots_score, np.maximum.accumulate(knots_value.round(6)).clip(0, 1)


def _names(run: Run) -> NDArray[np.str_]:
    """Of the run's pairs, unlike those of other benchmarks."""
    benchmark = run.info["benchmark"]["name"].replace("/", "_")
    return np.array([f"{benchmark}:{name}" for name in run.pairs["names"].tolist()], dtype=str)
