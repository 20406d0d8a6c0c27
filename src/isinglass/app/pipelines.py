"""Models that stay loaded, few of them; and a pipeline that can be stopped between its steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.types import Extractor, Features, Matcher, Signature

Tell = Callable[[str], None]  # hears of each step before it is done, and may raise to stop there


class Pipelines:
    """The pipelines that were used last, at most `limit`. For one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._loaded: OrderedDict[Options, Pipeline] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loaded)

    def of(self, options: Options, tell: Tell) -> StoppablePipeline:
        """A pipeline of these options that tells of its steps; its models are loaded if need be.

        Raises what loading them raises: InputError, WeightsError, MissingExtra.
        """
        # models do not depend on these
        key = replace(options, resize=None, resize_side="long", rotation="none", stretch="auto")
        loading_ms = 0.0
        if key not in self._loaded:
            tell("loading models")
            while len(self._loaded) >= self.limit:
                self._loaded.popitem(last=False)
            self._loaded[key] = Pipeline(**asdict(key))
            loading_ms = self._loaded[key].timings_ms.get("load", 0.0)
        self._loaded.move_to_end(key)
        loaded = self._loaded[key]
        return StoppablePipeline(options, loaded.extractor, loaded.matcher, tell, loading_ms)


class StoppablePipeline(Pipeline):
    """A pipeline with models that are loaded already; before every step it calls `tell`, which may raise to stop it.

    Its timings begin with `loading_ms`, where the models were loaded for it.
    """

    def __init__(
        self, options: Options, extractor: Extractor, matcher: Matcher, tell: Tell, loading_ms: float = 0.0
    ) -> None:
        self._tell: Tell = lambda step: None
        self._set_up(options, _Told(extractor, tell), matcher)
        self._tell, self.loading_ms = tell, loading_ms

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """As in `Pipeline`, after telling of the stage."""
        self._tell(_STEPS.get(stage, stage))
        with super().timed(stage):
            yield


class _Told:
    """An extractor that tells before it extracts: also pipelines that others make of it can be stopped."""

    def __init__(self, extractor: Extractor, tell: Tell) -> None:
        self._extractor, self._tell = extractor, tell

    @property
    def signature(self) -> Signature:
        return self._extractor.signature

    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        self._tell("extracting")
        return self._extractor.extract(images, mask)

    def __getattr__(self, name: str) -> Any:  # bytes_per_pixel, where it has that
        return getattr(self._extractor, name)


_STEPS = {
    "read": "reading the photos",
    "extract": "extracting",
    "match": "matching",
    "geometry": "looking for a geometry",
}
