"""Time Isinglass against its peers, side by side in one run, and how it grows; write docs/speed.md.

    python benchmarks/speed.py PEER_PYTHON                      # measure everything: about 12 minutes on 2 cores
    python benchmarks/speed.py PEER_PYTHON --only extract cold  # measure some of it
    python benchmarks/speed.py --page                           # only write the page, from results/speed

PEER_PYTHON is the interpreter of an environment that has peers/requirements.txt. Each side runs in a worker process of
its own, which loads its models once; they take turns, never both at a time, with as many threads. One JSON a
measurement holds all raw times. Needs the photos and data in ../shared (or ISINGLASS_SHARED) and a machine with nothing
else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import speed_growth  # noqa: F401  registers its measurements
import speed_matchers  # noqa: F401
import speed_page
import speed_photos  # noqa: F401
from speed_harness import MEASUREMENTS, ROOT, Bench, temporary_folder

from isinglass.eval.runs import machine

RESULTS = ROOT / "benchmarks/results/speed"


def arguments():
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer_python", nargs="?", help="interpreter of the environment of the peers")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="one round, the smallest sizes: to see that all works")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either side")
    parser.add_argument("--work", type=Path, help="folder for features and images, kept for the next run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    given = parser.parse_args()
    if not given.page and given.peer_python is None:
        parser.error("PEER_PYTHON is missing; it is the interpreter of the environment of the peers")
    if given.quick and given.results == RESULTS:
        parser.error("a quick run proves nothing: give it a folder of its own, --results FOLDER")
    return given


def measure(bench, names, results):
    """Write one JSON a measurement."""
    sides = {"isinglass": bench.ours.must("versions", tell=True), "peers": bench.peers.must("versions", tell=True)}
    made = {
        "machine": {**machine(), "threads": {side: found["threads"] for side, found in sides.items()}},
        "versions": {side: found["versions"] for side, found in sides.items()},
        "quick": bench.quick,
    }
    results.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for name in names:
        start = time.perf_counter()
        found = MEASUREMENTS[name](bench)
        spent_s = time.perf_counter() - start
        whole = {"name": name, "about": MEASUREMENTS[name].__doc__, **found, "spent_s": round(spent_s, 1), **made}
        (results / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        print(f"{name}: {spent_s:.0f} s", flush=True)
        for line in speed_page.summary(whole):
            print(f"    {line}", flush=True)
    print(f"all: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)


def main():
    """Measure unless --page, then write the page if all is there."""
    given = arguments()
    if not given.page:
        bench = Bench(given.peer_python, given.work or temporary_folder(), given.threads, given.quick)
        try:
            growth_last = sorted(MEASUREMENTS, key=lambda name: name.startswith("growth"))
            measure(bench, given.only or growth_last, given.results)
        finally:
            bench.close()
    if missing := [name for name in MEASUREMENTS if not (given.results / f"{name}.json").is_file()]:
        print(f"no page yet: {', '.join(missing)} not measured")
    elif not given.quick:
        speed_page.write(given.results)


if __name__ == "__main__":
    main()
