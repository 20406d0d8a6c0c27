"""A queue that one thread works off, and its results: first come, first served, each job for its own, all bounded.

Whoever holds a job's id may ask for it, so ids are random. Calls of live pages take turns with jobs.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from isinglass.app.log import log_failure
from isinglass.app.memory import give_back
from isinglass.app.pipelines import Tell
from isinglass.app.settings import Limits
from isinglass.app.uploads import Refused
from isinglass.errors import InputError, IsinglassError

State = Literal["queued", "running", "done", "failed", "cancelled"]
RETRY_AFTER_S = 5
_SWEEP_S = 20.0
_MOST_PROGRESS = 0.95  # before a job is done


class Cancelled(Exception):
    """Somebody does not want the job any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done.

    kind    of job, for people
    run     does it; the result is what can be fetched: name -> content
    held    bytes that it holds until it is done
    steps   how often it tells of a step, about; 0 = not known
    keep    whether the result is kept for whoever asks by the job's id; else it is in the future alone
    """

    kind: str
    run: Callable[[Tell], dict[str, bytes]]
    held: int = 0
    steps: int = 0
    keep: bool = True


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work and what became of it. `ended` has the result, or the error."""

    id: str
    kind: str
    work: Work | None
    held: int
    state: State = "queued"
    stage: str = "waiting"
    progress: float | None = 0.0
    problem: Exception | None = None
    result: dict[str, bytes] = field(default_factory=dict)
    ended_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: Future[dict[str, bytes]] = field(default_factory=Future)

    @property
    def result_bytes(self) -> int:
        """Of all that can be fetched."""
        return sum(map(len, self.result.values()))


