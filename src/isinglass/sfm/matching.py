"""Matches of many pairs of images whose features are in a store, each pair once, whatever stops the run."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.pipeline import Pipeline
from isinglass.sfm.extraction import Tell, feature_settings
from isinglass.sfm.store import FeatureStore, MatchStore, Pair, PairMatches
from isinglass.types import Features, Matcher

PAIRS_A_CHUNK = 512
SECONDS_A_PART = 5.0
KEYPOINTS_A_BATCH = 32768


@dataclass(kw_only=True)
class Matched:
    """What became of pairs: how many were matched, how many were there, which could not be matched and why."""

    made: int = 0
    reused: int = 0
    problems: dict[Pair, str] = field(default_factory=dict)
    seconds: float = 0.0


def matching_settings(pipeline: Pipeline, features: FeatureStore | None = None) -> str:
    """What matches depend on beside photos and extractor, as a store's `settings`; features: those that are matched."""
    matcher: Any = pipeline.matcher
    config = getattr(matcher, "config", None)
    return json.dumps(
        {
            "matcher": matcher.name,
            "weights": getattr(matcher, "weights_id", "none"),
            "dtype": str(getattr(matcher, "compute_dtype", torch.float32)).removeprefix("torch."),
            "config": {one.name: getattr(config, one.name) for one in fields(config)} if config is not None else {},
            "features": json.loads(feature_settings(pipeline) if features is None else features.settings or "{}"),
        }
    )


