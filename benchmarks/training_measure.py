"""Measure what training.py trained: held-out homographies, the evaluation sets, exits, speed. Results are stored."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from evaluation import SETTINGS, SHARED, load, measure
from torch.utils.flop_counter import FlopCounterMode

from isinglass.cache import FeatureCache
from isinglass.datasets.leak import leak_report
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.matchers.superglue import SuperGlue
from isinglass.models import load_extractor
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.train.loop import make_fabric
from isinglass.train.losses import matches_of
from isinglass.train.objective import Counts, Objective, counts_of
from isinglass.train.recipes import EXTRACTORS, recipe
from isinglass.train.sources import HomographyPairs, held_out_numbers
from isinglass.train.start import photo_views
from isinglass.train.views import Photos
from isinglass.types import Features, Signature

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/training"
PHOTOS, FRAMES = SHARED / "data/train/photos", SHARED / "data/train/hololens"
RATIOS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # of nearest neighbours; the best is what is held against
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
HELD_OUT_PAIRS, TRAINING_PAIRS, AT_ONCE = 480, 160, 16
CPU = torch.device("cpu")
SHIPPED = ("sift", "aliked")  # features that the package has weights for
PUBLISHED = {"aliked": "lightglue-aliked"}  # of full size; measured beside ours where it can be had
FROM_ABOVE = ("caliterra", "copr", "brighton", "seneca")
STEPS_TIMED, VIEWS_TIMED, EXIT_REPEATS = 6, 24, 5


def accuracy(work, runs):
    """All that is trained of `runs`, and nearest neighbours of the same features."""
    done = {label: work / label / "best.safetensors" for label in runs if not label.startswith("ablation")}
    done = {label: file for label, file in done.items() if file.is_file()}
    for features in {label.split("-")[1] for label in done}:
        of_features = {label: file for label, file in done.items() if label.split("-")[1] == features}
        measure_held_out(work, features, {k: v for k, v in of_features.items() if not k.endswith("confidence")})
        measure_sets(work, features, of_features)
        if f"lightglue-{features}-confidence" in of_features:
            exit_times(work, features)


# ---- on random views of photos


def threshold_of(work, label, file):
    """The score that the matcher's F1 is best above, on pairs of photos that it was trained on; kept."""
    kept = RESULTS / "thresholds.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    if label not in found:
        objective, counts = Objective(loaded(label, file), "matching"), dict.fromkeys(THRESHOLDS, Counts())
        for batch in pairs_of_photos(work, label.split("-")[1], TRAINING_PAIRS, held_out=False):
            with torch.inference_mode():
                log_assignment = objective.log_assignment(batch)
            for threshold in THRESHOLDS:
                counts[threshold] += counts_of(matches_of(log_assignment, threshold)[:, 0], batch.target_B2N[:, 0])
        found[label] = max(THRESHOLDS, key=lambda threshold: counts[threshold].f1)
        print("threshold", label, found[label], {key: round(one.f1, 3) for key, one in counts.items()}, flush=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return found[label]


def loaded(label, file, **options):
    """The matcher of a run."""
    return (LightGlue if label.startswith("lightglue") else SuperGlue).pretrained(file, **options)


def measure_held_out(work, features, weights):
    """SuperGlue's protocol: recall and precision of matches on random homographies of held-out photos."""
    kept = RESULTS / f"held-out-{features}.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    judges = {f"nearest {ratio}": judge_of(Nearest(NearestConfig(ratio=ratio))) for ratio in RATIOS}
    for label, file in weights.items():
        model = loaded(label, file, filter_threshold=threshold_of(work, label, file))
        judges[label] = Objective(model, "matching").judge
    batches = list(pairs_of_photos(work, features, HELD_OUT_PAIRS, held_out=True))
    for label in [label for label in judges if label not in found]:
        found[label] = counts_by_pair(judges[label], batches)
        print("held out", label, np.sum(found[label], axis=0), flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found) + "\n")


