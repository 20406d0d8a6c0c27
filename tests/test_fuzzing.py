"""The campaign of mutated inputs: that it finds what it is for, and some inputs of each target."""

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from fuzzing import campaign
from fuzzing.__main__ import SHARES
from fuzzing.campaign import Campaign
from fuzzing.mutate import BYTES, TEXT, mutate

SOME = {"requests": 40, "live-pages": 10, "colmap-databases": 30}


class Bad:
    """A target that does at its third input what it must not."""

    def __init__(self, folder):
        self.count, self.input = 0, b"the input"

    def try_one(self, rng):
        self.count += 1
        if self.count == 3:
            self.harm()
        return "same"

    def close(self):
        pass


class Crashing(Bad):
    def harm(self):
        os.abort()


class Hanging(Bad):
    def harm(self):
        time.sleep(60)


class Raising(Bad):
    def harm(self):
        raise KeyError("foreign")


class Greedy(Bad):
    def harm(self):
        self.held = b"\1" * 600_000_000


@pytest.mark.parametrize(
    ("target", "kind"), [(Crashing, "crash"), (Hanging, "hang"), (Raising, "KeyError"), (Greedy, "other data")]
)
def test_harm_is_found_and_the_campaign_goes_on(target, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "HANG_S", 3.0)
    monkeypatch.setenv("ISINGLASS_FUZZ_MEMORY", "100000000")
    found = Campaign({"bad": target}, seed=0, keep=tmp_path, workers=1).run({"bad": 5})["bad"]
    assert found.inputs == 5
    assert [(fault["index"], fault["kind"]) for fault in found.faults] == [(2, kind)]
    assert found.outcomes["same"] == 4
    if kind == "KeyError":
        assert (tmp_path / "bad-0-2.bin").read_bytes() == b"the input"


def test_the_same_seed_makes_the_same_input():
    data = bytes(range(256)) * 20
    made = [mutate(data, Random(i), text=i % 2 == 0) for i in range(50)]
    assert made == [mutate(data, Random(i), text=i % 2 == 0) for i in range(50)]
    assert len(set(made)) > 40


@pytest.mark.parametrize("mutation", [*BYTES, *TEXT])
@pytest.mark.parametrize("data", [b"", b"a", b"1 2 3\n4 5 6\n", bytes(100)])
def test_every_mutation_takes_everything(mutation, data):
    for i in range(50):
        assert isinstance(mutation(data, Random(i)), bytes)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("name", SHARES)
def test_some_inputs_of_each_target(name, tmp_path):
    """In a process of its own, as a fault may crash it."""
    command = [sys.executable, "-W", "ignore", "-m", "fuzzing", "--target", name, "--inputs", str(SOME.get(name, 80))]
    done = subprocess.run(
        [*command, "--seed", "1", "--workers", "1", "--keep", str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
