"""Measurements of matchers: LightGlue and SuperGlue against the peers, adaptivity, batches."""

from __future__ import annotations

import numpy as np
from PIL import Image
from speed_harness import PHOTOS, PRECISIONS, agreement, measurement

from isinglass.datasets.covisible import read_depth
from isinglass.datasets.pairs import Depth
from isinglass.geometry.camera import covisible

COUNTS = (512, 1024, 2048, 4096)
KEPT = 4096  # keypoints of the photos that are extracted, best first
FURTHER_UP_TO = 2048  # keypoints at which further peers are measured too
PAIRS_A_SET = 18  # of the real pairs sorted by overlap
GRID = 24  # points a side by which overlap is measured


def _judged(contestants):
    """The results, with how well the matches agree with the published code's in place of the matches themselves."""
    matches = {label: found.pop("matches", None) for label, found in contestants.items()}
    for label, found in contestants.items():
        if matches[label] is not None:
            found["agreement"] = agreement(matches[next(iter(contestants))], matches[label])
    return contestants


def _ours(bench, request):
    """Contestants of ours, by precision."""
    return {f"isinglass {name}": (bench.ours, {**request, "precision": name}) for name in PRECISIONS}


@measurement
def lightglue(bench):
    """The default, adaptive LightGlue, on the same features of both pairs of photos."""
    rows, counts = [], bench.sizes(*COUNTS, least=1)
    for count in counts:
        for pair in bench.sizes(*PHOTOS, least=1):
            same = {**bench.photo_features(pair, KEPT if not bench.quick else 512), "count": count}
            contestants = {
                "published": (bench.peers, {"do": "lightglue", "implementation": "published", **same}),
                **_ours(bench, {"do": "lightglue", **same}),
            }
            if pair == "dsc" and count <= FURTHER_UP_TO:
                contestants["kornia"] = (bench.peers, {"do": "lightglue", "implementation": "kornia", **same})
                contestants["transformers"] = (bench.peers, {"do": "lightglue_transformers", **same})
            rows.append({"pair": pair, "keypoints": count, "contestants": _judged(bench.compare(contestants))})
    return {"rows": rows}


@measurement
def layers(bench):
    """All nine layers for all keypoints, on the same features of one pair of photos."""
    rows = []
    for count in bench.sizes(*(one for one in COUNTS if one <= FURTHER_UP_TO), least=1):
        same = {**bench.photo_features("dsc", KEPT if not bench.quick else 512), "count": count}
        request = {**same, "adaptive": False}
        contestants = {
            "published": (bench.peers, {"do": "lightglue", "implementation": "published", **request}),
            **_ours(bench, {"do": "lightglue", **request}),
            "onnxruntime": (bench.peers, {"do": "lightglue_onnx", "folder": str(bench.work), **same}),
        }
        rows.append({"pair": "dsc", "keypoints": count, "contestants": _judged(bench.compare(contestants))})
    return {"rows": rows}


def _superglue_weights(bench):
    file = str(bench.work / "superglue.pt")
    bench.peers.must("save_weights", model="superglue", output=file)
    return file


@measurement
def superglue(bench):
    """SuperGlue against the class of transformers: the same random weights and features, 20 Sinkhorn iterations."""
    count = 128 if bench.quick else 1024
    same = {"do": "superglue", "weights": _superglue_weights(bench), "count": count, "iterations": 20}
    same |= bench.random_features(count)
    contestants = {"transformers": (bench.peers, same), **_ours(bench, same)}
    return {"rows": [{"keypoints": count, "iterations": 20, "contestants": _judged(bench.compare(contestants))}]}


@measurement
def lightglue_superglue(bench):
    """Our LightGlue against our SuperGlue. The weights of SuperGlue are random: its work does not depend on them."""
    rows, weights = [], _superglue_weights(bench)
    for count in bench.sizes(512, 1024, 2048, least=1):
        photos = {**bench.photo_features("dsc", KEPT if not bench.quick else 512), "count": count}
        random = {**bench.random_features(count), "count": count, "weights": weights}
        contestants = {
            "LightGlue, adaptive": (bench.ours, {"do": "lightglue", **photos}),
            "LightGlue, all layers": (bench.ours, {"do": "lightglue", **photos, "adaptive": False}),
            "SuperGlue, 20 iterations": (bench.ours, {"do": "superglue", **random, "iterations": 20}),
            "SuperGlue, 100 iterations": (bench.ours, {"do": "superglue", **random, "iterations": 100}),
        }
        found = bench.compare(contestants)
        for one in found.values():
            one.pop("matches", None)
        rows.append({"keypoints": count, "contestants": found})
    return {"rows": rows}


