"""Measure what a map costs an image and a pair, on one core, for the cost model of docs/maps.md.

    python benchmarks/map_costs.py WORK          # the folder that maps.py was given; it is only read

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/costs.json. Times are of the processor, by one thread.
The index of image vectors is timed on random ones, which cost what others do.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from isinglass.eval.runs import machine
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from isinglass.sfm.matching import match_stored
from isinglass.sfm.retrieval import FLAT, Retrieval
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.sfm.verification import verify
from isinglass.sfm.vlad import REDUCED_TO, Vocabulary

RESULT = Path(__file__).resolve().parents[1] / "benchmarks/results/maps/costs.json"
SET, SOME_IMAGES, SOME_PAIRS = "redkitchen", 12, 60
INDEXED = (60_000, 240_000)  # images; both over FLAT
QUERIES, NEIGHBOURS = 256, 20


class Timer:
    """Seconds of the processor since it was made."""

    def __init__(self):
        self.start = time.process_time()

    def __call__(self):
        """Those."""
        return time.process_time() - self.start


def per_image_and_pair(folder, photos, work):
    """Seconds and bytes."""
    pipeline, names = Pipeline(), sorted(one.name for one in photos.iterdir())
    some = [photos / name for name in names[:: max(len(names) // SOME_IMAGES, 1)]][:SOME_IMAGES]
    pipeline.extract(some[0])
    timer = Timer()
    list(pipeline.extract_many(some))
    found = {"extract_s": timer() / len(some)}
    features, matches = FeatureStore(folder / "features.h5"), MatchStore(folder / "matches.h5")
    with Project(folder / "database.db") as project:
        every = sorted(project.matched)
        keypoints = np.mean([len(project.colmap_points(name)) for name in project.names])
    pairs = every[:: max(len(every) // SOME_PAIRS, 1)][:SOME_PAIRS]
    timer = Timer()
    match_stored(features, pairs, work / "matches.h5", pipeline.matcher, settings="")
    found["match_s"] = timer() / len(pairs)
    retrieval = Retrieval.learn(features)
    timer = Timer()
    retrieval.add(features, names)
    found["vector_s"] = timer() / len(names)
    found |= {
        "keypoints": float(keypoints),
        "features_bytes": (folder / "features.h5").stat().st_size / len(features),
        "matches_bytes": (folder / "matches.h5").stat().st_size / len(matches),
        "database_bytes": (folder / "database.db").stat().st_size / len(every),
    }
    cameras = cameras_of(photos, names, CameraOptions(share="single"))
    write_database(work / "database.db", features, matches, every, cameras)
    timer = Timer()
    verify(work / "database.db", threads=1)
    found["verify_s"] = timer() / len(every)
    return found


def index(count):
    """Seconds to make the index of so many images, and for one of them to be looked up."""
    rng = np.random.default_rng(0)
    retrieval = Retrieval(Vocabulary(signature=None, words=np.zeros((1, REDUCED_TO), np.float32)))
    vectors = rng.standard_normal((count, REDUCED_TO), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    retrieval._take([f"{i:09}" for i in range(count)], ["-"] * count, vectors.astype(np.float16))
    timer = Timer()
    retrieval._built()
    made = timer()
    timer = Timer()
    retrieval._search(vectors[:QUERIES], NEIGHBOURS, None)
    return {"make_s": made, "look_up_s": timer() / QUERIES, "bytes": 2 * REDUCED_TO}


def main(work):
    """Measure, and store."""
    import faiss
    import torch

    assert min(INDEXED) > FLAT
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    folder = Path(work) / SET
    with tempfile.TemporaryDirectory() as temporary:
        measured = per_image_and_pair(folder / "ours", folder / "photos", Path(temporary))
    measured["index"] = {str(count): index(count) for count in INDEXED}
    about = {**machine(), "threads": 1, "load": os.getloadavg()[0]}
    RESULT.write_text(json.dumps({"set": SET, "dimensions": REDUCED_TO, **measured, "machine": about}, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
