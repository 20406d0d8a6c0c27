"""What a training run is: a frozen description, written into the weights it makes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from isinglass.errors import InputError
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig

Precision = Literal["auto", "float32", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
MATCHERS = {LightGlueConfig: LightGlue, SuperGlueConfig: SuperGlue}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are those of the papers where they tell, for full-size models. Raises InputError on what makes no sense.

    name            of the weights that come out
    model           the matcher's own Config
    learn           "matching", or "confidence": only LightGlue's confidence heads, after it has learnt to match
    deep_supervision  the loss is the mean over all layers of LightGlue, not of the last one
    start           weights to start from (a name or a path); None = random
    frozen          prefixes of parameters that stay as they are
    lora_rank       learn only low-rank additions to attention and MLPs (LoRA); 0 = the layers themselves
    batch_size      pairs a step, of all processes together and all `accumulate` parts
    learning_rate   after `warmup_steps`; from `decay_from`, a share of the steps, down to 0 by a cosine
    clip_norm       greatest norm of the gradient
    ema             decay of the running mean of weights that is validated and kept
    precision       "float32", "bf16-mixed", "16-mixed"; "auto" = as the device is best at, see `choose_precision`
    """

    name: str
    model: LightGlueConfig | SuperGlueConfig
    learn: Literal["matching", "confidence"] = "matching"
    deep_supervision: bool = True
    start: str | None = None
    frozen: tuple[str, ...] = ()
    lora_rank: int = 0
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int = 1000
    decay_from: float = 0.5
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: Precision = "auto"
    validate_every: int = 1000
    validation_pairs: int = 128
    save_every: int = 500
    log_every: int = 20
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "validate_every",
            "validation_pairs",
            "save_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal parts")
        self._check_rates()
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.learn == "confidence" and not isinstance(self.model, LightGlueConfig):
            raise InputError("learn is 'confidence', which only LightGlue has; expected 'matching'")

    def _check_rates(self) -> None:
        for name, is_right, expected in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "a finite number above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number of 0 or more"),
            ("clip_norm", self.clip_norm > 0, "a number above 0"),
            ("ema", 0 <= self.ema < 1, "0 to under 1"),
            ("decay_from", 0 <= self.decay_from <= 1, "a share of the steps, 0 to 1"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("lora_rank", self.lora_rank >= 0, "0 or more"),
        ):
            if not is_right:
                raise InputError(f"{name} is {getattr(self, name)}; expected {expected}")

    def make_model(self) -> LightGlue | SuperGlue:
        """With random weights, of torch's current seed."""
        return MATCHERS[type(self.model)](self.model)  # pyright: ignore[reportArgumentType]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(json.dumps({**asdict(self), "architecture": MATCHERS[type(self.model)].__name__}))

    def learning_rate_at(self, step: int) -> float:
        """Of 0-based `step`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        first = self.decay_from * self.steps
        share = max(0.0, (step - first) / max(self.steps - first, 1))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
