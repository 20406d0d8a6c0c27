"""The map from scores to probabilities: straight lines between knots, monotone, to and from JSON; and who uses it."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.kernels.calibration import Calibration, probabilities
from isinglass.pipeline import MatchResult
from isinglass.types import Matches
from isinglass.weights import calibration, records
from support import make_features

MAP = Calibration(
    knots_score=(0.2, 0.5, 0.9),
    knots_probability=(0.1, 0.1, 0.8),
    fitted_on="a test",
    ece_before=0.3,
    ece_after=0.02,
    num_matches=1000,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_between_knots_it_is_what_numpy_interpolates(dtype):
    scores = torch.rand(3, 50).to(dtype)
    found = MAP.apply(scores)
    expected = np.interp(scores.double().numpy(), MAP.knots_score, MAP.knots_probability)
    assert found.shape == scores.shape
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-7)


def test_by_hand():
    found = MAP.apply(torch.tensor([0.0, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.45, 0.8, 0.8]))


def test_higher_scores_never_get_lower_probabilities():
    found = MAP.apply(torch.linspace(0, 1, 1001))
    assert (found.diff() >= 0).all()
    assert found.diff().max() > 0


def test_one_knot_and_no_scores():
    one = replace(MAP, knots_score=(0.4,), knots_probability=(0.7,))
    torch.testing.assert_close(one.apply(torch.tensor([0.0, 0.4, 1.0])), torch.full((3,), 0.7))
    assert MAP.apply(torch.zeros(2, 0)).shape == (2, 0)


def test_json_and_back():
    assert Calibration.from_dict(json.loads(json.dumps(MAP.as_dict()))) == MAP


@pytest.mark.parametrize(
    "change",
    [
        {"knots_score": (), "knots_probability": ()},
        {"knots_score": (0.2, 0.5)},
        {"knots_score": (0.2, 0.2, 0.9)},
        {"knots_score": (0.2, float("nan"), 0.9)},
        {"knots_probability": (0.1, 0.05, 0.8)},
        {"knots_probability": (0.1, 0.2, 1.1)},
        {"knots_probability": (-0.1, 0.2, 0.5)},
        {"knots_probability": (0.1, float("nan"), 0.5)},
    ],
)
def test_a_map_that_is_none_is_refused(change):
    with pytest.raises(InputError, match="knots"):
        replace(MAP, **change)


def test_other_fields_are_refused():
    values = MAP.as_dict()
    del values["ece_after"]
    with pytest.raises(InputError, match="ece_after"):
        Calibration.from_dict(values)


def matches_by(matcher):
    indices = torch.tensor([[2, -1, 0, 1], [-1, -1, 3, -1]])
    return Matches(
        indices=indices, scores=torch.tensor([[0.7, 0.05, 0.9, 0.3], [0.0, 0.0, 0.6, 0.08]]), matcher=matcher
    )


def test_probabilities_of_matches(monkeypatch):
    monkeypatch.setattr("isinglass.kernels.calibration.calibration", {"known": MAP.as_dict()}.get)
    matches = matches_by("known")
    found = probabilities(matches)
    torch.testing.assert_close(found, torch.tensor([[0.45, 0, 0.8, 0.1], [0, 0, 0.275, 0]]))
    assert probabilities(matches_by("unknown")) is None


def test_a_result_has_probabilities_where_there_are_any(monkeypatch):
    views = {"features0": make_features(4), "features1": make_features(4, seed=1)}
    matches = Matches(indices=torch.tensor([[2, -1, 0, 1]]), scores=torch.tensor([[0.7, 0.05, 0.9, 0.3]]), matcher="m")
    result = MatchResult(**views, matches=matches)
    assert result.probabilities is None
    monkeypatch.setattr("isinglass.kernels.calibration.calibration", {"m": MAP.as_dict()}.get)
    torch.testing.assert_close(result.probabilities, torch.tensor([0.45, 0.8, 0.1]))


def test_what_is_shipped_can_be_used():
    """Every calibration in the package is a map that makes scores better on matches that it was not fitted on."""
    assert calibration("no such matcher") is None
    shipped = [Calibration.from_dict(known) for one in records() if (known := calibration(one.name))]
    for one in shipped:
        assert one.ece_after <= one.ece_before
        assert one.num_matches > 1000
        low, high = one.apply(torch.tensor([0.15, 0.99])).tolist()
        assert low < high


def test_the_shipped_maps_are_those_of_known_weights_and_help():
    """Each belongs to a record of a matcher, is monotone, and was found to bring scores nearer to what is right."""
    text = files("isinglass.weights").joinpath("calibrations.json").read_text("utf-8")
    shipped = {name: Calibration.from_dict(values) for name, values in json.loads(text).items()}
    matchers = {one.name for kind in ("LightGlue", "SuperGlue") for one in records(kind)}
    assert shipped and shipped.keys() <= matchers
    for one in shipped.values():
        assert one.ece_after < one.ece_before
        assert float(one.apply(torch.tensor([0.95]))) > float(one.apply(torch.tensor([0.2]))) + 0.2
