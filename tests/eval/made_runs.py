"""Runs of evaluation as the runner writes them, made up: random images, matches, truth and errors."""

import numpy as np
import torch
from PIL import Image

from isinglass.eval.runs import load_run, save_run
from isinglass.files import save_matches
from isinglass.metrics import auc
from isinglass.types import Matches
from support import make_features

SIZE = (64, 48)
AUC_AT = (1, 3, 5)
MAA_PX = (1, 2, 5, 20)
SOLVERS, THRESHOLDS = ("poselib", "opencv-ransac", "dlt"), (0.5, 1.0, 3.0)


def made_run(
    folder, label="ours", *, seed=0, pairs=12, quality=1.0, protocol="made 1", pictures=True, scored="auc", **info
):
    """A run of `pairs` pairs in two groups, written to `folder` and read again; the better, the higher `quality`.

    With `scored` "maa" as of EVD: mean average accuracies and no AUC.
    """
    rng = np.random.default_rng(seed)
    match_count = 40
    names = np.array([f"scene{i // 4}/{i}" for i in range(pairs)])
    arrays = {
        "names": names,
        "groups": np.array(["viewpoint" if i % 2 else "illumination" for i in range(pairs)]),
        "num_keypoints0": np.full(pairs, 60),
        "num_keypoints1": np.full(pairs, 50),
        "num_matches": np.full(pairs, match_count),
        "stop_layer": 3 + np.arange(pairs) % 5,
        "match_ms": rng.uniform(20, 40, pairs) / quality,
        "extract_ms": rng.uniform(80, 90, pairs),
        "match_scores": rng.uniform(0, 1, pairs * match_count).astype(np.float32),
        "match_pair": np.repeat(np.arange(pairs), match_count),
    }
    correct = (rng.uniform(0, 1, pairs * match_count) < arrays["match_scores"] ** (1 / quality)).astype(np.int8)
    correct[::match_count] = -1  # one match a pair is not judged
    arrays["match_correct"] = correct
    by_pair = correct.reshape(pairs, match_count)
    arrays["num_correct"] = (by_pair == 1).sum(axis=1)
    arrays["precision"] = arrays["num_correct"] / (by_pair >= 0).sum(axis=1)
    base = rng.exponential(2.0 / quality, pairs)
    base[0] = np.inf  # a failed pair
    for i, solver in enumerate(SOLVERS):
        for threshold in THRESHOLDS if solver != "dlt" else (1.0,):
            arrays[f"error__{solver}__{threshold:g}"] = base * (1 + 0.2 * i + 0.1 * abs(threshold - 1))
    if scored == "maa":
        for name in [name for name in arrays if name.startswith("error__")]:
            accuracy = np.mean([arrays[name] <= threshold for threshold in MAA_PX], axis=0)
            arrays[name.replace("error", "accuracy")] = accuracy
    if pictures:
        arrays["prediction"] = _pictures(folder, label, pairs, match_count, rng)
    path = folder / f"{label}.json"
    save_run(path, {**_info(label, protocol, arrays), **info}, arrays)
    return load_run(path)


def _info(label, protocol, arrays):
    pairs = len(arrays["names"])
    tables = _tables(arrays)
    benchmark = {"name": "made", "protocol": protocol, "task": "homography", "num_pairs": pairs, "problems": []}
    if any(name.startswith("accuracy__") for name in arrays):
        benchmark |= {"auc_at": [], "maa_px": MAA_PX}  # other runs are as runs were before there was mAA
    return {
        "benchmark": benchmark,
        "label": label,
        "options": {"extractor": "x", "matcher": "y", "max_keypoints": 60, "resize": 64, "adaptive": True},
        "extractor": "x",
        "matcher": "y",
        "weights": {"x": "5be8704840ed", "y": "none"},
        "solvers": SOLVERS,
        "thresholds_px": THRESHOLDS,
        "fixed_threshold_px": 1.0,
        "seed": 0,
        "versions": {"isinglass": "0.1.0", "python": "3.11.2"},
        "machine": {"cpu": "a cpu", "cores": 2, "threads": 1, "gpu": None},
        "timings_ms": {"match": {"median": float(np.median(arrays["match_ms"])), "mean": 1.0}, "extract": {}},
        "tables": tables,
        "best": {row["solver"]: row for row in tables if row["threshold_px"] == 1.0 and row["group"] == "all"},
        "images": [["image0.png", "image1.png"]] * pairs,
    }


def _tables(arrays):
    tables = []
    for name in [name for name in arrays if name.startswith("error__")]:
        _, solver, threshold = name.split("__")
        for group in ("all", "illumination", "viewpoint"):
            inside = np.isin(arrays["groups"], ["illumination", "viewpoint"] if group == "all" else [group])
            metrics = {f"auc@{at}": one for at, one in zip(AUC_AT, auc(arrays[name][inside], AUC_AT), strict=True)}
            if (accuracy := arrays.get(name.replace("error", "accuracy"))) is not None:
                metrics = {"maa": float(accuracy[inside].mean())}
            metrics["precision"], metrics["recall"] = float(arrays["precision"][inside].mean()), None
            row = {"solver": solver, "threshold_px": float(threshold), "group": group}
            tables.append({**row, "num_pairs": int(inside.sum()), "metrics": metrics})
    return tables


def _pictures(folder, label, pairs, match_count, rng):
    """Writes two images, and a file of matches for every pair."""
    folder.mkdir(parents=True, exist_ok=True)
    for view in (0, 1):
        pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{view}.png")
    features = make_features(60, size=SIZE), make_features(50, size=SIZE)
    indices = torch.cat([torch.arange(match_count), torch.full((60 - match_count,), -1)])[None]
    matches = Matches(indices=indices, scores=torch.rand(1, 60), matcher="y")
    files = [f"predictions/{label}/{i}.npz" for i in range(pairs)]
    for file in files:
        save_matches(folder / file, matches, *features)
    return np.array(files)
