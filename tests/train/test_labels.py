"""Labels under known maps: by hand, against the NumPy twin of evaluation, and under a swap of the views."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isinglass.train.batch import IGNORED, UNMATCHABLE
from isinglass.train.labels import Landing, landing_by_homography, targets

SIZE = (100, 80)
SHIFT = torch.tensor([[1.0, 0, 10], [0, 1, 5], [0, 0, 1]], dtype=torch.float64)


def labelled(points0, points1, homography=SHIFT):
    points0, points1 = (torch.tensor(points, dtype=torch.float32).reshape(-1, 2) for points in (points0, points1))
    forth = landing_by_homography(points0, homography, SIZE)
    back = landing_by_homography(points1, torch.linalg.inv(homography), SIZE)
    target0, target1 = targets(points0, points1, forth, back)
    return target0.tolist(), target1.tolist()


def test_by_hand():
    """One match, one 2.9 px off, one between the thresholds, one with nobody near, one that leaves the image."""
    points0 = [(20, 20), (40, 20), (60, 20), (20, 60), (95, 40)]
    points1 = [(30, 25), (52.9, 25), (74, 25), (5, 75)]
    target0, target1 = labelled(points0, points1)
    assert target0 == [0, 1, IGNORED, UNMATCHABLE, UNMATCHABLE]
    assert target1 == [0, 1, IGNORED, UNMATCHABLE]


def test_of_two_candidates_the_nearer_matches_and_the_other_is_ignored():
    assert labelled([(20, 20)], [(31, 25), (30.5, 25)]) == ([1], [IGNORED, 0])


@pytest.mark.parametrize(("points0", "points1"), [([], []), ([(20, 20)], []), ([], [(20, 20)])])
def test_no_keypoints_match_nothing(points0, points1):
    assert labelled(points0, points1) == ([UNMATCHABLE] * len(points0), [UNMATCHABLE] * len(points1))


def test_behind_the_horizon_is_hidden():
    beyond = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.02, 0, 1]], dtype=torch.float64)
    beyond[2, 0] = -0.02  # points with x > 50 are behind
    landing = landing_by_homography(torch.tensor([[10.0, 10], [60, 10]]), beyond, SIZE)
    assert landing.hidden_N.tolist() == [False, True]
    assert landing.point_N2[1].isnan().all()


def test_what_is_not_known_is_ignored():
    """Depth that is missing: no match, and no proof that there is none."""
    nowhere = Landing(torch.full((1, 2), torch.nan), torch.tensor([False]))
    hidden = Landing(torch.full((1, 2), torch.nan), torch.tensor([True]))
    points = torch.tensor([[10.0, 10]])
    assert [x.tolist() for x in targets(points, points, nowhere, hidden)] == [[IGNORED], [UNMATCHABLE]]


@given(seed=st.integers(0, 999), m=st.integers(1, 40), n=st.integers(1, 40))
def test_swapped_views_swap_labels_and_matches_are_mutual(seed, m, n):
    rng = np.random.default_rng(seed)
    points0, points1 = rng.uniform(0, 80, (m, 2)), rng.uniform(0, 80, (n, 2))
    homography = torch.eye(3, dtype=torch.float64) + torch.from_numpy(rng.normal(0, [0.1, 0.1, 4], (3, 3)))
    homography[2] = torch.tensor([0.0005, -0.0005, 1])
    target0, target1 = labelled(points0, points1, homography)
    assert (target1, target0) == labelled(points1, points0, torch.linalg.inv(homography))
    for i, j in enumerate(target0):
        assert j < 0 or target1[j] == i
