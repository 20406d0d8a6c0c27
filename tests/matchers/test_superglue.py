from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.assignment import mutual_matches
from isinglass.kernels.attention import attention_
from isinglass.matchers import superglue
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.runtime.layouts import Packed
from isinglass.types import Features, Matcher, Matches, Signature
from isinglass.weights import convert

SIZE_PX = (640.0, 480.0)
SMALL = SuperGlueConfig(width=32, layers=4, heads=4, encoder_widths=(16, 32))


def random_model(config: SuperGlueConfig = SMALL, seed: int = 0) -> SuperGlue:
    """Random in every parameter and statistic, and sure enough of similar descriptors to match them."""
    generator = torch.Generator().manual_seed(seed)
    model = SuperGlue(config).eval()
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=generator) * (
            value.shape[-1] ** -0.5 if value.ndim == 2 else 0.1
        )
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        norm.weight.data += 1.0
        norm.running_mean = 0.1 * torch.randn(norm.num_features, generator=generator)
        norm.running_var = 0.5 + torch.rand(norm.num_features, generator=generator)
    model.bin_score.data += 1.0
    for layer in model.layers:
        layer.mlp[3].weight.data *= 0.5 * config.layers**-0.5
    nn.init.orthogonal_(model.final_projection.weight, gain=1.5, generator=generator)
    return model


def features(count: int, seed: int = 0, width: int = 32, extractor: str = "superpoint") -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(1, count, 2, generator=generator) * torch.tensor(SIZE_PX),
        descriptors=torch.randn(1, count, width, generator=generator),
        scores=torch.rand(1, count, generator=generator),
        image_size=torch.tensor([SIZE_PX]),
        signature=Signature(extractor=extractor, weights="random"),
    )


def pair(count0: int, count1: int, seed: int = 0, width: int = 32) -> tuple[Features, Features]:
    """View 1 shows the first points of view 0 in another order, moved and noisy."""
    view0, view1 = features(count0, seed, width), features(count1, seed + 1000, width)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(count1, generator=generator)[: min(count0, count1) * 2 // 3]
    for name, noise in (("keypoints", 3.0), ("descriptors", 0.2), ("scores", 0.01)):
        values = getattr(view0, name)[0, : len(seen)]
        getattr(view1, name)[0, seen] = values + noise * torch.randn(values.shape, generator=generator)
    return view0, view1


def dense_inputs(pairs: Sequence[tuple[Features, Features]], fill: float = 0.0) -> dict[str, Tensor]:
    views = Features.stack([view for both in pairs for view in both])
    mask = torch.ones_like(views.scores, dtype=torch.bool) if views.mask is None else views.mask
    values = {name: getattr(views, name) for name in ("keypoints", "descriptors", "scores")}
    inputs = {
        f"{name}_B2N{shape}": torch.where(mask if value.ndim == 2 else mask[..., None], value, fill).unflatten(
            0, (-1, 2)
        )
        for (name, value), shape in zip(values.items(), ("2", "D", ""), strict=True)
    }
    return inputs | {"image_size_B22": views.image_size.unflatten(0, (-1, 2)), "mask_B2N": mask.unflatten(0, (-1, 2))}


def assert_same(ours: Matches, theirs: Matches) -> None:
    assert torch.equal(ours.indices, theirs.indices)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)


# --- the published implementation, as transformers has it


