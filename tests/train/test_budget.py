"""Hours include everything: the last validation and the last checkpoint end before the deadline."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.train.budget import Budget
from isinglass.train.check import BEST, LAST, LOG, about_run
from isinglass.train.loop import EARLY, Trainer
from isinglass.train.state import only_one
from made_training import MadeUp, config, trainer

pytest.importorskip("lightning_fabric")


class Clock:
    """A clock that only goes on when a source is asked for a batch."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Slow(MadeUp):
    """Pairs that take seconds by the clock."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def batch(self, size, rng):
        self.clock.now += self.seconds
        return super().batch(size, rng)


@pytest.fixture
def clock(monkeypatch):
    """The clock of the trainer alone: event loops of this process, which sleep by the real one, would never wake."""
    clock = Clock()
    for module in ("loop", "budget", "store"):
        monkeypatch.setattr(f"isinglass.train.{module}.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.mark.parametrize("validation_s", [0.1, 3.0])
def test_a_run_ends_within_its_time_validated_and_saved(tmp_path, clock, validation_s):
    """A validation is 4 batches: with one started at the deadline, the run would end 12 s late."""
    made = config(steps=10_000, validation_pairs=16, validate_every=10_000, save_every=10_000)
    run = Trainer(made, Slow(clock, 1.0), Slow(clock, validation_s), tmp_path, trained_on="x")
    began, rows = clock.now, []
    progress = run.run(until_s=60, tell=rows.append)
    assert 35 < clock.now - began <= 60
    assert rows[-1]["step"] == progress.step and "f1" in rows[-1]
    assert about_run(tmp_path / LAST)["progress"]["step"] == progress.step
    assert rows[4]["left_s"] <= 60 and rows[4]["last_step"] <= 60


def test_at_least_one_step_is_made_and_kept_where_there_is_no_time_for_a_validation(tmp_path, clock):
    run = Trainer(config(), Slow(clock, 5.0), Slow(clock, 50.0), tmp_path, trained_on="x")
    assert run.run(until_s=4).step == 1
    assert (tmp_path / LAST).is_file() and not (tmp_path / BEST).is_file()


def test_a_validation_that_takes_longer_than_the_first_batch_said_is_given_up(tmp_path, clock):
    """The checkpoint is written before the deadline all the same."""

    class Slower(Slow):
        def batch(self, size, rng):
            self.seconds *= 3
            return super().batch(size, rng)

    made = config(steps=10_000, validation_pairs=32, validate_every=10_000, save_every=10_000)
    run = Trainer(made, Slow(clock, 1.0), Slower(clock, 0.2), tmp_path, trained_on="x")
    began, rows = clock.now, []
    progress = run.run(until_s=100, tell=rows.append)
    assert about_run(tmp_path / LAST)["progress"]["step"] == progress.step
    assert not any("f1" in row for row in rows)
    assert clock.now - began <= 100 + run.validation.seconds  # the batch that was under way


def test_the_hours_of_a_command_begin_anew(tmp_path, clock):
    made = config(steps=10_000, validation_pairs=4, validate_every=10_000, save_every=10_000)
    steps = [Trainer(made, Slow(clock, 1.0), MadeUp(), tmp_path, trained_on="x").run(until_s=20).step for _ in range(2)]
    assert steps[1] > 1.5 * steps[0]


def test_early_steps_are_told_and_the_log_is_that_of_a_run_without_a_stop(tmp_path):
    told = []
    settings = {"steps": 24, "log_every": 10, "validate_every": 100}
    trainer(tmp_path / "whole", **settings).run()
    trainer(tmp_path / "parts", **{**settings, "steps": 4}).run()
    trainer(tmp_path / "parts", **settings).run(tell=told.append)
    assert [row["step"] for row in told if "loss" in row] == [5, 6, 7, 9, 10, 14, 20, 24]
    rows = [json.loads(line) for line in (tmp_path / "parts" / LOG).read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 5, 10, 20] == list(EARLY)


def test_a_budget_without_a_deadline_allows_everything():
    budget = Budget()
    budget.add_step(1e9)
    assert budget.allows_step() and budget.allows_validation() and budget.left_s == math.inf


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with only_one(tmp_path), pytest.raises(InputError, match="another process trains"):
        trainer(tmp_path).run()
    assert trainer(tmp_path, steps=1).run().step == 1


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    trainer(tmp_path, steps=1).run()
    left = [tmp_path / ".last.safetensors.123.tmp", tmp_path / "mine.tmp"]
    for file in left:
        file.write_bytes(b"half")
    trainer(tmp_path, steps=2).run()
    assert not left[0].exists() and left[1].exists()


def test_a_torn_log_is_no_reason_to_stop(tmp_path):
    trainer(tmp_path, steps=2, save_every=1).run()
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"step": 3, "lo\xff}\n[]\n7}')
    trainer(tmp_path, steps=3).run()
    steps = [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert np.unique(steps).tolist() == [1, 2, 3]
