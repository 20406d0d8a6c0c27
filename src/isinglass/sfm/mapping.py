"""From a folder of photos to a map, in stages that are each done once.

The folder of a map:
    features.h5, matches.h5   see `store`
    retrieval.npz             see `retrieval`
    pairs.txt                 what was matched
    database.db               COLMAP's, with verified matches
    model/                    the largest model; model/1, model/2, ... are others, of photos that it does not hold
    map.json                  where the photos are, all options, the summary
    index.html                the summary with pictures
    stages/                   a file for each stage that is finished
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from isinglass.errors import InputError
from isinglass.files import PathLike, read_if_whole, write_signed_json
from isinglass.images.folder import LeftOut, list_photos
from isinglass.images.masks import find_masks
from isinglass.options import Options
from isinglass.parts import custom_parts
from isinglass.pipeline import Pipeline
from isinglass.pipeline import pipeline_of as pipeline_of_options
from isinglass.sfm.alignment import keep_frame
from isinglass.sfm.cameras import find_cameras
from isinglass.sfm.choice import choose_pairs, drop_hopeless
from isinglass.sfm.colmap import MADE, VERIFIED, contents_of, remove_database, write_database
from isinglass.sfm.colmap_log import distinct, listen
from isinglass.sfm.computing import Computing, Here
from isinglass.sfm.extraction import feature_settings
from isinglass.sfm.focal import LEAST_PLACED, copy_without_priors, explain_false_priors, priors_in, priors_of
from isinglass.sfm.map_folder import SCHEMA, is_model, options_of
from isinglass.sfm.matching import matching_settings
from isinglass.sfm.notes import group_notes, photo_notes
from isinglass.sfm.options import MapOptions, check_rotation
from isinglass.sfm.page import write_map_page
from isinglass.sfm.pairs import read_pairs, write_pairs
from isinglass.sfm.reconstruct import read_model, reconstruct, report_of
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.stages import Stages, key_of
from isinglass.sfm.store import FeatureStore, MatchStore, Pair
from isinglass.sfm.summary import MapSummary, why_no_model
from isinglass.sfm.turns import explain_turned, find_turned
from isinglass.sfm.verification import verify

Tell = Callable[[str, int, int], None]  # stage, done, of
_WITHOUT_PRIORS = ".without-priors"  # folder of a second try
STAGES = ("extract", "retrieval", "pairs", "match", "database", "verify", "reconstruct", "page")


def make_map(
    photos: PathLike,
    folder: PathLike,
    pipeline: Pipeline,
    options: MapOptions | None = None,
    *,
    computing: Computing | None = None,
    tell: Tell = lambda stage, done, of: None,
) -> MapSummary:
    """Make a map of all photos in and below a folder, or go on where a run that was stopped left it.

    computing  who extracts and matches, such as a cluster; None = this process, and its `workers`
    tell       hears of every stage's progress

    Photos that cannot be read are left out and named in the summary; no model is a result, with the reason. Raises
    InputError where there are no photos, for options that make no sense, and for a folder of a map of other options;
    WriteError where it cannot be written, MissingExtra without h5py, faiss or pycolmap. What was finished stays.
    """
    check_rotation(pipeline.options.rotation)
    options = options or MapOptions()
    computing = computing or Here(workers=options.workers, memory_mb=options.memory_mb)
    if check := getattr(computing, "check", None):
        check(pipeline)
    return _Making(Path(photos), Path(folder), pipeline, options, tell).run(computing)


def pipeline_of(folder: PathLike) -> Pipeline:
    """The pipeline of the options that a map was made with. Raises InputError where there is no map."""
    return pipeline_of_options(Options.of(**options_of(folder)))


class _Making:
    """One run."""

    def __init__(self, photos: Path, folder: Path, pipeline: Pipeline, options: MapOptions, tell: Tell) -> None:
        self.photos, self.folder, self.pipeline, self.options, self.tell = photos, folder, pipeline, options, tell
        self.listing = list_photos(photos, replace(options.selection, masks=options.masks))
        self.names = self.listing.names
        self.masks = find_masks(options.masks, self.names, photos)
        self.stages = Stages(folder / "stages")
        self.problems: dict[str, str] = {}
        self.notes = [*self.listing.notes, *self.masks.notes]
        self.left_out = list(self.listing.left_out)
        self.heard: list[str] = []  # of COLMAP
        self.frame = ""
        self.usable: list[str] = []  # of names, those that have features
        self.features_key = ""
        self.custom = custom_parts(pipeline)
        self._limits = {"max_error_px": options.max_error_px, "least_inliers": options.least_inliers}

    def run(self, computing: Computing) -> MapSummary:
        """All stages."""
        self._check_same_photos()
        self._tell_map(None)
        self.extract(computing)
        with_retrieval = self.retrieval()
        pairs = self.pairs(with_retrieval)
        matched = self.match(pairs, computing)
        database = self.database(pairs, matched)
        self.verify(database)
        made = self.reconstruct(database)
        summary = MapSummary(
            photos=len(self.names) + len(self.listing.problems),
            left_out=self.left_out,
            problems=self.problems,
            notes=self.notes,
            colmap=distinct(self.heard),
            frame=self.frame,
            pairs=len(pairs),
            matched=database["pairs"],
            verified=made["verified"],
            inliers=made["inliers"],
            models=[report_of(self.folder / "model" / (str(i) if i else "")) for i in range(made["models"])],
            unregistered=[],
            reason="",
            seconds={stage.name: stage.seconds for stage in self.stages.finished},
            reused=[stage.name for stage in self.stages.finished if stage.reused],
        )
        summary = why_no_model(self._with_turns(summary), self.usable)
        self.page(summary)
        self._tell_map(summary)
        return summary

    # --- stages

    def extract(self, computing: Computing) -> None:
        """Features of all photos that can be read."""
        stats = [_stat(self.photos / name) for name in self.names]
        masks = sorted((name, _stat(mask)) for name, mask in self.masks.of.items())
        settings = feature_settings(self.pipeline)
        key = key_of(str(self.pipeline.extractor.signature), settings, self.names, stats, masks)
        path = self.folder / "features.h5"

        def work() -> dict[str, Any]:
            filled = computing.extract(
                path, self.photos, self.names, self.pipeline, masks=self.options.masks, tell=self._tell("extract")
            )
            with FeatureStore(path, self.pipeline.extractor.signature, settings) as store:
                digests = {name: store.digest(name) for name in self.names}
            cache = self.folder / "stages/photo-notes.json"
            notes = photo_notes(self.photos, digests, self.pipeline.options.stretch, cache)
            return {"problems": filled.problems, "notes": notes}

        def is_whole(earlier: dict[str, Any]) -> bool:  # damaged records are taken out of a store
            with FeatureStore(path, self.pipeline.extractor.signature, settings) as store:
                there = all(name in store or name in earlier["problems"] for name in self.names)
            return there and "notes" in earlier  # which maps of earlier versions lack

        result = self.stages.run("extract", key, [path], work, is_whole).result
        self.problems = result["problems"] | self.listing.problems
        self.notes += group_notes(result["notes"])
        self.store = FeatureStore(path, self.pipeline.extractor.signature, settings)
        for name in self.names:
            if name not in self.store:
                self.problems.setdefault(name, "its features are damaged; run again to make them anew")
        self.usable = [name for name in self.names if name not in self.problems]
        self.features_key = key_of(settings, [(name, self.store.digest(name)) for name in self.usable])

    def retrieval(self) -> bool:
        """The vectors of the photos; False where there are none to be had."""
        path = self.folder / "retrieval.npz"

        def work() -> dict[str, Any]:
            path.unlink(missing_ok=True)
            if not any(len(self.store.keypoints(name)) for name in self.usable):
                return {"empty": True}
            learnt = Retrieval.learn(self.store, tell=self._tell("retrieval"))
            learnt.add(self.store, self.usable).save(path)
            return {"empty": False}

        def is_whole(result: dict[str, Any]) -> bool:
            return result["empty"] or read_if_whole(path, Retrieval.load) is not None

        stage = self.stages.run("retrieval", key_of(self.features_key), [path], work, is_whole)
        return not stage.result["empty"]

    def pairs(self, with_retrieval: bool) -> list[Pair]:
        """What is to be matched."""
        options, path = self.options.pairs, self.folder / "pairs.txt"
        given = [] if options.file is None else [_sha256(options.file), asdict(self.options.selection)]
        given += [] if options.model is None else sorted(map(_stat, Path(options.model).glob("*")))

        def work() -> dict[str, Any]:
            chosen = choose_pairs(self.usable, self.photos, options, self._loaded, self.options.selection)
            if options.first_pass:
                chosen = drop_hopeless(self.store, chosen, self.pipeline.matcher, self._tell("pairs"))
            write_pairs(path, chosen.pairs)
            left_out = list(map(asdict, chosen.left_out))
            return {"how": chosen.how, "notes": chosen.notes, "left_out": left_out, "problems": chosen.problems}

        if not with_retrieval:
            self.notes.append("no photo has any keypoint")
            write_pairs(path, [])
            return []
        matcher = matching_settings(self.pipeline) if options.first_pass else ""
        key = key_of(self.features_key, asdict(options), given, matcher)
        result = self.stages.run("pairs", key, [path], work).result
        self.notes += result["notes"]
        self.left_out += [LeftOut(**left) for left in result.get("left_out", [])]
        self.problems = result.get("problems", {}) | self.problems
        return read_pairs(path, self.names)

    def match(self, pairs: Sequence[Pair], computing: Computing) -> str:
        """All pairs; gives the key of the matches."""
        path = self.folder / "matches.h5"
        key = key_of(self.features_key, matching_settings(self.pipeline), pairs)

        def work() -> dict[str, Any]:
            matched = computing.match(self.store, pairs, path, self.pipeline, tell=self._tell("match"))
            return {"problems": {" ".join(pair): why for pair, why in matched.problems.items()}}

        def is_whole(earlier: dict[str, Any]) -> bool:
            with MatchStore(path, self.pipeline.extractor.signature, matching_settings(self.pipeline)) as store:
                there = {frozenset(pair) for pair in store}
            return all(frozenset(pair) in there or " ".join(pair) in earlier["problems"] for pair in pairs)

        problems = self.stages.run("match", key, [path] if pairs else [], work, is_whole).result["problems"]
        self.notes += [f"{pair}: {why}" for pair, why in problems.items()]
        return key

    def database(self, pairs: Sequence[Pair], matched: str) -> dict[str, Any]:
        """COLMAP's."""
        path = self.folder / "database.db"

        def work() -> dict[str, Any]:
            remove_database(path)
            cameras = find_cameras(self.photos, self.usable, self.options.cameras)
            matches = MatchStore(self.folder / "matches.h5", self.pipeline.extractor.signature)
            written = write_database(path, self.store, matches, pairs, cameras.groups)
            about = {"problems": cameras.problems, "notes": cameras.notes}
            if self.options.cameras.params is None:
                about["priors"] = priors_of([camera for camera, _ in cameras.groups])
            return {
                **asdict(written),
                **about,
                "made": time.time_ns(),
                "key": key,
                "contents": contents_of(path, *MADE),
            }

        def is_whole(result: dict[str, Any]) -> bool:
            return result.get("contents", "") in ("", contents_of(path, *MADE))

        key = key_of(self.features_key, matched, asdict(self.options.cameras))
        result = self.stages.run("database", key, [path], work, is_whole).result
        self.problems |= result.get("problems", {})
        self.usable = [name for name in self.usable if name not in self.problems]
        self.notes += result.get("notes", [])
        return result

    def verify(self, database: dict[str, Any]) -> None:
        """The two-view geometry of each pair, in COLMAP's database."""

        def work() -> dict[str, Any]:
            with listen() as heard:
                verified = verify(self.folder / "database.db", **self._limits, tell=self._tell("verify"))
            return {**asdict(verified), "heard": heard}

        result = self.stages.run("verify", key_of(database["key"], database["made"], self._limits), [], work).result
        self.heard += result.get("heard", [])

    def reconstruct(self, database: dict[str, Any]) -> dict[str, Any]:
        """Make the models; return how many `models` there are, and how many pairs of the database are `verified`.

        Verification finds nothing left to do here, but for a run that was killed as it changed databases.
        """
        options, path = self.options, self.folder / "database.db"

        def work() -> dict[str, Any]:
            shutil.rmtree(self.folder / _WITHOUT_PRIORS, ignore_errors=True)  # of a run that was killed
            earlier = _models_in(self.folder / "model")
            made = self._models(path, self.folder / "model", earlier)
            priors = database.get("priors", [])
            if priors and made["placed"] < LEAST_PLACED * len(self.usable):
                made = self._without_priors(made, earlier)
            about = {**asdict(verify(path, **self._limits)), "contents": contents_of(path, *MADE, *VERIFIED)}
            if priors and not priors_in(path):
                about["notes"] = [explain_false_priors(priors, made["placed"], len(self.usable))]
            return {**made, **about}

        def is_whole(result: dict[str, Any]) -> bool:
            return result.get("contents", "") in ("", contents_of(path, *MADE, *VERIFIED))

        key = key_of(database["key"], database["made"], self._limits, options.mapper, options.cameras.refined)
        result = self.stages.run("reconstruct", key, [self.folder / "model"], work, is_whole).result
        self.heard += result["heard"]
        self.frame = result["frame"]
        self.notes += result.get("notes", [])
        return result

    def _models(self, database: Path, model: Path, earlier: Sequence[Any]) -> dict[str, Any]:
        """Make models of a database in the frame of `earlier` ones; return how many, and photos in the largest."""
        frame: list[str] = []
        placed: list[int] = []

        def adjust(models: Sequence[Any]) -> None:
            frame.append(keep_frame(models, earlier))
            placed.extend(model.num_reg_images() for model in models)

        with listen() as heard:
            made = reconstruct(
                database,
                self.photos,
                model,
                mapper=self.options.mapper,
                refine=self.options.cameras.refined,
                adjust=adjust,
                tell=self._tell("reconstruct"),
            )
        return {"models": len(made), "placed": max(placed, default=0), "heard": heard, "frame": frame[0]}

    def _without_priors(self, made: dict[str, Any], earlier: Sequence[Any]) -> dict[str, Any]:
        """Try again without the focal lengths of EXIF; where that places more photos, its database and models stay."""
        folder = self.folder / _WITHOUT_PRIORS
        folder.mkdir()
        try:
            copy_without_priors(self.folder / "database.db", folder / "database.db")
            verify(folder / "database.db", **self._limits, tell=self._tell("verify"))
            better = self._models(folder / "database.db", folder / "model", earlier)
            if better["placed"] <= made["placed"]:
                return made
            remove_database(self.folder / "database.db")
            (folder / "database.db").replace(self.folder / "database.db")
            shutil.rmtree(self.folder / "model")
            (folder / "model").replace(self.folder / "model")
            return better
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def page(self, summary: MapSummary) -> None:
        """index.html."""
        page = self.folder / "index.html"

        def work() -> dict[str, Any]:
            write_map_page(page, self.folder, self.photos, summary, self._told())
            return {}

        told = {**asdict(summary), "reused": []}
        self.stages.run("page", key_of(self.features_key, told, self._told()), [page], work)

    # --- parts

    def _check_same_photos(self) -> None:
        """A folder's map is of some of these photos, if there is one: photos may come, go, or have been moved."""
        if not (self.folder / "features.h5").is_file() or not (self.folder / "map.json").is_file():
            return
        with FeatureStore(self.folder / "features.h5") as known:
            if len(known) and not any(name in known for name in self.names):
                raise InputError(
                    f"{str(self.folder)!r} holds a map of other photos ({len(known)}, such as {next(iter(known))!r}); "
                    f"none of {str(self.photos)!r} is among them. Choose another folder for this map, or remove that"
                )

    def _with_turns(self, summary: MapSummary) -> MapSummary:
        """The summary with a note where photos are stored turned, which is looked for where the map falls apart."""
        placed = summary.models[0].registered if summary.models else self.usable[:1]
        if len(placed) == len(self.usable) or not summary.matched:
            return summary

        def work() -> dict[str, Any]:
            return {"turned": find_turned(self.photos, self.pipeline, self.usable, placed)}

        key = key_of(self.features_key, matching_settings(self.pipeline), placed)
        turned = self.stages.run("turns", key, [], work).result["turned"]
        return replace(summary, turned=explain_turned(turned) if turned else "")

    def _loaded(self) -> Retrieval:
        return Retrieval.load(self.folder / "retrieval.npz")

    def _tell(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, of: self.tell(stage, done, of)

    def _told(self) -> dict[str, Any]:
        o = self.pipeline.options
        return {
            "pipeline": {one.name: getattr(o, one.name) for one in fields(o)},
            "options": json.loads(json.dumps(asdict(self.options), default=str)),
        }

    def _tell_map(self, summary: MapSummary | None) -> None:
        """Write map.json."""
        told = {"schema": SCHEMA, "photos": str(self.photos.resolve()), **self._told()}
        if self.custom:
            told["custom"] = self.custom
        if summary is not None:
            told["summary"] = asdict(summary)
        write_signed_json(self.folder / "map.json", told)


def _models_in(folder: Path) -> list[Any]:
    """Return the models that are in a folder and its numbered ones; those that cannot be read are left out."""
    found = []
    for place in (folder, *sorted(folder.glob("[0-9]*"))):
        if is_model(place):
            with suppress(InputError):
                found.append(read_model(place))
    return found


def _stat(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    try:
        stat = path.stat()
    except OSError:  # it went meanwhile
        return path.name, -1, -1
    return path.name, stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}). Check the path") from error
