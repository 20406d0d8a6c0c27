"""The Match tab in a real browser: from two files to a picture that is looked into, filtered and taken away."""

import io
import json

import numpy as np
from PIL import Image

import isinglass
from asked_server import SMALL, photos
from isinglass.files.single import load_matches
from isinglass.kernels import calibration
from page_of_app import choose, opened, payload, pixels, place_of, press_run, readout, take_example, until

PHONE = {"width": 390, "height": 844}


def matched(visit, site, viewport=None, **options):
    """A page with matches of two drawings."""
    page = opened(visit() if viewport is None else visit(viewport), site, **options)
    choose(page, *photos())
    press_run(page)
    return page


def shown(page):
    return int(page.locator(".left").inner_text().split()[0])


def slide(page, value):
    page.locator(".score-filter input").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_two_files_are_matched(visit, site, tmp_path):
    page = matched(visit, site)
    found = payload(page)
    names = []
    for view, content in enumerate(photos()):
        names.append(tmp_path / f"{view}.png")
        names[view].write_bytes(content)
    options = {**SMALL, "max_keypoints": int(SMALL["max_keypoints"]), "resize": int(SMALL["resize"])}
    expected = isinglass.match(*names, device="cpu", **options)
    assert np.reshape(found["pairs"], (-1, 2)).tolist() == expected.matches.pairs().tolist()
    assert readout(page)["matches"] == str(len(expected.scores)) == str(shown(page))
    assert len(expected.scores) > 40
    assert {row.get_attribute("data-stage") for row in page.locator(".timing").all()} >= {"extract", "match"}
    assert "isinglass.match(" in page.locator("#panel-match pre").text_content()


def test_scores_are_filtered(visit, site):
    page = matched(visit, site)
    found = payload(page)
    before = (pixels(page)[..., :3].astype(int)).sum(axis=2)
    least = float(np.median(found["scores"])) // 0.005 * 0.005
    slide(page, least)
    passing = [score >= least - 1e-9 for score in found["scores"]]
    assert 0 < shown(page) == sum(passing) < len(passing)
    assert (np.abs((pixels(page)[..., :3].astype(int)).sum(axis=2) - before) > 30).mean() > 0.005  # fewer lines
    page.get_by_label("disagree").uncheck()
    agreeing = [is_passing and bool(inlier) for is_passing, inlier in zip(passing, found["inliers"], strict=True)]
    assert shown(page) == sum(agreeing)
    page.get_by_label("agree", exact=True).uncheck()
    assert shown(page) == 0


def test_colours_tell_of_agreement_score_or_place(visit, site):
    page = matched(visit, site)
    seen = {}
    for name in ("agreement", "score", "place"):
        page.locator("#panel-match .tools").get_by_text(name, exact=True).click()
        page.mouse.move(5, 5)
        seen[name] = pixels(page).astype(int)
    for one, other in (("agreement", "score"), ("score", "place"), ("agreement", "place")):
        assert (np.abs(seen[one] - seen[other]).max(axis=2) > 40).mean() > 0.005
    page.locator("#panel-match").get_by_label("keypoints").check()
    assert (np.abs(pixels(page).astype(int) - seen["place"]).max(axis=2) > 40).mean() > 0.002


def test_a_match_under_the_pointer_tells_of_itself(visit, site):
    page = matched(visit, site)
    found = payload(page)
    tip = page.locator("#panel-match .pair-tip")
    rows = np.argsort(found["scores"])[[0, -1]]
    for row in rows:
        page.mouse.move(*place_of(page, 0, found["pairs"][2 * row]))
        until(lambda row=row: f"score {found['scores'][row]:.3f}" in tip.inner_text() and tip.is_visible())
        assert f"keypoints {found['pairs'][2 * row]} and {found['pairs'][2 * row + 1]}" in tip.inner_text()
        verdict = "agrees" if found["inliers"][row] else "disagrees"
        assert f"{verdict} with the {found['model']['kind']}" in tip.inner_text()
        assert "after layer" in tip.inner_text()
    page.mouse.move(5, 5)
    until(lambda: not tip.is_visible())
    slide(page, 1)
    page.mouse.move(*place_of(page, 0, found["pairs"][2 * rows[0]]))
    page.wait_for_timeout(200)
    assert not tip.is_visible()  # what is filtered out is not there


