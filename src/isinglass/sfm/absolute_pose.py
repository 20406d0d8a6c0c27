"""The pose of one camera from pixels and the points of a map they see, with outliers, and whether to believe it.

Nothing found is a result as well, with the reason: a pose is given only if it is better than chance, determined by its
inliers, and these are spread over the image.

Pixels are ours, (0, 0) the centre of the top-left one; cameras are COLMAP's, of any of its models, as in its files.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.two_view import Floats
from isinglass.sfm.colmap import COLMAP_CENTRE, pycolmap_module

Focal = Literal["known", "refined", "unknown"]

MAX_FALSE_ALARMS = 1e-3  # poses as good as ours that random matches would be expected to give
MAX_CENTRE_STD = 0.05  # of the camera's centre, as a share of the median distance of its inliers
MAX_ROTATION_STD_DEG = 2.0
CELLS, LEAST_CELLS = 8, 5  # an image is cut into CELLS x CELLS; so many of them must hold inliers
THRESHOLD = 0.008  # of the long side of an image, in px: 8 px at 1024
_NOISE = 5e-4  # least noise of keypoints, likewise
_POSELIB = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV")
_SAMPLE, _POSES = {"known": 3, "refined": 3, "unknown": 4}, {"known": 4, "refined": 4, "unknown": 10}
_ITERATIONS = 10_000
_GUESSES = (0.6, 0.75, 0.9, 1.1, 1.35, 1.7)  # of the focal length, times the camera's, where no sample gives it
_USUAL = 0.2, 10.0, 1.0  # focal lengths, as shares of the long side, and the greatest distortion that can be
_EXTRA_INLIERS = 60  # from which on distortion is refined as well


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AbsolutePose:
    """What the matches of one image agree on.

    cam_from_world  (3, 4) float64, or None
    reason          why there is none; empty where there is one
    camera          `pycolmap.Camera`, with the focal length (and distortion) found where that was asked for
    inliers         (M,) bool, matches within `threshold_px` of where the pose has them; of the best pose even where
                    that is not believed
    threshold_px    of the reprojection error
    covariance      (6, 6) float64 of rotation (rad, axes of the camera) and centre (units of the map, its axes), from
                    the inliers' residuals; None without a pose
    """

    cam_from_world: Floats | None
    reason: str
    camera: Any
    inliers: NDArray[np.bool_]
    threshold_px: float
    covariance: Floats | None = None

    @property
    def num_inliers(self) -> int:
        """How many matches agree."""
        return int(self.inliers.sum())


def estimate_absolute_pose(
    pixels: ArrayLike,
    points: ArrayLike,
    camera: Any,
    *,
    focal: Focal = "known",
    threshold_px: float | None = None,
    seed: int = 0,
) -> AbsolutePose:
    """The pose of a camera that sees `points` (M, 3) of a map at `pixels` (M, 2), by LO-RANSAC.

    camera        `pycolmap.Camera`; PoseLib estimates for the models it knows, COLMAP for the others
    focal         "known": the camera is as given; "refined": nearly, its focal length is refined, and its distortion
                  if there are many inliers; "unknown": only the model, size and principal point are believed
    threshold_px  of inliers; default: 0.8 percent of the image's long side

    Deterministic for a `seed`. Raises InputError where shapes disagree, numbers are not finite or the camera is none,
    MissingExtra without PoseLib or pycolmap.
    """
    x_M2, points_M3 = _checked(pixels, points, camera)
    side = max(camera.width, camera.height)
    limit = THRESHOLD * side if threshold_px is None else threshold_px
    if not limit > 0:
        raise InputError(f"threshold_px is {threshold_px}; expected more than 0")
    if camera.is_spherical() and focal != "known":
        focal = "known"  # it has none
    none = AbsolutePose(
        cam_from_world=None, reason="", camera=camera, inliers=np.zeros(len(x_M2), bool), threshold_px=limit
    )
    sample = _SAMPLE[focal]
    if len(np.unique(points_M3, axis=0)) <= sample:
        return replace(none, reason=f"{len(x_M2)} matches with points of the map, which is too few for any pose")
    found = _best(x_M2, points_M3, camera, focal, limit, seed)
    if found is None:
        return replace(none, reason=f"no pose fits the {len(x_M2)} matches with points of the map")
    pose, refined = found
    inliers = _errors(pose, refined, x_M2, points_M3) <= limit
    result = replace(none, inliers=inliers, camera=refined)
    reason, covariance = _judged(pose, result, x_M2, points_M3, focal)
    if reason:
        return replace(result, reason=reason)
    return replace(result, cam_from_world=pose, covariance=covariance)


def reprojection_errors(pose: AbsolutePose, pixels: ArrayLike, points: ArrayLike) -> Floats:
    """(M,) px of matches as in `estimate_absolute_pose`; inf behind the camera, and for all where there is no pose."""
    if pose.cam_from_world is None:
        return np.full(len(np.asarray(pixels)), np.inf)
    x_M2, points_M3 = _checked(pixels, points, pose.camera)
    return _errors(pose.cam_from_world, pose.camera, x_M2, points_M3)


def _checked(pixels: ArrayLike, points: ArrayLike, camera: Any) -> tuple[Floats, Floats]:
    """In COLMAP's pixels."""
    x_M2, points_M3 = np.asarray(pixels, np.float64), np.asarray(points, np.float64)
    if x_M2.ndim != 2 or x_M2.shape[1] != 2 or points_M3.shape != (len(x_M2), 3):
        raise InputError(f"pixels and points have shapes {x_M2.shape} and {points_M3.shape}; expected (M, 2), (M, 3)")
    if not (np.isfinite(x_M2).all() and np.isfinite(points_M3).all()):
        raise InputError("pixels or points hold NaN or infinity; expected finite numbers. Leave such matches out")
    if not (camera.verify_params() and np.isfinite(camera.params).all() and min(camera.width, camera.height) > 0):
        raise InputError(f"the camera is {camera.summary()}; expected a model with all its parameters, and a size")
    return x_M2 + COLMAP_CENTRE, points_M3


