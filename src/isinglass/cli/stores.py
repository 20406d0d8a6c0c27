"""`isinglass match-many`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import OUTPUT_FILE, PAIR_LIST, PRESENT, Command
from isinglass.cli.common import (
    CLUSTER_OPTIONS,
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    WORKER_OPTIONS,
    check_cluster,
    complain,
    options,
    pipeline_options,
    take_computing,
)
from isinglass.cli.photos import FOLDER_OPTIONS, MASKS_HELP, Photos
from isinglass.errors import InputError

if TYPE_CHECKING:
    from isinglass.sfm.computing import Computing
    from isinglass.sfm.extraction import Filled
    from isinglass.sfm.matching import Matched
    from isinglass.sfm.store import Pair


def _settings(context: click.Context) -> dict[str, Any]:
    """Return the options of the pipeline; the extractor of features that are there is theirs."""
    return {**context.params, "extractor": None} if context.params["source"].is_file() else dict(context.params)


def _check_match_many(params: Mapping[str, Any]) -> None:
    """Raise InputError for a list of pairs that cannot be read, and options that do not go together."""
    if params["rotation"] == "auto":
        raise InputError("--rotation auto matches each pair four times, which match-many does not; choose exif or none")
    if params["pairs"] != "all":
        PAIR_LIST.convert(params["pairs"], None, None)
    if params["source"].is_file() and params["masks"] is not None:
        raise click.UsageError("--masks is for a folder of photos; the features of SOURCE are there already.")


@click.command(
    "match-many",
    cls=Command,
    needs=lambda params: {"h5py": "maps"} | ({} if params["address"] is None else {"ray": "ray"}),
    pipeline=_settings,
    checks=[check_cluster, _check_match_many],
    short_help="Match many pairs of photos into one file.",
)
@click.argument("source", type=PRESENT)
@click.argument("pairs")
@click.option(
    "-o", "--output", type=OUTPUT_FILE, default=Path("matches.h5"), show_default=True, help="File of the matches."
)
@click.option("--masks", type=PRESENT, help=MASKS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@options(*WORKER_OPTIONS, *CLUSTER_OPTIONS, *FOLDER_OPTIONS, *PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def match_many(
    source: Path,
    pairs: str,
    output: Path,
    masks: Path | None,
    workers: int,
    cache_mb: int,
    as_json: bool,
    **settings: Any,
) -> int:
    """Match PAIRS of SOURCE: a folder of photos, whose features.h5 is made beside the output, or a features.h5.

    PAIRS is a text file of two names per line, such as `isinglass pairs` writes, or "all". The files are as those of
    hloc. A run that was stopped goes on where it was when the same command is given again.
    """
    photos = Photos(settings, masks)
    computing = take_computing(settings, workers=workers, memory_mb=cache_mb)
    store, filled = source, None
    if not source.is_file():
        store = output.with_name("features.h5")
        filled = _extracted(source, store, photos, settings, computing)
    else:
        _check_extractor(source, settings["extractor"])
    result = _matched(store, lambda names: _pairs(pairs, names, photos, source), output, settings, computing)
    for pair, why in result.problems.items():
        if not set(pair) & set(photos.problems):  # a photo that cannot be used is named once
            photos.fail(" ".join(pair), why)
    if as_json:
        told: dict[str, Any] = {"made": result.made, "reused": result.reused, "failed": len(result.problems)}
        images = None if filled is None else {"made": filled.made, "reused": filled.reused}
        told |= {"seconds": result.seconds, "images": images, **photos.report(), "output": str(output)}
        click.echo(json.dumps(told))
    else:
        rate = f" ({result.made / result.seconds:.1f} a second)" if result.made else ""
        click.echo(f"{result.made} pairs matched{rate}, {result.reused} were there; {output}", err=True)
    return SOME_FAILED if photos.problems else OK


def _check_extractor(store: Path, extractor: str) -> None:
    """Raises InputError where another extractor was asked for than the one that made the features."""
    from isinglass.sfm.store import FeatureStore
    from isinglass.weights.names import extractor_weights

    given = click.get_current_context().get_parameter_source("extractor") is click.core.ParameterSource.COMMANDLINE
    with FeatureStore(store) as features:
        made_by = features.signature.extractor
    if given and made_by not in (extractor, extractor_weights(extractor)):
        raise InputError(
            f"{str(store)!r} has features of {made_by!r}, and --extractor is {extractor!r}. Leave --extractor out, or "
            "give the photos and another --output"
        )


def _extracted(source: Path, store: Path, photos: Photos, settings: dict[str, Any], computing: Computing) -> Filled:
    names = photos.names_in(source)
    photos.found_masks()
    from isinglass.pipeline import Pipeline

    values = pipeline_options(settings)
    values |= {"matcher": "nearest", "filter_threshold": None, "ratio": None}  # it only extracts
    with _shown("extracting") as tell:
        filled = computing.extract(store, source, names, Pipeline(**values), masks=photos.masks, tell=tell)
    for name, why in filled.problems.items():
        photos.fail(name, why)
    return filled


def _matched(
    store: Path,
    pairs_of: Callable[[list[str]], list[Pair]],
    output: Path,
    settings: dict[str, Any],
    computing: Computing,
) -> Matched:
    from isinglass.pipeline import Pipeline
    from isinglass.sfm.store import FeatureStore

    with FeatureStore(store) as features:
        for problem in features.problems.values():
            complain(problem, SOME_FAILED)
        values = pipeline_options(settings)
        values["extractor"] = features.signature.extractor
        pipeline = Pipeline(**values)
        with _shown("matching") as tell:
            return computing.match(features, pairs_of(list(features)), output, pipeline, tell=tell)


def _pairs(pairs: str, names: list[str], photos: Photos, source: Path) -> list[Pair]:
    from isinglass.sfm.pairs import exhaustive, in_order

    if pairs == "all":
        return exhaustive(names)
    return in_order(photos.pairs_among(Path(pairs), names, source if source.is_dir() else None), names)


@contextmanager
def _shown(label: str) -> Iterator[Callable[[int, int], None]]:
    """What to tell how much is done: a bar with the time that is left, on stderr where a person is looking."""
    bars: list[Any] = []

    def tell(done: int, of: int) -> None:
        if of and sys.stderr.isatty():
            if not bars:
                bars.append(click.progressbar(length=of, label=label, show_pos=True, file=sys.stderr))
            bars[0].update(done - bars[0].pos)

    yield tell
    if bars:
        bars[0].render_finish()
