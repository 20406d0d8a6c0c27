"""Extraction and matching are killed at any moment; going on gives, to the byte, what a run in one go gives."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest

from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.types import Signature
from support import write_photos

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")

OPTIONS = {"extractor": "rootsift", "matcher": "lightglue-sift-small", "max_keypoints": 100, "device": "cpu"}
PHOTOS = {"count": 9, "size": (320, 240), "every": 6}
SIFT = Signature(extractor="rootsift")

RUN = """
import itertools, json, sys, time
from pathlib import Path
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.sfm import extraction, matching, workers
from isinglass.sfm.store import FeatureStore

def main():
    folder, processes, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    extraction.IMAGES_A_PART, matching.SECONDS_A_PART, workers.PAIRS_A_CHUNK = 2, 0.0, 6
    slowly = lambda *_: time.sleep(0.05)
    pipeline = Pipeline(**options)
    names = extraction.image_names(folder / "photos")
    filled = extraction.extract_images(folder / "f.h5", folder / "photos", names, pipeline, tell=slowly)
    assert not filled.problems, filled.problems
    pairs = list(itertools.combinations(names, 2))
    if processes > 1:
        found = workers.match_with_workers(
            folder / "f.h5", pairs, folder / "m.h5", Options(**options), workers=processes, tell=slowly
        )
    else:
        settings = matching.matching_settings(pipeline)
        features = FeatureStore(folder / "f.h5")
        more = {"settings": settings, "batch_pairs": 3, "tell": slowly}
        found = matching.match_stored(features, pairs, folder / "m.h5", pipeline.matcher, **more)
    assert not found.problems, found.problems
    print(json.dumps([filled.made, found.made]))

if __name__ == "__main__":
    main()
"""


def contents(folder):
    """Every byte of every record."""
    found = {}
    with FeatureStore(folder / "f.h5", SIFT) as features, MatchStore(folder / "m.h5", SIFT) as matches:
        assert not features.problems | matches.problems
        for name in features:
            one = features.get(name)
            parts = one.keypoints, one.descriptors, one.scores, one.image_size, one.scales, one.orientations
            found[name] = features.digest(name), *(part.numpy().tobytes() for part in parts)
        for pair in matches:
            one = matches.get(*pair)
            found[pair] = matches.digests(pair), one.indices.tobytes(), one.scores.tobytes(), one.stop_layer
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """All records of a run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    write_photos(folder / "photos", **PHOTOS)
    run = start(folder, processes=1)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(tmp_path, undisturbed, processes):
    """Runs are killed over and over, each some time after it has added something, until one gets through."""
    write_photos(tmp_path / "photos", **PHOTOS)
    chance, kills, states = random.Random(processes), 0, set()
    while True:
        run = start(tmp_path, processes)
        before = footprint(tmp_path)
        while footprint(tmp_path) == before and run.poll() is None:
            time.sleep(0.005)
        time.sleep(0.4 * chance.random())
        if kills == 6 or run.poll() is not None:
            break
        run.kill()
        run.communicate(timeout=60)  # ends when no worker holds its output any more
        kills += 1
        found = contents(tmp_path)
        assert found.items() <= undisturbed.items()
        states.add(len(found))
    told, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert kills >= 4
    assert len(states) >= 3, states
    assert contents(tmp_path) == undisturbed
    assert {file.name for file in tmp_path.iterdir() if file.name[0] != "."} == {"photos", "f.h5", "m.h5"}
    extracted, matched = json.loads(told.splitlines()[-1])
    assert extracted + matched < len(undisturbed)  # the others are of the runs that were killed


def start(folder, processes):
    command = [sys.executable, "-c", RUN, str(folder), str(processes), json.dumps(OPTIONS)]
    env = {**os.environ, "ISINGLASS_ATTENTION": "Blocked"}  # and not what happens to be faster
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def footprint(folder):
    """Changes whenever a part is added or merged."""
    return sorted((file.name, _size(file)) for file in folder.rglob("*.h5"))


def _size(file):
    try:
        return file.stat().st_size
    except FileNotFoundError:  # merged meanwhile
        return None
