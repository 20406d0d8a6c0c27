"""Calibration error and bootstrap intervals, on synthetic data of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.metrics import auc, bootstrap_interval, expected_calibration_error, reliability

# --- calibration


def test_calibration_error_by_hand():
    scores = [0.95, 0.95, 0.95, 0.95, 0.25, 0.25]  # two bins of ten
    correct = [1, 1, 1, 0, 1, 0]
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.25)) / 6
    assert expected_calibration_error(scores, correct, bins=10) == pytest.approx(expected)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1
    assert math.isnan(expected_calibration_error([], []))


def test_errors_of_opposite_sign_in_one_bin_cancel():
    assert expected_calibration_error([0.5, 0.5], [1, 0], bins=1) == 0
    assert expected_calibration_error([0.2, 0.8], [1, 0], bins=1) == 0
    assert expected_calibration_error([0.2, 0.8], [1, 0], bins=2) == pytest.approx(0.8)


def test_bins_are_open_below_and_closed_above():
    diagram = reliability([0.0, 0.2, 0.2000001, 0.4, 1.0], [0, 1, 0, 0, 1], bins=5)
    assert diagram.count.tolist() == [2, 2, 0, 0, 1]
    assert diagram.confidence[:2] == pytest.approx([0.1, 0.30000005])
    assert diagram.accuracy[:2] == pytest.approx([0.5, 0])
    assert np.isnan(diagram.accuracy[2:4]).all()
    assert np.isnan(diagram.confidence[2:4]).all()
    assert (diagram.confidence[4], diagram.accuracy[4]) == (1, 1)


def test_calibrated_scores_have_little_error_and_others_what_they_are_off_by():
    rng = np.random.default_rng(0)
    count, bins = 40_000, 15
    scores = rng.random(count)
    calibrated = rng.random(count) < scores
    assert expected_calibration_error(scores, calibrated, bins) < 0.4 * math.sqrt(bins / count)
    # Right half the time whatever the score: the error is the mean of |score - 1/2| = 1/4.
    coins = rng.random(count) < 0.5
    assert expected_calibration_error(scores, coins, bins) == pytest.approx(0.25, abs=0.01)
    # Over-confident: right with probability score^2; the mean of s - s^2 is 1/6.
    boasts = rng.random(count) < scores**2
    assert expected_calibration_error(scores, boasts, bins) == pytest.approx(1 / 6, abs=0.01)
    # And calibrated again once the score is what it should be.
    assert expected_calibration_error(scores**2, boasts, bins) < 0.4 * math.sqrt(bins / count)


def test_reliability_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    scores, correct, bins = rng.random(300), rng.random(300) < 0.6, 7
    diagram = reliability(scores, correct, bins)
    total = 0.0
    for k in range(bins):
        inside = (scores > k / bins) & (scores <= (k + 1) / bins)
        assert diagram.count[k] == inside.sum()
        assert diagram.confidence[k] == pytest.approx(scores[inside].mean())
        assert diagram.accuracy[k] == pytest.approx(correct[inside].mean())
        total += inside.mean() * abs(scores[inside].mean() - correct[inside].mean())
    assert expected_calibration_error(scores, correct, bins) == pytest.approx(total)


def test_scores_that_are_no_probabilities_are_refused():
    for scores in ([1.5], [-0.1], [math.nan]):
        with pytest.raises(InputError, match="probabilities"):
            reliability(scores, [True])
    with pytest.raises(InputError, match="leave unknown ones out"):
        reliability([0.5, 0.5], np.array([1, -1], np.int8))
    with pytest.raises(InputError, match="shape"):
        reliability([0.5, 0.5], [True])


# --- bootstrap


def auc5(errors):
    return auc(errors, [5])[0]


def test_the_interval_of_a_mean_is_about_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, None, np.mean, samples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)
    narrow = bootstrap_interval(values, None, np.mean, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """A difference of 0.5 between two runs on the same 60 pairs, 200 times over: 95 % +- 4 standard deviations."""
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        hardness = rng.normal(0, 3, 60)
        a, b = hardness + rng.normal(0.5, 1, 60), hardness + rng.normal(0, 1, 60)
        low, high = bootstrap_interval(a, b, np.mean, samples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 200 * 0.95 - 4 * math.sqrt(200 * 0.95 * 0.05) <= covered <= 199


def test_pairing_takes_out_what_makes_pairs_hard():
    rng = np.random.default_rng(2)
    hardness = rng.exponential(5, 200)
    a, b = hardness, hardness * rng.uniform(0.9, 1.0, 200)
    low, high = bootstrap_interval(a, b, auc5, samples=300)
    assert low < high < 0
    assert low <= auc5(a) - auc5(b) <= high
    alone = bootstrap_interval(a, None, auc5, samples=300)
    assert high - low < (alone[1] - alone[0]) / 5


def test_equal_runs_differ_by_exactly_nothing():
    errors = np.append(np.random.default_rng(3).exponential(5, 50), [math.inf] * 5)
    assert bootstrap_interval(errors, errors.copy(), auc5, samples=100) == (0, 0)
    low, high = bootstrap_interval(errors, None, auc5, samples=100)
    assert low < auc5(errors) < high
    assert bootstrap_interval(np.full(20, 1.5), None, np.mean, samples=50) == (1.5, 1.5)


def test_a_seed_gives_one_interval_and_rows_stay_together():
    values = np.random.default_rng(4).normal(size=(30, 2))
    values[:, 1] = -values[:, 0]
    assert bootstrap_interval(values, None, np.sum, samples=50) == pytest.approx((0, 0))
    first = [bootstrap_interval(values[:, 0], None, np.mean, samples=50, seed=seed) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_what_cannot_be_drawn():
    for few in ([], [0.3], list(range(9))):  # an interval of one value has no width, and leaves out zero
        assert all(map(math.isnan, bootstrap_interval(few, None, np.mean)))
    assert not any(map(math.isnan, bootstrap_interval(range(10), None, np.mean)))
    with pytest.raises(InputError, match="same pairs"):
        bootstrap_interval([1, 2], [1], np.mean)
    for options in ({"level": 1.0}, {"level": 0.0}, {"samples": 0}):
        with pytest.raises(InputError, match="level"):
            bootstrap_interval([1, 2], None, np.mean, **options)
