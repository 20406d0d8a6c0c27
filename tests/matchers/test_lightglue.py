"""LightGlue: packed = dense = a literal twin, batch = alone, and equal to the published implementation."""

import dataclasses

import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.kernels.attention import attention_
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.runtime import runner
from isinglass.runtime.layouts import Dense
from isinglass.runtime.packed import Inputs
from isinglass.types import Features
from support import dense_batch, make_features, make_pair

SMALL = LightGlueConfig(input_size=24, width=32, layers=5, heads=2, filter_threshold=0.0)


def random_model(config=SMALL):
    """Random weights large enough that attention, confidence and matchability differ from point to point."""
    torch.manual_seed(3)
    model = LightGlue(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        for head in model.confidences:
            head.bias.fill_(2.2)
    return model


def with_options(model, **options):
    twin = LightGlue(dataclasses.replace(model.config, **options)).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def literal_twin(model, one0, one1):
    """The paper's equations one after the other for a single pair, adaptivity off; log assignment (M, N)."""
    states, rotations = [], []
    for one in (one0, one1):
        size = one.image_size[0].float()
        position = (one.keypoints[0] - size / 2) / (max(size) / 2)
        angle = position @ model.position_encoding.weight.T
        rotations.append((angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)))
        states.append(model.input_projection(one.descriptors[0]))
    heads = model.config.heads

    def split(x):
        return x.reshape(len(x), heads, -1).transpose(0, 1)

    def rotate(x, rotation):
        out = torch.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * rotation[0][:, 0::2] - x[..., 1::2] * rotation[1][:, 0::2]
        out[..., 1::2] = x[..., 1::2] * rotation[0][:, 1::2] + x[..., 0::2] * rotation[1][:, 1::2]
        return out

    def update(block, x, message):
        message = block.out(message.transpose(0, 1).reshape(len(x), -1))
        return x + block.ffn(torch.cat([x, message], -1))

    for layer in model.layers:
        for i in (0, 1):
            q, k, v = (split(x) for x in layer.self_attention.qkv(states[i]).chunk(3, dim=-1))
            message = attention_(rotate(q, rotations[i]), rotate(k, rotations[i]), v)
            states[i] = update(layer.self_attention, states[i], message)
        block = layer.cross_attention
        qk, v = [split(block.qk(x)) for x in states], [split(block.v(x)) for x in states]
        similarity = torch.einsum("hmc,hnc->hmn", *qk) / qk[0].shape[-1] ** 0.5  # once, for both directions
        messages = similarity.softmax(-1) @ v[1], similarity.mT.softmax(-1) @ v[0]
        states = [update(block, x, message) for x, message in zip(states, messages, strict=True)]
    head = model.assignments[-1]
    similarity = head.projection(states[0]) @ head.projection(states[1]).T / model.config.width**0.5
    sigma0, sigma1 = (torch.sigmoid(head.matchability(x)[:, 0]) for x in states)
    return (similarity.softmax(0) * similarity.softmax(1) * sigma0[:, None] * sigma1).log()


