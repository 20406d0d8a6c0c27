"""Whether a pipeline is what its options say, so that another process can build the same from them alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from isinglass.errors import InputError, IsinglassError
from isinglass.kernels.linear import compute_dtype
from isinglass.models import load_extractor, load_matcher, tile_side
from isinglass.names import is_file
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.runtime.anatomy import anatomy, modification, tensors_of
from isinglass.weights.names import extractor_weights, matcher_weights

Kind = Literal["extractor", "matcher"]
CPU = torch.device("cpu")


def custom_parts(pipeline: Pipeline, kinds: Collection[Kind] = ("extractor", "matcher")) -> list[str]:
    """Return how the parts of a pipeline differ from those that its options load, in words; none = not at all.

    Compared are class, settings and weights with a part that is loaded anew, so whatever was given by hand, replaced or
    changed since is found.
    """
    problems = []
    for kind in kinds:
        try:
            problem = _difference(pipeline, kind)
        except IsinglassError as error:
            problem = f"no options build it ({error})"
        if problem is not None:
            problems.append(f"the {kind} {_name(getattr(pipeline, kind))!r}: {problem}")
    return problems


def refuse_custom(
    pipeline: Pipeline, what: str, remedy: str, kinds: Collection[Kind] = ("extractor", "matcher")
) -> None:
    """Raise InputError if `what` would build another pipeline of the options than this one."""
    if problems := custom_parts(pipeline, kinds):
        raise InputError(
            f"{what} would be built of the pipeline's options, which do not say all that it is: {'; '.join(problems)}. "
            f"{remedy}, or save the weights to a file and name that in the options"
        )


def _difference(pipeline: Pipeline, kind: Kind) -> str | None:
    part: Any = getattr(pipeline, kind)
    expected_name = _expected_name(pipeline.options, kind)
    if expected_name is not None and _name(part) != expected_name:  # nothing need be loaded, or fetched
        return f"the options say {expected_name!r}"
    if kind == "extractor":
        expected: Any = load_extractor(pipeline.options, CPU)
        if pipeline.tile != tile_side(pipeline.options, expected):
            return f"its tiles are of {pipeline.tile} px"
    else:
        expected = load_matcher(replace(pipeline.options, precision="float32"), CPU)
        if hasattr(expected, "compute_dtype"):
            expected.compute_dtype = compute_dtype(pipeline.options.precision, pipeline.device)
    return _differing(part, expected)


def _expected_name(options: Options, kind: Kind) -> str | None:
    """The name that the part of the options has; None = that is in a file."""
    extractor = extractor_weights(options.extractor)
    name = extractor if kind == "extractor" else matcher_weights(options.matcher, extractor)
    return None if is_file(Path(name).expanduser()) else name


def _name(part: Any) -> str:
    return str(part.signature.extractor if hasattr(part, "signature") else getattr(part, "name", type(part).__name__))


def _differing(part: Any, expected: Any) -> str | None:
    """How a part differs from another one, in words."""
    if type(part) is not type(expected):
        return f"it is a {type(part).__name__}, not a {type(expected).__name__}"
    if isinstance(part, nn.Module):
        if problem := modification(part, type(part)):
            return problem
        if anatomy(part) != anatomy(expected):
            return "its settings are others"
        mine, theirs = tensors_of(part), tensors_of(expected)
        pairs = zip(mine, theirs, strict=True)
        if any(one.dtype != other.dtype or not torch.equal(one.cpu(), other) for one, other in pairs):
            return "its weights are others"
    for name in vars(part).keys() | vars(expected).keys():
        now, then = getattr(part, name, None), getattr(expected, name, None)
        if name.startswith("_") or name == "training" or isinstance(now, torch.Tensor):
            continue
        if problem := _differing_values(name, now, then):
            return problem
    return None


def _differing_values(name: str, now: Any, then: Any) -> str | None:
    if name in ("detector", "describer"):
        return _differing(now, then)
    return None if type(now) is type(then) and now == then else f"its {name} is {now}, not {then}"
