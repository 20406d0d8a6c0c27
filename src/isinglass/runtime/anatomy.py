"""What a network is made of: whether it is exactly what its class and config make, and whether it is what it was.

Rearranged layers may stand for a network's modules only where every module is the one that they were derived from, and
only for as long as its numbers stay the same. Nothing here trusts version counters or addresses: writes through
`.data`, through NumPy and in inference mode change neither. Contents are compared with contents.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

BLUEPRINTS = 16  # kept, of different classes and configs
PARTS = ("detector", "describer")  # of an extractor that is made of two
_PROCESS = secrets.token_hex(8)
USAGE = ("training", "compute_dtype", "max_tokens", "execution", "weights_name", "weights_id", "accepts")


class Part(NamedTuple):
    """One module of a network: its class, plain attributes, and the names and shapes of its own tensors."""

    kind: type
    attributes: dict[str, Any]
    tensors: dict[str, torch.Size]


def anatomy(network: nn.Module) -> dict[str, Part]:
    """All modules of a network by name; how it is used (USAGE), such as its mode or dtype, is left out."""
    return {name: _part(module) for name, module in network.named_modules()}


def tensors_of(network: nn.Module) -> list[Tensor]:
    """All parameters and buffers of a network, and tensors that are mere attributes of its modules, in one order."""
    own: list[Tensor] = []
    for module in network.modules():
        own += (value for value in _values(module) if value is not None)
        own += (value for value in vars(module).values() if isinstance(value, Tensor))
    return own


def modification(network: nn.Module, kind: type[nn.Module], *, any_tensors: bool = False) -> str | None:
    """What makes a network another one than `kind(network.config)`, in words; None = nothing but its numbers.

    Found are subclasses, replaced or shared modules, changed settings, forward hooks, parametrizations, parameters of
    other types, and methods that were replaced, of an instance or of a class. With `any_tensors`, parameters may be of
    other types, dtypes and devices, as they may wherever the modules themselves are run.
    """
    config: Any = getattr(network, "config", None)
    if type(network) is not kind:
        return f"{type(network).__name__} is not {kind.__name__} itself"
    if type(config) is not getattr(kind, "Config", None):
        return f"its config is a {type(config).__name__}"
    if _any_global_hook():
        return "forward hooks are registered for all modules"
    return _other_modules(network, _blueprint(kind, config)) or (None if any_tensors else _odd_tensors(network))


def _other_modules(network: nn.Module, expected: dict[str, Part]) -> str | None:
    found = anatomy(network)
    if found.keys() != expected.keys():
        return f"it has other modules than its config says: {', '.join(sorted(found.keys() ^ expected.keys())[:3])}"
    for name, module in network.named_modules():
        if problem := _deviation(found[name], expected[name]) or _touched_instance(module):
            return f"{name or type(network).__name__}: {problem}"
    if replaced := next((part.kind for part in expected.values() if not _is_own(part.kind, "forward")), None):
        return f"{replaced.__name__}.forward was replaced"
    return None


def _odd_tensors(network: nn.Module) -> str | None:
    for name, module in network.named_modules():
        for value in _values(module):
            if value is not None and (type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided):
                return f"{name or type(network).__name__}: it has a {type(value).__name__} of layout {value.layout}"
    dtypes = {(value.dtype, value.device) for value in network.parameters()}
    return "its parameters are of several dtypes or on several devices" if len(dtypes) > 1 else None


def is_exactly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what `kind`, a class of torch, says and nothing else."""
    if _any_global_hook() or type(module) is not kind:
        return False
    return _touched_instance(module) is None and _is_own(kind, "forward") and _odd_tensors(module) is None


def is_replaced(network: nn.Module, kind: type[nn.Module], methods: Iterable[str], *, hooks: bool = True) -> bool:
    """Whether a network has other methods of these names than `kind` was written with, or (`hooks`) forward hooks."""
    if hooks and (network._forward_hooks or network._forward_pre_hooks):
        return True
    return any(
        name in vars(network) or not _is_written_in(getattr(type(network), name), kind, name) for name in methods
    )


