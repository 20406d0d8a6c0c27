"""Which pairs of photos to match, by any of the ways there are, and by more than one where one has holes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from isinglass.files import PathLike
from isinglass.files.lists import read_pairs_among
from isinglass.images.folder import LeftOut, Selection, pairs_left_out
from isinglass.names import is_file, printable
from isinglass.sfm.gps import positions
from isinglass.sfm.options import PairOptions
from isinglass.sfm.pairs import covisible, exhaustive, in_order, in_sequence, promising, sequential, spatial
from isinglass.sfm.progress import Tell
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.types import Matcher


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The pairs, in order of names; by which way; and what a person should know of it.

    left_out  pairs of a list whose photos were left out by choice
    problems  lines of a list that cannot be used, and names in it that are no photo, with the reason
    """

    pairs: list[Pair]
    how: str
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def choose_pairs(
    names: Sequence[str],
    photos: PathLike,
    options: PairOptions,
    retrieval: Callable[[], Retrieval],
    selection: Selection | None = None,
) -> Chosen:
    """Pairs of the images `names`, which are in the folder `photos`.

    retrieval  gives the retrieval with these images, where it is needed
    selection  by which other photos of the folder were left out

    Raises InputError where a list or model cannot be read.
    """
    how = options.how
    if how == "auto":
        how = "exhaustive" if len(names) <= options.exhaustive_up_to else "retrieval"
    notes: list[str] = []
    if how == "exhaustive":
        pairs = exhaustive(names)
    elif how == "sequential":
        taken = in_sequence(names)
        loops = []
        if options.loops and len(taken) > options.overlap:
            loops = retrieval().pairs(taken, options.loops, among=taken, apart=options.overlap)
        pairs = in_order(sequential(taken, options.overlap, loops=loops), names)
    elif how == "spatial":
        pairs = _spatial(names, photos, options, retrieval, notes)
    elif how == "retrieval":
        pairs = in_order(retrieval().pairs(names, options.neighbours, among=names), names)
    elif how == "file":
        return _listed(names, photos, options, selection or Selection())
    else:
        pairs = _covisible(names, options, notes)
    return Chosen(pairs=pairs, how=how, notes=notes)


def drop_hopeless(
    features: FeatureStore, chosen: Chosen, matcher: Matcher, tell: Tell = lambda done, of: None
) -> Chosen:
    """Those pairs that a first pass with few keypoints finds promising."""
    kept = promising(features, chosen.pairs, matcher, tell=tell)
    note = f"a first pass dropped {len(chosen.pairs) - len(kept)} of {len(chosen.pairs)} pairs"
    return replace(chosen, pairs=kept, notes=[*chosen.notes, note])


def _spatial(
    names: Sequence[str],
    photos: PathLike,
    options: PairOptions,
    retrieval: Callable[[], Retrieval],
    notes: list[str],
) -> list[Pair]:
    placed, without = positions(photos, names)
    pairs = spatial(placed, max_neighbours=options.neighbours, max_distance_m=options.max_distance_m)
    if not without:
        return in_order(pairs, names)
    first, why = next(iter(without.items()))
    notes.append(
        f"{len(without)} of {len(names)} photos have no position ({first}: {why}); they are paired by likeness"
    )
    return in_order([*pairs, *retrieval().pairs(sorted(without), options.neighbours, among=names)], names)


def _listed(names: Sequence[str], photos: PathLike, options: PairOptions, selection: Selection) -> Chosen:
    """Return the pairs of a file."""
    assert options.file is not None
    listed = read_pairs_among(
        options.file, names, photos, lambda name: selection.leaves_out(name) and is_file(Path(photos, name))
    )
    left_out = pairs_left_out(listed.left_out)
    return Chosen(
        pairs=in_order(listed.pairs, names),
        how="file",
        notes=list(map(str, left_out)),
        left_out=left_out,
        problems=listed.problems,
    )


def _covisible(names: Sequence[str], options: PairOptions, notes: list[str]) -> list[Pair]:
    """Return the pairs of a model; those of images that are not among `names` are left out."""
    pairs = covisible(options.model, neighbours=options.neighbours)
    known = set(names)
    kept = [pair for pair in pairs if known.issuperset(pair)]
    if len(kept) < len(pairs):
        others = sorted({printable(name) for pair in pairs for name in pair if name not in known})
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        dropped = len(pairs) - len(kept)
        notes.append(f"{dropped} of {len(pairs)} pairs of {str(options.model)!r} name other photos ({shown})")
    return in_order(kept, names)


def expected_pairs(count: int, options: PairOptions) -> int:
    """About how many pairs there will be of so many photos, before anything is known of them."""
    every = count * (count - 1) // 2
    if options.how == "exhaustive" or (options.how == "auto" and count <= options.exhaustive_up_to):
        return every
    each = options.overlap + options.loops if options.how == "sequential" else options.neighbours
    return min(every, count * each)