def published_model(model: SuperGlue) -> nn.Module:
    """Transformers' SuperGlue with our parameters."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.SuperGlueForKeypointMatching(
        transformers.SuperGlueConfig(
            hidden_size=config.width,
            keypoint_encoder_sizes=list(config.encoder_widths),
            gnn_layers_types=[("self", "cross")[i % 2] for i in range(config.layers)],
            num_attention_heads=config.heads,
            sinkhorn_iterations=config.sinkhorn_iterations,
            matching_threshold=config.filter_threshold,
        )
    ).eval()
    source = model.state_dict()
    state = {"bin_score": source.pop("bin_score")}
    for name, value in source.items():
        head, _, leaf = name.rpartition(".")
        parts = head.split(".")
        if parts[-1] == "qkv":
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"gnn.layers.{parts[1]}.attention.self.{part}.{leaf}"] = rows
        elif parts[-1] == "out":
            state[f"gnn.layers.{parts[1]}.attention.output.dense.{leaf}"] = value
        elif head == "final_projection":
            state[f"final_projection.final_proj.{leaf}"] = value
        else:  # an MLP: modules 3 j and 3 j + 1 are the linear layer and the normalisation of their block j
            block, kind = divmod(int(parts[-1]), 3)
            encoder = parts[0] == "keypoint_encoder"
            last = block == (len(config.encoder_widths) if encoder else 1)
            place = f"keypoint_encoder.encoder.{block}" if encoder else f"gnn.layers.{parts[1]}.mlp.{block}"
            state[f"{place}.{leaf}" if last else f"{place}.{('linear', 'batch_norm')[kind]}.{leaf}"] = value
    detector = {k: v for k, v in theirs.state_dict().items() if k.startswith("keypoint_detector.")}
    theirs.load_state_dict(state | detector)
    return theirs


@torch.inference_mode()
def published_log_assignment(theirs: nn.Module, view0: Features, view1: Features) -> Tensor:
    """(1, M + 1, N + 1) by the parts of the published model; its own padding counts into the marginals."""
    from transformers.models.superglue import modeling_superglue as published

    x = []
    for view in (view0, view1):
        position = published.normalize_keypoints(view.keypoints, height=int(SIZE_PX[1]), width=int(SIZE_PX[0]))
        x.append(view.descriptors[0] + theirs.keypoint_encoder(position, view.scores)[0][0])
    padded = nn.utils.rnn.pad_sequence(x, batch_first=True)
    padding = torch.arange(padded.shape[1]) >= torch.tensor([[len(x[0])], [len(x[1])]])
    bias = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)[:, None, None]
    f = theirs.final_projection(theirs.gnn(padded, mask=bias)[0])
    similarity = f[0, : len(x[0])] @ f[1, : len(x[1])].T / f.shape[-1] ** 0.5
    return published.log_optimal_transport(similarity[None], theirs.bin_score, theirs.config.sinkhorn_iterations)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SuperGlueConfig(width=64, layers=1, heads=2, encoder_widths=(8,)),
        SuperGlueConfig(width=32, layers=7, heads=8, encoder_widths=(4, 8, 16), sinkhorn_iterations=20),
        SuperGlueConfig(),
    ],
    ids=lambda config: f"{config.layers}x{config.width}",
)
def test_is_the_published_matcher(config):
    model = random_model(config)
    theirs = published_model(model)
    ours_again = SuperGlue(config)
    ours_again.load_state_dict(convert.superglue_transformers(theirs.state_dict()))
    assert all(torch.equal(value, ours_again.state_dict()[name]) for name, value in model.state_dict().items())
    view0, view1 = pair(60, 60, width=config.width)
    with torch.inference_mode():
        indices, scores = theirs._match_image_pair(
            *(
                torch.stack([getattr(v, name)[0] for v in (view0, view1)])[None]
                for name in ("keypoints", "descriptors")
            ),
            torch.stack([view0.scores[0], view1.scores[0]])[None],
            height=int(SIZE_PX[1]),
            width=int(SIZE_PX[0]),
        )[:2]
    ours = model.match(view0, view1)
    assert ours.indices[0].tolist() == indices[0, 0].tolist()
    assert (ours.indices >= 0).sum() > 20
    kept = ours.scores > config.filter_threshold  # theirs sets the others to 0
    torch.testing.assert_close(torch.where(kept, ours.scores, 0), scores[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("count0", "count1"), [(40, 70), (70, 40), (1, 5), (2, 1)])
def test_is_the_published_matcher_at_unequal_counts(count0, count1):
    model = random_model(seed=3)
    view0, view1 = pair(count0, count1)
    expected = published_log_assignment(published_model(model), view0, view1)[0]
    inputs = dense_inputs([(view0, view1)])
    ours = model(**inputs)[0]
    ours = torch.cat([ours[:count0], ours[-1:]])
    ours = torch.cat([ours[:, :count1], ours[:, -1:]], dim=1)
    torch.testing.assert_close(ours.exp(), expected.exp(), atol=1e-4, rtol=1e-5)  # the corner is about N
    matches = model.match(view0, view1)
    probability = expected[:-1, :-1].exp()
    for i, j in matches.pairs().tolist():
        assert probability[i].argmax() == j
        assert probability[:, j].argmax() == i
        assert matches.scores[0, i].item() == pytest.approx(probability[i, j].item(), abs=1e-4)
    best = (probability == probability.amax(0)) & (probability == probability.amax(1, keepdim=True))
    assert len(matches.pairs()) == (best & (probability > 0.2)).sum()


@torch.inference_mode()
def test_one_layer_by_the_attention_():
    """Eq. 3 to 5 written out, for a layer that looks at the other view."""
    model = random_model()
    layer, x0, x1 = model.layers[0], features(5).descriptors[0], features(7, seed=1).descriptors[0]
    q, k, v = (layer.qkv.weight @ x.T + layer.qkv.bias[:, None] for x in (x0, x1, x1))
    q, k, v = q[:32], k[32:64], v[64:]
    message = attention_(*(y.reshape(4, 8, -1).mT for y in (q, k, v)))
    message = layer.out(message.transpose(0, 1).reshape(5, 32))
    expected = x0 + layer.mlp(torch.cat([x0, message], dim=1))
    layer.is_cross = True
    ours = layer(torch.cat([x0, x1]), None, Packed((5, 7)))[:5]
    torch.testing.assert_close(ours, expected)


# --- layouts and batches


def test_packed_is_dense_and_padding_changes_nothing():
    model, pairs = random_model(), [pair(50, 30, seed=1), pair(20, 60, seed=2), pair(1, 0, seed=3)]
    log_p = model(**dense_inputs(pairs))
    torch.testing.assert_close(log_p.exp(), model(**dense_inputs(pairs, fill=7.0)).exp())
    assert log_p.isfinite().all()
    for i, (view0, view1) in enumerate(pairs):
        m, n = view0.scores.shape[1], view1.scores.shape[1]
        indices, scores = mutual_matches(log_p[i : i + 1, :-1, :-1], model.config.filter_threshold)
        packed = model.match(view0, view1)
        assert torch.equal(indices[:, :m], packed.indices)
        assert (indices[:, m:] == -1).all()
        torch.testing.assert_close(scores[:, :m], packed.scores, atol=1e-4, rtol=0)
        assert log_p[i, :m, n:-1].exp().sum() == 0


def test_a_pair_in_a_batch_is_the_pair_alone():
    model = random_model()
    pairs = [pair(n0, n1, seed=n0) for n0, n1 in ((50, 30), (3, 80), (0, 5), (64, 64), (5, 0), (17, 40))]
    views0, views1 = zip(*pairs, strict=True)
    alone = [model.match(*both) for both in pairs]
    assert sum(len(one.pairs()) for one in alone) > 30
    for max_tokens in (superglue.MAX_TOKENS, 100, 1):
        model.max_tokens = max_tokens
        for ours, expected in zip(model.match_many(views0, views1), alone, strict=True):
            assert_same(ours, expected)
    batch = model.match(Features.stack(views0), Features.stack(views1))
    assert batch.indices.shape == (6, 64)
    for i, expected in enumerate(alone):
        assert batch.pairs(i).tolist() == expected.pairs().tolist()


@pytest.mark.parametrize(("iterations", "sure", "tolerance"), [(100, 0.5, 0.02), (2000, 0.2, 1e-3)])
def test_swapped_views_swap_matches(iterations, sure, tolerance):
    """The 100 iterations of the default end on view 1, and have not converged where keypoints compete."""
    model = random_model(replace(SMALL, sinkhorn_iterations=iterations, filter_threshold=sure))
    view0, view1 = pair(60, 45)
    forward, backward = model.match(view0, view1), model.match(view1, view0)
    assert len(forward.pairs()) > 25
    assert sorted(forward.pairs().tolist()) == sorted(backward.pairs().flip(1).tolist())
    i, j = forward.pairs().T
    torch.testing.assert_close(forward.scores[0, i], backward.scores[0, j], atol=tolerance, rtol=0)


def test_the_order_of_keypoints_does_not_matter():
    model = random_model()
    view0, view1 = pair(40, 50)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    expected, ours = model.match(view0, view1), model.match(view0.select(order), view1)
    assert_same(ours, Matches(indices=expected.indices[:, order], scores=expected.scores[:, order], matcher=""))


def test_reports_its_layers_and_name():
    model = random_model()
    matches = model.match(*pair(5, 6))
    assert isinstance(model, Matcher)
    assert matches.stop_layer is not None
    assert matches.stop_layer.tolist() == [4]
    assert matches.pruned_at0 is matches.pruned_at1 is None
    assert matches.matcher == model.name == "random-superglue"


# --- training


def test_gradients_reach_every_parameter_and_no_padding():
    model = random_model().train()
    inputs = dense_inputs([pair(20, 30, seed=1), pair(25, 10, seed=2)])
    inputs["descriptors_B2ND"].requires_grad_()
    log_p = model(**inputs)
    (-log_p[0, :20, :20].diagonal().mean() - log_p[1, :10, -1].mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    gradient = inputs["descriptors_B2ND"].grad
    assert gradient is not None
    assert (gradient[~inputs["mask_B2N"]] == 0).all()
    assert (gradient[inputs["mask_B2N"]].abs().sum(dim=-1) > 0).all()


def test_batch_statistics_leave_out_padding():
    pairs = [pair(20, 30, seed=1), pair(25, 10, seed=2)]
    states, outputs = [], []
    for fill in (0.0, 100.0):
        model = random_model().train()
        outputs.append(model(**dense_inputs(pairs, fill)).exp())
        states.append(model.state_dict())
    torch.testing.assert_close(outputs[0], outputs[1])
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])
    # of the first layer of the encoder, the mean over the 85 keypoints there are
    inputs, model = dense_inputs(pairs), random_model()
    size = torch.tensor(SIZE_PX)
    position = (inputs["keypoints_B2N2"] - size / 2) / (0.7 * 640)
    position = torch.cat([position, inputs["scores_B2N"][..., None]], dim=-1)[inputs["mask_B2N"]]
    mean = model.keypoint_encoder[0](position).mean(dim=0)
    expected = 0.9 * model.keypoint_encoder[1].running_mean + 0.1 * mean
    torch.testing.assert_close(states[0]["keypoint_encoder.1.running_mean"], expected)


def test_matching_in_training_mode_uses_and_keeps_the_running_statistics():
    model = random_model()
    expected = model.match(*pair(30, 40))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_same(model.train().match(*pair(30, 40)), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_learns_one_batch():
    torch.manual_seed(0)
    model = SuperGlue(SuperGlueConfig(width=32, layers=2, encoder_widths=(16,), sinkhorn_iterations=20)).train()
    view0 = features(12)
    order = torch.randperm(12)
    inputs = dense_inputs([(view0, view0.select(order))])
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        log_p = model(**inputs)[0]
        losses.append(-log_p[order, torch.arange(12)].mean())  # eq. 10, all keypoints matched
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0] > 1
    assert losses[-1] < 0.1


# --- bad input


@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 3), (3, 0), (1, 0), (1, 1), (2, 1), (2, 2)])
def test_few_keypoints(count0, count1):
    matches = random_model().match(*pair(count0, count1))
    assert matches.indices.shape == matches.scores.shape == (1, count0)
    assert matches.indices.dtype == torch.int64
    assert matches.scores.isfinite().all()
    if 0 in (count0, count1):
        assert (matches.indices == -1).all()
    assert random_model().match_many([], []) == []


def test_one_clear_keypoint_is_matched():
    view = features(1)
    assert random_model().match(view, view).indices.tolist() == [[0]]


@pytest.mark.parametrize("name", ["keypoints", "descriptors", "scores"])
def test_numbers_that_are_none(name):
    view0, view1 = pair(4, 5)
    getattr(view1, name)[0, 2] = torch.nan
    with pytest.raises(InputError, match=f"{name} of view 1 of pair 0"):
        random_model().match(view0, view1)


def test_foreign_features():
    model = random_model()
    with pytest.raises(InputError, match="64-d"):
        model.match(features(4, width=64), features(4, width=64))
    model.accepts = ("superpoint",)
    model.match(features(4), features(4))
    with pytest.raises(InputError, match="'aliked-n16', but 'random-superglue' was made for 'superpoint'"):
        model.match(features(4, extractor="aliked-n16"), features(4, extractor="aliked-n16"))
    with pytest.raises(InputError, match="expected as many"):
        model.match_many([features(4)], [])
    with pytest.raises(InputError, match="expected as many"):
        model.match(features(4), Features.stack([features(4), features(4)]))


@pytest.mark.parametrize("options", [{"width": 30}, {"layers": 0}, {"sinkhorn_iterations": 0}])
def test_impossible_configs(options):
    with pytest.raises(InputError):
        SuperGlueConfig(**options)
