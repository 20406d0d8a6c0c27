"""What came of a map, and why nothing did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from isinglass.images.folder import LeftOut
from isinglass.sfm.reconstruct import ModelReport


@dataclass(frozen=True, kw_only=True)
class MapSummary:
    """What came of a map.

    photos        in the folder; `problems` of those that could not be used, and of lines and names of a list of pairs
    notes         what a person should know of what was left out, of masks, pixels of photos, pairs and cameras
    turned        which photos seem to be stored turned, and what to do; "" where none were found
    frame         whether the frame of an earlier map in the same folder was kept; "" where there was none
    colmap        warnings and errors of COLMAP, each once
    pairs         chosen; `matched` of them have matches, of `verified` a two-view geometry was found, with `inliers`
    models        largest first
    unregistered  photos with features that are in no model
    reason        why there is no model; "" where there is one
    left_out      files of the folder that are not photos to use, and pairs left out with photos, by kind
    seconds       of each stage, when it was done; `reused` are those that an earlier run had finished
    """

    photos: int
    problems: dict[str, str]
    notes: list[str]
    pairs: int
    matched: int
    verified: int
    inliers: int
    models: list[ModelReport]
    unregistered: list[str]
    reason: str
    seconds: dict[str, float]
    reused: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    colmap: list[str] = field(default_factory=list)
    frame: str = ""
    turned: str = ""


def why_no_model(summary: MapSummary, usable: Sequence[str]) -> MapSummary:
    """The same with what is in no model, and the reason where there is none. `usable` photos have features."""
    registered = {name for model in summary.models for name in model.registered}
    summary = replace(summary, unregistered=[name for name in usable if name not in registered])
    if summary.models:
        return summary
    if len(usable) < 2:
        why = f"{len(usable)} of {summary.photos} photos can be used; expected at least two of one scene"
    elif not summary.pairs:
        why = "no pair of photos was chosen. Choose pairs another way, such as --pairs exhaustive"
    elif not summary.verified:
        why = (
            f"no overlap was found: of {summary.pairs} pairs {summary.matched} have matches, and none of them agree "
            "with a geometry of two views. Photos must show the same things; `isinglass doctor` looks into a pair"
        )
    else:
        why = (
            f"{summary.verified} pairs overlap, but no two photos could be the start of a map: too few matches, or all "
            "are taken from one place or of the very same view. Move between photos"
        )
    if summary.turned:
        why = f"{summary.turned}. Else: {why}"
    if summary.colmap:
        why = f"COLMAP says: {'; '.join(text.rstrip('. ') for text in summary.colmap)}. Our guess: {why}"
    return replace(summary, reason=why)