# ---- estimation


def _best(
    x_M2: Floats, points_M3: Floats, camera: Any, focal: Focal, limit: float, seed: int
) -> tuple[Floats, Any] | None:
    """Pose and camera with most inliers; None where no sample gives any."""
    if focal == "unknown":
        return _with_focal(x_M2, points_M3, camera, limit, seed)
    pose = _by_poselib if camera.model_name in _POSELIB else _by_colmap
    found = pose(x_M2, points_M3, camera, limit, seed)
    if found is None or focal == "known":
        return None if found is None else (found, camera)
    return _refined(found, x_M2, points_M3, camera, limit)


def _by_poselib(x_M2: Floats, points_M3: Floats, camera: Any, limit: float, seed: int) -> Floats | None:
    about = {
        "model": camera.model_name,
        "width": camera.width,
        "height": camera.height,
        "params": [float(value) for value in camera.params],
    }
    ransac = {"max_reproj_error": limit, "seed": seed, "max_iterations": _ITERATIONS, "min_iterations": 200}
    bundle = {"loss_type": "CAUCHY", "loss_scale": limit / 4}
    pose, info = _poselib().estimate_absolute_pose(x_M2, points_M3, about, ransac, bundle)
    matrix = np.asarray(pose.Rt, np.float64)
    return matrix if info["num_inliers"] > _SAMPLE["known"] and np.isfinite(matrix).all() else None


def _by_colmap(x_M2: Floats, points_M3: Floats, camera: Any, limit: float, seed: int) -> Floats | None:
    found = _colmap_ransac(x_M2, points_M3, camera, limit, seed, focal=False)
    return None if found is None else _refine_once(found, x_M2, points_M3, camera, limit, camera_too=False)[0]


def _with_focal(x_M2: Floats, points_M3: Floats, camera: Any, limit: float, seed: int) -> tuple[Floats, Any] | None:
    """Samples of four points give the focal length as well; but not on a plane, where a few lengths are tried."""
    candidates = []
    free = copy.copy(camera)
    pose = _colmap_ransac(x_M2, points_M3, free, limit, seed, focal=True)
    if pose is not None:
        candidates.append(_refined(pose, x_M2, points_M3, free, limit))
    agreeing = max(((_errors(one[0], one[1], x_M2, points_M3) <= limit).sum() for one in candidates), default=0)
    for factor in _GUESSES if agreeing < len(x_M2) / 2 else ():
        guess = copy.copy(camera)
        _scale_focal(guess, factor)
        method = _by_poselib if camera.model_name in _POSELIB else _by_colmap
        pose = method(x_M2, points_M3, guess, limit, seed)
        if pose is not None:
            candidates.append(_refined(pose, x_M2, points_M3, guess, limit))
    return max(candidates, key=lambda one: (_errors(one[0], one[1], x_M2, points_M3) <= limit).sum(), default=None)


