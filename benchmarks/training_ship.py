"""Put what training.py trained into the package: with its threshold, its exit, and what its scores are worth."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from evaluation import CALIBRATIONS, SETTINGS, hololens_list, measure
from training_measure import AT_ONCE, FRAMES, PHOTOS, RESULTS, judge_of, loaded, threshold_of

from isinglass.datasets.leak import fingerprints, save_manifest
from isinglass.datasets.posed import load_superglue_pairs
from isinglass.datasets.synthetic import synthetic_homographies
from isinglass.eval.calibration import fit_calibrations, write_calibrations
from isinglass.eval.runs import load_run
from isinglass.train.objective import Counts
from isinglass.train.posed import split_by_time
from isinglass.train.recipes import EXTRACTORS, recipe
from isinglass.train.sources import held_out_numbers
from isinglass.train.state import LICENCE
from isinglass.train.views import Photos
from isinglass.weights.checkpoint import save_checkpoint
from isinglass.weights.records import OWN_DATA

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src/isinglass/weights/data"
ALPHAS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.997, 0.999)  # of LightGlue's exits (eq. 12); the paper's is 0.95
MOST_LOST = 0.005  # of F1, by exits
EXIT_PAIRS, CALIBRATION_PAIRS = 160, 150
FRAMES_APART = (2, 20)  # of the frames held out, from much in common to little


def ship(work, label, name, held_out):
    """Write the weights; what the table of records must say of them is printed."""
    source = work / label / "best.safetensors"
    threshold = threshold_of(work, label, source)
    options = {"filter_threshold": threshold}
    if name.startswith("lightglue"):
        options["depth_confidence"] = alpha_of(label, source, threshold, held_out)
    model = loaded(label, source, **options)
    file = save_checkpoint(
        model, DATA / f"{name}.safetensors", name=name, licence=LICENCE, trained_on=OWN_DATA, accepts=model.accepts,
        half=True,
    )  # fmt: skip
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    print(name, digest, file.stat().st_size, sum(one.numel() for one in model.parameters()), "parameters", options)


def write_manifest():
    """Fingerprints of all images that were learnt from."""
    save_manifest(
        DATA / "trained-on.txt", [one for place in (PHOTOS, FRAMES / "images") for one in fingerprints(place)]
    )


def alpha_of(label, file, threshold, held_out):
    """The least alpha whose exits lose at most MOST_LOST of F1 on pairs of the posed stage that are held out; kept."""
    kept = RESULTS / "exits.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    if label not in found:
        batches = [held_out.batch(AT_ONCE, np.random.default_rng([i, 3])) for i in range(EXIT_PAIRS // AT_ONCE)]
        pairs = [pair for batch in batches for pair in batch.split(len(batch))]
        rows = {}
        for alpha in (*ALPHAS, None):
            model = loaded(label, file, filter_threshold=threshold, depth_confidence=alpha)
            counts, layers = Counts(), []
            judge = judge_of(model, tell=lambda matches, layers=layers: layers.append(int(matches.stop_layer[0])))
            for pair in pairs:
                counts += judge(pair)
            rows[str(alpha)] = {"f1": counts.f1, "layers": float(np.mean(layers))}
        found[label] = rows
        kept.write_text(json.dumps(found, indent=1) + "\n")
        print("exits", label, rows, flush=True)
    rows = found[label]
    return next((alpha for alpha in ALPHAS if rows["None"]["f1"] - rows[str(alpha)]["f1"] <= MOST_LOST), None)


def calibrate(work, names):
    """What scores of the shipped weights are worth, from photos and frames that they have not learnt from."""
    files = Photos(PHOTOS, recipe("lightglue-sift-homography-small").views).files
    held_out = [file for file, held in zip(files, held_out_numbers(len(files)), strict=True) if held]
    frames = sorted(file.name for file in (FRAMES / "images").iterdir())
    frames = [Path(frames[i]).stem for i in split_by_time(len(frames), held_out=True)]
    pairs = hololens_list(work / "calibration", frames, FRAMES_APART)
    sets = {
        "synthetic": synthetic_homographies(held_out, CALIBRATION_PAIRS, 0, work / "calibration/synthetic"),
        "hololens": load_superglue_pairs(pairs, FRAMES / "images", name="hololens"),
    }
    for kind, benchmark in sets.items():
        for name in names:
            options = {**SETTINGS[kind], "extractor": EXTRACTORS[name.split("-")[1]], "matcher": name, "device": "cpu"}
            measure(kind, name, benchmark, work / "calibration", options, results=RESULTS, solvers=("poselib",))
    runs = [load_run(RESULTS / kind / f"{name}.json") for kind in sets for name in names]
    write_calibrations(CALIBRATIONS, fit_calibrations(runs))
