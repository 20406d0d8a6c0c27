"""How speed.py talks to its workers: one JSON object a line, asked on stdin and answered on stdout.

Both workers serve by this, that of the peers and our own, so that both are timed alike. Nothing but the standard
library is needed. A command takes the request's fields, prepares (loads models and files, which it keeps), and gives
back the call that is timed, and what is to be said of the call's result. Memory is read as Linux tells it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path


class Unavailable(Exception):
    """What was asked for does not exist here; the message says why."""


def serve(commands):
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    for line in sys.stdin:
        try:
            reply = _answer(commands, json.loads(line))
        except Unavailable as reason:
            reply = {"unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:300]}
        print(json.dumps(reply), file=replies, flush=True)


def _answer(commands, request):
    """Milliseconds of `repeat` calls one after the other, memory before and at most, and with `tell` the result."""
    repeat, tell = request.pop("repeat", 1), request.pop("tell", False)
    call, describe = commands[request.pop("do")](**request)
    gc.collect()
    before_mb, spent_ms, result = _begin_peak(), [], None
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        spent_ms.append((time.perf_counter() - start) * 1e3)
    return {
        "ms": spent_ms,
        "before_mb": before_mb,
        "peak_mb": _memory_mb("VmHWM"),
        **(describe(result) if tell else {}),
    }


def _begin_peak():
    """Let the peak of this process' memory begin anew, and give what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mb("VmRSS")


def _memory_mb(name):
    """VmRSS: what this process holds; VmHWM: the most it held since `_begin_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def limit_memory(limit_mb):
    """A command: let allocations beyond the limit fail, instead of the system ending the process."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_mb * 2**20, limit_mb * 2**20))
    return (lambda: None), (lambda _: {})
