"""Runs targets in processes of their own, so that a crash or a hang is counted and does not end the campaign."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from .target import Fault, Target

HANG_S = 20.0  # without a word
CHUNK = 400  # inputs of one process
MEMORY_BYTES = int(os.environ.get("ISINGLASS_FUZZ_MEMORY", "1500000000"))  # that one input may take

Make = Callable[[Path], Target]


@dataclass
class Found:
    """What came of one target."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "inputs": self.inputs,
            "outcomes": dict(sorted(self.outcomes.items())),
            "faults": self.faults,
            "seconds": round(self.seconds, 1),
        }


@dataclass
class _Running:
    target: str
    process: Any
    connection: Connection
    index: int  # of the input that is tried
    stop: int
    heard_s: float
    began_s: float


class Campaign:
    """Tries inputs of each target. Input i of a target is the same for the same seed, wherever it is tried."""

    def __init__(self, targets: Mapping[str, Make], *, seed: int, keep: Path, workers: int = 2) -> None:
        self.targets, self.seed, self.keep, self.workers = targets, seed, keep, workers
        self.found = {name: Found() for name in targets}

    def run(self, counts: Mapping[str, int], *, deadline_s: float = float("inf")) -> dict[str, Found]:
        """Try so many inputs of each target; begin no chunk after `deadline_s` of time.monotonic()."""
        waiting = [
            (name, start, min(start + CHUNK, count))
            for name, count in counts.items()
            for start in range(0, count, CHUNK)
        ]
        waiting.sort(key=lambda chunk: chunk[1])  # in turn, so that a deadline leaves some of each
        running: list[_Running] = []
        while waiting or running:
            if time.monotonic() > deadline_s:
                waiting.clear()
            while waiting and len(running) < self.workers:
                running.append(self._start(*waiting.pop(0)))
            ready = wait([run.connection for run in running], timeout=1.0)
            for run in list(running):
                again = self._hear(run) if run.connection in ready else self._check(run)
                if again is not None:
                    running.remove(run)
                    if again < run.stop:
                        waiting.insert(0, (run.target, again, run.stop))
        return self.found

    def _start(self, name: str, start: int, stop: int) -> _Running:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        arguments = (there, name, self.targets[name], self.seed, range(start, stop), self.keep)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        there.close()
        now = time.monotonic()
        return _Running(name, process, here, start, stop, now + 60, now)  # it may import for long

    def _hear(self, run: _Running) -> int | None:
        """Take what came. Return where to go on, once the process has ended."""
        found = self.found[run.target]
        try:
            while run.connection.poll():
                kind, value = run.connection.recv()
                run.heard_s = time.monotonic()
                if kind == "at":
                    run.index = value
                else:
                    found.inputs += 1
                    found.outcomes.update([value] if kind == "outcome" else [])
                    found.faults.extend([value] if kind == "fault" else [])
        except (EOFError, OSError):
            run.process.join()
            found.seconds += time.monotonic() - run.began_s
            if run.process.exitcode == 0:
                return run.stop
            return self._lost(run, f"the process ended with {run.process.exitcode}")
        return None

    def _check(self, run: _Running) -> int | None:
        if time.monotonic() - run.heard_s < HANG_S:
            return None
        run.process.kill()
        run.process.join()
        self.found[run.target].seconds += time.monotonic() - run.began_s
        return self._lost(run, f"no answer for {HANG_S:.0f} s")

    def _lost(self, run: _Running, why: str) -> int:
        found = self.found[run.target]
        if run.index == run.stop:  # all were tried; a thread of the target does not end
            return run.stop
        found.inputs += 1
        found.faults.append({"index": run.index, "kind": "hang" if "answer" in why else "crash", "what": why})
        return run.index + 1


def _work(connection: Connection, name: str, make: Make, seed: int, indices: Sequence[int], keep: Path) -> None:
    with TemporaryDirectory(prefix="fuzz-") as folder:
        target = make(Path(folder))
        for index in indices:
            connection.send(("at", index))
            before = _peak_bytes()
            try:
                outcome = target.try_one(Random(f"{seed}/{name}/{index}"))
                if (taken := _peak_bytes() - before) > MEMORY_BYTES:
                    raise Fault(f"{taken / 1e9:.1f} GB of memory were taken")
                connection.send(("outcome", outcome))
            except BaseException as error:
                connection.send(("fault", _fault(error, index)))
                with suppress(OSError):
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{seed}-{index}.bin").write_bytes(getattr(target, "input", b""))
        connection.send(("at", indices[-1] + 1))
        target.close()


def _fault(error: BaseException, index: int) -> dict[str, Any]:
    kind = "other data" if isinstance(error, Fault) else type(error).__name__
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"index": index, "kind": kind, "what": str(error)[:300], "where": " ".join(places[-4:])}


def _peak_bytes() -> int:
    """Return the most memory that this process held: its own, where getrusage begins with that of its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
