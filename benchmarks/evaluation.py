"""Measure the pairs of extractor and matcher at hand on real data; write docs/benchmarks.md from the stored runs.

    python benchmarks/evaluation.py WORK          # measure what is not yet measured (features and matches go to WORK)
    python benchmarks/evaluation.py --page        # only write the page again, from results/eval

Needs ../shared/data (or ISINGLASS_SHARED): eval/homography in HPatches layout, eval/redkitchen in SuperGlue's format,
train/photos for the rotation sweep.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from isinglass.datasets.homography import load_hpatches
from isinglass.datasets.posed import load_superglue_pairs
from isinglass.datasets.synthetic import rotation_sweep
from isinglass.eval.evaluate import AUC_AT, SOLVERS, Protocol, evaluate
from isinglass.eval.runs import load_run, save_run
from isinglass.metrics import auc, bootstrap_interval
from isinglass.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")
RESULTS = ROOT / "benchmarks/results/eval"
PAGE = ROOT / "docs/benchmarks.md"

CONFIGURATIONS = {  # label -> options of isinglass.Pipeline
    "aliked-lightglue-full": {"adaptive": False},
    "aliked-lightglue": {},
    "disk-lightglue": {"extractor": "disk"},
    "xfeat-lighterglue": {"extractor": "xfeat"},
    "rootsift-nn-ratio": {"extractor": "rootsift", "matcher": "nearest", "ratio": 0.8},
    "aliked-nn": {"matcher": "nearest"},
}
SETTINGS = {  # benchmark -> options of all configurations; as the papers: 1024 keypoints, short side 480 or 640 x 480
    "homography": {"resize": 480, "resize_side": "short", "max_keypoints": 1024},
    "redkitchen": {"resize": 640, "max_keypoints": 1024},
    "rotation": {"resize": 480, "max_keypoints": 512},
}
ROTATION_PHOTOS = 8
ROTATION_STEP_DEG = 30


def load(name, work):
    """The benchmark of that name."""
    if name == "homography":
        return load_hpatches(SHARED / "data/eval/homography", name="homography")
    if name == "redkitchen":
        return load_superglue_pairs(SHARED / "data/eval/redkitchen/pairs_with_gt.txt", name="redkitchen")
    photos = sorted((SHARED / "data/train/photos").iterdir())
    chosen = photos[:: len(photos) // ROTATION_PHOTOS][:ROTATION_PHOTOS]
    return rotation_sweep(chosen, ROTATION_STEP_DEG, work / "sweep")


def measure(work):
    """All runs that are not stored yet."""
    for name, settings in SETTINGS.items():
        benchmark = load(name, work)
        for label, options in CONFIGURATIONS.items():
            kept = RESULTS / name / f"{label}.json"
            if kept.is_file():
                continue
            solvers = ("poselib",) if name == "rotation" else SOLVERS[benchmark.task]
            pipeline = Pipeline(**settings, **options)
            run = evaluate(benchmark, pipeline, work / name, label=label, protocol=Protocol(solvers=solvers))
            info = {key: value for key, value in run.info.items() if key != "images"}  # paths of this machine
            save_run(kept, info, {key: value for key, value in run.pairs.items() if key != "prediction"})
            print(f"{name} {label}: {run.info['benchmark']['num_pairs']} pairs", flush=True)


def runs(name):
    """The stored runs of a benchmark, in the order of CONFIGURATIONS."""
    paths = [RESULTS / name / f"{label}.json" for label in CONFIGURATIONS]
    return [load_run(path) for path in paths if path.is_file()]


def solver_table(name):
    """A row a run and solver: AUC at the best threshold with intervals, at the fixed one, precision and recall."""
    found = runs(name)
    if not found:
        return "Not measured yet.\n"
    at = AUC_AT[found[0].info["benchmark"]["task"]]
    unit = "px" if found[0].info["benchmark"]["task"] == "homography" else "deg"
    titles = ["features and matcher", "solver", "best threshold"]
    titles += [f"AUC@{x} {unit} (95 %)" for x in at] + [f"at {found[0].info['fixed_threshold_px']:g} px"]
    lines = [titles, ["---"] * len(titles)]
    for run in found:
        for solver, best in run.info["best"].items():
            errors = run.pairs[f"error__{solver}__{best['threshold_px']:g}"]
            cells = [run.info["label"], solver, f"{best['threshold_px']:g} px"]
            for x in at:
                low, high = bootstrap_interval(errors, None, lambda values, x=x: auc(values, [x])[0])
                cells.append(f"{100 * best['metrics'][f'auc@{x}']:.1f} ({100 * low:.1f} to {100 * high:.1f})")
            fixed = run.pairs[f"error__{solver}__{run.info['fixed_threshold_px']:g}"]
            cells.append(" / ".join(f"{100 * area:.1f}" for area in auc(fixed, at)))
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def match_table(name):
    """A row a run: what does not depend on a solver."""
    titles = ["features and matcher", "matches", "precision", "recall", "stop layer"]
    lines = [titles, ["---"] * len(titles)]
    for run in runs(name):
        pairs = run.pairs
        recall = np.nanmean(pairs["recall"]) if np.isfinite(pairs["recall"]).any() else np.nan
        layers = pairs["stop_layer"][pairs["stop_layer"] > 0]
        lines.append(
            [
                run.info["label"],
                f"{pairs['num_matches'].mean():.0f}",
                f"{100 * np.nanmean(pairs['precision']):.1f}",
                "-" if np.isnan(recall) else f"{100 * recall:.1f}",
                f"{layers.mean():.1f}" if len(layers) else "-",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rotation_table():
    """Share of right matches and of photos whose homography is found, by angle."""
    found = runs("rotation")
    if not found:
        return "Not measured yet.\n"
    angles = sorted(set(found[0].pairs["groups"].tolist()), key=float)
    lines = [["features and matcher", *(f"{float(angle):g}" for angle in angles)], ["---"] * (1 + len(angles))]
    for run in found:
        key = next(key for key in run.pairs if key.startswith("error__poselib__3"))
        cells = [run.info["label"]]
        for angle in angles:
            inside = run.pairs["groups"] == angle
            cells.append(f"{100 * np.mean(run.pairs[key][inside] < 3):.0f}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page():
    """docs/benchmarks.md."""
    first = next(iter(runs("homography") or runs("redkitchen")))
    machine, versions = first.info["machine"], first.info["versions"]
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""# Benchmarks

Written by `python benchmarks/evaluation.py` from `benchmarks/results/eval`; do not edit. Made on {machine["cpu"]},
{machine["cores"]} cores, with {made}. Times are in the runs, but the machine was busy with other work: they are not
shown here.

The data sets are small: read the intervals (95 %, bootstrap over pairs, which share images, so they are somewhat too
narrow). The best threshold of each solver is chosen on the same pairs; the last column is at a threshold fixed
beforehand. Thresholds and errors of homographies are px of images with a short side of 480, as in LightGlue's table.

## Homographies: 35 sequences, {first.info["benchmark"]["num_pairs"]} pairs

EVD (15 pairs), homogr (16), Oxford graf and boat, HPatches v_churchill and v_dogman; short side 480, 1024 keypoints.

{match_table("homography")}

{solver_table("homography")}

## Poses: 7-Scenes RedKitchen, 120 pairs

640 x 480, 1024 keypoints, 25 to 75 % overlap. Precision: SuperGlue's epipolar distance under 5e-4. Read it with care:
the calibration given with these frames (focal length 585 px) seems to be that of the depth camera; with 500 to 525 px
twice as many matches agree with the poses. Errors of poses are compared between rows under the same wrong focal length.

{match_table("redkitchen")}

{solver_table("redkitchen")}

## Turned images

{ROTATION_PHOTOS} photos against themselves turned by so many degrees, counter-clockwise; 512 keypoints, long side 480.
Share (%) of photos whose homography PoseLib finds to 3 px at the corners, threshold 3 px.

{rotation_table()}
"""


def main():
    """Measure unless --page, then write the page."""
    if "--page" not in sys.argv:
        if len(sys.argv) != 2:
            sys.exit(__doc__)
        measure(Path(sys.argv[1]))
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
