"""Checkpoint files: ours to and fro, others', damaged ones; strict loading; `pretrained`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from isinglass.errors import InputError, LicenceError, WeightsError
from isinglass.extractors.aliked import ALIKED
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue
from isinglass.weights import Pretrained, fetch, records
from isinglass.weights.checkpoint import load_strictly, read_checkpoint, save_checkpoint
from isinglass.weights.fetch import file_sha256

SMALL = LightGlue.Config(input_size=8, width=16, layers=2, heads=2, filter_threshold=0.3)
FACTS = {"name": "mine", "licence": "CC0-1.0", "trained_on": "my photos"}


def equal(state0, state1) -> bool:
    return state0.keys() == state1.keys() and all(torch.equal(value, state1[key]) for key, value in state0.items())


# --- ours


@pytest.mark.parametrize(
    "model",
    [LightGlue(SMALL), SuperGlue(SuperGlue.Config(width=16, layers=2, encoder_widths=(4, 8))), ALIKED()],
    ids=lambda model: type(model).__name__,
)
def test_what_is_saved_is_what_is_loaded(model, tmp_path):
    path = save_checkpoint(model, tmp_path / "new" / "a.safetensors", accepts=["xfeat", "disk"], **FACTS)
    again = type(model).pretrained(path)
    assert equal(again.state_dict(), model.state_dict())
    assert again.config == model.config
    assert not again.training
    assert (again.weights_name, again.accepts) == ("mine", ("xfeat", "disk"))
    assert again.weights_id == file_sha256(path)[:12]
    checkpoint = read_checkpoint(path)
    assert (checkpoint.licence, checkpoint.trained_on, checkpoint.origin) == ("CC0-1.0", "my photos", "isinglass")
    assert [one.name for one in path.parent.iterdir()] == ["a.safetensors"]


def test_one_training_step_survives_the_file(tmp_path):
    model = LightGlue(SMALL)
    inputs = torch.rand(1, 2, 9, 2) * 100, torch.randn(1, 2, 9, 8), torch.full((1, 2, 2), 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(*inputs)[-1].log_assignment_BNN.mean().neg().backward()
    optimizer.step()
    again = LightGlue.pretrained(save_checkpoint(model, tmp_path / "step", **FACTS))
    with torch.no_grad():
        assert torch.equal(again(*inputs)[-1].log_assignment_BNN, model(*inputs)[-1].log_assignment_BNN)


def test_half_precision_halves_the_file_and_loads_as_single(tmp_path):
    model = LightGlue(SMALL)
    full = save_checkpoint(model, tmp_path / "full", **FACTS)
    half = save_checkpoint(model, tmp_path / "half", half=True, **FACTS)
    assert half.stat().st_size < 0.7 * full.stat().st_size
    again = LightGlue.pretrained(half)
    for key, value in model.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], value.half().float())


def test_a_safetensors_file_of_ours_says_what_it_is(tmp_path):
    path = save_checkpoint(LightGlue(SMALL), tmp_path / "a.safetensors", **FACTS)
    with safe_open(path, framework="pt") as archive:
        told = json.loads(archive.metadata()["isinglass"])
    assert told["model"] == "LightGlue" and told["config"]["width"] == 16 and told["accepts"] is None
    save_file({"x": torch.rand(1)}, path, {"isinglass": json.dumps(told | {"format": 99})})
    with pytest.raises(WeightsError, match=r"another version of Isinglass.*update Isinglass"):
        read_checkpoint(path)
    told["config"]["depth"] = 3
    save_file(LightGlue(SMALL).state_dict(), path, {"isinglass": json.dumps(told)})
    with pytest.raises(
        WeightsError, match=r"another version of LightGlue.*'depth'.*Known options are input_size, width"
    ):
        LightGlue.pretrained(path)


LIMITED = """
import resource, sys
from isinglass.matchers.lightglue import LightGlue
from isinglass.weights.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
model = LightGlue(LightGlue.Config(width=16, layers=2, heads=2))
save_checkpoint(model, sys.argv[1], name="b", licence="", trained_on="")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_full_disk_takes_nothing_away(tmp_path):
    path = save_checkpoint(LightGlue(SMALL), tmp_path / "a.safetensors", **FACTS)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WeightsError: cannot write" in done.stderr
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


# --- others'


def published_names(model: LightGlue) -> dict[str, torch.Tensor]:
    """A state dict of ours as cvg/LightGlue would write it, by rules of this test alone."""
    renaming = (
        ("input_projection", "input_proj"),
        ("position_encoding", "posenc.Wr"),
        ("layers.", "transformers."),
        ("self_attention.qkv", "self_attn.Wqkv"),
        ("self_attention.out", "self_attn.out_proj"),
        ("_attention.ffn", "_attn.ffn"),
        ("cross_attention.", "cross_attn.to_"),
        ("projection", "final_proj"),
        ("assignments", "log_assignment"),
    )
    state = {}
    for key, value in model.state_dict().items():
        new = re.sub(r"confidences\.(\d+)", r"token_confidence.\1.token.0", key)
        for ours, theirs in renaming:
            new = new.replace(ours, theirs)
        state[new] = value
        if ".qkv." in key:
            heads_first = value.unflatten(0, (3, model.config.heads, -1)).movedim(0, 2)
            state[new] = heads_first.flatten(0, 2)
    return state


