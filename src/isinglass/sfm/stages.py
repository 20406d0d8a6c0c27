"""Work in stages, each done once: what one depends on is its key, and a finished stage with the same key stays."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isinglass.files import read_if_whole, read_signed_json, write_signed_json


def key_of(*parts: Any) -> str:
    """Hex digits, of values that are text, numbers, lists, dicts, or as good as their `repr`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One that is finished: `result` is as its work gave it (JSON), `seconds` what that took, now or earlier."""

    name: str
    key: str
    result: dict[str, Any]
    seconds: float
    reused: bool


class Stages:
    """Stages in a folder: <name>.json of each, written when it is finished and taken away before it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: list[Stage] = []

    def run(
        self,
        name: str,
        key: str,
        outputs: Sequence[Path],
        work: Callable[[], dict[str, Any]],
        is_whole: Callable[[dict[str, Any]], bool] = lambda result: True,
    ) -> Stage:
        """Do the work, unless it was finished with the same key and its outputs are there. `work` gives the result.

        is_whole  whether the outputs of an earlier run with such a result are whole
        """
        file = self.folder / f"{name}.json"
        stage = self._earlier(file, name, key)
        if stage is None or not all(output.exists() for output in outputs) or not is_whole(stage.result):
            file.unlink(missing_ok=True)
            start = time.perf_counter()
            result = work()
            stage = Stage(name=name, key=key, result=result, seconds=time.perf_counter() - start, reused=False)
            told = {"key": key, "seconds": stage.seconds, "result": result}
            write_signed_json(file, told)
        self.finished.append(stage)
        return stage

    @staticmethod
    def _earlier(file: Path, name: str, key: str) -> Stage | None:
        try:
            told = read_if_whole(file, read_signed_json)
            if told is None or told["key"] != key:
                return None
            return Stage(name=name, key=key, result=dict(told["result"]), seconds=float(told["seconds"]), reused=True)
        except (ValueError, KeyError, TypeError):
            return None
