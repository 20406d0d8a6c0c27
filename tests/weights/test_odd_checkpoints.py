"""Odd, damaged and hostile checkpoint files: each gives WeightsError, which names the file, and nothing else."""

from __future__ import annotations

import json
import struct
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from isinglass.errors import WeightsError
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue
from isinglass.weights.checkpoint import TrainingState, read_checkpoint, read_training_state, save_checkpoint

SMALL = LightGlue.Config(input_size=8, width=16, layers=2, heads=2)
FACTS = {"name": "mine", "licence": "CC0-1.0", "trained_on": "my photos"}


@pytest.fixture(scope="module")
def state():
    return LightGlue(SMALL).state_dict()


def told_of(path):
    with safe_open(path, framework="pt") as archive:
        return json.loads(archive.metadata()["isinglass"])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_of(save_checkpoint(LightGlue(SMALL), tmp_path_factory.mktemp("own") / "a", **FACTS))


# ---- metadata


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text",
    ["[]", "[1, 2]", "3", "null", '"text"', "{", "", nested(1000), nested(100_000), '{"format": 1}', '{"format": [1]}'],
    ids=lambda text: text[:12],
)
def test_metadata_that_are_none(tmp_path, state, text):
    save_file(state, tmp_path / "odd.safetensors", {"isinglass": text})
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        LightGlue.pretrained(tmp_path / "odd.safetensors")


HUGE = [0, -1, 3, 10**9, 10**30, 1.5, float("nan"), float("inf"), True, "2", None, [2], {}]
FACTS_THAT_ARE_NONE = [None, 3, [], {"a": 1}, [[3]]]


@pytest.mark.parametrize("name", ["heads", "layers", "width", "input_size"])
@pytest.mark.parametrize("value", HUGE, ids=str)
def test_options_that_cannot_be(tmp_path, state, told, name, value):
    told = told | {"config": told["config"] | {name: value}}
    save_file(state, tmp_path / "odd.safetensors", {"isinglass": json.dumps(told)})
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        LightGlue.pretrained(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("filter_threshold", float("nan")), ("depth_confidence", "x"), ("scale_orientation", 1), ("colour", 3), ("", 1)],
)
def test_other_options_that_cannot_be(tmp_path, state, told, name, value):
    told = told | {"config": told["config"] | {name: value}}
    save_file(state, tmp_path / "odd.safetensors", {"isinglass": json.dumps(told)})
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        LightGlue.pretrained(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("encoder", [[10**9], [0], [], [2.5], "ab", 3, None, [[2]], list(range(1, 5000))], ids=str)
def test_encoders_that_cannot_be(tmp_path, encoder):
    model = SuperGlue(SuperGlue.Config(width=16, layers=2, encoder_widths=(4, 8)))
    path = save_checkpoint(model, tmp_path / "odd.safetensors", **FACTS)
    told = told_of(path)
    told["config"]["encoder_widths"] = encoder
    save_file(model.state_dict(), path, {"isinglass": json.dumps(told)})
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        SuperGlue.pretrained(path)


@pytest.mark.parametrize("name", ["format", "model", "config", "name", "licence", "trained_on", "accepts"])
def test_facts_that_are_none_or_missing(tmp_path, state, told, name):
    path = tmp_path / "odd.safetensors"
    lacking = {key: value for key, value in told.items() if key != name}
    changed = [told | {name: value} for value in FACTS_THAT_ARE_NONE if not (name == "accepts" and value in (None, []))]
    for one in [lacking, *changed] if name != "config" else [lacking, *changed[:3]]:
        save_file(state, path, {"isinglass": json.dumps(one)})
        with pytest.raises(WeightsError, match=r"odd\.safetensors"):
            LightGlue.pretrained(path)


# ---- tensors


def cyclic(state):
    content = dict(state)
    content["again"] = content["more"] = content
    return content


def deep(state, depth):
    content = dict(state)
    for _ in range(depth):
        content = {"model": content}
    return content


def changed(state, make, key="assignments.0.projection.weight"):
    return state | {key: make(state[key])}


FILES = {
    "sparse": lambda state: changed(state, lambda value: value.to_sparse()),
    "meta": lambda state: changed(state, lambda value: value.to("meta")),
    "quantized": lambda state: changed(state, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "complex": lambda state: changed(state, lambda value: value.to(torch.complex64)),
    "int": lambda state: changed(state, lambda value: (9 * value).to(torch.int32)),
    "int8": lambda state: changed(state, lambda value: (9 * value).to(torch.int8)),
    "bool": lambda state: changed(state, lambda value: value > 0),
    "float8": lambda state: changed(state, lambda value: value.to(torch.float8_e4m3fn)),
    "all int": lambda state: {key: value.int() for key, value in state.items()},
    "nan": lambda state: changed(state, lambda value: value * torch.nan),
    "infinity as float32": lambda state: changed(state, lambda value: value.double() + 1e300),
    "numbers repeated": lambda state: changed(state, lambda value: value[:1, :1].clone().expand(16, 16)),
    "a huge tensor of one number": lambda state: changed(state, lambda _: torch.zeros(1).expand(10**12)),
    "another shape": lambda state: changed(state, lambda value: value[:3]),
    "a number": lambda state: changed(state, lambda _: 3),
    "no dimension": lambda state: changed(state, lambda _: torch.tensor(1.0)),
    "cyclic": cyclic,
    "deep": lambda state: deep(state, 200),
    "long name": lambda state: state | {"x" * 5000: torch.rand(2)},
    "long names alone": lambda _: {f"{'x' * 5000}{i}": torch.rand(2) for i in range(5)},
    "name of lines": lambda state: state | {"a\nb\x1b[31m": torch.rand(2)},
    "odd layers": lambda state: state | {"assignments.x.weight": torch.rand(2)},
    "anchor alone": lambda state: {"position_encoding.weight": torch.rand(4, 2)},
    "anchor of another shape": lambda state: {"posenc.Wr.weight": torch.rand(()), "log_assignment.0.a": torch.rand(1)},
    "rows that are not three": lambda state: (
        {"posenc.Wr.weight": torch.rand(4, 2), "x.qkv.weight": torch.rand(4)}
        | {"transformers.0.self_attn.Wqkv.weight": torch.rand(4, 4)}
    ),
    "a list": lambda state: list(state.values()),
    "a tensor": lambda state: torch.rand(3),
    "nothing": lambda state: {},
    "names that are numbers": lambda state: dict(enumerate(state.values())),
}


@pytest.mark.parametrize("kind", FILES)
def test_odd_tensors(tmp_path, state, kind):
    path = tmp_path / "odd.pth"
    torch.save(FILES[kind](dict(state)), path)
    with pytest.raises(WeightsError, match=r"odd\.pth") as caught:
        LightGlue.pretrained(path)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sparse", "projection.weight is sparse; expected plain numbers"),
        ("int", "of another type (assignments.0.projection.weight int32)"),
        ("bool", "projection.weight bool"),
        ("complex", "projection.weight complex64"),
        ("nan", "with NaN or infinity (assignments.0.projection.weight)"),
        ("infinity as float32", "with NaN or infinity (assignments.0.projection.weight)"),
        ("long name", "(5000 letters)"),
    ],
)
def test_what_is_odd_is_named(tmp_path, state, kind, message):
    torch.save(FILES[kind](dict(state)), tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as caught:
        LightGlue.pretrained(tmp_path / "odd.pth")
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrapped", ["", "model", "state_dict", "module."])
def test_floats_of_other_sizes_and_wrapped_states_are_read(tmp_path, state, dtype, wrapped):
    content = {key: value.to(dtype) for key, value in state.items()}
    if wrapped == "module.":
        content = {f"module.{key}": value for key, value in content.items()}
    elif wrapped:
        content = {wrapped: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    found = LightGlue.pretrained(tmp_path / "a.pth", heads=2).state_dict()
    for key, value in state.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], value.to(dtype).float())


