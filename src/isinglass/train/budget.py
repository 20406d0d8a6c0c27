"""The time that a command may take, and whether what is to come still fits into it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_RECENT = 20  # steps that a step's time is judged by
_MARGIN = 1.3  # on what was measured
_MARGIN_OF_ESTIMATE = 2.0  # on a validation that was reckoned from a part of one


class Budget:
    """Seconds until a deadline, and what steps, validations and saves were measured to take.

    `seconds` count from now; infinite = there is no deadline.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.deadline = time.monotonic() + seconds
        self.validation_s, self.is_estimate = 0.0, True
        self.save_s = 1.0  # until one was measured
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self.steps = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; below 0 after it."""
        return self.deadline - time.monotonic()

    @property
    def step_s(self) -> float:
        """Mean seconds of the latest steps; 0 before the first."""
        return sum(self._steps) / max(len(self._steps), 1)

    @property
    def closing_s(self) -> float:
        """Seconds that the last validation takes, with the two checkpoints after it."""
        return (_MARGIN_OF_ESTIMATE if self.is_estimate else _MARGIN) * self.validation_s + self.saving_s

    @property
    def saving_s(self) -> float:
        """Seconds that the last two checkpoints take."""
        return _MARGIN * 2 * self.save_s

    def allows_step(self) -> bool:
        """Return whether another step, the last validation and the last checkpoints end before the deadline."""
        return self.left_s >= _MARGIN * max(self._steps, default=0.0) + self.closing_s

    def allows_validation(self) -> bool:
        """Return whether a validation and the last checkpoints end before the deadline."""
        return self.left_s >= self.closing_s

    def allows_going_on(self) -> bool:
        """Return whether a validation that is under way may go on: there is still time for the last checkpoints."""
        return self.left_s >= self.saving_s

    def steps_left(self) -> float:
        """Return how many steps fit before the deadline."""
        return max(0.0, self.left_s - self.closing_s) / self.step_s if self.step_s else math.inf

    def set_validation(self, seconds: float) -> None:
        """Take the time of a whole validation into account."""
        self.validation_s, self.is_estimate = seconds, False

    def add_step(self, seconds: float) -> None:
        """Take a step's time into account; the first one also warms up and is forgotten by the second."""
        if self.steps == 1:
            self._steps.clear()
        self._steps.append(seconds)
        self.steps += 1

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure what is done within as the writing of a checkpoint."""
        start = time.monotonic()
        yield
        self.save_s = time.monotonic() - start
