"""Train what is shipped, and measure it; write docs/training.md from the stored logs and runs.

    python benchmarks/training.py train WORK RUN...  # one after the other, each on from where it was; see RUNS
    python benchmarks/training.py measure WORK       # what is trained, and mutual nearest neighbours
    python benchmarks/training.py finetune WORK      # examples/finetune.py, of the weights that are shipped
    python benchmarks/training.py speed WORK         # wants a quiet machine
    python benchmarks/training.py ship WORK          # into src/isinglass/weights/data
    python benchmarks/training.py --page             # only write the page again, from results/training

Needs ../shared/data (or ISINGLASS_SHARED): train/photos and train/hololens to learn from, eval/homography in HPatches
layout and eval/redkitchen in SuperGlue's format to measure on.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import training_measure
import training_page
from evaluation import SHARED
from training_variants import VARIANTS, variant

from isinglass.datasets.leak import fingerprints, save_manifest
from isinglass.train.recipes import recipe
from isinglass.train.start import Data, pairs_of, start
from isinglass.train.state import LICENCE
from isinglass.weights.checkpoint import save_checkpoint
from isinglass.weights.records import OWN_DATA, OWN_VIEWS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/training"
PHOTOS, FRAMES = SHARED / "data/train/photos", SHARED / "data/train/hololens"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe, and what is different. `start` is a run of this table; `model_as` a variant of the architecture."""

    recipe: str
    start: str | None = None
    model_as: str | None = None
    changes: dict = field(default_factory=dict)


FEATURES = {"sift": "rootsift", "aliked": "aliked-n16"}
POSED = ("sift",)  # features of which weights go through the posed stage; of ALIKED's there was no time for it
SHORTER = {"aliked": {"steps": 2000}}  # of the first stage, half of the recipe's, for the same reason


def trained_on(label):
    """What a run's weights say of their data."""
    return OWN_VIEWS if label.split("-")[1] in FEATURES.keys() - POSED else OWN_DATA


def last_stage(kind, features):
    """The stage that a kind's matching is learnt in last."""
    return f"{kind}-{features}-{'posed' if features in POSED else 'homography'}"


RUNS = {
    f"{kind}-{features}-{stage}": Plan(
        recipe=f"{kind}-{features}-{stage}-small",
        start={"posed": f"{kind}-{features}-homography", "confidence": last_stage(kind, features)}.get(stage),
        changes=SHORTER.get(features, {}) if stage == "homography" else {},
    )
    for kind in ("lightglue", "superglue")
    for features in FEATURES
    for stage in ("homography", "posed", "confidence")
    if (kind, stage) != ("superglue", "confidence") and (stage != "posed" or features in POSED)
}
SHIPPED = {  # run -> name of the weights
    f"lightglue-{features}-confidence"
    if kind == "lightglue"
    else last_stage(kind, features): f"{kind}-{features}-small"
    for kind in ("lightglue", "superglue")
    for features in FEATURES
}
ALPHA = 0.99  # of LightGlue's exits (eq. 12): of 6 layers, the paper's 0.95 leaves too early on hard pairs
ABLATED_STEPS = 1000  # of the same schedule, so that the whole model's own log is what they are held against
RUNS |= {f"ablation-{name}": Plan(recipe="lightglue-sift-homography-small", model_as=name) for name in VARIANTS}


def train(label, work):
    """The run of that label, from its beginning or from where it was, to its end."""
    plan, folder = RUNS[label], work / label
    chosen = recipe(plan.recipe)
    changes = {**plan.changes, "start": str(work / plan.start / "best.safetensors") if plan.start else None}
    chosen = replace(chosen, config=replace(chosen.config, **changes))
    posed = chosen.stage == "posed"
    pairs = pairs_of(chosen, Data(images=PHOTOS, rgbd=FRAMES if posed else None), work / f"features-{chosen.extractor}")
    if plan.model_as is not None:
        chosen = replace(chosen, config=variant(chosen.config, plan.model_as))
    trainer = start(chosen, pairs, folder, trained_on=trained_on(label), device="cpu")
    until = ABLATED_STEPS if plan.model_as is not None else math.inf

    def tell(row):
        print(label, {key: round(value, 4) for key, value in row.items()}, flush=True)
        if row["step"] >= until and "f1" in row:
            raise KeyboardInterrupt  # an ablation is the beginning of a run

    try:
        trainer.run(tell=tell)
    except KeyboardInterrupt:
        if plan.model_as is None:
            raise
    keep_log(label, folder)


def keep_log(label, folder):
    """Of its log, the rows with validation and a tenth of the others."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [row for i, row in enumerate(rows) if "f1" in row or i % 10 == 0]
    (RESULTS / "logs").mkdir(parents=True, exist_ok=True)
    (RESULTS / f"logs/{label}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def ship(work):
    """Put what is trained into the package; what the table of records must say of it is printed."""
    folder = ROOT / "src/isinglass/weights/data"
    for label, name in SHIPPED.items():
        source = work / label / "best.safetensors"
        if not source.is_file():
            continue
        threshold = training_measure.threshold_of(work, label, source)
        alpha = {"depth_confidence": ALPHA} if name.startswith("lightglue") else {}
        model = training_measure.loaded(label, source, filter_threshold=threshold, **alpha)
        file = save_checkpoint(
            model, folder / f"{name}.safetensors", name=name, licence=LICENCE, trained_on=trained_on(label),
            accepts=model.accepts, half=True,
        )  # fmt: skip
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(name, digest, file.stat().st_size, sum(one.numel() for one in model.parameters()), "parameters")
    images = [image for place in (PHOTOS, FRAMES / "images") for image in fingerprints(place)]
    save_manifest(folder / "trained-on.txt", images)


def main():
    """What the arguments say, then the page."""
    match sys.argv[1:]:
        case ["train", work, *labels] if labels and set(labels) <= set(RUNS):
            for label in labels:
                train(label, Path(work))
        case ["measure", work]:
            training_measure.accuracy(Path(work), RUNS)
        case ["finetune", work]:
            training_measure.finetuning(Path(work))
        case ["ship", work]:
            ship(Path(work))
        case ["speed", work]:
            training_measure.speed(Path(work))
        case ["--page"]:
            pass
        case _:
            sys.exit(f"{__doc__}\nRUNS: {', '.join(RUNS)}")
    training_page.write(RESULTS)


if __name__ == "__main__":
    main()