@torch.inference_mode()
def test_dense_equals_the_literal_twin_with_and_without_padding():
    model = random_model()
    pairs = [make_pair(40, 30), make_pair(7, 33, seed=2, size=(320, 500))]
    tensors, mask = dense_batch(pairs)
    log_assignment = model(*tensors, mask_B2N=mask)[-1].log_assignment_BNN
    for i, (one0, one1) in enumerate(pairs):
        expected = literal_twin(model, one0, one1)
        torch.testing.assert_close(log_assignment[i, : len(expected), : expected.shape[1]], expected, atol=1e-4, rtol=0)
        alone = model(*dense_batch([(one0, one0)])[0])[-1].log_assignment_BNN[0]  # no mask at all
        torch.testing.assert_close(alone, literal_twin(model, one0, one0), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_padding_is_nobodys_match():
    model = random_model()
    tensors, mask = dense_batch([make_pair(40, 30), make_pair(7, 33, seed=2)])
    log_assignment = model(*tensors, mask_B2N=mask)[-1].log_assignment_BNN
    assert mask is not None and (~mask).any()
    assert log_assignment.transpose(0, 1)[~mask[:, 0].T].max() < -1000
    assert torch.isfinite(log_assignment).all()


@torch.inference_mode()
def test_packed_equals_the_literal_twin():
    model = with_options(random_model(), depth_confidence=None, width_confidence=None)
    pairs = [make_pair(40, 30), make_pair(1, 2, seed=4), make_pair(64, 64, seed=6)]
    for pair, matches in zip(pairs, model.match_many(*zip(*pairs, strict=True)), strict=True):
        probability = literal_twin(model, *pair).exp()
        index0, index1 = probability.argmax(1), probability.argmax(0)
        mutual = index1[index0] == torch.arange(len(index0))
        assert torch.equal(matches.indices[0], torch.where(mutual, index0, -1))
        torch.testing.assert_close(
            matches.scores[0], torch.where(mutual, probability.max(1).values, 0), atol=1e-5, rtol=0
        )
        assert matches.stop_layer.tolist() == [5]
        assert matches.confidences0 is None


def test_every_layer_predicts_for_training_and_gradients_stay_where_they_belong():
    model = random_model().train()
    tensors, mask = dense_batch([make_pair(20, 20)])
    predictions = model(*tensors, mask_B2N=mask, every_layer=True)
    assert len(predictions) == 5
    assert predictions[-1].confidence_B2N is None
    torch.stack([p.confidence_B2N.sum() for p in predictions[:-1]]).sum().backward()
    assert all(parameter.grad is None for parameter in model.layers.parameters())
    assert all(head.weight.grad.abs().sum() > 0 for head in model.confidences)
    predictions[0].log_assignment_BNN.sum().backward()
    assert model.layers[0].self_attention.qkv.weight.grad.abs().sum() > 0


def adaptive_twin(model, one0, one1):
    """Exit and pruning by the letter of section 3.3 with boolean masks over full tensors; what each point did."""
    alive = [torch.ones(one.keypoints.shape[1], dtype=torch.bool) for one in (one0, one1)]
    left = [torch.zeros(len(a), dtype=torch.int64) for a in alive]
    total = sum(len(a) for a in alive)
    for depth in range(1, model.config.layers + 1):
        states = run_masked(model, one0, one1, depth, left)
        if depth == model.config.layers:
            break
        threshold = 0.8 + 0.1 * np.exp(-4 * (depth - 1) / model.config.layers)
        confidences = [torch.sigmoid(model.confidences[depth - 1](x)[:, 0]) for x in states]
        unsure = sum(int((c[a] < threshold).sum()) for c, a in zip(confidences, alive, strict=True))
        if 1 - unsure / total > model.config.depth_confidence:
            break
        for i in (0, 1):
            matchable = torch.sigmoid(model.assignments[depth - 1].matchability(states[i])[:, 0])
            goes = alive[i] & (matchable <= 1 - model.config.width_confidence) & (confidences[i] > threshold)
            left[i][goes] = depth
            alive[i] = alive[i] & ~goes
    for i in (0, 1):
        left[i][alive[i]] = depth
    return depth, left


def run_masked(model, one0, one1, depth, left):
    """States after `depth` layers where points that left earlier are masked out of attention (dense layout)."""
    pair = dense_batch([(one0, one1)])[0]
    x, rotation = model.encode(Inputs(pair[0], pair[1], pair[0][..., 0], pair[2][:, :, None], None))
    for i in range(depth):
        inside = torch.stack([(v == 0) | (v > i) for v in left])[None]
        x = model.layers[i](x, rotation, Dense(inside))
    return x[0, 0], x[0, 1]


@torch.inference_mode()
def test_adaptive_depth_and_width_equal_a_masked_twin():
    stops, pruned = set(), 0
    for seed in range(6):
        model = with_options(random_model(), depth_confidence=0.9, width_confidence=0.7)
        one0, one1 = make_pair(48, 48, seed=10 * seed)
        matches = model.match_many([one0], [one1])[0]
        depth, left = adaptive_twin(model, one0, one1)
        assert matches.stop_layer.item() == depth
        assert torch.equal(matches.pruned_at0[0], left[0])
        assert torch.equal(matches.pruned_at1[0], left[1])
        assert (matches.indices[0][left[0] < depth] == -1).all()
        stops.add(depth)
        pruned += int((left[0] < depth).sum())
    assert len(stops) > 1 and pruned > 0, "the random model must exit and prune, or this proves nothing"


@torch.inference_mode()
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_pair_in_a_batch_equals_the_pair_alone(adaptive):
    options = {"depth_confidence": 0.9, "width_confidence": 0.7} if adaptive else {}
    model = with_options(random_model(), **({"depth_confidence": None, "width_confidence": None} | options))
    counts = [(37, 1024), (1024, 400), (0, 50), (200, 200), (64, 999), (1, 1), (511, 37), (700, 701)]
    pairs = [make_pair(*count, seed=i) for i, count in enumerate(counts)]
    together = model.match_many(*zip(*pairs, strict=True))
    for pair, in_batch in zip(pairs, together, strict=True):
        alone = model.match_many(*([one] for one in pair))[0]
        assert torch.equal(in_batch.indices, alone.indices)
        torch.testing.assert_close(in_batch.scores, alone.scores, atol=1e-4, rtol=0)
        assert torch.equal(in_batch.stop_layer, alone.stop_layer)
        assert torch.equal(in_batch.pruned_at0, alone.pruned_at0)


def test_one_view_against_many_is_each_pair_alone(monkeypatch):
    """The first self-attention runs over each view once, however many pairs it is in."""
    model = random_model()
    one, others = make_features(40, seed=1), [make_features(n, seed=n) for n in (30, 0, 50)]
    turned = dataclasses.replace(one, turns=torch.tensor([1]))
    alone = [model.match(view, other) for view in (one, turned) for other in others]
    seen = []
    packed = Inputs.packed

    def spied(views, like):
        seen.append(sum(view.keypoints.shape[1] for view in views))
        return packed(views, like)

    monkeypatch.setattr(Inputs, "packed", spied)
    together = model.match_many([one] * 3 + [turned] * 3, others * 2)
    assert seen == [40 + 30 + 0 + 50 + 40]
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.scores, expected.scores)


