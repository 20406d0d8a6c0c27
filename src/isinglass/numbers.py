"""Numbers that a caller gives in the config of a model: one check for all of them."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from isinglass.errors import InputError

MOST_CHANNELS = 65536  # of any layer, more than any model has
MANY = (0, 2**31 - 1)  # keypoints
ANY_SCORE = (-1e9, 1e9)
NEAR_PX = (0, 1000)
_SHOWN_BITS = 256


def check_numbers(config: Any, **ranges: tuple[float, float]) -> None:
    """Raise InputError unless fields of a dataclass are numbers of their annotated type within ranges (least, most).

    None is right where the annotation has it; of a tuple each entry is checked. NaN and booleans are never right.
    """
    for field in fields(config):
        if field.name not in ranges:
            continue
        kind, value, (least, most) = str(field.type), getattr(config, field.name), ranges[field.name]
        if value is None and "None" in kind:
            continue
        if kind.startswith("tuple") and not isinstance(value, tuple | list):
            raise InputError(f"{field.name} is {_shown(value)}; expected a tuple of integers")
        wanted = Integral if "int" in kind else Real
        for number in value if isinstance(value, tuple | list) and kind.startswith("tuple") else (value,):
            if not isinstance(number, wanted) or isinstance(number, bool) or not least <= number <= most:  # type: ignore[operator]
                noun = "an integer" if wanted is Integral else "a number"
                none = ", or None" if "None" in kind else ""
                raise InputError(f"{field.name} is {_shown(number)}; expected {noun} from {least:g} to {most:g}{none}")


def _shown(value: object) -> str:
    """Return the value as text; Python has none for integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