def overlap(pair):
    """The share of an image of which the other one shows the same, the smaller of both directions; NaN = unknown."""
    if pair.homography is not None:
        maps = [(pair.image0, pair.image1, pair.homography)]
        maps.append((pair.image1, pair.image0, np.linalg.inv(pair.homography)))
        return min(_overlap_by_homography(*one) for one in maps)
    folder = pair.image0.parent.parent / "depth"
    depth0, depth1 = (read_depth(Depth(file=folder / f"{image.stem}.png")) for image in (pair.image0, pair.image1))
    rotation, shift = pair.pose.rotation, pair.pose.translation
    sides = [
        (depth0, depth1, (pair.camera0, pair.camera1), (rotation, shift)),
        (depth1, depth0, (pair.camera1, pair.camera0), (rotation.T, -rotation.T @ shift)),
    ]
    return min(_overlap_by_depth(*one) for one in sides)


def _grid(width, height):
    x, y = np.meshgrid((np.arange(GRID) + 0.5) / GRID * width, (np.arange(GRID) + 0.5) / GRID * height)
    return np.stack([x.ravel(), y.ravel()], axis=1) - 0.5


def _overlap_by_homography(image0, image1, homography):
    sizes = []
    for path in (image0, image1):
        with Image.open(path) as image:
            sizes.append(image.size)
    unmirrored = homography * np.sign(np.linalg.det(homography))  # then the third coordinate is positive in front
    moved = np.column_stack([_grid(*sizes[0]), np.ones(GRID**2)]) @ unmirrored.T
    points = moved[:, :2] / np.where(moved[:, 2:] > 0, moved[:, 2:], np.nan)
    return float(((points >= -0.5) & (points <= np.array(sizes[1]) - 0.5)).all(axis=1).mean())


def _overlap_by_depth(depth0, depth1, cameras, pose):
    """Of the points whose depth is known in both views. Depths may differ by 10 %: these are coarse."""
    found = covisible(_grid(depth0.shape[1], depth0.shape[0]), depth0, depth1, cameras, pose, tolerance=0.1)
    known = found.visible | found.hidden
    return float(found.visible.sum() / known.sum()) if known.any() else float("nan")


@measurement
def adaptive(bench):
    """Adaptive against all layers on real pairs sorted by overlap, 1024 keypoints at 640 px."""
    rows = []
    for name in ("homography", "redkitchen"):
        pairs = sorted(((overlap(pair), pair) for pair in bench.benchmark(name)), key=lambda one: one[0], reverse=True)
        wanted = 3 if bench.quick else PAIRS_A_SET
        chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, wanted).round().astype(int)]
        for number, (share, pair) in enumerate(chosen):
            files = {"features0": bench.features_of(pair.image0), "features1": bench.features_of(pair.image1)}
            request = {"do": "lightglue", **files, "count": 1024}
            modes = {"all layers": False, "adaptive": True}
            contestants = {label: (bench.ours, {**request, "adaptive": mode}) for label, mode in modes.items()}
            found = bench.compare(contestants, budget_s=0.0, warm_up=number == 0)
            for one in found.values():
                one.pop("matches", None)
            third = ("easy", "medium", "hard")[3 * number // wanted]
            rows.append({"set": name, "pair": pair.name, "overlap": share, "third": third, "contestants": found})
    return {"rows": rows}


@measurement
def batch(bench):
    """64 pairs of 512 keypoints in one call against 64 calls."""
    count, pairs = (128, 8) if bench.quick else (512, 64)
    request = {"do": "many", "pairs": bench.real_pairs(pairs), "count": count}
    contestants = {
        "one call": (bench.ours, {**request, "at_once": True}),
        "a call each": (bench.ours, {**request, "at_once": False}),
    }
    return {"rows": [{"keypoints": count, "pairs": pairs, "contestants": bench.compare(contestants, budget_s=20.0)}]}
