"""Where homographies take points, and how far matches are from a model: closed forms, and a slow twin."""

from __future__ import annotations

import numpy as np
import pytest

from isinglass.geometry.two_view import apply_homography, epipolar_error, transfer_error

HOMOGRAPHY = np.array([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]])


def test_a_homography_moves_points_as_written_out():
    x, y = 200.0, 100.0
    w = 2e-4 * x - 1e-4 * y + 1
    expected = [(0.9 * x - 0.2 * y + 30) / w, (0.15 * x + 1.1 * y - 12) / w]
    assert np.allclose(apply_homography(HOMOGRAPHY, [[x, y]]), [expected])
    assert np.allclose(apply_homography(-7 * HOMOGRAPHY, [[x, y]]), [expected])
    assert apply_homography(HOMOGRAPHY, np.zeros((0, 2))).shape == (0, 2)


def test_points_at_infinity_are_no_match():
    matrix = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])  # x = 100 goes to infinity
    points = np.array([[99.0, 0], [100, 5]])
    assert np.allclose(apply_homography(matrix, points)[0], [9900, 0])
    assert not np.isfinite(apply_homography(matrix, points)[1]).any()
    errors = transfer_error(matrix, points, [[9900.0, 0], [100, 5]])
    assert errors[0] == pytest.approx(0)
    assert errors[1] > 10
    assert np.isinf(transfer_error(np.full((3, 3), np.nan), points, points)).all()


def test_transfer_error_of_a_similarity_is_the_shortest_way_to_a_perfect_match():
    angle, scale, shift = 0.7, 3.0, np.array([5.0, -8.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    similarity = np.eye(3)
    similarity[:2, :2], similarity[:2, 2] = turn, shift
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 100, (20, 2))
    points1 = points0 @ turn.T + shift + rng.normal(0, 5, (20, 2))
    # Least squares over the view 0 point: min |u - x0|^2 + |T u + s - x1|^2.
    system = np.vstack([np.eye(2), turn])
    for error, x0, x1 in zip(transfer_error(similarity, points0, points1), points0, points1, strict=True):
        target = np.concatenate([x0, x1 - shift])
        best, *_ = np.linalg.lstsq(system, target, rcond=None)
        assert error == pytest.approx(np.linalg.norm(system @ best - target))


def test_errors_are_zero_for_perfect_matches_and_the_same_for_swapped_views():
    rng = np.random.default_rng(1)
    points0 = rng.uniform(0, 500, (50, 2))
    points1 = apply_homography(HOMOGRAPHY, points0)
    assert transfer_error(HOMOGRAPHY, points0, points1).max() < 1e-9
    moved = points1 + rng.normal(0, 3, points1.shape)
    assert np.allclose(
        transfer_error(HOMOGRAPHY, points0, moved), transfer_error(np.linalg.inv(HOMOGRAPHY), moved, points0)
    )
    fundamental = np.cross(np.eye(3), [0.3, 1.0, 0.01]) @ HOMOGRAPHY  # any epipole: x1 ~ H x0 fulfils it
    assert epipolar_error(fundamental, points0, points1).max() < 1e-9
    assert np.allclose(epipolar_error(fundamental, points0, moved), epipolar_error(fundamental.T, moved, points0))
    assert np.allclose(epipolar_error(5 * fundamental, points0, moved), epipolar_error(fundamental, points0, moved))


def test_epipolar_error_of_a_rectified_pair_is_the_share_of_the_vertical_shift():
    """Rows must agree: y1 - y0 = 0, so the match moves by (y1 - y0) / 2 in each view, sqrt(2) of that in both."""
    fundamental = np.array([[0, 0, 0], [0, 0, -1.0], [0, 1, 0]])
    points0 = np.array([[10.0, 20], [30, 40]])
    points1 = np.array([[400.0, 26], [-30, 40]])
    assert np.allclose(epipolar_error(fundamental, points0, points1), [6 / np.sqrt(2), 0])


def test_models_that_are_none_give_infinite_errors():
    points = np.array([[1.0, 2], [3, 4]])
    singular = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert np.isinf(transfer_error(singular, points, points)).all()
    assert np.isinf(epipolar_error(np.zeros((3, 3)), points, points)).all()