def test_swapped_views_swap_matches():
    model = random_model()
    one0, one1 = make_pair(60, 45)
    forth, back = model.match(one0, one1), model.match(one1, one0)
    assert sorted(forth.pairs().tolist()) == sorted(back.pairs().flip(1).tolist())
    assert len(forth.pairs()) > 5


def test_a_padded_batch_is_matched_pair_by_pair():
    model = random_model()
    pairs = [make_pair(30, 20), make_pair(10, 25, seed=2)]
    batch = model.match(Features.stack([a for a, _ in pairs]), Features.stack([b for _, b in pairs]))
    for i, pair in enumerate(pairs):
        assert torch.equal(batch.pairs(i), model.match(*pair).pairs())


def test_a_turned_view_is_matched_as_it_was_seen():
    """Positions enter as the extractor saw them: original coordinates with `turns` = upright coordinates."""
    model = random_model()
    one0, one1 = make_pair(50, 40)
    width, height = one1.image_size[0].tolist()
    x, y = one1.keypoints[..., 0], one1.keypoints[..., 1]
    on_disk = dataclasses.replace(  # the file holds the image turned clockwise; one ccw turn makes it upright
        one1,
        keypoints=torch.stack([height - 1 - y, x], dim=-1),
        image_size=torch.tensor([[height, width]]),
        turns=torch.tensor([1]),
    )
    torch.testing.assert_close(on_disk.as_seen().keypoints, one1.keypoints)
    assert torch.equal(model.match(one0, on_disk).indices, model.match(one0, one1).indices)


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (5, 0), (1, 1), (2, 1)])
def test_hardly_any_keypoints(counts):
    matches = random_model().match(make_features(counts[0]), make_features(counts[1], seed=1))
    assert matches.indices.shape == (1, counts[0])
    assert matches.pruned_at1.shape == (1, counts[1])
    if 0 in counts:
        assert len(matches.pairs()) == 0
        assert matches.stop_layer.tolist() == [0]


def test_no_pairs_at_all():
    assert random_model().match_many([], []) == []


def test_bad_features_are_refused():
    model = random_model()
    good = make_features(5)
    with pytest.raises(InputError, match="expects 24-d"):
        model.match(make_features(5, channels=16), make_features(5, channels=16))
    model.accepts = ("aliked-n16",)
    with pytest.raises(InputError, match="made for 'aliked-n16'"):
        model.match(good, good)
    with pytest.raises(InputError, match="scale and orientation"):
        LightGlue(LightGlueConfig(input_size=24, scale_orientation=True)).match(good, good)
    with pytest.raises(InputError, match="heads"):
        LightGlueConfig(width=30, heads=4)


def test_scale_and_orientation_matter_where_they_are_encoded():
    model = random_model(dataclasses.replace(SMALL, scale_orientation=True, depth_confidence=None))
    extra = {"scales": torch.rand(1, 30) * 9, "orientations": torch.rand(1, 30) * 6}
    one0, one1 = make_pair(30, 30, **extra)
    before = model.match(one0, one1).scores
    after = model.match(one0, dataclasses.replace(one1, orientations=extra["orientations"].flip(1))).scores
    assert not torch.allclose(before, after)


def test_long_lists_are_cut_into_buffers_of_bounded_size(monkeypatch):
    pairs = [make_pair(30, 30, seed=i) for i in range(4)] + [make_pair(90, 90)]
    model, buffers = random_model(), []
    model.max_tokens = 100
    match_packed = runner._match_packed

    def counted(network, chunk, strategy):
        buffers.append(len(chunk))
        return match_packed(network, chunk, strategy)

    monkeypatch.setattr(runner, "_match_packed", counted)
    assert len(model.match_many(*zip(*pairs, strict=True))) == 5
    assert buffers == [1, 1, 1, 1, 1]
    model.max_tokens = 130
    model.match_many(*zip(*pairs, strict=True))
    assert buffers[5:] == [2, 2, 1]
