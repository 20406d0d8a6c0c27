"""`python -m fuzzing`: try mutated inputs on everything that reads one, and write what came."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import fuzz_train
from isinglass.eval.runs import machine, versions

from . import files, photos, server
from .campaign import Campaign, Found, Make

ROOT = Path(__file__).resolve().parents[2]


class Entry(NamedTuple):
    """A target of the campaign."""

    make: Make
    share: float  # of all inputs
    what: str  # is mutated


SHARES = {
    "photos": Entry(photos.Pixels, 0.16, "photos in 23 kinds of files; a quarter of them only cut short"),
    "metadata": Entry(photos.Metadata, 0.10, "the EXIF block of JPEG, PNG, WebP and TIFF"),
    "features": Entry(files.features, 0.11, "features of one image, as npz and HDF5"),
    "matches": Entry(files.matches, 0.12, "matches of one pair, as npz, HDF5 and JSON"),
    "stores": Entry(files.Stores, 0.06, "stores of features and of matches, and parts that wait to be merged"),
    "checkpoints": Entry(files.checkpoints, 0.07, "our checkpoints of LightGlue and SuperGlue"),
    "foreign-checkpoints": Entry(files.foreign_checkpoints, 0.05, "checkpoints of others: pickles and safetensors"),
    "training-runs": Entry(files.training_runs, 0.06, "checkpoints that training goes on from"),
    "posed-folders": Entry(files.PosedFolders, 0.03, "poses, intrinsics, depth and photos for training"),
    "megadepth": Entry(files.megadepth, 0.05, "scene files of MegaDepth, with pickles in them"),
    "colmap-models": Entry(files.Models, 0.04, "models of COLMAP, binary and text"),
    "colmap-databases": Entry(files.databases, 0.02, "databases of COLMAP: bytes of the file, values of its rows"),
    "runs": Entry(files.runs, 0.04, "results of `isinglass eval`"),
    "pair-lists": Entry(files.lists, 0.03, "lists of pairs"),
    "truths": Entry(files.truths, 0.03, "homographies, and lists of pairs with poses"),
    "requests": Entry(server.Requests, 0.02, "HTTP requests to the app, multipart bodies among them"),
    "live-pages": Entry(server.LivePages, 0.01, "messages on the WebSocket of a live page"),
}


def main() -> int:
    """Run the campaign. Return 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="Inputs in all, shared out among the targets.")
    parser.add_argument("--minutes", type=float, default=60, help="Begin nothing after so many minutes.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all mutations.")
    parser.add_argument("--target", action="append", choices=list(SHARES), help="Only this target (repeatable).")
    parser.add_argument("--kills", type=int, default=20, help="kill -9 of `isinglass train` after that; 0 = none.")
    parser.add_argument("--one", type=int, help="Try only this input of the one target, here, and let it raise.")
    parser.add_argument("--workers", type=int, default=2, help="Processes at a time.")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "fuzz", help="Folder for inputs that did harm.")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the counts.")
    given = parser.parse_args()
    chosen = given.target or list(SHARES)
    if given.one is not None:
        return _try(SHARES[chosen[0]].make, f"{given.seed}/{chosen[0]}/{given.one}")
    total = sum(SHARES[name].share for name in chosen)
    counts = {name: max(1, round(given.inputs * SHARES[name].share / total)) for name in chosen}
    began = time.monotonic()
    campaign = Campaign(
        {name: SHARES[name].make for name in chosen}, seed=given.seed, keep=given.keep, workers=given.workers
    )
    found = campaign.run(counts, deadline_s=began + 60 * given.minutes)
    seconds = time.monotonic() - began
    print(_table(found, seconds), flush=True)
    kills = _kill_training(given.kills if given.target is None else 0, given.seed)
    if given.output:
        about = {"seed": given.seed, "seconds": round(seconds), "versions": versions(), "machine": machine()}
        targets = {name: {"what": SHARES[name].what, **one.as_dict()} for name, one in found.items()}
        given.output.write_text(json.dumps({**about, "targets": targets, "kills": kills}, indent=1) + "\n")
    return int(any(one.faults for one in found.values()) or kills.get("differences", 0) > 0)


def _kill_training(kills: int, seed: int) -> dict[str, int]:
    """Kill training at random moments, and compare how it ends when the command is given again."""
    if not kills:
        return {}
    with TemporaryDirectory() as folder:
        counts = fuzz_train.campaign(Path(folder), kills, seed)
    print(f"training: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return counts


def _try(make: Make, seed: str) -> int:
    with TemporaryDirectory() as folder:
        target = make(Path(folder))
        print(target.try_one(Random(seed)))
        target.close()
    return 0


def _table(found: dict[str, Found], seconds: float) -> str:
    lines = [f"{'target':<22}{'inputs':>8}{'same':>8}{'refused':>9}{'other':>8}{'faults':>8}"]
    for name, one in found.items():
        row = [one.outcomes[kind] for kind in ("same", "refused", "other")]
        lines.append(f"{name:<22}{one.inputs:>8}{row[0]:>8}{row[1]:>9}{row[2]:>8}{len(one.faults):>8}")
        for fault in one.faults[:8]:
            where = fault.get("where", "")
            lines.append(f"  {name} --one {fault['index']}: {fault['kind']}: {fault['what'][:140]} [{where}]")
    inputs, faults = sum(one.inputs for one in found.values()), sum(len(one.faults) for one in found.values())
    return "\n".join([*lines, f"{inputs} inputs, {faults} faults, {seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
