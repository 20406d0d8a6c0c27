"""Reports: whole, self-contained, within their size, and true to the runs."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from eval.made_runs import made_run
from isinglass.errors import InputError
from isinglass.eval import figures, series
from isinglass.eval.pictures import picture
from isinglass.eval.report import write_report
from isinglass.metrics import auc
from isinglass.pages.page import Column, chart_grid, table

pytest.importorskip("matplotlib")
VOID = {"meta", "img", "br", "wbr", "line", "path", "use", "rect"}


class Checked(HTMLParser):
    """Every tag is closed by its own, in order; what the page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"extractor": "x", "matcher": "y", "resize": 64, "adaptive": True}
    return [
        made_run(folder, "ours", quality=1.5, options={**options, "max_keypoints": 60}),
        made_run(folder, "ours, all layers", options={**options, "max_keypoints": 60, "adaptive": False}),
        made_run(folder, "ours, 512", options={**options, "max_keypoints": 512}),
        made_run(folder, "SIFT <&> mutual", quality=0.6, extractor="sift", matcher="nearest"),
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    assert write_report(runs, path) == path
    return path.read_text("utf-8")


def test_the_page_is_whole_and_needs_nothing_from_outside(page):
    checked = Checked(page)
    assert checked.references
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in checked.references)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    assert len(page) < 5e6


def test_labels_are_escaped(page):
    assert "SIFT &lt;&amp;&gt; mutual" in page
    assert "<&>" not in page


def test_every_figure_is_drawn_in_the_colours_of_the_page(page):
    for title in (
        "Share of pairs within an error",
        "Accuracy against solver threshold",
        "Precision against number of right matches",
        "Accuracy against time",
        "Run time against keypoints",
        "Calibration of match scores",
        "Layers that pairs needed: ours",
    ):
        assert f'aria-label="{title}' in page, title
    assert "var(--s1)" in page
    assert not re.search(r"#0a0[bcd]0\d", page)
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used <= set(re.findall(r"(--\w+):", page)), "a colour that the style sheet does not have"


def test_the_tables_hold_the_numbers_of_the_run(page, runs):
    text = Checked(page).text
    for run in runs:
        for limit in (1, 3, 5):
            errors = run.pairs["error__poselib__1"]
            assert f" {100 * auc(errors, [limit])[0]:.1f} " in text
    assert f"{100 * series.judged_scores(runs[0])[1].mean():.1f}" in text  # precision: as many matches in each pair
    assert "illumination, 6 pairs" in text
    assert "viewpoint, 6 pairs" in text


def test_worst_pairs_are_those_with_the_largest_errors(page, runs):
    titles = re.findall(r"<h4>(.*?)</h4>", page)
    assert len(titles) == 4 * 6
    assert titles[0] == "scene0/0: failed"
    order = np.argsort(-runs[0].pairs["error__poselib__1"])
    assert [one.split(":")[0] for one in titles[:6]] == runs[0].pairs["names"][order[:6]].tolist()
    assert page.count("data:image/jpeg") == 24


def test_what_a_run_has_no_data_for_is_left_out_with_a_reason(tmp_path):
    run = made_run(tmp_path, pictures=False)
    kept = {name: values for name, values in run.pairs.items() if not name.startswith("match_")}
    bare = replace(run, pairs={**kept, "stop_layer": np.full(12, -1)})
    text = Checked(write_report([bare], tmp_path / "r.html").read_text("utf-8")).text
    assert "Calibration of match scores. Left out: the truth of no single match is known" in text
    assert "Layers that pairs needed, by difficulty. Left out" in text
    assert "Run time against keypoints. Left out" in text
    assert "No picture: the run does not say which images and matches it is of" in text


