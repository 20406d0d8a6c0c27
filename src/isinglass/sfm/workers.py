"""Matching by several processes of one machine: as many cores each as there are for it, or a GPU each.

The process that starts them hands out chunks, takes what they find batch by batch, and alone writes. A worker that dies
loses the batch that it was at: another takes the rest of its chunk. Workers end when the process that started them
does, however that ends.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from isinglass.devices import devices_here, find_device
from isinglass.errors import InputError, IsinglassError
from isinglass.files import PathLike
from isinglass.kernels.attention import agree_on_kernel, kernel_name
from isinglass.kernels.linear import compute_dtype
from isinglass.kernels.threads import use_threads
from isinglass.models import load_matcher
from isinglass.options import Options
from isinglass.sfm.matching import (
    PAIRS_A_CHUNK,
    Chunk,
    Matched,
    MatchRun,
    Views,
    keypoints_a_batch,
    match_chunk,
    settings_of,
)
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, Pair

TRIES = 3  # of a chunk


def match_with_workers(
    features_path: PathLike,
    pairs: Sequence[Pair],
    matches_path: PathLike,
    options: Options,
    *,
    workers: int,
    devices: Sequence[str] | None = None,
    memory_mb: int = 1000,
    tell: Tell = lambda done, of: None,
) -> Matched:
    """What `match_stored` does, by so many processes, with the same result; the matcher is that of the options.

    A pair of a chunk that three workers died at is a problem, and the others are done.

    devices    of the workers, in turn; None = that of the options, or all GPUs there are, or the CPU
    memory_mb  MB of features that all of them hold together

    Raises InputError and WriteError as `match_stored` does, WeightsError where weights cannot be had, IsinglassError
    where workers cannot be started. A script that calls it needs `if __name__ == "__main__":`.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    places = list(devices or _devices(options))
    features = FeatureStore(features_path)  # only its index is read here
    matcher = _as_on(places[0], options)
    settings, limits = settings_of(matcher, features.settings), (keypoints_a_batch(matcher), None)
    book = {"settings": settings, "limits": limits, "chunk_pairs": PAIRS_A_CHUNK, "tell": tell}
    with MatchRun(features, pairs, matches_path, **book) as run:
        kernel = kernel_name(getattr(matcher, "compute_dtype", torch.float32))
        team = _Team(run, features_path, options, max(1, memory_mb // workers), kernel)
        try:
            for i in range(min(workers, len(run.chunks))):
                team.start(places[i % len(places)], max(1, torch.get_num_threads() // workers))
            team.work()
        finally:
            team.stop()
    return run.result


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    device: str
    threads: int
    chunk: Chunk | None = None  # what it is at


class _Team:
    """The workers of a run."""

    def __init__(self, run: MatchRun, features_path: PathLike, options: Options, memory_mb: int, kernel: str) -> None:
        self.run, self.features_path, self.options, self.memory_mb = run, features_path, options, memory_mb
        self.kernel = kernel  # of attention: one for all, as they round otherwise
        self.waiting = deque(run.chunks)
        self.workers: list[_Worker] = []
        self._ended: list[Any] = []  # processes
        self._died: dict[Chunk | None, int] = {}  # how many workers died at a chunk, or at none
        self._spawn = multiprocessing.get_context("spawn")

    def start(self, device: str, threads: int) -> None:
        """One more worker, which says when it is ready."""
        ours, theirs = self._spawn.Pipe()
        arguments = (
            theirs,
            self.features_path,
            replace(self.options, device=device),
            threads,
            self.memory_mb,
            self.kernel,
        )
        process = self._spawn.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here
        self.workers.append(_Worker(process, ours, device, threads))

    def work(self) -> None:
        """Until all chunks are done."""
        while self.workers:
            for connection in wait([one.connection for one in self.workers]):
                self._hear(next(one for one in self.workers if one.connection is connection))

    def stop(self) -> None:
        """End all workers."""
        for one in self.workers:
            one.connection.close()
            one.process.terminate()
        for process in (*self._ended, *(one.process for one in self.workers)):
            process.join()

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, said = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "found":
            assert worker.chunk is not None
            worker.chunk.batches.pop(0)
            self.run.take(said)
            return
        if kind == "refused":
            raise InputError(said)
        if kind == "failed":
            self._failed(worker.chunk, said)
        self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        worker.chunk = self.waiting.popleft() if self.waiting else None
        if worker.chunk is not None:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has died: that is heard next
                worker.connection.send(worker.chunk)
            return
        self.workers.remove(worker)
        self._ended.append(worker.process)
        worker.connection.close()  # which ends it

    def _bury(self, worker: _Worker) -> None:
        """Of a worker that died: its chunk goes back, and another one takes its place."""
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        self._failed(worker.chunk, f"a worker process ended with {worker.process.exitcode}")
        if self.waiting:
            self.start(worker.device, worker.threads)

    def _failed(self, chunk: Chunk | None, why: str) -> None:
        self._died[chunk] = self._died.get(chunk, 0) + 1
        if chunk is None:
            if self._died[chunk] >= TRIES:
                raise IsinglassError(f"workers end before they begin: {why}. See above, or match with one process")
        elif self._died[chunk] < TRIES:
            self.waiting.append(chunk)
        else:
            self.run.take(({}, dict.fromkeys(chunk.pairs, f"{TRIES} workers failed at these pairs: {why}")))


def _serve(
    connection: Connection, features_path: PathLike, options: Options, threads: int, memory_mb: int, kernel: str
) -> None:
    """A worker: chunks come, what is found goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is told, and ends it
    agree_on_kernel(kernel)
    use_threads(threads)
    device = find_device(options.device or "cpu")
    try:
        matcher = load_matcher(options, device)
        views = Views(FeatureStore(features_path), device, memory_mb)
        connection.send(("ready", None))
        while True:
            chunk: Chunk = connection.recv()
            try:
                for found in match_chunk(views.get, chunk, matcher):
                    connection.send(("found", found))
                connection.send(("done", None))
            except (RuntimeError, MemoryError) as error:
                connection.send(("failed", str(error)))
    except InputError as error:
        connection.send(("refused", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody listens any more


def _devices(options: Options) -> list[str]:
    if options.device is not None:
        return [options.device]
    here = devices_here()
    return [name for name in here if name.startswith("cuda")] or here[:1]


def _as_on(device: str, options: Options) -> Any:
    """The matcher on the CPU, but computing as it will on the device, which is left to the workers."""
    matcher: Any = load_matcher(options, torch.device("cpu"))
    if hasattr(matcher, "compute_dtype"):
        matcher.compute_dtype = compute_dtype(options.precision, torch.device(device))
    return matcher
