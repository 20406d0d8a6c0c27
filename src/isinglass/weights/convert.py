"""From the names and layouts of published checkpoints to ours. Pure functions: a state dict in, a new one out.

A format is known by one key that no other has, whatever prefix a trainer has put before it ("matcher.", "module.").
Keys that no rule knows pass unchanged, so that the strict load reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isinglass.errors import WeightsError

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # (pattern of a whole key, its replacement), the first that fits


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write one model."""

    model: str  # name of our class
    origin: str  # who writes it
    anchor: str  # the key it is known by
    convert: Callable[[State], State]


def find(state: Mapping[str, Tensor], model: str | None = None) -> tuple[Format, State] | None:
    """The format of a checkpoint and the part of it that belongs to the model, without prefix; None if unknown.

    A file may hold several models, such as an extractor and a matcher: `model` says which; None = the matcher first.
    """
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile's wrapper
    for form in FORMATS:
        if model not in (None, form.model):
            continue
        ends = sorted((key for key in plain if f".{key}".endswith(f".{form.anchor}")), key=len)
        if ends:
            prefix = ends[0].removesuffix(form.anchor)
            return form, {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    return None


def infer_config(model: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that the shapes of a converted state tell. What they cannot tell is the Config's default."""
    if model == "LightGlue":
        head_size = 2 * state["position_encoding.weight"].shape[0]
        width = state["assignments.0.projection.weight"].shape[0]
        first = state.get("input_projection.weight")
        return {
            "input_size": width if first is None else first.shape[1],
            "width": width,
            "layers": _count(state, "assignments"),
            "heads": width // head_size,
            "scale_orientation": state["position_encoding.weight"].shape[1] == 4,
        }
    if model == "SuperGlue":
        encoder = [value.shape[0] for key, value in state.items() if _is_linear(key, value, "keypoint_encoder")]
        return {"width": encoder[-1], "layers": _count(state, "layers"), "encoder_widths": tuple(encoder[:-1])}
    if model == "ALIKED":
        positions, channels, _ = state["desc_head.agg_weights"].shape
        return {"variant": f"{'t' if channels == 64 else 'n'}{positions}"}
    if model == "SuperPoint":
        batch_norm = "backbone.0.0.bn.weight" in state
        size = state["descriptor.1.conv.weight"].shape[0]
        return {"batch_norm": batch_norm, "sampling": "exact" if batch_norm else "magic-leap", "descriptor_size": size}
    return {}


def _count(state: Iterable[str], module: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{module}."))


def _is_linear(key: str, value: Tensor, module: str) -> bool:
    return key.startswith(f"{module}.") and key.endswith(".weight") and value.ndim == 2


# --- renaming


def _rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> State:
    return {_rename(key, rules): value for key, value in state.items()}


def _joined(state: State, parts: tuple[str, ...], whole: str) -> State:
    """Replace the rows of `<prefix><part>.weight` and bias, of each part, by `<prefix><whole>.weight` and bias."""
    joined = dict(state)
    for key in state:
        match = re.fullmatch(rf"(.*\.){re.escape(parts[0])}\.(weight|bias)", key)
        keys = [f"{match[1]}{part}.{match[2]}" for part in parts] if match else []
        if match and all(one in state for one in keys):
            joined[f"{match[1]}{whole}.{match[2]}"] = torch.cat([joined.pop(one) for one in keys])
    return joined


def _same(state: State) -> State:
    return dict(state)


# --- LightGlue

LIGHTGLUE_PUBLISHED: Rules = (
    (r"input_proj\.(.*)", r"input_projection.\1"),
    (r"posenc\.Wr\.weight", "position_encoding.weight"),
    (r"transformers\.(\d+)\.self_attn\.Wqkv\.(.*)", r"layers.\1.self_attention.qkv.\2"),
    (r"transformers\.(\d+)\.self_attn\.out_proj\.(.*)", r"layers.\1.self_attention.out.\2"),
    (r"transformers\.(\d+)\.cross_attn\.to_(qk|v|out)\.(.*)", r"layers.\1.cross_attention.\2.\3"),
    (r"transformers\.(\d+)\.(self|cross)_attn\.ffn\.(.*)", r"layers.\1.\2_attention.ffn.\3"),
    (r"log_assignment\.(\d+)\.matchability\.(.*)", r"assignments.\1.matchability.\2"),
    (r"log_assignment\.(\d+)\.final_proj\.(.*)", r"assignments.\1.projection.\2"),
    (r"token_confidence\.(\d+)\.token\.0\.(.*)", r"confidences.\1.\2"),
)
LIGHTGLUE_OLDER: Rules = ((r"(self|cross)_attn\.(\d+)\.(.*)", r"transformers.\2.\1_attn.\3"),)
LIGHTGLUE_UNUSED = r"confidence_thresholds|log_assignment\.\d+\.r"  # a constant, and a relic of training


def lightglue_published(state: State) -> State:
    """Of cvg/LightGlue and glue-factory, old or new. Rows of Wqkv are (heads, head_size, 3), ours (3, heads, ...)."""
    used = {key: value for key, value in state.items() if not re.fullmatch(LIGHTGLUE_UNUSED, key)}
    renamed = _renamed(_renamed(used, LIGHTGLUE_OLDER), LIGHTGLUE_PUBLISHED)
    return {key: _interleaved_by_3(value) if ".qkv." in key else value for key, value in renamed.items()}


def _interleaved_by_3(rows: Tensor) -> Tensor:
    """(C 3, ...) to (3 C, ...). C = heads x head_size keeps its order, so that the number of heads is not needed."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


LIGHTGLUE_TRANSFORMERS: Rules = (
    (r"positional_encoder\.projector\.weight", "position_encoding.weight"),
    (r"transformer_layers\.(\d+)\.(self|cross)_attention\.q_proj\.(.*)", r"layers.\1.\2_attention.q.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_attention\.k_proj\.(.*)", r"layers.\1.\2_attention.k.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_attention\.v_proj\.(.*)", r"layers.\1.\2_attention.v.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_attention\.o_proj\.(.*)", r"layers.\1.\2_attention.out.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_mlp\.fc1\.(.*)", r"layers.\1.\2_attention.ffn.0.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_mlp\.layer_norm\.(.*)", r"layers.\1.\2_attention.ffn.1.\3"),
    (r"transformer_layers\.(\d+)\.(self|cross)_mlp\.fc2\.(.*)", r"layers.\1.\2_attention.ffn.3.\3"),
    (r"match_assignment_layers\.(\d+)\.final_projection\.(.*)", r"assignments.\1.projection.\2"),
    (r"match_assignment_layers\.(\d+)\.matchability\.(.*)", r"assignments.\1.matchability.\2"),
    (r"token_confidence\.(\d+)\.token\.(.*)", r"confidences.\1.\2"),
)


SELF_ATTENTION_PARTS = ("self_attention.q", "self_attention.k", "self_attention.v")


def lightglue_transformers(state: State) -> State:
    """Of the transformers class, which brings its extractor along and writes the shared projection of eq. 4 twice.

    Raises WeightsError where fine-tuning made the two differ: then no LightGlue of one projection is the same.
    """
    renamed = _renamed(_without(state, "keypoint_detector."), LIGHTGLUE_TRANSFORMERS)
    joined: State = {}
    for key, value in _joined(renamed, SELF_ATTENTION_PARTS, "self_attention.qkv").items():
        if ".cross_attention.k." in key:
            if not torch.equal(value, renamed[key.replace(".k.", ".q.")]):
                raise WeightsError(
                    f"{key} differs from its twin for queries. LightGlue has one projection for both (eq. 4); this "
                    "file was fine-tuned with two, and cannot be turned into one"
                )
            continue
        joined[key.replace(".cross_attention.q.", ".cross_attention.qk.")] = value
    return joined


def _without(state: State, prefix: str) -> State:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


# --- SuperGlue

SUPERGLUE_HEADS = 4  # of all published ones; shapes do not tell
SUPERGLUE_PUBLISHED: Rules = (
    (r"kenc\.encoder\.(.*)", r"keypoint_encoder.\1"),
    (r"gnn\.layers\.(\d+)\.attn\.proj\.([012])\.(.*)", r"layers.\1.proj.\2.\3"),
    (r"gnn\.layers\.(\d+)\.attn\.merge\.(.*)", r"layers.\1.out.\2"),
    (r"gnn\.layers\.(\d+)\.mlp\.(.*)", r"layers.\1.mlp.\2"),
    (r"final_proj\.(.*)", r"final_projection.\1"),
)


def superglue_published(state: State) -> State:
    """Of Magic Leap: 1 x 1 convolutions become linear layers; channels (head_size, heads) become (heads, head_size)."""
    permuted: State = {}
    for key, value in _renamed(state, SUPERGLUE_PUBLISHED).items():
        linear = value.squeeze(-1) if value.ndim == 3 else value
        if re.fullmatch(r"layers\.\d+\.proj\.\d\..*", key):
            linear = _heads_first(linear, dim=0)
        elif re.fullmatch(r"layers\.\d+\.out\.weight", key):
            linear = _heads_first(linear, dim=1)
        permuted[key] = linear
    return _joined(permuted, ("proj.0", "proj.1", "proj.2"), "qkv")


def _heads_first(channels: Tensor, dim: int) -> Tensor:
    return channels.unflatten(dim, (-1, SUPERGLUE_HEADS)).transpose(dim, dim + 1).flatten(dim, dim + 1)


SUPERGLUE_TRANSFORMERS: Rules = (
    (r"gnn\.layers\.(\d+)\.attention\.self\.(query|key|value)\.(.*)", r"layers.\1.\2.\3"),
    (r"gnn\.layers\.(\d+)\.attention\.output\.dense\.(.*)", r"layers.\1.out.\2"),
    (r"gnn\.layers\.(\d+)\.mlp\.(.*)", r"layers.\1.mlp.\2"),
    (r"keypoint_encoder\.encoder\.(.*)", r"keypoint_encoder.\1"),
    (r"final_projection\.final_proj\.(.*)", r"final_projection.\1"),
)


def superglue_transformers(state: State) -> State:
    """Of the transformers class: layer j of an MLP is our modules 3 j (linear) and 3 j + 1 (normalisation)."""
    renamed = {}
    for key, value in _renamed(_without(state, "keypoint_detector."), SUPERGLUE_TRANSFORMERS).items():
        if match := re.fullmatch(r"(keypoint_encoder|layers\.\d+\.mlp)\.(\d+)\.(linear\.|batch_norm\.|)(\w+)", key):
            place = 3 * int(match[2]) + (match[3] == "batch_norm.")
            key = f"{match[1]}.{place}.{match[4]}"  # noqa: PLW2901
        renamed[key] = value
    return _joined(renamed, ("query", "key", "value"), "qkv")


# --- extractors: ALIKED and DISK keep their published names

SUPERPOINT_PARTS = {**{str(i + 1): f"backbone.{i}" for i in range(4)}, "P": "detector", "D": "descriptor"}
SUPERPOINT_MAGICLEAP: Rules = tuple(
    (rf"conv{theirs}{'ab'[j]}\.(.*)", rf"{ours}.{j}.conv.\1")
    for theirs, ours in SUPERPOINT_PARTS.items()
    for j in (0, 1)
)
SUPERPOINT_TRANSFORMERS: Rules = (
    *((rf"encoder\.conv_blocks\.{i}\.conv_(a|b)\.(.*)", rf"conv{i + 1}\1.\2") for i in range(4)),
    (r"keypoint_decoder\.conv_score_(a|b)\.(.*)", r"convP\1.\2"),
    (r"descriptor_decoder\.conv_descriptor_(a|b)\.(.*)", r"convD\1.\2"),
)


def superpoint_magicleap(state: State) -> State:
    """Of Magic Leap, to the names of the open checkpoint, which are ours."""
    return _renamed(state, SUPERPOINT_MAGICLEAP)


def superpoint_transformers(state: State) -> State:
    """Of the transformers class, by way of Magic Leap's names."""
    return superpoint_magicleap(_renamed(state, SUPERPOINT_TRANSFORMERS))


def xfeat_published(state: State) -> State:
    """Without the network that refines semi-dense matches, which our XFeat does not have."""
    return _without(state, "fine_matcher.")


# --- the table: matchers first, as a file of a matcher may bring its extractor along

FORMATS = (
    Format("LightGlue", "isinglass", "position_encoding.weight", _same),
    Format("LightGlue", "cvg/LightGlue or glue-factory", "posenc.Wr.weight", lightglue_published),
    Format("LightGlue", "transformers", "positional_encoder.projector.weight", lightglue_transformers),
    Format("SuperGlue", "isinglass", "keypoint_encoder.0.weight", _same),
    Format("SuperGlue", "magicleap/SuperGluePretrainedNetwork", "kenc.encoder.0.weight", superglue_published),
    Format("SuperGlue", "transformers", "keypoint_encoder.encoder.0.linear.weight", superglue_transformers),
    Format("SuperPoint", "magicleap/SuperPointPretrainedNetwork", "convDb.weight", superpoint_magicleap),
    Format("SuperPoint", "rpautrat/SuperPoint", "backbone.0.0.conv.weight", _same),
    Format("SuperPoint", "transformers", "descriptor_decoder.conv_descriptor_b.weight", superpoint_transformers),
    Format("ALIKED", "Shiaoming/ALIKED", "desc_head.agg_weights", _same),
    Format("DISK", "cvlab-epfl/disk", "unet.path_down.0.1.3.weight", _same),
    Format("XFeat", "verlab/accelerated_features", "block_fusion.2.weight", xfeat_published),
)
