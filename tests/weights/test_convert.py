"""Renamings: networks written in the published layouts, with random parameters, equal ours after conversion."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from isinglass.errors import WeightsError
from isinglass.extractors.superpoint import SuperPoint
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue
from isinglass.runtime.layouts import Dense
from isinglass.types import Features, Signature
from isinglass.weights import convert
from isinglass.weights.checkpoint import load_strictly, read_checkpoint

SIZE = torch.tensor([[640, 480]])


def randomized(model: nn.Module) -> nn.Module:
    """Every parameter and statistic random, so that none can stand for another; of a size that keeps signals alive."""
    for value in model.state_dict().values():
        if value.ndim > 1:
            value.copy_(torch.randn_like(value) / value[0].numel() ** 0.5)
        elif value.ndim == 1:
            value.copy_(torch.rand_like(value) + 0.1)
    return model.eval()


def equal(state0, state1) -> bool:
    return state0.keys() == state1.keys() and all(torch.equal(value, state1[key]) for key, value in state0.items())


# --- LightGlue as its authors lay it out


def feed_forward(width):
    return nn.Sequential(
        nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )


class PublishedSelf(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.Wqkv, self.out_proj, self.ffn = nn.Linear(width, 3 * width), nn.Linear(width, width), feed_forward(width)

    def forward(self, x_ND, angle_NC):
        q, k, v = self.Wqkv(x_ND).unflatten(-1, (self.heads, -1, 3)).transpose(0, 1).unbind(-1)
        q, k = turned(q, angle_NC), turned(k, angle_NC)
        message = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        return x_ND + self.ffn(torch.cat([x_ND, self.out_proj(message.transpose(0, 1).flatten(1))], -1))


def turned(x_HNC, angle_NC):
    """Pairs of channels as complex numbers, each turned by its angle."""
    turn = torch.polar(torch.ones_like(angle_NC), angle_NC)
    return torch.view_as_real(torch.view_as_complex(x_HNC.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


class PublishedCross(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_qk, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(3))
        self.ffn = feed_forward(width)

    def forward(self, x0_MD, x1_ND):
        (qk0, v0), (qk1, v1) = (
            [project(x).unflatten(-1, (self.heads, -1)).transpose(0, 1) for project in (self.to_qk, self.to_v)]
            for x in (x0_MD, x1_ND)
        )
        similarity = qk0 @ qk1.mT / qk0.shape[-1] ** 0.5
        results = []
        for x, message in ((x0_MD, similarity.softmax(-1) @ v1), (x1_ND, similarity.mT.softmax(-1) @ v0)):
            results.append(x + self.ffn(torch.cat([x, self.to_out(message.transpose(0, 1).flatten(1))], -1)))
        return results


class PublishedLightGlue(nn.Module):
    def __init__(self, inputs, width, layers, heads):
        super().__init__()
        self.input_proj = nn.Linear(inputs, width) if inputs != width else nn.Identity()
        self.posenc = nn.ModuleDict({"Wr": nn.Linear(2, width // heads // 2, bias=False)})
        self.transformers = nn.ModuleList(
            nn.ModuleDict({"self_attn": PublishedSelf(width, heads), "cross_attn": PublishedCross(width, heads)})
            for _ in range(layers)
        )
        self.log_assignment = nn.ModuleList(
            nn.ModuleDict({"matchability": nn.Linear(width, 1), "final_proj": nn.Linear(width, width)})
            for _ in range(layers)
        )
        self.token_confidence = nn.ModuleList(
            nn.ModuleDict({"token": nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())}) for _ in range(layers - 1)
        )
        self.register_buffer("confidence_thresholds", torch.zeros(layers))

    def forward(self, keypoints_2N2, descriptors_2ND):
        x0, x1 = self.input_proj(descriptors_2ND)
        angle0, angle1 = self.posenc["Wr"]((keypoints_2N2 - SIZE / 2) / 320)
        for layer in self.transformers:
            x0, x1 = layer["self_attn"](x0, angle0), layer["self_attn"](x1, angle1)
            x0, x1 = layer["cross_attn"](x0, x1)
        head = self.log_assignment[-1]
        similarity = head["final_proj"](x0) @ head["final_proj"](x1).T / x0.shape[1] ** 0.5
        z0, z1 = head["matchability"](x0), head["matchability"](x1)
        return similarity.log_softmax(0) + similarity.log_softmax(1) + F.logsigmoid(z0) + F.logsigmoid(z1).T


def older_names(state):
    """As in the first release: layers counted inside the two kinds, and a scalar that was never used."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "transformers":
            parts = [parts[2], parts[1], *parts[3:]]
        renamed[".".join(parts)] = value
    del renamed["confidence_thresholds"]
    return renamed | {"log_assignment.0.r": torch.zeros(1)}


