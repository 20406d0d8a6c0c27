"""Features and matches on disk."""

from isinglass.files.atomic import PathLike, write_atomically
from isinglass.files.integrity import read_signed_json, signed_json, verify_json, write_signed_json
from isinglass.files.single import SavedMatches, load_features, load_matches, save_features, save_matches

__all__ = [
    "PathLike",
    "SavedMatches",
    "load_features",
    "load_matches",
    "read_signed_json",
    "save_features",
    "save_matches",
    "signed_json",
    "verify_json",
    "write_atomically",
    "write_signed_json",
]