def pairs_of_photos(work, features, count, *, held_out):
    """Batches of pairs of random views, with all their keypoints."""
    chosen = recipe(f"lightglue-{features}-homography-small")
    wanted = Options(extractor=chosen.extractor, max_keypoints=chosen.max_keypoints, min_distance=0)
    store = work / f"features-{chosen.extractor}/views"
    views = photo_views(chosen, PHOTOS, store, load_extractor(wanted, CPU), CPU, lambda done, of: None)
    source = HomographyPairs(views, held_out=held_out)
    for i in range(count // AT_ONCE):
        yield source.batch(AT_ONCE, np.random.default_rng([i, 2]))


def counts_by_pair(judge, batches):
    """[true, found, right] of each pair."""
    counts = [judge(pair) for batch in batches for pair in batch.split(len(batch))]
    return [[one.true, one.found, one.right] for one in counts]


def judge_of(matcher, tell=lambda matches: None):
    """Of one pair at a time, what the matcher makes of it; `tell` gets the matches."""
    extractor = (getattr(matcher, "accepts", None) or ("held out",))[0]

    def view_of(pair, i):
        is_point_N = torch.ones_like(pair.scores_B2N[0, i], dtype=torch.bool)
        if pair.mask_B2N is not None:
            is_point_N = pair.mask_B2N[0, i]
        scales = orientations = None
        if pair.scale_orientation_B2N2 is not None:
            scales, orientations = pair.scale_orientation_B2N2[:, i, is_point_N].unbind(dim=-1)
        found = Features(
            keypoints=pair.keypoints_B2N2[:, i, is_point_N],
            descriptors=pair.descriptors_B2ND[:, i, is_point_N],
            scores=pair.scores_B2N[:, i, is_point_N],
            scales=scales,
            orientations=orientations,
            image_size=pair.image_size_B22[:, i].long(),
            signature=Signature(extractor=extractor),
        )
        return found, is_point_N

    def judge(pair):
        (view0, is_point0_N), (view1, _) = (view_of(pair, i) for i in (0, 1))
        matches = matcher.match(view0, view1)
        tell(matches)
        matches_BN = torch.full_like(pair.target_B2N[:, 0], -1)
        matches_BN[:, is_point0_N] = matches.indices
        return counts_of(matches_BN, pair.target_B2N[:, 0])

    return judge


# ---- on the evaluation sets


def shipped(work):
    """Measure the weights in the package and nearest neighbours on the evaluation sets."""
    for features in SHIPPED:
        measure_sets(work, features, {})


def measure_sets(work, features, weights):
    """Measure homographies and poses: weights in the package, those of `weights`, nearest neighbours at all ratios."""
    extractor = EXTRACTORS[features]
    rows = {f"{features}-nearest-{ratio}": {"matcher": "nearest", "ratio": ratio} for ratio in RATIOS}
    rows |= {name: {"matcher": name} for name in (f"lightglue-{features}-small", f"superglue-{features}-small")}
    rows[f"lightglue-{features}-small-full"] = {"matcher": f"lightglue-{features}-small", "adaptive": False}
    for label, file in weights.items():
        if not label.endswith("confidence"):  # those are in the package
            rows[label] = {"matcher": str(file), "filter_threshold": threshold_of(work, label, file)}
    if features in PUBLISHED:
        rows[f"{features}-published-lightglue"] = {"matcher": PUBLISHED[features]}
    for name in ("homography", "redkitchen"):
        benchmark = load(name, work)
        for folder in (PHOTOS, FRAMES / "images"):
            if leaks := leak_report(folder, benchmark):
                sys.exit(f"training images are among the images of {name}: {leaks}")
        for label, options in rows.items():
            whole = {**SETTINGS[name], "extractor": extractor, "device": "cpu", **options}
            measure(name, label, benchmark, work / "sets", whole, results=RESULTS, solvers=("poselib",))


def exit_times(work, features):
    """Least milliseconds of each pair to match as shipped, and through all layers, taken in turn: [[shipped, all]]."""
    kept = RESULTS / "exit-times.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in ("homography", "redkitchen"):
        row = f"lightglue-{features}-small {name}"
        if row in found:
            continue
        whole = {**SETTINGS[name], "extractor": EXTRACTORS[features], "matcher": f"lightglue-{features}-small"}
        pipelines = [Pipeline(**whole, device="cpu", adaptive=adaptive) for adaptive in (True, False)]
        cache, times = FeatureCache(pipelines[0], work / "sets" / name / "features"), []
        for pair in load(name, work).pairs:
            views = [cache.get(pair.image0)[0], cache.get(pair.image1)[0]]
            times.append(np.min([[_matching_ms(one, views) for one in pipelines] for _ in range(EXIT_REPEATS)], axis=0))
        found[row] = np.round(times, 3).tolist()
        kept.write_text(json.dumps(found) + "\n")
        print("exit times", row, np.sum(times, axis=0), flush=True)


def _matching_ms(pipeline, views):
    start = time.perf_counter()
    pipeline.match_features([views[0]], [views[1:]])
    return 1000 * (time.perf_counter() - start)


# ---- fine-tuning


def finetuning(work):
    """Run examples/finetune.py on 100 photos from above, tested on others that the shipped matcher never saw either."""
    files, folders = Photos(PHOTOS, recipe("lightglue-sift-homography-small").views).files, {}
    is_held_out = held_out_numbers(len(files))
    for name, wanted, most in (("from-above", False, 100), ("from-above-test", True, None)):
        chosen = [file for file, held in zip(files, is_held_out, strict=True) if held == wanted and from_above(file)]
        folders[name] = work / "finetuning" / name
        folders[name].mkdir(parents=True, exist_ok=True)
        step = 1 if most is None else len(chosen) // most
        for file in chosen[::step][:most]:
            (folders[name] / file.name).write_bytes(file.read_bytes())
    run = work / "finetuning/run"
    command = [sys.executable, ROOT / "examples/finetune.py", *folders.values(), "-o", run]
    subprocess.run(command, check=True)
    counts = {name: len(list(folder.iterdir())) for name, folder in folders.items()}
    gain = {"photos": counts, **json.loads((run / "gain.json").read_text())}
    (RESULTS / "finetuning.json").write_text(json.dumps(gain, indent=1) + "\n")


def from_above(file):
    """Whether a photo is one of the aerial ones."""
    return file.name.startswith(FROM_ABOVE)


# ---- speed


def speed(work):
    """Pairs a second of both matchers with all of this process's threads, and what bounds that."""
    rows = {}
    for kind in ("lightglue", "superglue"):
        chosen = recipe(f"{kind}-sift-homography-small")
        batch = next(iter(pairs_of_photos(work, "sift", AT_ONCE, held_out=False)))
        keep = chosen.used_keypoints
        fields = {name: value for name, value in batch.tensors().items() if value is not None}
        cut = {
            name: value[:, :, :keep] for name, value in fields.items() if value.shape[2:3] == batch.target_B2N.shape[2:]
        }
        batch = replace(batch, **{**cut, "mask_B2N": None})
        batch = replace(batch, target_B2N=torch.where(batch.target_B2N >= keep, -1, batch.target_B2N))
        rows[kind] = {"pairs": len(batch), "keypoints": keep, **_step_times(chosen.config, batch)}
    rows["ceilings"] = {str(dtype).removeprefix("torch."): _ceiling(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows["views_a_second"] = {features: _views_a_second(features) for features in ("sift", "aliked")}
    rows["machine"] = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    (RESULTS / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def _step_times(config, batch):
    fabric = make_fabric(config, accelerator="cpu")
    model = Objective(config.make_model(), "matching")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model, optimizer = fabric.setup(model, optimizer)

    def step():
        fabric.backward(model(**batch.tensors())["loss"])
        optimizer.step()
        optimizer.zero_grad()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    times = []
    for _ in range(STEPS_TIMED):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"step_s": statistics.median(times), "gflop": counter.get_total_flops() / 1e9}


def _ceiling(dtype):
    """GFLOP/s of products of 8192 x 192 x 192, of the size that the layers make."""
    x, weight = torch.ones(8192, 192, dtype=dtype), torch.ones(192, 192, dtype=dtype)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        x @ weight
        times.append(time.perf_counter() - start)
    return 2 * 8192 * 192 * 192 / min(times) / 1e9


def _views_a_second(features):
    """Views drawn and extracted, as a run does once for its photos."""
    chosen = recipe(f"lightglue-{features}-homography-small")
    extractor = load_extractor(Options(extractor=chosen.extractor, max_keypoints=chosen.max_keypoints), CPU)
    photos = Photos(PHOTOS, chosen.views)
    extractor.extract(photos.view(0, 1).image_3HW[None])
    start = time.perf_counter()
    for photo in range(VIEWS_TIMED):
        extractor.extract(photos.view(photo, 1).image_3HW[None])
    return VIEWS_TIMED / (time.perf_counter() - start)
