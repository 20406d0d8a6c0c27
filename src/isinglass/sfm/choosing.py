"""The pairs of a set of images, chosen in one of several ways, and what is to be said about the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike
from isinglass.sfm import pairs as ways
from isinglass.sfm.gps import positions
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.types import Matcher

How = Literal["auto", "exhaustive", "sequential", "spatial", "retrieval", "covisible"]
WAYS: tuple[How, ...] = ("auto", "exhaustive", "sequential", "spatial", "retrieval", "covisible")
ALL_UP_TO = 50  # images: "auto" takes all of their pairs
NAMED = 5  # images that a note names at most
StageTell = Callable[[str, int, int], None]  # stage, done, of


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are chosen. Raises InputError on values that make no sense.

    how              "auto" = exhaustive up to 50 images, else retrieval
    count            retrieval, spatial, covisible: other images an image is paired with, at most
    overlap          sequential: how many later images; quadratic: those 1, 2, 4, 8, ... later, else the next ones
    loops            sequential: images that look alike an image is paired with, to close loops; 0 = none
    loop_apart       places in the sequence that these are apart at least
    max_distance_m   spatial; altitude: that counts too
    common_points    covisible: of a pair, at least
    holes            spatial: how images without a position are paired
    first_pass       drop pairs of which few keypoints hardly match; "auto" = where many are hopeless: of all pairs of
                     over 50 images, of loops, and of holes
    first_keypoints  of an image in the first pass; least_matches: a pair with fewer is dropped
    words, seed      of the vocabulary of retrieval; None = by the number of images
    """

    how: How = "auto"
    count: int = 20
    overlap: int = 10
    quadratic: bool = True
    loops: int = 5
    loop_apart: int = 30
    max_distance_m: float = 100.0
    altitude: bool = False
    common_points: int = 15
    holes: Literal["retrieval", "sequential", "none"] = "retrieval"
    first_pass: Literal["auto", "always", "never"] = "auto"
    first_keypoints: int = 256
    least_matches: int = ways.LEAST_MATCHES
    words: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "how": WAYS,
            "holes": ("retrieval", "sequential", "none"),
            "first_pass": ("auto", "always", "never"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, known))}")
        least = {"count": 1, "overlap": 1, "loops": 0, "loop_apart": 0, "first_keypoints": 1, "least_matches": 1}
        for name, smallest in (least | {"common_points": 1}).items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {smallest}")
        if not self.max_distance_m > 0:
            raise InputError(f"max_distance_m is {self.max_distance_m}; expected over 0")

    def resolved(self, images: int) -> PairOptions:
        """With the way that "auto" means for so many images."""
        if self.how != "auto":
            return self
        return replace(self, how="exhaustive" if images <= ALL_UP_TO else "retrieval")

    def may_retrieve(self, images: int) -> bool:
        """Whether features may be asked which images look alike."""
        how = self.resolved(images).how
        by_holes = how == "spatial" and self.holes == "retrieval"
        return how == "retrieval" or by_holes or (how == "sequential" and self.loops > 0)

    def may_match(self, images: int) -> bool:
        """Whether there may be a first pass."""
        if self.first_pass != "auto":
            return self.first_pass == "always"
        how = self.resolved(images).how
        many = how == "exhaustive" and images > ALL_UP_TO
        return many or (how == "spatial" and self.holes != "none") or (how == "sequential" and self.loops > 0)


@dataclass(frozen=True, kw_only=True)
class ChosenPairs:
    """What was chosen: the pairs, in which way, how many the first pass dropped, and notes for people."""

    pairs: list[Pair]
    how: How
    dropped: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Material:
    """What pairs may be chosen by. What the way asks for must be there.

    photos     folder that the names are relative to: spatial
    features   of the images: retrieval, loops, holes, the first pass
    matcher    of the first pass
    retrieval  file that vectors are kept in for the next time; None = they are not
    model      folder of a COLMAP model: covisible
    """

    photos: PathLike | None = None
    features: FeatureStore | None = None
    matcher: Matcher | None = None
    retrieval: PathLike | None = None
    model: PathLike | None = None


def choose_pairs(
    names: Sequence[str], options: PairOptions, material: Material, *, tell: StageTell = lambda stage, done, of: None
) -> ChosenPairs:
    """The pairs of images `names`, see `sfm.pairs`, and what is to be said; for a sequence names are in its order.

    Raises InputError where the material lacks what the way needs.
    """
    run = _Choosing(list(names), options.resolved(len(names)), material, tell)
    likely, doubtful = getattr(run, run.options.how)()
    first_pass = run.options.first_pass
    if first_pass == "always":
        likely, doubtful = [], ways.in_order([*likely, *doubtful], names)
    elif first_pass == "never":
        likely, doubtful = ways.in_order([*likely, *doubtful], names), []
    doubtful = [pair for pair in doubtful if pair not in set(likely)] if likely else doubtful
    kept = run.promising(doubtful)
    if dropped := len(doubtful) - len(kept):
        run.notes.append(f"{dropped} of {len(doubtful)} pairs hardly match in a first pass and are dropped")
    chosen = ways.in_order([*likely, *kept], names)
    if len(names) > 1 and not chosen:
        run.notes.append(f"no pair of the {len(names)} images is chosen; another way may find some")
    return ChosenPairs(pairs=chosen, how=run.options.how, dropped=dropped, notes=tuple(run.notes))