def _colmap_ransac(
    x_M2: Floats, points_M3: Floats, camera: Any, limit: float, seed: int, *, focal: bool
) -> Floats | None:
    """With `focal` the camera's is set to what was found."""
    colmap = pycolmap_module()
    options = colmap.AbsolutePoseEstimationOptions()
    options.estimate_focal_length = focal
    options.ransac.max_error, options.ransac.random_seed = limit, seed
    found = colmap.estimate_absolute_pose(x_M2, points_M3, camera, options)
    if found is None or found["num_inliers"] <= _SAMPLE["unknown" if focal else "known"]:
        return None
    matrix = np.asarray(found["cam_from_world"].matrix(), np.float64)
    usable = np.isfinite(matrix).all() and np.isfinite(camera.params).all()
    return matrix if usable and not (focal and camera.has_bogus_params(*_USUAL)) else None


def _refined(pose: Floats, x_M2: Floats, points_M3: Floats, camera: Any, limit: float) -> tuple[Floats, Any]:
    """Pose and intrinsics by least squares over their inliers, which are found again, until they stay."""
    before = -1
    for _ in range(5):
        inliers = int((_errors(pose, camera, x_M2, points_M3) <= limit).sum())
        if inliers <= max(before, _SAMPLE["unknown"]):
            break
        before = inliers
        found = _refine_once(pose, x_M2, points_M3, camera, limit, camera_too=True)
        if int((_errors(found[0], found[1], x_M2, points_M3) <= limit).sum()) < inliers:
            break
        pose, camera = found
    return pose, camera


def _refine_once(
    pose: Floats, x_M2: Floats, points_M3: Floats, camera: Any, limit: float, *, camera_too: bool
) -> tuple[Floats, Any]:
    """With as few unknowns as needed where more of them give a camera that cannot be."""
    colmap = pycolmap_module()
    inliers = _errors(pose, camera, x_M2, points_M3) <= limit
    options = colmap.AbsolutePoseRefinementOptions()
    options.loss_function_scale = limit / 4
    options.gradient_tolerance = 1e-6  # the default stops before a focal length has moved
    options.refine_focal_length = camera_too
    distorted = camera_too and int(inliers.sum()) >= _EXTRA_INLIERS and len(camera.extra_params_idxs()) <= 2
    for extra in (True, False) if distorted else (False,):
        options.refine_extra_params = extra
        result = copy.copy(camera)
        found = colmap.refine_absolute_pose(colmap.Rigid3d(pose), x_M2, points_M3, inliers, result, options)
        if found is not None and np.isfinite(result.params).all() and not result.has_bogus_params(*_USUAL):
            return np.asarray(found["cam_from_world"].matrix(), np.float64), result
    return pose, camera


def _errors(pose: Floats, camera: Any, x_M2: Floats, points_M3: Floats) -> Floats:
    """(M,) px, inf behind the camera."""
    landed_M2 = np.asarray(camera.img_from_cam(points_M3 @ pose[:, :3].T + pose[:, 3]), np.float64)
    return np.nan_to_num(np.linalg.norm(landed_M2 - x_M2, axis=1), nan=np.inf)


# ---- belief