def test_probabilities_of_a_calibrated_matcher_are_told(visit, site, monkeypatch):
    known = calibration.calibration("lighterglue-xfeat")
    monkeypatch.setattr(calibration, "calibration", lambda name: known)
    page = matched(visit, site)
    row = int(np.argmax(payload(page)["scores"]))
    chances = page.evaluate("[...Isinglass.flat(Isinglass.page.views.match.payload.matches.probabilities)]")
    page.mouse.move(*place_of(page, 1, payload(page)["pairs"][2 * row + 1]))
    tip = page.locator("#panel-match .pair-tip")
    until(lambda: f"right with probability {chances[row]:.2f}" in tip.inner_text())


def test_results_are_taken_away(visit, site, tmp_path):
    page = matched(visit, site)
    found = payload(page)
    pairs = np.reshape(found["pairs"], (-1, 2)).tolist()

    def saved(act):
        with page.expect_download() as download:
            act()
        return download.value

    away = page.locator(".take-away")
    as_json = saved(lambda: away.get_by_role("link", name="JSON").click())
    assert json.loads(as_json.path().read_text())["pairs"] == pairs
    as_npz = saved(lambda: away.get_by_role("link", name="npz").click())
    as_npz.save_as(tmp_path / as_npz.suggested_filename)
    assert load_matches(tmp_path / "matches.npz").matches.pairs().tolist() == pairs
    picture = Image.open(io.BytesIO(saved(lambda: away.get_by_role("button", name="PNG").click()).path().read_bytes()))
    assert picture.height == 240
    assert 640 <= picture.width < 660  # both photos, and a gap
    page.get_by_text("The Python code for this").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#panel-match pre").text_content()


