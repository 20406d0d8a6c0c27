"""Images -> Features -> Matches: the models, and everything around them that turns photos into their input.

`match("a.jpg", "b.jpg")` does the right thing with no options. A `Pipeline` is the same with the models kept, for many
images: features are extracted once per image, and pairs are matched in batches.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Literal, Unpack

import torch

from isinglass.devices import find_device
from isinglass.errors import InputError
from isinglass.images import (
    ImageSource,
    View,
    features_to_original,
    mirrored,
    read_image,
    read_mask,
    read_photo,
    resized,
    tiles,
    turned,
    upright,
    whole,
)
from isinglass.kernels.keypoints import distinct
from isinglass.kernels.linear import compute_dtype
from isinglass.models import load_extractor, load_matcher, tile_side
from isinglass.options import Options, OptionsDict
from isinglass.result import MatchResult
from isinglass.types import Extractor, Features, Matcher, Matches
from isinglass.weights.names import extractor_weights

CHEAP_KEYPOINTS = 512  # of the pass that chooses among four turns
ONE_COLOUR = 1e-5  # greatest contrast of an image without any; resizing leaves some rounding


def as_seen(image: ImageSource, turns: int) -> View:
    """Return the whole image, turned as an extractor saw it; `turns` as in Features. Raises InputError on a bad one."""
    view = whole(read_image(image))
    return turned(mirrored(view) if turns >= 4 else view, turns % 4)


class Pipeline:
    """The models of some `Options`, loaded once. Options are fields of `Options`; unknown ones are an InputError.

    A `custom_extractor` or `custom_matcher` stands in place of what the option names. The matchers "lightglue" and
    "superglue" are then those for the features of the custom extractor, by its signature.

    Threads may share a pipeline: what a call computes, and its timings, are its own.
    """

    def __init__(
        self,
        *,
        custom_extractor: Extractor | None = None,
        custom_matcher: Matcher | None = None,
        **options: Unpack[OptionsDict],
    ) -> None:
        wanted = Options.of(**options)
        if custom_extractor is not None:
            name = _name_of(custom_extractor, "extractor")
            if custom_matcher is None and "extractor" in options and name != extractor_weights(wanted.extractor):
                raise InputError(
                    f"extractor is {wanted.extractor!r}, but custom_extractor makes features of {name!r}; expected one "
                    "of them. Leave extractor out"
                )
            wanted = wanted if "extractor" in options else replace(wanted, extractor=name)
        if custom_matcher is not None:
            _name_of(custom_matcher, "matcher")
        self._set_up(wanted, custom_extractor, custom_matcher)

    @classmethod
    def of_models(cls, options: Options, extractor: Extractor, matcher: Matcher) -> Pipeline:
        """Return a pipeline of models that are loaded already, whatever the options call them."""
        pipeline = cls.__new__(cls)
        Pipeline._set_up(pipeline, options, extractor, matcher)
        return pipeline

    def _set_up(self, options: Options, extractor: Extractor | None, matcher: Matcher | None) -> None:
        self.options, self._mine = options, _Mine()
        self.device = find_device(options.device)
        compute_dtype(options.precision, self.device)  # raises before anything is loaded
        with self.timed("load"):
            self.extractor = load_extractor(options, self.device) if extractor is None else extractor
            self.matcher = load_matcher(options, self.device) if matcher is None else matcher
        self.tile = tile_side(options, self.extractor)

    @property
    def timings_ms(self) -> dict[str, float]:
        """What the stages took since the last `match` of this thread, in ms; every thread has its own."""
        return self._mine.timings_ms

    @timings_ms.setter
    def timings_ms(self, value: dict[str, float]) -> None:
        """Begin anew, with these."""
        self._mine.timings_ms = value

    def extract(self, image: ImageSource, mask: ImageSource | None = None) -> Features:
        """Features of one image, in its original pixels, wherever the image was resized, turned or tiled."""
        return self.extract_turns(image, mask, turns=(0,))[0]

    def extract_turns(
        self, image: ImageSource, mask: ImageSource | None = None, *, turns: Sequence[int] = (0, 1, 2, 3)
    ) -> list[Features]:
        """Features of one image under each number of quarter turns, all in its original pixels."""
        with self.timed("read"):
            view = self._read(image, mask)
        return self._extract_turns(view, turns)

    def extract_many(self, images: Iterable[ImageSource]) -> Iterator[Features]:
        """Features of many images, in order; while one is extracted, the next is decoded and resized beside it.

        Raises InputError where it comes to an image that cannot be read.
        """
        for found in self.extract_each((image, None) for image in images):
            if isinstance(found, InputError):
                raise found
            yield found

    def extract_each(self, images: Iterable[tuple[ImageSource, ImageSource | None]]) -> Iterator[Features | InputError]:
        """Likewise of images with masks, None = no mask; the error in place of what cannot be read."""
        with ThreadPoolExecutor(1) as reader:
            ahead: deque[Future[View]] = deque()
            for image, mask in images:
                ahead.append(reader.submit(self._read, image, mask))
                if len(ahead) > 1:
                    yield self._extract_timed(ahead.popleft())
            while ahead:
                yield self._extract_timed(ahead.popleft())

    def match(
        self,
        image0: ImageSource,
        image1: ImageSource,
        *,
        mask0: ImageSource | None = None,
        mask1: ImageSource | None = None,
    ) -> MatchResult:
        """Matches of two images. Masks keep keypoints where they are not zero. Raises InputError on bad images."""
        self.timings_ms = {}
        with self.timed("read"), ThreadPoolExecutor(2) as readers:
            view0, view1 = readers.map(self._read, (image0, image1), (mask0, mask1))
        (features0,), candidates = self._extract_turns(view0, (0,)), self._extract_turns(view1, self.turns)
        notes = tuple(f"image {i}: {note}" for i, view in enumerate((view0, view1)) for note in view.notes)
        return replace(self.match_features([features0], [candidates])[0], notes=notes)

    def match_many(self, features0: Sequence[Features], features1: Sequence[Features]) -> list[Matches]:
        """Matches of many pairs of features, each as `extract` gives them, in ragged batches."""
        return [result.matches for result in self.match_features(features0, [[one] for one in features1])]

    def match_features(
        self, features0: Sequence[Features], candidates1: Sequence[Sequence[Features]]
    ) -> list[MatchResult]:
        """Matches of many pairs in ragged batches; the second views as `extract_turns` gives them, of `turns` turns.

        `timings_ms` of the results hold what this pipeline did since its last `match`.
        """
        if len(features0) != len(candidates1):
            raise InputError(
                f"{len(features0)} features for view 0 and {len(candidates1)} for view 1; expected as many"
            )
        with self.timed("match"):
            views0 = [one.to(self.device) for one in features0]
            views1 = [self._best_turn(*pair) for pair in zip(views0, candidates1, strict=True)]
            matches = self.matcher.match_many(views0, views1)
        return [
            MatchResult(
                features0=view0,
                features1=view1,
                matches=found,
                timings_ms=dict(self.timings_ms),
                options=self.options,
            )
            for view0, view1, found in zip(views0, views1, matches, strict=True)
        ]

    @property
    def num_layers(self) -> int | None:
        """Of the matcher; None = it has none."""
        layers = getattr(getattr(self.matcher, "config", None), "layers", None)
        return layers if isinstance(layers, int) else None

    @property
    def turns(self) -> tuple[int, ...]:
        """The quarter turns of a second view that are tried."""
        return (0, 1, 2, 3) if self.options.rotation == "auto" else (0,)

    # --- from an image to features

    def _read(self, image: ImageSource, mask: ImageSource | None) -> View:
        photo = read_photo(image, stretch=self.options.stretch)
        keep = None if mask is None else read_mask(mask, (photo.image.shape[2], photo.image.shape[1]))
        if photo.valid is not None:
            keep = photo.valid if keep is None else keep & photo.valid
        view = replace(whole(photo.image, keep), notes=photo.notes)
        if self.options.rotation != "none":
            view = upright(view, photo.orientation)
        long_side = self.options.resize
        if long_side is not None and self.options.resize_side == "short":
            long_side = round(long_side * max(view.size) / min(view.size))
        return resized(view, long_side)

    def _extract_turns(self, view: View, turns: Sequence[int]) -> list[Features]:
        with self.timed("extract"):
            return [self._extract(turned(view, turn)) for turn in turns]

    def _extract_timed(self, reading: Future[View]) -> Features | InputError:
        try:
            with self.timed("read"):  # as far as it was waited for
                view = reading.result()
            with self.timed("extract"):
                return self._extract(view)
        except InputError as error:
            return error

    def _extract(self, view: View) -> Features:
        """All tiles' features in original pixels, without near-duplicates, the best `max_keypoints`."""
        cut = self.tile is not None and max(view.size) > self.tile
        parts = tiles(view, self.tile, self.options.tile_overlap) if cut and self.tile else [view]
        found = [features_to_original(part, self._extract_part(part)) for part in parts]
        features = found[0] if len(found) == 1 else _joined(found)
        scale = float(torch.linalg.det(view.to_original[:, :2]).abs().sqrt())  # original px of one px of the view
        kept = distinct(features.keypoints[0], features.scores[0], self.options.min_distance * scale)
        if len(kept) < features.keypoints.shape[1]:
            features = features.select(kept)
        limit = self.options.max_keypoints
        if limit is not None and features.keypoints.shape[1] > limit:
            features = features.top(limit)
        return features

    def _extract_part(self, view: View) -> Features:
        images_BCHW = view.image[None].to(self.device)
        mask_BHW = None if view.mask is None else view.mask[None].to(self.device)
        contrast = view.image.amax(dim=(1, 2)) - view.image.amin(dim=(1, 2))
        if bool((contrast < ONE_COLOUR).all()):  # networks still answer to their own padding
            mask_BHW = torch.zeros_like(images_BCHW[:, 0], dtype=torch.bool)
        return self.extractor.extract(images_BCHW, mask_BHW)[0]

    def _best_turn(self, features0: Features, candidates: Sequence[Features]) -> Features:
        """Of one image's features under several turns those with most matches in a cheap pass; ties: the first."""
        candidates = [one.to(self.device) for one in candidates]
        if len(candidates) == 1:
            return candidates[0]
        few0 = features0.top(CHEAP_KEYPOINTS)
        few1 = [one.top(CHEAP_KEYPOINTS) for one in candidates]
        counts = [len(one.pairs()) for one in self.matcher.match_many([few0] * len(few1), few1)]
        return candidates[counts.index(max(counts))]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what is within to `timings_ms[stage]`."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        elapsed_ms = (time.perf_counter() - start) * 1e3
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + elapsed_ms


