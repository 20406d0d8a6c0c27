"""How much is left of work in several stages, of which only the present one is under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Tell = Callable[[int, int], None]  # done, of
# seconds a photo or pair, on two cores of a CPU with the default models; what is measured takes their place
GUESSES = {"extract": 0.6, "retrieval": 0.02, "pairs": 0.03, "match": 0.25, "verify": 0.01, "reconstruct": 0.4}


class Progress:
    """What is left of all stages.

    units  of work that each stage will have, in their order, as far as one knows; `update` corrects that
    clock  seconds
    """

    def __init__(self, units: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self.units, self._clock = dict(units), clock
        self.stage, self.done = "", 0
        self._start_s, self._start_done = clock(), 0
        self._speed = 1.0  # of this machine, as a multiple of the guesses' seconds

    def update(self, stage: str, done: int, of: int) -> None:
        """A stage has done so many units of all that it has."""
        if stage != self.stage:
            self._speed = self._measured() or self._speed
            self.stage, self._start_s, self._start_done = stage, self._clock(), done
        self.done, self.units[stage] = done, of

    @property
    def left_s(self) -> float:
        """Seconds that this stage and all later ones will take; a guess as long as little is done."""
        stages = list(self.units)
        later = stages[stages.index(self.stage) + 1 :] if self.stage in self.units else stages
        speed = self._measured() or self._speed
        ahead = sum(GUESSES.get(stage, 0.0) * self.units[stage] for stage in later) * speed
        if self.stage not in self.units:
            return ahead
        return ahead + (self.units[self.stage] - self.done) * GUESSES.get(self.stage, 0.0) * speed

    def _measured(self) -> float | None:
        """Seconds a unit of this stage by those guessed; None as long as nothing is known."""
        made = self.done - self._start_done
        if made < 1 or self.stage not in GUESSES:
            return None
        return (self._clock() - self._start_s) / made / GUESSES[self.stage]
