"""Train what is shipped, and measure it; write docs/training.md from the stored logs and runs.

    python benchmarks/training.py train WORK RUN...  # one after the other, each on from where it was; see RUNS
    python benchmarks/training.py measure WORK       # what is trained, and mutual nearest neighbours
    python benchmarks/training.py shipped WORK       # only the weights in the package, on the evaluation sets
    python benchmarks/training.py finetune WORK      # examples/finetune.py, of the weights that are shipped
    python benchmarks/training.py speed WORK         # wants a quiet machine
    python benchmarks/training.py ship WORK          # into the package; what it prints belongs into weights/records.py
    python benchmarks/training.py calibrate WORK     # what scores of the shipped weights are worth
    python benchmarks/training.py --page             # only write the page again, from results/training

Needs ../shared/data (or ISINGLASS_SHARED): train/photos and train/hololens to learn from, eval/homography in HPatches
layout and eval/redkitchen in SuperGlue's format to measure on. What is measured is kept by its run's name: delete
that of a run which has learnt on (results/training: held-out-*, thresholds, exits, exit-times, and the two sets). Runs
on the two sets are made anew where the truth has changed.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import training_measure
import training_page
import training_ship
from training_measure import FRAMES, PHOTOS
from training_variants import VARIANTS, variant

from isinglass.train.recipes import recipe
from isinglass.train.start import Data, pairs_of, start
from isinglass.weights.records import OWN_DATA

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/training"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe, and what is different. `start` is a run of this table; `model_as` a variant of the architecture.

    legs  the step that each ends at with its learning rate decayed to 0, and of how many views a photo it learns
    """

    recipe: str
    legs: tuple[tuple[int, int], ...]
    start: str | None = None
    model_as: str | None = None


FEATURES = {"sift": "rootsift", "aliked": "aliked-n16"}
VIEWS = recipe("lightglue-sift-homography-small").views_a_photo  # validation and measurements are always of these
LEGS = {
    ("sift", "homography"): ((4000, VIEWS), (8000, 2 * VIEWS)),
    ("sift", "posed"): ((2000, 2 * VIEWS),),
    ("aliked", "homography"): ((3000, VIEWS), (5000, 2 * VIEWS)),
    ("aliked", "posed"): ((1500, VIEWS),),
}

RUNS = {
    f"{kind}-{features}-{stage}": Plan(
        recipe=f"{kind}-{features}-{stage}-small",
        start={"posed": f"{kind}-{features}-homography", "confidence": f"{kind}-{features}-posed"}.get(stage),
        legs=LEGS.get((features, stage), ((150, VIEWS),)),
    )
    for kind in ("lightglue", "superglue")
    for features in FEATURES
    for stage in ("homography", "posed", "confidence")
    if (kind, stage) != ("superglue", "confidence")
}
SHIPPED = {  # run -> name of the weights
    f"lightglue-{features}-confidence"
    if kind == "lightglue"
    else f"{kind}-{features}-posed": f"{kind}-{features}-small"
    for kind in ("lightglue", "superglue")
    for features in FEATURES
}
ABLATED_STEPS = 1000  # of the same schedule, so that the whole model's own log is what they are held against
RUNS |= {
    f"ablation-{name}": Plan(recipe="lightglue-sift-homography-small", model_as=name, legs=((4000, VIEWS),))
    for name in VARIANTS
}


def train(label, work):
    """The run of that label, from its beginning or from where it was, to its end."""
    plan, folder = RUNS[label], work / label
    chosen = recipe(plan.recipe)
    begin = str(work / plan.start / "best.safetensors") if plan.start else None
    chosen = replace(chosen, config=replace(chosen.config, start=begin))
    if plan.model_as is not None:
        chosen = replace(chosen, config=variant(chosen.config, plan.model_as))
    until = ABLATED_STEPS if plan.model_as is not None else math.inf

    def tell(row):
        print(label, {key: round(value, 4) for key, value in row.items()}, flush=True)
        if row["step"] >= until and "f1" in row:
            raise KeyboardInterrupt  # an ablation is the beginning of a run

    validation = source_pairs(chosen, work, VIEWS).validation
    for steps, views in plan.legs:
        leg = replace(chosen, config=replace(chosen.config, steps=steps))
        pairs = replace(source_pairs(chosen, work, views), validation=validation)
        trainer = start(leg, pairs, folder, trained_on=OWN_DATA, device="cpu")
        try:
            trainer.run(tell=tell)
        except KeyboardInterrupt:
            if plan.model_as is None:
                raise
    keep_log(label, folder)


def source_pairs(chosen, work, views):
    """Of so many views a photo, which lie in a folder of their own."""
    store = work / f"features-{chosen.extractor}{'' if views == VIEWS else f'-{views}'}"
    frames = FRAMES if chosen.stage != "homography" else None
    return pairs_of(replace(chosen, views_a_photo=views), Data(images=PHOTOS, rgbd=frames), store)


def keep_log(label, folder):
    """Of its log, the rows with validation and a tenth of the others."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [row for i, row in enumerate(rows) if "f1" in row or i % 10 == 0]
    (RESULTS / "logs").mkdir(parents=True, exist_ok=True)
    (RESULTS / f"logs/{label}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def ship(work):
    """What is trained of SHIPPED."""
    for label, name in SHIPPED.items():
        if (work / label / "best.safetensors").is_file():
            held_out = source_pairs(recipe(RUNS[label].recipe), work, VIEWS).validation
            training_ship.ship(work, label, name, held_out)
    training_ship.write_manifest()


def main():
    """What the arguments say, then the page."""
    match sys.argv[1:]:
        case ["train", work, *labels] if labels and set(labels) <= set(RUNS):
            for label in labels:
                train(label, Path(work))
        case ["measure", work]:
            training_measure.accuracy(Path(work), RUNS)
        case ["shipped", work]:
            training_measure.shipped(Path(work))
        case ["finetune", work]:
            training_measure.finetuning(Path(work))
        case ["ship", work]:
            ship(Path(work))
        case ["calibrate", work]:
            training_ship.calibrate(Path(work), SHIPPED.values())
        case ["speed", work]:
            training_measure.speed(Path(work))
        case ["--page"]:
            pass
        case _:
            sys.exit(f"{__doc__}\nRUNS: {', '.join(RUNS)}")
    training_page.write(RESULTS, {features: LEGS[features, "homography"][0][0] for features in FEATURES})


if __name__ == "__main__":
    main()