def chunks_of(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """The pairs in runs of at most `size` that have few images each; which those are depends on the pairs alone."""
    side = max(1, math.isqrt(size))
    place = {name: i for i, name in enumerate(sorted({name for pair in pairs for name in pair}))}

    def order(pair: Pair) -> tuple[int, int, int, int]:
        low, high = sorted(place[name] for name in pair)
        block = high // side if (low // side) % 2 == 0 else -(high // side)  # to and fro
        return low // side, block, low, high

    ordered = sorted(dict.fromkeys(pairs), key=order)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def match_stored(
    features: FeatureStore,
    pairs: Sequence[Pair],
    matches_path: PathLike,
    matcher: Matcher,
    *,
    settings: str,
    memory_mb: int = 1000,
    tell: Tell = lambda done, of: None,
    batch_pairs: int | None = None,
) -> Matched:
    """Match pairs of images of a store into a store of matches; `tell` hears of every batch.

    A pair that is there, in either order, of the same features stays. A pair one of whose images has no features is a
    problem, and the others are done. A run that is killed loses the pairs of its last seconds.

    settings     see `matching_settings`
    memory_mb    MB of features that are held
    batch_pairs  pairs a batch at most; None = as many as fill the matcher

    Raises InputError for a store of another extractor or settings, or features that are not the matcher's, WriteError
    where the store cannot be written.
    """
    began = time.monotonic()
    result = Matched()
    with MatchStore(matches_path, features.signature, settings) as store:
        todo = _missing(pairs, features, store, result)
        of = result.reused + len(result.problems) + sum(map(len, todo))
        writer = _Writer(store, features)
        views = Views(features, device_of(matcher), memory_mb)
        for chunk in todo:
            for matched, problems in match_chunk(views, chunk, matcher, batch_pairs=batch_pairs):
                writer.add(matched)
                result.made += len(matched)
                result.problems |= problems
                tell(result.made + result.reused + len(result.problems), of)
        writer.write()
        store.merge()
    result.seconds = time.monotonic() - began
    return result


def match_chunk(
    views: Views, pairs: Sequence[Pair], matcher: Matcher, *, batch_pairs: int | None = None
) -> Iterator[tuple[dict[Pair, PairMatches], dict[Pair, str]]]:
    """Matches of a run of pairs, batch by batch, and the pairs of which features are damaged, with the reason."""
    batch: dict[Pair, tuple[Features, Features]] = {}
    problems: dict[Pair, str] = {}
    keypoints, most = 0, getattr(matcher, "max_tokens", KEYPOINTS_A_BATCH)
    for pair in pairs:
        try:
            both = views.get(pair[0]), views.get(pair[1])
        except InputError as error:
            problems[pair] = str(error)
            continue
        count = sum(one.keypoints.shape[1] for one in both)
        if batch and (keypoints + count > most or len(batch) == batch_pairs):
            yield _matched(batch, matcher), problems
            batch, problems, keypoints = {}, {}, 0
        batch[pair] = both
        keypoints += count
    if batch or problems:
        yield _matched(batch, matcher), problems


def device_of(matcher: Matcher) -> torch.device:
    """Where a matcher computes."""
    weights = matcher.parameters() if isinstance(matcher, torch.nn.Module) else iter(())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device


class Views:
    """Features of a store, on a device; those used last are held, at most `memory_mb` MB of them."""

    def __init__(self, features: FeatureStore, device: torch.device, memory_mb: int) -> None:
        self.features, self.device, self.most = features, device, memory_mb * 1_000_000
        self.loaded = 0  # how often features were read
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def get(self, name: str) -> Features:
        """Of an image. Raises InputError where there are none, or they are damaged."""
        if name not in self._held:
            found = self.features.get(name).to(self.device)
            self.loaded += 1
            self._held[name] = found
            self._bytes += _bytes_of(found)
            while self._bytes > self.most and len(self._held) > 2:
                self._bytes -= _bytes_of(self._held.popitem(last=False)[1])
        self._held.move_to_end(name)
        return self._held[name]


class _Writer:
    """What waits to be written."""

    def __init__(self, store: MatchStore, features: FeatureStore) -> None:
        self.store, self.features = store, features
        self._waiting: dict[Pair, PairMatches] = {}
        self._written_s = time.monotonic()

    def add(self, matched: dict[Pair, PairMatches]) -> None:
        """Keep them until there are enough for a part."""
        self._waiting |= matched
        if time.monotonic() - self._written_s > SECONDS_A_PART:
            self.write()

    def write(self) -> None:
        """One part of what waits."""
        if self._waiting:
            names = {name for pair in self._waiting for name in pair}
            self.store.add(self._waiting, {name: self.features.digest(name) or "" for name in names})
        self._waiting, self._written_s = {}, time.monotonic()


def _missing(pairs: Sequence[Pair], features: FeatureStore, store: MatchStore, result: Matched) -> list[list[Pair]]:
    """The pairs that are to be matched, in chunks; the others are counted in the result.

    Chunks are made of all pairs, so that a run that goes on has the batches that it would have had.
    """
    todo = []
    seen: set[frozenset[str]] = set()
    for chunk in chunks_of(pairs, PAIRS_A_CHUNK):
        left = []
        for pair in chunk:
            if frozenset(pair) in seen:
                continue
            seen.add(frozenset(pair))
            digests = [features.digest(name) for name in pair]
            if lacking := [name for name in pair if name not in features]:
                result.problems[pair] = f"there are no features of {' and '.join(map(repr, lacking))}"
            elif pair[0] == pair[1]:
                result.problems[pair] = "an image was paired with itself"
            elif store.digests(pair) == tuple(digests) or store.digests((pair[1], pair[0])) == tuple(digests[::-1]):
                result.reused += 1
            else:
                left.append(pair)
        todo.append(left)
    return todo


def _matched(batch: dict[Pair, tuple[Features, Features]], matcher: Matcher) -> dict[Pair, PairMatches]:
    if not batch:
        return {}
    views0, views1 = ([both[view] for both in batch.values()] for view in (0, 1))
    found = matcher.match_many(views0, views1)
    return {pair: PairMatches.of(one) for pair, one in zip(batch, found, strict=True)}


def _bytes_of(features: Features) -> int:
    tensors = [getattr(features, one.name) for one in fields(features)]
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))
