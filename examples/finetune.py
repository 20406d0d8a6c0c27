"""Fine-tune a matcher on some hundred photos of one's own kind, and measure what that brings.

    python examples/finetune.py PHOTOS TEST_PHOTOS -o RUN

The kind here: photos from above, which come at any turn. The matcher that is shipped for SIFT was trained on views
turned by up to 45 degrees, as cameras are held. So the views that are drawn of PHOTOS are turned by any angle, and
before and after are measured on such views of TEST_PHOTOS, which nothing was trained on.

The training alone is one command:

    isinglass train --recipe lightglue-sift-homography-small --start lightglue-sift-small --any-turn \\
        --images PHOTOS --steps 300 --learning-rate 2e-4 -o RUN
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from isinglass.matchers.lightglue import LightGlue
from isinglass.train.objective import Counts, Objective
from isinglass.train.recipes import Recipe, recipe
from isinglass.train.sources import PairSource
from isinglass.train.start import Data, pairs_of, start
from isinglass.train.views import ViewConfig

START = "lightglue-sift-small"
AT_ONCE = 8  # pairs


def finetuning(steps: int, batch_size: int) -> Recipe:
    """The recipe that the matcher was trained by, from its weights on, of views at any turn."""
    whole = recipe("lightglue-sift-homography-small")
    config = replace(
        whole.config,
        name="lightglue-sift-any-turn",
        start=START,
        steps=steps,
        batch_size=batch_size,
        learning_rate=2e-4,
        warmup_steps=steps // 10,
        decay_from=0.3,
        ema=0.99,
        validate_every=max(steps // 4, 1),
    )
    return replace(whole, config=config, views=ViewConfig(max_angle_deg=180))


def measured(weights: str | Path, test: PairSource, num_pairs: int) -> Counts:
    """Right, found and true matches of random pairs of the test photos' views, all layers for all keypoints."""
    judge = Objective(LightGlue.pretrained(weights).eval(), "matching").judge
    batches = (test.batch(AT_ONCE, np.random.default_rng(i)) for i in range(-(-num_pairs // AT_ONCE)))
    return sum((judge(batch) for batch in batches), Counts())


def main() -> None:
    """Measure, fine-tune, measure; print and keep both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("test_photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("finetuned"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--test-pairs", type=int, default=160)
    given = parser.parse_args()

    chosen, run = finetuning(given.steps, given.batch_size), given.output
    pairs = pairs_of(chosen, Data(images=given.photos), run / "features", device="cpu")
    test = pairs_of(chosen, Data(images=given.test_photos), run / "test-features", device="cpu").source
    before = measured(START, test, given.test_pairs)
    trainer = start(chosen, pairs, run, trained_on=f"{START}, then {given.photos.name}", device="cpu")
    trainer.run(tell=lambda row: print(f"step {row['step']}: {row.get('f1') or row['loss']:.3f}", flush=True))
    after = measured(run / "best.safetensors", test, given.test_pairs)
    shares = {
        name: {"precision": one.precision, "recall": one.recall, "f1": one.f1}
        for name, one in (("before", before), ("after", after))
    }
    (run / "gain.json").write_text(json.dumps(shares, indent=1) + "\n")
    for name, values in shares.items():
        print(name, ", ".join(f"{key} {100 * value:.1f} %" for key, value in values.items()))


if __name__ == "__main__":
    main()
