"""Extraction and matching as tasks on a Ray cluster: what `isinglass.sfm` does on one machine, with the same results.

The driver, the process that calls this, reads photos and features and writes the stores; the nodes compute. They need
this version of Isinglass and the weights (or a way to them), but no folder in common with the driver. A task whose
process or node dies is given to another, up to TRIES times; what came back is written by the driver, once. Tasks, not
actors: the next free place anywhere takes the next task, so a node may also come or go. A process keeps its models.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from isinglass.errors import InputError, IsinglassError, MissingExtra
from isinglass.files import PathLike
from isinglass.images import opened
from isinglass.kernels.attention import agree_on_kernel, kernel_name
from isinglass.kernels.threads import use_threads
from isinglass.options import Options
from isinglass.parts import Kind, refuse_custom
from isinglass.pipeline import Pipeline, pipeline_of
from isinglass.sfm.extraction import Extraction, Filled, Missing, feature_settings
from isinglass.sfm.matching import (
    Chunk,
    Found,
    Matched,
    MatchRun,
    keypoints_a_batch,
    match_chunk,
    matching_settings,
)
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, Pair
from isinglass.types import Features

TRIES = 3  # after the first
PHOTOS_A_TASK, PAIRS_A_TASK = 8, 64
ANSWERS_WITHIN_S = 10
WAITING_A_PLACE = 2  # tasks that are sent ahead, for each that runs


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to compute: a Ray cluster's address ("auto", "10.0.0.1:6379"), or "local" for one on this machine alone.

    threads  cores that one task takes; gpus: share of one that it takes, 0 = none
    """

    address: str
    threads: int = 1
    gpus: float = 0.0

    def connect(self) -> Any:
        """The module `ray`, connected. Raises MissingExtra without it, InputError where nobody answers."""
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray") from error
        if not ray.is_initialized():
            where: dict[str, Any] = {"address": self.address}
            if self.address == "local":
                where["include_dashboard"] = False
            try:
                host, _, port = self.address.rpartition(":")
                if host and port.isdigit():  # Ray itself tries for minutes
                    socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN_S).close()
                ray.init(**where, log_to_driver=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"no Ray cluster answers at {self.address!r} ({error}); expected host:port of one that `ray start "
                    "--head` began, or 'local'"
                ) from error
        return ray

    def places(self, ray: Any) -> int:
        """How many tasks can run at a time, as the cluster is now."""
        there = ray.cluster_resources()
        counts = [there.get("CPU", 0) // self.threads]
        if self.gpus:
            counts.append(there.get("GPU", 0) // self.gpus)
        return max(1, int(min(counts)))

    def check(self, pipeline: Pipeline, kinds: Collection[Kind] = ("extractor", "matcher")) -> None:
        """Raise InputError if the pipeline is none that a node could build of its options."""
        refuse_custom(pipeline, "the pipelines of Ray's nodes", "Compute here, without a cluster", kinds)

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
        """As `sfm.extraction.extract_images`, with the options of the pipeline."""
        self.check(pipeline, ("extractor",))
        ray = self.connect()
        with FeatureStore(store_path, pipeline.extractor.signature, feature_settings(pipeline)) as store:
            run = Extraction(store, Path(photos), masks, names, tell)
            try:
                for sent, found in self._run(ray, _extract, _photos(run), pipeline):
                    for one, features in zip(sent, itertools.repeat(found) if _failed(found) else found, strict=False):
                        run.finish(one, features)
            finally:
                run.write()
            store.merge()
        return run.filled()

    def match(
        self,
        features: FeatureStore,
        pairs: Sequence[Pair],
        matches_path: PathLike,
        pipeline: Pipeline,
        *,
        tell: Tell = lambda done, of: None,
    ) -> Matched:
        """As `sfm.matching.match_stored`, with the matcher of the pipeline's options."""
        self.check(pipeline, ("matcher",))
        ray = self.connect()
        settings, limits = matching_settings(pipeline, features), (keypoints_a_batch(pipeline.matcher), None)
        with MatchRun(
            features, pairs, matches_path, settings=settings, limits=limits, chunk_pairs=PAIRS_A_TASK, tell=tell
        ) as run:
            contents = ((chunk, (chunk, {name: _view(features, name) for name in chunk.names})) for chunk in run.chunks)
            for chunk, found in self._run(ray, _match, contents, pipeline):
                for one in [({}, dict.fromkeys(chunk.pairs, str(found)))] if _failed(found) else found:
                    run.take(one)
        return run.result

    def _run(
        self, ray: Any, function: Any, chunks: Iterator[tuple[Any, Any]], pipeline: Pipeline
    ) -> Iterator[tuple[Any, Any]]:
        """(label, what came of it) of each chunk (label, content), as they are done; content is sent to the nodes.

        What came is an InputError where all tries died. Raises what a node raises of itself: no weights, say.
        """
        task = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=TRIES)(function)
        kernel = kernel_name(getattr(pipeline.matcher, "compute_dtype", torch.float32))
        order = Order(pipeline.options, self.threads, kernel, version("isinglass"))
        running: dict[Any, Any] = {}
        more = True
        while more or running:
            while more and len(running) < WAITING_A_PLACE * self.places(ray):
                label, content = next(chunks, (None, None))
                more = label is not None
                if more:
                    running[task.remote(content, order)] = label
            if running:
                done, _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done[0]), _result(ray, done[0])


