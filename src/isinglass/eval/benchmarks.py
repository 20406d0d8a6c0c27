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
from isinglass.images.folder import Selection, mark_output

SYNTHETIC_PAIRS = 500
ROTATION_STEP_DEG = 30.0
SCALE_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)

# name -> loader(data, cache folder, which photos); data is a folder, of `pairs` a list
LOADERS: dict[str, Callable[[Path, Path, Selection | None], Benchmark]] = {
    "hpatches": lambda data, cache, chosen: load_hpatches(data),
    "evd": lambda data, cache, chosen: load_evd(data),
    "wxbs": lambda data, cache, chosen: load_wxbs(data),
    "megadepth1500": lambda data, cache, chosen: load_megadepth1500(data),
    "scannet1500": lambda data, cache, chosen: load_scannet1500(data),
    "pairs": lambda data, cache, chosen: load_superglue_pairs(data),
    "synthetic": lambda data, cache, chosen: synthetic_homographies(data, SYNTHETIC_PAIRS, 0, cache, selection=chosen),
    "rotation": lambda data, cache, chosen: rotation_sweep(data, ROTATION_STEP_DEG, cache, selection=chosen),
    "scale": lambda data, cache, chosen: scale_sweep(data, SCALE_FACTORS, cache, selection=chosen),
}
OF_PHOTOS = ("synthetic", "rotation", "scale")  # made of any folder of photos; the others are data sets


def load_benchmark(
    name: str, data: Path, *, cache: Path, limit: int | None = None, selection: Selection | None = None
) -> Benchmark:
    """Return the benchmark whose files are in `data`; `limit` takes so many pairs, spread evenly over all.

    cache      folder for what has to be made first, of benchmarks that are made of photos
    selection  which photos of a folder such a benchmark is made of; None = all

    Raises InputError where nothing can be used, or photos are selected of a benchmark that is a data set.
    """
    if name not in LOADERS:
        raise InputError(f"no benchmark {name!r}; known are {', '.join(LOADERS)}")
    if selection is not None and name not in OF_PHOTOS:
        raise InputError(
            f"the benchmark {name!r} is a data set, of which no photos can be selected; expected one of "
            f"{', '.join(OF_PHOTOS)}"
        )
    benchmark = LOADERS[name](data, cache, selection)
    if cache.is_dir():
        mark_output(cache)  # no picture in it is a photo
    if limit is None or limit >= len(benchmark.pairs):
        return benchmark
    chosen = tuple(benchmark.pairs[i * len(benchmark.pairs) // limit] for i in range(limit))
    return replace(benchmark, pairs=chosen, protocol=f"{benchmark.protocol}, {limit} pairs of it")
