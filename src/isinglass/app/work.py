"""What is done with a pair of uploads: matched, inspected, compared, diagnosed; and what the answers hold."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from isinglass.app.pipelines import Pipelines, StoppablePipeline, Tell
from isinglass.app.uploads import Upload
from isinglass.files import save_matches, signed_json
from isinglass.geometry.robust import RobustResult
from isinglass.inspection.payload import array_of, compare_payload, match_payload
from isinglass.options import Options
from isinglass.result import MatchResult, geometry_if_installed

Kind = Literal["match", "inspect", "compare", "doctor"]
Geometry = Literal["none", "auto", "homography", "fundamental"]
STEPS = {"match": 11, "inspect": 12, "compare": 20, "doctor": 0}  # that are told of; the doctor's depend on the pair
FEW = 15  # matches, or inliers, that prove nothing


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task:
    """A pair, and what to do with it.

    masks     of the photos, or None
    options   of the pipeline
    other     of the second pipeline, of the kind "compare"
    geometry  that matches are to agree on; "none" = not asked for
    """

    kind: Kind
    photos: tuple[Upload, Upload]
    masks: tuple[Upload | None, Upload | None] = (None, None)
    options: Options
    other: Options | None = None
    geometry: Geometry = "auto"

    @property
    def held(self) -> int:
        """Bytes of the uploads."""
        return sum(len(one.content) for one in (*self.photos, *self.masks) if one is not None)


def run(task: Task, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    """The result of a task, by name: "payload.json" for pages; and, but for the doctor, "matches.json", "matches.npz".

    Raises Refused for photos that cannot be decoded, else what pipelines raise, and whatever `tell` raises.
    """
    tell("reading the photos")
    images = Images.of(task)
    kinds: dict[str, Callable[[Task, Images, Pipelines, Tell], dict[str, bytes]]] = {
        "match": _match,
        "inspect": _inspect,
        "compare": _compare,
        "doctor": _diagnose,
    }
    return kinds[task.kind](task, images, pipelines, tell)


def run_plain(task: Task, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    """The same for other programs, of the kind "match": "matches.json" alone."""
    tell("reading the photos")
    found = _matched(task, Images.of(task), task.options, pipelines, tell)
    return {"matches.json": signed_json(plain_answer(task, found)).encode()}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Images:
    """A task's uploads, decoded."""

    photos: tuple[Image.Image, Image.Image]
    masks: tuple[Image.Image | None, Image.Image | None]

    @classmethod
    def of(cls, task: Task) -> Images:
        """Raises Refused where one is damaged."""
        mask0, mask1 = (None if one is None else one.decoded() for one in task.masks)
        return cls(photos=(task.photos[0].decoded(), task.photos[1].decoded()), masks=(mask0, mask1))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """A result and the options that give it.

    robust      the geometry that the matches agree on; None = not asked for, or no PoseLib here
    num_layers  of the matcher; None = it has none
    """

    options: Options
    result: MatchResult
    robust: RobustResult | None
    num_layers: int | None


def _matched(task: Task, images: Images, options: Options, pipelines: Pipelines, tell: Tell) -> Found:
    pipeline = pipelines.of(options, tell)
    result = pipeline.match(*images.photos, mask0=images.masks[0], mask1=images.masks[1])
    return _verified(task, pipeline, result)


def _verified(task: Task, pipeline: StoppablePipeline, result: MatchResult) -> Found:
    robust = None
    if task.geometry != "none":
        pipeline.timings_ms = {}
        with pipeline.timed("geometry"):
            robust = geometry_if_installed(result, task.geometry)
        result = replace(result, timings_ms={**result.timings_ms, **pipeline.timings_ms})
    if pipeline.loading_ms:
        result = replace(result, timings_ms={"load": pipeline.loading_ms, **result.timings_ms})
    return Found(options=pipeline.options, result=result, robust=robust, num_layers=pipeline.num_layers)


# --- kinds