def retrieval_of(
    features: FeatureStore,
    file: PathLike | None = None,
    *,
    words: int | None = None,
    seed: int = 0,
    tell: StageTell = lambda stage, done, of: None,
) -> Retrieval:
    """With all images of a store; what `file` has of them already is taken from there, and it is written.

    A file that is damaged, of another signature, or learnt from less than a half of the images is made again.
    """
    retrieval = None
    if file is not None and Path(file).is_file():
        try:
            retrieval = Retrieval.load(file, features.signature)
        except InputError:
            retrieval = None  # made again
    missing = [name for name in features if retrieval is None or name not in retrieval]
    if retrieval is None or 2 * len(missing) > len(features):
        retrieval = Retrieval.learn(
            features, words=words, seed=seed, tell=lambda done, of: tell("vocabulary", done, of)
        )
        if file is not None:
            retrieval.save(file)
    return retrieval.add(features, save=file, tell=lambda done, of: tell("describing", done, of))


class _Choosing:
    """One run. Each way gives pairs that are likely to match, and those that a first pass should look at."""

    def __init__(self, names: list[str], options: PairOptions, material: Material, tell: StageTell) -> None:
        self.names, self.options, self.material, self.tell = names, options, material, tell
        self.notes: list[str] = []

    def exhaustive(self) -> tuple[list[Pair], list[Pair]]:
        found = ways.exhaustive(self.names)
        return (found, []) if len(self.names) <= ALL_UP_TO else ([], found)

    def sequential(self) -> tuple[list[Pair], list[Pair]]:
        o = self.options
        near = ways.sequential(self.names, o.overlap, quadratic=o.quadratic)
        if not o.loops or len(self.names) <= o.loop_apart:
            return near, []
        retrieval = self._retrieval()
        sequence = [name for name in self.names if name in retrieval]
        return near, retrieval.pairs(sequence, o.loops, among=sequence, apart=o.loop_apart)

    def retrieval(self) -> tuple[list[Pair], list[Pair]]:
        retrieval = self._retrieval()
        known = [name for name in self.names if name in retrieval]
        return retrieval.pairs(known, self.options.count, among=known), []

    def covisible(self) -> tuple[list[Pair], list[Pair]]:
        if self.material.model is None:
            raise InputError("pairs by covisibility need a COLMAP model; none came. Give the folder of one")
        o = self.options
        found = ways.covisible(self.material.model, neighbours=o.count, common_points=o.common_points)
        present = set(self.names)
        shown = [pair for pair in found if present.issuperset(pair)]
        if missing := {name for pair in found for name in pair} - present:
            self.notes.append(f"the model has images that are not here: {_listed(sorted(missing))}")
        return ways.in_order(shown, self.names), []

    def spatial(self) -> tuple[list[Pair], list[Pair]]:
        if self.material.photos is None:
            raise InputError(
                "pairs by position need the photos, for the GPS in their EXIF; none came. Give their folder"
            )
        o = self.options
        places, without = positions(self.material.photos, self.names)
        near = ways.spatial(places, max_neighbours=o.count, max_distance_m=o.max_distance_m, altitude=o.altitude)
        if not without:
            return near, []
        holes = [name for name in self.names if name in without]
        self.notes.append(
            f"{len(holes)} of {len(self.names)} photos have no position ({without[holes[0]]}"
            + ("" if len(holes) == 1 else " ...")
            + f"): {_listed(holes)}; they are paired by {o.holes}"
            if o.holes != "none"
            else f"{len(holes)} of {len(self.names)} photos have no position and are in no pair: {_listed(holes)}"
        )
        return near, self._holes(holes)

    def _holes(self, holes: list[str]) -> list[Pair]:
        """Of the images without a position."""
        if self.options.holes == "none":
            return []
        if self.options.holes == "sequential":
            near = ways.sequential(self.names, self.options.overlap, quadratic=self.options.quadratic)
            missing = set(holes)
            return [pair for pair in near if missing & set(pair)]
        retrieval = self._retrieval()
        known = [name for name in self.names if name in retrieval]
        return retrieval.pairs([name for name in holes if name in retrieval], self.options.count, among=known)

    def promising(self, pairs: list[Pair]) -> list[Pair]:
        """What the first pass leaves of pairs."""
        if not pairs or self.options.first_pass == "never":
            return pairs
        features, matcher = self.material.features, self.material.matcher
        if features is None or matcher is None:
            raise InputError(
                "a first pass needs features and a matcher; they did not come. Give them, or no first pass"
            )
        return ways.promising(
            features,
            pairs,
            matcher,
            keypoints=self.options.first_keypoints,
            least=self.options.least_matches,
            tell=lambda done, of: self.tell("first pass", done, of),
        )

    def _retrieval(self) -> Retrieval:
        features = self.material.features
        if features is None:
            raise InputError("to find images that look alike takes features; none came. Extract them first")
        made = retrieval_of(
            features, self.material.retrieval, words=self.options.words, seed=self.options.seed, tell=self.tell
        )
        if missing := [name for name in self.names if name not in made]:
            self.notes.append(f"{len(missing)} images have no features and are not looked for: {_listed(missing)}")
        return made


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
