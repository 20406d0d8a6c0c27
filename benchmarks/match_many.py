"""Pairs a second of `match-many` against one call a pair of the published code, and what a second process brings.

    python benchmarks/match_many.py PEER_PYTHON               # about 15 minutes on 2 cores
    python benchmarks/match_many.py PEER_PYTHON --quick --results /tmp/quick.json

PEER_PYTHON is the interpreter of an environment that has peers/requirements.txt. All take the same features, by the
published ALIKED, of the 50 frames of RedKitchen in ../shared (or ISINGLASS_SHARED). The published code has them in
memory and keeps its matches there; ours reads them from a store, and writes a store. Each side runs in a process of its
own; they take turns. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from statistics import median

from speed_harness import HERE, ROOT, SHARED, Bench, Worker, agreement, temporary_folder

from isinglass.eval.runs import machine

RESULTS = ROOT / "benchmarks/results/maps/match_many.json"
KEYPOINTS = 1024
GROWTH_PAIRS = 400  # of all 1225: starting processes takes seconds


def arguments():
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer_python", help="interpreter of the environment of the peers")
    parser.add_argument("--quick", action="store_true", help="few pairs, one round: to see that all works")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either side")
    parser.add_argument("--work", type=Path, help="folder for features, kept for the next run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file")
    given = parser.parse_args()
    if given.quick and given.results == RESULTS:
        parser.error("a quick run proves nothing: give it a file of its own, --results FILE")
    return given


class Frames:
    """Features of all frames, as files for the peers and as a store for us."""

    def __init__(self, bench):
        folder = SHARED / "data/eval/redkitchen"
        lines = (folder / "pairs_with_gt.txt").read_text().splitlines()
        pairs = [tuple(Path(name).name for name in line.split()[:2]) for line in lines if line.strip()]
        self.listed = list(dict.fromkeys(pairs))[: 3 if bench.quick else None]
        images = sorted((folder / "images").iterdir())
        images = [image for image in images if not bench.quick or any(image.name in pair for pair in self.listed)]
        self.names = [image.name for image in images]
        self.file = {name: str(bench.work / f"frame-{Path(name).stem}.npz") for name in self.names}
        for image in images:
            if not Path(self.file[image.name]).is_file():
                request = {"image": str(image), "output": self.file[image.name], "keypoints": KEYPOINTS, "resize": 640}
                bench.peers.must("save_features", **request)
        self.store = str(bench.work / f"features-{len(self.names)}.h5")
        if not Path(self.store).is_file():
            files = [self.file[name] for name in self.names]
            bench.ours.must("save_store", files=files, names=self.names, output=self.store, count=KEYPOINTS)

    def some_of_all(self, count):
        """Evenly so many of all pairs."""
        every = list(itertools.combinations(self.names, 2))
        return [every[i * len(every) // count] for i in range(count)]


def against_published(bench, frames):
    """The same pairs by both; how fast, and how well the matches agree."""
    pairs = frames.listed
    of_files = [[frames.file[name] for name in pair] for pair in pairs]
    ours = {"do": "match_stored", "store": frames.store, "pairs": pairs, "output": str(bench.work / "matches.h5")}
    one_each = {"pairs": of_files, "count": KEYPOINTS}
    contestants = {
        "published, a call a pair": (bench.peers, {"do": "many", **one_each}),
        "isinglass, a call a pair, float32": (
            bench.ours,
            {"do": "many", **one_each, "at_once": False, "precision": "float32"},
        ),
        "isinglass match-many, float32": (bench.ours, {**ours, "precision": "float32"}),
        "isinglass match-many": (bench.ours, ours),
    }
    found = bench.compare(contestants, budget_s=120.0)
    theirs = found["published, a call a pair"].pop("matches")
    for one in found.values():
        one["pairs_a_second"] = len(pairs) / median(one["ms"]) * 1e3
        if (matches := one.pop("matches", None)) is not None:
            both = [agreement(*pair) for pair in zip(theirs, matches, strict=True)]
            total = sum(map(len, theirs))
            one["found"] = sum((b["found"] or 0) * len(t) for b, t in zip(both, theirs, strict=True)) / max(total, 1)
    rates = {label: one["pairs_a_second"] for label, one in found.items()}
    ratio = rates["isinglass match-many, float32"] / rates["published, a call a pair"]
    return {"pairs": len(pairs), "contestants": found, "times_as_fast_in_float32": ratio}


def growth(bench, frames):
    """One process of one thread, one of all threads, and as many processes of one thread each."""
    pairs = frames.some_of_all(6 if bench.quick else GROWTH_PAIRS)
    request = {"do": "match_stored", "store": frames.store, "pairs": pairs}
    single = Worker([sys.executable, HERE / "speed_worker.py"], bench.work / "single.log", 1)
    try:
        contestants = {
            "1 process, 1 thread": (single, {**request, "output": str(bench.work / "single.h5")}),
            f"1 process, {bench.threads} threads": (bench.ours, {**request, "output": str(bench.work / "threads.h5")}),
            f"{bench.threads} processes, 1 thread each": (
                bench.ours,
                {**request, "output": str(bench.work / "workers.h5"), "workers": bench.threads},
            ),
        }
        found = bench.compare(contestants, budget_s=0.0, warm_up=False)
    finally:
        single.close()
    matches = [one.pop("matches") for one in found.values()]
    for one in found.values():
        one["pairs_a_second"] = len(pairs) / median(one["ms"]) * 1e3
        del one["stop_layers"]
    same = all(one == matches[0] for one in matches)
    return {"pairs": len(pairs), "contestants": found, "same_matches": same}


def main():
    """Measure and write."""
    given = arguments()
    bench = Bench(given.peer_python, given.work or temporary_folder(), given.threads, given.quick)
    try:
        sides = {"isinglass": bench.ours.must("versions", tell=True), "peers": bench.peers.must("versions", tell=True)}
        frames = Frames(bench)
        found = {"against_published": against_published(bench, frames), "growth": growth(bench, frames)}
    finally:
        bench.close()
    whole = {
        "name": "match_many",
        "about": __doc__.splitlines()[0],
        "keypoints": KEYPOINTS,
        "images": len(frames.names),
        **found,
        "machine": {**machine(), "threads": {side: one["threads"] for side, one in sides.items()}},
        "versions": {side: one["versions"] for side, one in sides.items()},
        "quick": bench.quick,
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(whole, indent=1) + "\n")
    for part in found.values():
        for label, one in part["contestants"].items():
            print(f"{label}: {one['pairs_a_second']:.2f} pairs a second")


if __name__ == "__main__":
    main()