class Order(NamedTuple):
    """How a node is to compute, beside what."""

    options: Options
    threads: int
    kernel: str  # of attention on CPUs: two kernels round otherwise
    version: str


# ---- on the driver


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, IsinglassError) and not isinstance(cause, InputError):
            raise cause from error  # of the node, not of what it was given: all others would end so, too
        return cause if isinstance(cause, IsinglassError) else InputError(f"a task failed: {cause}")
    except ray.exceptions.RayError as error:
        return InputError(f"{TRIES + 1} processes that tried it died, the last so: {str(error).splitlines()[0]}")


def _failed(found: Any) -> bool:
    return isinstance(found, InputError)


def _photos(run: Extraction) -> Iterator[tuple[list[Missing], list[tuple[bytes, bytes | None]]]]:
    """Photos that are to be extracted, and their files' contents."""
    missing = run.missing()
    while some := list(itertools.islice(missing, PHOTOS_A_TASK)):
        yield some, [(one.photo.read_bytes(), None if one.mask is None else one.mask.read_bytes()) for one in some]


def _view(features: FeatureStore, name: str) -> Features | InputError:
    try:
        return features.get(name)
    except InputError as error:
        return error


# ---- on a node


def _extract(photos: list[tuple[bytes, bytes | None]], order: Order) -> list[Features | InputError]:
    pipeline = _prepared(order)

    def one(photo: bytes, mask: bytes | None) -> Features | InputError:
        try:
            with opened(photo) as image, nullcontext() if mask is None else opened(mask) as shown:
                return pipeline.extract(image, shown).to("cpu")
        except InputError as error:
            return error

    return [one(*content) for content in photos]


def _match(content: tuple[Chunk, Mapping[str, Features | InputError]], order: Order) -> list[Found]:
    chunk, views = content
    pipeline = _prepared(order)

    def view(name: str) -> Features:
        one = views[name]
        if isinstance(one, InputError):
            raise one
        return one.to(pipeline.device)

    return list(match_chunk(view, chunk, pipeline.matcher))


def _prepared(order: Order) -> Pipeline:
    if version("isinglass") != order.version:
        raise IsinglassError(f"a node has isinglass {version('isinglass')}, expected {order.version} as on the driver")
    use_threads(order.threads)
    agree_on_kernel(order.kernel)
    return pipeline_of(order.options)
