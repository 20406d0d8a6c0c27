"""What a score of a match is worth: a monotone map from scores to the probability that the match is right.

Scores of matchers are not probabilities, and mean other things in each. A map is fitted on judged matches
(`isinglass.eval.calibration`), once for each matcher, and kept with the records of weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from isinglass.errors import InputError
from isinglass.types import Matches
from isinglass.weights import calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A map by straight lines between knots, level outside of them. Raises InputError unless it is monotone.

    knots_score        rising
    knots_probability  in [0, 1], never falling
    fitted_on          what was judged, by which protocol; probabilities hold for data like that
    ece_before         expected calibration error of scores and of probabilities, both of matches that were not
    ece_after          fitted on; in [0, 1]
    num_matches        that it was fitted on
    """

    knots_score: tuple[float, ...]
    knots_probability: tuple[float, ...]
    fitted_on: str
    ece_before: float
    ece_after: float
    num_matches: int

    def __post_init__(self) -> None:
        scores, values = self.knots_score, self.knots_probability
        if not scores or len(scores) != len(values):
            raise InputError(f"a calibration came with {len(scores)} scores and {len(values)} probabilities as knots")
        rising = all(math.isfinite(score) for score in scores) and all(a < b for a, b in itertools.pairwise(scores))
        if not rising or not all(a <= b for a, b in itertools.pairwise((0.0, *values, 1.0))):
            raise InputError(
                "the knots of a calibration are not in order; expected scores that rise and probabilities in [0, 1] "
                "that never fall. Fit it again"
            )

    def apply(self, scores: Tensor) -> Tensor:
        """The probability that each match is right, in the shape of `scores`, and at least in float32."""
        x = scores.to(torch.promote_types(scores.dtype, torch.float32)).contiguous()
        knots, values = x.new_tensor(self.knots_score), x.new_tensor(self.knots_probability)
        right = torch.searchsorted(knots, x).clamp(1, max(len(knots) - 1, 1))
        left, right = right - 1, right.clamp(max=len(knots) - 1)
        width = (knots[right] - knots[left]).clamp(min=torch.finfo(x.dtype).tiny)
        return torch.lerp(values[left], values[right], ((x - knots[left]) / width).clamp(0, 1))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `as_dict`. Raises InputError on anything else."""
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            raise InputError(f"a calibration has the fields {sorted(values)}; expected {sorted(names)}")
        knots = {name: tuple(map(float, values[name])) for name in ("knots_score", "knots_probability")}
        return cls(**{**values, **knots})


def probabilities(matches: Matches) -> Tensor | None:
    """(B, N0): how likely each match is right, 0 where there is none; None if nobody has calibrated the matcher."""
    known = calibration(matches.matcher)
    if known is None:
        return None
    return torch.where(matches.indices >= 0, Calibration.from_dict(known).apply(matches.scores), 0.0)