def test_the_overlay_is_warped_by_the_homography(visit, site):
    page = matched(visit, site, geometry="homography")
    page.locator("#panel-match").get_by_label("lines").uncheck()
    beside = pixels(page).shape
    page.get_by_text("Overlay", exact=True).click()
    until(lambda: pixels(page).shape != beside)

    def at(mix):
        page.locator(".mix input").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", mix
        )
        return pixels(page)[..., :3].astype(int)

    first, second = at(0), at(1)
    high, wide = second.shape[:2]
    middle = np.s_[high // 4 : -high // 4, wide // 3 : -wide // 3]
    aligned = np.abs(first - second)[middle].mean()
    page.get_by_text("Side by side", exact=True).click()
    beside = pixels(page)[..., :3].astype(int)
    half = beside.shape[1] // 2
    unaligned = np.abs(beside[:, : half - 8] - beside[:, -(half - 8) :]).mean()
    assert aligned < 0.4 * unaligned
    assert page.locator(".unwarped").is_hidden()
    page.get_by_text("Blink", exact=True).click()
    frames = [pixels(page)]
    until(lambda: bool((np.abs(pixels(page)[middle].astype(int) - frames[0][middle]) > 40).any()))


def test_without_a_homography_the_overlay_says_so(visit, site):
    page = matched(visit, site, geometry="none")
    assert page.get_by_text("disagree").count() == 0
    page.get_by_text("Overlay", exact=True).click()
    assert "no homography" in page.locator(".unwarped").inner_text()


def test_zoom_pan_and_keys(visit, site):
    page = matched(visit, site)
    canvas = page.locator("#panel-match .pair-canvas")
    view = "Isinglass.page.views.match.pair"
    start = page.evaluate(f"{view}.at")
    found = payload(page)
    x, y = place_of(page, 1, found["pairs"][1])
    page.mouse.move(x, y)
    page.mouse.wheel(0, -500)
    until(lambda: page.evaluate(f"{view}.at.zoom") > 1.5 * start["zoom"])
    assert (
        np.abs(np.subtract(place_of(page, 1, found["pairs"][1]), (x, y))).max() < 1
    )  # what is under the pointer stays
    page.mouse.down()
    page.mouse.move(x - 40, y - 25, steps=4)
    page.mouse.up()
    moved = np.subtract(place_of(page, 1, found["pairs"][1]), (x, y))
    assert np.abs(moved - (-40, -25)).max() < 8  # a slip before it is a drag
    canvas.press("0")
    assert page.evaluate(f"{view}.at") == start
    canvas.press("+")
    assert page.evaluate(f"{view}.at.zoom") > start["zoom"]
    page.mouse.move(5, 5)
    canvas.press("]")
    canvas.press("]")
    assert page.evaluate(f"{view}.lit") == 1
    assert "score" in page.locator("#panel-match .pair-tip").inner_text()
    canvas.press("Escape")
    assert page.evaluate(f"{view}.lit") is None
    page.locator("body").press("v")
    assert page.evaluate(f"{view}.mode") == "overlay"


def test_options_are_kept_in_the_address(visit, site):
    page = opened(visit(), site)
    options = page.locator("#options")
    options.get_by_label("Keypoints").fill("777")
    options.get_by_label("Extractor").select_option("aliked-n16")
    matchers = page.locator("#option-matcher option").all_inner_texts()
    assert "lightglue-aliked" in " ".join(matchers)
    assert not any("sift" in one for one in matchers)
    assert page.locator("#option-matcher").input_value() == "lightglue-aliked"
    page.locator("#option-matcher").select_option("nearest")
    assert page.locator("#option-ratio").is_visible()
    assert page.locator("#option-filter_threshold").is_hidden()
    page.locator("#option-ratio").fill("0.9")
    page.get_by_role("tab", name="Doctor").click()
    page.reload()
    page.locator("#tab-doctor[aria-selected=true]").wait_for()
    kept = {name: page.locator(f"#option-{name}").input_value() for name in ("max_keypoints", "matcher", "ratio")}
    assert kept == {"max_keypoints": "777", "matcher": "nearest", "ratio": "0.9"}
    assert any("non-commercial" in one for one in page.locator("#option-extractor option").all_inner_texts())


def test_a_phone(visit, site, shoot):
    page = opened(visit(PHONE, has_touch=True, device_scale_factor=2), site, max_keypoints=512, resize=480)
    take_example(page, "turned")
    press_run(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    box = page.locator("#panel-match .pair-canvas").bounding_box()
    assert box["height"] > box["width"]  # one above the other
    found = payload(page)
    page.locator("#panel-match .pair-canvas").scroll_into_view_if_needed()
    page.wait_for_timeout(600)  # the page still rolls to the result
    page.touchscreen.tap(*place_of(page, 0, found["pairs"][0]))
    page.locator("#panel-match .pair-tip").wait_for()  # and it stays when the finger is gone
    page.wait_for_timeout(300)
    assert "score" in page.locator("#panel-match .pair-tip").inner_text()
    assert page.locator("#panel-match .pair-tip").is_visible()
    shoot(page, "phone", width=390)


def test_dark_and_light(visit, site, shoot):
    colours = {}
    for scheme in ("dark", "light"):
        page = opened(visit(color_scheme=scheme), site, max_keypoints=512, resize=480)
        take_example(page, "motorcycle")
        press_run(page)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        row = payload(page)["pairs"]
        page.mouse.move(*place_of(page, 0, row[120]))
        page.wait_for_timeout(200)
        shoot(page, f"match-{scheme}")
    middle = pixels(page).shape[1] // 2  # the gap between the photos
    before = pixels(page)[:, middle].astype(int)
    page.emulate_media(color_scheme="dark")
    until(lambda: bool(np.abs(pixels(page)[:, middle] - before).mean() > 100))
    assert colours == {"dark": "rgb(15, 19, 23)", "light": "rgb(246, 247, 249)"}
