"""Measure which share of the pairs that overlap each way of choosing finds, against how many pairs it takes.

    python benchmarks/pair_selection.py WORK        # features go to WORK, which may be kept

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/pair_selection.json.

Two images overlap by the share of the one's pixels that the other sees, by depth and pose; of both directions the
lesser. What a first pass keeps is estimated on at most SAMPLE of the pairs that any way but "exhaustive" chose.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from localisation import CASES

from isinglass.datasets.pairs import Depth
from isinglass.pipeline import Pipeline
from isinglass.sfm.extraction import extract_images
from isinglass.sfm.pairs import LEAST_MATCHES, exhaustive, first_pass, sequential
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore
from isinglass.train.posed import PosedImage, overlap_by_depth

RESULT = Path(__file__).resolve().parents[1] / "benchmarks/results/maps/pair_selection.json"
DEPTH_STEP = {"redkitchen": 1, "hololens": 2}
MATCHERS = {"rootsift": "lightglue-sift-small", "aliked": "lightglue"}
OVERLAPS = (0.1, 0.3)  # from which on a pair is one that overlaps
COUNTS = (2, 5, 10, 20, 40, 80)
LEASTS = (1.0, 2.0, 3.0, 5.0, 8.0)
SAMPLE = 1200


def overlaps(name, work):
    """Names of the images with poses, and the overlap of each pair."""
    file = work / f"{name}-overlap.npz"
    case = CASES[name]()
    names, camera = sorted(case["poses"]), case["depth_camera"]
    if not file.exists():
        images = []
        for image in names:
            photo, pose = case["photos"] / image, case["depth_poses"][image]
            depth = Depth(file=case["photos"].parent / f"depth/{photo.stem}.png", step=DEPTH_STEP[name])
            rotation, translation = pose[:3, :3], pose[:3, 3]
            images.append(
                PosedImage(file=photo, camera=camera, rotation=rotation, translation=translation, depth=depth)
            )
        np.savez(file, overlap=overlap_by_depth(images, 0.0))
    overlap = np.load(file)["overlap"]
    return names, {(names[i], names[j]): float(overlap[i, j]) for i, j in itertools.combinations(range(len(names)), 2)}


def ways(names, store, plain):
    """Label -> pairs, of each way."""
    made = {"exhaustive": exhaustive(names)}
    for overlap in COUNTS[:5]:
        made[f"sequential {overlap}"] = sequential(names, overlap)
    for overlap in (5, 10):
        made[f"sequential {overlap}, 1, 2, 4, ... later"] = sequential(names, overlap, quadratic=True)
    loops = plain.pairs(names, 5, among=names, apart=10)
    made["sequential 10, loops 5"] = sequential(names, 10, loops=loops)
    for count in COUNTS:
        made[f"retrieval {count}"] = plain.pairs(names, count, among=names)
        made[f"retrieval {count}, not expanded"] = plain.pairs(names, count, among=names, expand=False)
    for dimensions in (32, 128):
        reduced = Retrieval.learn(store, dimensions=dimensions).add(store, names)
        made[f"retrieval 20, {dimensions} numbers"] = reduced.pairs(names, 20)
    return made


def judged(pairs, overlap, kept):
    """Of a way: what it finds, at which cost, and the same after first passes of several thresholds."""

    def found(some, least):
        every = [pair for pair, value in overlap.items() if value >= least]
        hit = sum(overlap[pair] >= least for pair in some)
        return {"found": round(hit / len(every), 4), "right": round(hit / max(len(some), 1), 4)}

    row = {"pairs": len(pairs), **{str(least): found(pairs, least) for least in OVERLAPS}}
    sampled = [pair for pair in pairs if pair in kept]
    for threshold in LEASTS if sampled else ():
        passed = [pair for pair in sampled if kept[pair] >= threshold]
        shares = {}
        for least in OVERLAPS:
            of = [pair for pair in sampled if overlap[pair] >= least]
            share = sum(kept[pair] >= threshold for pair in of) / max(len(of), 1)
            shares[str(least)] = round(row[str(least)]["found"] * share, 4)
        share = len(passed) / len(sampled)
        row[f"first pass {threshold:g}"] = {"pairs": round(len(pairs) * share), "found": shares}
    return row


def measure(name, extractor, work):
    """One set and extractor."""
    names, overlap = overlaps(name, work)
    pipeline = Pipeline(extractor=extractor, matcher=MATCHERS[extractor], max_keypoints=1024, resize=640)
    file = work / f"{name}-{extractor}.h5"
    extract_images(file, CASES[name]()["photos"], names, pipeline)
    store = FeatureStore(file)
    start = time.process_time()
    retrieval = Retrieval.learn(store)
    learnt = time.process_time()
    retrieval.add(store, names)
    added = time.process_time()
    chosen = ways(names, store, retrieval)
    union = sorted(
        set(itertools.chain.from_iterable(pairs for label, pairs in chosen.items() if label != "exhaustive"))
    )
    rng = np.random.default_rng(0)
    drawn = [union[i] for i in sorted(rng.choice(len(union), min(SAMPLE, len(union)), replace=False))]
    kept, costs = {}, {}
    for keypoints in (256, 1024):
        some = drawn if keypoints == 256 else drawn[:: max(len(drawn) // 100, 1)]
        before = time.process_time()
        scores = dict(first_pass(store, some, pipeline.matcher, keypoints))
        costs[f"{keypoints} keypoints"] = round(1000 * (time.process_time() - before) / len(some), 1)
        kept = kept or scores
    return {
        "images": len(names),
        "overlapping": {str(least): sum(value >= least for value in overlap.values()) for least in OVERLAPS},
        "words": len(retrieval.vocabulary.words),
        "numbers": retrieval.vocabulary.size,
        "learnt_cpu_s": round(learnt - start, 2),
        "described_cpu_ms_an_image": round(1000 * (added - learnt) / len(names), 2),
        "first_pass_sampled": len(kept),
        "cpu_ms_a_pair": costs,
        "ways": {
            label: judged(pairs, overlap, kept if set(union).issuperset(pairs) else {})
            for label, pairs in chosen.items()
        },
    }


def main(work):
    """All sets and extractors; what is measured is kept."""
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name in CASES:
        for extractor in MATCHERS:
            measured[f"{name} {extractor}"] = measure(name, extractor, work)
            print(name, extractor, json.dumps(measured[f"{name} {extractor}"]["cpu_ms_a_pair"]), flush=True)
    about = {"machine": platform.processor() or platform.machine(), "least_matches": LEAST_MATCHES, "sample": SAMPLE}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**about, "sets": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