@pytest.mark.parametrize(("inputs", "width", "layers", "heads"), [(24, 32, 3, 2), (32, 32, 1, 4), (8, 24, 2, 1)])
@torch.no_grad()
def test_lightglue_as_published(inputs, width, layers, heads):
    theirs = randomized(PublishedLightGlue(inputs, width, layers, heads))
    found = convert.find(theirs.state_dict())
    assert found is not None and found[0].origin == "cvg/LightGlue or glue-factory"
    state = found[0].convert(found[1])
    options = convert.infer_config("LightGlue", state)
    assert options == {
        "input_size": inputs,
        "width": width,
        "layers": layers,
        "heads": heads,
        "scale_orientation": False,
    }
    ours = LightGlue(LightGlue.Config(**options)).eval()
    load_strictly(ours, state, "theirs")
    keypoints, descriptors = torch.rand(2, 17, 2) * SIZE, torch.randn(2, 17, inputs)
    log_assignment = ours(keypoints[None], descriptors[None], SIZE.expand(2, 2)[None])[-1].log_assignment_BNN
    torch.testing.assert_close(log_assignment[0], theirs(keypoints, descriptors), atol=1e-4, rtol=1e-4)


def test_lightglue_under_every_name_it_has_had():
    state = randomized(PublishedLightGlue(8, 24, 3, 1)).state_dict()
    expected = convert.lightglue_published(state)
    extractor = {"block1.weight": torch.rand(1), "desc_head.agg_weights": torch.rand(2, 3, 3)}
    files = {
        "first release": older_names(state),
        "data parallel": {f"module.{key}": value for key, value in state.items()},
        "glue-factory": {f"matcher.{key}": value for key, value in older_names(state).items()}
        | {f"extractor.{key}": value for key, value in extractor.items()},
        "compiled": {f"_orig_mod.{key.replace('attn.', 'attn._orig_mod.')}": value for key, value in state.items()},
        "ours": {f"model.{key}": value for key, value in expected.items()},
    }
    for name, file in files.items():
        found = convert.find(file, "LightGlue")
        assert found is not None, name
        assert equal(found[0].convert(found[1]), expected), name
    found = convert.find(files["glue-factory"], "ALIKED")
    assert found is not None and equal(found[1], extractor)
    matcher_first = convert.find(files["glue-factory"])
    assert matcher_first is not None and matcher_first[0].model == "LightGlue"


def test_lightglue_with_scale_and_orientation_is_seen():
    state = randomized(PublishedLightGlue(8, 24, 1, 2)).state_dict()
    state["posenc.Wr.weight"] = torch.rand(6, 4)
    assert convert.infer_config("LightGlue", convert.lightglue_published(state))["scale_orientation"] is True


