"""The report in a real browser: the slider, a keypoint's rays and alternatives, phones, dark mode, nothing loaded."""

import dataclasses
import io
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import Pipeline
from isinglass.inspection import inspect, write_report
from isinglass.matchers.lightglue import LightGlue

SMALL = {"extractor": "rootsift", "max_keypoints": 200, "device": "cpu"}


def eager_lightglue():
    """The shipped small model, made surer than it is: points leave at several layers, but it never stops."""
    model = LightGlue.pretrained("lightglue-sift-small")
    made = LightGlue(dataclasses.replace(model.config, depth_confidence=1.0, width_confidence=0.4)).eval()
    made.load_state_dict(model.state_dict())
    for head in made.confidences:
        head.bias.data += 1
    return made


@pytest.fixture(scope="module")
def reports(motorcycle, tmp_path_factory):
    """By name, (inspection, path of its report)."""
    folder, found = tmp_path_factory.mktemp("reports"), {}
    with torch.random.fork_rng(devices=[]):
        pipelines = {
            "lightglue": Pipeline(**SMALL, custom_matcher=eager_lightglue()),
            "superglue": Pipeline(**SMALL, matcher="superglue-sift-small"),
            "nearest": Pipeline(**SMALL, matcher="nearest", ratio=0.9),
        }
        for name, pipeline in pipelines.items():
            one = inspect(*motorcycle[:2], pipeline)
            found[name] = one, write_report(one, folder / f"{name}.html")
    return found


@pytest.fixture
def opened(browser, reports):
    """Open the report of that name: (page, inspection)."""
    pages, problems, asked = [], [], []

    def open_report(name, **more):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **more})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(reports[name][1].as_uri())
        page.evaluate("inspector.ready")
        pages.append(page)
        return page, reports[name][0]

    yield open_report
    for page in pages:
        page.close()
    assert problems == []
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