def glue_factory(model: LightGlue) -> dict:
    matcher = {f"matcher.{key}": value for key, value in published_names(model).items()}
    extractor = {f"extractor.{key}": value for key, value in ALIKED().state_dict().items()}
    return {
        "model": matcher | extractor,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(4)}},
            "param_groups": [{"lr": 1e-4}],
        },
        "conf": {"model": {"name": "two_view_pipeline", "matcher": {"n_layers": 2}}, "train": {"lr": 1e-4}},
        "epoch": 3,
        "eval": {"match_recall": np.float64(0.5), "n": np.int64(4), "f": np.float32(1), "ok": np.bool_(True)},
    }


def test_a_checkpoint_of_glue_factory_gives_matcher_and_extractor(tmp_path):
    model = LightGlue(SMALL)
    torch.save(glue_factory(model), tmp_path / "checkpoint_best.tar")
    again = LightGlue.pretrained(tmp_path / "checkpoint_best.tar", filter_threshold=0.3)
    assert equal(again.state_dict(), model.state_dict()) and again.config == SMALL
    assert (again.weights_name, again.accepts) == ("checkpoint_best", None)
    assert ALIKED.pretrained(tmp_path / "checkpoint_best.tar").config.variant == "n16"
    with pytest.raises(
        WeightsError, match=r"checkpoint_best\.tar holds LightGlue as .*glue-factory.*expected SuperGlue"
    ):
        SuperGlue.pretrained(tmp_path / "checkpoint_best.tar")


def test_the_number_pickles_of_older_numpy_are_read(tmp_path, monkeypatch):
    """numpy before 2 wrote its numbers as of numpy.core."""
    content = glue_factory(LightGlue(SMALL))
    path = tmp_path / "old.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_checkpoint(path).model == "LightGlue"


# --- bad files

written: list[str] = []


class Evil:
    def __reduce__(self):
        return written.append, ("run",)


