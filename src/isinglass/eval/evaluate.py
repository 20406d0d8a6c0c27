"""A benchmark judged: predictions against the truth, and what several solvers make of the same matches.

Units. In homography benchmarks errors and thresholds are px of images whose short side is SHORT_SIDE_PX, as HPatches
numbers of LightGlue and its peers are given, whatever size was extracted. In pose benchmarks errors are degrees, and
thresholds px of the stored images. In benchmarks with a mean average accuracy (`Benchmark.maa_px`: EVD, WxBS) all are
px of the stored images, as in their own protocols; so is what counts as a right match there.

Errors. Of a homography the mean over the four corners, with mAA the mean over what view 1 sees of view 0; of a pose the
larger one of rotation and translation; of a fundamental matrix the mean over annotated points. inf = failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isinglass.datasets.homography import AnnotatedPair, annotation_error
from isinglass.datasets.leak import leak_report
from isinglass.datasets.pairs import Benchmark, EvalPair, Floats
from isinglass.errors import InputError
from isinglass.eval.predictions import Prediction, predict
from isinglass.eval.runs import Run, machine, save_run, versions
from isinglass.eval.truth import Truth, judge
from isinglass.files import SavedMatches
from isinglass.geometry.solvers import POSE_SOLVERS, solve_fundamental, solve_homography, solve_pose
from isinglass.geometry.solvers import SOLVERS as HOMOGRAPHY_SOLVERS
from isinglass.metrics import auc, corner_error_px, mean_average_accuracy, pose_error_deg, visible_area_error_px
from isinglass.parts import custom_parts
from isinglass.pipeline import Pipeline

SHORT_SIDE_PX = 480
AUC_AT = {"homography": (1, 3, 5), "pose": (5, 10, 20), "fundamental": ()}  # px or degrees, as both papers
SOLVERS = {"homography": HOMOGRAPHY_SOLVERS, "pose": POSE_SOLVERS, "fundamental": POSE_SOLVERS}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How matches are judged. Thresholds are in the units of the module."""

    solvers: tuple[str, ...]
    thresholds_px: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    fixed_threshold_px: float = 1.0  # reported beside the best one, which is chosen on the same data
    seed: int = 0


def evaluate(
    benchmark: Benchmark,
    pipeline: Pipeline,
    folder: Path,
    *,
    label: str,
    protocol: Protocol | None = None,
    training: Path | None = None,
    progress: Callable[[Iterable[Prediction], int], Iterable[Prediction]] = lambda items, count: items,
) -> Run:
    """Predict and judge all pairs; writes <folder>/<label>.json and .npz. Pairs that cannot be read are problems.

    `training`: images that the weights were trained on (a folder, a list or a manifest, see `leak_report`); which of
    them are also judged by is written into the run.

    Raises InputError where no pair can be used, or the benchmark has no thresholds to be scored at.
    """
    leaks = None if training is None else [asdict(leak) for leak in leak_report(training, benchmark)]
    protocol = protocol or Protocol(solvers=SOLVERS[benchmark.task])
    auc_at = AUC_AT[benchmark.task] if benchmark.auc_at is None else benchmark.auc_at
    if not auc_at and not benchmark.maa_px:
        raise InputError(f"{benchmark.name} has neither auc_at nor maa_px; expected thresholds that errors are held to")
    predictions = progress(predict(benchmark, pipeline, folder), len(benchmark.pairs))
    rows, problems = _judged(predictions, folder, benchmark, protocol)
    pairs = _columns(rows)
    tables = _tables(pairs, auc_at)
    info = {
        "benchmark": {
            "name": benchmark.name,
            "protocol": benchmark.protocol,
            "task": benchmark.task,
            "auc_at": list(auc_at),
            "maa_px": list(benchmark.maa_px),
            "num_pairs": len(rows),
            "problems": problems,
        },
        "leaks": leaks,  # None = not checked
        "label": label,
        **_settings(pipeline, protocol),
        "timings_ms": {stage: _spent(pairs[f"{stage}_ms"]) for stage in ("extract", "match")},
        "tables": tables,
        "best": _best(tables),
        "images": [row["images"] for row in rows],  # relative to the run, as `prediction` of its pairs
    }
    return save_run(folder / f"{label}.json", info, pairs)


