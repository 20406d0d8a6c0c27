"""What names of extractors and matchers mean, and which go together. Needs no torch, so that commands can ask first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from isinglass.errors import InputError, LicenceError
from isinglass.names import is_file
from isinglass.weights.fetch import licence_accepted, licence_message
from isinglass.weights.records import record, records

EXTRACTOR_KINDS = ("ALIKED", "DISK", "SuperPoint", "XFeat")
MATCHER_KINDS = ("LightGlue", "SuperGlue")
HANDMADE = ("sift", "rootsift")  # extractors without weights
ALIASES = {"aliked": "aliked-n16"}  # short name -> the weights it stands for
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")  # of files with weights
_FAMILIES = {kind.lower(): kind for kind in MATCHER_KINDS}


def extractor_weights(name: str) -> str:
    """Return the full name that an extractor's short name stands for; of "detector+describer" both."""
    return "+".join(ALIASES.get(part, part) for part in name.split("+"))


def matcher_weights(name: str, extractor: str) -> str:
    """Return the weights that "lightglue", "superglue" or a name of weights means for an extractor's features.

    Raises InputError where there are none for it.
    """
    if name not in _FAMILIES:
        return name
    descriptors = extractor.rpartition("+")[2]
    family = records(_FAMILIES[name])
    fitting = [weights.name for weights in family if weights.accepts is None or descriptors in weights.accepts]
    if not fitting:
        raise InputError(
            f"there are no {name} weights for features of {extractor!r}. Choose matcher 'nearest', or an extractor "
            f"among {', '.join(sorted({accepted for weights in family for accepted in weights.accepts or ()}))}"
        )
    return fitting[0]


def names_to_fetch(name: str) -> list[str]:
    """Return the names of weights that a name stands for: short names, both of "detector+describer".

    Raises InputError for handmade extractors and for families of matchers, whose weights depend on the extractor.
    """
    if name in _FAMILIES:
        fitting = ", ".join(weights.name for weights in records(_FAMILIES[name]))
        raise InputError(f"{name!r} is several weights, one for each extractor; choose among {fitting}")
    if name in (*HANDMADE, "nearest"):
        raise InputError(f"{name!r} needs no weights; there is nothing to fetch")
    return [record(part).name for part in extractor_weights(name.lower()).split("+")]


def check_extractor(name: str, *, accept_licence: bool = False) -> None:
    """Raise InputError unless the extractor (both of "detector+describer") is known, LicenceError for its licence."""
    for part in extractor_weights(name).split("+"):
        if part not in HANDMADE:
            _check(part, EXTRACTOR_KINDS, "extractor", (*HANDMADE, *ALIASES), accept_licence)


def check_matcher(
    name: str,
    extractor: str | None,
    *,
    ratio: float | None = None,
    filter_threshold: float | None = None,
    accept_licence: bool = False,
) -> None:
    """Raise InputError unless the matcher is known, takes these options, and features of the extractor (None = any).

    Raises LicenceError where the licence of its weights has not been accepted.
    """
    if name == "nearest":
        if filter_threshold is not None:
            raise InputError("filter_threshold is for matchers with learned scores; 'nearest' has none. Leave it out")
        return
    if ratio is not None:
        raise InputError(f"ratio is for the matcher 'nearest'; {name!r} has filter_threshold instead")
    if extractor is None and name in _FAMILIES:
        return
    weights = matcher_weights(name, extractor_weights(extractor or ""))
    _check(weights, MATCHER_KINDS, "matcher", ("nearest", *_FAMILIES), accept_licence)
    if extractor is None or _is_file(weights):
        return
    accepts, descriptors = record(weights).accepts, extractor_weights(extractor).rpartition("+")[2]
    if accepts is not None and descriptors not in accepts and not _is_file(descriptors):
        raise InputError(
            f"the matcher {name!r} is for features of {' or '.join(map(repr, accepts))}; the extractor is "
            f"{extractor!r}. Choose one of the others, or the matcher 'lightglue', which takes the weights that fit"
        )


def _check(name: str, kinds: Iterable[str], role: str, others: tuple[str, ...], accept_licence: bool) -> None:
    """Raise InputError unless `name` is a file, or published weights of one of the kinds."""
    if _is_file(name):
        return
    kinds = tuple(kinds)
    known = [*others, *(weights.name for weights in records() if weights.model in kinds)]
    if name not in {weights.name for weights in records()}:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}."
        if "/" in name or "\\" in name or Path(name).suffix in _SUFFIXES:
            raise InputError(
                f"there is no file {name!r}; expected the {role}'s weights. Check the path, or give a name"
            )
        raise InputError(f"there is no {role} {name!r}; {guess} A file of your own is given by its path")
    found = record(name)
    if found.model not in kinds:
        raise InputError(f"{name!r} are weights of {found.model}, no {role}; see `isinglass models`")
    if not (accept_licence or licence_accepted(found)):
        raise LicenceError(licence_message(found))


def _is_file(name: str) -> bool:
    try:
        return is_file(Path(name).expanduser())
    except RuntimeError:  # ~ of a user who is not known
        return False
