"""LightGlue's trace: its last step is what `match` gives, and what it says of every layer is what the model says."""

import dataclasses

import pytest
import torch

from isinglass import Pipeline
from isinglass.errors import InputError
from isinglass.inspection import trace
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.runtime.layouts import Dense
from isinglass.runtime.packed import Inputs
from support import dense_batch, make_features, make_pair

SMALL = LightGlueConfig(input_size=24, width=32, layers=5, heads=2, filter_threshold=0.0)


def random_model(bias=2.2, **options):
    """Random weights large enough that heads differ from point to point; `bias` of all confidences."""
    torch.manual_seed(3)
    model = LightGlue(dataclasses.replace(SMALL, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        for head in model.confidences:
            head.bias.fill_(bias)
    return model


def assert_equal(found, expected):
    for name in ("indices", "stop_layer", "pruned_at0", "pruned_at1"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    for name in ("confidences0", "confidences1"):
        of_trace, of_match = getattr(found, name), getattr(expected, name)
        assert (of_trace is None) == (of_match is None)
        if of_trace is not None:
            torch.testing.assert_close(of_trace, of_match, atol=1e-4, rtol=0, equal_nan=True)
    assert found.matcher == expected.matcher


def assert_last_step_is(found):
    assert torch.equal(found.steps[-1].pairs, found.matches.pairs())
    assert torch.equal(found.steps[-1].scores, found.matches.pair_scores())
    assert len(found.steps) == int(found.matches.stop_layer)


@pytest.mark.parametrize(
    ("bias", "options", "ended"),
    [
        (1.0, {"depth_confidence": 1.0, "width_confidence": 0.6}, "layers"),
        (1.0, {"depth_confidence": 0.95, "width_confidence": 0.6}, "exit"),
        (9.0, {"depth_confidence": 0.5, "width_confidence": 0.5}, "exit"),
        (2.2, {"depth_confidence": None, "width_confidence": 0.95}, "layers"),
        (2.2, {"depth_confidence": 0.7, "width_confidence": None}, "exit"),
        (2.2, {"depth_confidence": None, "width_confidence": None}, "layers"),
        (3.0, {"depth_confidence": 1.0, "width_confidence": 0.5}, "pruned"),
        (2.2, {"depth_confidence": None, "width_confidence": 0.0}, "pruned"),
    ],
)
def test_the_end_is_that_of_match(bias, options, ended):
    model, pair = random_model(bias, **options), make_pair(60, 45)
    found = trace(model, *pair)
    assert_equal(found.matches, model.match(*pair))
    assert found.ended == ended
    if ended == "pruned":
        assert not len(found.matches.pairs())
    else:
        assert_last_step_is(found)


def test_some_points_are_pruned_and_some_runs_exit():
    """Else the test above would hold nothing."""
    found = trace(random_model(1.0, depth_confidence=0.95, width_confidence=0.6), *make_pair(60, 45))
    assert [sum(map(len, step.pruned)) > 5 for step in found.steps] == [True, False, True, False]
    assert [step.exits for step in found.steps] == [False, False, False, True]
    assert set(found.matches.pruned_at0[0].tolist()) == {1, 3, 4}


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_end_is_that_of_match_on_photos(motorcycle, adaptive):
    pipeline = Pipeline(
        extractor="rootsift", matcher="lightglue-sift-small", max_keypoints=400, adaptive=adaptive, device="cpu"
    )
    pipeline.matcher.compute_dtype = torch.float32
    result = pipeline.match(*motorcycle[:2])
    found = trace(pipeline.matcher, result.features0, result.features1)
    assert len(result.scores) > 150
    assert_equal(found.matches, result.matches)
    assert_last_step_is(found)


def test_a_shipped_model_that_is_made_to_exit_and_prune(motorcycle):
    pipeline = Pipeline(extractor="rootsift", matcher="lightglue-sift-small", max_keypoints=400, device="cpu")
    config = dataclasses.replace(pipeline.matcher.config, depth_confidence=0.99, width_confidence=0.6)
    model = LightGlue(config).eval()
    model.load_state_dict(pipeline.matcher.state_dict())
    for head in model.confidences:
        head.bias.data += 1
    features = [pipeline.extract(image) for image in motorcycle[:2]]
    found = trace(model, *features)
    assert_equal(found.matches, model.match(*features))
    assert found.ended == "exit"
    assert sum(map(len, found.steps[0].pruned)) > 0


@torch.inference_mode()
def test_every_layer_says_what_the_dense_model_says():
    """Deep supervision: predictions, confidences and matchability of all layers, where nothing leaves."""
    model, pair = random_model(depth_confidence=None, width_confidence=None), make_pair(40, 40)
    predictions = model(*dense_batch([pair])[0], every_layer=True)
    found = trace(model, *pair, alternatives=40)
    assert len(found.steps) == len(predictions) == 5
    for step, said in zip(found.steps, predictions, strict=True):
        assignment = said.log_assignment_BNN[0].exp()
        best = step.alternatives
        for view, rows in enumerate((assignment, assignment.T)):
            value, index = rows.sort(dim=1, descending=True)
            torch.testing.assert_close(best.probability[view], value, atol=1e-5, rtol=0)
            assert (best.index[view][:, 0] == index[:, 0]).float().mean() > 0.95
            matchable = said.matchability_B2N[0, view].sigmoid()
            torch.testing.assert_close(step.matchability[view], matchable, atol=1e-5, rtol=0)
            torch.testing.assert_close(best.unmatched[view], 1 - matchable, atol=1e-5, rtol=0)
            if said.confidence_B2N is None:
                assert step.confidence is None
            else:
                confidence = said.confidence_B2N[0, view].sigmoid()
                torch.testing.assert_close(step.confidence[view], confidence, atol=1e-5, rtol=0)
        assert torch.equal(assignment[tuple(step.pairs.T)].argsort(), step.scores.argsort())


@torch.inference_mode()
def test_attention_gives_the_messages_of_the_layers():
    """With all keypoints kept, the weights times the values are what the fused attention adds up."""
    model, pair = random_model(depth_confidence=None, width_confidence=None), make_pair(30, 30)
    keypoints, descriptors, size = dense_batch([pair])[0]
    found = trace(model, *pair, attention=30)
    assert [one.name for one in found.attention][:3] == ["layer 1 self", "layer 1 cross", "layer 2 self"]
    x, rotation = model.encode(Inputs(keypoints, descriptors, keypoints[..., 0], size[:, :, None], None))
    layout = Dense()
    for i, layer in enumerate(model.layers):
        for unit, looked in zip(
            (layer.self_attention, layer.cross_attention), found.attention[2 * i : 2 * i + 2], strict=True
        ):
            cross = unit is layer.cross_attention
            assert (looked.cross, looked.layer) == (cross, i + 1)
            if cross:
                query, value = (project(x).unflatten(-1, (2, -1)) for project in (unit.qk, unit.v))
                message = layout.attend(query, query, value, cross=True)
            else:
                query, key, value = unit.qkv(x).unflatten(-1, (3, 2, -1)).unbind(-3)
                message = layout.attend(rotation.apply(query), rotation.apply(key), value, cross=False)
            for view in (0, 1):
                there = value[0, view ^ cross]
                weight = torch.zeros(30, 2, 30).scatter_(2, looked.index[view], looked.weight[view])
                torch.testing.assert_close(weight.sum(dim=2), torch.ones(30, 2), atol=1e-5, rtol=0)
                expected = torch.einsum("nhm,mhc->nhc", weight, there)
                torch.testing.assert_close(expected, message[0, view], atol=1e-4, rtol=0)
            x = unit(x, layout) if cross else unit(x, rotation, layout)


def test_who_is_gone_is_nobodys_partner_and_looks_at_nobody():
    model = random_model(1.0, depth_confidence=0.95, width_confidence=0.6)
    found = trace(model, *make_pair(60, 45), attention=50, alternatives=50)
    assert len(found.steps) == 4
    for number, step in enumerate(found.steps, start=1):
        looked = [one for one in found.attention if one.layer == number]
        assert len(looked) == 2
        for view, left_at in enumerate((found.matches.pruned_at0[0], found.matches.pruned_at1[0])):
            gone, other_gone = left_at < number, (found.matches.pruned_at1, found.matches.pruned_at0)[view][0] < number
            assert torch.equal(step.matchability[view].isnan(), gone)
            assert torch.equal(step.alternatives.unmatched[view].isnan(), gone)
            assert (step.alternatives.index[view][gone] == -1).all()
            partners = step.alternatives.index[view][~gone]
            assert not other_gone[partners[partners >= 0]].any()
            for one in looked:
                assert (one.index[view][gone] == -1).all()
                assert (one.weight[view][gone] == 0).all()
                seen = one.index[view][~gone]
                assert not (other_gone if one.cross else gone)[seen[seen >= 0]].any()
            leaves = (left_at == number) & (number < len(found.steps))
            assert torch.equal(step.pruned[view], leaves.nonzero()[:, 0])


def test_since_when_a_match_was_predicted():
    found = trace(random_model(depth_confidence=None, width_confidence=None), *make_pair(60, 45))
    since, predicted = found.since(), [set(map(tuple, step.pairs.tolist())) for step in found.steps]
    assert len(set(since.tolist())) > 1
    for pair, number in zip(map(tuple, found.matches.pairs().tolist()), since.tolist(), strict=True):
        assert all(pair in of_step for of_step in predicted[number - 1 :])
        assert number == 1 or pair not in predicted[number - 2]


@pytest.mark.parametrize(("count0", "count1"), [(0, 20), (20, 0), (0, 0), (1, 1), (1, 20)])
def test_views_with_hardly_a_keypoint(count0, count1):
    model, pair = random_model(), (make_features(count0), make_features(count1, seed=1))
    found = trace(model, *pair)
    assert_equal(found.matches, model.match(*pair))
    assert (found.ended == "empty") == (min(count0, count1) == 0)
    assert found.payload()["steps"] or found.ended == "empty"


def test_without_attention():
    found = trace(random_model(), *make_pair(20, 20), attention=0)
    assert found.attention == ()
    assert found.payload()["attention"] is None


@pytest.mark.parametrize("tops", [{"attention": -1}, {"attention": 256}, {"alternatives": 0}, {"alternatives": 2.5}])
def test_how_many_to_keep_is_checked(tops):
    with pytest.raises(InputError, match="expected an integer from"):
        trace(random_model(), *make_pair(20, 20), **tops)


def test_foreign_features_and_batches_are_refused():
    model = random_model()
    with pytest.raises(InputError, match="expects 24-d"):
        trace(model, *make_pair(20, 20, channels=16))
    one, other = make_pair(20, 20)
    with pytest.raises(InputError, match="batch of 2"):
        trace(model, one.stack([one, one]), other)
