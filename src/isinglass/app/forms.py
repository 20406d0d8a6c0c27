"""What requests may hold, as pydantic models, and how a form becomes a task."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from starlette.datastructures import FormData, UploadFile

from isinglass.app.choices import OPTIONS, check_choice, default_options, extractor_names, matcher_names
from isinglass.app.jobs import Jobs
from isinglass.app.settings import Limits, Settings
from isinglass.app.uploads import Refused, Upload, check_upload, shown_name, too_large
from isinglass.app.work import Geometry, Task
from isinglass.errors import InputError
from isinglass.options import Options

PHOTOS, MASKS = ("image0", "image1"), ("mask0", "mask1")
OTHER = "other_"
MOST_FIELDS = 64
_ABOUT = {
    "image0": "The first photo: JPEG, PNG, WebP, TIFF, BMP or AVIF.",
    "image1": "The second photo.",
    "mask0": "Image of the size of the first photo as stored: keypoints only where it is not black.",
    "mask1": "Likewise for the second photo.",
}


class Forms(NamedTuple):
    """The fields, apart from files, of `POST /match` and of `POST /jobs`."""

    match: type[BaseModel]
    job: type[BaseModel]


def make_forms(limits: Limits) -> Forms:
    """The models within these limits. Unknown fields are refused."""
    plain = _option_fields(limits)
    geometry = Literal["none", "auto", "homography", "fundamental"]
    about = "That matches are to agree on; auto: a plane's homography, unless there is parallax."
    shared: dict[str, Any] = {**plain, "geometry": (geometry, Field("auto", description=about))}
    kinds = Literal["match", "inspect", "compare", "doctor"]
    job: dict[str, Any] = {"kind": (kinds, Field("match", description="What to do.")), **shared}
    for name, (kind, field) in plain.items():
        about = f"Of the second pipeline of a comparison: {name}; that of the first if not given."
        job[OTHER + name] = kind | None, Field(None, description=about, **_bounds(name, limits))
        assert field is not None
    config = ConfigDict(extra="forbid")
    return Forms(
        create_model("MatchForm", __config__=config, **shared), create_model("JobForm", __config__=config, **job)
    )


def body_schema(form: type[BaseModel]) -> dict[str, Any]:
    """The request body of OpenAPI: the form and its files."""
    schema = form.model_json_schema()
    fields = {name: _without_null(field) for name, field in schema["properties"].items()}
    files = {name: {"type": "string", "format": "binary", "description": about} for name, about in _ABOUT.items()}
    whole = {
        "type": "object",
        "additionalProperties": False,
        "required": list(PHOTOS),
        "properties": {**files, **fields},
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": whole}}}


async def read_task(form: FormData, model: type[BaseModel], settings: Settings, jobs: Jobs) -> tuple[Task, int]:
    """The task of a form, and how many bytes were reserved in `jobs` for it.

    Raises Refused: 422 for fields that are wrong, missing, unknown or there twice, or as `check_upload` does, or 503.
    """
    texts, files = _split(form)
    try:
        fields = model.model_validate({name: text for name, text in texts.items() if text != ""}).model_dump()
    except ValidationError as error:
        raise Refused(_told(error), 422) from error
    options, other = _options(fields, settings)
    for name, file in files.items():
        if (file.size or 0) > settings.limits.file_bytes:
            raise too_large(shown_name(file.filename or "", name), file.size or 0, settings.limits)
    size = sum(file.size or 0 for file in files.values())
    jobs.reserve(size)
    try:
        uploads = {name: await _read(name, file, settings.limits) for name, file in files.items()}
        if missing := [name for name in PHOTOS if name not in uploads]:
            raise Refused(f"{' and '.join(missing)} did not come; expected two photos as files. Choose both", 422)
        task = Task(
            kind=fields.get("kind", "match"),
            photos=(uploads["image0"], uploads["image1"]),
            masks=(uploads.get("mask0"), uploads.get("mask1")),
            options=options,
            other=other,
            geometry=fields["geometry"],
        )
        _check_masks(task)
    except BaseException:
        jobs.release(size)
        raise
    return task, size


def read_options(values: Mapping[str, Any], form: type[BaseModel], settings: Settings) -> tuple[Options, Geometry]:
    """The options and the geometry of fields that came as JSON. Raises Refused (422) for those that are wrong."""
    try:
        fields = form.model_validate(values).model_dump()
    except ValidationError as error:
        raise Refused(_told(error), 422) from error
    return _options(fields, settings)[0], fields["geometry"]


def _option_fields(limits: Limits) -> dict[str, tuple[Any, Any]]:
    defaults = default_options()
    kinds: dict[str, tuple[Any, str]] = {
        "extractor": (Literal[extractor_names()], "Weights of an extractor, or sift or rootsift."),
        "matcher": (Literal[matcher_names()], "Weights, or a family: those made for the extractor."),
        "max_keypoints": (int, "Of a photo."),
        "resize": (int, "Px of the long side that the extractor sees; results are px of the photo as stored."),
        "rotation": (Literal["none", "exif", "auto"], "Photos as stored, upright, or the best of four turns."),
        "min_distance": (float, "Of keypoints, px of the resized photo."),
        "stretch": (
            Literal["auto", "none", "percentile"],
            "Of values to the whole range: 16-bit photos that use little of it, none, or all.",
        ),
        "adaptive": (bool, "Let the matcher stop early and drop points."),
        "filter_threshold": (float, "Least score of a match; the matcher's own if not given."),
        "ratio": (float, "Lowe's test, of the matcher nearest."),
        "precision": (Literal["auto", "float32", "bfloat16", "float16"], "Of the matcher's layers."),
        "execution": (
            Literal["auto", "plain", "fused", "cuda_graph"],
            "Of the layers: as written, rearranged for speed, or recorded; auto chooses by the device.",
        ),
    }
    fields = {}
    for name in OPTIONS:
        kind, about = kinds[name]
        default = getattr(defaults, name)
        kind = kind | None if default is None else kind
        fields[name] = kind, Field(default, description=about, **_bounds(name, limits))
    return fields


def _bounds(name: str, limits: Limits) -> dict[str, Any]:
    return {
        "max_keypoints": {"ge": 1, "le": limits.max_keypoints},
        "resize": {"ge": limits.least_resize, "le": limits.most_resize},
        "min_distance": {"ge": 0, "le": 100, "allow_inf_nan": False},
        "filter_threshold": {"ge": 0, "le": 1, "allow_inf_nan": False},
        "ratio": {"gt": 0, "le": 1, "allow_inf_nan": False},
    }.get(name, {})


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: a field that may be missing is left out."""
    kinds = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
    merged = {**{name: value for name, value in field.items() if name not in ("anyOf", "title")}}
    merged |= kinds[0] if len(kinds) == 1 else {}
    return {name: value for name, value in merged.items() if not (name == "default" and value is None)}


