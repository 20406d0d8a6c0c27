"""Matches of many pairs of images whose features are in a store, each pair once, whatever stops the run.

Pairs are ordered so that few images have to be held, cut into chunks, and those into batches. Both depend on the pairs
and the numbers of keypoints alone: a run that goes on, or one of several processes, matches the same batches as a run
in one go, and what a pair's result is does not depend on which that was.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch

from isinglass.errors import InputError, WriteError
from isinglass.files import PathLike
from isinglass.pipeline import Pipeline
from isinglass.runtime.anatomy import customized
from isinglass.sfm.extraction import feature_settings
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, MatchStore, Pair, PairMatches
from isinglass.types import Features, Matcher
from isinglass.weights.pretrained import Pretrained

PAIRS_A_CHUNK = 64
IMAGES_A_BLOCK = 64  # each with each before the next are read
SECONDS_A_PART = 5.0
KEYPOINTS_A_BATCH = 32768  # of matchers that do not say it

Found = tuple[dict[Pair, PairMatches], dict[Pair, str]]  # matches, and which pairs could not be matched, and why


@dataclass(kw_only=True)
class Matched:
    """What became of pairs: how many were matched, how many were there, which could not be matched, and why."""

    made: int = 0
    reused: int = 0
    problems: dict[Pair, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(eq=False)
class Chunk:
    """Pairs of few images that one process matches, batch by batch."""

    batches: list[list[Pair]]

    @property
    def pairs(self) -> list[Pair]:
        """Of all batches."""
        return [pair for batch in self.batches for pair in batch]

    @property
    def names(self) -> list[str]:
        """The images, once each."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair))


def matching_settings(pipeline: Pipeline, features: FeatureStore | None = None) -> str:
    """What matches depend on beside photos and extractor, as a store's `settings`.

    features  whose features are matched; None = those that the pipeline makes
    """
    return settings_of(pipeline.matcher, feature_settings(pipeline) if features is None else features.settings)


def settings_of(matcher: Matcher, features: str) -> str:
    """The same for a matcher and the settings of features."""
    config: Any = getattr(matcher, "config", None)
    told = {
        "matcher": matcher.name,
        "weights": getattr(matcher, "weights_id", "none"),
        "dtype": str(getattr(matcher, "compute_dtype", torch.float32)).removeprefix("torch."),
        "config": {one.name: getattr(config, one.name) for one in fields(config)} if config is not None else {},
        "features": _parsed(features),
    }
    if (execution := getattr(matcher, "execution", "auto")) != "auto":  # which round otherwise
        told["execution"] = execution
    if isinstance(matcher, Pretrained) and (digest := matcher.changed_weights()) is not None:
        told["changed_weights"] = digest
    if (custom := customized(matcher)) is not None:
        told["custom"] = custom
    return json.dumps(told, default=repr)


def _parsed(text: str) -> object:
    """What JSON says, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


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

    Raises InputError for a store of another extractor or settings, for features that are not the matcher's, and names
    that hloc's layout cannot hold; WriteError where the store cannot be written.
    """
    views = Views(features, device_of(matcher), memory_mb)
    limits = keypoints_a_batch(matcher), batch_pairs
    with MatchRun(features, pairs, matches_path, settings=settings, limits=limits, tell=tell) as run:
        for chunk in run.chunks:
            for found in match_chunk(views.get, chunk, matcher):
                run.take(found)
    return run.result


