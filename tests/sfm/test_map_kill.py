"""kill -9 at a random moment of every stage of a map, and then again: what comes of it is as if nothing had been."""

import random
import subprocess
import sys

import pytest

from isinglass.sfm.colmap import Project
from isinglass.sfm.mapping import STAGES
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.store import FeatureStore, MatchStore
from mapped_scene import Setup

RUN = """
import os, signal, sys, threading, time
sys.path[:0] = {path!r}
from pathlib import Path
from mapped_scene import Setup
from isinglass.sfm import stages

class Killed(stages.Stages):
    def run(self, name, *more):
        if name == {stage!r}:
            def end():
                time.sleep({delay_s})
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=end, daemon=True).start()
        return super().run(name, *more)

from isinglass.sfm import mapping
mapping.Stages = Killed
setup = Setup(Path({folder!r}))
setup.make()
"""


def everything(setup):
    """All that a map is made of, as values."""
    features = FeatureStore(setup.folder / "features.h5")
    matches = MatchStore(setup.folder / "matches.h5")
    assert (features.problems, matches.problems) == ({}, {})
    with Project(setup.folder / "database.db") as project:
        verified = {pair: project.matches(*pair, verified=True).tolist() for pair in project.inliers}
    return (
        {name: features.get(name).keypoints.tolist() for name in features},
        {pair: matches.get(*pair).indices.tolist() for pair in matches},
        (setup.folder / "pairs.txt").read_text(),
        verified,
    )


@pytest.mark.slow
def test_killed_in_every_stage(tmp_path):
    undisturbed = Setup(tmp_path / "undisturbed")
    expected = undisturbed.make()
    setup = Setup(tmp_path / "killed")
    chance = random.Random(0)
    killed = 0
    for stage in STAGES:
        delay_s = chance.uniform(0, 1.2 * max(expected.seconds.get(stage, 0.1), 0.02))
        code = RUN.format(path=sys.path, stage=stage, delay_s=delay_s, folder=str(tmp_path / "killed"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode in (-9, 0), done.stderr
        killed += done.returncode == -9
    assert killed >= len(STAGES) // 2
    summary = setup.make()
    assert everything(setup) == everything(undisturbed)
    assert summary.models[0].registered == expected.models[0].registered
    assert max(setup.scene.centre_errors(read_model(setup.folder / "model")).values()) < 0.05
    left = [file.name for file in setup.folder.rglob("*.damaged")]
    assert left == []
