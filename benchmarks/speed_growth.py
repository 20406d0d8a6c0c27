"""Measurements of growth: time and peak memory against keypoints, megapixels and pairs, each in a fresh process."""

from __future__ import annotations

import math
from pathlib import Path

from speed_harness import WorkerDied, measurement

LIMIT_S = 60.0  # a series ends before a step that would take longer, by what the last steps took
SPARE_MB = 1500  # of the machine's memory, left to everybody else
KEYPOINTS = (512, 1024, 2048, 4096, 8192, 16384)
MEGAPIXELS = (1, 4, 16, 100)
PAIRS = (1, 8, 64, 512, 4096)
KEYPOINTS_A_PAIR = 32


def _free_mb():
    """Memory that a new process may have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kib) // 1024 - SPARE_MB


def _expected_s(points, size):
    """How long the next size would take, as the last two went on."""
    if len(points) < 2:
        return 0.0
    (size0, ms0), (size1, ms1) = [(one["size"], one["ms"]) for one in points[-2:]]
    exponent = max(math.log(ms1 / ms0) / math.log(size1 / size0), 1.0)
    return ms1 / 1e3 * (size / size1) ** exponent


def _series(bench, sizes, request_of, warm_up):
    """Size -> time and memory of one call. It ends where memory or patience does, and says so."""
    points, note = [], None
    for size in sizes:
        if (expected_s := _expected_s(points, size)) > LIMIT_S:
            note = f"not measured from {size} on: about {expected_s:.0f} s"
            break
        with bench.fresh() as worker:
            try:
                worker.must("limit_memory", limit_mb=_free_mb())
                worker.ask(**warm_up)
                reply = worker.ask(**request_of(size), tell=True)
            except WorkerDied as end:
                reply = {"error": str(end)}
        if problem := reply.get("error") or reply.get("unavailable"):
            note = f"not measured from {size} on: {problem}"
            break
        reply.pop("matches", None)
        reply.pop("stop_layers", None)
        points.append({"size": size, **reply, "ms": reply["ms"][0]})
    return {"points": points, **({"note": note} if note else {})}


@measurement
def growth_keypoints(bench):
    """A pair by LightGlue: two photos, enlarged to 3 megapixels so that they have so many keypoints."""
    sizes = bench.sizes(*KEYPOINTS)
    files = [bench.work / f"growth{view}-{sizes[-1]}.npz" for view in (0, 1)]
    for view, file in enumerate(files):
        if not file.is_file():
            request = {"image": bench.enlarged_photo(1 if bench.quick else 3, view), "output": str(file)}
            bench.ours.must("save_features", **request, keypoints=sizes[-1], resize=None, threshold=0.0)
    same = {"do": "lightglue", "features0": str(files[0]), "features1": str(files[1])}
    modes = {"adaptive": True, "all layers": False}
    series = {}
    for label, mode in modes.items():
        request = {**same, "adaptive": mode}
        series[label] = _series(
            bench, sizes, lambda size, request=request: {**request, "count": size}, {**request, "count": sizes[0]}
        )
    return {"axis": "keypoints", "series": series}


@measurement
def growth_megapixels(bench):
    """One photo, enlarged, from its file to 2048 features: whole, in tiles of 1024 px, within a budget of memory."""
    sizes, series = bench.sizes(*MEGAPIXELS), {}
    for label, how in (("tiles of 1024 px", {"tile": 1024}), ("memory_mb=500", {"memory_mb": 500}), ("whole", {})):
        request = {"do": "extract_file", "how": how, "keypoints": 2048}
        series[label] = _series(
            bench,
            sizes,
            lambda size, request=request: {**request, "image": bench.enlarged_photo(size)},
            {**request, "image": bench.enlarged_photo(sizes[0])},
        )
    return {"axis": "megapixels", "series": series}


@measurement
def growth_pairs(bench):
    """Pairs of few keypoints in one call."""
    sizes = bench.sizes(*PAIRS)
    request = {"do": "many", "count": KEYPOINTS_A_PAIR, "at_once": True}
    pairs = bench.real_pairs(sizes[-1])
    points = _series(bench, sizes, lambda size: {**request, "pairs": pairs[:size]}, {**request, "pairs": pairs[:1]})
    return {"axis": "pairs", "series": {f"{KEYPOINTS_A_PAIR} keypoints": points}}
