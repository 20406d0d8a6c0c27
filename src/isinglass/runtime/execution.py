"""How the layers of a matcher are run: as the modules they are, as fused blocks, or as recorded CUDA graphs.

All compute the same function. The modules run anywhere, whatever was made of them. The fused block and the recorded
path stand for modules of this package alone, just as their class and config make them: whoever subclasses, replaces,
hooks or parametrizes one of them gets what is written there, by the plain execution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.runtime.anatomy import is_replaced, modification

Execution = Literal["plain", "fused", "cuda_graph"]
EXECUTIONS = ("auto", *get_args(Execution))
HALVES = (torch.float16, torch.bfloat16)


def execution_of(network: Any, kind: type[nn.Module], methods: Sequence[str] = ("forward",)) -> Execution:
    """Return how to run a matcher of `kind`, whose `execution` says what is asked for.

    "auto" is the fused block on CPUs where that equals the modules, and the modules themselves elsewhere: on GPUs
    nothing but public operations of torch. `methods` are those of the network that the other paths do without.
    Raises InputError where the path asked for cannot be had, or is none.
    """
    asked, weights = network.execution, next(network.parameters())
    device = weights.device
    if asked not in EXECUTIONS:
        raise InputError(f"execution is {asked!r}; expected one of {', '.join(map(repr, EXECUTIONS))}")
    if asked == "plain" or (asked == "auto" and device.type != "cpu"):
        return "plain"
    problem = modification(network, kind)
    if problem is None and is_replaced(network, kind, methods):
        problem = f"a method of {kind.__name__} was replaced"
    if problem is None and device.type == "cpu" and weights.dtype not in (torch.float32, torch.bfloat16):
        problem = f"its weights are {weights.dtype}"
    if asked == "auto":
        return "fused" if problem is None else "plain"
    if problem is not None:
        raise InputError(
            f"execution is {asked!r}, which stands for an unmodified {kind.__name__} in float32; here {problem}. "
            "Choose 'auto' or 'plain', which run the modules as they are"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"execution is {asked!r}, which there is for CPUs and CUDA, not {device.type!r}; use 'plain'")
    if asked == "cuda_graph" and device.type == "cuda" and network.compute_dtype not in HALVES:
        raise InputError(
            f"execution is 'cuda_graph', whose attention is of float16 or bfloat16; the layers compute in "
            f"{network.compute_dtype}. Set the precision to one of these, or choose 'auto'"
        )
    return cast(Execution, asked)


def may_be_rearranged(network: nn.Module, kind: type[nn.Module], image: Tensor) -> bool:
    """Return whether rearranged layers may stand for the modules of a network.

    They may for an unmodified network of `kind` whose `execution` is not "plain": in float32 on a CPU, neither in
    training, wholly or in part, nor under autocast.
    """
    if getattr(network, "execution", "auto") == "plain" or torch.is_autocast_enabled("cpu"):
        return False
    dtypes = {image.dtype, *(parameter.dtype for parameter in network.parameters())}
    if image.device.type != "cpu" or dtypes != {torch.float32} or any(part.training for part in network.modules()):
        return False
    return modification(network, kind) is None


def check_layers_run(network: Any, kind: Any, what: str) -> None:
    """Raise InputError if `what` follows a network layer by layer, and this one has a `forward` of its own."""
    if not isinstance(network, kind) or is_replaced(network, kind, own_methods(kind)):
        raise InputError(
            f"{what} follows the layers of {kind.__name__} one by one; this {type(network).__name__} has a forward of "
            "its own. Override layers instead, or blocks of them"
        )


def own_methods(kind: Any) -> tuple[str, ...]:
    """Return the names of the methods that make up `forward` of a network, but that inference does without."""
    return ("forward", *kind.FORWARD_METHODS)


def mixed_precision(network: Any, weights: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which modules with these weights run in the network's `compute_dtype`.

    Halves are by autocast: products and attention in halves, states and norms in float32, as these networks were
    trained. Its cache of cast weights is off, as that would outlive a change of them within the caller's autocast.
    """
    if network.compute_dtype not in HALVES or weights.dtype != torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(weights.device.type, dtype=network.compute_dtype, cache_enabled=False)
