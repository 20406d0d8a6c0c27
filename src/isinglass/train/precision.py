"""In which precision a run trains: a property of the machine, asked of its devices and measured on its CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.threads import on_one_thread
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.train.config import PRECISIONS

Measure = Callable[[LightGlueConfig | SuperGlueConfig], float]
FABRIC: dict[str, Any] = {"float32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
WORTH_IT = 0.8  # bfloat16 must take at most this share of float32's time: it costs accuracy
_PAIRS, _KEYPOINTS, _RUNS = 2, 256, 3  # of the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The precision of a run.

    reason   why, with the measured figure where there is one
    warning  what is wrong with a precision that was asked for; None = nothing
    """

    precision: str
    reason: str
    warning: str | None = None


def choose_precision(
    wanted: str,
    device: torch.device,
    model: LightGlueConfig | SuperGlueConfig,
    *,
    measure: Measure | None = None,
) -> Choice:
    """Return the precision to train in on a device: the one that is wanted, or for "auto" the one that is fastest.

    "auto" is bf16-mixed on GPUs that compute in bfloat16 and 16-mixed on other CUDA GPUs, float32 on mps, and on a CPU
    bf16-mixed where a short measurement (`measure`, see `bfloat16_ratio`) finds it clearly faster.
    Raises InputError for a precision that is unknown or that the device cannot train in.
    """
    if wanted not in PRECISIONS:
        raise InputError(f"precision is {wanted!r}; expected one of {', '.join(PRECISIONS)}")
    _check_device(wanted, device)
    if device.type == "cuda":
        if wanted != "auto":
            return Choice(precision=wanted, reason="as asked for")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(precision="bf16-mixed", reason="the GPU computes in bfloat16")
        return Choice(precision="16-mixed", reason="the GPU computes in float16, not in bfloat16")
    if device.type != "cpu":
        return Choice(precision="float32", reason=f"mixed precision is not tested on {device.type}")
    if wanted == "float32":
        return Choice(precision=wanted, reason="as asked for")
    return _on_cpu(wanted, model, measure or bfloat16_ratio)


def _check_device(wanted: str, device: torch.device) -> None:
    if wanted == "16-mixed" and device.type != "cuda":
        raise InputError("precision is '16-mixed', which only CUDA GPUs train in; expected auto, float32 or bf16-mixed")
    if wanted == "bf16-mixed" and device.type not in ("cpu", "cuda"):
        raise InputError(f"precision is 'bf16-mixed', in which {device.type} does not train; expected auto or float32")
    if wanted == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("precision is 'bf16-mixed', which this GPU has no support for; expected auto or 16-mixed")


def _on_cpu(wanted: str, model: LightGlueConfig | SuperGlueConfig, measure: Measure) -> Choice:
    ratio = measure(model)
    found = f"a step in bfloat16 takes {ratio:.2g} times as long as in float32 on this CPU, measured"
    if wanted == "bf16-mixed":
        slow = f"{found}; float32 is faster and more exact: --precision float32" if ratio > 1.1 else None
        return Choice(precision=wanted, reason="as asked for", warning=slow)
    return Choice(precision="bf16-mixed" if ratio <= WORTH_IT else "float32", reason=found)


def bfloat16_ratio(model: LightGlueConfig | SuperGlueConfig) -> float:
    """Return how many times as long as in float32 one layer's training step takes in bf16-mixed on this CPU.

    The time is that of one thread on its core, which hardly depends on what else runs on the machine.
    """
    short = replace(model, layers=1 if isinstance(model, LightGlueConfig) else 2)
    seconds = dict.fromkeys(("float32", "bf16-mixed"), 0.0)

    def work() -> None:
        with torch.random.fork_rng(devices=[]):
            network = LightGlue(short) if isinstance(short, LightGlueConfig) else SuperGlue(short)
            for precision in seconds:
                limit = 4 * seconds["float32"] if precision != "float32" else 0.0
                seconds[precision] = _shortest(network, precision, limit)

    on_one_thread(work)
    return seconds["bf16-mixed"] / seconds["float32"]


def _shortest(network: nn.Module, precision: str, limit_s: float) -> float:
    """Return s of the shortest of a few passes; of one alone if it takes `limit_s`, above which no more is to know."""
    best = math.inf
    for _ in range(_RUNS):
        start = time.thread_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            _loss(network, (_PAIRS, 2, _KEYPOINTS)).backward()
        network.zero_grad(set_to_none=True)
        best = min(best, time.thread_time() - start)
        if 0 < limit_s < best:
            break
    return best


def _loss(network: Any, shape: tuple[int, int, int]) -> Tensor:
    """Return any scalar that depends on every layer."""
    generator = torch.Generator().manual_seed(0)
    config = network.config
    keypoints = 400 * torch.rand(*shape, 2, generator=generator)
    descriptors = torch.randn(*shape, config.input_size, generator=generator)
    size = torch.tensor([640, 480]).expand(*shape[:2], 2)
    if isinstance(network, SuperGlue):
        return network(keypoints, descriptors, torch.rand(shape, generator=generator), size, None)[:, 0, 0].mean()
    scale_orientation = torch.rand(*shape, 2, generator=generator) if config.scale_orientation else None
    return network(keypoints, descriptors, size, scale_orientation, None)[-1].log_assignment_BNN.mean()
