"""Where a photo was taken, in a map: the camera pose, or why there is none.

The images of the map that look like the query are matched with it in one batch, against features that stay in memory;
keypoints of theirs that see a point of the map give its place; PoseLib finds the pose that most matches agree on. Then
those images are matched that see the same points, and the pose is judged (`sfm.absolute_pose`): a query that fails has
no pose, and never that of another image.
"""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.images import ImageSource
from isinglass.options import Options, OptionsDict
from isinglass.pipeline import Pipeline, pipeline_of
from isinglass.sfm.extraction import extract_images, feature_settings
from isinglass.sfm.landmarks import NO_POINT, Ints, Landmarks
from isinglass.sfm.localised import Localised, LocaliseOptions
from isinglass.sfm.map_folder import find_map, options_of
from isinglass.sfm.query import Query, exif_camera, intrinsics
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore
from isinglass.types import Features

WITHIN_PX = 3.0  # of an observation of the model, for keypoints that the model was not made of
_ROUNDS = 3
_AREA_PX = 1024  # long side that WITHIN_PX is of


class Map:
    """A COLMAP model with features of its photos, in which queries are localised.

    landmarks  the model; pipeline: what makes features of queries, and matches
    retrieval  finds the images that look like a query; None = all images are matched
    problems   images of the model that cannot be used, and why
    name       of the model in answers: "model", "model/1"; "" where it has none
    others     maps of further models of the same photos, with frames of their own; all of them are tried
    rest       models of the same map that were not asked for, tried only to say that a photo fits them
    """

    def __init__(
        self,
        landmarks: Landmarks,
        features: FeatureStore,
        pipeline: Pipeline,
        retrieval: Retrieval | None = None,
        *,
        name: str = "",
    ) -> None:
        if pipeline.extractor.signature != features.signature:
            raise InputError(
                f"the map has features of {features.signature}, but the pipeline extracts "
                f"{pipeline.extractor.signature}. Choose the extractor that the map was made with"
            )
        self.landmarks, self.features, self.pipeline, self.retrieval = landmarks, features, pipeline, retrieval
        self.name = name
        self.others: list[Map] = []
        self.rest: list[Map] = []
        missing = "there are no features of it"
        self.problems = {name: missing for name in landmarks.names if name not in features}
        self._usable = [name for name in landmarks.names if name not in self.problems]
        if not self._usable:
            raise InputError(f"none of the {len(landmarks)} images of the model has features in {str(features.path)!r}")
        self._cache: OrderedDict[tuple[int, bool], tuple[Features, NDArray[np.int64]]] = OrderedDict()
        self._cached_bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, folder: PathLike, pipeline: Pipeline | None = None, **changed: Unpack[OptionsDict]) -> Map:
        """Open a map that `isinglass map` made; without a pipeline one of the options that it was made with.

        `folder` is that of the map, all of whose models are tried, or of one of its models ("map/model/1"). `changed`
        are options that are to be others; the device is the best there is unless it is given.

        Raises InputError where the folder holds no map, or one without a model.
        """
        place = find_map(folder)
        if not (place.root / "features.h5").is_file():
            raise InputError(f"{str(place.root)!r} has no 'features.h5'; expected a map that `isinglass map` made")
        if pipeline is None:
            options: dict[str, Any] = {**options_of(place.root), "device": None, **changed}
            pipeline = pipeline_of(Options.of(**options))
        file = place.root / "retrieval.npz"
        retrieval = Retrieval.load(file) if file.is_file() else None
        features = FeatureStore(place.root / "features.h5")
        maps: dict[Path, Map] = {}
        problems: dict[str, str] = {}
        for model in (*place.models, *place.rest):
            name = place.name_of(model)
            try:
                maps[model] = cls(Landmarks.read(model), features, pipeline, retrieval, name=name)
            except InputError as error:  # of one model alone, unless there is no other
                problems[name] = str(error)
        opened = [maps[model] for model in place.models if model in maps]
        if not opened:
            raise InputError("; ".join(problems.values()))
        first = opened[0]
        first.others, first.rest = opened[1:], [maps[model] for model in place.rest if model in maps]
        for other in opened[1:]:
            first.problems |= other.problems
        first.problems |= problems
        return first

    @classmethod
    def from_model(cls, model: Any, photos: PathLike, pipeline: Pipeline, *, features: PathLike | None = None) -> Map:
        """A map of any COLMAP model (a folder or a `pycolmap.Reconstruction`) and the photos it was made of.

        Points are given to the keypoints that lie on their observations: a model made of other features than the
        pipeline's has fewer points for them. `features` is the file that features are kept in, and taken from where
        it is there; None = a temporary one. Photos that cannot be used are in `problems`.

        Raises InputError where the model cannot be read or none of its photos can.
        """
        landmarks = Landmarks.read(model) if isinstance(model, str | Path) else Landmarks(model)
        folder = tempfile.TemporaryDirectory(prefix="isinglass-map-") if features is None else None
        path = Path(folder.name) / "features.h5" if folder is not None else Path(str(features))
        filled = extract_images(path, photos, landmarks.names, pipeline)
        store = FeatureStore(path, pipeline.extractor.signature, feature_settings(pipeline))
        made = cls(landmarks, store, pipeline)
        made.retrieval = Retrieval.learn(store).add(store)
        made.problems |= filled.problems
        made._folder = folder
        return made

    def localize(
        self, image: ImageSource | Features, *, camera: Any = None, options: LocaliseOptions | None = None
    ) -> Localised:
        """The pose of one image, or of its features; `camera`: its `pycolmap.Camera`, as in COLMAP's files.

        Not to be found is a result. Raises InputError for an image that cannot be read, or a camera of another size.
        """
        (found,) = self.localize_many([image], cameras=lambda _: camera, options=options)
        if not found.readable:
            raise InputError(found.reason)
        return found

    def localize_many(
        self,
        images: Iterable[ImageSource | Features],
        *,
        cameras: Callable[[str], Any] | Mapping[str, Any] | None = None,
        options: LocaliseOptions | None = None,
    ) -> Iterator[Localised]:
        """The poses of many images, in order; `cameras`: by name, which is the path; None = not known."""
        settings = options or LocaliseOptions()
        look_up = cameras if callable(cameras) else (cameras or {}).get
        batch: list[_Photo | Localised] = []
        for started in self._started(images, look_up):
            batch.append(started)
            if len(batch) >= settings.batch:
                yield from self._finished(batch, settings)
                batch = []
        yield from self._finished(batch, settings)

    # --- from images to queries

    def _started(
        self, images: Iterable[ImageSource | Features], look_up: Callable[[str], Any]
    ) -> Iterator[_Photo | Localised]:
        """Photos with features and what is known of their cameras; what cannot be used is a result at once."""
        clock = _Clock(self.pipeline)
        for number, (image, features) in enumerate(_extracted(self.pipeline, images)):
            name = str(image) if isinstance(image, str | Path) else f"image {number}"
            timings = clock.spent()
            try:
                if isinstance(features, InputError):
                    raise features
                yield _photo(name, image, features, look_up(name), timings)
            except InputError as error:
                yield Localised(name=name, success=False, readable=False, reason=str(error))
            clock.spent()

    def _query(self, photo: _Photo, settings: LocaliseOptions) -> Query:
        """The photo on its way to a pose in this model."""
        start = time.perf_counter()
        return Query(
            name=photo.name,
            features=photo.features.to(self.pipeline.device),
            intrinsics=intrinsics(photo.given, photo.exif, self.landmarks, photo.size),
            likely=self._likely(photo.features, settings.images),
            threshold_px=settings.threshold_px,
            timings_ms={
                **photo.timings_ms,
                "retrieve": (time.perf_counter() - start) * 1e3,
                "match": 0.0,
                "pose": 0.0,
            },
        )

    def _likely(self, features: Features, count: int) -> list[int]:
        place = self.landmarks.place
        among = self._usable
        if self.retrieval is None:
            return [place[name] for name in among]
        known = [name for name in among if name in self.retrieval]
        return [place[name] for name, _ in self.retrieval.query(features, _ROUNDS * count, among=known)]

    # --- from queries to poses

    def _finished(self, batch: Sequence[_Photo | Localised], settings: LocaliseOptions) -> Iterator[Localised]:
        """The best result of each photo among all models; a good one in a larger model ends the search."""
        photos = [photo for photo in batch if isinstance(photo, _Photo)]
        best: dict[int, Localised] = {}
        for mapped in (self, *self.others):
            left = [photo for photo in photos if not _is_good(best.get(id(photo)), settings)]
            for photo, result in zip(left, mapped._localized(left, settings), strict=True):
                best[id(photo)] = _better(best.get(id(photo)), result)
        for photo in batch:
            yield photo if isinstance(photo, Localised) else self._explained(photo, best[id(photo)], settings)

    def _explained(self, photo: _Photo, result: Localised, settings: LocaliseOptions) -> Localised:
        """The result; where it failed and another model of the map fits, that is the reason."""
        for mapped in () if result.success else self.rest:
            (elsewhere,) = mapped._localized([photo], settings)
            if elsewhere.success:
                why = f"the photo fits {mapped.name!r}, another model of this map: localize in the whole map"
                return replace(result, reason=f"{result.reason}; {why}")
        return result

    def _localized(self, photos: Sequence[_Photo], settings: LocaliseOptions) -> list[Localised]:
        """The results in this model alone."""
        queries = [self._query(photo, settings) for photo in photos]
        todo = queries
        for _ in range(_ROUNDS):
            todo = [query for query in todo if not _is_done(query, settings)]
            self._match(todo, settings)
        return [self._result(query) for query in queries]

    def _match(self, queries: Sequence[Query], settings: LocaliseOptions) -> None:
        """One round: all pairs of all queries in one batch, then a pose for each."""
        jobs: list[tuple[Query, int]] = []
        first = len(self.landmarks) if self.retrieval is None else settings.images
        for query in queries:
            wanted = query.next_images(self.landmarks, first, settings.neighbours)
            jobs += [(query, image) for image in wanted if self.landmarks.names[image] not in self.problems]
        if not jobs:
            return
        start = time.perf_counter()
        sides = [self._mapped(image, settings) for _, image in jobs]
        features1 = [features for features, _ in sides]
        found = self.pipeline.matcher.match_many([query.features for query, _ in jobs], features1)
        for (query, image), (_, rows_N), matches in zip(jobs, sides, found, strict=True):
            pairs_K2 = matches.pairs().cpu().numpy().astype(np.int64)
            rows_K = rows_N[pairs_K2[:, 1]]
            query.matched[image] = np.column_stack([pairs_K2[:, 0], rows_K])[rows_K != NO_POINT]
        each_ms = (time.perf_counter() - start) * 1e3 / len(jobs)
        for query in dict.fromkeys(query for query, _ in jobs):
            query.timings_ms["match"] += each_ms * sum(one is query for one, _ in jobs)
            start = time.perf_counter()
            query.solve(self.landmarks)
            query.timings_ms["pose"] += (time.perf_counter() - start) * 1e3

    def _mapped(self, image: int, settings: LocaliseOptions) -> tuple[Features, NDArray[np.int64]]:
        """The features of an image of the map, on the device, and the row of each keypoint's point (-1 = none)."""
        key = image, settings.points_only
        if key not in self._cache:
            features = self.features.get(self.landmarks.names[image])
            rows_N = self.points_of(image, features)
            if settings.points_only:
                kept = np.flatnonzero(rows_N != NO_POINT)
                features, rows_N = features.select(torch.from_numpy(kept)), rows_N[kept]
            self._cache[key] = features.to(self.pipeline.device), rows_N.astype(np.int64)
            self._cached_bytes += _bytes(self._cache[key][0])
        self._cache.move_to_end(key)
        while self._cached_bytes > settings.memory_mb * 1e6 and len(self._cache) > 1:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1][0])
        return self._cache[key]

    def points_of(self, image: int, features: Features) -> Ints:
        """(N,) which row of `landmarks.xyz` each keypoint of an image of the map sees, -1 = none."""
        scale = max(1.0, float(features.image_size.max()) / _AREA_PX)
        return self.landmarks.assigned(image, features.keypoints[0].double().cpu().numpy(), WITHIN_PX * scale)

    def _result(self, query: Query) -> Localised:
        pose = query.pose
        matches, inliers = query.counts()
        tried = len(query.matched)
        if not query.features.keypoints.shape[1]:
            reason = "the image has no keypoints: it may be of one colour, or black"
        elif pose is None or not matches:
            reason = f"no matches with points of the map in the {tried} images of it that are most alike"
        else:
            reason = pose.reason
        success = pose is not None and pose.cam_from_world is not None
        return Localised(
            name=query.name,
            success=success,
            model=self.name if success else "",
            reason="" if success else reason,
            cam_from_world=pose.cam_from_world if pose is not None else None,
            camera=query.intrinsics.camera if pose is None else pose.camera,
            camera_from=query.intrinsics.source if pose is None else query.source,
            num_matches=matches,
            num_inliers=inliers,
            images={self.landmarks.names[image]: count for image, count in query.inliers_by_image().items()},
            covariance=pose.covariance if pose is not None else None,
            timings_ms={stage: round(ms, 2) for stage, ms in query.timings_ms.items()},
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Photo:
    """A photo to localize: its features, and its camera as it was given or as its file has it (None = not known)."""

    name: str
    features: Features
    size: tuple[int, int]
    given: Any
    exif: Any
    timings_ms: dict[str, float]


def _photo(name: str, image: Any, features: Features, given: Any, timings_ms: dict[str, float]) -> _Photo:
    """Raises InputError for a camera of another size."""
    size = (int(features.image_size[0, 0]), int(features.image_size[0, 1]))
    if given is not None and (given.width, given.height) != size:
        raise InputError(
            f"the camera given for {name!r} is of {given.width} x {given.height} px, but the image has "
            f"{size[0]} x {size[1]}. Give one of the image's own size"
        )
    exif = exif_camera(Path(image), size) if given is None and isinstance(image, str | Path) else None
    return _Photo(name=name, features=features, size=size, given=given, exif=exif, timings_ms=timings_ms)


class _Clock:
    """What the pipeline's stages took since it was last asked."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.before = pipeline, dict(pipeline.timings_ms)

    def spent(self) -> dict[str, float]:
        """In ms, of reading and extracting."""
        now = dict(self.pipeline.timings_ms)
        spent = {stage: now.get(stage, 0.0) - self.before.get(stage, 0.0) for stage in ("read", "extract")}
        self.before = now
        return spent


def _extracted(
    pipeline: Pipeline, images: Iterable[ImageSource | Features]
) -> Iterator[tuple[Any, Features | InputError]]:
    """Each image with its features; those that are features already come as they are, in order."""
    waiting: deque[Any] = deque()

    def sources() -> Iterator[tuple[ImageSource, None]]:
        for image in images:
            waiting.append(image)
            if not isinstance(image, Features):
                yield image, None

    for features in pipeline.extract_each(sources()):
        while isinstance(waiting[0], Features):
            ready = waiting.popleft()
            yield ready, ready
        yield waiting.popleft(), features
    for ready in waiting:
        yield ready, ready


def _is_good(result: Localised | None, settings: LocaliseOptions) -> bool:
    """Whether no other model can be expected to be better."""
    return result is not None and result.success and result.num_inliers >= settings.enough


def _better(result: Localised | None, other: Localised) -> Localised:
    """The one of two results of a photo that has a pose; of equals the one of more inliers."""
    if result is None:
        return other
    if result.success or other.success:
        return max((result, other), key=lambda one: (one.success, one.num_inliers))
    return max((result, other), key=lambda one: one.num_inliers)


def _is_done(query: Query, settings: LocaliseOptions) -> bool:
    if not query.success:
        return False
    return query.rounds > 1 or (query.pose is not None and query.pose.num_inliers >= settings.enough)


def _bytes(features: Features) -> int:
    return features.descriptors.numel() * features.descriptors.element_size() + 8 * features.keypoints.numel()
