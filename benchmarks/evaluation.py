"""Measure the pairs of extractor and matcher at hand on real data; write docs/benchmarks.md from the stored runs.

    python benchmarks/evaluation.py WORK             # measure all that is missing or was judged by another truth
    python benchmarks/evaluation.py WORK redkitchen  # the same, of one benchmark
    python benchmarks/evaluation.py WORK timed       # the same for what needs a quiet machine: run time, thresholds
    python benchmarks/evaluation.py --page           # only write the page again, from results/eval

Features and matches go to WORK, so a stopped run continues with the same command. A stored run is kept while its
protocol is that of the benchmark: a changed list of pairs or poses makes its runs anew.

Needs ../shared/data (or ISINGLASS_SHARED): eval/homography in HPatches layout, eval/redkitchen in SuperGlue's format,
train/photos for the rotation sweep and, with train/hololens, for calibration.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import evaluation_page
import numpy as np

from isinglass.datasets.homography import load_hpatches
from isinglass.datasets.leak import leak_report
from isinglass.datasets.posed import load_superglue_pairs
from isinglass.datasets.synthetic import rotation_sweep, synthetic_homographies
from isinglass.eval.calibration import fit_calibrations, write_calibrations
from isinglass.eval.evaluate import AUC_AT, SOLVERS, Protocol, evaluate
from isinglass.eval.predictions import predict
from isinglass.eval.runs import load_run, save_run
from isinglass.eval.tune import Search, tune
from isinglass.geometry.solvers import solve_pose
from isinglass.metrics import auc, pose_error_deg
from isinglass.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")
REDKITCHEN = SHARED / "data/eval/redkitchen/pairs_corrected.txt"  # poses and focal length of the colour camera
RESULTS = ROOT / "benchmarks/results/eval"
CALIBRATIONS = ROOT / "src/isinglass/weights/calibrations.json"

CONFIGURATIONS = {  # label -> options of isinglass.Pipeline
    "aliked-lightglue-full": {"adaptive": False},
    "aliked-lightglue": {},
    "aliked-lightglue-bfloat16": {"precision": "bfloat16"},
    "disk-lightglue": {"extractor": "disk"},
    "xfeat-lighterglue": {"extractor": "xfeat"},
    "rootsift-nn-ratio": {"extractor": "rootsift", "matcher": "nearest", "ratio": 0.8},
    "aliked-nn": {"matcher": "nearest"},
}
SETTINGS = {  # benchmark -> options of all configurations; as the papers: 1024 keypoints, short side 480 or 640 x 480
    "homography": {"resize": 480, "resize_side": "short", "max_keypoints": 1024},
    "redkitchen": {"resize": 640, "max_keypoints": 1024},
    "rotation": {"resize": 480, "max_keypoints": 512},
    "synthetic": {"resize": None, "max_keypoints": 1024},
    "hololens": {"resize": 640, "max_keypoints": 1024},
}
CALIBRATED = ("aliked-lightglue", "disk-lightglue", "xfeat-lighterglue")
CALIBRATED_ON = ("synthetic", "hololens")  # training data: no image of it is in another benchmark here
TIMED = ("aliked-lightglue-full", "aliked-lightglue", "disk-lightglue", "xfeat-lighterglue", "aliked-nn")
KEYPOINTS = (256, 512, 1024, 2048, 4096)
TIMED_PAIRS_EACH = 4  # every fourth pair of the homographies
RADIAL, RADIAL_OF, RADIAL_THRESHOLD_PX = -0.023, "aliked-lightglue", 1.0  # fitted together with the focal length
ROTATION_PHOTOS = 8
ROTATION_STEP_DEG = 30
SYNTHETIC_PAIRS = 150
HOLOLENS_PAIRS = 150
HOLOLENS_FRAMES_APART = (5, 60)  # from nearly all in common to nearly nothing


def load(name, work):
    """The benchmark of that name."""
    if name == "homography":
        return load_hpatches(SHARED / "data/eval/homography", name="homography")
    if name == "redkitchen":
        return load_superglue_pairs(REDKITCHEN, name="redkitchen")
    if name == "hololens":
        return load_superglue_pairs(hololens_list(work), SHARED / "data/train/hololens/images", name="hololens")
    photos = sorted((SHARED / "data/train/photos").iterdir())
    if name == "synthetic":
        chosen = photos[:: len(photos) // SYNTHETIC_PAIRS][:SYNTHETIC_PAIRS]
        return synthetic_homographies(chosen, SYNTHETIC_PAIRS, 0, work / "synthetic")
    chosen = photos[:: len(photos) // ROTATION_PHOTOS][:ROTATION_PHOTOS]
    return rotation_sweep(chosen, ROTATION_STEP_DEG, work / "sweep")


def hololens_list(work, frames=None, apart=HOLOLENS_FRAMES_APART):
    """Pairs of the training frames, or of some, with their poses, as a list in SuperGlue's format."""
    folder = SHARED / "data/train/hololens"
    rows = [line.split() for line in (folder / "poses.txt").read_text().splitlines()]
    poses = {row[0]: np.array(row[1:], float).reshape(4, 4) for row in rows}  # camera to world
    camera = " ".join((folder / "K.txt").read_text().split())
    rng, names, lines = np.random.default_rng(0), frames or sorted(poses), []
    for first in np.linspace(0, len(names) - 1 - apart[1], HOLOLENS_PAIRS).astype(int):
        name0, name1 = names[first], names[first + int(rng.integers(*apart))]
        pose = " ".join(f"{value:.9g}" for value in (np.linalg.inv(poses[name1]) @ poses[name0]).ravel())
        lines.append(f"{name0}.webp {name1}.webp 0 0 {camera} {camera} {pose}")
    file = work / "hololens/pairs_with_gt.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def measure(name, label, benchmark, work, options, *, results=RESULTS, **protocol):
    """Store one run, unless it is stored already and was judged by the same truth."""
    kept = results / name / f"{label}.json"
    if kept.is_file() and json.loads(kept.read_text())["benchmark"]["protocol"] == benchmark.protocol:
        return
    run = evaluate(benchmark, Pipeline(**options), work / benchmark.name, label=label, protocol=Protocol(**protocol))
    info = {key: value for key, value in run.info.items() if key != "images"}  # paths of this machine
    info["options"] |= {"matcher": info["options"]["matcher"].removeprefix(f"{work.parent}/")}
    save_run(kept, info, {key: value for key, value in run.pairs.items() if key != "prediction"})
    print(f"{name} {label}: {run.info['benchmark']['num_pairs']} pairs", flush=True)


