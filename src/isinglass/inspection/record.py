"""What a trace is: what a matcher said at each step, where it looked, and what else it might have matched.

Legend: N keypoints of a view (those of two views are a tuple), M matches, H heads, K of the best of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from isinglass.errors import InputError
from isinglass.inspection.payload import pack
from isinglass.types import Matches

NONE = 65535  # what a page reads as no keypoint
Views = tuple[Tensor, Tensor]  # one tensor for each view
Tell = Callable[[str], None]  # hears of each layer or iteration before it is computed, and may raise to stop there


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Alternatives:
    """The best partners of each keypoint in the assignment of one step, best first.

    index        (N, K) int64 of each view, keypoints of the other; -1 = no more
    probability  (N, K) of each view, as the assignment has it; of nearest neighbours the score, which is none
    unmatched    (N,) of each view, the probability of having no partner: 1 - matchability of LightGlue (eq. 7), the
                 dustbin of SuperGlue (eq. 8); NaN where a point was gone, or nothing says it
    """

    index: Views
    probability: Views
    unmatched: Views


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """What a matcher says after a layer (LightGlue), an iteration (SuperGlue), or at all (nearest).

    pairs            (M, 2) int64 matches that it would give, and their `scores` (M,)
    threshold        lambda of this layer, which confidences are held against; None = not asked
    confident_share  of all keypoints, those with such a confidence and those pruned before; None = not asked
    exits            whether that share is enough to stop here
    confidence       (N,) of each view, NaN = gone before; None = the last layer, or a matcher without
    matchability     (N,) of each view likewise
    pruned           (P,) int64 of each view, keypoints that left after this layer while others went on
    iteration        of Sinkhorn, from 1; None of other matchers
    marginal_error   share of the assignment's probability that is in another row than eq. 9 wants; None likewise
    """

    name: str
    pairs: Tensor
    scores: Tensor
    alternatives: Alternatives
    threshold: float | None = None
    confident_share: float | None = None
    exits: bool = False
    confidence: Views | None = None
    matchability: Views | None = None
    pruned: Views | None = None
    iteration: int | None = None
    marginal_error: float | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Attention:
    """The most attended keypoints of each head in one unit.

    cross   whether they are of the other view
    index   (N, H, K) int64 of each view, most attended first; -1 = no more, or the point was gone
    weight  (N, H, K) of each view in [0, 1]; over all keypoints they would sum to 1
    """

    name: str
    layer: int  # from 1
    cross: bool
    index: Views
    weight: Views


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trace:
    """What a matcher did with one pair, step by step, and what came of it.

    ended             why there is no further step: "exit" = enough points were confident, "layers" = that was the
                      last one, "pruned" = a view lost all its points, "empty" = a view had none
    exit_share        alpha of LightGlue eq. 12; None = no early exit
    width_confidence  points less matchable than 1 - this leave; None = none does
    matches           what `Matcher.match` gives
    """

    kind: Literal["lightglue", "superglue", "nearest"]
    steps: tuple[Step, ...]
    attention: tuple[Attention, ...]
    ended: Literal["exit", "layers", "pruned", "empty"]
    exit_share: float | None = None
    width_confidence: float | None = None
    filter_threshold: float
    matches: Matches

    def since(self) -> Tensor:
        """(M,) int64: of each of the matches the step, from 1, from which on it was predicted as it is at the end."""
        final = self.matches.pairs()
        since_M = torch.full((len(final),), max(len(self.steps), 1))
        held = {tuple(pair): i for i, pair in enumerate(final.tolist())}
        for number in range(len(self.steps), 0, -1):
            predicted = set(map(tuple, self.steps[number - 1].pairs.tolist()))
            held = {pair: i for pair, i in held.items() if pair in predicted}
            since_M[list(held.values())] = number
        return since_M

    def payload(self) -> dict[str, Any]:
        """As pages read it. Raises InputError beyond 65535 keypoints of a view."""
        counts = [one.shape[-1] for one in (self.matches.indices, *(s.alternatives.unmatched[1] for s in self.steps))]
        if max(counts) > NONE:
            raise InputError(f"a view has {max(counts)} keypoints; pages show at most {NONE}. Set max_keypoints")
        return {
            "kind": self.kind,
            "steps": [_step(step) for step in self.steps],
            "ended": self.ended,
            "exit_share": self.exit_share,
            "width_confidence": self.width_confidence,
            "filter_threshold": self.filter_threshold,
            "attention": [_attention(one) for one in self.attention] or None,
            "alternatives": [_alternatives(step.alternatives) for step in self.steps],
        }


def check_tops(attention: int, alternatives: int) -> None:
    """Raises InputError unless `attention` is 0 to 255 and `alternatives` 1 to 255."""
    for name, value, least in (("attention", attention, 0), ("alternatives", alternatives, 1)):
        if not isinstance(value, int) or not least <= value <= 255:
            raise InputError(f"{name} is {value!r}; expected an integer from {least} to 255: how many to keep of each")


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "pairs": pack(step.pairs.int()),
        "scores": pack(step.scores),
        "threshold": step.threshold,
        "confident_share": step.confident_share,
        "exits": step.exits,
        "confidence": _views(step.confidence),
        "matchability": _views(step.matchability),
        "pruned": None if step.pruned is None else [pack(index.int()) for index in step.pruned],
        "iteration": step.iteration,
        "marginal_error": step.marginal_error,
    }


def _views(values: Views | None) -> list[dict[str, Any]] | None:
    return None if values is None else [pack(value.float()) for value in values]


def _indices(index: Tensor) -> dict[str, Any]:
    return pack(torch.where(index < 0, NONE, index).cpu().numpy().astype("uint16"))


def _attention(one: Attention) -> dict[str, Any]:
    views = [
        {"index": _indices(index), "weight": pack((weight * 255).round().byte())}
        for index, weight in zip(one.index, one.weight, strict=True)
    ]
    return {"name": one.name, "layer": one.layer, "cross": one.cross, "views": views}


def _alternatives(one: Alternatives) -> dict[str, Any]:
    views = [
        {"index": _indices(index), "probability": pack(probability.float()), "unmatched": pack(unmatched.float())}
        for index, probability, unmatched in zip(one.index, one.probability, one.unmatched, strict=True)
    ]
    return {"views": views}
