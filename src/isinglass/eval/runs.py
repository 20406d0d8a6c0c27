"""A run on disk: one JSON that says what was measured with what, and an npz of what became of every pair.

The JSON has the fields of `Run.info`, the npz those of `Run.pairs`; `docs/benchmarks.md` is made from such files alone.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isinglass.errors import InputError
from isinglass.files import read_signed_json, write_signed_json
from isinglass.files.integrity import is_sealed
from isinglass.files.npz import read_npz, write_npz

SCHEMA = "isinglass eval 1"
PACKAGES = ("isinglass", "torch", "numpy", "pillow", "opencv-python-headless", "poselib", "pycolmap")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Run:
    """What was measured.

    info    as the JSON: benchmark (name, protocol, task, auc_at, maa_px, num_pairs, problems), label, options,
            extractor, matcher, weights, solvers, thresholds_px, fixed_threshold_px, seed, versions, machine,
            timings_ms, tables, best
    pairs   arrays by name, of one entry a pair in the order of "names": groups, num_keypoints0/1, num_matches,
            num_correct, precision, stop_layer, match_ms, extract_ms, error__<solver>__<threshold>, and with maa_px
            accuracy__<solver>__<threshold> in [0, 1]; flat ones of one entry a match: match_scores, match_correct (1,
            0, or -1 = not known), match_pair
    path    of the JSON
    """

    info: dict[str, Any]
    pairs: dict[str, NDArray[Any]]
    path: Path


def save_run(path: Path, info: Mapping[str, Any], pairs: Mapping[str, NDArray[Any]]) -> Run:
    """Write <path> (.json) and its npz beside it. Raises InputError where they cannot be written."""
    per_pair = path.with_suffix(".npz")
    whole = {"schema": SCHEMA, **info, "per_pair": per_pair.name}
    write_npz(per_pair, {name: np.asarray(values) for name, values in pairs.items()}, compressed=True)
    write_signed_json(path, whole)
    return Run(info=whole, pairs=dict(pairs), path=path)


def load_run(path: Path | str) -> Run:
    """Read what `save_run` wrote. Raises InputError where a file is missing, damaged or no run."""
    path = Path(path)
    try:
        info = read_signed_json(path)
        if info.get("schema") != SCHEMA:
            raise InputError(f"{str(path)!r} is no run of `isinglass eval` ({SCHEMA!r}); give the JSON that it wrote")
        per_pair = path.parent / info["per_pair"]
        pairs = dict(read_npz(per_pair))
        if is_sealed(per_pair):  # then both are by a version that writes hashes
            read_signed_json(path, needs_hash=True)
    except (KeyError, TypeError) as error:
        raise InputError(f"the run {str(path)!r} cannot be read: {error}. Run `isinglass eval` again") from error
    return Run(info=info, pairs=pairs, path=path)


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}