def test_without_runs_it_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runs"):
        write_report([], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_benchmarks_have_a_section_each_and_labels_are_told_apart(tmp_path, runs):
    other = made_run(tmp_path, "ours", seed=3, protocol="made 2", pictures=False)
    page = write_report([runs[0], runs[0], other], tmp_path / "r.html").read_text("utf-8")
    assert page.count("<h2>made</h2>") == 2
    assert "protocol made 1" in page
    assert "protocol made 2" in page
    assert "ours (2)" in page
    assert "ours (3)" not in page  # the same label on another benchmark is no confusion


def test_problems_are_told(tmp_path):
    benchmark = {"name": "made", "protocol": "made 1", "task": "pose", "num_pairs": 12}
    run = made_run(tmp_path, pictures=False, benchmark={**benchmark, "problems": ["list.txt, line 7: <no pose>"]})
    page = write_report([run], tmp_path / "r.html").read_text("utf-8")
    assert "list.txt, line 7: &lt;no pose&gt;" in page
    assert "@5°" in page


# ---- figures


def test_the_area_under_the_error_curve_is_the_auc(runs):
    chart = figures.error_curve(runs[:1])
    assert chart.figure is not None
    lines = [line for line in chart.figure.axes[0].get_lines() if len(line.get_xdata()) > 2]
    assert len(lines) == len(chart.keys) == 3  # one run: a line a solver
    for line, key in zip(lines, chart.keys, strict=True):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        area = ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / 5
        assert f"{area:.1f}" == key.value


def test_runs_that_differ_in_adaptive_settings_are_joined(runs):
    chart = figures.time_against_accuracy(runs)
    assert chart.figure is not None
    counts = sorted(len(line.get_xdata()) for line in chart.figure.axes[0].get_lines())
    assert counts == [1, 1, 2]
    assert {text.get_text() for text in chart.figure.axes[0].texts} == {"adaptive", "all layers"}


def test_runs_that_differ_in_keypoints_are_joined(runs):
    chart = figures.time_against_keypoints(runs)
    assert chart.figure is not None
    (line,) = chart.figure.axes[0].get_lines()
    assert sorted(line.get_ydata()) == sorted(series.match_ms(run) for run in (runs[0], runs[2]))
    assert figures.time_against_keypoints(runs[:2]).figure is None


def test_precision_falls_to_that_of_all_matches(runs):
    chart = figures.precision_curve(runs[:1])
    assert chart.figure is not None
    line, end = chart.figure.axes[0].get_lines()
    _, correct = series.judged_scores(runs[0])
    assert end.get_xdata()[0] == pytest.approx(correct.sum() / 12)
    assert line.get_ydata()[-1] == end.get_ydata()[0] == pytest.approx(100 * correct.mean())
    assert line.get_ydata()[0] > line.get_ydata()[-1]  # scores tell right from wrong here


def test_difficulty_is_thirds_of_the_error_and_of_the_overlap_where_it_is_known(runs):
    level, by = series.difficulty(runs[0], "poselib")
    errors = runs[0].pairs["error__poselib__1"]
    assert by == "error with poselib"
    assert np.bincount(level).tolist() == [4, 4, 4]
    assert errors[level == 0].max() <= errors[level == 1].min() <= errors[level == 2].min()
    overlap = np.linspace(0, 1, 12)
    level, by = series.difficulty(replace(runs[0], pairs={**runs[0].pairs, "overlap": overlap}), "poselib")
    assert by == "overlap"
    assert level.tolist() == [2] * 4 + [1] * 4 + [0] * 4


def test_best_and_fixed_thresholds(runs):
    run = runs[0]
    assert series.solver_thresholds(run, "poselib") == [0.5, 1.0, 3.0]
    assert series.best_threshold(run, "dlt") == series.fixed_threshold(run, "dlt") == 1.0
    moved = replace(run, info={**run.info, "fixed_threshold_px": 2.0, "best": {}})
    assert series.fixed_threshold(moved, "poselib") is None
    assert series.fixed_threshold(moved, "dlt") == 1.0  # its only one
    assert series.best_threshold(moved, "poselib") is None
    assert math.isnan(series.best_accuracy(moved, "poselib", "auc@5"))
    assert series.best_solver([run]) == "poselib"


def test_errors_that_are_not_known_count_as_failures(runs):
    pairs = {**runs[0].pairs, "error__poselib__1": np.array([math.nan, 1.0])}
    assert series.errors(replace(runs[0], pairs=pairs), "poselib", 1.0).tolist() == [math.inf, 1.0]


# ---- pictures and tables


def test_a_picture_tells_right_and_wrong_matches(runs):
    one = picture(runs[0], 3)
    correct = runs[0].pairs["match_correct"].reshape(12, 40)[3]
    counted = f"40 matches, {(correct == 1).sum()} right, {(correct == 0).sum()} wrong, 1 not judged"
    assert one.caption == counted
    assert one.jpeg.startswith(b"\xff\xd8")
    assert len(one.jpeg) < 200_000


def test_a_picture_without_its_files_says_which_is_missing(tmp_path):
    run = made_run(tmp_path)
    (tmp_path / "image1.png").unlink()
    assert "image1.png' does not exist" in picture(run, 0).problem
    (tmp_path / "predictions" / "ours" / "0.npz").write_bytes(b"torn")
    assert "0.npz' is damaged" in picture(run, 0).problem
    assert "image1.png" in picture(run, 1).problem


def test_the_best_of_a_column_is_bold_and_unknown_numbers_are_dashes():
    columns = [
        Column(head="who", values=["a", "b", "c"]),
        Column(head="more", values=[0.501, 0.5014, None], scale=100, best="high"),
        Column(head="less", values=[3.0, 1.0, math.nan], best="low"),
        Column(head="all alike", values=[2.0, 2.0, 2.0], best="high"),
    ]
    text = table(columns, sections=["x", "x", "y"])
    assert re.findall(r"<b>(.*?)</b>", text) == ["1.0"]  # 50.1 is the best twice: no column of one number has a best
    assert text.count("–") == 2
    assert re.findall(r"<span>(.*?)</span>", text) == ["x", "y"]


def test_charts_without_a_figure_become_lines():
    text = chart_grid([figures.Chart(title="T", note="Left out: <why>.")])
    assert text == '<ul class="absent"><li><b>T.</b> Left out: &lt;why&gt;.</li></ul>'
