"""What every benchmark is: pairs of image files, and what is true of each.

Pixels as everywhere: (x, y), (0, 0) = centre of the top-left pixel of the stored image. Loaders turn what a benchmark
writes otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pose:
    """cam1_from_cam0: a point x in the frame of camera 0 is `rotation` x + `translation` in that of camera 1."""

    rotation: Floats  # (3, 3)
    translation: Floats  # (3,), metres, or of unknown scale


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Depth:
    """A depth image: `file` times `scale` is metres along the optical axis, 0 = unknown.

    Pixel (u, v) of it belongs to pixel (u, v) * `step` of the image.
    """

    file: Path
    scale: float = 0.001
    step: int = 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EvalPair:
    """One pair of a benchmark. What is not known is None."""

    name: str  # unique in the benchmark: "v_churchill/1-2"
    image0: Path
    image1: Path
    group: str = "all"  # "illumination", "viewpoint", a scene: results are also reported by group
    homography: Floats | None = None  # (3, 3), pixels of image 0 to image 1
    pose: Pose | None = None
    camera0: Floats | None = None  # (3, 3), calibration matrix K
    camera1: Floats | None = None
    depth0: Depth | None = None
    depth1: Depth | None = None
    turns0: int = 0  # quarter turns counter-clockwise that make the stored image upright (rot0 of SuperGlue's lists)
    turns1: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Benchmark:
    """The pairs of a data set, and the protocol that they are judged by."""

    name: str  # "hpatches", "scannet1500", ...
    protocol: str  # name and version of the protocol; results of two protocols are never compared
    task: str  # what solvers estimate: "homography", "pose" or "fundamental"
    pairs: tuple[EvalPair, ...]
    problems: tuple[str, ...] = field(default=())  # what could not be used: each names its file, and the line if any
    auc_at: tuple[float, ...] | None = None  # where AUC is taken, px or degrees: () = nowhere, None = as of its task
    maa_px: tuple[float, ...] = ()  # thresholds of mean average accuracy; with any, errors are px of the stored images
