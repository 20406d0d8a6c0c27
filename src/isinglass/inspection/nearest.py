"""Nearest neighbours as a trace of one step: the matches, and the next nearest of each keypoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from isinglass.inspection.record import Step, Trace
from isinglass.inspection.tops import alternatives_of
from isinglass.matchers.nearest import Nearest
from isinglass.types import Features


@torch.inference_mode()
def trace_nearest(matcher: Nearest, features0: Features, features1: Features, *, alternatives: int) -> Trace:
    """The trace of one pair; see `isinglass.inspection.trace`. Alternatives have scores, (1 + cosine) / 2."""
    (matches,) = matcher.match_many([features0], [features1])
    unit0_MD, unit1_ND = (F.normalize(one.descriptors[0].float(), dim=1) for one in (features0, features1))
    m, n = len(unit0_MD), len(unit1_ND)
    steps = ()
    if m and n:
        device = unit0_MD.device
        score_MN = ((1 + unit0_MD @ unit1_ND.T) / 2).clamp(0, 1)
        places = torch.arange(m, device=device), torch.arange(n, device=device)
        unknown = torch.full((m,), torch.nan, device=device), torch.full((n,), torch.nan, device=device)
        best = alternatives_of(score_MN, unknown, places, (m, n), alternatives)
        steps = (Step(name="nearest", pairs=matches.pairs(), scores=matches.pair_scores(), alternatives=best),)
    return Trace(
        kind="nearest",
        steps=steps,
        attention=(),
        ended="layers" if steps else "empty",
        filter_threshold=0.0,
        matches=matches,
    )
