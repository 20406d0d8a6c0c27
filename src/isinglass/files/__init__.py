"""Features and matches on disk."""

from isinglass.files.atomic import PathLike, write_atomically
from isinglass.files.single import SavedMatches, load_features, load_matches, save_features, save_matches

__all__ = [
    "PathLike",
    "SavedMatches",
    "load_features",
    "load_matches",
    "save_features",
    "save_matches",
    "write_atomically",
]
