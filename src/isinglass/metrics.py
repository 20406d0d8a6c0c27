"""What a benchmark measures: arrays in, numbers out.

Errors are px or degrees; a pair that failed has the error inf and counts, it is never left out. All shares and areas
are in [0, 1]; papers print them times 100. Where published definitions differ, the docstring says which one this is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isinglass.errors import InputError

Floats = NDArray[np.float64]

UNMATCHABLE, IGNORED = -1, -2  # true indices: the point has no partner; whether it has one is not known


def auc(errors: ArrayLike, thresholds: Sequence[float]) -> list[float]:
    """Area under the curve of recall against error, from 0 to each threshold, over that threshold.

    `errors` (P,), one a pair; nan for no pairs. The definition of SuperGlue (CVPR 2020, section 5.2, `pose_auc`), which
    LightGlue, LoFTR and glue-factory (rounded to 4 digits) share: the sorted errors, (0, 0) first, joined by straight
    lines up to the last error below the threshold (an error equal to it is a failure), level from there on.

    So it is the mean of max(0, 1 - error / threshold), the area under the steps, plus (last error below the
    threshold) / (2 P threshold): up to 1 / (2 P) more, 3.3 points for 15 pairs. Compare numbers of as many pairs only.

    Raises InputError for NaN or negative errors, or thresholds that are not positive.
    """
    errors_P = np.sort(_errors(errors))
    count = len(errors_P)
    areas = []
    for threshold in thresholds:
        if not threshold > 0:
            raise InputError(f"a threshold is {threshold}; expected more than 0")
        below = int(np.searchsorted(errors_P, threshold, side="left"))
        error = np.concatenate([[0.0], errors_P[:below], [threshold]])
        recall = np.append(np.arange(below + 1), below) / max(count, 1)
        area = ((recall[1:] + recall[:-1]) / 2 * np.diff(error)).sum() / threshold
        areas.append(float(area) if count else math.nan)
    return areas


def mean_average_accuracy(errors: ArrayLike, thresholds: Sequence[float]) -> float:
    """mAA: the share of errors within a threshold (or equal to it), averaged over `thresholds`; nan without errors.

    The Image Matching Challenge (Jin et al., IJCV 129, 2021) takes pose errors and 1 to 10 degrees, EVD
    `visible_area_error_px` and 1 to 20 px, WxBS the errors of one pair's annotated points in px, and the mean over
    pairs (wxbs_benchmark's `get_mAA` and `fraction_of_gt_corrs_consisent_with_F`, both with <=). glue-factory prints a
    mean of AUCs under this name.
    """
    errors_P = _errors(errors)
    if not len(errors_P):
        return math.nan
    return float(np.mean([(errors_P <= threshold).mean() for threshold in thresholds]))


def pose_error_deg(
    rotation: ArrayLike | None,
    translation: ArrayLike | None,
    true_rotation: ArrayLike,
    true_translation: ArrayLike,
) -> tuple[float, float]:
    """The angle of the rotation from the true one, in [0, 180], and that of the translation's direction, in [0, 90].

    Degrees. A translation and its opposite are the same, as published (SuperGlue's and glue-factory's
    `compute_pose_error`: min(e, 180 - e)), for an essential matrix does not tell them apart; a pair's error is the
    greater of the two angles. Without a pose (None) both are inf. Without a true translation no direction is wrong: 0;
    an estimate of zero where there is one is as far off as can be: 90. (Published code gives NaN for both.)
    """
    if rotation is None or translation is None:
        return math.inf, math.inf
    turn = np.asarray(rotation, np.float64).T @ np.asarray(true_rotation, np.float64)
    # The tangent stays exact near 0 and 180 degrees, where the arc cosine of (trace - 1) / 2 loses half its digits.
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    angle = math.atan2(float(np.linalg.norm(axis)), float(np.trace(turn)) - 1)
    step, true_step = (np.asarray(t, np.float64).reshape(3) for t in (translation, true_translation))
    if not true_step.any():
        return math.degrees(angle), 0.0
    if not step.any():
        return math.degrees(angle), 90.0
    across, along = np.linalg.norm(np.cross(step, true_step)), abs(step @ true_step)
    return math.degrees(angle), math.degrees(math.atan2(float(across), float(along)))


def corner_error_px(homography: ArrayLike | None, true_homography: ArrayLike, size: Sequence[float]) -> float:
    """Mean distance, in view 1, of where two homographies take the corners of view 0; inf for None or not finite.

    `size` is (width, height) of view 0; its corners are (-0.5, -0.5) to (width - 0.5, height - 0.5), which is
    glue-factory's (0, 0) to (width, height) in pixels whose origin is the image's corner. (Others: pixel centres, 0 to
    width - 1.) LightGlue (ICCV 2023, section 5.1) measures in images of 480 px on the short side: multiply by the
    scale of image 1.
    """
    if homography is None:
        return math.inf
    width, height = size
    corners = np.array([[x, y, 1.0] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    with np.errstate(divide="ignore", invalid="ignore"):
        mapped, expected = (
            points[:, :2] / points[:, 2:]
            for points in (corners @ np.asarray(matrix, np.float64).T for matrix in (homography, true_homography))
        )
        error = float(np.linalg.norm(mapped - expected, axis=1).mean())
    return error if math.isfinite(error) else math.inf


def visible_area_error_px(
    homography: ArrayLike | None, true_homography: ArrayLike, size0: Sequence[int], size1: Sequence[int]
) -> float:
    """Mean distance, in view 1, of where two homographies take the pixels of view 0 that view 1 sees.

    Sizes are (width, height); a pixel is seen if the true homography takes its centre into view 1. inf for None or not
    finite, and where view 1 sees nothing (published: NaN, within no threshold). EVD's error in the RANSAC tutorial of
    CVPR 2020 and in wxbs_benchmark (`get_visible_part_mean_absolute_reprojection_error`), px of the stored images. They
    warp a mask there and back with OpenCV, whose rim is up to a pixel wider: 0.2 % at most on the pairs of EVD.
    """
    if homography is None:
        return math.inf
    y_N, x_N = (axis.ravel() for axis in np.indices((size0[1], size0[0]), dtype=np.float64))
    grid_3N = np.stack([x_N, y_N, np.ones_like(x_N)])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        expected_3N = np.asarray(true_homography, np.float64) @ grid_3N
        expected_2N = expected_3N[:2] / expected_3N[2:]
        seen_N = ((expected_2N >= -0.5) & (expected_2N < np.reshape(size1, (2, 1)) - 0.5)).all(axis=0)
        mapped_3K = np.asarray(homography, np.float64) @ grid_3N[:, seen_N]
        distance_K = np.linalg.norm(mapped_3K[:2] / mapped_3K[2:] - expected_2N[:, seen_N], axis=0)
    error = float(distance_K.mean()) if len(distance_K) else math.inf
    return error if math.isfinite(error) else math.inf


def precision(correct: ArrayLike) -> float:
    """The share of matches that are correct, (M,) bool; nan without matches, where published code counts 0."""
    flags_M = _flags(correct)
    return float(flags_M.mean()) if len(flags_M) else math.nan


def matching_score(num_correct: int, num_keypoints: int) -> float:
    """The share of view 0's keypoints that are in a correct match (SuperGlue, section 5.2); 0 without keypoints."""
    return num_correct / num_keypoints if num_keypoints else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchCounts:
    """Matches against the truth, points of unknown truth left out: `correct` of `predicted`, of `matchable` points."""

    correct: int
    predicted: int
    matchable: int

    @property
    def precision(self) -> float:
        """Correct of predicted; nan where none was predicted."""
        return self.correct / self.predicted if self.predicted else math.nan

    @property
    def recall(self) -> float:
        """Correct of matchable; nan where no point can be matched."""
        return self.correct / self.matchable if self.matchable else math.nan


def match_counts(indices: ArrayLike, true_indices: ArrayLike) -> MatchCounts:
    """Counts of matches `indices` (N,), -1 = none, against `true_indices` (N,), -1 = no partner, -2 = ignored.

    A match is correct if it is the very one of the truth; one of an unmatchable point is wrong; one of an ignored
    point is neither (LightGlue, section 5.1, and glue-factory's `gt_match_recall`, `gt_match_precision`).
    """
    predicted_N, true_N = np.asarray(indices), np.asarray(true_indices)
    if predicted_N.shape != true_N.shape or predicted_N.ndim != 1:
        raise InputError(f"indices have shapes {predicted_N.shape} and {true_N.shape}; expected (N,) twice")
    matchable_N, found_N = true_N > UNMATCHABLE, predicted_N > UNMATCHABLE
    return MatchCounts(
        correct=int((matchable_N & (predicted_N == true_N)).sum()),
        predicted=int((found_N & (true_N != IGNORED)).sum()),
        matchable=int(matchable_N.sum()),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reliability:
    """Per bin of scores: the mean score, the share that is correct (nan in an empty bin), and how many they are."""

    confidence: Floats
    accuracy: Floats
    count: NDArray[np.int64]


def reliability(scores: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Scores (M,) in [0, 1] and whether each was right, in `bins` bins of equal width, ((k - 1) / bins, k / bins].

    A score of 0 is in the first. Guo et al., On Calibration of Modern Neural Networks (ICML 2017), section 2.
    Raises InputError where shapes disagree or scores are outside [0, 1].
    """
    scores_M, flags_M = np.asarray(scores, np.float64), _flags(correct)
    if scores_M.shape != flags_M.shape:
        raise InputError(f"scores have shape {scores_M.shape} and correct {flags_M.shape}; expected (M,) twice")
    if not ((scores_M >= 0) & (scores_M <= 1)).all():
        raise InputError("scores are outside [0, 1] or NaN; expected probabilities")
    bin_M = np.searchsorted(np.arange(1, bins) / bins, scores_M, side="left")
    count = np.bincount(bin_M, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(bin_M, value, bins) / count for value in (scores_M, flags_M))
    return Reliability(confidence=confidence, accuracy=accuracy, count=count)


def expected_calibration_error(scores: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """ECE: mean over matches of |accuracy - confidence| of their bin (Guo et al. 2017, equation 3); nan without any.

    0 for calibrated scores only in the limit: M matches have up to 0.4 sqrt(bins / M) by chance alone.
    """
    diagram = reliability(scores, correct, bins)
    if not diagram.count.any():
        return math.nan
    return float(np.nansum(np.abs(diagram.accuracy - diagram.confidence) * diagram.count) / diagram.count.sum())


MIN_PAIRS = 10  # that an interval is made from


def bootstrap_interval(
    values_a: ArrayLike,
    values_b: ArrayLike | None,
    statistic: Callable[[NDArray], float],
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`(a), or of `statistic`(a) - `statistic`(b) on the same pairs.

    `values_a` and `values_b` hold one row a pair, in the same order; the rows are drawn anew `samples` times, the same
    for both, so what makes a pair hard for both cancels (Efron and Tibshirani, An Introduction to the Bootstrap,
    section 13.3). The statistic gets such an array, for instance `lambda errors: auc(errors, [5])[0]`. Rows must
    be independent: of pairs that share images, the interval is too narrow. (nan, nan) for fewer than MIN_PAIRS rows:
    of so few, drawing them anew says nothing (one pair has an interval of no width).

    Raises InputError where lengths differ.
    """
    a_P = np.asarray(values_a)
    b_P = None if values_b is None else np.asarray(values_b)
    if b_P is not None and len(a_P) != len(b_P):
        raise InputError(f"{len(a_P)} values against {len(b_P)}; expected the same pairs in the same order")
    if not 0 < level < 1 or samples < 1:
        raise InputError(f"level is {level} and samples {samples}; expected a level in (0, 1), at least one sample")
    if len(a_P) < MIN_PAIRS:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = np.empty(samples)
    for k in range(samples):
        rows = rng.integers(len(a_P), size=len(a_P))
        drawn[k] = statistic(a_P[rows]) - (0.0 if b_P is None else statistic(b_P[rows]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _errors(errors: ArrayLike) -> Floats:
    errors_P = np.asarray(errors, np.float64)
    if errors_P.ndim != 1 or not (errors_P >= 0).all():
        raise InputError(
            f"errors have shape {errors_P.shape}, or hold NaN or negative numbers; expected (P,), inf for a failure"
        )
    return errors_P


def _flags(correct: ArrayLike) -> NDArray[np.bool_]:
    flags_M = np.asarray(correct)
    if flags_M.ndim != 1 or not np.isin(flags_M, (0, 1)).all():
        raise InputError(f"correct has shape {flags_M.shape} or other values than 0 and 1; leave unknown ones out")
    return flags_M.astype(bool)
