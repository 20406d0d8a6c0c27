"""The weighted direct linear transform: exact models, what weights do, what is not determined, a slow twin."""

from __future__ import annotations

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.geometry.dlt import weighted_dlt
from isinglass.geometry.two_view import apply_homography

HOMOGRAPHY = np.array([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]])
OTHER = np.array([[1.2, 0.1, -80.0], [-0.1, 0.8, 50.0], [-1e-4, 2e-4, 1.0]])
SQUARE = np.array([[0.0, 0], [100, 0], [100, 100], [0, 100]])


def matches(count, seed=0, homography=HOMOGRAPHY, noise_px=0.0):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, [640, 480], (count, 2))
    return points, apply_homography(homography, points) + noise_px * rng.normal(size=(count, 2))


def twin(points0, points1, weights):
    """Textbook: one row of A after the other, the eigenvector of A^T W A of the least eigenvalue."""
    moves = []
    for points in (points0, points1):
        centre = sum(w * p for w, p in zip(weights, points, strict=True)) / sum(weights)
        distances = [w * np.hypot(*(p - centre)) for w, p in zip(weights, points, strict=True)]
        s = np.sqrt(2) / (sum(distances) / sum(weights))
        moves.append(np.array([[s, 0, -s * centre[0]], [0, s, -s * centre[1]], [0, 0, 1]]))
    normal = np.zeros((9, 9))
    for p0, p1, w in zip(points0, points1, weights, strict=True):
        x, y, _ = moves[0] @ [*p0, 1]
        u, v, _ = moves[1] @ [*p1, 1]
        for row in ([x, y, 1, 0, 0, 0, -u * x, -u * y, -u], [0, 0, 0, x, y, 1, -v * x, -v * y, -v]):
            normal += w * np.outer(row, row)
    matrix = np.linalg.inv(moves[1]) @ np.linalg.eigh(normal)[1][:, 0].reshape(3, 3) @ moves[0]
    return matrix / matrix[2, 2]


@pytest.mark.parametrize("count", [4, 5, 200])
def test_an_exact_homography_is_recovered_whatever_the_weights(count):
    points0, points1 = matches(count)
    for weights in (None, np.full(count, 0.3), np.random.default_rng(1).uniform(0.01, 1, count)):
        assert np.allclose(weighted_dlt(points0, points1, weights), HOMOGRAPHY, rtol=1e-7, atol=1e-9)
    assert np.allclose(weighted_dlt(SQUARE, SQUARE + np.array([5, -3])), [[1, 0, 5], [0, 1, -3], [0, 0, 1]])


def test_float32_points_far_from_the_origin_do_no_harm():
    points0, points1 = matches(50)
    found = weighted_dlt((points0 + 1e4).astype(np.float32), points1.astype(np.float32))
    assert np.abs(apply_homography(found, points0 + 1e4) - points1).max() < 0.02


def test_it_equals_the_textbook():
    points0, points1 = matches(40, noise_px=3)
    weights = np.random.default_rng(2).uniform(0, 1, 40)
    found = weighted_dlt(points0, points1, weights)
    assert np.allclose(found, twin(points0, points1, weights), rtol=1e-6, atol=1e-9)
    assert not np.allclose(found, weighted_dlt(points0, points1), rtol=1e-3)


def test_weight_0_is_to_leave_a_match_out():
    points0, points1 = matches(30, noise_px=2)
    points1[::3] += 500  # wild
    weights = np.random.default_rng(3).uniform(0.1, 1, 30)
    weights[::3] = 0
    kept = weights > 0
    expected = weighted_dlt(points0[kept], points1[kept], weights[kept])
    assert np.allclose(weighted_dlt(points0, points1, weights), expected, rtol=1e-12)
    assert not np.allclose(weighted_dlt(points0, points1), expected, rtol=1e-2)


def test_only_ratios_of_weights_matter_and_weight_2_is_twice_the_match():
    points0, points1 = matches(12, noise_px=2)
    weights = np.ones(12)
    weights[:4] = 2
    twice = weighted_dlt(np.concatenate([points0, points0[:4]]), np.concatenate([points1, points1[:4]]))
    for scale in (1, 1e-12, 1e12):
        assert np.allclose(weighted_dlt(points0, points1, scale * weights), twice, rtol=1e-9)


def test_weights_decide_between_two_planes():
    plane0, plane1 = matches(40), matches(40, seed=1, homography=OTHER)
    points0, points1 = (np.concatenate(both) for both in zip(plane0, plane1, strict=True))
    errors = []  # of the first plane's matches, as it gets more of the weight
    for share in (1e-5, 0.1, 0.5, 0.9, 1 - 1e-5):
        found = weighted_dlt(points0, points1, np.repeat([share, 1 - share], 40))
        errors.append(np.linalg.norm(apply_homography(found, plane0[0]) - plane0[1], axis=1).mean())
    assert errors == sorted(errors, reverse=True)
    assert np.allclose(weighted_dlt(points0, points1, np.repeat([1e-5, 1], 40)), OTHER, rtol=0.01, atol=1e-5)
    assert errors[2] > 20
    assert errors[-1] < 0.1


def test_opencv_finds_the_same_plane():
    cv2 = pytest.importorskip("cv2")
    points0, points1 = matches(100, noise_px=0.5)
    theirs, _ = cv2.findHomography(points0, points1, 0)  # least squares, refined
    found = weighted_dlt(points0, points1)
    assert np.abs(apply_homography(found, SQUARE) - apply_homography(theirs, SQUARE)).max() < 0.1


@pytest.mark.parametrize(
    ("points0", "points1"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (SQUARE[:3], SQUARE[:3]),
        (SQUARE[[0, 1, 2, 2]], SQUARE[[0, 1, 2, 2]]),  # three places
        (np.full((9, 2), 7.0), np.arange(18.0).reshape(9, 2) ** 2),  # one place
        (np.arange(9.0)[:, None] * [3, 1], np.arange(9.0)[:, None] * [1, 2]),  # a line
        ((np.arange(9)[:, None] * [0.3, 0.1]).astype(np.float32), np.arange(9)[:, None] * [1, 2]),  # up to rounding
        ([[0, 0], [1, 1], [2, 2], [0, 5]], [[0, 0], [1, 1], [2, 2], [0, 5]]),  # three of four on a line
        ([[0, 0], [1, 1], [2, 2], [0, 5]], SQUARE),  # fits a matrix that is no homography
    ],
)
def test_what_is_not_determined_is_none(points0, points1):
    assert weighted_dlt(points0, points1, np.ones(len(points0))) is None


def test_too_few_weights_are_too_few_matches():
    points0, points1 = matches(10)
    weights = np.zeros(10)
    assert weighted_dlt(points0, points1, weights) is None
    weights[:3] = 1
    assert weighted_dlt(points0, points1, weights) is None
    weights[3] = 1
    assert np.allclose(weighted_dlt(points0, points1, weights), HOMOGRAPHY, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_used_is_refused():
    points0, points1 = matches(6)
    for bad in ((points0[:5], points1, None), (points0, points1, np.ones(5)), (points0[:, 0], points1[:, 0], None)):
        with pytest.raises(InputError, match="expected \\(M, 2\\) twice"):
            weighted_dlt(*bad)
    for weights in (np.full(6, np.nan), np.full(6, np.inf), np.full(6, -1.0)):
        with pytest.raises(InputError, match="leave such matches out"):
            weighted_dlt(points0, points1, weights)
    with pytest.raises(InputError, match="NaN"):
        weighted_dlt(points0 * np.nan, points1)
