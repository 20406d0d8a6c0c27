"""EVD and WxBS by their own protocols: measured on tiny copies of their layouts, reported, compared, and refused."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from eval.made_runs import MAA_PX, made_run
from isinglass.datasets.homography import EVD_THRESHOLDS_PX, annotation_error, load_evd, load_wxbs
from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError
from isinglass.eval import figures, series
from isinglass.eval.compare import compare, write_comparison
from isinglass.eval.evaluate import Protocol, evaluate
from isinglass.eval.report import write_report
from isinglass.eval.runs import load_run, save_run
from isinglass.eval.summary import summary
from isinglass.files import load_matches
from isinglass.geometry.solvers import solve_fundamental, solve_homography
from isinglass.geometry.two_view import apply_homography
from isinglass.metrics import visible_area_error_px
from isinglass.pipeline import Pipeline
from support import HOMOGRAPHY, warp

for package in ("cv2", "poselib", "pycolmap", "matplotlib"):
    pytest.importorskip(package)

FAST = ["--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "400"]
SOLVER = ["--solver", "poselib", "--threshold", "1"]
PROTOCOL = Protocol(solvers=("poselib", "opencv-magsac"), thresholds_px=(1.0, 3.0), fixed_threshold_px=1.0)


def write(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(file)


def pipeline():
    return Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=400, resize=None)


@pytest.fixture(scope="module")
def evd(motorcycle, tmp_path_factory):
    """Two crops of a photo, 240 px high, and their warps; and views of nothing."""
    folder = tmp_path_factory.mktemp("evd")
    for i, name in enumerate(("adam", "cafe", "nothing")):
        image = motorcycle[0][:, 100:340, 150 * i : 150 * i + 400] * (name != "nothing")
        write(folder / "1" / f"{name}.png", image)
        write(folder / "2" / f"{name}.png", warp(image, HOMOGRAPHY))
        (folder / "h").mkdir(exist_ok=True)
        np.savetxt(folder / "h" / f"{name}.txt", HOMOGRAPHY.numpy())
    return folder


@pytest.fixture(scope="module")
def wxbs(motorcycle, tmp_path_factory):
    """A stereo pair with points annotated by its disparity, once both, once only half of them right; and nothing."""
    folder = tmp_path_factory.mktemp("wxbs") / "v1.1"
    left, right, disparity = motorcycle
    y, x = np.mgrid[60:460:40, 140:700:40].reshape(2, -1)
    shift = disparity[y, x]
    x, y, shift = (one[np.isfinite(shift)] for one in (x, y, shift))
    points = np.column_stack([x, y, x - shift, y])
    wrong = points + np.array([0, 0, 0, 100]) * (np.arange(len(points)) % 2)[:, None]
    for name, annotations, light in (("G/stereo", points, 1), ("G/wrong", wrong, 1), ("L/nothing", points, 0)):
        write(folder / name / "01.png", light * left)
        write(folder / name / "02.png", light * right)
        np.savetxt(folder / name / "corrs.txt", annotations)
    return folder.parent


@pytest.fixture(scope="module")
def evd_run(evd, tmp_path_factory):
    protocol = dataclasses.replace(PROTOCOL, solvers=(*PROTOCOL.solvers, "dlt"))
    return evaluate(load_evd(evd), pipeline(), tmp_path_factory.mktemp("out"), label="evd", protocol=protocol)


@pytest.fixture(scope="module")
def wxbs_run(wxbs, tmp_path_factory):
    return evaluate(load_wxbs(wxbs), pipeline(), tmp_path_factory.mktemp("out"), label="wxbs", protocol=PROTOCOL)


def saved_matches(run):
    return [load_matches(run.path.parent / file) for file in run.pairs["prediction"]]


# ---- what is measured


def test_evd_is_judged_where_view_1_sees_view_0_in_its_own_pixels(evd, evd_run):
    assert evd_run.pairs["names"].tolist() == ["adam", "cafe", "nothing"]
    truth = HOMOGRAPHY.numpy()
    for i, saved in enumerate(saved_matches(evd_run)):
        points = saved.points0.numpy(), saved.points1.numpy()
        right = np.linalg.norm(apply_homography(truth, points[0]) - points[1], axis=1) < 3  # px of these images
        assert evd_run.pairs["num_correct"][i] == right.sum()
        for solver in ("poselib", "opencv-magsac"):
            for threshold in (1, 3):
                found = solve_homography(*points, solver, threshold).model
                error = visible_area_error_px(found, truth, (400, 240), (400, 240))
                assert evd_run.pairs[f"error__{solver}__{threshold}"][i] == error
                share = np.mean([error <= one for one in EVD_THRESHOLDS_PX])
                assert evd_run.pairs[f"accuracy__{solver}__{threshold}"][i] == pytest.approx(share)
    assert evd_run.pairs["error__poselib__1"][:2].max() < 1
    assert evd_run.pairs["precision"][:2].min() > 0.4
    assert "accuracy__dlt__1" in evd_run.pairs
    assert (evd_run.pairs["error__poselib__1"][2], evd_run.pairs["accuracy__poselib__1"][2]) == (math.inf, 0)


def test_wxbs_is_judged_at_its_annotated_points(wxbs, wxbs_run):
    assert wxbs_run.pairs["names"].tolist() == ["G/stereo", "G/wrong", "L/nothing"]
    pairs = load_wxbs(wxbs).pairs
    for i, (pair, saved) in enumerate(zip(pairs, saved_matches(wxbs_run), strict=True)):
        for solver in ("poselib", "opencv-magsac"):
            for threshold in (1, 3):
                found = solve_fundamental(saved.points0.numpy(), saved.points1.numpy(), solver, threshold).model
                error = annotation_error(found, pair.annotations)
                assert wxbs_run.pairs[f"error__{solver}__{threshold}"][i] == pytest.approx(error.mean())
                share = np.mean([(error <= one).mean() for one in range(20)])
                assert wxbs_run.pairs[f"accuracy__{solver}__{threshold}"][i] == pytest.approx(share)
    right, half, none = wxbs_run.pairs["accuracy__poselib__1"]
    assert right > 0.85
    assert half == pytest.approx(right / 2, abs=0.05)
    assert none == 0
    assert math.isinf(wxbs_run.pairs["error__poselib__1"][2])


def test_annotations_do_not_tell_which_matches_are_right(wxbs_run):
    assert wxbs_run.pairs["num_matches"][0] > 50
    assert set(wxbs_run.pairs["match_correct"].tolist()) == {-1}
    for name in ("precision", "recall", "matching_score", "num_correct"):
        assert np.isnan(wxbs_run.pairs[name]).all(), name
        assert all(row["metrics"].get(name) is None for row in wxbs_run.info["tables"])


@pytest.mark.parametrize("name", ["evd_run", "wxbs_run"])
def test_tables_and_the_best_threshold_go_by_maa(name, request):
    run = request.getfixturevalue(name)
    benchmark = run.info["benchmark"]
    assert benchmark["auc_at"] == []
    assert tuple(benchmark["maa_px"]) == (EVD_THRESHOLDS_PX if name == "evd_run" else tuple(range(20)))
    for row in run.info["tables"]:
        values = run.pairs[f"accuracy__{row['solver']}__{row['threshold_px']:g}"]
        inside = (run.pairs["groups"] == row["group"]) | (row["group"] == "all")
        assert row["metrics"]["maa"] == pytest.approx(values[inside].mean())
        assert not [metric for metric in row["metrics"] if metric.startswith("auc")]
    for solver, best in run.info["best"].items():
        rows = [row for row in run.info["tables"] if (row["solver"], row["group"]) == (solver, "all")]
        assert best["metrics"]["maa"] == max(row["metrics"]["maa"] for row in rows)
    written = json.loads(run.path.read_text())
    assert load_run(run.path).info == {name: value for name, value in written.items() if name != "sha256"}


def test_the_best_threshold_is_the_one_with_the_larger_maa(wxbs_run, wxbs, monkeypatch, tmp_path):
    """Made so that the second threshold is the better one."""
    from isinglass.eval import evaluate as module

    def errors(pair, saved, solver, threshold_px, **options):
        return np.array([30.0, 9.0]) / threshold_px

    monkeypatch.setattr(module, "solver_errors", errors)
    run = evaluate(load_wxbs(wxbs), pipeline(), tmp_path, label="made", protocol=PROTOCOL)
    assert run.info["best"]["poselib"]["threshold_px"] == 3.0
    assert run.info["best"]["poselib"]["metrics"]["maa"] == pytest.approx((10 + 17) / 40)  # 10 and 3 px
    assert run.pairs["error__poselib__3"].tolist() == [6.5] * 3


def test_auc_is_taken_where_the_benchmark_says(evd, tmp_path):
    other = dataclasses.replace(load_evd(evd), auc_at=(1, 2.5, 10), maa_px=())
    run = evaluate(other, pipeline(), tmp_path, label="run", protocol=PROTOCOL)
    assert series.accuracy_metrics(run) == ["auc@1", "auc@2.5", "auc@10"]
    assert not [name for name in run.pairs if name.startswith("accuracy")]
    with pytest.raises(InputError, match="evd has neither auc_at nor maa_px"):
        evaluate(dataclasses.replace(other, auc_at=()), pipeline(), tmp_path, label="run", protocol=PROTOCOL)


def test_a_pair_without_annotations_is_a_problem(wxbs, tmp_path):
    known = load_wxbs(wxbs)
    bare = EvalPair(name="bare", image0=known.pairs[0].image0, image1=known.pairs[0].image1)
    both = Benchmark(name="b", protocol="b/1", task="fundamental", pairs=(*known.pairs[:1], bare), maa_px=(1, 2))
    run = evaluate(both, pipeline(), tmp_path, label="run", protocol=PROTOCOL)
    assert run.info["benchmark"]["num_pairs"] == 1
    assert run.info["benchmark"]["problems"] == ["bare: no ground truth, matched but not judged"]


# ---- what is shown of it


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_summary_has_maa(wxbs_run, evd_run):
    text = summary(wxbs_run)
    maa = 100 * wxbs_run.info["best"]["poselib"]["metrics"]["maa"]
    assert re.search(rf"mAA  \(mAA over 20 thresholds from 0 to 19 px\)\n  poselib +\d px best +{maa:.1f}\n", text)
    assert "which matches are right is not known" in text
    assert "AUC" not in text.upper().replace("MAA", "")
    assert "mAA over 10 thresholds from 1 to 20 px" in summary(evd_run)
    assert "precision" in summary(evd_run)


def test_the_report_of_wxbs_shows_maa_and_what_is_left_out(wxbs_run, tmp_path):
    page = text_of(write_report([wxbs_run], tmp_path / "r.html").read_text("utf-8"))
    best = wxbs_run.info["best"]
    top = max(best, key=lambda solver: best[solver]["metrics"]["maa"])
    threshold, maa = best[top]["threshold_px"], 100 * best[top]["metrics"]["maa"]
    assert f"Best is {top} at {threshold:g} px: mAA {maa:.1f}." in page
    assert "Accuracy at the best threshold" in page
    assert "Accuracy, G, 2 pairs" in page
    assert "mAA over 20 thresholds from 0 to 19 px, times 100." in page
    left_out = "Share of pairs within an error. Left out: no AUC is taken here, but mAA over 20 thresholds"
    assert left_out in page
    assert "Blue: matches; which of them are right is not known." in page
    assert "G/wrong: " in page
    assert "AUC@" not in page


def test_charts_of_maa_hold_its_numbers(tmp_path):
    run = made_run(tmp_path, scored="maa", pictures=False)
    chart = figures.threshold_sweep([run])
    assert chart.figure.axes[0].get_ylabel() == "mAA, %"
    line = chart.figure.axes[0].get_lines()[0]
    expected = [100 * run.pairs[f"accuracy__poselib__{at:g}"].mean() for at in line.get_xdata()]
    assert line.get_ydata() == pytest.approx(expected)
    other = made_run(tmp_path, "other", scored="maa", pictures=False, quality=2, matcher="z")
    chart = figures.time_against_accuracy([run, other])
    assert chart.figure.axes[0].get_ylabel() == "mAA, %"
    drawn = sorted(float(line.get_ydata()[0]) for line in chart.figure.axes[0].get_lines())
    assert drawn == pytest.approx(sorted(100 * one.pairs["accuracy__poselib__1"].mean() for one in (run, other)))
    scatter = figures.error_scatter(run, other, "poselib").figure.axes[0].get_lines()
    assert max(max(line.get_xdata(), default=0) for line in scatter) == 4 * MAA_PX[-1]  # where the failed pair is


def test_the_interval_of_maa_is_a_bootstrap_of_it(tmp_path):
    run = made_run(tmp_path, scored="maa", pictures=False)
    page = text_of(write_report([run], tmp_path / "r.html").read_text("utf-8"))
    values = run.pairs["accuracy__poselib__1"]
    low, high = map(float, re.search(rf"poselib 1 {100 * values.mean():.1f} ([\d.]+)–([\d.]+) ", page).groups())
    spread = 100 * 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((100 * values.mean() - spread, 100 * values.mean() + spread), abs=4)


# ---- runs held against each other


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return [
        made_run(folder, label, quality=quality, pairs=40, scored="maa")
        for label, quality in (("worse", 0.5), ("better", 2.0))
    ]


def test_maa_is_compared_with_its_interval(two):
    found = compare(*two, samples=200)
    rows = [one for one in found.differences if one.metric == "mAA" and one.setting.startswith("poselib, best")]
    assert [one.group for one in rows] == ["all", "illumination", "viewpoint"]
    for one in rows:
        inside = (two[0].pairs["groups"] == one.group) | (one.group == "all")
        expected = [100 * run.pairs["accuracy__poselib__1"][inside].mean() for run in two]
        assert [one.a, one.b] == pytest.approx(expected)
        assert 0 < one.low < one.difference < one.high
        assert (one.verdict, one.num_pairs) == ("better", inside.sum())
    assert not [one for one in found.differences if "AUC" in one.metric]
    assert re.search(rf"mAA +40 +{rows[0].a:.1f} +{rows[0].b:.1f} ", str(found))


def test_pairs_that_differ_most_are_told_by_their_part_in_maa(two, tmp_path):
    pairs = dict(two[0].pairs)
    which, also = np.flatnonzero(pairs["accuracy__poselib__1"] == 0.5)[:2]
    for name, change in (("accuracy", 0.0), ("error", 999.0)):
        pairs[f"{name}__poselib__1"] = pairs[f"{name}__poselib__1"].copy()
        pairs[f"{name}__poselib__1"][which] = change
    pairs["error__poselib__1"][also] += 0.1  # with the same part in mAA
    other = save_run(tmp_path / "other.json", two[0].info, pairs)
    found = compare(two[0], other, samples=10)
    (pair,) = found.pairs
    assert (pair.name, pair.accuracy_a, pair.accuracy_b) == (pairs["names"][which], 0.5, 0.0)
    assert "(by part in mAA with poselib, a -> b)" in str(found)
    assert "-> 999.00 px, accuracy 50% -> 0%" in str(found)
    page = write_comparison(found, tmp_path / "c.html").read_text("utf-8")
    assert "By part in mAA with poselib" in page
    assert "Share of pairs within an error.</b> Left out: no AUC is taken here" in page
    assert page.count("<svg role") == 1  # every pair


def test_runs_with_more_aucs_and_old_ones_go_together(tmp_path):
    old = made_run(tmp_path, "old", pictures=False)
    best = {**old.info["best"], "poselib": {"threshold_px": 1.0, "metrics": {}}}
    tables = [{**row, "metrics": {**row["metrics"], "auc@10": 0.5}} for row in old.info["tables"]]
    new = save_run(tmp_path / "new.json", {**old.info, "label": "new", "tables": tables, "best": best}, old.pairs)
    assert [series.main_metric(run) for run in (old, new)] == ["auc@5", "auc@10"]
    for pair in ((old, new), (new, old)):
        found = compare(*pair, samples=10)
        limits = [one.metric for one in found.differences if one.setting.startswith("poselib") and one.group == "all"]
        assert limits == [f"AUC@{at} px" for at in ((1, 3, 5) if pair[0] is old else (1, 3, 5, 10))]
        assert {one.difference for one in found.differences} == {0.0}
        page = text_of(write_report(pair, tmp_path / "r.html").read_text("utf-8"))
        assert f"AUC@{5 if pair[0] is old else 10} px" in page


# ---- the command line


def test_wxbs_from_the_command_line(isinglass, wxbs, tmp_path):
    for label in ("a", "b"):
        code, out, _ = isinglass("eval", "wxbs", wxbs, "-o", tmp_path, "--label", label, *FAST, *SOLVER)
        assert code == 0
        assert "wxbs (wxbs-1.1/1 test), 3 pairs" in out
        assert "mAA over 20 thresholds" in out
        assert "mAA" in text_of((tmp_path / f"{label}.html").read_text("utf-8"))
    code, out, _ = isinglass("compare", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "c.html")
    assert code == 0
    assert re.search(r"mAA +3 .* \+0\.0 ", out)
    code, _, _ = isinglass("report", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "both.html")
    assert code == 0
    code, _, err = isinglass("eval", "wxbs", wxbs, "-o", tmp_path, *FAST, "--solver", "dlt")
    assert code == 2 and "'dlt'; expected one of opencv-ransac" in err


def test_evd_from_the_command_line_tries_all_solvers(isinglass, evd, tmp_path):
    code, out, _ = isinglass("eval", "evd", evd, "-o", tmp_path, "--no-report", "--json", "--threshold", "1", *FAST)
    assert code == 0
    best = json.loads(out)["best"]
    assert list(best) == ["opencv-ransac", "opencv-magsac", "poselib", "pycolmap", "dlt"]
    assert all(set(row["metrics"]) >= {"maa", "precision", "recall"} for row in best.values())


def test_tune_says_what_it_is_for(isinglass, wxbs, tmp_path):
    code, _, err = isinglass("tune", "wxbs", wxbs, "-o", tmp_path, *FAST)
    assert code == 2
    assert "wxbs is of task 'fundamental'; tune takes AUCs of homographies or poses" in err
    assert not list(tmp_path.iterdir())
