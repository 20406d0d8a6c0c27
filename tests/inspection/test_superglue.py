"""SuperGlue's and nearest neighbours' traces: the last step is what `match` gives, Sinkhorn's steps are its own."""

import pytest
import torch

from isinglass import Pipeline
from isinglass.errors import InputError
from isinglass.inspection import trace
from isinglass.inspection.payload import unpack
from isinglass.inspection.superglue import shown_iterations
from isinglass.kernels.assignment import log_sinkhorn
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.runtime.layouts import Packed
from isinglass.runtime.packed import Inputs
from support import make_features, make_pair

SMALL = {"input_size": 24, "width": 32, "layers": 4, "heads": 2, "encoder_widths": (8, 16), "filter_threshold": 0.0}


def random_model(**options):
    torch.manual_seed(5)
    model = SuperGlue(SuperGlueConfig(**{**SMALL, "sinkhorn_iterations": 30, **options})).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.uniform_(0.5, 1.5) if "running" in name else None
        model.final_projection.weight.mul_(6)
    return model


def assert_equal(found, expected):
    assert torch.equal(found.matches.indices, expected.indices)
    torch.testing.assert_close(found.matches.scores, expected.scores, atol=1e-4, rtol=0)
    assert (found.matches.stop_layer is None) == (expected.stop_layer is None)
    assert found.matches.matcher == expected.matcher
    if found.steps:
        assert torch.equal(found.steps[-1].pairs, expected.pairs())
        torch.testing.assert_close(found.steps[-1].scores, expected.pair_scores(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("counts", [(50, 40), (1, 30), (1, 1)])
def test_the_end_is_that_of_match(counts):
    model, pair = random_model(), make_pair(*counts)
    found = trace(model, *pair)
    assert_equal(found, model.match(*pair))
    assert found.ended == "layers"


def test_a_trace_tells_of_its_steps_and_can_be_stopped():
    model, pair, heard = random_model(sinkhorn_iterations=3), make_pair(20, 20), []
    trace(model, *pair, tell=heard.append)
    assert heard == [*(f"layer {i} of 4" for i in (1, 2, 3, 4)), *(f"iteration {i} of 3" for i in (1, 2, 3))]

    def stop(step):
        heard.append(step)
        raise KeyboardInterrupt

    for one in (model, LightGlue(LightGlueConfig(input_size=24, width=32, layers=3, heads=2))):
        heard.clear()
        with pytest.raises(KeyboardInterrupt):
            trace(one, *pair, tell=stop)
        assert heard == [f"layer 1 of {one.config.layers}"]


def test_a_model_in_training_is_traced_as_it_matches():
    model, pair = random_model().train(), make_pair(50, 40)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert_equal(trace(model, *pair), model.match(*pair))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_the_end_is_that_of_match_on_photos(motorcycle):
    pipeline = Pipeline(extractor="rootsift", matcher="superglue-sift-small", max_keypoints=400, device="cpu")
    pipeline.matcher.compute_dtype = torch.float32
    result = pipeline.match(*motorcycle[:2])
    found = trace(pipeline.matcher, result.features0, result.features1)
    assert len(result.scores) > 150
    assert_equal(found, result.matches)
    assert len(found.attention) == 12
    assert [one.cross for one in found.attention[:3]] == [False, True, False]


@torch.inference_mode()
def test_iterations_are_those_of_sinkhorn():
    model, pair = random_model(), make_pair(50, 40)
    found = trace(model, *pair, alternatives=41)
    x, _ = model.encode(Inputs.packed(pair, model.bin_score))
    for layer in model.layers:
        x = layer(x, None, Packed((50, 40)))
    f0, f1 = model.final_projection(x).split([50, 40])
    similarity = f0 @ f1.T / 32**0.5
    assert len(found.steps) > 5
    for step in found.steps:
        whole = log_sinkhorn(similarity[None], model.bin_score, step.iteration)[0].exp()
        value = whole[:-1, :-1].sort(dim=1, descending=True).values
        torch.testing.assert_close(step.alternatives.probability[0][:, :40], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(step.alternatives.unmatched[0], whole[:-1, -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(step.alternatives.unmatched[1], whole[-1, :-1], atol=1e-5, rtol=0)
        wanted = torch.cat([torch.ones(50), torch.tensor([40.0])])
        assert step.marginal_error == pytest.approx(float((whole.sum(1) - wanted).abs().sum()) / 180, abs=1e-5)
    errors = [step.marginal_error for step in found.steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[-1]


@pytest.mark.parametrize(("count", "most"), [(1, 1), (12, 12), (100, 12), (20, 12), (13, 12)])
def test_which_iterations_are_shown(count, most):
    shown = shown_iterations(count)
    assert shown[0] == 1
    assert shown[-1] == count
    assert len(shown) <= most
    assert len(shown) > min(count, most) / 2
    assert shown == sorted(set(shown))


@torch.inference_mode()
def test_attention_is_softmax_of_the_layers_products():
    model, pair = random_model(), make_pair(20, 12)
    looked = trace(model, *pair, attention=20).attention[1]
    x, _ = model.encode(Inputs.packed(pair, model.bin_score))
    x = model.layers[0](x, None, Packed((20, 12)))
    query, key, _ = model.layers[1].qkv(x).unflatten(-1, (3, 2, -1)).unbind(-3)
    expected = torch.einsum("nhc,mhc->nhm", query[:20], key[20:]).div(4).softmax(dim=2)
    found = torch.zeros(20, 2, 13).scatter_(2, looked.index[0] % 13, looked.weight[0])  # -1 goes to the last
    torch.testing.assert_close(found[:, :, :12], expected, atol=1e-5, rtol=0)
    assert looked.index[1].shape == (12, 2, 20)
    assert (looked.index[0][:, :, 12:] == -1).all()


@pytest.mark.parametrize("counts", [(0, 9), (9, 0), (0, 0)])
@pytest.mark.parametrize("matcher", [random_model(), Nearest()])
def test_empty_views(matcher, counts):
    pair = make_features(counts[0]), make_features(counts[1], seed=1)
    found = trace(matcher, *pair)
    assert_equal(found, matcher.match(*pair))
    assert found.ended == "empty"
    assert found.payload()["steps"] == []


@pytest.mark.parametrize("config", [NearestConfig(), NearestConfig(ratio=0.8), NearestConfig(mutual=False)])
def test_nearest_neighbours(config):
    matcher, pair = Nearest(config), make_pair(50, 40)
    found = trace(matcher, *pair, alternatives=3)
    assert_equal(found, matcher.match(*pair))
    (step,) = found.steps
    pairs = found.matches.pairs()
    assert len(pairs) > 10
    assert torch.equal(step.alternatives.index[0][pairs[:, 0], 0], pairs[:, 1])
    torch.testing.assert_close(step.alternatives.probability[0][pairs[:, 0], 0], step.scores)
    assert step.alternatives.unmatched[1].isnan().all()
    assert step.alternatives.index[1].shape == (40, 3)


def test_another_matcher_is_refused():
    class Other:
        name = "other"

    with pytest.raises(InputError, match="'other' cannot be inspected"):
        trace(Other(), *make_pair(5, 5))


def test_pages_number_so_many_keypoints():
    pair = make_features(65535, channels=2), make_features(1, channels=2, seed=1)
    assert unpack(trace(Nearest(), *pair).payload()["alternatives"][0]["views"][1]["index"]).max() < 65535
    with pytest.raises(InputError, match="65536 keypoints"):
        trace(Nearest(), pair[1], make_features(65536, channels=2)).payload()
