"""Areas under recall curves, errors of poses and homographies, precision and recall: by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.metrics import (
    IGNORED,
    UNMATCHABLE,
    auc,
    corner_error_px,
    match_counts,
    matching_score,
    mean_average_accuracy,
    pose_error_deg,
    precision,
    visible_area_error_px,
)

INF = math.inf


def turn(axis, degrees):
    """Rotation about an axis of length 1, by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


# --- AUC


@pytest.mark.parametrize(
    ("errors", "threshold", "area"),
    [
        ([0.0], 1, 1.0),  # right at once
        ([0.5], 1, 0.75),  # a triangle of base 0.5, then level
        ([2.0], 10, 0.1 + 0.8),
        ([1.0, 3.0], 5, (0.25 + (0.5 + 1) / 2 * 2 + 2) / 5),  # a triangle, a trapezoid, level
        ([1.0, INF], 5, (0.25 + 4 * 0.5) / 5),  # the failed pair counts
        ([1.0, 7.0], 5, (0.25 + 4 * 0.5) / 5),  # and so does a bad one
        ([0.5, 0.5], 1, 0.125 + 0.5),  # the curve rises straight up at the second
        ([INF, INF, INF], 5, 0.0),
        ([5.0], 5, 0.0),  # equal to the threshold is not below it
        ([5.0, 1.0], 5, (0.25 + 4 * 0.5) / 5),
        ([6.0], 5, 0.0),
    ],
)
def test_auc_by_hand(errors, threshold, area):
    assert auc(errors, [threshold]) == pytest.approx([area])


def test_auc_does_not_depend_on_the_order_and_each_threshold_stands_alone():
    errors = [7.0, INF, 0.3, 4.0, 1.0, 12.0]
    assert auc(errors, [5, 10, 20]) == auc(sorted(errors), [5, 10, 20]) == [auc(errors, [t])[0] for t in (5, 10, 20)]
    assert auc(errors, []) == []


def test_auc_is_the_area_under_the_steps_and_half_a_step_over_the_last_error():
    """The closed form of the docstring, and the definition integrated with a fine ruler."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 15, 400):
        errors = rng.exponential(6, count).round(1)  # with ties
        errors[rng.random(count) < 0.2] = INF
        for threshold, area in zip((5, 10, 20), auc(errors, (5, 10, 20)), strict=True):
            below = errors[errors < threshold]
            steps = np.maximum(0, 1 - errors / threshold).mean()
            assert area == pytest.approx(steps + below.max(initial=0) / (2 * count * threshold))
            assert 0 <= steps <= area <= steps + 1 / (2 * count)
            at = (np.arange(20_000) + 0.5) * threshold / 20_000
            knots = np.concatenate([[0], np.sort(below)])
            recall = np.interp(at, knots, np.arange(len(knots)) / count)
            assert area == pytest.approx(recall.mean(), abs=1e-3)


def test_auc_of_nothing_and_of_nonsense():
    assert all(map(math.isnan, auc([], [5, 10])))
    for errors in ([1.0, math.nan], [-1.0], [[1.0]]):
        with pytest.raises(InputError, match="inf for a failure"):
            auc(errors, [5])
    for threshold in (0, -1, math.nan):
        with pytest.raises(InputError, match="more than 0"):
            auc([1.0], [threshold])


def test_mean_average_accuracy_counts_errors_within_each_threshold():
    assert mean_average_accuracy([0.5, 1.0, 3.5, INF], [1, 2, 3, 4]) == pytest.approx((2 + 2 + 2 + 3) / 16)
    assert mean_average_accuracy([INF], range(1, 11)) == 0
    assert math.isnan(mean_average_accuracy([], [1]))


# --- errors of poses and homographies


@pytest.mark.parametrize("degrees", [0, 1e-5, 30, 90, 179.99999, 180])
def test_rotation_error_is_the_angle_between(degrees):
    for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1], np.array([1, 2, -2]) / 3):
        base = turn(np.array([2, -1, 2]) / 3, 77)
        for off in (turn(axis, degrees) @ base, base @ turn(axis, -degrees)):
            error, _ = pose_error_deg(off, [0, 0, 1], base, [0, 0, 1])
            assert error == pytest.approx(degrees, abs=2e-7)


@pytest.mark.parametrize(
    ("translation", "true_translation", "degrees"),
    [
        ([0, 0, 1], [0, 0, 1], 0),
        ([0, 0, 5], [0, 0, 0.1], 0),  # of any length
        ([0, 0, -1], [0, 0, 1], 0),  # opposite
        ([1, 0, 0], [0, 1, 0], 90),
        ([1, 1, 0], [1, 0, 0], 45),
        ([-1, 1, 0], [1, 0, 0], 45),  # 135, of either sign
        ([1, 1e-8, 0], [1, 0, 0], math.degrees(1e-8)),
        ([1, 2, 3], [0, 0, 0], 0),  # nothing to be wrong about
        ([0, 0, 0], [0, 0, 0], 0),
        ([0, 0, 0], [1, 2, 3], 90),
    ],
)
def test_translation_error_is_the_angle_of_the_directions_up_to_sign(translation, true_translation, degrees):
    rotation, error = pose_error_deg(np.eye(3), np.reshape(translation, (3, 1)), np.eye(3), true_translation)
    assert rotation == 0
    assert error == pytest.approx(degrees)


def test_pose_errors_equal_the_published_formulas():
    """arccos of the trace and of the dot product, as SuperGlue's code has them, away from where these are rounded."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        true, estimate = (turn(axis / np.linalg.norm(axis), rng.uniform(1, 179)) for axis in rng.normal(size=(2, 3)))
        t_true, t = rng.normal(size=(2, 3))
        rotation = math.degrees(math.acos((np.trace(estimate.T @ true) - 1) / 2))
        direction = math.degrees(math.acos(t @ t_true / np.linalg.norm(t) / np.linalg.norm(t_true)))
        expected = pytest.approx((rotation, min(direction, 180 - direction)), abs=1e-5)
        assert pose_error_deg(estimate, t, true, t_true) == expected


