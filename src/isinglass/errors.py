"""The exceptions of Isinglass: one tree, so that one `except IsinglassError` catches all of them.

A message holds what came, what was expected, and the remedy. What is normal in this field (no match, no pose) is a
result, never an exception.
"""

MAX_LETTERS = 2000  # of a message: what came from a damaged file may be of any length


class IsinglassError(Exception):
    """Anything that Isinglass itself raises. A message that is too long loses its middle."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_shortened(argument) for argument in arguments))


class InputError(IsinglassError, ValueError):
    """The caller's images, features or options cannot be used."""


class WriteError(InputError):
    """A result cannot be written: no permission, a full disk."""


class TrainingError(IsinglassError):
    """A training run cannot go on."""


class WeightsError(IsinglassError):
    """A checkpoint cannot be found, fetched, read or loaded."""


class ChecksumError(WeightsError):
    """A file is not the one its record names."""


class LicenceError(WeightsError):
    """A checkpoint's licence must be accepted before it is used."""


class MissingExtra(IsinglassError, ImportError):
    """A package that an extra of Isinglass installs is absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. It comes with an extra: pip install 'isinglass[{extra}]'")


def _shortened(argument: object) -> object:
    if not isinstance(argument, str) or len(argument) <= MAX_LETTERS:
        return argument
    half = MAX_LETTERS // 2
    return f"{argument[:half]} [... {len(argument) - 2 * half} letters ...] {argument[-half:]}"
