"""`isinglass pairs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import OUTPUT_FILE, PHOTOS, PRESENT, Command
from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    make_pipeline,
    options,
)
from isinglass.cli.maps import PAIR_OPTIONS, take_pair_options
from isinglass.cli.photos import FOLDER_OPTIONS, Photos

if TYPE_CHECKING:
    from isinglass.sfm.choice import Chosen
    from isinglass.sfm.options import PairOptions
    from isinglass.sfm.retrieval import Retrieval
    from isinglass.sfm.store import FeatureStore


def _needs(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the packages that the way of choosing needs."""
    how = "file" if params["file"] else "covisible" if params["model"] else params["how"]
    by_features = how not in ("exhaustive", "covisible", "file") or params["first_pass"] or params["source"].is_file()
    needs = {"h5py": "maps", "faiss": "maps"} if by_features else {}
    return needs | ({"pycolmap": "maps"} if how in ("spatial", "covisible") else {})


def _settings(context: click.Context) -> dict[str, Any]:
    """Return the options of the pipeline, whose matcher is used in a first pass alone."""
    params = dict(context.params)
    if not params["first_pass"]:
        for name in ("matcher", "ratio", "filter_threshold"):
            params.pop(name)
    elif params["source"].is_file():
        params["extractor"] = None  # that of the features
    return params


def _check_pairs(params: Mapping[str, Any]) -> None:
    """Raise InputError for ways of choosing that make no sense."""
    if take_pair_options(dict(params)).how == "spatial" and params["source"].is_file() and params["photos"] is None:
        raise click.UsageError("--pairs spatial reads GPS from photos: give their folder as --photos, too.")


@click.command(
    cls=Command, needs=_needs, pipeline=_settings, checks=[_check_pairs], short_help="Choose which images to match."
)
@click.argument("source", type=PRESENT)
@click.option("-o", "--output", type=OUTPUT_FILE, default=Path("pairs.txt"), show_default=True, help="List to write.")
@click.option("--photos", type=PHOTOS, help="Folder of the photos, where SOURCE is a store, for --pairs spatial.")
@click.option(
    "--words", type=click.IntRange(1), help="Words of the retrieval vocabulary.  [default: by the number of images]"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the retrieval vocabulary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@options(*PAIR_OPTIONS, *FOLDER_OPTIONS, *PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def pairs(
    source: Path,
    output: Path,
    photos: Path | None,
    words: int | None,
    seed: int,
    as_json: bool,
    **settings: Any,
) -> int:
    """Choose pairs of SOURCE, a folder of photos or a features.h5, and write two names per line.

    --pairs says how: exhaustive (all), sequential (neighbours in the order of names, and loops), spatial (GPS),
    retrieval (images that look alike), covisible (by a COLMAP model), file. Features, where a way needs them, and
    vectors of likeness are kept beside the list, and are there when the same command is given again.
    """
    from isinglass.sfm.choice import choose_pairs, drop_hopeless
    from isinglass.sfm.pairs import write_pairs

    chosen_by = take_pair_options(settings)
    images = _Images(source, output, settings)
    try:
        if photos is not None:
            images.photos = photos
        names = images.names(chosen_by)
        selection = images.listed.selection(images.photos) if images.photos.is_dir() else None
        chosen = choose_pairs(
            names, images.photos, chosen_by, lambda: images.retrieval(words=words, seed=seed), selection
        )
        if chosen_by.first_pass and chosen.pairs:
            chosen = drop_hopeless(images.opened(), chosen, images.matcher(), images.told("first pass"))
    finally:
        images.close()
    write_pairs(output, chosen.pairs)
    for name, why in ({**chosen.problems, **images.problems}).items():
        images.listed.fail(name, why)
    images.listed.left_out += map(asdict, chosen.left_out)
    _tell(chosen, names, images.listed.report(), output, as_json)
    return SOME_FAILED if images.listed.problems else OK


def _tell(chosen: Chosen, names: Sequence[str], report: dict[str, Any], output: Path, as_json: bool) -> None:
    every = len(names) * (len(names) - 1) // 2
    if as_json:
        found = {"images": len(names), "pairs": len(chosen.pairs), "of": every, "how": chosen.how}
        click.echo(json.dumps({**found, "notes": chosen.notes, **report, "output": str(output)}))
        return
    for note in chosen.notes:
        click.echo(note, err=True)
    share = f" ({100 * len(chosen.pairs) / every:.1f} % of all)" if every else ""
    click.echo(f"{len(chosen.pairs)} pairs of {len(names)} images by {chosen.how}{share} in {output}", err=True)


class _Images:
    """What the command's images are, and what is made of them when it is needed."""

    def __init__(self, source: Path, output: Path, settings: dict[str, Any]) -> None:
        self.source, self.listed, self.settings = source, Photos(settings), settings
        self.photos = source
        self.features_file = source if source.is_file() else output.with_name("features.h5")
        self.retrieval_file = output.with_name("retrieval.npz")
        self.problems: dict[str, str] = {}
        self.store: FeatureStore | None = None

    def names(self, chosen: PairOptions) -> list[str]:
        """Of all images that can be used; features are extracted where pairs are to be chosen by them."""
        if self.source.is_file():
            return list(self.opened())
        found = self.listed.names_in(self.source)
        from isinglass.sfm.extraction import extract_images

        if not self._needs_features(found, chosen):
            return found
        pipeline = make_pipeline({**self.settings, "matcher": "nearest"})
        filled = extract_images(self.features_file, self.source, found, pipeline, tell=self.told("extracting"))
        self.problems = filled.problems
        return [name for name in found if name not in filled.problems]

    def _needs_features(self, names: Sequence[str], chosen: PairOptions) -> bool:
        if chosen.how == "spatial" and not chosen.first_pass:
            from isinglass.sfm.gps import positions

            return bool(positions(self.photos, names)[1])
        by_likeness = chosen.how == "retrieval" or (chosen.how == "auto" and len(names) > chosen.exhaustive_up_to)
        return chosen.first_pass or by_likeness or (chosen.how == "sequential" and chosen.loops > 0)

    def opened(self) -> FeatureStore:
        """The features of the images."""
        from isinglass.sfm.store import FeatureStore

        if self.store is None:
            self.store = FeatureStore(self.features_file)
        return self.store

    def retrieval(self, *, words: int | None, seed: int) -> Retrieval:
        """Vectors of all images that have features."""
        from isinglass.sfm.retrieval import retrieval_of

        return retrieval_of(self.opened(), self.retrieval_file, words=words, seed=seed, tell=self.told("describing"))

    def matcher(self) -> Any:
        """That of the command's options, for these features."""
        return make_pipeline({**self.settings, "extractor": self.opened().signature.extractor}).matcher

    def told(self, stage: str) -> Any:
        """What shows how far a stage is, where a person is looking."""

        def tell(done: int, of: int) -> None:
            if sys.stderr.isatty():
                click.echo(f"\r{stage}: {done} of {of} ", nl=done >= of, err=True)

        return tell

    def close(self) -> None:
        """Let go of the store."""
        if self.store is not None:
            self.store.close()
