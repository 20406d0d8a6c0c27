"""Inspections whole: what they say, their figures, their page's text, and the command."""

import builtins
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import Pipeline
from isinglass.errors import InputError, MissingExtra
from isinglass.inspection import (
    inspect,
    plot_exit,
    plot_keypoint,
    plot_layers,
    plot_sinkhorn,
    write_report,
)
from isinglass.inspection import payload as p
from isinglass.inspection.record import NONE

SMALL = {"extractor": "rootsift", "max_keypoints": 150, "device": "cpu"}


def drawn(figure):
    """(H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.fixture(scope="module")
def inspections(motorcycle):
    """By matcher's name, of the motorcycle pair."""
    with torch.random.fork_rng(devices=[]):
        return {
            name: inspect(*motorcycle[:2], Pipeline(**SMALL, matcher=name))
            for name in ("lightglue-sift-small", "superglue-sift-small", "nearest")
        }


@pytest.mark.parametrize("name", ["lightglue-sift-small", "superglue-sift-small", "nearest"])
def test_a_payload_is_json_and_whole(inspections, name):
    one = inspections[name]
    found = json.loads(json.dumps(one.payload(), allow_nan=False))
    counts, trace = [array["shape"][0] for array in found["keypoints"]], found["trace"]
    assert found["kind"] == "inspect"
    assert len(trace["steps"]) == len(trace["alternatives"]) == len(one.trace.steps)
    assert p.unpack(trace["steps"][-1]["pairs"]).tolist() == p.unpack(found["matches"]["pairs"]).tolist()
    assert len(p.unpack(found["matches"]["pairs"])) > 40
    for of_step in trace["alternatives"]:
        for view, count in zip(of_step["views"], counts, strict=True):
            assert view["index"]["shape"] == view["probability"]["shape"] == [count, 5]
            assert view["index"]["dtype"] == "uint16"
    for unit in trace["attention"] or []:
        for view, count in enumerate(counts):
            assert unit["views"][view]["index"]["shape"] == [count, 2, 8]
            index, weight = (p.unpack(unit["views"][view][part]) for part in ("index", "weight"))
            assert index[index != NONE].max() < counts[view ^ unit["cross"]]
            assert weight[index == NONE].sum() == 0 < weight.sum()
    assert (trace["attention"] is None) == (name == "nearest")
    assert (found["matches"]["layers"] is None) == (name != "lightglue-sift-small")
    assert found["options"]["precision"] == "float32"
    assert found["timings_ms"]["trace"] > 0


def test_an_inspection_has_the_matches_of_its_trace(inspections):
    one = inspections["lightglue-sift-small"]
    assert one.result.matches is one.trace.matches
    assert p.unpack(one.payload()["matches"]["layers"]).tolist() == one.trace.since().tolist()
    told = one.summary()
    assert told["num_matches"] == len(one.trace.matches.pairs())
    assert [step["matches"] for step in told["steps"]] == [len(step.pairs) for step in one.trace.steps]


def test_pictures_of_all_steps(inspections):
    for one in inspections.values():
        figure = plot_layers(one)
        assert len(figure.axes) == len(one.trace.steps)
        title = figure.axes[-1].get_title()
        assert f"{len(one.trace.steps[-1].pairs)} matches" in title
    assert drawn(figure).std() > 20


def test_the_chart_of_the_exit(inspections):
    one = inspections["lightglue-sift-small"]
    figure = plot_exit(one)
    share, points, matches = (axes.lines[0].get_ydata() for axes in figure.axes)
    expected = [np.nan if step.confident_share is None else step.confident_share for step in one.trace.steps]
    np.testing.assert_allclose(share, expected)
    assert figure.axes[0].lines[1].get_ydata()[0] == one.trace.exit_share
    assert points[0] == 300
    assert matches.tolist() == [len(step.pairs) for step in one.trace.steps]


def test_the_chart_of_sinkhorn(inspections):
    one = inspections["superglue-sift-small"]
    figure = plot_sinkhorn(one)
    error, matches = (axes.lines[0] for axes in figure.axes)
    assert error.get_xdata()[-1] == 20
    assert (np.diff(error.get_ydata()) < 0).all()
    assert figure.axes[0].get_yscale() == "log"
    assert matches.get_ydata()[-1] == len(one.trace.matches.pairs())


