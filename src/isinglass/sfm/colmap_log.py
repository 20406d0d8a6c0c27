"""COLMAP's log: kept off stderr, and its warnings kept for whoever asks why something failed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isinglass.sfm.options import pycolmap_module

_NOTHING = 3  # level of the log that only ends of the process reach
_HEAD = re.compile(r"^([IWEF])\d{8} [^\]]*\] ?")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_MOST = 10  # warnings that are kept of one stage
_listening: list[str] = []  # the folder of the log, within a `listen` block


@contextmanager
def quiet() -> Iterator[None]:
    """Keep COLMAP's log off stderr; its errors come as exceptions."""
    log = pycolmap_module().logging
    if _listening:  # what is heard must not be silenced
        yield
        return
    before, log.minloglevel = log.minloglevel, _NOTHING
    try:
        yield
    finally:
        log.minloglevel = before


@contextmanager
def listen() -> Iterator[list[str]]:
    """Keep COLMAP's log off stderr, and fill the list with its warnings and errors, each once, when the block ends.

    Of blocks within each other the outer one hears all.
    """
    log, heard = pycolmap_module().logging, []
    if _listening:
        yield heard
        return
    before = log.minloglevel, log.alsologtostderr, log.stderrthreshold
    with tempfile.TemporaryDirectory(prefix="isinglass-log-") as folder:
        _listening.append(folder)
        for level in (log.INFO, log.ERROR, log.FATAL):
            log.set_log_destination(level, "")
        log.set_log_destination(log.WARNING, str(Path(folder) / "log"))
        log.minloglevel, log.alsologtostderr, log.stderrthreshold = 1, False, _NOTHING
        try:
            yield heard
        finally:
            _listening.pop()
            log.set_log_destination(log.WARNING, "")
            log.minloglevel, log.alsologtostderr, log.stderrthreshold = before
            texts = [file.read_text("utf-8", "replace") for file in sorted(Path(folder).iterdir())]
            heard += distinct(line for text in texts for line in _messages(text))


def distinct(messages: Any) -> list[str]:
    """Return the messages, each once (numbers in them aside), in their order, and no more than a person reads."""
    kept: dict[str, str] = {}
    for message in messages:
        kept.setdefault(_NUMBER.sub("0", message), message)
    return list(kept.values())[:_MOST]


def _messages(text: str) -> Sequence[str]:
    """The messages of a log in glog's format, those of several lines as one."""
    found: list[str] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            found.append(line[head.end() :].strip())
        elif found and line.strip():
            found[-1] += f" {line.strip()}"
    return [message for message in found if message]