def customized(model: object) -> str | None:
    """Return what a model is beside its settings and weights, as text to keep results by; None = nothing.

    A subclass of a class of this package is named. Hooks, replaced methods and replaced modules cannot be: their text
    is theirs in this process alone, so that nothing that was computed with them is taken for another model's.
    """
    kind, own = type(model), getattr(model, "__dict__", {})
    found = [] if _is_ours(kind) or not any(map(_is_ours, kind.__mro__)) else [f"{kind.__module__}.{kind.__qualname__}"]
    changes: list[object] = []
    for name, module in model.named_modules() if isinstance(model, nn.Module) else [("", model)]:
        values = getattr(module, "__dict__", {})
        changes += [(name, key, id(values[key])) for key in sorted(values.keys() & _methods(type(module)))]
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            changes += [(name, hooks, number) for number in values.get(hooks, ())]  # each number is given once
    if isinstance(model, nn.Module) and _is_ours(type(model)) and hasattr(model, "Config"):
        problem = modification(model, type(model), any_tensors=True)
        changes += [] if problem is None else [problem, anatomy(model)]
    if changes:
        digest = hashlib.sha256(repr(changes).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        found.append(f"changed, {_PROCESS}-{digest}")
    found += [f"{part}: {text}" for part in PARTS if part in own and (text := customized(own[part]))]
    return ", ".join(found) or None


class Snapshot:
    """The anatomy and all numbers of a network as they were: `holds` says whether they still are."""

    def __init__(self, network: nn.Module) -> None:
        self.anatomy = anatomy(network)
        tensors = tensors_of(network)
        self.places = _places(tensors)
        self.numbers = [bytearray(memory) for memory in _on_cpu(tensors)]
        elsewhere = _elsewhere(tensors)
        self.elsewhere = elsewhere if elsewhere is None else elsewhere.clone()

    def holds(self, network: nn.Module) -> bool:
        """Whether nothing has changed, to the bit."""
        tensors = tensors_of(network)
        if _places(tensors) != self.places or anatomy(network) != self.anatomy:
            return False
        if any(kept != memory for kept, memory in zip(self.numbers, _on_cpu(tensors), strict=True)):
            return False
        return self.elsewhere is None or torch.equal(self.elsewhere, _bytes(tensors))


def can_be_compared(network: nn.Module) -> bool:
    """Whether a snapshot of a network is possible: its tensors have numbers, and memory that can be read."""
    return all(
        type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
        for value in tensors_of(network)
    )


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == __name__.split(".")[0]


def _part(module: nn.Module) -> Part:
    attributes = {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and name not in USAGE and not isinstance(value, Tensor)
    }
    named = (*module._parameters.items(), *module._buffers.items())
    return Part(type(module), attributes, {name: value.shape for name, value in named if value is not None})


def _touched_instance(module: nn.Module) -> str | None:
    """What makes a module do something else than its class says, in words: hooks and replaced methods."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks"
    if replaced := vars(module).keys() & _methods(type(module)):
        return f"its {min(replaced)} was replaced"
    return None


@functools.lru_cache(maxsize=128)
def _methods(kind: type) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))


def _values(module: nn.Module) -> Iterator[Tensor | None]:
    yield from module._parameters.values()
    yield from module._buffers.values()


def _deviation(found: Part, expected: Part) -> str | None:
    """How a module differs from what it should be, in words. Attributes that its class does not know change nothing."""
    if found.kind is not expected.kind:
        return f"it is a {found.kind.__name__}, not a {expected.kind.__name__}"
    for name, value in expected.attributes.items():
        now = found.attributes.get(name, "missing")
        if type(now) is not type(value) or now != value:
            return f"its {name} is {now}, not {value}"
    if found.tensors != expected.tensors:
        return f"its tensors are {found.tensors}, not {expected.tensors}"
    return None


_blueprints: OrderedDict[tuple[type, str], dict[str, Part]] = OrderedDict()


def _blueprint(kind: type[nn.Module], config: Any) -> dict[str, Part]:
    """The anatomy of what a class makes of a config."""
    key = kind, repr(config)

    def make() -> dict[str, Part]:
        with torch.device("meta"):
            return anatomy(kind(config))

    if (kept := _blueprints.get(key)) is None:
        with ThreadPoolExecutor(1) as elsewhere:  # modes and default devices of the caller are its thread's alone
            _blueprints[key] = kept = elsewhere.submit(make).result()
        while len(_blueprints) > BLUEPRINTS:
            _blueprints.popitem(last=False)
    return kept


def _is_own(kind: type, method: str) -> bool:
    """Whether the first class that has a method was written with it; torch's modules without `forward` are."""
    owner = next(one for one in kind.__mro__ if method in vars(one))
    return owner is nn.Module or _is_written_in(vars(owner)[method], owner, method)


def _is_written_in(function: Any, owner: type, method: str) -> bool:
    written = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return any(written == (one.__module__, f"{one.__qualname__}.{method}") for one in owner.__mro__)


def _any_global_hook() -> bool:
    return bool(hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks)


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(one.shape, one.dtype, one.device) for one in tensors]


def _on_cpu(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """The memory of tensors on the CPU, in the order of their numbers."""
    for one in tensors:
        if one.device.type == "cpu":
            memory: Any = one.detach().reshape(-1).view(torch.uint8).numpy()
            yield memoryview(memory)


def _bytes(tensors: Sequence[Tensor]) -> Tensor:
    elsewhere = [one.detach().reshape(-1).view(torch.uint8) for one in tensors if one.device.type != "cpu"]
    return torch.cat([one.to(elsewhere[0].device) for one in elsewhere])


def _elsewhere(tensors: Sequence[Tensor]) -> Tensor | None:
    return None if all(one.device.type == "cpu" for one in tensors) else _bytes(tensors)
