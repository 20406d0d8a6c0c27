"""Nearest neighbours in descriptor space, with Lowe's ratio test and the mutual check; for any extractor, no weights.

Legend: M and N keypoints of view 0 and 1, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.errors import InputError
from isinglass.numbers import ANY_SCORE, check_numbers
from isinglass.runtime.pairs import check_pairs, match_batch
from isinglass.types import Features, Matches

MAX_SIMILARITIES = 2**24  # held at once: 64 MiB of float32, whatever the number of keypoints


@dataclass(frozen=True, kw_only=True)
class NearestConfig:
    """Distances are L2 between descriptors of unit length: 0 = same direction, 2 = opposite. No test by default."""

    ratio: float | None = None  # keep a match nearer than this times the second nearest (Lowe 2004, section 7.1: 0.8)
    distance: float | None = None  # keep a match at most this far
    mutual: bool = True  # keep a match only where each is the other's nearest

    def __post_init__(self) -> None:
        check_numbers(self, ratio=ANY_SCORE, distance=ANY_SCORE)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(f"ratio is {self.ratio}; expected a number in (0, 1], or None for no ratio test")
        if self.distance is not None and not 0 <= self.distance <= 2:
            raise InputError(f"distance is {self.distance}; expected a number in [0, 2], or None for no distance test")


class Best(NamedTuple):
    """For each keypoint of a view, its nearest neighbour in the other view, the first of equals."""

    place: Tensor  # int64
    cosine: Tensor
    second: Tensor  # cosine of the second nearest; -inf = there is none


class Nearest:
    """The matcher. Descriptors are scaled to unit length first, so that nearest in L2 and in angle are the same.

    Scores are (1 + cosine) / 2: in [0, 1], of the same order as distances, and defined where there is no second
    neighbour, as 1 - ratio is not. They are no probabilities, and compare matches of one extractor only.
    """

    Config = NearestConfig
    name = "nearest"

    def __init__(self, config: NearestConfig | None = None) -> None:
        self.config = config or NearestConfig()

    def match(self, features0: Features, features1: Features) -> Matches:
        """Matches of a batch of pairs; see `match_many`, which it is, with padding dropped before and added after."""
        return match_batch(self, features0, features1)

    @torch.inference_mode()
    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """One `Matches` a pair of a ragged list. Raises InputError on features that cannot be compared.

        The ratio test looks from view 0 to view 1, and with `mutual` also back, so that swapped views swap matches; a
        keypoint with only one neighbour passes it. Scores are given for candidates that failed a test too.
        """
        check_pairs(features0, features1, matcher=self.name)
        return [
            self._match_pair(one0.descriptors[0], one1.descriptors[0])
            for one0, one1 in zip(features0, features1, strict=True)
        ]

    def _match_pair(self, descriptors0_MD: Tensor, descriptors1_ND: Tensor) -> Matches:
        m, n = len(descriptors0_MD), len(descriptors1_ND)
        if m == 0 or n == 0:
            nothing = descriptors0_MD.new_zeros((1, m), dtype=torch.float32)
            return Matches(indices=torch.full_like(nothing, -1, dtype=torch.int64), scores=nothing, matcher=self.name)
        unit0_MD, unit1_ND = (F.normalize(x.float(), dim=1) for x in (descriptors0_MD, descriptors1_ND))
        best0, best1 = _nearest(unit0_MD, unit1_ND, seconds=self.config.ratio is not None)
        candidate = torch.ones_like(best0.place, dtype=torch.bool)
        passed = self._passes(best0)
        if self.config.mutual:
            candidate = best1.place[best0.place] == torch.arange(m, device=candidate.device)
            passed = passed & self._passes(best1)[best0.place]
        scores = torch.where(candidate, ((1 + best0.cosine) / 2).clamp(0, 1), 0.0)
        indices = torch.where(candidate & passed, best0.place, -1)
        return Matches(indices=indices[None], scores=scores[None], matcher=self.name)

    def _passes(self, best: Best) -> Tensor:
        """Which nearest neighbours pass the tests of ratio and distance."""
        distance = _distance(best.cosine)
        passed = torch.ones_like(distance, dtype=torch.bool)
        if self.config.ratio is not None:
            passed &= distance < self.config.ratio * _distance(best.second)
        if self.config.distance is not None:
            passed &= distance <= self.config.distance
        return passed


def _distance(cosine: Tensor) -> Tensor:
    """L2 distance of unit vectors; infinite for a cosine of -inf."""
    return (2 - 2 * cosine).clamp(min=0).sqrt()


def _nearest(unit0_MD: Tensor, unit1_ND: Tensor, seconds: bool) -> tuple[Best, Best]:
    """Nearest neighbours from view 0 to 1 and from 1 to 0, over blocks of rows of the similarity matrix."""
    rows = max(MAX_SIMILARITIES // len(unit1_ND), 1)
    best0, best1 = [], None
    for start in range(0, len(unit0_MD), rows):
        similarity = unit0_MD[start : start + rows] @ unit1_ND.T
        best0.append(_best(similarity, 1, seconds))
        block = _best(similarity, 0, seconds)
        block = block._replace(place=block.place + start)
        best1 = block if best1 is None else _merge(best1, block)
    assert best1 is not None
    return Best(*(torch.cat(parts) for parts in zip(*best0, strict=True))), best1


def _best(similarity: Tensor, dim: int, seconds: bool) -> Best:
    cosine, index = similarity.max(dim=dim)  # of equals, the first
    if not seconds:
        return Best(index, cosine, torch.full_like(cosine, -torch.inf))
    return Best(index, cosine, similarity.scatter(dim, index.unsqueeze(dim), -torch.inf).amax(dim=dim))


def _merge(first: Best, later: Best) -> Best:
    """Of two blocks of rows; of equals, the first."""
    index = torch.where(later.cosine > first.cosine, later.place, first.place)
    loser = torch.minimum(first.cosine, later.cosine)
    second = torch.stack([loser, first.second, later.second]).amax(dim=0)
    return Best(index, torch.maximum(first.cosine, later.cosine), second)
