"""Tasks on a real Ray cluster of several nodes on this machine: the same as one process, whoever is killed."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import distributed
from isinglass.errors import InputError, IsinglassError
from isinglass.options import Options
from isinglass.pipeline import pipeline_of
from isinglass.sfm.extraction import extract_images
from isinglass.sfm.matching import Chunk, match_stored, matching_settings
from isinglass.sfm.pairs import exhaustive
from isinglass.sfm.store import FeatureStore, MatchStore

OPTIONS = {"extractor": "rootsift", "matcher": "lightglue-sift-small", "max_keypoints": 128, "device": "cpu"}
NAMES = [f"{i}.png" for i in range(9)]

DRIVER = """
import json, os, signal, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster as Nodes
from isinglass import distributed
from isinglass.pipeline import Pipeline
from isinglass.sfm.pairs import exhaustive
from isinglass.sfm.store import FeatureStore

folder, pipeline = Path(sys.argv[1]), Pipeline(**json.loads(sys.argv[2]))
distributed.PAIRS_A_TASK, distributed.PHOTOS_A_TASK = 3, 2
memory = {"object_store_memory": 80_000_000}
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
lost = nodes.add_node(num_cpus=1, **memory)
nodes.add_node(num_cpus=1, **memory)
cluster, killed = distributed.Cluster(address=nodes.address), []

def workers():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_text().startswith("ray::_"):
                yield int(process.name)
        except OSError:
            pass

def harm(done, of):
    if not killed and (running := list(workers())):
        os.kill(running[0], signal.SIGKILL)
        killed.append(running[0])
    elif len(killed) == 1 and of == 36 and done >= 9:
        nodes.remove_node(lost)
        killed.append("node")

names = sorted(file.name for file in (folder / "photos").iterdir())
filled = cluster.extract(folder / "features.h5", folder / "photos", names, pipeline)
features = FeatureStore(folder / "features.h5")
pairs = exhaustive(list(features))
matched = cluster.match(features, pairs, folder / "matches.h5", pipeline, tell=harm)
again = cluster.match(features, pairs, folder / "matches.h5", pipeline)
print(json.dumps({"made": [filled.made, matched.made], "again": [again.made, again.reused], "killed": killed,
                  "problems": [filled.problems, list(matched.problems.values())]}))
ray.shutdown()
nodes.shutdown()
"""


def order(**changes):
    told = {"options": Options(**OPTIONS), "threads": torch.get_num_threads(), "kernel": "Blocked"}
    return distributed.Order(**{**told, "version": distributed.version("isinglass"), **changes})


@pytest.fixture
def photos(tmp_path):
    """Overlapping windows of one texture, and a file that is no photo."""
    rng = np.random.default_rng(0)
    texture = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((900, 600))
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(NAMES):
        texture.crop((20 * i, 10 * i, 20 * i + 320, 10 * i + 240)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives_though_a_process_and_a_node_are_killed(photos, tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(OPTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["made"] == [9, 36] and told["again"] == [0, 36]
    assert len(told["killed"]) == 2 and told["killed"][1] == "node"
    assert list(told["problems"][0]) == ["broken.png"] and told["problems"][1] == []

    pipeline = pipeline_of(Options(**OPTIONS))
    extract_images(tmp_path / "f.h5", photos, NAMES, pipeline)
    features, other = FeatureStore(tmp_path / "f.h5"), FeatureStore(tmp_path / "features.h5")
    assert list(features) == list(other) == NAMES
    for name in NAMES:
        torch.testing.assert_close(features.get(name).keypoints, other.get(name).keypoints, rtol=0, atol=1e-3)
        assert features.digest(name) == other.digest(name)
    settings = matching_settings(pipeline, other)
    match_stored(other, exhaustive(NAMES), tmp_path / "m.h5", pipeline.matcher, settings=settings)
    alone, together = MatchStore(tmp_path / "m.h5"), MatchStore(tmp_path / "matches.h5")
    assert list(alone) == list(together) and alone.settings == together.settings
    assert sum(len(alone.get(*pair).pairs()) for pair in alone) > 500
    for pair in alone:
        np.testing.assert_array_equal(alone.get(*pair).indices, together.get(*pair).indices)
        np.testing.assert_allclose(alone.get(*pair).scores, together.get(*pair).scores, atol=1e-4)


def test_a_node_of_another_version_is_an_error():
    with pytest.raises(IsinglassError, match=r"a node has isinglass .*, expected 0\.0\.0 as on the driver"):
        distributed._match((Chunk([]), {}), order(version="0.0.0"))


def test_a_photo_that_cannot_be_read_does_not_spoil_the_others_of_its_task(photos):
    content = [(path.read_bytes(), None) for path in (photos / "broken.png", photos / NAMES[0])]
    broken, whole = distributed._extract(content, order())
    assert isinstance(broken, InputError) and whole.keypoints.shape == (1, 128, 2)


def test_places_follow_from_what_the_cluster_has():
    class Ray:
        @staticmethod
        def cluster_resources():
            return {"CPU": 12.0, "GPU": 2.0}

    assert distributed.Cluster(address="auto", threads=4).places(Ray) == 3
    assert distributed.Cluster(address="auto", gpus=0.5).places(Ray) == 4
    assert distributed.Cluster(address="auto", threads=32).places(Ray) == 1


def test_an_address_where_nobody_answers_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=f"no Ray cluster answers at '{address}'"):
        distributed.Cluster(address=address).connect()