def test_tensors_of_one_storage_are_read(tmp_path, state):
    shared = torch.cat([value.flatten() for value in state.values()])
    parts = dict(zip(state, shared.split([value.numel() for value in state.values()]), strict=True))
    torch.save({key: part.view(state[key].shape) for key, part in parts.items()}, tmp_path / "a.pth")
    assert torch.equal(
        LightGlue.pretrained(tmp_path / "a.pth").state_dict()["assignments.1.projection.weight"],
        state["assignments.1.projection.weight"],
    )


# ---- bytes


def bomb(path):
    """A zip of 1 MB of which torch would make a gigabyte."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(1 << 28) if "/data/" in name else content)


def header_of(**tensors):
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header


HEADERS = {
    "beyond the end": header_of(a={"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}),
    "another size": header_of(a={"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}) + bytes(4),
    "huge": header_of(a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}) + bytes(4),
    "negative": header_of(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
    "overlap": header_of(**{key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for key in "ab"}) + bytes(4),
    "no dtype": header_of(a={"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
    "no JSON": struct.pack("<Q", 9) + b"{{{{{{{{{",
    "length of the header": struct.pack("<Q", 2**60) + b"{}",
    "nothing after the length": struct.pack("<Q", 2) + b"{",
    "no tensors": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(tmp_path, kind):
    (tmp_path / "odd.safetensors").write_bytes(HEADERS[kind])
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        LightGlue.pretrained(tmp_path / "odd.safetensors")


def test_a_zip_that_unpacks_to_very_much_is_refused(tmp_path):
    bomb(tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth .* unpacks to 2\d{8} bytes"):
        LightGlue.pretrained(tmp_path / "odd.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    for act in (LightGlue.pretrained, read_checkpoint, read_training_state):
        with pytest.raises(WeightsError, match="there is no file"):
            act(tmp_path)


@pytest.mark.parametrize("training", [None, TrainingState(tensors={"step": torch.arange(3)}, about={"step": 3})])
def test_every_flipped_bit_of_our_own_is_refused_or_harmless(tmp_path, training):
    model = nn.Linear(2, 2)
    model.config = SMALL  # pyright: ignore[reportArgumentType]
    path = save_checkpoint(model, tmp_path / "a.safetensors", training=training, **FACTS)
    content, expected, refused = path.read_bytes(), read_checkpoint(path), 0
    bits = range(0, 8 * len(content), 5)
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except WeightsError:
            refused += 1
            continue
        assert (found.config, found.name, found.licence) == (expected.config, expected.name, expected.licence)
        assert all(torch.equal(found.state[key], value) for key, value in expected.state.items())
        if training is not None:
            assert read_training_state(path).about == training.about
    assert refused > 0.95 * len(bits)
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsError):
        read_checkpoint(path)


def test_checkpoints_of_earlier_versions_have_no_hash(tmp_path, state, told):
    save_file(state, tmp_path / "a.safetensors", {"isinglass": json.dumps(told)})
    assert torch.equal(
        LightGlue.pretrained(tmp_path / "a.safetensors").state_dict()["confidences.0.bias"], state["confidences.0.bias"]
    )
