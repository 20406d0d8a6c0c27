"""Isotonic regression against a brute-force twin; what a fit makes of scores that are, and are not, probabilities."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.eval.calibration import MAX_KNOTS, fit, fit_calibrations, halves, isotonic, write_calibrations
from isinglass.eval.runs import Run
from isinglass.kernels.calibration import Calibration
from isinglass.metrics import expected_calibration_error

GRID = torch.linspace(0, 1, 501, dtype=torch.float64)


def judged(probability_of, count=40_000, pairs=40, seed=0):
    """Scores, mostly near 1 as a matcher's are, and matches that are right with `probability_of`(score)."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2.0, 0.7, size=count)
    correct = (rng.random(count) < probability_of(scores)).astype(np.int8)
    return scores, correct, rng.integers(pairs, size=count)


def twin(values, weights):
    """The least squares over all ways to cut the values into runs of one level each, whose levels rise."""
    best, best_loss = None, np.inf
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        run = np.concatenate([[0], np.cumsum(cuts)])
        level = np.bincount(run, values * weights) / np.bincount(run, weights)
        loss = (weights * (values - level[run]) ** 2).sum()
        if (np.diff(level) >= 0).all() and loss < best_loss:
            best, best_loss = level[run], loss
    return best


@pytest.mark.parametrize("seed", range(20))
def test_isotonic_is_the_best_of_all_ways_to_pool(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.random(9).round(1), rng.integers(1, 6, size=9)
    np.testing.assert_allclose(isotonic(values, weights), twin(values, weights), atol=1e-12)


def test_isotonic_by_hand():
    np.testing.assert_allclose(isotonic([0.0, 1.0, 0.0, 1.0], [1, 1, 3, 1]), [0.0, 0.25, 0.25, 1.0])
    np.testing.assert_allclose(isotonic([3.0, 2.0, 1.0], [1, 1, 1]), 2.0)
    assert isotonic([], []).shape == (0,)


def test_probabilities_stay_as_they_are():
    found = fit(*judged(lambda s: s), fitted_on="x")
    inside = (GRID > 0.1) & (GRID < 0.99)
    assert (found.apply(GRID) - GRID)[inside].abs().max() < 0.08
    assert (found.apply(GRID) - GRID)[inside].abs().mean() < 0.02
    assert found.ece_before < 0.015
    assert found.ece_after < 0.015


@pytest.mark.parametrize(
    "truth",
    [
        lambda s: s**3,  # too sure of itself
        np.sqrt,  # not sure enough
        lambda s: np.where(s < 0.6, 0.2, 0.7),  # two levels
        lambda s: 0.5 + 0 * s,  # scores that say nothing
    ],
)
def test_scores_become_what_they_are_worth(truth):
    found = fit(*judged(truth), fitted_on="x")
    assert found.ece_before > 0.05
    assert found.ece_after < 0.015
    probability = found.apply(GRID).numpy()
    assert (np.diff(probability) >= 0).all()
    away = (np.abs(GRID.numpy() - 0.6) > 0.02) & (GRID.numpy() > 0.1) & (GRID.numpy() < 0.99)
    assert np.abs(probability - truth(GRID.numpy()))[away].mean() < 0.03
    other, correct, _ = judged(truth, seed=7)  # neither half has seen these
    assert expected_calibration_error(found.apply(torch.from_numpy(other)).numpy(), correct) < 0.02


def test_scores_that_fall_with_the_truth_become_one_level():
    found = fit(*judged(lambda s: 1 - 0.8 * s), fitted_on="x")
    probability = found.apply(GRID)
    assert probability.max() - probability.min() < 0.25
    assert (probability.diff() >= 0).all()


def test_few_knots_however_many_scores_and_ties():
    scores, correct, pairs = judged(lambda s: s)
    assert len(fit(scores, correct, pairs, fitted_on="x").knots_score) <= MAX_KNOTS
    tied = fit(np.round(scores, 1), correct, pairs, fitted_on="x")
    assert len(tied.knots_score) <= 11
    few = fit([0.3, 0.9, 0.3, 0.9], [0, 1, 0, 1], ["a", "a", "b", "b"], fitted_on="x")
    assert few.knots_score == (0.3, 0.9)
    assert few.knots_probability == (0.0, 1.0)
    assert few.ece_after == 0
    assert few.ece_before == pytest.approx(0.2)
    assert few.num_matches == 2


def test_errors_are_of_the_half_that_was_not_fitted_on():
    """Pairs with other scores: the half that is fitted on is found, and the other's errors are the ones reported."""
    scores, correct, pairs = judged(lambda s: s**2, count=4000, pairs=10)
    found = fit(scores, correct, pairs, fitted_on="x")
    other = ~halves([str(i) for i in range(10)])[pairs]
    assert found.num_matches == (~other).sum()
    assert found.ece_before == expected_calibration_error(scores[other], correct[other])
    after = found.apply(torch.from_numpy(scores[other])).numpy()
    assert found.ece_after == expected_calibration_error(after, correct[other])
    again = correct.copy()
    again[other] = 1 - again[other]
    assert fit(scores, again, pairs, fitted_on="x").knots_probability == found.knots_probability


def test_unknown_matches_are_left_out():
    scores, correct, pairs = judged(lambda s: s**2, count=4000)
    unknown = np.full(1000, -1, np.int8)
    more = [np.concatenate([a, b]) for a, b in ((scores, np.ones(1000)), (correct, unknown), (pairs, pairs[:1000]))]
    assert fit(*more, fitted_on="x") == fit(scores, correct, pairs, fitted_on="x")


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        (([], [], []), "of 0 matches 0 are known"),
        (([0.5] * 4, [-1] * 4, [0, 0, 1, 1]), "of 4 matches 0 are known"),
        (([0.5] * 4, [1, 0, -1, -1], [0, 0, 1, 1]), "in 1 pairs"),
        (([0.5, 1.5], [1, 0], [0, 1]), r"outside \[0, 1\]"),
        (([0.5, float("nan")], [1, 0], [0, 1]), r"outside \[0, 1\]"),
        (([0.5, 0.4], [1, 0], [0]), r"\(2,\), \(2,\) and \(1,\)"),
    ],
)
def test_what_cannot_be_fitted(matches, message):
    with pytest.raises(InputError, match=message):
        fit(*matches, fitted_on="x")


