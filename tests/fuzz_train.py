"""kill -9 of `isinglass train` at random moments: the same command, given again, ends as if nothing had happened.

    python tests/fuzz_train.py --kills 20 --seed 0

A run of a tiny recipe on photos made up here is killed while it reads photos, makes features, takes steps, validates
and writes checkpoints; after three kills it is left alone. Its weights, the moments of its optimizer and its loss curve
must be those of a run in one go, to the last bit, and nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from isinglass.train.check import BEST, LAST, LOG
from isinglass.weights.checkpoint import read_training_state
from support import write_photos

TRAIN = """
import sys, torch
torch.set_num_threads(1)  # sums in one order
from dataclasses import replace
from isinglass.cli import cli
from isinglass.train import recipes
name = "lightglue-sift-homography-small"
made = recipes.RECIPES[name]()
model = replace(made.config.model, width=32, heads=1, layers=2)
often = {"validation_pairs": 4, "validate_every": 3, "save_every": 2, "log_every": 1, "steps": 12, "batch_size": 2}
config = replace(made.config, model=model, **often)
small = replace(made, config=config, used_keypoints=48, max_keypoints=48, views_a_photo=3)
recipes.RECIPES[name] = lambda: replace(small, views=replace(small.views, size=(160, 120)))
images, output = sys.argv[1:]
command = ["train", "--recipe", name, "--images", images, "-o", output, "--precision", "float32", "--device", "cpu"]
sys.exit(cli.main(command, standalone_mode=False))
"""


def start(photos: Path, output: Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    paths = [str(Path(__file__).resolve().parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-c", TRAIN, str(photos), str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str], limit_s: float) -> str:
    """Wait for the end and return what it wrote. Raises AssertionError where it failed or hung."""
    try:
        _, words = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError(f"training did not end within {limit_s:.0f} s") from None
    assert process.returncode == 0, words
    return words


def kill_at(process: subprocess.Popen[str], word: str, after_s: float) -> bool:
    """Kill -9 some time after the process writes a line with that word; false where it had ended before."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            break
    threading.Event().wait(after_s)
    had_ended = process.poll() is not None
    process.kill()
    process.communicate()
    return not had_ended


def contents(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, object], list[tuple[int, float]]]:
    """Return all that a run must agree in: tensors of its checkpoint, counts, and the loss curve."""
    state = read_training_state(run / LAST)
    counts = {name: value for name, value in state.about["progress"].items() if name != "seconds"}
    rows = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    curve = [(row["step"], row.get("loss", row.get("validation_loss"))) for row in rows]
    return dict(state.tensors), counts, curve


def check_same(run: Path, whole: Path) -> None:
    """Raise AssertionError unless two runs ended alike, and nothing half-written is left."""
    (tensors, counts, curve), (tensors1, counts1, curve1) = contents(run), contents(whole)
    assert counts == counts1, (counts, counts1)
    assert curve == curve1, (curve, curve1)
    assert tensors.keys() == tensors1.keys()
    different = [name for name, value in tensors.items() if not torch.equal(value, tensors1[name])]
    assert not different, different
    best, best1 = (read_training_state(one / BEST).tensors for one in (run, whole))
    assert all(torch.equal(value, best1[name]) for name, value in best.items())
    assert not list(run.glob("**/*.tmp"))


# lines after which a kill is aimed at what follows, and the s that this takes at most
MOMENTS = {"preparing": 2.0, "output ": 0.5, "features of views: 0": 0.3, "step 1:": 0.2, "step 6:": 0.1, "F1": 0.1}


def campaign(folder: Path, kills: int, seed: int, *, a_run: int = 3, limit_s: float = 600.0) -> dict[str, int]:
    """Kill `a_run` times, finish, compare, and so on until there were so many kills. Returns counts."""
    rng, counts = random.Random(seed), {"kills": 0, "ended before the kill": 0, "runs": 0, "differences": 0}
    photos = write_photos(folder / "photos", 4)
    finish(start(photos, folder / "whole"), limit_s)
    while counts["kills"] < kills:
        run = folder / f"run{counts['runs']}"
        for _ in range(min(a_run, kills - counts["kills"])):
            word = rng.choice(list(MOMENTS))
            done = kill_at(start(photos, run), word, rng.uniform(0, MOMENTS[word]))
            counts["kills" if done else "ended before the kill"] += 1
        finish(start(photos, run), limit_s)
        try:
            check_same(run, folder / "whole")
        except AssertionError as error:
            counts["differences"] += 1
            sys.stderr.write(f"seed {seed}, {run.name}: {error}\n")
        counts["runs"] += 1
    return counts


def main() -> int:
    """Run a campaign and print its counts; 1 = a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counts = campaign(folder, given.kills, given.seed)
    words = ", ".join(f"{count} {what}" for what, count in counts.items())
    sys.stdout.write(f"{words} in {time.monotonic() - began:.0f} s\n")
    return int(counts["differences"] > 0)


if __name__ == "__main__":
    sys.exit(main())
