"""The loop on data made up here: it learns, resumes exactly, survives what goes wrong, and what it writes matches."""

import importlib.metadata
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from isinglass.errors import InputError, TrainingError, WeightsError
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue
from isinglass.train import state
from isinglass.train.loop import BEST, LAST, PATIENCE, Trainer
from isinglass.types import Features
from isinglass.weights.checkpoint import read_training_state
from made_training import LIGHTGLUE, SIGNATURE, SUPERGLUE, MadeUp, OneBatch, config, losses, trainer

pytest.importorskip("lightning_fabric")


@pytest.mark.parametrize("model", [LIGHTGLUE, SUPERGLUE], ids=["lightglue", "superglue"])
def test_two_layers_overfit_one_batch(tmp_path, model):
    """Recall and precision of 0.99 on the batch that is learnt by heart."""
    made = config(model, steps=250, batch_size=8, validate_every=250, save_every=250, ema=0.9, validation_pairs=8)
    one = OneBatch(noise=1.0)
    run = Trainer(made, one, one, tmp_path, trained_on="one batch")
    run.run()
    counts = run.mean_objective.eval().judge(one.batch(8, np.random.default_rng(0)))
    assert counts.recall >= 0.99 and counts.precision >= 0.99, counts


@pytest.mark.parametrize("model", [LIGHTGLUE, SUPERGLUE], ids=["lightglue", "superglue"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, model):
    """Same losses to the last bit, same weights; the steps after the last save are done again."""
    trainer(tmp_path / "whole", config(model)).run()
    stopped = trainer(tmp_path / "killed", config(model))

    def die(row):
        if row["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(tell=die)
    again = trainer(tmp_path / "killed", config(model))
    assert again.run_state.progress.step == 4
    again.run()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    kind = type(again.run_state.model)
    states = [kind.pretrained(tmp_path / one / LAST).state_dict() for one in ("whole", "killed")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_is_written_loads_strictly_and_matches(tmp_path):
    """One file: weights for everybody, and what training needs to go on."""
    run = trainer(tmp_path, steps=60)
    run.run()
    for name in (LAST, BEST):
        model = LightGlue.pretrained(tmp_path / name)
        assert (model.weights_name, model.accepts, model.config) == ("test", ("made-up",), LIGHTGLUE)
    batch = MadeUp(noise=0.0).batch(1, np.random.default_rng(5))
    views = [
        Features(
            keypoints=batch.keypoints_B2N2[:, i],
            descriptors=batch.descriptors_B2ND[:, i],
            scores=batch.scores_B2N[:, i],
            image_size=batch.image_size_B22[:, i],
            signature=SIGNATURE,
        )
        for i in (0, 1)
    ]
    assert len(model.match(*views).pairs()) > 5


def test_confidence_heads_learn_alone(tmp_path):
    trainer(tmp_path / "matching").run()
    start = str(tmp_path / "matching" / LAST)
    run = trainer(tmp_path / "confidence", learn="confidence", start=start, steps=30, learning_rate=1e-2)
    before = {name: value.clone() for name, value in run.run_state.model.state_dict().items()}
    run.run()
    changed = {name for name, value in run.run_state.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("confidences.") for name in changed)
    curve = losses(tmp_path / "confidence")
    assert curve[30] < curve[1]


def test_accumulated_parts_are_the_batch(tmp_path):
    for parts in (1, 4):
        trainer(tmp_path / str(parts), steps=1, save_every=1, accumulate=parts).run()
    states = [LightGlue.pretrained(tmp_path / str(parts) / LAST).state_dict() for parts in (1, 4)]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=2e-5, msg=name)


def test_a_step_that_is_not_finite_is_skipped_and_many_end_the_run(tmp_path):
    run = trainer(tmp_path / "some", source=MadeUp(spoilt=(3, 4)))
    progress = run.run()
    assert (progress.step, progress.skipped, progress.updates) == (12, 2, 10)
    assert all(value.isfinite().all() for value in run.run_state.model.state_dict().values())
    many = trainer(tmp_path / "many", source=MadeUp(spoilt=range(6, 99)), steps=60)
    with pytest.raises(TrainingError, match=f"not finite for {PATIENCE} steps .* with a lower learning_rate"):
        many.run()
    assert LightGlue.pretrained(tmp_path / "many" / LAST)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    run = trainer(tmp_path, steps=4)
    run.run()
    before = (tmp_path / LAST).read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    again = trainer(tmp_path, steps=4)
    with pytest.raises(WeightsError, match="No space left on device"):
        again._save(LAST)
    assert (tmp_path / LAST).read_bytes() == before


def test_another_run_is_not_overwritten(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(InputError, match=r"another run: its config differs: learning_rate 0.002 instead of 0.1"):
        trainer(tmp_path, learning_rate=0.1)
    other = replace(config(), model=SUPERGLUE)
    with pytest.raises(InputError, match="another run: its config differs: model"):
        trainer(tmp_path, other)


def test_low_rank_additions_are_learnt_and_merged(tmp_path):
    trainer(tmp_path / "start").run()
    start = str(tmp_path / "start" / LAST)
    run = trainer(tmp_path / "lora", start=start, lora_rank=2, steps=8)
    run.run()
    tuned, before = LightGlue.pretrained(tmp_path / "lora" / LAST), LightGlue.pretrained(start)
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith("layers.") and name.endswith("weight") for name in changed)
    assert trainer(tmp_path / "lora", start=start, lora_rank=2, steps=8).run_state.progress.step == 8


def test_frozen_parts_stay(tmp_path):
    run = trainer(tmp_path, frozen=("layers.0.", "input_projection."))
    before = {name: value.clone() for name, value in run.run_state.model.state_dict().items()}
    run.run()
    after = run.run_state.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("layers.0.", "input_projection."))} <= same
    assert any(name.startswith("layers.1.") for name in before.keys() - same)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch_size": 6, "accumulate": 4},
        {"learning_rate": 0},
        {"model": SUPERGLUE, "learn": "confidence"},
    ],
)
def test_a_config_that_makes_no_sense_is_an_error(changes):
    with pytest.raises(InputError):
        config(**changes)