@torch.no_grad()
def test_lightglue_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LightGlueConfig(
        descriptor_dim=32, num_hidden_layers=3, num_attention_heads=2, depth_confidence=-1.0, width_confidence=-1.0
    )
    theirs = randomized(transformers.LightGlueForKeypointMatching(config))
    for layer in theirs.transformer_layers:
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
    for head in theirs.match_assignment_layers:
        head.final_projection.weight *= 3
        head.matchability.bias += 5
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    ours = LightGlue.pretrained(tmp_path / "model.safetensors", depth_confidence=None, width_confidence=None)
    assert (ours.config.input_size, ours.config.layers, ours.config.heads) == (256, 3, 2)
    keypoints = torch.rand(1, 2, 40, 2) * SIZE
    descriptors = torch.randn(1, 2, 40, 256) * 3
    descriptors[0, 1] = descriptors[0, 0].flip(0) + torch.randn(40, 256) * 0.1
    keypoints[0, 1] = keypoints[0, 0].flip(0)
    indices, scores = theirs._match_image_pair(
        keypoints, descriptors, height=480, width=640, mask=torch.ones(1, 2, 40, dtype=torch.int)
    )[:2]
    views = [
        Features(
            keypoints=keypoints[:, i],
            descriptors=descriptors[:, i],
            scores=torch.ones(1, 40),
            image_size=SIZE,
            signature=Signature(extractor="any"),
        )
        for i in range(2)
    ]
    matches = ours.match(*views)
    assert (matches.indices >= 0).sum() > 10
    assert matches.indices[0].tolist() == indices[0].tolist()
    torch.testing.assert_close(matches.scores[0], scores[0], atol=1e-4, rtol=1e-3)

    theirs.transformer_layers[1].cross_attention.k_proj.bias += 0.1
    with pytest.raises(WeightsError, match=r"layers\.1\.cross_attention\.k\.bias differs.*one projection for both"):
        convert.lightglue_transformers(theirs.state_dict())


# --- SuperGlue as its authors lay it out: 1 x 1 convolutions, channels (head_size, heads)


class PublishedPropagation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.ModuleDict(
            {"proj": nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3)), "merge": nn.Conv1d(width, width, 1)}
        )
        self.mlp = nn.Sequential(
            nn.Conv1d(2 * width, 2 * width, 1), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Conv1d(2 * width, width, 1)
        )

    def forward(self, x_BDN, source_BDN):
        inputs = (x_BDN, source_BDN, source_BDN)
        q, k, v = (
            project(x).unflatten(1, (-1, 4)) for project, x in zip(self.attn["proj"], inputs, strict=True)
        )  # B C H N
        weights = (torch.einsum("bchn,bchm->bhnm", q, k) / q.shape[1] ** 0.5).softmax(-1)
        message = torch.einsum("bhnm,bchm->bchn", weights, v).flatten(1, 2)
        return x_BDN + self.mlp(torch.cat([x_BDN, self.attn["merge"](message)], 1))


def published_superglue(width, layers, encoder_widths):
    widths = [3, *encoder_widths, width]
    encoder = []
    for inputs, outputs in itertools.pairwise(widths):
        encoder += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    model = nn.ModuleDict(
        {
            "kenc": nn.ModuleDict({"encoder": nn.Sequential(*encoder[:-2])}),
            "gnn": nn.ModuleDict({"layers": nn.ModuleList(PublishedPropagation(width) for _ in range(layers))}),
            "final_proj": nn.Conv1d(width, width, 1),
        }
    )
    model.register_parameter("bin_score", nn.Parameter(torch.tensor(2.0)))
    return randomized(model)


@torch.no_grad()
def test_superglue_as_published(tmp_path):
    theirs = published_superglue(32, 3, (8, 16))
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    ours = SuperGlue.pretrained(tmp_path / "own.pth")
    assert (ours.config.width, ours.config.layers, ours.config.encoder_widths) == (32, 3, (8, 16))
    assert torch.equal(ours.bin_score, theirs.bin_score)
    x_B2ND = torch.randn(1, 2, 9, 32)
    x0, x1 = x_B2ND.mT.unbind(1)
    for layer, published in zip(ours.layers, theirs["gnn"]["layers"], strict=True):
        for cross in (False, True):
            layer.is_cross = cross
            expected = torch.stack([published(x0, (x0, x1)[cross]), published(x1, (x1, x0)[cross])], 1).mT
            torch.testing.assert_close(layer(x_B2ND, None, Dense()), expected, atol=1e-4, rtol=1e-4)
    position = torch.randn(1, 9, 3)
    torch.testing.assert_close(ours.keypoint_encoder(position), theirs["kenc"]["encoder"](position.mT).mT)
    torch.testing.assert_close(ours.final_projection(x0.mT), theirs["final_proj"](x0).mT)


