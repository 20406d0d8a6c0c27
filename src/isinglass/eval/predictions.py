"""Predictions of a benchmark: every image extracted once, every pair matched once, both kept; a killed run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from isinglass.cache import FeatureCache, matching_key
from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError, WriteError
from isinglass.files import SavedMatches, load_matches, read_if_whole, read_signed_json, save_matches, write_signed_json
from isinglass.pipeline import Pipeline


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prediction:
    """What was predicted for a pair; `problem` instead where its images cannot be read."""

    pair: EvalPair
    saved: SavedMatches | None = None
    file: Path | None = None  # of the matches
    match_ms: float = float("nan")
    extract_ms: float = float("nan")  # of the images that were not extracted before
    problem: str | None = None


def predict(benchmark: Benchmark, pipeline: Pipeline, folder: Path) -> Iterator[Prediction]:
    """One prediction a pair, in order, from `folder` where it is there. Pairs are matched one at a time, and timed."""
    cache = FeatureCache(pipeline, folder / "features")
    done = folder / "predictions" / matching_key(pipeline)[:12]
    for pair in benchmark.pairs:
        try:
            yield _predict_pair(pair, cache, done)
        except WriteError:  # the folder's fault and not the pair's
            raise
        except InputError as error:
            yield Prediction(pair=pair, problem=str(error))


def _predict_pair(pair: EvalPair, cache: FeatureCache, done: Path) -> Prediction:
    pipeline = cache.pipeline
    keys = cache.key(pair.image0), cache.key(pair.image1)
    name = hashlib.sha256(repr((pair.name, keys, pair.turns0, pair.turns1)).encode()).hexdigest()[:16]
    matches_file, times_file = done / f"{name}.npz", done / f"{name}.json"
    times, saved = read_if_whole(times_file, read_signed_json), read_if_whole(matches_file, load_matches)
    if times is not None and saved is not None:
        with suppress(KeyError, TypeError, ValueError):  # of an earlier version that was damaged
            return _prediction(pair, matches_file, saved, times)
    pipeline.timings_ms = {}
    features0 = cache.get(pair.image0, turns=(pair.turns0,))[0]
    candidates = cache.get(pair.image1, turns=[(pair.turns1 + turn) % 4 for turn in pipeline.turns])
    extract_ms = pipeline.timings_ms.get("extract", 0.0)
    result = pipeline.match_features([features0], [candidates])[0]
    save_matches(matches_file, result.matches, result.features0, result.features1)
    times = {"match_ms": pipeline.timings_ms["match"], "extract_ms": extract_ms}
    write_signed_json(times_file, times, indent=None)
    return _prediction(pair, matches_file, load_matches(matches_file), times)


def _prediction(pair: EvalPair, file: Path, saved: SavedMatches, times: dict[str, float]) -> Prediction:
    return Prediction(
        pair=pair,
        saved=saved,
        file=file,
        match_ms=float(times["match_ms"]),
        extract_ms=float(times["extract_ms"]),
    )
