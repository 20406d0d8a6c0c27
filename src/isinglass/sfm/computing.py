"""Who extracts and matches for a map: this process, several of this machine, or somebody else, such as a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isinglass.files import PathLike
from isinglass.parts import refuse_custom
from isinglass.pipeline import Pipeline
from isinglass.sfm.extraction import Filled, extract_images
from isinglass.sfm.matching import Matched, match_stored, matching_settings
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.sfm.workers import match_with_workers


class Computing(Protocol):
    """The two stages that take long. Whoever does them, the stores are the same.

    One may have `check(pipeline)`, which raises InputError if it cannot use that pipeline; maps call that first.
    """

    def extract(
        self,
        store_path: PathLike,
        photos: PathLike,
        names: Sequence[str],
        pipeline: Pipeline,
        *,
        masks: Path | None,
        tell: Tell,
    ) -> Filled:
        """As `extraction.extract_images`."""
        ...

    def match(
        self,
        features: FeatureStore,
        pairs: Sequence[Pair],
        matches_path: PathLike,
        pipeline: Pipeline,
        *,
        tell: Tell,
    ) -> Matched:
        """As `matching.match_stored`, with the pipeline's matcher."""
        ...


@dataclass(frozen=True, kw_only=True)
class Here:
    """This process; with more than one of `workers` they match, and hold `memory_mb` MB of features together."""

    workers: int = 1
    memory_mb: int = 1000

    def check(self, pipeline: Pipeline) -> None:
        """Raise InputError if there are several workers and the matcher is none that they could load."""
        if self.workers > 1:
            refuse_custom(pipeline, "the matchers of worker processes", "Match with workers=1", ("matcher",))

    def extract(
        self,
        store_path: PathLike,
        photos: PathLike,
        names: Sequence[str],
        pipeline: Pipeline,
        *,
        masks: Path | None = None,
        tell: Tell = lambda done, of: None,
    ) -> Filled:
        """See `Computing`."""
        return extract_images(store_path, photos, names, pipeline, masks=masks, tell=tell)

    def match(
        self,
        features: FeatureStore,
        pairs: Sequence[Pair],
        matches_path: PathLike,
        pipeline: Pipeline,
        *,
        tell: Tell = lambda done, of: None,
    ) -> Matched:
        """See `Computing`."""
        self.check(pipeline)
        if self.workers > 1:
            return match_with_workers(
                features.path,
                pairs,
                matches_path,
                pipeline.options,
                workers=self.workers,
                memory_mb=self.memory_mb,
                tell=tell,
            )
        return match_stored(
            features,
            pairs,
            matches_path,
            pipeline.matcher,
            settings=matching_settings(pipeline, features),
            memory_mb=self.memory_mb,
            tell=tell,
        )
