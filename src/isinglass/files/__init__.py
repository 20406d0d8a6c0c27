"""Features, matches, lists and other texts on disk.

Names are resolved at first use: what reads a list or writes a text does not wait for torch.
"""

from typing import TYPE_CHECKING

from isinglass.lazy import lazy_names

if TYPE_CHECKING:
    from isinglass.files.atomic import PathLike, write_atomically
    from isinglass.files.integrity import (
        read_if_whole,
        read_signed_json,
        signed_json,
        verify_json,
        write_signed_json,
    )
    from isinglass.files.single import SavedMatches, load_features, load_matches, save_features, save_matches

_HOMES = {
    "atomic": ("PathLike", "write_atomically"),
    "integrity": ("read_if_whole", "read_signed_json", "signed_json", "verify_json", "write_signed_json"),
    "single": ("SavedMatches", "load_features", "load_matches", "save_features", "save_matches"),
}

__all__ = [
    "PathLike",
    "SavedMatches",
    "load_features",
    "load_matches",
    "read_if_whole",
    "read_signed_json",
    "save_features",
    "save_matches",
    "signed_json",
    "verify_json",
    "write_atomically",
    "write_signed_json",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