def _split(form: FormData) -> tuple[dict[str, str], dict[str, UploadFile]]:
    """The texts and the files of a form, by name."""
    texts: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        shown = name if name.isprintable() and len(name) < 40 else "a field"
        if name in texts or name in files:
            raise Refused(f"{shown} came twice; expected each field once", 422)
        if name in PHOTOS + MASKS:
            if not isinstance(value, UploadFile):
                raise Refused(f"{name} came as text; expected a file. Send multipart/form-data", 422)
            if value.filename or value.size:  # a browser sends a file input that was left empty as a nameless file
                files[name] = value
        elif isinstance(value, UploadFile):
            raise Refused(f"{shown} came as a file; expected files as {', '.join(PHOTOS + MASKS)} alone", 422)
        else:
            texts[name] = value
    return texts, files


def _options(fields: Mapping[str, Any], settings: Settings) -> tuple[Options, Options | None]:
    given = {name: fields[name] for name in OPTIONS}
    others = {name: fields.get(OTHER + name) for name in OPTIONS}
    try:
        options, other = Options(**given, device=settings.device), None
        check_choice(options)
        if fields.get("kind") == "compare":
            other = replace(options, **_fitting({name: one for name, one in others.items() if one is not None}))
            check_choice(other)
        elif extra := [OTHER + name for name, one in others.items() if one is not None]:
            raise Refused(f"{', '.join(extra)} came without kind=compare; leave them out, or compare", 422)
    except Refused:
        raise
    except InputError as error:
        raise Refused(str(error), 422) from error
    return options, other


def _fitting(others: dict[str, Any]) -> dict[str, Any]:
    """A least score, a ratio or an execution of the first matcher is not for one of another kind."""
    if "matcher" in others:
        return {"filter_threshold": None, "ratio": None, "execution": "auto", **others}
    return others


async def _read(name: str, file: UploadFile, limits: Limits) -> Upload:
    content, kind = await file.read(), "mask" if name in MASKS else "photo"
    return await asyncio.to_thread(check_upload, content, file.filename or name, limits, kind)


def _check_masks(task: Task) -> None:
    for photo, mask in zip(task.photos, task.masks, strict=True):
        if mask is not None and mask.size != photo.size:
            raise Refused(
                f"the mask {mask.name} is {mask.size[0]} x {mask.size[1]} px, its photo {photo.name} {photo.size[0]} x "
                f"{photo.size[1]}; expected the same size, in the pixels as stored. Draw the mask on this photo",
                422,
            )


def _told(error: ValidationError) -> str:
    """One line of what is wrong with the first few fields."""
    lines = []
    for one in error.errors(include_url=False, include_context=False)[:3]:
        name = ".".join(map(str, one["loc"]))[:40]
        came = repr(one.get("input"))
        if one["type"] == "extra_forbidden":
            lines.append(f"the field {name!r} is not known; see /openapi.json for those that are")
        else:
            came = came if len(came) <= 40 else f"{came[:37]}..."
            lines.append(f"{name} is {came}: {one['msg'][0].lower()}{one['msg'][1:]}")
    return "; ".join(lines)