class Jobs:
    """The queue, the thread that works it off, and the store of results. `close` ends the thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._finished: deque[Job] = deque()  # those of `_jobs` that have ended, oldest first
        self._thread: threading.Thread | None = None
        self._closing, self._turn_of_calls = False, True
        self._reserved = 0

    # --- from outside

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes of uploads before they are held. Raises Refused (503) where there is none.

        `release` gives it back.
        """
        with self._changed:
            waiting = len(self._queue) + (self._running is not None)
            if waiting >= self.limits.waiting:
                raise busy(f"{waiting} jobs wait already")
            if self._reserved and self._reserved + size > self.limits.waiting_bytes:
                raise busy(f"uploads of {self._reserved / 1e6:.0f} MB wait already")
            self._reserved += size

    def release(self, size: int) -> None:
        """Give back what was reserved; of a job that was submitted this is done when it ends."""
        with self._changed:
            self._reserved -= size

    def submit(self, work: Work) -> Job:
        """Queue it; its `held` bytes have been reserved. Raises Refused (503) where too many jobs wait."""
        job = Job(id=secrets.token_urlsafe(18), kind=work.kind, work=work, held=work.held)
        job.progress = 0.0 if work.steps else None
        with self._changed:
            waiting = len(self._queue) + (self._running is not None)
            if self._closing or waiting >= self.limits.waiting:
                raise busy(f"{waiting} jobs wait already")
            self._queue.append(job)
            if work.keep:
                self._jobs[job.id] = job
            self._wake()
        return job

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run it in the thread, between jobs; the future has what it gives or raises."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closing:
                future.cancel()
                return future
            self._calls.append((function, future))
            self._wake()
        return future

    def get(self, job_id: str) -> Job:
        """The job. Raises Refused (404) where there is none of that id, or none any more."""
        with self._changed:
            self._sweep()
            job = self._jobs.get(job_id)
        if job is None:
            minutes = self.limits.keep_s / 60
            raise Refused(
                f"there is no such job; expected an id that POST /jobs gave. Results are kept for {minutes:g} minutes, "
                f"the last {self.limits.results} of them at most: run it again",
                404,
            )
        return job

    def position(self, job: Job) -> int:
        """How many jobs are before it; 0 if it runs or has ended."""
        with self._changed:
            return self._queue.index(job) + (self._running is not None) if job in self._queue else 0

    def cancel(self, job: Job) -> None:
        """Stop it: at once if it waits, before its next step if it runs; nothing if it has ended."""
        with self._changed:
            job.cancelled.set()
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled", Cancelled())

    @property
    def waiting(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            return len(self._queue) + (self._running is not None)

    def close(self) -> None:
        """Cancel everything and end the thread after the step that it is at."""
        with self._changed:
            self._closing = True
            for job in [*self._queue, *([self._running] if self._running else [])]:
                self.cancel(job)
            while self._calls:
                self._calls.popleft()[1].cancel()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10)

    # --- the thread

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="isinglass-jobs", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while self._take_one():
            pass

    def _take_one(self) -> bool:
        """Do the next job or call, which take turns; False when all is over. What it was about is let go of."""
        with self._changed:
            while not (self._closing or self._queue or self._calls):
                self._changed.wait(timeout=_SWEEP_S)
                self._sweep()
            if self._closing:
                return False
            call = self._calls.popleft() if self._calls and (self._turn_of_calls or not self._queue) else None
            self._turn_of_calls = call is None
            if call is None:
                self._running = self._queue.popleft()
                self._running.state = "running"
        if call is not None:
            _answer(*call)
        elif self._running is not None:
            self._do(self._running)
            give_back()
        return True

    def _do(self, job: Job) -> None:
        assert job.work is not None
        told = 0

        def tell(step: str) -> None:
            nonlocal told
            if job.cancelled.is_set():
                raise Cancelled
            told += 1
            job.stage = step
            if job.work is not None and job.work.steps:
                job.progress = min(told / job.work.steps, _MOST_PROGRESS)

        state, problem, result = "done", None, {}
        try:
            result = job.work.run(tell)
            tell("done")
        except Cancelled as error:
            state, problem, result = "cancelled", error, {}
        except Exception as error:
            state, problem = "failed", error
            if not isinstance(error, IsinglassError):
                log_failure(error, f"a job of the kind {job.kind}")
        with self._changed:
            self._running = None
            self._end(job, state, problem, result)

    def _end(self, job: Job, state: State, problem: Exception | None, result: dict[str, bytes] | None = None) -> None:
        """Note what became of it and let go of what it held; the lock is held."""
        keep = job.work is not None and job.work.keep
        job.state, job.stage, job.problem, job.work = state, state, alone(problem), None
        job.ended_s, job.progress = time.monotonic(), 1.0 if state == "done" else job.progress
        self._reserved -= job.held
        if keep:
            job.result = result or {}
            self._finished.append(job)
            self._sweep()
        if job.problem is None:
            job.ended.set_result({} if keep else result or {})
        else:
            job.ended.set_exception(job.problem)

    def _sweep(self) -> None:
        """Forget what is too old or too much; the lock is held. The newest result stays, whatever its size."""
        total = sum(job.result_bytes for job in self._finished)
        oldest_s = time.monotonic() - self.limits.keep_s
        while self._finished:
            too_much = len(self._finished) > 1 and (
                len(self._finished) > self.limits.results or total > self.limits.results_bytes
            )
            if not too_much and self._finished[0].ended_s >= oldest_s:
                return
            gone = self._finished.popleft()
            total -= gone.result_bytes
            self._jobs.pop(gone.id, None)


def busy(why: str) -> Refused:
    """The refusal of work when there is too much."""
    return Refused(f"the server is busy: {why}. Try again in {RETRY_AFTER_S} seconds", 503)


def status_of(problem: Exception) -> int:
    """The status of HTTP that an error of a job is told with."""
    if isinstance(problem, Refused):
        return problem.status
    if isinstance(problem, InputError):
        return 422
    return 503 if isinstance(problem, IsinglassError) else 500


def alone(problem: Exception | None) -> Exception | None:
    """The error without the frames and errors that it came from, which would keep photos and models alive."""
    if problem is not None:
        problem.__traceback__ = problem.__cause__ = problem.__context__ = None
    return problem


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