class MatchRun:
    """The book of one run: `chunks` that are to be matched, by whom ever, and `take` for what was found.

    As a context it writes, in the end and after an error, what was taken, and merges the store if all went well.
    Arguments and errors are as of `match_stored`.

    limits       keypoints and pairs a batch at most, see `keypoints_a_batch`
    chunk_pairs  pairs a chunk at most
    """

    def __init__(
        self,
        features: FeatureStore,
        pairs: Sequence[Pair],
        matches_path: PathLike,
        *,
        settings: str,
        limits: tuple[int, int | None] = (KEYPOINTS_A_BATCH, None),
        chunk_pairs: int = PAIRS_A_CHUNK,
        tell: Tell = lambda done, of: None,
    ) -> None:
        self.result = Matched()
        self.store = MatchStore(matches_path, features.signature, settings)
        self._features, self._tell, self._began = features, tell, time.monotonic()
        self._waiting: dict[Pair, PairMatches] = {}
        self._written_s = self._began
        known = self._usable(pairs)
        self._of = len(known) + len(self.result.problems)
        self.store.check_names({name for pair in known for name in pair})
        self.chunks = self._missing(chunks_of(known, chunk_pairs), limits)
        self._tell(self.result.reused + len(self.result.problems), self._of)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, WriteError):
            self._write()
        if kind is None:
            self.store.merge()
        self.store.close()
        self.result.seconds = time.monotonic() - self._began

    def take(self, found: Found) -> None:
        """What was found of pairs; it is written with others, at most some seconds later."""
        matched, problems = found
        self._waiting |= matched
        self.result.made += len(matched)
        self.result.problems |= problems
        if time.monotonic() - self._written_s > SECONDS_A_PART:
            self._write()
        self._tell(self.result.made + self.result.reused + len(self.result.problems), self._of)

    def _write(self) -> None:
        if self._waiting:
            names = {name for pair in self._waiting for name in pair}
            self.store.add(self._waiting, {name: self._features.digest(name) or "" for name in names})
        self._waiting, self._written_s = {}, time.monotonic()

    def _usable(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Each pair once, in one order; those that cannot be matched are problems."""
        usable: dict[frozenset[str], Pair] = {}
        for pair in pairs:
            if lacking := [name for name in pair if name not in self._features]:
                self.result.problems[pair] = f"there are no features of {' and '.join(map(repr, lacking))}"
            elif pair[0] == pair[1]:
                self.result.problems[pair] = "an image is paired with itself"
            else:
                usable.setdefault(frozenset(pair), pair)
        return list(usable.values())

    def _missing(self, chunks: list[list[Pair]], limits: tuple[int, int | None]) -> list[Chunk]:
        """What is left of the chunks, in the batches that they have as a whole; the other pairs are counted."""
        missing = []
        for chunk in chunks:
            batches = [
                [pair for pair in batch if not self._is_done(pair)]
                for batch in _batches(chunk, self._features.count, *limits)
            ]
            missing.append(Chunk([batch for batch in batches if batch]))
            self.result.reused += len(chunk) - sum(map(len, batches))
        return [chunk for chunk in missing if chunk.batches]

    def _is_done(self, pair: Pair) -> bool:
        digests = self._features.digest(pair[0]), self._features.digest(pair[1])
        there = self.store.digests(pair), self.store.digests((pair[1], pair[0]))
        return there[0] == digests or there[1] == digests[::-1]


def match_chunk(view: Callable[[str], Features], chunk: Chunk, matcher: Matcher) -> Iterator[Found]:
    """What is found of a chunk, batch by batch; pairs of whose images `view` raises an InputError are problems."""
    for batch in chunk.batches:
        loaded: dict[Pair, tuple[Features, Features]] = {}
        problems: dict[Pair, str] = {}
        for pair in batch:
            try:
                loaded[pair] = view(pair[0]), view(pair[1])
            except InputError as error:
                problems[pair] = str(error)
        views0, views1 = ([both[i] for both in loaded.values()] for i in (0, 1))
        found = matcher.match_many(views0, views1) if loaded else []
        yield {pair: PairMatches.of(one) for pair, one in zip(loaded, found, strict=True)}, problems


def chunks_of(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """All pairs once, in runs of at most `size` that have few images each, next to runs of much the same images."""
    place = _places(pairs)
    side = max(1, math.isqrt(size))

    def order(pair: Pair) -> tuple[int, ...]:
        low, high = sorted((place[pair[0]], place[pair[1]]))
        outer = low // IMAGES_A_BLOCK, high // IMAGES_A_BLOCK
        inner = low // side, high // side
        return (*_to_and_fro(*outer), *_to_and_fro(*inner), low, high)

    ordered = sorted(dict.fromkeys(pairs), key=order)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def keypoints_a_batch(matcher: Matcher) -> int:
    """How many fill a matcher."""
    return getattr(matcher, "max_tokens", KEYPOINTS_A_BATCH)


def device_of(matcher: Matcher) -> torch.device:
    """Where a matcher computes."""
    weights = matcher.parameters() if isinstance(matcher, torch.nn.Module) else iter(())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device


class Views:
    """Features of a store, on a device; those used last are held, at most `memory_mb` MB of them."""

    def __init__(self, features: FeatureStore, device: torch.device, memory_mb: int) -> None:
        self.features, self.device, self.most = features, device, memory_mb * 1_000_000
        self.read = 0  # how often features were read
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def get(self, name: str) -> Features:
        """Of an image. Raises InputError where there are none, or they are damaged."""
        if name not in self._held:
            found = self.features.get(name).to(self.device)
            self.read += 1
            self._held[name] = found
            self._bytes += _bytes_of(found)
            while self._bytes > self.most and len(self._held) > 1:
                self._bytes -= _bytes_of(self._held.popitem(last=False)[1])
        self._held.move_to_end(name)
        return self._held[name]


def _batches(
    pairs: Sequence[Pair], count: Callable[[str], int], most_keypoints: int, most_pairs: int | None
) -> Iterator[list[Pair]]:
    """Runs of pairs with at most so many keypoints and pairs; a larger pair comes alone."""
    batch: list[Pair] = []
    total = 0
    for pair in pairs:
        keypoints = count(pair[0]) + count(pair[1])
        if batch and (total + keypoints > most_keypoints or len(batch) == most_pairs):
            yield batch
            batch, total = [], 0
        batch.append(pair)
        total += keypoints
    if batch:
        yield batch


def _to_and_fro(row: int, column: int) -> tuple[int, int]:
    """Of blocks: rows one after another, every other one backwards, so that neighbours share a block."""
    return row, column if row % 2 == 0 else -column


def _places(pairs: Collection[Pair]) -> dict[str, int]:
    """A place for each image, near those of the images that it is paired with (Cuthill and McKee 1969)."""
    neighbours: dict[str, set[str]] = {}
    for one, other in pairs:
        neighbours.setdefault(one, set()).add(other)
        neighbours.setdefault(other, set()).add(one)
    place: dict[str, int] = {}
    for start in sorted(neighbours, key=lambda name: (len(neighbours[name]), name)):
        waiting = deque([start])
        while waiting:
            name = waiting.popleft()
            if name not in place:
                place[name] = len(place)
                new = (other for other in neighbours[name] if other not in place)
                waiting.extend(sorted(new, key=lambda other: (len(neighbours[other]), other)))
    return place


def _bytes_of(features: Features) -> int:
    tensors = [getattr(features, one.name) for one in fields(features)]
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))
