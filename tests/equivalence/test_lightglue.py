"""LightGlue against its published implementation and against the transformers class."""

import numpy as np
import pytest
import torch

from isinglass.kernels import linear
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.types import Matches
from support import dense_batch, make_pair, reference_features


@pytest.mark.shared
@pytest.mark.weights
@pytest.mark.parametrize("count", [512, 2048])
@pytest.mark.parametrize("scene", ["dsc", "sacre_coeur"])
@pytest.mark.parametrize("extractor", ["aliked-n16", "disk"])
def test_published_outputs_are_met(shared, extractor, scene, count):
    family = extractor.split("-")[0]
    data, features = reference_features(shared / f"reference/{family}_lightglue_{scene}_{count}.npz", extractor)
    full = LightGlue.pretrained(f"lightglue-{family}", depth_confidence=None, width_confidence=None)
    adaptive = LightGlue.pretrained(f"lightglue-{family}")
    found: Matches = full.match(*features)
    assert (found.indices[0].numpy() == data["full_matches0"]).mean() >= 0.999
    assert np.abs(found.scores[0].numpy() - data["full_scores0"]).max() < 1e-3
    found = adaptive.match(*features)
    assert found.stop_layer.item() == data["adaptive_stop"]
    assert (found.indices[0].numpy() == data["adaptive_matches0"]).mean() >= 0.99
    assert (found.pruned_at0[0].numpy() == data["adaptive_prune0"]).mean() >= 0.99
    assert (found.pruned_at1[0].numpy() == data["adaptive_prune1"]).mean() >= 0.99


@pytest.mark.shared
@pytest.mark.weights
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.999), (torch.float16, 0.97)])
def test_published_outputs_are_met_by_the_path_for_gpus(monkeypatch, shared, dtype, share):
    """Of 512 keypoints, adaptive; halves are what flash attention is for."""
    monkeypatch.setattr(linear, "has_onednn", lambda: False)  # which GPUs have not
    data, features = reference_features(shared / "reference/aliked_lightglue_dsc_512.npz", "aliked-n16")
    model = LightGlue.pretrained("lightglue-aliked")
    model.compute_dtype, model.execution = dtype, "cuda_graph"
    found = model.match(*features)
    expected = data["adaptive_matches0"]
    indices = found.indices[0].numpy()
    assert found.stop_layer.item() == data["adaptive_stop"]
    assert (indices == expected)[(indices >= 0) | (expected >= 0)].mean() >= share


@pytest.mark.shared
@pytest.mark.weights
def test_published_weights_in_a_batch_of_eight(shared):
    """Eight pairs of 37 to 1024 keypoints at once and one at a time, with the default adaptivity."""
    model = LightGlue.pretrained("lightglue-aliked")
    pairs = []
    for scene in ("dsc", "sacre_coeur"):
        _, (one0, one1) = reference_features(shared / f"reference/aliked_lightglue_{scene}_2048.npz", "aliked-n16")
        pairs += [(one0.top(a), one1.top(b)) for a, b in [(37, 1024), (1024, 1024), (512, 300), (150, 700)]]
    together = model.match_many(*zip(*pairs, strict=True))
    assert len({matches.stop_layer.item() for matches in together}) > 1
    for pair, in_batch in zip(pairs, together, strict=True):
        alone = model.match(*pair)
        assert torch.equal(in_batch.indices, alone.indices)
        torch.testing.assert_close(in_batch.scores, alone.scores, atol=1e-4, rtol=0)
        assert torch.equal(in_batch.stop_layer, alone.stop_layer)


@torch.inference_mode()
@pytest.mark.parametrize(("layers", "width", "heads"), [(2, 32, 2), (9, 256, 4), (3, 48, 1)])
def test_the_transformers_class_with_the_same_random_parameters(layers, width, heads):
    """Its matching part on our features; scores within 1e-4. It normalises both views by one image size."""
    their_class = pytest.importorskip("transformers").LightGlueForKeypointMatching
    from transformers import LightGlueConfig as TheirConfig
    from transformers import SuperPointConfig

    from isinglass.weights import convert

    config = TheirConfig(
        keypoint_detector_config=SuperPointConfig(descriptor_decoder_dim=64),
        descriptor_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        depth_confidence=-1.0,
        width_confidence=-1.0,
        filter_threshold=0.0,
    )
    theirs = their_class(config).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3))
    for layer in theirs.transformer_layers:
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
        for mlp in (layer.self_mlp, layer.cross_mlp):  # so that what is alike when it comes in stays alike
            mlp.fc2.weight.mul_(0.1)
            mlp.fc2.bias.mul_(0.1)
    for head in theirs.match_assignment_layers:  # sure enough of similar states to match them
        orthogonal = torch.linalg.qr(head.final_projection.weight).Q
        head.final_projection.weight.copy_(orthogonal * (640 / width**0.5) ** 0.5)
        head.matchability.bias.fill_(2)
    options = {"input_size": 64, "width": width, "layers": layers, "heads": heads}
    ours = LightGlue(
        LightGlueConfig(**options, depth_confidence=None, width_confidence=None, filter_threshold=0.0)
    ).eval()
    ours.load_state_dict(convert.lightglue_transformers(theirs.state_dict()))
    assert convert.infer_config("LightGlue", ours.state_dict()) == {**options, "scale_orientation": False}
    pair = make_pair(60, 60, channels=64)
    (keypoints, descriptors, _), _ = dense_batch([pair])
    mask = torch.ones(1, 2, 60, dtype=torch.int64)
    matches, scores, *_ = theirs._match_image_pair(keypoints, descriptors, 480, 640, mask=mask)
    found = ours.match(*pair)
    assert torch.equal(found.indices[0], matches.reshape(2, 60)[0].long())
    torch.testing.assert_close(found.scores[0], scores.reshape(2, 60)[0], atol=1e-4, rtol=0)
    assert (found.scores > 0.01).sum() > 5, "scores must not be all but zero, or this proves nothing"
