"""`isinglass inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from isinglass.cli.checks import IMAGE, OUTPUT_FILE, Command
from isinglass.cli.common import MATCHER_OPTIONS, OK, PIPELINE_OPTIONS, make_pipeline, options


@click.command(cls=Command, short_help="Show what the matcher does with two images, layer by layer.")
@click.argument("first", type=IMAGE)
@click.argument("second", type=IMAGE)
@click.option("-o", "--output", type=OUTPUT_FILE, default=Path("report.html"), show_default=True, help="Page to write.")
@click.option("--mask0", type=IMAGE, help="Mask of the first image, of its size; keypoints only where it is not black.")
@click.option("--mask1", type=IMAGE, help="Mask of the second image.")
@click.option(
    "--attention",
    type=click.IntRange(0, 255),
    default=8,
    show_default=True,
    help="Attended keypoints to keep per head; 0 makes the smallest file.",
)
@click.option(
    "--alternatives",
    type=click.IntRange(1, 255),
    default=5,
    show_default=True,
    help="Candidate partners to keep per keypoint.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a summary as one JSON object on stdout.")
@options(*PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def inspect(
    first: Path,
    second: Path,
    output: Path,
    mask0: Path | None,
    mask1: Path | None,
    attention: int,
    alternatives: int,
    as_json: bool,
    **settings: Any,
) -> int:
    """Write a page that shows what the matcher does with FIRST and SECOND.

    For LightGlue, layer by layer: matches, confidences, which keypoints are pruned and why, and when it exits. For
    SuperGlue: the Sinkhorn iterations. For both: what each keypoint attends to and what else it might match. The page
    is one file and needs no network.
    """
    from isinglass.inspection import inspect as inspect_pair
    from isinglass.inspection import write_report

    pipeline = make_pipeline(settings)
    found = inspect_pair(
        first, second, pipeline, mask0=mask0, mask1=mask1, attention=attention, alternatives=alternatives
    )
    write_report(found, output)
    told = found.summary()
    if as_json:
        click.echo(json.dumps({**told, "output": str(output)}))
        return OK
    click.echo(f"{first}  -  {second}")
    click.echo(f"  {told['num_keypoints0']} and {told['num_keypoints1']} keypoints ({told['extractor']}), ", nl=False)
    click.echo(f"{told['num_matches']} matches ({told['matcher']})")
    for step in told["steps"]:
        click.echo(f"  {step['name']:<14}{_said(step)}")
    if told["ended"] == "exit":
        click.echo(f"  exit after layer {told['stop_layer']} of {told['num_layers']}")
    click.echo(f"  written to {output}")
    return OK


def _said(step: dict[str, Any]) -> str:
    parts = [f"{step['matches']} matches"]
    if step["confident_share"] is not None:
        parts.append(f"{step['confident_share']:.1%} of the keypoints are confident")
    if step["pruned"]:
        parts.append(f"{step['pruned']} keypoints are pruned")
    if step["marginal_error"] is not None:
        parts.append(f"{step['marginal_error']:.2%} of the probability out of place")
    return ", ".join(parts)
