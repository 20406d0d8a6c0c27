"""The robust solvers of other packages on the same matches, behind one result: the solver alone moves a benchmark.

Each is called as published evaluations call it, `threshold_px` being its own parameter, so their numbers and best
thresholds can be compared. Two things are ours and the same for all: which matches count as inliers, and that a model
which its inliers do not determine (all on a line, all in one place) is none. What random matches give is given
back as it is, as published: whether a model is better than chance is asked by `geometry.robust`, not here.

Any pixel convention will do if points and cameras agree: nothing but K^-1 (x, y, 1) enters, and no image.
No state of any package is changed: PoseLib and pycolmap take the seed as an option. OpenCV has a fixed generator that
`cv2.setRNGSeed` does not reach; a seed of 0 leaves it the order of the matches (as published), others shuffle them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError, MissingExtra
from isinglass.geometry.camera import calibrated, essential_from_pose
from isinglass.geometry.dlt import weighted_dlt
from isinglass.geometry.robust import RobustResult, checked_points, fitted, on_a_line
from isinglass.geometry.two_view import Floats, epipolar_error, transfer_error

POSE_SOLVERS = ("opencv-ransac", "opencv-magsac", "poselib", "pycolmap")  # and for fundamental matrices
SOLVERS = (*POSE_SOLVERS, "dlt")  # for homographies

_PACKAGES = {  # module: its name for pip, the extra that has it
    "cv2": ("opencv-python-headless", "sift"),
    "poselib": ("poselib", "geometry"),
    "pycolmap": ("pycolmap", "eval"),
}
_METHODS = {"opencv-ransac": "RANSAC", "opencv-magsac": "USAC_MAGSAC"}
_NOISE_PX = 1.0  # points that are no further off a line are on it, whatever the threshold

Pair = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PoseResult:
    """The relative pose that matches agree on: a point X of camera 0 is R X + s t of camera 1, the scale s unknown.

    rotation      (3, 3) float64 R of cam1_from_cam0; None = no pose, then there is no translation either
    translation   (3,) float64 t, of length 1; zeros where the solver says that the camera only turned. pycolmap alone
                  does, and not of every such pair; otherwise the direction is arbitrary then
    inliers       (M,) bool: the matches that move `threshold_px` at most to fit the pose's epipolar geometry (without
                  translation: its homography), as in `geometry.two_view`. On which side of the cameras is not asked
    threshold_px  what the solver was given, and of the inliers
    solver        who found the pose
    """

    rotation: Floats | None
    translation: Floats | None
    inliers: NDArray[np.bool_]
    threshold_px: float
    solver: str

    @property
    def num_inliers(self) -> int:
        """How many matches agree with the pose."""
        return int(self.inliers.sum())


def solve_homography(
    points0: ArrayLike,
    points1: ArrayLike,
    solver: str,
    threshold_px: float,
    *,
    scores: ArrayLike | None = None,
    seed: int = 0,
) -> RobustResult:
    """The homography that one of `SOLVERS` finds in matches `points0` and `points1`, both (M, 2) px.

    To OpenCV, PoseLib and pycolmap `threshold_px` is the greatest error in view 1. "dlt" is least squares over all
    matches, `scores` (M,) their weights, which only it reads. Four matches are enough, though they fit anything.
    Deterministic for a `seed`. The model is None for fewer, and where it is not determined.

    Raises InputError where shapes disagree, numbers are not finite, the solver is unknown, the threshold not positive
    or the seed negative; MissingExtra without the solver's package.
    """
    points = x0_M2, x1_M2 = _checked(points0, points1, solver, SOLVERS, threshold_px, seed)
    if solver == "dlt":
        model = weighted_dlt(x0_M2, x1_M2, scores)
    elif solver == "poselib":
        model = _poselib_homography(_package("poselib"), points, threshold_px, seed)
    elif solver == "pycolmap":
        model = _pycolmap_homography(_package("pycolmap"), points, threshold_px, seed)
    else:
        model = _opencv_homography(_package("cv2"), _shuffled(points, seed), solver, threshold_px)
    model, inliers = fitted(model, "homography", x0_M2, x1_M2, threshold_px)
    support = inliers
    if solver == "dlt":
        support = np.ones_like(inliers) if scores is None else np.asarray(scores) > 0
    if not _determined(x0_M2[support], x1_M2[support], 4, threshold_px):
        model, inliers = None, np.zeros_like(inliers)
    return RobustResult(model=model, kind="homography", inliers=inliers, threshold_px=threshold_px, solver=solver)


def solve_fundamental(
    points0: ArrayLike, points1: ArrayLike, solver: str, threshold_px: float, *, seed: int = 0
) -> RobustResult:
    """The fundamental matrix that one of `POSE_SOLVERS` finds in matches `points0` and `points1`, both (M, 2) px.

    `threshold_px` is the greatest epipolar error. Seven matches are enough, though they fit up to three matrices; of a
    plane, one of the many that fit is given. Deterministic for a `seed`. The model is None for fewer, and where matches
    are all on a line or in one place.

    Raises InputError as `solve_homography`; MissingExtra without the solver's package.
    """
    points = x0_M2, x1_M2 = _checked(points0, points1, solver, POSE_SOLVERS, threshold_px, seed)
    if solver == "poselib":
        model = _poselib_fundamental(_package("poselib"), points, threshold_px, seed)
    elif solver == "pycolmap":
        model = _pycolmap_fundamental(_package("pycolmap"), points, threshold_px, seed)
    else:
        model = _opencv_fundamental(_package("cv2"), _shuffled(points, seed), solver, threshold_px)
    model, inliers = fitted(model, "fundamental", x0_M2, x1_M2, threshold_px)
    if not _determined(x0_M2[inliers], x1_M2[inliers], 7, threshold_px):
        model, inliers = None, np.zeros_like(inliers)
    return RobustResult(model=model, kind="fundamental", inliers=inliers, threshold_px=threshold_px, solver=solver)


def solve_pose(
    points0: ArrayLike,
    points1: ArrayLike,
    camera0: ArrayLike,
    camera1: ArrayLike,
    solver: str,
    threshold_px: float,
    *,
    seed: int = 0,
) -> PoseResult:
    """The relative pose that one of `POSE_SOLVERS` finds in matches `points0` and `points1`, both (M, 2) px.

    Cameras are (3, 3) matrices K of the same pixels. `threshold_px` is the greatest epipolar error in px of the images
    of the cameras. Five matches are enough, though they fit up to ten poses. Deterministic for a `seed`. There is no
    pose for fewer, and where it is not determined. OpenCV does not ask on which side of the cameras points are until it
    has chosen: of a plane it often takes the other of the two poses that fit, and a turn may come out half a turn off.

    Raises InputError as `solve_homography`, and for cameras with skew or without focal lengths; MissingExtra without
    the solver's package.
    """
    points = x0_M2, x1_M2 = _checked(points0, points1, solver, POSE_SOLVERS, threshold_px, seed)
    cameras = _checked_camera(camera0), _checked_camera(camera1)
    if solver == "poselib":
        pose = _poselib_pose(_package("poselib"), points, cameras, threshold_px, seed)
    elif solver == "pycolmap":
        pose = _pycolmap_pose(_package("pycolmap"), points, cameras, threshold_px, seed)
    else:
        pose = _opencv_pose(_package("cv2"), _shuffled(points, seed), cameras, solver, threshold_px)
    rotation, translation = None, None
    inliers = np.zeros(len(x0_M2), bool)
    if pose is not None and np.isfinite(pose[0]).all() and np.isfinite(pose[1]).all():
        rotation, translation = pose[0], pose[1] / (np.linalg.norm(pose[1]) or 1.0)
        inliers = _pose_error(rotation, translation, points, cameras) <= threshold_px
    if not _determined(x0_M2[inliers], x1_M2[inliers], 5, threshold_px):
        rotation, translation, inliers = None, None, np.zeros_like(inliers)
    return PoseResult(
        rotation=rotation, translation=translation, inliers=inliers, threshold_px=threshold_px, solver=solver
    )


# ---- OpenCV


def _opencv_homography(cv2: Any, points: Pair, solver: str, threshold_px: float) -> Floats | None:
    """With glue-factory's options."""
    if len(points[0]) < 4:
        return None
    try:
        return cv2.findHomography(
            *points, getattr(cv2, _METHODS[solver]), threshold_px, maxIters=3000, confidence=0.995
        )[0]
    except cv2.error:  # what it says of some degenerate points
        return None


