"""What matching two images gives: their features and matches, and the geometry that the matches agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isinglass.errors import MissingExtra
from isinglass.geometry.camera import essential_from_pose
from isinglass.geometry.robust import RobustResult, estimate
from isinglass.geometry.solvers import PoseResult, solve_pose
from isinglass.kernels.calibration import probabilities
from isinglass.options import Options
from isinglass.types import Features, Matches

INLIER_PX = 3.0  # that a match may be off, in px of the images as they were extracted
POSE_PX = 1.0  # that it may be off an epipolar line of calibrated cameras, in the same px


@dataclass(frozen=True, kw_only=True)
class MatchResult:
    """Two images' features and their matches, how long each stage took, and notes on how the images were read.

    Geometry is by PoseLib, an extra; its methods raise MissingExtra without it. Thresholds are px of the originals; the
    default is INLIER_PX px (POSE_PX for calibrated cameras) of the larger image as it was extracted. No model is a
    result as well, see `RobustResult` and `PoseResult`.
    """

    features0: Features
    features1: Features
    matches: Matches
    timings_ms: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)  # of the pipeline that made it

    @property
    def points0(self) -> Tensor:
        """(M, 2) float32, matched keypoints of the first image in its original pixels."""
        return self.features0.keypoints[0, self.matches.pairs()[:, 0]]

    @property
    def points1(self) -> Tensor:
        """(M, 2) float32, what they match in the second image, in its original pixels."""
        return self.features1.keypoints[0, self.matches.pairs()[:, 1]]

    @property
    def scores(self) -> Tensor:
        """(M,) in [0, 1]."""
        return self.matches.pair_scores()

    @property
    def probabilities(self) -> Tensor | None:
        """(M,) how likely each match is right; None if the matcher's scores have not been calibrated."""
        found = probabilities(self.matches)
        return None if found is None else found[0, self.matches.indices[0] >= 0]

    @property
    def turns1(self) -> int:
        """Quarter turns (and 4 if mirrored) that the second image was given before extraction; see Features.turns."""
        return turns_of(self.features1)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return arrays of this pair, copied to the CPU.

        keypoints0/1    (N, 2) float32 px of the original images
        descriptors0/1  (N, D)
        matches         (M, 2) int64, indices into keypoints0 and keypoints1
        scores          (M,)
        points0/1       (M, 2), the matched keypoints
        """
        arrays = {
            "keypoints0": self.features0.keypoints[0],
            "keypoints1": self.features1.keypoints[0],
            "descriptors0": self.features0.descriptors[0],
            "descriptors1": self.features1.descriptors[0],
            "matches": self.matches.pairs(),
            "scores": self.scores,
            "points0": self.points0,
            "points1": self.points1,
        }
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in arrays.items()
        }

    def geometry(
        self,
        kind: Literal["auto", "homography", "fundamental"] = "auto",
        *,
        threshold_px: float | None = None,
        seed: int = 0,
    ) -> RobustResult:
        """Return the homography or the fundamental matrix, or whichever explains the matches; see `estimate`."""
        threshold_px = self._px(INLIER_PX) if threshold_px is None else threshold_px
        return estimate(*self._points(), kind, threshold_px=threshold_px, seed=seed)

    def homography(self, *, threshold_px: float | None = None, seed: int = 0) -> RobustResult:
        """Return the homography H from the first to the second image, x1 ~ H x0, and its inliers."""
        return self.geometry("homography", threshold_px=threshold_px, seed=seed)

    def fundamental(self, *, threshold_px: float | None = None, seed: int = 0) -> RobustResult:
        """Return the fundamental matrix F, x1^T F x0 = 0, and its inliers."""
        return self.geometry("fundamental", threshold_px=threshold_px, seed=seed)

    def relative_pose(
        self, camera0: ArrayLike, camera1: ArrayLike, *, threshold_px: float | None = None, seed: int = 0
    ) -> PoseResult:
        """Return rotation and direction of translation of cam1_from_cam0, and their inliers.

        Cameras are matrices K (3, 3) in px of the original images, without distortion. Raises InputError for others.
        """
        threshold_px = self._px(POSE_PX) if threshold_px is None else threshold_px
        return solve_pose(*self._points(), camera0, camera1, "poselib", threshold_px, seed=seed)

    def essential(
        self, camera0: ArrayLike, camera1: ArrayLike, *, threshold_px: float | None = None, seed: int = 0
    ) -> RobustResult:
        """Return the essential matrix E of calibrated points, x1^T E x0 = 0, |E| = 1; see `relative_pose`."""
        pose = self.relative_pose(camera0, camera1, threshold_px=threshold_px, seed=seed)
        model = None
        if pose.rotation is not None and pose.translation is not None and pose.translation.any():
            model = essential_from_pose(pose.rotation, pose.translation) / math.sqrt(2)
        return RobustResult(
            model=model,
            kind="essential",
            inliers=pose.inliers,
            threshold_px=pose.threshold_px,
            solver=pose.solver,
        )

    def _points(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.points0.cpu().numpy(), self.points1.cpu().numpy()

    def _px(self, extracted_px: float) -> float:
        sizes = [view.image_size[0].tolist() for view in (self.features0, self.features1)]
        return extracted_px * self.options.original_px(*sizes)


def turns_of(features: Features) -> int:
    """Return how the extractor saw the one image, as in Features."""
    return 0 if features.turns is None else int(features.turns[0])


def geometry_if_installed(
    result: MatchResult, kind: Literal["auto", "homography", "fundamental"] = "auto"
) -> RobustResult | None:
    """Return `result.geometry(kind)`; None where PoseLib is not installed."""
    try:
        return result.geometry(kind)
    except MissingExtra:
        return None