def measure_accuracy(work, names=tuple(SETTINGS)):
    """Measure all configurations on the benchmarks of those names; on all, also fit the calibrations."""
    for name in names:
        settings, benchmark, training = SETTINGS[name], load(name, work), name in CALIBRATED_ON
        solvers = ("poselib",) if training or name == "rotation" else SOLVERS[benchmark.task]
        for label, options in CONFIGURATIONS.items():
            if label in CALIBRATED or not (training or (name == "rotation" and "precision" in options)):
                measure(name, label, benchmark, work, {**settings, **options}, solvers=solvers)
        if name == "redkitchen":
            measure_radial(benchmark, work, {**settings, **CONFIGURATIONS[RADIAL_OF]})
    if names != tuple(SETTINGS):
        return
    for name in ("homography", "redkitchen"):
        benchmark = load(name, work)
        for folder in ("photos", "hololens/images"):
            if leaks := leak_report(SHARED / "data/train" / folder, benchmark):
                sys.exit(f"training images are among the images of {name}: {leaks}")
    runs = [load_run(RESULTS / name / f"{label}.json") for name in CALIBRATED_ON for label in CALIBRATED]
    write_calibrations(CALIBRATIONS, fit_calibrations(runs))


def measure_radial(benchmark, work, options):
    """Store what RedKitchen's radial distortion is worth in AUC: lists of pairs have no place for it."""
    kept = RESULTS / "radial-redkitchen.json"
    if kept.is_file() and json.loads(kept.read_text())["protocol"] == benchmark.protocol:
        return
    errors = {"ignored": [], "undone": []}
    for prediction in predict(benchmark, Pipeline(**options), work / benchmark.name):
        pair, saved = prediction.pair, prediction.saved
        points = saved.points0.numpy().astype(float), saved.points1.numpy().astype(float)
        cameras = pair.camera0, pair.camera1
        undone = [undistorted(*side) for side in zip(points, cameras, strict=True)]
        for label, sides in (("ignored", points), ("undone", undone)):
            pose = solve_pose(*sides, *cameras, "poselib", RADIAL_THRESHOLD_PX)
            truth = pair.pose.rotation, pair.pose.translation
            errors[label].append(max(pose_error_deg(pose.rotation, pose.translation, *truth)))
    areas = {label: auc(np.array(values), AUC_AT["pose"]) for label, values in errors.items()}
    about = {"protocol": benchmark.protocol, "label": RADIAL_OF, "radial": RADIAL, "threshold_px": RADIAL_THRESHOLD_PX}
    kept.write_text(json.dumps({**about, "auc": areas}, indent=1) + "\n")


def undistorted(points, camera):
    """Return the points (N, 2) in px as a camera without radial distortion would see them."""
    seen = (points - camera[:2, 2]) / camera[0, 0]
    ideal = seen
    for _ in range(20):
        ideal = seen / (1 + RADIAL * np.square(ideal).sum(axis=1, keepdims=True))
    return ideal * camera[0, 0] + camera[:2, 2]


def measure_times(work):
    """Run time against keypoints on some pairs, and the thresholds that `isinglass tune` finds on all of them."""
    whole = load("homography", work)
    some = replace(whole, name="runtime", pairs=whole.pairs[::TIMED_PAIRS_EACH])
    for label in TIMED:
        for count in KEYPOINTS:
            options = {**CONFIGURATIONS[label], "max_keypoints": count, "resize": 1024}
            protocol = {"solvers": ("poselib",), "thresholds_px": (2.0,), "fixed_threshold_px": 2.0}
            measure("runtime", f"{label}-{count}", some, work, options, **protocol)
    for name, threshold_px in (("homography", 2.0), ("redkitchen", 1.0)):
        kept, benchmark = RESULTS / f"tune-{name}.json", load(name, work)
        if not kept.is_file() or json.loads(kept.read_text())["protocol"] != benchmark.protocol:
            search = Search(threshold_px=threshold_px, filters=(0.05, 0.1, 0.2), repeats=1)
            tune(benchmark, Pipeline(**SETTINGS[name]), work / name, search)
            shutil.copyfile(work / name / f"tune-{name}-lightglue-aliked.json", kept)
            print(f"tuned on {name}: {json.loads(kept.read_text())['chosen']}", flush=True)


def main():
    """What the arguments say, then the page."""
    if sys.argv[1:] != ["--page"]:
        if len(sys.argv) < 2 or not set(sys.argv[2:]) <= {*SETTINGS, "timed"}:
            sys.exit(__doc__)
        work, names = Path(sys.argv[1]), sys.argv[2:]
        if names == ["timed"]:
            measure_times(work)
        else:
            measure_accuracy(work, tuple(names or SETTINGS))
    evaluation_page.write(RESULTS, CONFIGURATIONS)


if __name__ == "__main__":
    main()
