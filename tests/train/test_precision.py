"""The precision of a run is the machine's: measured, told, kept, and 16-bit gradients are scaled."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from isinglass.errors import InputError
from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.train.check import LAST, about_run
from isinglass.train.loop import Trainer, make_fabric, settled
from isinglass.train.precision import choose_precision
from made_training import MadeUp, config, losses, trainer

pytest.importorskip("lightning_fabric")
CPU, MODEL = torch.device("cpu"), LightGlueConfig(input_size=8)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "bf16-mixed"), (0.9, "float32"), (6.0, "float32")])
def test_auto_is_what_was_measured_to_be_fast(ratio, expected):
    choice = choose_precision("auto", CPU, MODEL, measure=lambda model: ratio)
    assert choice.precision == expected and f"{ratio:.2g} times as long" in choice.reason and choice.warning is None


def test_bfloat16_where_it_is_slow_is_warned_of_with_the_ratio():
    choice = choose_precision("bf16-mixed", CPU, MODEL, measure=lambda model: 7.5)
    assert choice.precision == "bf16-mixed"
    assert choice.warning is not None and "7.5 times" in choice.warning and "--precision float32" in choice.warning
    assert choose_precision("bf16-mixed", CPU, MODEL, measure=lambda model: 0.5).warning is None


def test_float32_is_not_measured():
    assert choose_precision("float32", CPU, MODEL, measure=lambda model: 1 / 0).precision == "float32"


@pytest.mark.parametrize(
    ("wanted", "device", "words"),
    [("16-mixed", "cpu", "only CUDA"), ("bf16-mixed", "mps", "mps does not train"), ("half", "cpu", "expected one of")],
)
def test_precisions_that_a_device_has_not_are_refused(wanted, device, words):
    with pytest.raises(InputError, match=words):
        choose_precision(wanted, torch.device(device), MODEL)


AVX2 = """
import logging, torch
from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.train.precision import choose_precision
model, cpu = LightGlueConfig(input_size=32, width=96, heads=2, layers=6), torch.device("cpu")
auto, asked = choose_precision("auto", cpu, model), choose_precision("bf16-mixed", cpu, model)
assert auto.precision == "float32", auto
assert asked.warning, asked
"""


def test_a_cpu_without_bfloat16_units_trains_in_float32():
    """Emulated: kernels of an AVX2 machine. A process of its own, as both are read when torch starts."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", AVX2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_keeps_its_precision(tmp_path):
    trainer(tmp_path, steps=1, save_every=1, precision="bf16-mixed").run()
    again, choice = settled(config(precision="auto"), tmp_path, CPU)
    assert again.precision == "bf16-mixed" and choice.reason == "as the run began"
    with pytest.raises(InputError, match="precision 'bf16-mixed' instead of 'float32'"):
        settled(config(precision="float32"), tmp_path, CPU)


def test_a_run_of_version_0_1_goes_on(tmp_path, monkeypatch):
    """There float32 was called 32-true."""
    old = trainer(tmp_path, steps=1, save_every=1, validate_every=1)
    old.about["config"]["precision"] = "32-true"
    old.run()
    assert about_run(tmp_path / LAST)["config"]["precision"] == "32-true"
    assert settled(config(precision="auto"), tmp_path, CPU)[0].precision == "float32"
    assert trainer(tmp_path, steps=2).run().step == 2


def test_gradients_of_float16_are_scaled_and_the_scale_is_kept(tmp_path):
    """float16 on a CPU, which only tests train in: gradients overflow at first, the scale falls, the loss falls."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

    made = config(steps=40, precision="16-mixed", validate_every=40, save_every=20)

    def run(steps):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        fabric.launch()
        source = MadeUp()
        trainer = Trainer(replace(made, steps=steps), source, MadeUp(), tmp_path, trained_on="x", fabric=fabric)
        return trainer, trainer._scaler.get_scale(), trainer.run()

    first, begun_at, progress = run(20)
    assert 0 < progress.skipped < 20 and first._scaler.get_scale() < begun_at
    _, taken_up_at, progress = run(40)
    assert taken_up_at == first._scaler.get_scale() and progress.step == 40
    curve = losses(tmp_path)
    assert curve[40] < 0.8 * curve[1]


def test_a_fabric_of_auto_is_one_of_the_devices_choice():
    assert make_fabric(config(precision="auto")).device.type == "cpu"