def _judged(
    pose: Floats, result: AbsolutePose, x_M2: Floats, points_M3: Floats, focal: Focal
) -> tuple[str, Floats | None]:
    """Why the pose is not believed ("" if it is), and its covariance."""
    inliers, limit, camera = result.inliers, result.threshold_px, result.camera
    agree = f"{result.num_inliers} of {len(x_M2)} matches agree on a pose"
    counts = [_distinct(x_M2[chosen], points_M3[chosen], limit) for chosen in (np.ones_like(inliers), inliers)]
    box = np.ptp(x_M2, axis=0) + 2 * limit
    chance = min(math.pi * limit**2 / (box[0] * box[1]), 1.0)
    if _log_false_alarms(counts[0], counts[1], chance, focal) >= math.log(MAX_FALSE_ALARMS):
        return f"{agree}, which chance would give as well", None
    cells_M = (x_M2[inliers] * CELLS / [camera.width, camera.height]).astype(int).clip(0, CELLS - 1)
    if len(np.unique(cells_M, axis=0)) < LEAST_CELLS:
        return f"{agree}, all in one small part of the image", None
    covariance = _covariance(pose, camera, x_M2[inliers], points_M3[inliers], fixed=focal == "known")
    centre = -pose[:, :3].T @ pose[:, 3]
    distance = float(np.median(np.linalg.norm(points_M3[inliers] - centre, axis=1)))
    centre_std, rotation_std = math.inf, math.inf
    if covariance is not None:
        rotation_std, centre_std = (
            math.sqrt(np.linalg.eigvalsh(part)[-1]) for part in (covariance[:3, :3], covariance[3:, 3:])
        )
    if centre_std > MAX_CENTRE_STD * distance or math.degrees(rotation_std) > MAX_ROTATION_STD_DEG:
        return f"{agree}, which do not determine it: they are on a line, in one place, or too few", None
    return "", covariance


def _log_false_alarms(matches: int, inliers: int, chance: float, focal: Focal) -> float:
    """Log of how many poses with so many inliers are expected by chance, as for two views in `geometry.robust`.

    Each of the (matches choose sample) samples gives some poses, and a wrong match agrees with one with probability
    `chance` (Moulon, Monasse and Marlet, ACCV 2012, section 3).
    """
    sample = _SAMPLE[focal]
    if inliers <= sample:
        return math.inf
    return (
        math.log((matches - sample) * _POSES[focal])
        + _log_choose(matches, inliers)
        + _log_choose(inliers, sample)
        + (inliers - sample) * math.log(chance)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _distinct(x_K2: Floats, points_K3: Floats, limit: float) -> int:
    """How many matches there are, those of one place in the image (up to the threshold) or one point counted once."""
    return min(len(np.unique((x_K2 / limit).round(), axis=0)), len(np.unique(points_K3, axis=0)))


def _covariance(pose: Floats, camera: Any, x_K2: Floats, points_K3: Floats, *, fixed: bool) -> Floats | None:
    """(6, 6) of rotation and centre, to first order, with the focal length as one more unknown unless `fixed`.

    None where the inliers do not determine them.
    """
    rotation, seen_K3 = pose[:, :3], points_K3 @ pose[:, :3].T + pose[:, 3]
    step = 1e-6 * np.linalg.norm(seen_K3, axis=1).max()

    def landed(offset_3: Floats) -> Floats:
        return np.asarray(camera.img_from_cam(seen_K3 + offset_3), np.float64)

    slopes_K23 = np.stack([(landed(step * axis) - landed(-step * axis)) / (2 * step) for axis in np.eye(3)], axis=2)
    x_K, y_K, z_K = seen_K3.T
    zero_K = np.zeros_like(x_K)
    turned_K33 = np.array([[zero_K, z_K, -y_K], [-z_K, zero_K, x_K], [y_K, -x_K, zero_K]]).transpose(2, 0, 1)
    columns = [slopes_K23 @ turned_K33, -slopes_K23 @ rotation]
    if not fixed:
        longer = copy.copy(camera)
        _scale_focal(longer, 1 + 1e-6)
        moved_K2 = np.asarray(longer.img_from_cam(seen_K3), np.float64) - landed(np.zeros(3))
        columns.append(moved_K2[:, :, None] / 1e-6)
    jacobian = np.concatenate(columns, axis=2).reshape(2 * len(x_K2), -1)
    residual_K2 = x_K2 - landed(np.zeros(3))
    noise = max(math.sqrt((residual_K2**2).mean()), _NOISE * max(camera.width, camera.height))
    scale = np.linalg.norm(jacobian, axis=0)
    if not (np.isfinite(jacobian).all() and scale.all()):
        return None
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    if singular[-1] <= 1e-9 * singular[0]:
        return None
    root = right.T / singular * noise / scale[:, None]
    return (root @ root.T)[:6, :6]


def _scale_focal(camera: Any, factor: float) -> None:
    parameters = np.array(camera.params)
    parameters[list(camera.focal_length_idxs())] *= factor
    camera.params = parameters


def _poselib() -> Any:
    try:
        import poselib
    except ImportError as error:
        raise MissingExtra("poselib", "maps") from error
    return poselib
