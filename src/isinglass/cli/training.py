"""`isinglass train` and `isinglass recipes`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import DEVICE, FOLDER, OUTPUT_FOLDER, PHOTOS, Command, Number
from isinglass.cli.common import OK, SOME_FAILED, complain, options
from isinglass.cli.photos import FOLDER_OPTIONS, Photos

if TYPE_CHECKING:
    from isinglass.train.check import Data
    from isinglass.train.recipes import Recipe

PRECISIONS = ("auto", "float32", "bf16-mixed", "16-mixed")  # as in isinglass.train.config, which needs torch
_DATA = ("images", "rgbd", "colmap", "megadepth")
_FEATURES_SHARE = 1 / 3  # of --hours, after which training begins with those that there are
_REPORT_EVERY_S = 10.0  # while features are made and nobody watches a terminal


def _needs(params: Mapping[str, Any]) -> dict[str, str]:
    from isinglass.train.catalog import recipe_name
    from isinglass.train.check import needed_packages

    return needed_packages(recipe_name(params["name"]), _data(params), params["detectors"])


def _check(params: Mapping[str, Any]) -> None:
    from isinglass.train.check import check_command

    start, detectors = params["start"], params["detectors"]
    check_command(params["name"], _data(params), params["output"], start=start, detectors=detectors)


def _data(params: Mapping[str, Any]) -> Data:
    from isinglass.train.check import Data

    given, photos = {name: params[name] for name in _DATA}, Photos(dict(params))
    return Data(**given, selection=None if given["images"] is None else photos.selection(given["images"]))


@click.command(short_help="List the recipes that `train` knows.")
def recipes() -> int:
    """List the recipes of `isinglass train`, one per line.

    A name says what is trained: MATCHER-FEATURES-STAGE, for example lightglue-sift-homography. Recipes that end in
    -small train a smaller network, which learns on a CPU in hours; the others are for a GPU.
    """
    from isinglass.train.catalog import RECIPE_NAMES

    click.echo("\n".join(RECIPE_NAMES))
    return OK


@click.command(
    cls=Command,
    needs=_needs,
    checks=[_check],
    pipeline=lambda ctx: {},
    short_help="Train a matcher on your own photos.",
)
@click.option("--recipe", "name", required=True, help="What to train; `isinglass recipes` lists the names.")
@click.option("--images", type=PHOTOS, help="Folder of photos to learn from, subfolders included.")
@options(*FOLDER_OPTIONS)
@click.option("--rgbd", type=FOLDER, help="Folder of frames with depth and poses (posed and confidence recipes).")
@click.option("--colmap", type=FOLDER, help="COLMAP model of the photos in --images (posed and confidence recipes).")
@click.option(
    "--megadepth", type=FOLDER, help="Folder of MegaDepth with its scene_info (posed and confidence recipes)."
)
@click.option(
    "-o", "--output", type=OUTPUT_FOLDER, default=Path("training"), show_default=True, help="Folder of the run."
)
@click.option(
    "--features", type=OUTPUT_FOLDER, help="Folder to keep features in.  [default: features, in that of the run]"
)
@click.option("--detector", "detectors", multiple=True, help="Learn from the keypoints of this extractor as well.")
@click.option("--any-turn", is_flag=True, help="Turn views by any angle instead of up to 45 degrees.")
@click.option("--start", help="Weights to start from, by name or file.  [default: random weights]")
@click.option("--lora-rank", type=click.IntRange(1), help="Learn only additions of this rank to the layers (LoRA).")
@click.option("--steps", type=click.IntRange(1), help="Number of training steps.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), help="Pairs per step.  [default: the recipe's]")
@click.option("--learning-rate", type=Number(0, min_open=True), help="Peak learning rate.  [default: the recipe's]")
@click.option(
    "--hours",
    type=Number(0, min_open=True),
    help="Stop within this time, which includes making features and the last validation. To continue, give the same "
    "command again.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Precision to train in; auto chooses what this machine is fastest in.",
)
@click.option("--weights-name", help="Name stored in the weights.  [default: the recipe's]")
@click.option("--device", type=DEVICE, help="Device: cpu, cuda, cuda:N or mps.  [default: the fastest]")
def train(
    name: str,
    output: Path,
    features: Path | None,
    detectors: tuple[str, ...],
    any_turn: bool,
    hours: float | None,
    device: str | None,
    **settings: Any,
) -> int:
    """Train a matcher by a recipe, on random views of your photos or on images with known poses.

    First prints the plan; then makes the features (on a CPU they are kept, and made only once), trains, and reports
    the loss and the time left. The run folder receives best.safetensors and last.safetensors, which every command
    takes as --matcher, and log.jsonl. To continue a run that stopped for any reason, give the same command again.
    """
    from isinglass.train.check import BEST, LAST

    began, data = time.monotonic(), _data(settings)
    if data.images is not None:
        Photos(settings).say_left_out(Path(data.images))
    settings = {key: value for key, value in settings.items() if key not in (*_DATA, "exclude", "image_list")}
    click.echo(f"preparing {name}", err=True)  # importing torch takes seconds
    from isinglass.train.recipes import recipe
    from isinglass.train.start import pairs_of, plan_of, start

    chosen = replace(_changed(recipe(name), settings), detectors=detectors)
    if any_turn:
        chosen = replace(chosen, views=replace(chosen.views, max_angle_deg=180.0))
    plan = plan_of(chosen, data, output, store=features, device=device, hours=hours)
    click.echo("\n".join(plan.lines), err=True)
    deadline = began + 3600 * hours if hours else math.inf
    until = began + _FEATURES_SHARE * (deadline - began)
    pairs = pairs_of(plan.recipe, data, plan.store, device=device, tell=_Progress(deadline, until), until=until)
    for problem in pairs.problems.values():
        complain(f"left out: {problem}", OK)
    trained_on = ", ".join(folder.name for folder in data.folders.values())
    trainer = start(plan.recipe, pairs, output, trained_on=trained_on, device=device)
    progress = trainer.run(until_s=deadline - time.monotonic(), tell=_tell_step)
    done = progress.step >= plan.recipe.config.steps
    what = f"done at step {progress.step}" if done else f"stopped at step {progress.step}, as --hours says"
    click.echo(f"{what}: {output / (BEST if (output / BEST).is_file() else LAST)}", err=True)
    return SOME_FAILED if pairs.problems else OK


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    names = {"weights_name": "name"}
    given = {names.get(key, key): value for key, value in changes.items() if value is not None}
    return replace(recipe, config=replace(recipe.config, **given))


class _Progress:
    """Progress while photos are read and features made, with the time left; ends the run at the deadline."""

    def __init__(self, deadline: float, until: float) -> None:
        self.deadline, self.until, self.what, self.warned = deadline, until, "", False
        self.began = self.shown = time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        from isinglass.errors import TrainingError

        now = time.monotonic()
        if what != self.what:
            self.what, self.began, self.shown = what, now, -math.inf
        if not of:
            return
        left_s = (now - self.began) / done * (of - done) if done else math.nan
        if done < of and now >= self.deadline:
            raise TrainingError(
                f"the hours are over after {done} of {of} {what}, before the first step. Features are kept: give the "
                "same command again, or more --hours, or fewer photos"
            )
        if not self.warned and now + left_s > self.until:
            self.warned = True
            complain(
                f"{what}: {of - done} more take about {_duration(left_s)}, too much of --hours. What is not made in "
                "a third of it is made when a step needs it, which slows steps down. They are kept for the same "
                "command; more --hours or fewer photos help, too",
                OK,
            )
        self._show(what, done, of, left_s, now)

    def _show(self, what: str, done: int, of: int, left_s: float, now: float) -> None:
        left = "" if done >= of or math.isnan(left_s) else f", {_duration(left_s)} left"
        if sys.stderr.isatty():
            click.echo(f"\r{what}: {done} of {of}{left}\033[K", nl=done >= of, err=True)
        elif done >= of or now - self.shown >= _REPORT_EVERY_S:
            self.shown = now
            click.echo(f"{what}: {done} of {of}{left}", err=True)


def _tell_step(row: Mapping[str, Any]) -> None:
    if "f1" in row:
        shown = f"precision {row['precision']:.3f}, recall {row['recall']:.3f}, F1 {row['f1']:.3f} on photos held out"
    else:
        ends = f"ends in {_duration(row['left_s'])} at about step {row['last_step']}"
        bad = "" if row["finite"] else ", not finite: skipped"
        shown = f"loss {row['loss']:.3f}{bad}, {row['pairs_a_second']:.1f} pairs per second, {ends}"
    click.echo(f"step {row['step']}: {shown}", err=True)


def _duration(seconds: float) -> str:
    """Return a time span in the unit that suits it."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