# --- halves


def test_pairs_of_a_scene_stay_together():
    names = [f"scene{i}/1-{j}" for i in range(9) for j in range(2, 7)]
    first = halves(names).reshape(9, 5)
    assert (first == first[:, :1]).all()
    assert 4 <= first[:, 0].sum() <= 5
    assert not np.array_equal(halves(names, seed=1), halves(names))


@pytest.mark.parametrize("names", [[f"one/{i}" for i in range(11)], [f"pair {i}" for i in range(11)]])
def test_pairs_of_one_scene_and_of_none_are_split(names):
    assert halves(names).sum() in (5, 6)


# --- runs


def run_of(matcher, truth, seed, weights="0123456789ab", benchmark="one"):
    scores, correct, pair = judged(truth, count=3000, pairs=12, seed=seed)
    info = {"matcher": matcher, "weights": {matcher: weights}, "benchmark": {"name": benchmark, "protocol": "p 1"}}
    names = np.array([f"s{i // 2}/{i}" for i in range(12)])
    columns = {"match_scores": scores.astype(np.float32), "match_correct": correct, "match_pair": pair, "names": names}
    return Run(info=info, pairs=columns, path=Path("unused.json"))


def test_runs_are_fitted_by_matcher():
    runs = [
        run_of("a", lambda s: s**3, 0),
        run_of("a", lambda s: s**3, 1, benchmark="two"),
        run_of("b", np.sqrt, 2),
        run_of("nearest", np.sqrt, 3, weights="none"),
    ]
    found = fit_calibrations(runs)
    assert sorted(found) == ["a", "b"]
    assert found["a"].fitted_on == "one (p 1), two (p 1)"
    assert found["a"].num_matches > found["b"].num_matches
    middle = torch.tensor([0.7])
    assert found["a"].apply(middle) < 0.5
    assert found["b"].apply(middle) > 0.7
    assert all(one.ece_after < one.ece_before for one in found.values())


def test_two_runs_of_the_same_pairs_share_the_split():
    """A pair that was matched twice would otherwise be fitted on and held against itself."""
    run = run_of("a", lambda s: s, 0)
    once, twice = fit_calibrations([run])["a"], fit_calibrations([run, run])["a"]
    assert twice.num_matches == 2 * once.num_matches
    assert twice.ece_before == pytest.approx(once.ece_before, abs=1e-12)


def test_a_matcher_that_cannot_be_fitted_is_named():
    run = run_of("a", lambda s: s, 0)
    run.pairs["match_correct"][:] = -1
    with pytest.raises(InputError, match="'a' cannot be calibrated"):
        fit_calibrations([run])
    assert fit_calibrations([]) == {}


def test_the_file_of_calibrations(tmp_path):
    path = tmp_path / "calibrations.json"
    found = fit_calibrations([run_of("a", lambda s: s**3, 0), run_of("b", np.sqrt, 2)])
    path.write_text("{}")
    write_calibrations(path, found)
    other = fit(*judged(lambda s: s), fitted_on="later")
    write_calibrations(path, {"b": other})
    read = {name: Calibration.from_dict(values) for name, values in json.loads(path.read_text()).items()}
    assert read == {"a": found["a"], "b": other}
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds no calibrations"):
        write_calibrations(path, found)
