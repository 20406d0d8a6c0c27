"""Isinglass matches sparse local features between images: LightGlue and SuperGlue, from pixels to matches.

Names are resolved at first use, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from isinglass.lazy import lazy_names

if TYPE_CHECKING:
    from isinglass.errors import (
        ChecksumError,
        InputError,
        IsinglassError,
        LicenceError,
        MissingExtra,
        WeightsError,
        WriteError,
    )
    from isinglass.extractors.aliked import ALIKED
    from isinglass.extractors.disk import DISK
    from isinglass.extractors.sift import SIFT
    from isinglass.extractors.superpoint import SuperPoint
    from isinglass.extractors.xfeat import XFeat
    from isinglass.matchers.lightglue import LightGlue
    from isinglass.matchers.nearest import Nearest
    from isinglass.matchers.superglue import SuperGlue
    from isinglass.options import Options
    from isinglass.pipeline import Pipeline, extract, match
    from isinglass.result import MatchResult
    from isinglass.types import Extractor, Features, Matcher, Matches, Signature
    from isinglass.weights import accept_licence, fetch, record, records

_HOMES = {
    "errors": (
        "ChecksumError",
        "InputError",
        "IsinglassError",
        "LicenceError",
        "MissingExtra",
        "WeightsError",
        "WriteError",
    ),
    "extractors.aliked": ("ALIKED",),
    "extractors.disk": ("DISK",),
    "extractors.sift": ("SIFT",),
    "extractors.superpoint": ("SuperPoint",),
    "extractors.xfeat": ("XFeat",),
    "matchers.lightglue": ("LightGlue",),
    "matchers.nearest": ("Nearest",),
    "matchers.superglue": ("SuperGlue",),
    "options": ("Options",),
    "pipeline": ("Pipeline", "extract", "match"),
    "result": ("MatchResult",),
    "types": ("Extractor", "Features", "Matcher", "Matches", "Signature"),
    "weights": ("accept_licence", "fetch", "record", "records"),
}

__all__ = [
    "ALIKED",
    "DISK",
    "SIFT",
    "ChecksumError",
    "Extractor",
    "Features",
    "InputError",
    "IsinglassError",
    "LicenceError",
    "LightGlue",
    "MatchResult",
    "Matcher",
    "Matches",
    "MissingExtra",
    "Nearest",
    "Options",
    "Pipeline",
    "Signature",
    "SuperGlue",
    "SuperPoint",
    "WeightsError",
    "WriteError",
    "XFeat",
    "accept_licence",
    "extract",
    "fetch",
    "match",
    "record",
    "records",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
