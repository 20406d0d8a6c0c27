"""Minutes of mixed requests at the limits of the app's server: errors, memory, latencies.

    python benchmarks/app.py [--minutes 10] [--users 4] [--output benchmarks/results/app.json]

The server runs as a process (`isinglass app`), its users as threads here, each with a random choice of what
app_users.py knows: matches small and at the limits, jobs of every kind, files that must be refused, cancels, bursts
that fill the queue, users that leave, live pages. An answer that is none of those said before is a failure, and so is
any line that the server writes. The memory is what the system says of the process (RSS), once a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from app_users import ACTIONS, Unexpected, User, material

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 0.25  # of the time: models are loaded, the allocator has seen the largest photos
PACKAGES = ("isinglass", "torch", "numpy", "pillow", "fastapi", "starlette", "uvicorn", "websockets", "poselib")
IDLE_S = 120  # at most, until the queue is empty at the end


def main():
    """Measure, tell, and write; exit code 1 where anything came that had not been said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "app.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "log") as (process, address):
        result = measure(process, address, given)
        result["log"] = (Path(folder) / "log").read_text("utf-8")[-5000:]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    memory = result["memory_mb"]
    print(f"{result['requests']} requests, {len(result['unexpected'])} unexpected answers, log: {result['log']!r}")
    print(f"memory {memory}")
    for name, row in result["actions"].items():
        print(f"{name:<24}{row}")
    sys.exit(1 if result["unexpected"] or result["log"] else 0)


@contextlib.contextmanager
def server(log):
    """The server as a process: (process, address)."""
    command = [sys.executable, "-m", "isinglass", "app", "--port", "0", "--no-browser", "--device", "cpu"]
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    try:
        address = process.stdout.readline().strip()
        if not address:
            sys.exit(f"the server did not start: {log.read_text('utf-8')}")
        log.write_text("")  # "Ctrl-C ends it"
        yield process, address
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def measure(process, address, given):
    """Everything that is written."""
    stop, lock = threading.Event(), threading.Lock()
    rows, unexpected, samples = defaultdict(list), [], []
    things = material()

    def use(number):
        chance = random.Random(given.seed * 1000 + number)
        user = User(address, chance, things, number)
        while not stop.is_set():
            name = chance.choices(list(ACTIONS), [action.weight for action in ACTIONS.values()])[0]
            start, problem = time.perf_counter(), None
            try:
                outcome = ACTIONS[name].act(user)
            except Unexpected as error:
                outcome, problem = "unexpected", str(error)
            except Exception as error:
                outcome, problem = "unexpected", repr(error)
            with lock:
                rows[name].append((outcome, time.perf_counter() - start))
                if problem is not None:
                    unexpected.append({"action": name, "problem": problem[:500], "at_s": time.perf_counter() - begin})

    begin = time.perf_counter()
    before = memory_mb(process.pid)
    users = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(given.users)]
    for user in users:
        user.start()
    while (now := time.perf_counter() - begin) < given.minutes * 60 and process.poll() is None:
        samples.append((round(now, 1), memory_mb(process.pid)))
        time.sleep(1)
    stop.set()
    for user in users:
        user.join(IDLE_S)
    idle = User(address, random.Random(0), things, -1)
    idle.wait_until_idle(IDLE_S)
    time.sleep(2)
    return {
        "minutes": given.minutes,
        "users": given.users,
        "seed": given.seed,
        "requests": sum(user.asked for user in User.all),
        "unexpected": unexpected[:50],
        "actions": {name: summary(found) for name, found in sorted(rows.items())},
        "memory_mb": {"start": before, **growth(samples, given.minutes), "idle_after": memory_mb(process.pid)},
        "rss_mb": thinned(samples),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def memory_mb(pid):
    """Resident memory of a process."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024, 1)
    return None


def growth(samples, minutes):
    """How it grew after the warm-up: by a line through the samples, and by medians of the first and last quarter."""
    kept = np.array([(at, mb) for at, mb in samples if mb is not None and at >= WARM_UP * minutes * 60])
    if len(kept) < 8:
        return {}
    slope = np.polyfit(kept[:, 0] / 60, kept[:, 1], 1)[0]
    quarter = len(kept) // 4
    return {
        "peak": float(max(mb for _, mb in samples if mb is not None)),
        "after_warm_up": float(np.median(kept[:quarter, 1])),
        "at_the_end": float(np.median(kept[-quarter:, 1])),
        "lowest_after_warm_up": float(kept[:quarter, 1].min()),
        "lowest_at_the_end": float(kept[-quarter:, 1].min()),
        "slope_per_minute": round(float(slope), 2),
    }


def summary(found):
    """Of one action: how often it ended how, and how long it took."""
    seconds = np.array([one for _, one in found])
    return {
        "outcomes": dict(Counter(outcome for outcome, _ in found)),
        "median_s": round(float(np.median(seconds)), 3),
        "p95_s": round(float(np.quantile(seconds, 0.95)), 3),
        "most_s": round(float(seconds.max()), 3),
    }


def thinned(samples):
    """At most 600 of them."""
    return samples[:: max(len(samples) // 600, 1)]


def cpu():
    """Its name, where the system says it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
