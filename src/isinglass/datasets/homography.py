"""Benchmarks of planar scenes in their published layouts: HPatches, EVD, and WxBS, whose truth is annotated points.

Their files put (0, 0) at the centre of the top-left pixel, as we do: they were made and are read with OpenCV.
(glue-factory applies the same matrices to points whose (0, 0) is the corner of that pixel: half a pixel at most where
they keep the scale.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isinglass.datasets.layout import PathLike, collected, existing_folder, image_of, read_text
from isinglass.datasets.pairs import Benchmark, EvalPair, Floats
from isinglass.errors import InputError
from isinglass.images.formats import READABLE_SUFFIXES
from isinglass.names import is_file

LARGE_SEQUENCES = (  # of more than 1600 x 1200 px: left out since D2-Net (CVPR 2019), and by LightGlue
    "i_contruction",
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)
WXBS_VALIDATION = ("kyiv_dolltheater2", "petrzin")  # for tuning: no part of the results

# Mean average accuracy is over the thresholds of the benchmark; which error is held against them differs.
EVD_THRESHOLDS_PX = tuple(np.geomspace(1, 20, 10).tolist())  # `metrics.visible_area_error_px` of a pair
WXBS_THRESHOLDS_PX = tuple(range(20))  # `annotation_error` of each annotated point, then the mean over pairs

_GROUPS = {"i": "illumination", "v": "viewpoint"}
_IMAGES = 6  # of a sequence of HPatches


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AnnotatedPair(EvalPair):
    """A pair of WxBS: its truth is where a person saw points of view 0 in view 1, (K, 4) px: x0, y0, x1, y1."""

    annotations: Floats


# ---- HPatches


def load_hpatches(folder: PathLike, *, name: str = "hpatches", large: bool = False) -> Benchmark:
    """Sequences in folders: 1.ppm, 2.ppm ... and H_1_2 ..., which maps image 1 to image 2 (Balntas et al., CVPR 2017).

    Images may be of any suffix. The group of i_* is "illumination", of v_* "viewpoint", of another sequence what is
    before the first underscore; it may have fewer than six images, but those of i_* and v_* that lack are problems.
    Without `large` the eight LARGE_SEQUENCES are left out, as is published: 108 sequences, 540 pairs.

    Raises InputError where nothing can be used.
    """
    root = existing_folder(folder, "sequences with 1.ppm ... 6.ppm and H_1_2 ... H_1_6")
    sequences = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith(".") and (large or path.name not in LARGE_SEQUENCES)
    ]
    protocol = f"hpatches/1 {'all sequences' if large else 'without the 8 large sequences'}"
    items = [(path, number) for path in sequences for number in _numbers_of(path)]
    return collected(name, protocol, "homography", _sequence_pair, items)


def _numbers_of(sequence: Path) -> list[int]:
    """Which images are, or should be, paired with the first."""
    numbers = set(range(2, _IMAGES + 1)) if sequence.name[:2] in ("i_", "v_") else set()
    for file in sequence.iterdir():
        is_image = file.suffix.lower() in READABLE_SUFFIXES and not file.name.startswith(".")
        found = re.fullmatch(r"(\d+)", file.stem) if is_image else re.fullmatch(r"H_1_(\d+)", file.name)
        numbers |= {int(found[1])} if found else set()
    return sorted(numbers - {0, 1})


def _sequence_pair(item: tuple[Path, int]) -> EvalPair:
    sequence, number = item
    prefix = sequence.name.split("_")[0]
    return EvalPair(
        name=f"{sequence.name}/1-{number}",
        image0=image_of(sequence, "1"),
        image1=image_of(sequence, str(number)),
        group=_GROUPS.get(prefix, prefix),
        homography=read_homography(sequence / f"H_1_{number}"),
    )


# ---- EVD and WxBS


def load_evd(folder: PathLike) -> Benchmark:
    """Extreme views: 1/NAME.png, 2/NAME.png and h/NAME.txt, which maps the first to the second (MODS, CVIU 141, 2015).

    The protocol's number is mAA over EVD_THRESHOLDS_PX of `metrics.visible_area_error_px`, as in the RANSAC tutorial of
    CVPR 2020 (ransac-tutorial-2020-data, metrics.py) and in wxbs_benchmark 0.0.4 (`evaluate_Hs`).

    Raises InputError where nothing can be used.
    """
    root = existing_folder(folder, "1/, 2/ and h/, as EVD.zip has them")
    stems = {file.stem for part in ("1", "2", "h") for file in (root / part).glob("[!.]*")}
    benchmark = collected("evd", "evd/2", "homography", lambda stem: _evd_pair(root, stem), sorted(stems))
    return replace(benchmark, auc_at=(), maa_px=EVD_THRESHOLDS_PX)


def _evd_pair(root: Path, stem: str) -> EvalPair:
    return EvalPair(
        name=stem,
        image0=image_of(root / "1", stem),
        image1=image_of(root / "2", stem),
        homography=read_homography(root / "h" / f"{stem}.txt"),
    )


def load_wxbs(folder: PathLike, *, subset: str = "test") -> Benchmark:
    """Wide baselines of all kinds, v1.1: KIND/NAME/01.png (or .jpg), 02.png and corrs.txt (WxBS, BMVC 2015).

    `subset` "test", "val" (the two pairs for tuning) or "all"; the group is the kind, such as WGABS. The pairs are
    AnnotatedPair, and the task "fundamental": the protocol's number is mAA over WXBS_THRESHOLDS_PX of
    `annotation_error`, as in wxbs_benchmark 0.0.4 (`evaluate_Fs`). RoMa and others print the mean over 0 to 10 px
    alone; published baselines take "opencv-magsac" with 0.25 px.

    Raises InputError where nothing can be used.
    """
    if subset not in ("test", "val", "all"):
        raise InputError(f"subset is {subset!r}; expected 'test', 'val' or 'all'")
    root = existing_folder(folder, "kinds of baselines, as WxBS_v1.1.zip has them")
    root = root / "v1.1" if (root / "v1.1").is_dir() else root
    pairs = [
        path
        for path in sorted(root.glob("[!.]*/[!.]*"))
        if path.is_dir() and (subset == "all" or (path.name in WXBS_VALIDATION) == (subset == "val"))
    ]
    benchmark = collected("wxbs", f"wxbs-1.1/1 {subset}", "fundamental", _wxbs_pair, pairs)
    return replace(benchmark, auc_at=(), maa_px=WXBS_THRESHOLDS_PX)


def _wxbs_pair(folder: Path) -> AnnotatedPair:
    file = folder / "corrs.txt"
    annotations = _numbers(file)
    if len(annotations) == 0 or len(annotations) % 4:
        raise InputError(f"{str(file)!r} holds {len(annotations)} numbers; expected lines of x0 y0 x1 y1")
    return AnnotatedPair(
        name=f"{folder.parent.name}/{folder.name}",
        image0=image_of(folder, "01"),
        image1=image_of(folder, "02"),
        group=folder.parent.name,
        annotations=annotations.reshape(-1, 4),
    )


def annotation_error(fundamental: Floats | None, annotations: Floats) -> Floats:
    """(K,) px: sqrt(d0^2 + d1^2) of the distances of annotated points (K, 4) from their epipolar lines; inf for None.

    What WxBS holds against its thresholds: kornia's `symmetrical_epipolar_distance`, not squared, in wxbs_benchmark's
    `fraction_of_gt_corrs_consisent_with_F`. That has 1e-8 more under the root, so nothing is within its 0 px; here what
    is exact is.
    """
    if fundamental is None:
        return np.full(len(annotations), np.inf)
    ones_K1 = np.ones((len(annotations), 1))
    x0_K3, x1_K3 = np.hstack([annotations[:, :2], ones_K1]), np.hstack([annotations[:, 2:], ones_K1])
    line1_K3, line0_K3 = x0_K3 @ fundamental.T, x1_K3 @ fundamental
    residual_K = np.abs((x1_K3 * line1_K3).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        d0_K, d1_K = (residual_K / np.linalg.norm(line_K3[:, :2], axis=1) for line_K3 in (line0_K3, line1_K3))
    return np.nan_to_num(np.hypot(d0_K, d1_K), nan=np.inf)


# ---- files of numbers


def read_homography(file: Path) -> Floats:
    """(3, 3) float64, as the file has it. Raises InputError where it holds anything but an invertible matrix."""
    numbers = _numbers(file)
    if len(numbers) != 9:
        raise InputError(f"{str(file)!r} holds {len(numbers)} numbers; expected the 9 of a homography")
    matrix = numbers.reshape(3, 3)
    if np.linalg.matrix_rank(matrix) < 3:
        raise InputError(f"{str(file)!r} holds a matrix that cannot be inverted; expected a homography")
    return matrix


def _numbers(file: Path) -> Floats:
    if not is_file(file):
        raise InputError(f"{str(file)!r} does not exist; copy the data set again")
    try:
        numbers = np.array(read_text(file).replace(",", " ").split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{str(file)!r} holds something else than numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise InputError(f"{str(file)!r} holds NaN or infinity; expected finite numbers")
    return numbers
