"""A benchmark judged: predictions against the truth, and what several solvers make of the same matches.

Units. In homography benchmarks errors and thresholds are px of images whose short side is SHORT_SIDE_PX, as HPatches
numbers of LightGlue and its peers are given, whatever size was extracted. In pose benchmarks errors are degrees, and
thresholds px of the stored images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError
from isinglass.eval.predictions import Prediction, predict
from isinglass.eval.runs import Run, machine, save_run, versions
from isinglass.eval.truth import Truth, judge
from isinglass.files import SavedMatches
from isinglass.geometry.solvers import solve_homography, solve_pose
from isinglass.metrics import auc, corner_error_px, pose_error_deg
from isinglass.pipeline import Pipeline

SHORT_SIDE_PX = 480
AUC_AT = {"homography": (1, 3, 5), "pose": (5, 10, 20)}  # px or degrees, as both papers
SOLVERS = {
    "homography": ("opencv-ransac", "opencv-magsac", "poselib", "pycolmap", "dlt"),
    "pose": ("opencv-ransac", "opencv-magsac", "poselib", "pycolmap"),
}


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
    progress: Callable[[Iterable[Prediction], int], Iterable[Prediction]] = lambda items, count: items,
) -> Run:
    """Predict and judge all pairs; writes <folder>/<label>.json and .npz. Pairs that cannot be read are problems."""
    protocol = protocol or Protocol(solvers=SOLVERS[benchmark.task])
    rows: list[dict[str, Any]] = []
    problems = list(benchmark.problems)
    for prediction in progress(predict(benchmark, pipeline, folder), len(benchmark.pairs)):
        if prediction.saved is None:
            problems.append(f"{prediction.pair.name}: {prediction.problem}")
        elif not _has_truth(prediction.pair):
            problems.append(f"{prediction.pair.name}: no ground truth, matched but not judged")
        else:
            rows.append(_row(prediction, prediction.saved, folder, protocol))
    if not rows:
        raise InputError(f"no pair of {benchmark.name} could be used: " + "; ".join(problems[:3]))
    pairs = _columns(rows)
    tables = _tables(pairs, benchmark.task, protocol)
    info = {
        "benchmark": {
            "name": benchmark.name,
            "protocol": benchmark.protocol,
            "task": benchmark.task,
            "num_pairs": len(rows),
            "problems": problems,
        },
        "label": label,
        **_settings(pipeline, protocol),
        "timings_ms": {stage: _spent(pairs[f"{stage}_ms"]) for stage in ("extract", "match")},
        "tables": tables,
        "best": _best(tables, benchmark.task),
        "images": [row["images"] for row in rows],  # relative to the run, as `prediction` of its pairs
    }
    return save_run(folder / f"{label}.json", info, pairs)


def solver_error(pair: EvalPair, saved: SavedMatches, solver: str, threshold_px: float, seed: int = 0) -> float:
    """What the model of one solver is off: px at the corners, or degrees (the larger of rotation and translation)."""
    points0, points1 = saved.points0.numpy(), saved.points1.numpy()
    if pair.homography is not None:
        scale = _scale(saved.image_size1)
        scores = saved.matches.pair_scores().numpy()
        found = solve_homography(points0, points1, solver, threshold_px / scale, scores=scores, seed=seed)
        return scale * corner_error_px(found.model, pair.homography, saved.image_size0)
    assert pair.pose is not None and pair.camera0 is not None and pair.camera1 is not None
    pose = solve_pose(points0, points1, pair.camera0, pair.camera1, solver, threshold_px, seed=seed)
    if pose.rotation is None or pose.translation is None:
        return float("inf")
    return max(pose_error_deg(pose.rotation, pose.translation, pair.pose.rotation, pair.pose.translation))


def _has_truth(pair: EvalPair) -> bool:
    with_pose = pair.pose is not None and pair.camera0 is not None and pair.camera1 is not None
    return pair.homography is not None or with_pose


def _scale(size: tuple[int, int]) -> float:
    return SHORT_SIDE_PX / min(size)


def _row(prediction: Prediction, saved: SavedMatches, folder: Path, protocol: Protocol) -> dict[str, Any]:
    """All that is kept of a pair."""
    pair = prediction.pair
    truth: Truth = judge(pair, saved, scale=_scale(saved.image_size1))
    stop = saved.matches.stop_layer
    row: dict[str, Any] = {
        "name": pair.name,
        "group": pair.group,
        "images": [os.path.relpath(image, folder) for image in (pair.image0, pair.image1)],
        "prediction": "" if prediction.file is None else os.path.relpath(prediction.file, folder),
        "num_keypoints0": len(saved.keypoints0),
        "num_keypoints1": len(saved.keypoints1),
        "num_matches": len(truth.correct),
        "num_correct": int((truth.correct == 1).sum()),
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
            row[f"error__{solver}__{threshold:g}"] = solver_error(pair, saved, solver, threshold, protocol.seed)
    return row


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    flat = ("match_scores", "match_correct")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0] if name not in (*flat, "images")}
    columns["names"], columns["groups"] = columns.pop("name"), columns.pop("group")
    for name in flat:
        columns[name] = np.concatenate([row[name] for row in rows])
    columns["match_pair"] = np.repeat(np.arange(len(rows)), columns["num_matches"])
    return columns


def _tables(pairs: dict[str, NDArray[Any]], task: str, protocol: Protocol) -> list[dict[str, Any]]:
    """One row for each solver, threshold and group."""
    groups = ["all", *sorted(set(pairs["groups"].tolist()) - {"all"})]
    tables = []
    for name in (name for name in pairs if name.startswith("error__")):
        _, solver, threshold = name.split("__")
        for group in groups:
            inside = np.ones(len(pairs["names"]), bool) if group == "all" else pairs["groups"] == group
            areas = auc(pairs[name][inside], AUC_AT[task])
            metrics: dict[str, float | None] = {f"auc@{at}": area for at, area in zip(AUC_AT[task], areas, strict=True)}
            for metric in ("precision", "recall", "matching_score", "num_matches"):
                values = pairs[metric][inside].astype(float)
                metrics[metric] = float(np.nanmean(values)) if np.isfinite(values).any() else None
            row = {"solver": solver, "threshold_px": float(threshold), "group": group, "num_pairs": int(inside.sum())}
            tables.append({**row, "metrics": metrics})
    return tables


def _best(tables: Sequence[dict[str, Any]], task: str) -> dict[str, Any]:
    """Of each solver the threshold with the largest sum of AUCs over all pairs."""
    best: dict[str, Any] = {}
    for row in (row for row in tables if row["group"] == "all"):
        total = sum(row["metrics"][f"auc@{at}"] for at in AUC_AT[task])
        if row["solver"] not in best or total > best[row["solver"]]["total"]:
            best[row["solver"]] = {"total": total, "threshold_px": row["threshold_px"], "metrics": row["metrics"]}
    return {solver: {key: value for key, value in row.items() if key != "total"} for solver, row in best.items()}


def _spent(values_ms: NDArray[Any]) -> dict[str, float]:
    return {"median": float(np.nanmedian(values_ms)), "mean": float(np.nanmean(values_ms))}


def _settings(pipeline: Pipeline, protocol: Protocol) -> dict[str, Any]:
    """What the numbers depend on."""
    matcher: Any = pipeline.matcher
    signature = pipeline.extractor.signature
    return {
        "options": asdict(pipeline.options),
        "extractor": signature.extractor,
        "matcher": matcher.name,
        "matcher_config": asdict(matcher.config) if hasattr(matcher, "config") else {},
        "weights": {signature.extractor: signature.weights, matcher.name: getattr(matcher, "weights_id", "none")},
        **asdict(protocol),
        "versions": versions(),
        "machine": machine(),
    }