def test_the_picture_of_a_keypoint(inspections):
    one = inspections["lightglue-sift-small"]
    index0, index1 = one.result.matches.pairs()[3].tolist()
    place = {0: index0, 1: index1}
    for view in (0, 1):
        figure = plot_keypoint(one, view, place[view], 2)
        (axes,) = figure.axes
        rays = [line for line in axes.lines if len(line.get_xdata()) == 2]
        assert len(rays) == 2 * 2 * 8  # self and cross, two heads, eight each
        starts = {tuple(np.round([line.get_xdata()[0], line.get_ydata()[0]], 3)) for line in rays}
        assert len(starts) == 1
        assert f"keypoint {place[view]}" in axes.get_title()
        assert "matchability" in axes.get_title()
    assert drawn(plot_keypoint(inspections["superglue-sift-small"], 0, 1, 12)).std() > 20
    assert drawn(plot_keypoint(inspections["nearest"], 0, 1, 1)).std() > 20


@pytest.mark.parametrize(("view", "keypoint", "layer"), [(2, 0, 1), (0, 150, 1), (0, -1, 1), (1, 0, 0), (1, 0, 7)])
def test_keypoints_and_layers_that_are_not_there(inspections, view, keypoint, layer):
    with pytest.raises(InputError, match="there is no"):
        plot_keypoint(inspections["lightglue-sift-small"], view, keypoint, layer)


def test_figures_of_another_matcher(inspections):
    with pytest.raises(InputError, match="only lightglue has the exit criterion"):
        plot_exit(inspections["nearest"])
    with pytest.raises(InputError, match="only superglue has Sinkhorn"):
        plot_sinkhorn(inspections["lightglue-sift-small"])


def test_an_inspection_without_keypoints(motorcycle, tmp_path):
    grey = torch.full((3, 60, 80), 0.5)
    one = inspect(motorcycle[0], grey, Pipeline(**SMALL, matcher="lightglue-sift-small"))
    assert one.trace.ended == "empty"
    assert one.summary()["num_matches"] == 0
    assert write_report(one, tmp_path / "empty.html").stat().st_size > 10_000
    with pytest.raises(InputError, match="nothing to draw"):
        plot_layers(one)


def test_without_matplotlib(inspections, monkeypatch):
    plain = builtins.__import__

    def refuse(name, *arguments, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"isinglass\[viz\]"):
        plot_exit(inspections["lightglue-sift-small"])


def test_a_report_needs_nothing_else(inspections, tmp_path):
    one = inspections["lightglue-sift-small"]
    text = write_report(one, tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', text.replace('src=\\"', ""))
    assert "@import" not in text
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    (numbers,) = re.findall(r'id="payload">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(numbers) == json.loads(json.dumps(one.payload()))
    assert text.count("</script>") == 6


def test_names_cannot_end_the_script(motorcycle, tmp_path):
    name = "a<!--<script>alert(1)</script>.png"
    for file in (tmp_path / "x", tmp_path / "y"):
        Image.fromarray((motorcycle[0].permute(1, 2, 0) * 255).byte().numpy()).save(file, format="PNG")
    from isinglass.inspection import inspect_result

    pipeline = Pipeline(**SMALL, matcher="nearest")
    result = pipeline.match(tmp_path / "x", tmp_path / "y")
    one = inspect_result(result, (tmp_path / "x", tmp_path / "y"), pipeline, names=(name, "b"))
    text = write_report(one, tmp_path / "report.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "<!--" not in text
    (numbers,) = re.findall(r'id="payload">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(numbers)["views"][0]["name"] == name


def test_a_report_that_cannot_be_written(inspections, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        write_report(inspections["nearest"], tmp_path / "file" / "report.html")


def test_the_command(isinglass, motorcycle, tmp_path):
    files = [tmp_path / name for name in ("left.png", "right.png")]
    for file, image in zip(files, motorcycle, strict=False):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(file)
    report = tmp_path / "report.html"
    options = ["-o", report, "--extractor", "rootsift", "--matcher", "lightglue-sift-small", "--max-keypoints", 100]
    code, out, _ = isinglass("inspect", *files, *options)
    assert code == 0
    assert "layer 1 " in out
    assert "left.png and right.png" in report.read_text("utf-8")
    full = report.stat().st_size
    code, out, _ = isinglass("inspect", *files, *options, "--attention", 0, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["num_matches"] > 20
    assert told["output"] == str(report)
    assert report.stat().st_size < full


def test_the_command_on_what_is_no_photo(isinglass, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    options = ["--extractor", "rootsift", "--matcher", "nearest", "-o", tmp_path / "report.html"]
    code, _, err = isinglass("inspect", *[tmp_path / "a.txt"] * 2, *options)
    assert code == 2
    assert "cannot be read as an image" in err
    assert not (tmp_path / "report.html").exists()