def _opencv_fundamental(cv2: Any, points: Pair, solver: str, threshold_px: float) -> Floats | None:
    """With wxbs_benchmark's options. Of seven matches there may be several, of which this is the first."""
    if len(points[0]) < 7:
        return None
    try:
        found = cv2.findFundamentalMat(*points, getattr(cv2, _METHODS[solver]), threshold_px, 0.999, 100_000)[0]
    except cv2.error:
        return None
    return None if found is None else found[:3]


def _opencv_pose(cv2: Any, points: Pair, cameras: Pair, solver: str, threshold_px: float) -> Pair | None:
    """As in SuperGlue's `estimate_pose` and glue-factory: calibrated points, the threshold over the mean focal length.

    Of the essential matrices (several for five matches) and the four poses of each, that with most inliers in front of
    both cameras and nearer than 50 baselines, or none. Published code passes 1e9 for these 50, but OpenCV takes it for
    an output (its four results show that it does). SuperGlue's mean counts fx of camera 0 and fy of camera 1 twice:
    the same for square pixels.
    """
    if len(points[0]) < 5:
        return None
    focal = np.mean([camera[axis, axis] for camera in cameras for axis in (0, 1)])
    x0_M2, x1_M2 = (np.ascontiguousarray(calibrated(*view)) for view in zip(points, cameras, strict=True))
    try:
        essentials, mask = cv2.findEssentialMat(
            x0_M2, x1_M2, np.eye(3), method=getattr(cv2, _METHODS[solver]), prob=0.99999, threshold=threshold_px / focal
        )
        each = [] if essentials is None else np.split(essentials, len(essentials) // 3)
        poses = [cv2.recoverPose(one, x0_M2, x1_M2, np.eye(3), mask=mask.copy())[:3] for one in each]
    except cv2.error:
        return None
    count, rotation, translation = max(poses, key=lambda pose: pose[0], default=(0, np.eye(3), np.zeros((3, 1))))
    return (rotation, translation[:, 0]) if count else None


def _shuffled(points: Pair, seed: int) -> Pair:
    x0_M2, x1_M2 = points
    order = np.random.default_rng(seed).permutation(len(x0_M2)) if seed else np.arange(len(x0_M2))
    return np.ascontiguousarray(x0_M2[order]), np.ascontiguousarray(x1_M2[order])


# ---- PoseLib, with its own defaults, as in glue-factory


def _poselib_homography(poselib: Any, points: Pair, threshold_px: float, seed: int) -> Floats | None:
    if len(points[0]) < 4:
        return None
    return poselib.estimate_homography(*points, {"max_reproj_error": threshold_px, "seed": seed}, {})[0]


def _poselib_fundamental(poselib: Any, points: Pair, threshold_px: float, seed: int) -> Floats | None:
    model, info = poselib.estimate_fundamental(*points, {"max_epipolar_error": threshold_px, "seed": seed}, {})
    return model if info["num_inliers"] else None  # without any it is whatever was in memory


def _poselib_pose(poselib: Any, points: Pair, cameras: Pair, threshold_px: float, seed: int) -> Pair | None:
    if len(points[0]) < 5:
        return None
    options = {"max_epipolar_error": threshold_px, "seed": seed}
    pose, info = poselib.estimate_relative_pose(*points, *map(_pinhole, cameras), options, {})
    return (pose.R, pose.t) if info["num_inliers"] else None  # without any it says identity


# ---- pycolmap


def _pycolmap_homography(pycolmap: Any, points: Pair, threshold_px: float, seed: int) -> Floats | None:
    options = pycolmap.RANSACOptions(max_error=threshold_px, random_seed=seed)
    found = pycolmap.estimate_homography_matrix(*points, options)
    return None if found is None else found["H"]


def _pycolmap_fundamental(pycolmap: Any, points: Pair, threshold_px: float, seed: int) -> Floats | None:
    options = pycolmap.RANSACOptions(max_error=threshold_px, random_seed=seed)
    found = pycolmap.estimate_fundamental_matrix(*points, options)
    return None if found is None else found["F"]


def _pycolmap_pose(pycolmap: Any, points: Pair, cameras: Pair, threshold_px: float, seed: int) -> Pair | None:
    """COLMAP's two-view geometry: from an essential matrix or, of planes and of cameras that turn, a homography.

    Its options are the defaults, as in glue-factory, but cameras are taken for known whatever fits better without
    them, five inliers are enough, not 15, and watermarks are not looked for.
    """
    options = pycolmap.TwoViewGeometryOptions(
        min_E_F_inlier_ratio=0.0, min_num_inliers=5, detect_watermark=False, compute_relative_pose=True
    )
    options.ransac.max_error, options.ransac.random_seed = threshold_px, seed
    camera0, camera1 = (pycolmap.Camera(**_pinhole(camera)) for camera in cameras)
    each_M2 = np.repeat(np.arange(len(points[0]), dtype=np.uint32)[:, None], 2, axis=1)
    geometry = pycolmap.estimate_calibrated_two_view_geometry(camera0, points[0], camera1, points[1], each_M2, options)
    pose = geometry.cam2_from_cam1
    return None if pose is None else (pose.rotation.matrix(), np.array(pose.translation))


# ---- common to all


def _pose_error(rotation: Floats, translation: Floats, points: Pair, cameras: Pair) -> Floats:
    """(M,) px, as in `geometry.two_view`: from the epipolar lines or, without translation, from where rays turn to."""
    inverse0, inverse1 = np.linalg.inv(cameras[0]), np.linalg.inv(cameras[1])
    if not translation.any():
        return transfer_error(cameras[1] @ rotation @ inverse0, *points)
    return epipolar_error(inverse1.T @ essential_from_pose(rotation, translation) @ inverse0, *points)


def _determined(x0_K2: Floats, x1_K2: Floats, sample: int, threshold_px: float) -> bool:
    return len(x0_K2) >= sample and not on_a_line(x0_K2, x1_K2, min(threshold_px, _NOISE_PX))


def _pinhole(camera: Floats) -> dict[str, Any]:
    """For PoseLib and pycolmap, which do not ask for the size here."""
    params = [float(camera[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))]
    return {"model": "PINHOLE", "width": 1, "height": 1, "params": params}


def _checked(
    points0: ArrayLike, points1: ArrayLike, solver: str, known: tuple[str, ...], threshold_px: float, seed: int
) -> Pair:
    if solver not in known:
        raise InputError(f"solver is {solver!r}; expected one of {', '.join(known)}")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected 0 or more")
    return checked_points(points0, points1, threshold_px)


def _checked_camera(camera: ArrayLike) -> Floats:
    matrix = np.asarray(camera, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise InputError(f"a camera is {matrix.tolist()}; expected a finite (3, 3) matrix K")
    pinhole = np.array([[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]])
    if not np.array_equal(matrix, pinhole) or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise InputError(
            f"a camera is {matrix.tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx and fy > 0"
        )
    return matrix


def _package(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(*_PACKAGES[module]) from error
