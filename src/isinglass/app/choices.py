"""What people can choose: extractors and matchers with their licences, whether they are here, and what fits what."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import asdict
from typing import Any

from isinglass.app.settings import Limits
from isinglass.app.uploads import Refused
from isinglass.models import EXTRACTORS, MATCHERS
from isinglass.options import Options
from isinglass.weights.fetch import is_present, licence_accepted
from isinglass.weights.names import ALIASES, HANDMADE, extractor_weights, matcher_weights
from isinglass.weights.records import Record, record, records

FAMILIES = tuple(kind.lower() for kind in MATCHERS)  # "lightglue": the weights made for the extractor
OPTIONS = (
    *("extractor", "matcher", "max_keypoints", "resize", "rotation", "min_distance", "stretch", "adaptive"),
    *("filter_threshold", "ratio", "precision", "execution"),
)  # of `Options`, that requests may set


def extractor_names() -> tuple[str, ...]:
    """All that a request may name."""
    return (*ALIASES, *(one.name for kind in EXTRACTORS for one in records(kind)), *HANDMADE)


def matcher_names() -> tuple[str, ...]:
    """All that a request may name; files of the server are not among them."""
    return (*FAMILIES, *(one.name for kind in MATCHERS for one in records(kind)), "nearest")


def default_options() -> Options:
    """The pipeline's defaults if their weights are here or can be had, else those of the weights in the package."""
    plain = Options()
    extractor = extractor_weights(plain.extractor)
    if _available(record(extractor)) and _available(record(matcher_weights(plain.matcher, extractor))):
        return plain
    return Options(extractor="rootsift", matcher="lightglue-sift-small")  # both are in the package


def check_choice(options: Options) -> None:
    """Raises Refused (422) where the matcher is not made for the extractor, or one of both cannot be had here."""
    extractor = extractor_weights(options.extractor)
    name = matcher_weights(options.matcher, extractor)
    if extractor in HANDMADE and not _opencv():
        raise Refused(f"{extractor} needs OpenCV, which is not installed: pip install 'isinglass[sift]'", 422)
    for one in (extractor, name):
        if one in HANDMADE or one == "nearest":
            continue
        if not licence_accepted(one):
            raise Refused(
                f"the weights {one!r} are under a licence that whoever runs this server must accept first: "
                f"{record(one).licence}; isinglass models --fetch {one} --accept-licence. Choose others",
                422,
            )
    if name == "nearest":
        return
    accepts = record(name).accepts
    if accepts is not None and extractor not in accepts:
        raise Refused(
            f"the matcher {name!r} was made for features of {' or '.join(accepts)}, and those of {extractor!r} came. "
            "Choose another extractor, a matcher made for it, or 'nearest'",
            422,
        )


def choices(limits: Limits) -> dict[str, Any]:
    """What `GET /choices` answers, but for the examples."""
    extractors = [_entry(one) for kind in EXTRACTORS for one in records(kind)]
    handmade = {"licence": "Apache-2.0", "commercial_use": True, "available": _opencv(), "present": _opencv()}
    extractors += [{"name": name, "about": "OpenCV's SIFT, without weights", **handmade} for name in HANDMADE]
    matchers = [_entry(one) for kind in MATCHERS for one in records(kind)]
    free = {"licence": "Apache-2.0", "commercial_use": True, "available": True, "present": True}
    about = "each keypoint's nearest in the other photo, if mutual"
    matchers.append({"name": "nearest", "family": "nearest", "about": about, "accepts": None, **free})
    defaults = {name: value for name, value in asdict(default_options()).items() if name in OPTIONS}
    defaults["extractor"] = extractor_weights(defaults["extractor"])
    defaults["matcher"] = matcher_weights(defaults["matcher"], defaults["extractor"])
    return {
        "extractors": extractors,
        "matchers": matchers,
        "defaults": {**defaults, "geometry": "auto"},
        "limits": {**asdict(limits), "body_bytes": limits.body_bytes},
    }


def _entry(one: Record) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": one.name,
        "family": one.model.lower(),
        "about": one.about,
        "licence": one.licence,
        "commercial_use": one.commercial_use,
        "available": _available(one),
        "present": is_present(one.name),
    }
    return {**entry, "accepts": one.accepts} if one.model in MATCHERS else entry


def _available(one: Record) -> bool:
    """Whether it is here, or may be fetched; and whether its licence was accepted, if it needs that."""
    offline = os.environ.get("ISINGLASS_OFFLINE", "0") not in ("", "0")
    return licence_accepted(one) and (is_present(one.name) or not offline)


@functools.cache
def _opencv() -> bool:
    """Asked before anything imports it: while that is under way the answer is an error."""
    return importlib.util.find_spec("cv2") is not None
