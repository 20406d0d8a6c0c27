"""What a target is, what counts as a fault, and a target that covers most: a file that is written, mutated and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

from isinglass.errors import IsinglassError

from .mutate import mutate

SAME, REFUSED, OTHER = "same", "refused", "other"


class Fault(AssertionError):
    """The product did what it never may; the message says what."""


class Target(Protocol):
    """Something that reads inputs."""

    def try_one(self, rng: Random) -> str:
        """Read one mutated input; return SAME, REFUSED or OTHER. Whatever it raises is a fault."""
        ...

    def close(self) -> None:
        """Let go of servers and files."""
        ...


@dataclass
class FileTarget:
    """Files that `read` takes, mutated.

    files    the paths of whole files; a mutated one takes a file's place in a copy of its name, in `folder`
    read     what the product makes of a path; IsinglassError = refused
    same     whether a result is the one of the whole file; called with (result, result of the whole file, was only cut)
    text     words are exchanged, too
    """

    folder: Path
    files: Sequence[Path]
    read: Callable[[Path], Any]
    same: Callable[[Any, Any], bool] | None = None
    check: Callable[[Any], None] | None = None
    text: bool = False
    change: Callable[[bytes, Random], bytes] | None = None
    input: bytes = b""
    _whole: dict[Path, Any] = field(default_factory=dict)

    def try_one(self, rng: Random) -> str:
        """See Target."""
        source = rng.choice(list(self.files))
        data = source.read_bytes()
        self.input = self.change(data, rng) if self.change else mutate(data, rng, text=self.text)
        path = self.folder / f"mutated{source.suffix}"
        path.write_bytes(self.input)
        try:
            result = self.read(path)
        except IsinglassError as error:
            if not str(error).strip() or len(str(error)) > 4000:
                raise Fault(f"a message of {len(str(error))} letters: {str(error)[:200]!r}") from error
            return REFUSED
        if self.check is not None:
            self.check(result)
        if self.same is None:
            return OTHER
        if source not in self._whole:
            self._whole[source] = self.read(source)
        if self.same(result, self._whole[source]):
            return SAME
        raise Fault(f"other data came out of a mutated {source.name}, silently")

    def close(self) -> None:
        """See Target."""