def test_the_learning_rate_warms_up_and_decays():
    made = config(steps=100, warmup_steps=10, decay_from=0.5, learning_rate=1.0)
    rates = [made.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:50] == [pytest.approx(1.0)] * 41
    assert rates[50:] == sorted(rates[50:], reverse=True) and rates[-1] < 0.01


TWO_PROCESSES = """
import sys
from pathlib import Path
from lightning_fabric import Fabric
sys.path.insert(0, sys.argv[2])
from made_training import MadeUp, Trainer, config

def work(fabric):
    run = Trainer(config(batch_size=8), MadeUp(spoilt=(3,) if fabric.global_rank else ()), MadeUp(), Path(sys.argv[1]),
                  trained_on="made-up points", fabric=fabric)
    progress = run.run()
    assert (progress.step, progress.skipped) == (12, 1), progress
    total = sum(float(value.double().sum()) for value in run.run_state.model.state_dict().values())
    assert float(fabric.all_reduce(__import__("torch").tensor(total), reduce_op="mean")) == total or abs(
        float(fabric.all_reduce(__import__("torch").tensor(total), reduce_op="mean")) - total) < 1e-4

if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn", precision="32-true").launch(work)
"""


def test_two_processes_agree(tmp_path):
    """Gradients are averaged, a step that is bad for one is skipped by both, one of them writes."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, str(script), str(tmp_path / "run"), str(__import__("pathlib").Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert LightGlue.pretrained(tmp_path / "run" / LAST)
    assert len(losses(tmp_path / "run")) == 12


def test_superglue_and_lightglue_are_both_known():
    assert isinstance(config().make_model(), LightGlue) and isinstance(config(SUPERGLUE).make_model(), SuperGlue)


def test_what_made_it_is_told(tmp_path, monkeypatch):
    trainer(tmp_path, steps=1, save_every=1).run()
    told = read_training_state(tmp_path / LAST).about["made_by"]
    assert told["version"] == importlib.metadata.version("isinglass")
    assert told == state.made_by()
    git_folder = subprocess.run(
        ["git", "-C", state.__file__.rpartition("/")[0], "rev-parse"], capture_output=True, check=False
    )
    assert (told["commit"] is None) == (git_folder.returncode != 0)
    monkeypatch.setattr(state, "__file__", str(tmp_path / "state.py"))
    assert state.made_by()["commit"] is None