def test_a_failed_pose_is_infinitely_wrong():
    assert pose_error_deg(None, None, np.eye(3), [1, 0, 0]) == (INF, INF)
    assert pose_error_deg(np.eye(3), None, np.eye(3), [1, 0, 0]) == (INF, INF)


def test_corner_error_of_shifts_and_scales():
    width, height = 640, 480
    shift = np.array([[1, 0, 3], [0, 1, -4], [0, 0, 1.0]])
    assert corner_error_px(np.eye(3), np.eye(3), (width, height)) == 0
    assert corner_error_px(shift, np.eye(3), (width, height)) == pytest.approx(5)
    assert corner_error_px(-2 * shift, 7 * np.eye(3), (width, height)) == pytest.approx(5)  # scale of H means nothing
    # Twice the size about the image's centre: each corner moves by half a diagonal; about pixel (0, 0) the half pixel
    # of our convention shows.
    centre = np.array([[2, 0, -(width - 1) / 2], [0, 2, -(height - 1) / 2], [0, 0, 1]])
    assert corner_error_px(centre, np.eye(3), (width, height)) == pytest.approx(math.hypot(width, height) / 2)
    corners = [(-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)]
    expected = np.mean([math.hypot(*corner) for corner in corners])
    assert corner_error_px(np.diag([2, 2, 1]), np.eye(3), (width, height)) == pytest.approx(expected)


def test_corner_error_is_measured_in_view_1():
    """So it grows with view 1: in an image of half the size it is half."""
    true = np.array([[1.1, 0.1, 4], [-0.05, 0.9, 7], [1e-4, 5e-5, 1]])
    off = true + np.array([[0.01, 0, 3], [0, 0.02, 1], [0, 1e-5, 0]])
    half = np.diag([0.5, 0.5, 1])
    whole = corner_error_px(off, true, (300, 200))
    assert whole > 1
    assert corner_error_px(half @ off, half @ true, (300, 200)) == pytest.approx(whole / 2)
    assert corner_error_px(off @ half, true @ half, (300, 200)) != pytest.approx(whole)


def test_no_homography_or_corners_at_infinity_are_failures():
    to_infinity = np.array([[1, 0, 0], [0, 1, 0], [2, 0, 1.0]])  # x = -0.5
    for matrix in (None, np.zeros((3, 3)), np.full((3, 3), np.nan), to_infinity):
        assert corner_error_px(matrix, np.eye(3), (640, 480)) == INF


