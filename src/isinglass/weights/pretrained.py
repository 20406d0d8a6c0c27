"""The mixin that gives every model `pretrained`: a name or a path in, a model ready for use out."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from isinglass.devices import find_device
from isinglass.errors import InputError, WeightsError
from isinglass.names import is_file
from isinglass.weights.fetch import fetch
from isinglass.weights.records import RECORDS, Record, record, records

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST = 10**7  # of an option that is a whole number


class Pretrained:
    """For an `nn.Module` whose constructor takes a Config: three acts, make, load and use, never in one.

    weights_name   whose weights these are, as written into features and matches
    weights_id     first 12 hex digits of the file's sha256; "random" before any load
    accepts        for matchers: names of the extractors it was trained on; None = any
    """

    Config: ClassVar[type[Any]]  # the frozen dataclass
    default_weights: ClassVar[str]
    weights_name: str = "random"
    weights_id: str = "random"
    accepts: tuple[str, ...] | None = None
    _loaded: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.weights_name = f"random-{cls.__name__.lower()}"

    def changed_weights(self) -> str | None:
        """Return a digest of the weights if they are not those that `weights_id` names, None if they are.

        Weights that were never loaded, or that anybody changed since, have one.
        """
        digest = state_digest(self.state_dict())  # pyright: ignore[reportAttributeAccessIssue]  an nn.Module as well
        return None if digest == self._loaded else digest

    @classmethod
    def pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: torch.device | str | None = None,
        accept_licence: bool = False,
        **options: Any,
    ) -> Self:
        """The model with published weights by name, or those of a file by path, in evaluation mode.

        `name` None: `default_weights`. `accept_licence`: for this call, of weights that are not free to use.
        `options` replace those of the Config that belongs to the weights. Raises InputError for an unknown name,
        option or device, WeightsError (or its kinds ChecksumError and LicenceError) where weights cannot be had, read
        or loaded.
        """
        from isinglass.weights.checkpoint import read_checkpoint

        place = None if device is None else find_device(device)
        known = _resolve(cls.default_weights if name is None else name)
        if isinstance(known, Record) and known.model != cls.__name__:
            fitting = ", ".join(one.name for one in records(cls.__name__)) or "none"
            raise InputError(f"the weights {known.name!r} are for {known.model}; {cls.__name__} has: {fitting}")
        _check_options(cls, options)
        path = fetch(known, accept_licence=accept_licence) if isinstance(known, Record) else known
        checkpoint = read_checkpoint(path, cls.__name__)
        check_config(cls.Config, checkpoint.config, len(checkpoint.state), path)
        config = dataclasses.replace(_config_of(cls, checkpoint.config, path), **options)
        model: Any = _model_of(cls, config, checkpoint.state, path)
        model.weights_name, model.weights_id = checkpoint.name, checkpoint.weights_id
        model._loaded = state_digest(model.state_dict())
        model.accepts = checkpoint.accepts
        return model.eval().to(place)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the names, types, shapes and numbers of tensors, in hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode("utf-8", "surrogatepass"))
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resolve(name: str | Path) -> Record | Path:
    """The record of that name, or the path of a file. Raises InputError or WeightsError where neither exists."""
    if isinstance(name, str) and name in RECORDS:
        return RECORDS[name]
    path = Path(name).expanduser()
    if is_file(path):
        return path
    if isinstance(name, Path) or path.suffix or len(path.parts) > 1:
        raise WeightsError(f"there is no file {path}; expected a checkpoint, or one of the names of published weights")
    return record(name)


def _check_options(cls: type[Pretrained], options: dict[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(cls.Config)}
    if unknown := sorted(options.keys() - fields):
        raise InputError(f"{cls.__name__} has no option {', '.join(unknown)}; it has {_known(cls)}")


def check_config(kind: type[Any], config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Raise WeightsError where a file's options are not of the types of a Config, or cannot be of so many tensors.

    Options that the Config does not have are left to its constructor.
    """
    for field in dataclasses.fields(kind):
        if field.name not in config:
            continue
        value: Any = config[field.name]
        kinds = str(field.type)
        fits = (
            (value is None and "None" in kinds)
            or (isinstance(value, bool) and "bool" in kinds)
            or (type(value) is int and "int" in kinds and "tuple" not in kinds and 0 <= value <= _MOST)
            or (type(value) in (int, float) and "float" in kinds and _is_finite(value))
            or (isinstance(value, str) and ("str" in kinds or "Literal" in kinds))
            or (isinstance(value, tuple) and "tuple" in kinds and all(type(one) is int and one > 0 for one in value))
        )
        if not fits or (field.name == "layers" and type(value) is int and value > tensors):
            raise WeightsError(f"{path} is damaged: its {field.name} is {repr(value)[:80]}. Get it again")


def _is_finite(value: Any) -> bool:
    return abs(value) <= sys.float_info.max


def _config_of(cls: type[Pretrained], config: Mapping[str, Any], path: Path) -> Any:
    try:
        return cls.Config(**config)
    except TypeError as error:
        raise WeightsError(
            f"{path} was written for another version of {cls.__name__}: {error}. Known options are {_known(cls)}"
        ) from error
    except (InputError, ArithmeticError) as error:
        raise WeightsError(f"{path} is damaged: {error}. Get it again") from error


def _model_of(cls: type[Pretrained], config: Any, state: Mapping[str, torch.Tensor], path: Path) -> Any:
    """Return the model with the state loaded; without memory for a model that the state does not fit."""
    import torch

    from isinglass.weights.checkpoint import check_fits, load_strictly

    make: Any = cls
    with suppress(NotImplementedError), torch.device("meta"):  # a constructor may need numbers
        check_fits(make(config), state, path)
    with torch.device("cpu"):  # and in float32, whatever the caller's defaults are
        model = make(config).float()
    load_strictly(model, state, path)
    return model


def _known(cls: type[Pretrained]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls.Config))
