"""Homographies and fundamental matrices from matches with outliers, by PoseLib's LO-RANSAC, behind one result type.

No model is a result as well: too few matches, matches on one line, or no more agreement than chance would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.two_view import Floats, epipolar_error, transfer_error

Kind = Literal["homography", "fundamental"]

MAX_FALSE_ALARMS = 0.01  # models as good as ours that random matches would be expected to give
_SAMPLE = {"homography": 4, "fundamental": 7}  # matches that give a model
_MODELS = {"homography": 1, "fundamental": 3}  # models that a sample gives at most
_ITERATIONS = 10_000


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RobustResult:
    """What two views' matches agree on.

    model         (3, 3) float64; of view 0 to view 1: x1 ~ H x0, H[2, 2] = 1, or x1^T F x0 = 0, |F| = 1 (an essential
                  matrix is the same for calibrated points). None = none
    kind          what `model` is, or would have been
    inliers       (M,) bool: the matches with an error of `threshold_px` at most; all False without a model
    threshold_px  of the error: how far a match has to move in both views together, as in `geometry.two_view`
    solver        who found the model
    """

    model: Floats | None
    kind: Kind | Literal["essential"]
    inliers: NDArray[np.bool_]
    threshold_px: float
    solver: str

    @property
    def num_inliers(self) -> int:
        """How many matches agree with the model."""
        return int(self.inliers.sum())


def estimate(
    points0: ArrayLike,
    points1: ArrayLike,
    kind: Kind | Literal["auto"] = "auto",
    *,
    threshold_px: float = 3.0,
    seed: int = 0,
) -> RobustResult:
    """The two-view geometry of matches `points0` and `points1`, both (M, 2) px.

    "auto" gives the homography (a plane, or a camera that only turns: the fundamental matrix is not determined then),
    unless the fundamental matrix also explains matches that are clearly off the plane, by 1.5 times the threshold,
    and more of them than chance would give. Deterministic for a `seed`.

    Scale `threshold_px` with the images: if these were shrunk by 4 for extraction, keypoints are 4 times as coarse.

    Raises InputError where shapes disagree, numbers are not finite or the threshold is not positive, MissingExtra
    without PoseLib.
    """
    x0_M2, x1_M2 = checked_points(points0, points1, threshold_px)
    if kind not in ("auto", "homography", "fundamental"):
        raise InputError(f"kind is {kind!r}; expected 'auto', 'homography' or 'fundamental'")
    if kind != "auto":
        return _estimate(x0_M2, x1_M2, kind, threshold_px, seed)
    plane = _estimate(x0_M2, x1_M2, "homography", threshold_px, seed)
    scene = _estimate(x0_M2, x1_M2, "fundamental", threshold_px, seed)
    if plane.model is None or scene.model is None:
        return scene if plane.model is None else plane
    off_plane = transfer_error(plane.model, x0_M2, x1_M2) > 1.5 * threshold_px
    parallax = off_plane & scene.inliers
    log_alarms = _log_false_alarms(  # given the plane, two more matches determine the fundamental matrix
        _distinct(x0_M2[off_plane], x1_M2[off_plane], threshold_px),
        _distinct(x0_M2[parallax], x1_M2[parallax], threshold_px),
        _chance(x0_M2, x1_M2, "fundamental", threshold_px),
        sample=2,
        models=1,
    )
    return scene if log_alarms < math.log(MAX_FALSE_ALARMS) else plane


def estimate_homography(
    points0: ArrayLike, points1: ArrayLike, *, threshold_px: float = 3.0, seed: int = 0
) -> RobustResult:
    """See `estimate`. PoseLib looks for planes seen from one side: the mirror image of a view gives no homography."""
    return estimate(points0, points1, "homography", threshold_px=threshold_px, seed=seed)


def estimate_fundamental(
    points0: ArrayLike, points1: ArrayLike, *, threshold_px: float = 3.0, seed: int = 0
) -> RobustResult:
    """See `estimate`. Of a plane, one of the many matrices that fit is given."""
    return estimate(points0, points1, "fundamental", threshold_px=threshold_px, seed=seed)


def _estimate(x0_M2: Floats, x1_M2: Floats, kind: Kind, threshold_px: float, seed: int) -> RobustResult:
    poselib = _poselib()
    none = RobustResult(
        model=None, kind=kind, inliers=np.zeros(len(x0_M2), bool), threshold_px=threshold_px, solver="poselib"
    )
    if len(x0_M2) <= _SAMPLE[kind]:
        return none
    options: dict[str, float] = {"seed": seed, "max_iterations": _ITERATIONS}
    if kind == "homography":  # PoseLib measures it in view 1 alone: further by sqrt(2) where the scale is the same
        options["max_reproj_error"] = threshold_px * math.sqrt(2)
        model, _ = poselib.estimate_homography(x0_M2, x1_M2, options, {})
    else:
        options["max_epipolar_error"] = threshold_px
        model, _ = poselib.estimate_fundamental(x0_M2, x1_M2, options, {})
    model, inliers = fitted(model, kind, x0_M2, x1_M2, threshold_px)
    if model is None:
        return none
    log_alarms = _log_false_alarms(
        _distinct(x0_M2, x1_M2, threshold_px),
        _distinct(x0_M2[inliers], x1_M2[inliers], threshold_px),
        _chance(x0_M2, x1_M2, kind, threshold_px),
        sample=_SAMPLE[kind],
        models=_MODELS[kind],
    )
    if log_alarms >= math.log(MAX_FALSE_ALARMS) or on_a_line(x0_M2[inliers], x1_M2[inliers], threshold_px):
        return none
    return RobustResult(model=model, kind=kind, inliers=inliers, threshold_px=threshold_px, solver="poselib")


def fitted(
    model: Floats | None, kind: Kind, x0_M2: Floats, x1_M2: Floats, threshold_px: float
) -> tuple[Floats | None, NDArray[np.bool_]]:
    """The model scaled as `RobustResult` says, None where it is none, and which matches agree with it (M,)."""
    if model is None or not np.isfinite(model).all() or not model.any():
        return None, np.zeros(len(x0_M2), bool)
    scaled = model / (model[2, 2] if kind == "homography" and model[2, 2] else np.linalg.norm(model))
    error_M = (transfer_error if kind == "homography" else epipolar_error)(scaled, x0_M2, x1_M2)
    return scaled, error_M <= threshold_px


def _log_false_alarms(matches: int, inliers: int, chance: float, *, sample: int, models: int) -> float:
    """Log of how many models with so many inliers are expected by chance (Moisan and Stival, IJCV 57, 2004).

    Each of the (matches choose sample) samples gives `models`; a wrong match agrees with one with probability
    `chance`: (matches - sample) models C(matches, inliers) C(inliers, sample) chance^(inliers - sample).
    """
    if inliers <= sample:
        return math.inf
    return (
        math.log((matches - sample) * models)
        + _log_choose(matches, inliers)
        + _log_choose(inliers, sample)
        + (inliers - sample) * math.log(chance)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _chance(x0_M2: Floats, x1_M2: Floats, kind: Kind, threshold_px: float) -> float:
    """The share of a view, the box around its points, that is within the threshold of where a model has a match."""
    shares = []
    for points_M2 in (x0_M2, x1_M2):
        width, height = np.ptp(points_M2, axis=0) + 2 * threshold_px
        radius = math.sqrt(2) * threshold_px  # in one view, where the other's point stays
        area = math.pi * radius**2 if kind == "homography" else 2 * radius * math.hypot(width, height)
        shares.append(min(area / (width * height), 1.0))
    return max(shares)


def _distinct(x0_K2: Floats, x1_K2: Floats, threshold_px: float) -> int:
    """How many matches there are, those of one place in either view (up to the threshold) counted once."""
    return min(len(np.unique((points_K2 / threshold_px).round(), axis=0)) for points_K2 in (x0_K2, x1_K2))


def on_a_line(x0_K2: Floats, x1_K2: Floats, tolerance_px: float) -> bool:
    """Whether, up to the tolerance, all points (K >= 4) but one lie on a line in either view: no model is determined.

    Then the linear system for the homography (Hartley and Zisserman, section 4.1) has more than one solution.
    """
    centred0_K2, centred1_K2 = x0_K2 - x0_K2.mean(axis=0), x1_K2 - x1_K2.mean(axis=0)
    for from_K2, to_K2 in ((centred0_K2, centred1_K2), (centred1_K2, centred0_K2)):
        spread = from_K2.std(), to_K2.std()
        if min(spread) <= tolerance_px:  # all in one place
            return True
        a_K3, b_K2 = np.column_stack([from_K2 / spread[0], np.ones(len(from_K2))]), to_K2 / spread[1]
        zero_K3 = np.zeros_like(a_K3)
        rows = [np.hstack([a_K3, zero_K3, -b_K2[:, :1] * a_K3]), np.hstack([zero_K3, a_K3, -b_K2[:, 1:] * a_K3])]
        singular = np.linalg.svd(np.concatenate(rows), compute_uv=False) / math.sqrt(len(from_K2))
        if singular[7] <= tolerance_px / min(spread):  # of nine: four points leave one out, which is 0
            return True
    return False


def checked_points(points0: ArrayLike, points1: ArrayLike, threshold_px: float) -> tuple[Floats, Floats]:
    """The points as arrays (M, 2); raises InputError as `estimate` says."""
    x0_M2, x1_M2 = (np.asarray(points, dtype=np.float64) for points in (points0, points1))
    if x0_M2.shape != x1_M2.shape or x0_M2.ndim != 2 or x0_M2.shape[1] != 2:
        raise InputError(f"points have shapes {x0_M2.shape} and {x1_M2.shape}; expected (M, 2) twice")
    if not (np.isfinite(x0_M2).all() and np.isfinite(x1_M2).all()):
        raise InputError("points hold NaN or infinity; expected finite pixels. Leave such matches out")
    if not threshold_px > 0:
        raise InputError(f"threshold_px is {threshold_px}; expected more than 0")
    return x0_M2, x1_M2


def _poselib() -> Any:
    try:
        import poselib
    except ImportError as error:
        raise MissingExtra("poselib", "geometry") from error
    return poselib