def _match(task: Task, images: Images, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    found = _matched(task, images, task.options, pipelines, tell)
    tell("drawing")
    return _files(task, found, _payload(task, images, found))


def _inspect(task: Task, images: Images, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    from isinglass.inspection import inspect_result

    pipeline = pipelines.of(task.options, tell)
    result = pipeline.match(*images.photos, mask0=images.masks[0], mask1=images.masks[1])
    tell("tracing the matcher")
    seen = inspect_result(
        result, images.photos, pipeline, names=_names(task), tell=lambda step: tell(f"tracing, {step}")
    )
    found = _verified(task, pipeline, seen.result)
    tell("drawing")
    seen = replace(seen, result=found.result, robust=found.robust, masks=_mask_names(task))
    return _files(task, replace(found, options=seen.options), seen.payload())


def _compare(task: Task, images: Images, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    assert task.other is not None
    found = _matched(task, images, task.options, pipelines, tell)
    other = _matched(task, images, task.other, pipelines, tell)
    tell("drawing")
    first, second = (_payload(task, images, one) for one in (found, other))
    return _files(task, found, compare_payload(first, second, found.result, other.result, task.options))


def _diagnose(task: Task, images: Images, pipelines: Pipelines, tell: Tell) -> dict[str, bytes]:
    from isinglass.doctor import diagnose

    pipeline, (mask0, mask1) = pipelines.of(task.options, tell), images.masks
    diagnosis = diagnose(*images.photos, pipeline=pipeline, mask0=mask0, mask1=mask1)
    names = [one.name for one in task.photos]
    answer = {"kind": "doctor", "names": names, "options": asdict(task.options), **diagnosis.as_dict()}
    return {"payload.json": _json({**answer, "notes": _same_file(task)})}


# --- answers


def _names(task: Task) -> tuple[str, str]:
    return task.photos[0].name, task.photos[1].name


def _mask_names(task: Task) -> tuple[str | None, str | None]:
    mask0, mask1 = (None if one is None else one.name for one in task.masks)
    return mask0, mask1


def _payload(task: Task, images: Images, found: Found) -> dict[str, Any]:
    return match_payload(
        found.result,
        *images.photos,
        names=_names(task),
        options=found.options,
        robust=found.robust,
        num_layers=found.num_layers,
        masks=_mask_names(task),
    )


def _files(task: Task, found: Found, payload: dict[str, Any]) -> dict[str, bytes]:
    result = found.result
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "matches.npz"
        save_matches(file, result.matches, result.features0, result.features1)
        return {
            "payload.json": _json({**payload, "notes": notes(task, found)}),
            "matches.json": signed_json(plain_answer(task, found)).encode(),
            "matches.npz": file.read_bytes(),
        }


def plain_answer(task: Task, found: Found) -> dict[str, Any]:
    """What `POST /match` answers, see `isinglass.app.answers.MatchAnswer`."""
    result, robust = found.result, found.robust
    probabilities = result.probabilities
    model = None
    if robust is not None and robust.model is not None:
        model = {"kind": robust.kind, "matrix": robust.model.tolist(), "num_inliers": robust.num_inliers}
    stop = result.matches.stop_layer
    return {
        "extractor": result.features0.signature.extractor,
        "matcher": result.matches.matcher,
        "options": asdict(found.options),
        "sizes": [list(one.size) for one in task.photos],
        "keypoints": [_short(one.keypoints[0]) for one in (result.features0, result.features1)],
        "pairs": result.matches.pairs().tolist(),
        "scores": _short(result.scores),
        "probabilities": None if probabilities is None else _short(probabilities),
        "inliers": None if robust is None else robust.inliers.tolist(),
        "model": model,
        "stop_layer": None if stop is None else int(stop[0]),
        "num_layers": found.num_layers,
        "timings_ms": dict(result.timings_ms),
        "notes": notes(task, found),
    }


def notes(task: Task, found: Found) -> list[str]:
    """What people should know of a result: equal files, no keypoints, no or few matches, no geometry."""
    said = _same_file(task)
    counts = [one.keypoints.shape[1] for one in (found.result.features0, found.result.features1)]
    for photo, count, mask in zip(task.photos, counts, task.masks, strict=True):
        if not count:
            why = "the photo is blank or blurred" if mask is None else "the photo is blank, or the mask hides all of it"
            said.append(f"No keypoints were found in {photo.name}: {why}.")
    number = len(found.result.scores)
    if not number and all(counts):
        said.append("No matches: the photos may show different things. The doctor looks for the cause.")
    elif number and number < FEW:
        said.append(f"Only {number} matches, which prove nothing. The doctor looks for the cause.")
    if found.robust is not None and found.robust.model is None and number >= FEW:
        said.append("The matches agree on no geometry, so most of them are likely wrong.")
    return said


def _same_file(task: Task) -> list[str]:
    if task.photos[0].digest != task.photos[1].digest:
        return []
    return ["Both files are identical: every keypoint is expected to match itself."]


def _short(values: Tensor) -> list[Any]:
    """With the fewest digits that give the same float32 again."""
    return array_of(values).astype(np.float32).astype(str).astype(float).tolist()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
