"""`isinglass train` and `isinglass recipes`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.common import OK, PATH, complain

if TYPE_CHECKING:
    from isinglass.train.recipes import Recipe


@click.command(short_help="List what can be trained.")
def recipes() -> int:
    """List the recipes of `isinglass train`."""
    from isinglass.train.recipes import RECIPES

    click.echo("\n".join(RECIPES))
    return OK


@click.command(short_help="Train a matcher on photos of yours.")
@click.option("--recipe", "name", required=True, help="What to train, see `isinglass recipes`.")
@click.option("--images", type=PATH, help="Folder of photos to learn from.")
@click.option("--rgbd", type=PATH, help="Posed and confidence recipes: folder of frames with depth and poses.")
@click.option("--colmap", type=PATH, help="Posed and confidence recipes: folder of a COLMAP model of the photos.")
@click.option("--megadepth", type=PATH, help="Posed and confidence recipes: folder of MegaDepth with its scene_info.")
@click.option("-o", "--output", type=PATH, default=Path("training"), show_default=True, help="Folder of the run.")
@click.option("--features", type=PATH, help="Folder that features are kept in; in that of the run if not given.")
@click.option("--detector", "detectors", multiple=True, help="Learn from keypoints of this extractor, too; repeatable.")
@click.option("--any-turn", is_flag=True, help="Views of photos are turned by any angle, not by up to 45 degrees.")
@click.option("--start", help="Weights to start from, a name or a file; random if not given.")
@click.option("--lora-rank", type=click.IntRange(1), help="Learn only low-rank additions to the layers.")
@click.option("--steps", type=click.IntRange(1), help="The recipe's if not given.")
@click.option("--batch-size", type=click.IntRange(1), help="Pairs a step; the recipe's if not given.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="The recipe's if not given.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="Stop after so many; the same command goes on.")
@click.option("--weights-name", help="Of what comes out; the recipe's if not given.")
@click.option("--device", help="cpu or cuda; the best there is if not given.")
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
    """Train a matcher by a recipe: on random views of the photos in a folder, or on posed images.

    Writes best.safetensors and last.safetensors, which any command takes as --matcher, and log.jsonl, a row every few
    steps. A run that was stopped, however that was, goes on where it was when the same command is given again.
    """
    from isinglass.train.recipes import recipe
    from isinglass.train.start import Data, pairs_of, start

    places = {key: settings.pop(key) for key in ("images", "rgbd", "colmap", "megadepth")}
    chosen = replace(_changed(recipe(name), settings), detectors=detectors)
    if any_turn:
        chosen = replace(chosen, views=replace(chosen.views, max_angle_deg=180.0))
    pairs = pairs_of(chosen, Data(**places), features or output / "features", device=device, tell=_tell_features)
    for problem in pairs.problems.values():
        complain(f"left out: {problem}", OK)
    trained_on = ", ".join(place.name for place in places.values() if place is not None)
    trainer = start(chosen, pairs, output, trained_on=trained_on, device=device)
    progress = trainer.run(until_s=3600 * hours if hours else float("inf"), tell=_tell_step)
    done = progress.step == chosen.config.steps
    click.echo(f"{'done' if done else 'stopped'} at step {progress.step}: {output / 'best.safetensors'}", err=True)
    return OK


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    names = {"weights_name": "name"}
    given = {names.get(key, key): value for key, value in changes.items() if value is not None}
    return replace(recipe, config=replace(recipe.config, **given))


def _tell_features(done: int, of: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\rfeatures of views: {done} of {of}", nl=done >= of, err=True)


def _tell_step(row: Mapping[str, Any]) -> None:
    if "f1" in row:
        shown = f"precision {row['precision']:.3f}, recall {row['recall']:.3f}, F1 {row['f1']:.3f} on photos held out"
    else:
        left = f"{row['left_s'] / 3600:.1f} h left"
        shown = f"loss {row['loss']:.3f}, {row['pairs_a_second']:.1f} pairs a second, {left}"
    click.echo(f"step {row['step']}: {shown}", err=True)
