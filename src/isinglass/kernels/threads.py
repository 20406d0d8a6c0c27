"""Work that falls into independent parts, each on a thread of its own.

torch splits every operation over all threads. For the small products of a matcher that means thousands of splits, after
each of which threads wait and what was made is in the other core's cache. Here each thread does all operations of its
part alone. Whoever hands parts out does so on such a thread, too: threads of a split operation would go on looking for
more for milliseconds, on cores that are needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple, ParamSpec, TypeVar

import torch

MOST = 8  # threads of Python: with more they wait for the interpreter; torch's are shared out among them

# glibc gives freed memory back to the system, to be had again by page faults (a tenth of a matcher's time), but keeps
# blocks up to the largest that was ever freed; up to this size.
LARGEST_KEPT = 31 << 20
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class _Team(NamedTuple):
    pool: ThreadPoolExecutor
    size: int


_here = threading.local()  # .team of a thread that may hand out parts


def in_team(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A decorator: the function runs on one of the threads that share torch's out, and `for_each` in it on all.

    The caller waits; its inference and gradient modes hold. With one thread, or in such a function, nothing changes.
    """

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.get_num_threads() == 1 or getattr(_here, "team", None) is not None:
            return function(*args, **kwargs)
        team, mode = _team_of(torch.get_num_threads(), os.getpid()), _Mode()

        def lead() -> _Result:
            _here.team = team
            try:
                with mode.again():
                    return function(*args, **kwargs)
            finally:
                _here.team = None

        return team.pool.submit(lead).result()

    return run


def team_size() -> int:
    """How many threads `for_each` uses here."""
    team = getattr(_here, "team", None)
    return 1 if team is None else team.size


def for_each(work: Callable[[_Item], object], items: Sequence[_Item]) -> None:
    """`work(item)` for all items, in no certain order, on all threads of the team. Raises what work raises."""
    waiting, mode = deque(items), _Mode()

    def run() -> None:
        while True:
            try:
                item = waiting.popleft()
            except IndexError:
                return
            work(item)

    def help_out() -> None:
        with mode.again():
            run()

    helpers = []
    if (team := getattr(_here, "team", None)) is not None:
        helpers = [team.pool.submit(help_out) for _ in range(min(team.size, len(items)) - 1)]
    try:
        run()
    finally:
        running = [one for one in helpers if not one.cancel()]  # those that never began are busy elsewhere
        wait(running)
    for one in running:
        one.result()


def use_threads(count: int) -> None:
    """So many threads from now on, for a process of the library's own: of others that is the user's to say."""
    torch.set_num_threads(count)


def on_one_thread(work: Callable[[], _Result]) -> _Result:
    """Return `work()`, run on a thread of its own that has but one of torch's; the caller's number stays."""
    threads = torch.get_num_threads()

    def run() -> _Result:
        torch.get_num_threads()  # a thread's first call sets its number to the process's: it must come before
        torch.set_num_threads(1)
        return work()

    with ThreadPoolExecutor(1) as alone:
        result = alone.submit(run).result()
    torch.set_num_threads(threads)  # what new threads start with: the one above has changed that
    return result


def _one_thread() -> None:
    """Make torch use one thread: a forked child has none of the threads that OpenMP would wait for, for ever."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_one_thread)


class _Mode:
    """The caller's inference and gradient modes, which a thread does not inherit."""

    def __init__(self) -> None:
        self.inference, self.grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.grad):
            yield


@functools.lru_cache(maxsize=4)
def _team_of(threads: int, process: int) -> _Team:
    """Of this process, as threads do not survive a fork."""
    count = min(threads, MOST)
    all_there = threading.Barrier(count)

    def take_share() -> None:
        torch.get_num_threads()  # a thread's first call sets its number to the process's: it must come before
        torch.set_num_threads(threads // count)
        all_there.wait()

    pool = ThreadPoolExecutor(count, "isinglass", initializer=take_share)
    wait([pool.submit(int) for _ in range(count)])
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)  # and freed: see there
    torch.set_num_threads(threads)  # what new threads start with: those that took their share have set that, too
    return _Team(pool, count)
