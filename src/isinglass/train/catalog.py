"""Names of recipes, and what they stand for. Importing this needs no torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from isinglass.errors import InputError

Kind = Literal["lightglue", "superglue"]
Stage = Literal["homography", "posed", "confidence"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STAGES: tuple[Stage, ...] = get_args(Stage)
EXTRACTORS = {"sift": "rootsift", "aliked": "aliked-n16", "disk": "disk", "superpoint": "superpoint-open"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeName:
    """The parts of a name such as "lightglue-sift-homography-small"."""

    kind: Kind
    features: str
    stage: Stage
    small: bool

    def __str__(self) -> str:
        return f"{self.kind}-{self.features}-{self.stage}{'-small' if self.small else ''}"


RECIPE_NAMES = {
    str(name): name
    for name in (
        RecipeName(kind=kind, features=features, stage=stage, small=small)
        for kind in KINDS
        for features in EXTRACTORS
        for stage in STAGES
        for small in (False, True)
        if not (kind == "superglue" and stage == "confidence")
    )
}


def recipe_name(name: str) -> RecipeName:
    """Return the parts of a recipe's name. Raises InputError, with near names, where there is no such recipe."""
    if name not in RECIPE_NAMES:
        near = difflib.get_close_matches(name, RECIPE_NAMES, n=3, cutoff=0.6)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"there is no recipe {name!r}; {guess}`isinglass recipes` lists all {len(RECIPE_NAMES)}")
    return RECIPE_NAMES[name]