# --- SuperPoint


def magicleap_state():
    shapes = {"1a": (64, 1), "1b": (64, 64), "2a": (64, 64), "2b": (64, 64), "3a": (128, 64), "3b": (128, 128)}
    shapes |= {
        "4a": (128, 128),
        "4b": (128, 128),
        "Pa": (256, 128),
        "Pb": (65, 256),
        "Da": (256, 128),
        "Db": (256, 256),
    }
    state = {}
    for name, (outputs, inputs) in shapes.items():
        side = 1 if name in ("Pb", "Db") else 3
        state[f"conv{name}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side**2) ** 0.5
        state[f"conv{name}.bias"] = torch.randn(outputs) / 10
    return state


@torch.no_grad()
def test_superpoint_of_magic_leap(tmp_path):
    state = magicleap_state()
    torch.save(state, tmp_path / "any.pth")
    model = SuperPoint.pretrained(tmp_path / "any.pth")
    assert (model.config.batch_norm, model.config.sampling) == (False, "magic-leap")
    image = torch.rand(1, 1, 32, 48)

    def conv(x, name):
        weight = state[f"conv{name}.weight"]
        return F.conv2d(x, weight, state[f"conv{name}.bias"], padding=weight.shape[-1] // 2)

    x = image
    for i in (1, 2, 3, 4):
        x = conv(conv(x, f"{i}a").relu(), f"{i}b").relu()
        x = F.max_pool2d(x, 2) if i < 4 else x
    scores = F.pixel_shuffle(conv(conv(x, "Pa").relu(), "Pb").softmax(1)[:, :-1], 8)[:, 0]
    descriptors = F.normalize(conv(conv(x, "Da").relu(), "Db"), dim=1)
    for ours, theirs in zip(model(image), (scores, descriptors), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_superpoint_of_transformers_is_the_same_by_other_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig())
    renamed = {}
    for key, value in theirs.state_dict().items():
        parts = key.split(".")
        part = f"{parts[-2][-1]}.{parts[-1]}"
        block = str(int(parts[2]) + 1) if parts[0] == "encoder" else {"k": "P", "d": "D"}[parts[0][0]]
        renamed[f"conv{block}{part}"] = value
    assert renamed.keys() == magicleap_state().keys()
    assert equal(convert.superpoint_transformers(theirs.state_dict()), convert.superpoint_magicleap(renamed))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert SuperPoint.pretrained(tmp_path / "model.safetensors").config.batch_norm is False


def test_superpoint_open_keeps_its_names(tmp_path):
    model = randomized(SuperPoint())
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    checkpoint = read_checkpoint(tmp_path / "mine.pth")
    assert (checkpoint.model, checkpoint.origin) == ("SuperPoint", "rpautrat/SuperPoint")
    again = SuperPoint.pretrained(tmp_path / "mine.pth")
    assert again.config == model.config and equal(again.state_dict(), model.state_dict())


# --- unknown ones


def test_what_nobody_knows():
    assert convert.find({"layer.weight": torch.rand(1)}) is None
    assert convert.find({"xposenc.Wr.weight": torch.rand(1)}) is None  # another name that ends alike
    assert convert.find(magicleap_state(), "LightGlue") is None


def test_anchors_are_unique():
    anchors = [form.anchor for form in convert.FORMATS]
    assert len(set(anchors)) == len(anchors)
    for form in convert.FORMATS:
        found = convert.find({form.anchor: torch.rand(1)})
        assert found is not None and found[0] is form