def _judged(
    predictions: Iterable[Prediction], folder: Path, benchmark: Benchmark, protocol: Protocol
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each pair that could be used, and why the others could not."""
    rows, problems = [], list(benchmark.problems)
    for prediction in predictions:
        if prediction.saved is None:
            problems.append(f"{prediction.pair.name}: {prediction.problem}")
        elif not _has_truth(prediction.pair):
            problems.append(f"{prediction.pair.name}: no ground truth, matched but not judged")
        else:
            rows.append(_row(prediction, prediction.saved, folder, benchmark, protocol))
    if not rows:
        raise InputError(f"no pair of {benchmark.name} could be used: " + "; ".join(problems[:3]))
    return rows, problems


def solver_errors(
    pair: EvalPair, saved: SavedMatches, solver: str, threshold_px: float, *, seed: int = 0, is_stored_px: bool = False
) -> Floats:
    """(K,) what the model of one solver is off: at each annotated point, of other pairs one number.

    With `is_stored_px` in px of the stored images, and of a homography where view 1 sees view 0 instead of the corners.
    """
    points0, points1 = saved.points0.numpy(), saved.points1.numpy()
    if isinstance(pair, AnnotatedPair):
        found = solve_fundamental(points0, points1, solver, threshold_px, seed=seed)
        return annotation_error(found.model, pair.annotations)
    if pair.homography is not None:
        scale = 1.0 if is_stored_px else _scale(saved.image_size1)
        scores = saved.matches.pair_scores().numpy()
        found = solve_homography(points0, points1, solver, threshold_px / scale, scores=scores, seed=seed)
        if is_stored_px:
            sizes = saved.image_size0, saved.image_size1
            return np.array([visible_area_error_px(found.model, pair.homography, *sizes)])
        return np.array([scale * corner_error_px(found.model, pair.homography, saved.image_size0)])
    assert pair.pose is not None and pair.camera0 is not None and pair.camera1 is not None
    pose = solve_pose(points0, points1, pair.camera0, pair.camera1, solver, threshold_px, seed=seed)
    return np.array([max(pose_error_deg(pose.rotation, pose.translation, pair.pose.rotation, pair.pose.translation))])


def solver_error(pair: EvalPair, saved: SavedMatches, solver: str, threshold_px: float, seed: int = 0) -> float:
    """The mean of `solver_errors`: px at the corners, degrees, or px over the annotated points; inf = failed."""
    return float(solver_errors(pair, saved, solver, threshold_px, seed=seed).mean())


def _has_truth(pair: EvalPair) -> bool:
    with_pose = pair.pose is not None and pair.camera0 is not None and pair.camera1 is not None
    return pair.homography is not None or with_pose or isinstance(pair, AnnotatedPair)


def _scale(size: tuple[int, int]) -> float:
    return SHORT_SIDE_PX / min(size)


def _row(
    prediction: Prediction, saved: SavedMatches, folder: Path, benchmark: Benchmark, protocol: Protocol
) -> dict[str, Any]:
    """All that is kept of a pair."""
    pair, is_stored_px = prediction.pair, bool(benchmark.maa_px)
    truth: Truth = judge(pair, saved, scale=1.0 if is_stored_px else _scale(saved.image_size1))
    is_judged = not isinstance(pair, AnnotatedPair)
    stop = saved.matches.stop_layer
    row: dict[str, Any] = {
        "name": pair.name,
        "group": pair.group,
        "images": [os.path.relpath(image, folder) for image in (pair.image0, pair.image1)],
        "prediction": "" if prediction.file is None else os.path.relpath(prediction.file, folder),
        "num_keypoints0": len(saved.keypoints0),
        "num_keypoints1": len(saved.keypoints1),
        "num_matches": len(truth.correct),
        "num_correct": int((truth.correct == 1).sum()) if is_judged else float("nan"),
        "precision": truth.precision,
        "recall": truth.recall,
        "matching_score": truth.matching_score,
        "stop_layer": -1 if stop is None else int(stop[0]),
        "match_ms": prediction.match_ms,
        "extract_ms": prediction.extract_ms,
        "match_scores": saved.matches.pair_scores().numpy(),
        "match_correct": truth.correct,
    }
    for solver in protocol.solvers:
        thresholds = protocol.thresholds_px if solver != "dlt" else (protocol.fixed_threshold_px,)
        for threshold in thresholds:
            which = f"{solver}__{threshold:g}"
            errors = solver_errors(pair, saved, solver, threshold, seed=protocol.seed, is_stored_px=is_stored_px)
            row[f"error__{which}"] = float(errors.mean())
            if benchmark.maa_px:
                row[f"accuracy__{which}"] = mean_average_accuracy(errors, benchmark.maa_px)
    return row


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    flat = ("match_scores", "match_correct")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0] if name not in (*flat, "images")}
    columns["names"], columns["groups"] = columns.pop("name"), columns.pop("group")
    for name in flat:
        columns[name] = np.concatenate([row[name] for row in rows])
    columns["match_pair"] = np.repeat(np.arange(len(rows)), columns["num_matches"])
    return columns


def _tables(pairs: dict[str, NDArray[Any]], auc_at: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each solver, threshold and group."""
    groups = ["all", *sorted(set(pairs["groups"].tolist()) - {"all"})]
    tables = []
    for name in (name for name in pairs if name.startswith("error__")):
        _, solver, threshold = name.split("__")
        accuracy = pairs.get(name.replace("error", "accuracy", 1))
        for group in groups:
            inside = np.ones(len(pairs["names"]), bool) if group == "all" else pairs["groups"] == group
            areas = auc(pairs[name][inside], auc_at)
            metrics: dict[str, float | None] = {f"auc@{at:g}": area for at, area in zip(auc_at, areas, strict=True)}
            if accuracy is not None:
                metrics["maa"] = float(accuracy[inside].mean())
            for metric in ("precision", "recall", "matching_score", "num_matches"):
                values = pairs[metric][inside].astype(float)
                metrics[metric] = float(np.nanmean(values)) if np.isfinite(values).any() else None
            row = {"solver": solver, "threshold_px": float(threshold), "group": group, "num_pairs": int(inside.sum())}
            tables.append({**row, "metrics": metrics})
    return tables


def _best(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each solver the threshold with the largest sum of AUCs over all pairs; without AUCs, with the largest mAA."""
    best: dict[str, Any] = {}
    for row in (row for row in tables if row["group"] == "all"):
        areas = [value for name, value in row["metrics"].items() if name.startswith("auc@")]
        total = sum(areas) if areas else row["metrics"]["maa"]
        if row["solver"] not in best or total > best[row["solver"]]["total"]:
            best[row["solver"]] = {"total": total, "threshold_px": row["threshold_px"], "metrics": row["metrics"]}
    return {solver: {key: value for key, value in row.items() if key != "total"} for solver, row in best.items()}


def _spent(values_ms: NDArray[Any]) -> dict[str, float]:
    return {"median": float(np.nanmedian(values_ms)), "mean": float(np.nanmean(values_ms))}


def _settings(pipeline: Pipeline, protocol: Protocol) -> dict[str, Any]:
    """What the numbers depend on."""
    matcher: Any = pipeline.matcher
    signature = pipeline.extractor.signature
    custom = custom_parts(pipeline)
    return {
        "options": asdict(pipeline.options),
        **({"custom": custom} if custom else {}),
        "extractor": signature.extractor,
        "matcher": matcher.name,
        "matcher_config": asdict(matcher.config) if hasattr(matcher, "config") else {},
        "precision": str(getattr(matcher, "compute_dtype", "float32")).removeprefix("torch."),
        "weights": {signature.extractor: signature.weights, matcher.name: getattr(matcher, "weights_id", "none")},
        **asdict(protocol),
        "versions": versions(),
        "machine": machine(),
    }