def match(image0: ImageSource, image1: ImageSource, **options: Unpack[OptionsDict]) -> MatchResult:
    """Match two photos: paths, PIL images, arrays or tensors; options are the fields of `Options`.

    The models stay loaded for the next call with the same options. Points are (x, y) px of the original images,
    (0, 0) = centre of the top-left pixel. No match is a result, with M = 0. Raises InputError on images or options that
    cannot be used, WeightsError where weights cannot be had.
    """
    return pipeline_of(Options.of(**options)).match(image0, image1)


def extract(image: ImageSource, **options: Unpack[OptionsDict]) -> Features:
    """Features of one photo, in its original pixels; options as for `match`."""
    return pipeline_of(Options.of(**options)).extract(image)


def pipeline_of(options: Options) -> Pipeline:
    """Return the pipeline of these options; this process keeps the two that it used last.

    Threads that ask at once get the same one, loaded once.
    """
    with _loading:
        return _kept_pipeline(options)


@functools.lru_cache(maxsize=2)
def _kept_pipeline(options: Options) -> Pipeline:
    return Pipeline(**{one.name: getattr(options, one.name) for one in fields(options)})


_loading = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not wait for a thread that only its parent has
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


class _Mine(threading.local):
    """What a thread has of its own in a pipeline; a copy of the pipeline begins with nothing."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    def __reduce__(self) -> tuple[type[_Mine], tuple[()]]:
        return _Mine, ()


def _name_of(part: Any, kind: Literal["extractor", "matcher"]) -> str:
    """Return the name that a custom part gives itself. Raises InputError where it is no such part."""
    named = (part.signature, "extractor") if hasattr(part, "signature") and kind == "extractor" else (part, "name")
    name = getattr(*named, None)
    if not isinstance(name, str):
        has = "a signature and extract()" if kind == "extractor" else "a name and match_many()"
        raise InputError(f"custom_{kind} is a {type(part).__name__}; expected an object with {has}, as in types.py")
    return name


def _joined(parts: Sequence[Features]) -> Features:
    """The keypoints of several parts of one image as one set."""
    names = ("keypoints", "descriptors", "scores", "scales", "orientations")
    present = [name for name in names if getattr(parts[0], name) is not None]
    return replace(parts[0], **{name: torch.cat([getattr(one, name) for one in parts], dim=1) for name in present})