def half_of(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable, str]] = {
    "truncated pickle": (
        lambda path: (torch.save(glue_factory(LightGlue(SMALL)), path), half_of(path)),
        "damaged, cut",
    ),
    "truncated safetensors": (
        lambda path: (save_checkpoint(LightGlue(SMALL), path, **FACTS), half_of(path)),
        "damaged, cut short",
    ),
    "empty": (lambda path: path.write_bytes(b""), r"\(0 bytes\).*damaged, cut short"),
    "text": (lambda path: path.write_text("{not weights}" * 9), r"\(117 bytes\).*damaged, cut short"),
    "web page": (lambda path: path.write_text("<html></html>"), "damaged, cut short"),
    "a header that lies": (lambda path: path.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"), "damaged, cut short"),
    "code": (lambda path: torch.save({"posenc.Wr.weight": Evil()}, path), "Python objects, which could run code"),
    "another model": (lambda path: torch.save(nn.Linear(2, 2).state_dict(), path), "2 tensors .weight, bias.*no known"),
    "no tensors": (lambda path: torch.save({"a": 1}, path), "0 tensors"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_bad_files_are_told_by_name(kind, tmp_path):
    make, message = DAMAGE[kind]
    path = tmp_path / "bad.pth"
    make(path)
    with pytest.raises(WeightsError, match=f"(?s)bad.pth.*{message}"):
        LightGlue.pretrained(path)
    assert not written


def test_absent_files_and_unknown_names(tmp_path):
    for absent in (tmp_path / "no.pth", str(tmp_path / "no.pth"), "no.pth", tmp_path):
        with pytest.raises(WeightsError, match="there is no file"):
            LightGlue.pretrained(absent)
    with pytest.raises(WeightsError, match="there is no file"):
        read_checkpoint(tmp_path / "no.pth")
    with pytest.raises(InputError, match="did you mean 'lightglue-aliked'"):
        LightGlue.pretrained("lightglue_aliked")
    with pytest.raises(InputError, match="'disk' are for DISK; LightGlue has: lightglue-aliked, "):
        LightGlue.pretrained("disk")


# --- strict loading


def test_reports_of_the_strict_load():
    model = LightGlue(SMALL)
    state = model.state_dict()
    cases = {
        "1 missing (layers.0.self_attention.out.bias). The file is of another variant of LightGlue, or not whole": {
            key: value for key, value in state.items() if key != "layers.0.self_attention.out.bias"
        },
        "1 foreign (extra.weight). The file is of another variant": state | {"extra.weight": torch.rand(1)},
        "1 of another shape (confidences.0.bias (2,) instead of (1,)). LightGlue was configured for other sizes": state
        | {"confidences.0.bias": torch.rand(2)},
        "1 with NaN or infinity (confidences.0.bias)": state | {"confidences.0.bias": torch.full((1,), torch.nan)},
        "missing (input_projection.weight, input_projection.bias, position_encoding.weight, ...); 2 foreign (weight, "
        "bias). No name agrees: the file is of another model than LightGlue": nn.Linear(2, 2).state_dict(),
    }
    before = {key: value.clone() for key, value in state.items()}
    for message, bad in cases.items():
        with pytest.raises(WeightsError) as caught:
            load_strictly(model, bad, "a.pth")
        assert str(caught.value).startswith("a.pth does not fit LightGlue. Keys: ")
        assert message in str(caught.value)
        assert equal(model.state_dict(), before)  # nothing was loaded in part
    load_strictly(model, state, "a.pth")


def test_counts_of_batches_may_lack_as_in_old_files():
    model, other = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    nn.init.normal_(other[0].running_mean)
    load_strictly(model, {k: v for k, v in other.state_dict().items() if k != "0.num_batches_tracked"}, "old")
    assert torch.equal(model[0].running_mean, other[0].running_mean)


# --- the mixin


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Of the model below."""

    size: int = 2
    scale: float = 1.0


class Tiny(Pretrained, nn.Module):
    """Not in the table of formats: its own files suffice."""

    Config = TinyConfig
    default_weights = "disk"

    def __init__(self, config: TinyConfig | None = None) -> None:
        super().__init__()
        self.config = config or TinyConfig()
        self.linear = nn.Linear(self.config.size, 1)


def test_a_new_model_says_that_it_is_random(tmp_path):
    model = Tiny()
    assert (model.weights_name, model.weights_id, model.accepts) == ("random-tiny", "random", None)
    assert LightGlue(SMALL).weights_name == "random-lightglue"
    path = save_checkpoint(Tiny(TinyConfig(size=5)), tmp_path / "tiny", **FACTS)
    loaded = Tiny.pretrained(str(path), scale=2.0, device="cpu")
    assert (loaded.weights_name, loaded.config) == ("mine", TinyConfig(size=5, scale=2.0))
    assert Tiny().weights_name == "random-tiny"


def test_unknown_options_and_sizes(tmp_path):
    path = save_checkpoint(Tiny(), tmp_path / "tiny", **FACTS)
    with pytest.raises(InputError, match="Tiny has no option sclae; it has size, scale"):
        Tiny.pretrained(path, sclae=2.0)
    with pytest.raises(WeightsError, match=r"linear\.weight \(1, 2\) instead of \(1, 3\).*configured for other sizes"):
        Tiny.pretrained(path, size=3)
    with pytest.raises(InputError, match="'disk' are for DISK; Tiny has: none"):
        Tiny.pretrained()


def test_licences_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path))
    monkeypatch.setenv("ISINGLASS_OFFLINE", "1")
    monkeypatch.delenv("ISINGLASS_ACCEPT_LICENCES", raising=False)
    with pytest.raises(LicenceError, match="non-commercial"):
        SuperGlue.pretrained("superglue-outdoor")
    with pytest.raises(WeightsError, match=r"not on this machine.*superglue_outdoor\.pth"):
        SuperGlue.pretrained("superglue-outdoor", accept_licence=True)


def test_an_official_file_dropped_into_the_folder_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path))
    monkeypatch.setenv("ISINGLASS_OFFLINE", "1")
    (tmp_path / "weights").mkdir()
    small = {"input_size": 8, "width": 16, "layers": 2, "heads": 2}
    model = LightGlue(LightGlue.Config(**small))
    torch.save(published_names(model), tmp_path / "weights" / "superpoint_lightglue.pth")
    with pytest.warns(UserWarning, match="no checksum is published"):
        again = LightGlue.pretrained("lightglue-superpoint", **small)
    assert equal(again.state_dict(), model.state_dict())
    assert (again.weights_name, again.accepts) == ("lightglue-superpoint", ("superpoint",))


# --- the published files


@pytest.mark.weights
def test_a_file_whose_hash_lost_its_name_is_damaged(tmp_path):
    path = save_checkpoint(LightGlue(SMALL), tmp_path / "own.safetensors", **FACTS)
    content = path.read_bytes()
    assert content.count(b"isinglass_sha256") == 1
    path.write_bytes(content.replace(b"isinglass_sha256", b"isinglAss_sha256"))
    with pytest.raises(WeightsError, match="sha256, or the name of that, is damaged"):
        LightGlue.pretrained(path)


@pytest.mark.parametrize("one", [one for one in records() if one.sha256], ids=lambda one: one.name)
def test_published_weights_load(one):
    from isinglass.extractors.disk import DISK
    from isinglass.extractors.xfeat import XFeat
    from isinglass.matchers.superglue import SuperGlue

    classes: dict[str, type[Pretrained]] = {cls.__name__: cls for cls in (ALIKED, DISK, XFeat, LightGlue, SuperGlue)}
    model = classes[one.model].pretrained(one.name)
    assert (model.weights_name, model.weights_id, model.accepts) == (one.name, one.sha256[:12], one.accepts)
    by_path = classes[one.model].pretrained(fetch(one.name))
    assert by_path.config == model.config and by_path.weights_name == one.name
    assert all(getattr(model.config, key) == value for key, value in one.config.items())