def settled(page):
    """Two frames later, so that what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def seen(page):
    """(H, W, 3) uint8 of the picture."""
    settled(page)
    return np.asarray(Image.open(io.BytesIO(page.locator("canvas.pair-canvas").screenshot())).convert("RGB")).astype(
        int
    )


def click_keypoint(page, view, index):
    box = page.locator("canvas.pair-canvas").bounding_box()
    x, y = page.evaluate(f"inspector.view.place({view}, {index})")
    page.mouse.click(box["x"] + x, box["y"] + y)
    settled(page)


def lonely(one, view, candidates):
    """Of those keypoints the one that is farthest from every other one of its view."""
    points = (one.result.features0, one.result.features1)[view].keypoints[0]
    distance = torch.cdist(points[candidates], points)
    distance[torch.arange(len(candidates)), candidates] = torch.inf
    return candidates[int(distance.amin(dim=1).argmax())]


def rows(page, caption):
    """Text of the cells of a table."""
    table = page.get_by_role("region", name=caption)
    return [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]


def test_the_slider_shows_each_layer(opened):
    page, one = opened("lightglue")
    steps, slider = one.trace.steps, page.get_by_role("slider", name="Layer")
    assert len(steps) == 6
    slider.focus()
    pictures = []
    for number in range(6, 0, -1):
        step = steps[number - 1]
        assert slider.get_attribute("aria-valuetext") == f"layer {number} ({number} of 6)"
        said = page.get_by_role("status").first.inner_text()
        assert f"{len(step.pairs)} matches" in said
        if step.confident_share is not None:
            share = re.search(r"([\d.]+)\s% of the points are sure", said).group(1)
            assert float(share) == pytest.approx(100 * step.confident_share, abs=0.051)
        if any(map(len, step.pruned)):
            assert f"{len(step.pruned[0])} + {len(step.pruned[1])} points leave" in said
        pictures.append(seen(page))
        page.keyboard.press("ArrowLeft")
    assert all((np.abs(a - b).sum(axis=2) > 60).sum() > 50 for a, b in pairwise(pictures))
    page.get_by_role("button", name="Layer: one on").click()
    assert slider.get_attribute("aria-valuetext") == "layer 2 (2 of 6)"


def test_points_that_left_are_crossed_out(opened):
    page, one = opened("lightglue")
    page.evaluate("inspector.goTo(4)")
    for view, left_at in enumerate((one.trace.matches.pruned_at0[0], one.trace.matches.pruned_at1[0])):
        marks = page.evaluate(f"inspector.view.marks[{view}]")
        crossed = {mark["index"] for mark in marks if mark["shape"] == "cross"}
        assert crossed == set((left_at <= 5).nonzero()[:, 0].tolist())
        confidence, threshold = one.trace.steps[4].confidence[view], one.trace.steps[4].threshold
        rings = {mark["index"] for mark in marks if mark["shape"] == "ring"}
        assert rings == set(((confidence < threshold) & (left_at > 5)).nonzero()[:, 0].tolist())


def test_a_clicked_keypoint_tells_its_story(opened):
    page, one = opened("lightglue")
    index0 = lonely(one, 0, one.trace.matches.pairs()[:, 0])
    partner = int(one.trace.matches.indices[0, index0])
    page.get_by_role("slider", name="Layer").fill("2")
    before = seen(page)
    click_keypoint(page, 0, int(index0))
    assert page.get_by_role("heading", name=f"Keypoint {int(index0)} of first.png").is_visible()
    assert page.get_by_text(f"In the end it matches keypoint {partner} ").is_visible()
    best = one.trace.steps[2].alternatives
    found = rows(page, "What it might match here")
    assert [row[0].split()[1] for row in found[:-1]] == [str(int(i)) for i in best.index[0][index0]]
    assert float(found[0][1]) == pytest.approx(float(best.probability[0][index0, 0]), abs=0.006)
    assert found[-1][0] == "no partner"
    history = rows(page, "Step by step")
    assert len(history) == 6
    assert float(history[2][1]) == pytest.approx(float(one.trace.steps[2].confidence[0][index0]), abs=0.006)
    units = [unit for unit in one.trace.attention if unit.layer == 3]
    rays = page.evaluate("inspector.view.rays")
    expected = {(int(unit.cross), int(i)) for unit in units for i in unit.index[0][index0].flatten()}
    assert {(ray["toView"], ray["to"]) for ray in rays} == expected
    assert {ray["from"] for ray in rays} == {int(index0)}
    after = seen(page)
    ray_colour = np.abs(after - (255, 176, 0)).sum(axis=2) < 30
    assert ray_colour.sum() > (np.abs(before - (255, 176, 0)).sum(axis=2) < 30).sum()
    page.get_by_role("button", name=f"keypoint {partner}", exact=True).click()
    assert page.get_by_role("heading", name=f"Keypoint {partner} of second.png").is_visible()
    page.get_by_role("button", name="Show all keypoints").click()
    assert page.evaluate("inspector.view.rays.length") == 0


def test_attention_can_be_shown_by_head_and_kind(opened):
    page, _ = opened("lightglue")
    page.evaluate("inspector.goTo(0)")
    page.evaluate("inspector.select(0, 5)")

    def rays():
        return page.evaluate("inspector.view.rays.map((ray) => [ray.toView, ray.colour])")

    assert len(rays()) == 2 * 2 * 8
    page.get_by_role("combobox", name="Head").select_option("1")
    assert len({colour for _, colour in rays()}) == 1
    assert len(rays()) == 2 * 8
    page.get_by_label("in its own photo (self)").uncheck()
    assert [view for view, _ in rays()] == [1] * 8
    assert page.evaluate("document.activeElement.type") == "checkbox"  # the focus stays where it was
    page.get_by_role("checkbox", name="what it might match").uncheck()
    assert page.evaluate("inspector.view.marks[1].filter((mark) => mark.shape === 'ring').length") == 0
    page.get_by_text("Attention in numbers").click()
    assert len(rows(page, "layer 1 self and layer 1 cross")) == 4


def test_why_a_keypoint_left(opened):
    page, one = opened("lightglue")
    left_at = one.trace.matches.pruned_at1[0]
    gone = int((left_at < 6).nonzero()[0, 0])
    step = one.trace.steps[int(left_at[gone]) - 1]
    page.get_by_label("Photo of the keypoint").select_option("1")
    page.get_by_label("Number of the keypoint").fill(str(gone))
    page.keyboard.press("Enter")
    told = page.locator(".inspect-fate").inner_text()
    assert f"It left after layer {int(left_at[gone])}: it was sure (confidence " in told
    numbers = [float(word.strip("(),.:")) for word in told.split() if word.strip("(),.:").replace(".", "", 1).isdigit()]
    values = [left_at[gone], step.confidence[1][gone], step.threshold, step.matchability[1][gone], 0.6]
    assert numbers == pytest.approx([float(value) for value in values], abs=0.006)
    assert rows(page, "Step by step")[5][-1] == "gone"


def test_why_a_keypoint_that_stayed_has_no_match(opened):
    page, one = opened("lightglue")
    left_at, indices = one.trace.matches.pruned_at0[0], one.trace.matches.indices[0]
    unmatched = ((left_at == 6) & (indices < 0)).nonzero()[:, 0].tolist()
    assert unmatched
    best = one.trace.steps[-1].alternatives
    for index in unmatched[:10]:
        page.evaluate(f"inspector.select(0, {index})")
        told = page.locator(".inspect-fate").inner_text()
        favourite = int(best.index[0][index, 0])
        rival = int(best.index[1][favourite, 0])
        expected = "not over 0.15" if rival == index else f"keypoint {favourite}, fits keypoint {rival} better"
        if best.unmatched[0][index] > 0.5:
            expected = "that it has no partner is likeliest"
        assert expected in told


def test_which_matches_are_drawn(opened):
    page, one = opened("lightglue")
    page.evaluate("inspector.goTo(1)")
    sets = [set(map(tuple, step.pairs.tolist())) for step in one.trace.steps]
    for name, expected in (("new", sets[1] - sets[0]), ("lost", sets[1] - sets[-1]), ("all", sets[1]), ("none", set())):
        page.get_by_role("combobox", name="Matches").select_option(name)
        shown = page.evaluate("Array.from(inspector.view.pairs)")
        assert set(zip(shown[::2], shown[1::2], strict=True)) == expected, name


def test_hover_tells_of_a_match(opened):
    page, one = opened("lightglue")
    page.get_by_role("combobox", name="Points by").select_option("none")
    pair = one.trace.matches.pairs()[0].tolist()
    box = page.locator("canvas.pair-canvas").bounding_box()
    x, y = page.evaluate(f"inspector.view.place(0, {pair[0]})")
    page.mouse.move(box["x"] + x, box["y"] + y)
    tip = page.locator(".pair-tip").inner_text()
    assert "score" in tip
    assert "first predicted at layer" in tip


def test_superglue(opened):
    page, one = opened("superglue")
    slider = page.get_by_role("slider", name="Iteration")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == f"iteration 1 (1 of {len(one.trace.steps)})"
    said = page.get_by_role("status").first.inner_text()
    assert f"{len(one.trace.steps[0].pairs)} matches" in said
    assert f"{one.trace.steps[0].marginal_error:.1%}".replace("%", "\xa0%") in said
    assert page.get_by_role("img", name="Probability out of place by iteration").is_visible()
    page.evaluate("inspector.select(1, 7)")
    layer = page.get_by_role("slider", name="Layer")
    for number, place in ((12, 11), (3, 2)):
        layer.fill(str(place))
        unit = one.trace.attention[place]
        assert (
            layer.get_attribute("aria-valuetext") == unit.name == f"layer {number} {'cross' if place % 2 else 'self'}"
        )
        rays = page.evaluate("inspector.view.rays.map((ray) => [ray.toView, ray.to])")
        view = 0 if unit.cross else 1
        assert {tuple(ray) for ray in rays} == {(view, int(i)) for i in unit.index[1][7].flatten()}
    unmatched = rows(page, "What it might match here")[-1]
    assert float(unmatched[1]) == pytest.approx(float(one.trace.steps[0].alternatives.unmatched[1][7]), abs=0.006)


def test_nearest(opened):
    page, one = opened("nearest")
    assert page.get_by_role("slider", name="Step").is_disabled()
    index0 = lonely(one, 0, one.trace.matches.pairs()[:, 0])
    click_keypoint(page, 0, int(index0))
    found = rows(page, "What it might match here")
    assert len(found) == 5
    assert "matched" in found[0][0]


def test_a_chart_is_clicked(opened):
    page, _ = opened("lightglue")
    chart = page.get_by_role("img", name="Share of points that are sure by layer")
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] * 46 / 360, "y": box["height"] / 2})
    assert page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext") == "layer 1 (1 of 6)"


@pytest.mark.parametrize("name", ["lightglue", "superglue"])
def test_on_a_phone_in_the_dark(opened, name):
    page, _ = opened(name, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    page.evaluate("inspector.select(0, 3)")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"
    heights = page.evaluate("[...document.querySelectorAll('.inspector button')].map((one) => one.offsetHeight)")
    assert min(height for height in heights if height) >= 28
    box = page.locator("canvas.pair-canvas").bounding_box()
    assert box["width"] > 300
    assert box["height"] > box["width"]  # one photo above the other
    page.get_by_role("button", name="Zoom in on it").tap()
    assert page.evaluate("inspector.view.isFitted()") is False
