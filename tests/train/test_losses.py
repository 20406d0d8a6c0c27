"""Losses by hand; what is ignored changes nothing; gradients go where they should."""

import math

import pytest
import torch

from isinglass.kernels.assignment import log_sinkhorn
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig, Prediction
from isinglass.train.batch import IGNORED, UNMATCHABLE
from isinglass.train.losses import confidence_loss, lightglue_loss, matches_of, superglue_loss
from isinglass.train.objective import Objective
from isinglass.train.recipes import recipe

TARGET = torch.tensor([[[1, UNMATCHABLE, IGNORED], [UNMATCHABLE, 0, UNMATCHABLE]]])


def prediction(log_p, logits, confidence=None):
    return Prediction(torch.tensor(log_p)[None], torch.tensor(logits)[None], confidence)


def test_lightglue_by_hand():
    log_p = [[-9.0, -0.5, -9.0], [-9.0, -9.0, -9.0], [-9.0, -9.0, -9.0]]
    logits = [[9.0, 1.0, 7.0], [-2.0, 9.0, 0.0]]
    one = prediction(log_p, logits)
    softplus = [math.log1p(math.exp(x)) for x in (1.0, -2.0, 0.0)]
    negative = (softplus[0] + (softplus[1] + softplus[2]) / 2) / 2
    found = lightglue_loss([one], TARGET)
    assert found["loss"].item() == pytest.approx(0.5 + negative)
    assert found["positive"].item() == pytest.approx(0.5) and found["negative"].item() == pytest.approx(negative)
    worse = prediction([[x - 1 for x in row] for row in log_p], logits)
    assert lightglue_loss([worse, one], TARGET)["loss"].item() == pytest.approx(1.0 + negative)  # the layers' mean


def test_superglue_by_hand():
    log_p = torch.full((1, 4, 4), -9.0)
    log_p[0, 0, 1], log_p[0, 1, 3], log_p[0, 3, 0], log_p[0, 3, 2] = -0.5, -1.0, -2.0, -3.0
    found = superglue_loss(log_p, TARGET)
    assert found["loss"].item() == pytest.approx(0.5 + (1.0 + 2.5) / 2)


def test_what_is_ignored_changes_nothing():
    log_p, logits = torch.randn(1, 3, 3), torch.randn(1, 2, 3)
    target = torch.tensor([[[1, IGNORED, IGNORED], [IGNORED, 0, IGNORED]]])
    before = lightglue_loss([Prediction(log_p, logits, None)], target)["loss"]
    changed = log_p.clone()
    changed[:, 1:], changed[:, 0, 2] = 5.0, 5.0
    assert lightglue_loss([Prediction(changed, logits + 3, None)], target)["loss"] == before


def test_a_pair_without_any_match_or_any_truth_is_finite():
    log_p, logits = torch.randn(2, 3, 3, requires_grad=True), torch.randn(2, 2, 3)
    target = torch.stack([torch.full((2, 3), UNMATCHABLE), torch.full((2, 3), IGNORED)])
    loss = lightglue_loss([Prediction(log_p, logits, None)], target)["loss"]
    loss.backward()
    assert loss.isfinite() and (log_p.grad == 0).all()


def test_confidence_learns_whether_the_match_is_final_and_nothing_else_does():
    torch.manual_seed(0)
    model = LightGlue(LightGlueConfig(input_size=32, width=32, heads=2, layers=3))
    predictions = model(
        torch.rand(2, 2, 9, 2) * 50, torch.randn(2, 2, 9, 32), torch.full((2, 2, 2), 50), every_layer=True
    )
    found = confidence_loss(predictions, 0.0)
    finals = matches_of(predictions[-1].log_assignment_BNN, 0.0)
    by_hand = [
        torch.nn.functional.binary_cross_entropy(
            one.confidence_B2N.sigmoid(), (matches_of(one.log_assignment_BNN, 0.0) == finals).float()
        )
        for one in predictions[:-1]
    ]
    torch.testing.assert_close(found["loss"], torch.stack(by_hand).mean())
    found["loss"].backward()
    learnt = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert learnt == {"confidences"}


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_through_sinkhorn_is_that_of_differences(masked):
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    bin_score = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    masks = (torch.tensor([[True, True, False]] * 2), torch.tensor([[True] * 4] * 2)) if masked else ()

    def real(scores, bin_score):
        return log_sinkhorn(scores, bin_score, 5, *masks)[:, :2, :4].exp()

    assert torch.autograd.gradcheck(real, (scores, bin_score))


@pytest.mark.parametrize("kind", ["lightglue", "superglue"])
def test_layers_in_bfloat16_have_losses_in_float32(kind):
    """Likelihoods of bfloat16 come in steps of 1 %."""
    torch.manual_seed(0)
    made = recipe(f"{kind}-aliked-homography-small").config
    objective = Objective(made.make_model(), "matching")
    tensors = {
        "keypoints_B2N2": torch.rand(2, 2, 20, 2) * 100,
        "descriptors_B2ND": torch.randn(2, 2, 20, 128),
        "scores_B2N": torch.rand(2, 2, 20),
        "image_size_B22": torch.full((2, 2, 2), 100),
        "mask_B2N": None,
        "scale_orientation_B2N2": None,
        "target_B2N": torch.arange(20).expand(2, 2, 20),
    }
    exact = objective(**tensors)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(**tensors)["loss"]
    assert found.dtype == torch.float32 and found != exact
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    assert found.detach() != found.detach().bfloat16().float()