def shift(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def test_visible_area_error_of_shifts():
    """The same everywhere, so whatever is seen; a homography's own scale means nothing."""
    for true in (np.eye(3), shift(10, -7), 5 * shift(-30, 0)):
        for size1 in ((64, 48), (40, 90)):
            assert visible_area_error_px(shift(3, 4) @ true, true, (64, 48), size1) == pytest.approx(5)
            assert visible_area_error_px(-2 * shift(3, 4) @ true, true, (64, 48), size1) == pytest.approx(5)
            assert visible_area_error_px(true, true, (64, 48), size1) == 0


def test_visible_area_error_counts_only_pixels_that_view_1_sees():
    stretched = np.diag([2.0, 1, 1])  # pixel x is x too far
    assert visible_area_error_px(stretched, np.eye(3), (10, 4), (10, 4)) == pytest.approx(4.5)
    assert visible_area_error_px(stretched, np.eye(3), (10, 4), (6, 4)) == pytest.approx(2.5)  # pixels 0 to 5
    assert visible_area_error_px(stretched, np.eye(3), (10, 4), (6, 1)) == pytest.approx(2.5)
    assert visible_area_error_px(shift(-8, 0) @ stretched, shift(-8, 0), (10, 4), (6, 4)) == pytest.approx(8.5)  # 8, 9
    half = shift(0.5, 0)  # the middle of the last pixel comes to the edge of view 1, and is not in it
    assert visible_area_error_px(half @ stretched, half, (10, 4), (10, 4)) == pytest.approx(4)
    assert visible_area_error_px(shift(-0.5, 0) @ stretched, shift(-0.5, 0), (10, 4), (10, 4)) == pytest.approx(4.5)


def test_visible_area_error_equals_a_plain_loop():
    true = np.array([[1.1, 0.2, -6], [-0.1, 0.9, 3], [2e-3, -1e-3, 1]])
    off = true + np.array([[0.02, 0, 1], [0.01, -0.03, 0], [0, 1e-4, 0]])
    size0, size1, found = (40, 30), (33, 27), []
    for y in range(size0[1]):
        for x in range(size0[0]):
            (u, v, w), (a, b, c) = true @ [x, y, 1], off @ [x, y, 1]
            if -0.5 <= u / w < size1[0] - 0.5 and -0.5 <= v / w < size1[1] - 0.5:
                found.append(math.hypot(u / w - a / c, v / w - b / c))
    assert 300 < len(found) < 40 * 30
    assert visible_area_error_px(off, true, size0, size1) == pytest.approx(np.mean(found))


def test_views_that_do_not_overlap_and_no_homography_are_failures():
    assert visible_area_error_px(np.eye(3), shift(64, 0), (64, 48), (64, 48)) == INF
    assert visible_area_error_px(np.eye(3), shift(63, 0), (64, 48), (64, 48)) == pytest.approx(63)
    for matrix in (None, np.zeros((3, 3)), np.full((3, 3), np.nan), np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0.0]])):
        assert visible_area_error_px(matrix, np.eye(3), (64, 48), (64, 48)) == INF


# --- precision and recall


def test_precision_and_matching_score():
    assert precision([True, False, True, True]) == 0.75
    assert precision(np.array([1, 0], np.int8)) == 0.5
    assert math.isnan(precision([]))
    with pytest.raises(InputError, match="unknown"):
        precision(np.array([1, -1, 0], np.int8))
    assert matching_score(3, 12) == 0.25
    assert matching_score(0, 0) == 0


def test_ignored_points_count_neither_way():
    none = -1
    rows = [  # the match, the truth
        (4, 4),  # right
        (5, 6),  # wrong partner
        (none, 7),  # missed
        (8, UNMATCHABLE),  # should not be matched
        (none, UNMATCHABLE),  # rightly left alone
        (9, IGNORED),
        (none, IGNORED),
    ]
    counts = match_counts(*np.array(rows).T)
    assert (counts.correct, counts.predicted, counts.matchable) == (1, 3, 3)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == pytest.approx(1 / 3)


def test_counts_equal_a_plain_loop():
    rng = np.random.default_rng(5)
    predicted, true = rng.integers(-1, 4, 500), rng.integers(-2, 4, 500)
    correct = wrong = missed = 0
    for one, truth in zip(predicted.tolist(), true.tolist(), strict=True):
        if truth == IGNORED:
            continue
        correct += one == truth and one >= 0
        wrong += one >= 0 and one != truth
        missed += truth >= 0 and one != truth
    counts = match_counts(predicted, true)
    assert (counts.precision, counts.recall) == (correct / (correct + wrong), correct / (correct + missed))


def test_counts_of_nothing():
    counts = match_counts([], [])
    assert math.isnan(counts.precision)
    assert math.isnan(counts.recall)
    assert match_counts([-1, -1], [0, 1]).recall == 0
    with pytest.raises(InputError, match="shapes"):
        match_counts([0, 1], [0])
