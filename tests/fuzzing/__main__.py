"""`python -m fuzzing`: try mutated inputs on everything that reads one, and write what came."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from . import files, photos, server
from .campaign import Campaign, Found, Make

ROOT = Path(__file__).resolve().parents[2]
SHARES: dict[str, tuple[Make, float]] = {  # of all inputs
    "photos": (photos.Pixels, 0.16),
    "metadata": (photos.Metadata, 0.10),
    "features": (files.features, 0.11),
    "matches": (files.matches, 0.12),
    "stores": (files.Stores, 0.06),
    "checkpoints": (files.checkpoints, 0.07),
    "foreign-checkpoints": (files.foreign_checkpoints, 0.05),
    "training-runs": (files.training_runs, 0.06),
    "posed-folders": (files.PosedFolders, 0.03),
    "megadepth": (files.megadepth, 0.05),
    "colmap-models": (files.Models, 0.04),
    "colmap-databases": (files.databases, 0.02),
    "runs": (files.runs, 0.04),
    "pair-lists": (files.lists, 0.03),
    "truths": (files.truths, 0.03),
    "requests": (server.Requests, 0.02),
    "live-pages": (server.LivePages, 0.01),
}


def main() -> int:
    """Run the campaign. Return 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="Inputs in all, shared out among the targets.")
    parser.add_argument("--minutes", type=float, default=60, help="Begin nothing after so many minutes.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all mutations.")
    parser.add_argument("--target", action="append", choices=list(SHARES), help="Only this target (repeatable).")
    parser.add_argument("--one", type=int, help="Try only this input of the one target, here, and let it raise.")
    parser.add_argument("--workers", type=int, default=2, help="Processes at a time.")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "fuzz", help="Folder for inputs that did harm.")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the counts.")
    given = parser.parse_args()
    chosen = given.target or list(SHARES)
    if given.one is not None:
        return _try(SHARES[chosen[0]][0], f"{given.seed}/{chosen[0]}/{given.one}")
    total = sum(SHARES[name][1] for name in chosen)
    counts = {name: max(1, round(given.inputs * SHARES[name][1] / total)) for name in chosen}
    began = time.monotonic()
    campaign = Campaign(
        {name: SHARES[name][0] for name in chosen}, seed=given.seed, keep=given.keep, workers=given.workers
    )
    found = campaign.run(counts, deadline_s=began + 60 * given.minutes)
    seconds = time.monotonic() - began
    print(_table(found, seconds))
    if given.output:
        about = {"seed": given.seed, "seconds": round(seconds), "version": version("isinglass"), "python": sys.version}
        targets = {name: one.as_dict() for name, one in found.items()}
        given.output.write_text(json.dumps({**about, "targets": targets}, indent=1) + "\n")
    return int(any(one.faults for one in found.values()))


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
