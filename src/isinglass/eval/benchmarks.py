"""Benchmarks by name, as the command line knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from isinglass.datasets.homography import load_evd, load_hpatches, load_wxbs
from isinglass.datasets.pairs import Benchmark
from isinglass.datasets.posed import load_megadepth1500, load_scannet1500, load_superglue_pairs
from isinglass.datasets.synthetic import rotation_sweep, scale_sweep, synthetic_homographies
from isinglass.errors import InputError
from isinglass.images.folder import mark_output

SYNTHETIC_PAIRS = 500
ROTATION_STEP_DEG = 30.0
SCALE_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)

# name -> loader(data, cache folder); data is a folder, of `pairs` a list
LOADERS: dict[str, Callable[[Path, Path], Benchmark]] = {
    "hpatches": lambda data, cache: load_hpatches(data),
    "evd": lambda data, cache: load_evd(data),
    "wxbs": lambda data, cache: load_wxbs(data),
    "megadepth1500": lambda data, cache: load_megadepth1500(data),
    "scannet1500": lambda data, cache: load_scannet1500(data),
    "pairs": lambda data, cache: load_superglue_pairs(data),
    "synthetic": lambda data, cache: synthetic_homographies(data, SYNTHETIC_PAIRS, 0, cache),
    "rotation": lambda data, cache: rotation_sweep(data, ROTATION_STEP_DEG, cache),
    "scale": lambda data, cache: scale_sweep(data, SCALE_FACTORS, cache),
}


def load_benchmark(name: str, data: Path, *, cache: Path, limit: int | None = None) -> Benchmark:
    """The benchmark whose files are in `data`; `limit` takes so many pairs, spread evenly over all.

    `cache` is for what has to be made first (sweeps). Raises InputError where nothing can be used.
    """
    if name not in LOADERS:
        raise InputError(f"no benchmark {name!r}; known are {', '.join(LOADERS)}")
    benchmark = LOADERS[name](data, cache)
    if cache.is_dir():
        mark_output(cache)  # no picture in it is a photo
    if limit is None or limit >= len(benchmark.pairs):
        return benchmark
    chosen = tuple(benchmark.pairs[i * len(benchmark.pairs) // limit] for i in range(limit))
    return replace(benchmark, pairs=chosen, protocol=f"{benchmark.protocol}, {limit} pairs of it")
