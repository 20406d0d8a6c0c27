"""Names of devices: which forms there are, which devices this machine has. Torch is imported where it is needed."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from isinglass.errors import InputError

if TYPE_CHECKING:
    import torch

FORMS = "'cpu', 'cuda', 'cuda:1' (the second GPU) or 'mps'"
_FORM = re.compile(r"(cpu|mps)(:0)?|cuda(:\d{1,3})?")


def device_name(value: Any) -> str:
    """Return the name of a device that was given by name or as a `torch.device`, in its short form.

    Raises InputError for anything else. Whether the machine has the device is seen by `find_device`.
    """
    torch = sys.modules.get("torch")
    name = str(value) if torch is not None and isinstance(value, torch.device) else value
    if not isinstance(name, str) or not _FORM.fullmatch(name):
        here = "" if torch is None else f". This machine has: {', '.join(map(repr, devices_here()))}"
        raise InputError(f"device is {value!r}; expected {FORMS}, or None for the fastest{here}")
    return name.removesuffix(":0") if name.startswith(("cpu", "mps")) else name


def devices_here() -> list[str]:
    """Return the names of this machine's devices, the fastest first."""
    import torch

    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def best_device() -> str:
    """Return the name of this machine's fastest device."""
    fastest = devices_here()[0]
    return "cuda" if fastest.startswith("cuda") else fastest


def find_device(value: str | torch.device | None = None) -> torch.device:
    """Return the device of that name, or the fastest. Raises InputError where this machine has no such device."""
    import torch

    name, here = best_device() if value is None else device_name(value), devices_here()
    if name not in here and not (name == "cuda" and here[0].startswith("cuda")):
        hint = ""
        if name.startswith("cuda") and not here[0].startswith("cuda"):
            built = torch.version.cuda or torch.version.hip
            hint = (
                ". Torch finds no GPU: check the driver"
                if built
                else f". Torch {torch.__version__} is a build without CUDA: install another, or leave the device out"
            )
        raise InputError(f"device is {name!r}; this machine has: {', '.join(map(repr, here))}{hint}")
    return torch.device(name)
