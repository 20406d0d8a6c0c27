"""Measurements that begin with photos: extraction, two photos to matches, a cold process."""

from __future__ import annotations

import itertools
import shutil
import sys

import numpy as np
from speed_harness import HERE, PHOTOS, PRECISIONS, SHARED, measurement, seconds

PEERS = {"aliked": "published", "disk": "published", "xfeat": "published", "superpoint": "transformers"}
KEYPOINTS = 2048
NEAR_PX = 0.5  # a keypoint is found again within this
COLD_RUNS = 3


@measurement
def extract(bench):
    """Each extractor on a photo of 1024 px in memory, the best 2048 keypoints."""
    image, rows = str(SHARED / "images" / PHOTOS["dsc"][0]), []
    weights = str(bench.work / "superpoint.pt")
    bench.peers.must("save_weights", model="superpoint", output=weights)
    for name in bench.sizes(*PEERS):
        request = {"do": "extract", "extractor": name, "image": image, "keypoints": KEYPOINTS}
        if name == "superpoint":
            request["weights"] = weights
        contestants = {PEERS[name]: (bench.peers, request)}
        for precision in PRECISIONS:
            contestants[f"isinglass {precision}"] = (bench.ours, {**request, "precision": precision})
        found = bench.compare(contestants)
        if "not_measured" in found["isinglass bfloat16"]:
            del found["isinglass bfloat16"]  # most extractors have float32 alone
        keypoints = {label: np.array(one.pop("keypoints", [])) for label, one in found.items()}
        for label, points in keypoints.items():
            if len(points):
                found[label]["num_keypoints"] = len(points)
                found[label]["found"] = _found(keypoints[PEERS[name]], points)
        rows.append({"extractor": name, "contestants": found})
    return {"rows": rows}


def _found(theirs, ours):
    """The share of their keypoints with one of ours near."""
    if not len(theirs):
        return None
    squared = ((theirs[:, None] - ours[None]) ** 2).sum(axis=2)
    return float((squared.min(axis=1) <= NEAR_PX**2).mean())


@measurement
def photos(bench):
    """Two files to matches in a process that has done it before: decoding, ALIKED, LightGlue."""
    rows = []
    for pair in bench.sizes(*PHOTOS, least=1):
        images = [str(SHARED / "images" / name) for name in PHOTOS[pair]]
        request = {"do": "photos", "image0": images[0], "image1": images[1]}
        request["keypoints"] = 256 if bench.quick else KEYPOINTS
        contestants = {"published": (bench.peers, request)}
        for precision in PRECISIONS:
            contestants[f"isinglass {precision}"] = (bench.ours, {**request, "precision": precision})
        rows.append({"pair": pair, "contestants": bench.compare(contestants)})
    return {"rows": rows}


@measurement
def cold(bench):
    """From the start of a process to its end, with two photos matched and the result printed; and `import torch`."""
    images, out = [str(SHARED / "images" / name) for name in PHOTOS["dsc"]], bench.work / "cold"
    commands = {
        "published": [bench.peer_python, HERE / "peers/cold.py", *images],
        "isinglass": [sys.executable, "-m", "isinglass", "match", *images, "-o", out, "--no-picture"],
        "published: import torch": [bench.peer_python, "-c", "import torch"],
        "isinglass: import torch": [sys.executable, "-c", "import torch"],
    }
    spent = {label: {"ms": []} for label in commands}
    for _, (label, command) in itertools.product(range(1 if bench.quick else COLD_RUNS), commands.items()):
        shutil.rmtree(out, ignore_errors=True)  # or it would find the features and matches of the last time
        spent[label]["ms"].append(1e3 * seconds(command, bench.threads))
    return {"rows": [{"pair": "dsc", "contestants": spent}]}
