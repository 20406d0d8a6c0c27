"""Inspect, Compare, Doctor and Live in a real browser; tabs, keys and help."""

import numpy as np
import pytest
from PIL import Image

from asked_server import drawing, encoded, photos, running
from isinglass.app.settings import Settings
from page_of_app import address, choose, opened, pixels, press_run, readout, take_example, trouble, until

LIVE = {"live_extractor": "rootsift", "live_matcher": "lightglue-sift-small", "live_max_keypoints": 128}
LIVE["live_resize"] = 240


def write_video(file, image=None, frames=40):
    """A drawing, or an image, that moves to and fro."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    wide = np.asarray(drawing(5, (400, 240)) if image is None else image)
    height, width = wide.shape[0], wide.shape[1] - 80
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"VP80"), 15, (width, height))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no VP8")
    for k in range(frames):
        x = round(35 + 30 * np.sin(k / 6))
        writer.write(np.ascontiguousarray(wide[:, x : x + width, ::-1]))
    writer.release()


def photo_of(motorcycle):
    return Image.fromarray((motorcycle[0].permute(1, 2, 0) * 255).byte().numpy())


def live_numbers(page):
    return page.locator(".live-numbers").evaluate("box => ({ ...box.dataset })")


def test_compare_tells_whose_each_match_is(visit, site, shoot):
    page = opened(visit(), site, "compare", max_keypoints=512, resize=480)
    take_example(page, "motorcycle")
    press_run(page)
    found = page.evaluate(
        """() => { const { payload } = Isinglass.page.views.compare;
        return [payload.matches, payload.other.matches].map((one) => one.pairs.shape[0]) }"""
    )
    counts = [int(number) for number in readout(page, "compare").values()]
    assert counts[0] + counts[1] == found[0]
    assert counts[0] + counts[2] == found[1]
    assert counts[0] > 50
    shoot(page, "compare")
    before = pixels(page, "compare").astype(int)
    page.get_by_label("found by both").uncheck()
    page.mouse.move(5, 5)
    assert (np.abs(pixels(page, "compare") - before) > 20).mean() > 0.01
    assert "only nearest" in page.locator("#panel-compare .tools").inner_text()
    page.locator("#option-other_matcher").select_option("superglue-sift-small")
    press_run(page)
    assert any("superglue" in name for name in readout(page, "compare"))
    page.reload()
    until(lambda: page.locator("#option-other_matcher").input_value() == "superglue-sift-small")


def test_the_doctor_finds_a_blank_photo(visit, site, shoot, motorcycle):
    page = opened(visit(), site, "doctor")
    blank = encoded(Image.new("RGB", (320, 240), (90, 90, 90)))
    choose(page, ("motorcycle.png", encoded(photo_of(motorcycle))), ("blank.png", blank))
    press_run(page)
    assert "one colour" in page.locator(".verdict").inner_text()
    assert "problem" in page.locator(".verdict").get_attribute("class")
    assert page.locator(".stage.lost").get_attribute("data-stage") == "keypoints"
    assert page.locator(".finding.problem[data-check=exposure] .advice").inner_text().startswith("Use another photo")
    shoot(page, "doctor")
    choose(page, *photos())
    press_run(page)
    assert "matches well" in page.locator(".verdict").inner_text()
    assert page.locator(".stage.lost").count() == 0


def test_the_inspector_is_in_the_page(visit, site, shoot):
    page = opened(visit(), site, "inspect", max_keypoints=256, resize=480)
    take_example(page, "motorcycle")
    press_run(page)
    assert trouble(page) == ""
    slider = page.locator("#panel-inspect input[type=range]").first
    slider.wait_for()
    text = page.locator("#panel-inspect").inner_text()
    slider.press("Home")
    until(lambda: page.locator("#panel-inspect").inner_text() != text)
    with page.expect_download() as download:
        page.locator("#panel-inspect").get_by_role("button", name="PNG").click()
    assert Image.open(download.value.path()).size[0] > 1400  # both photos
    json = page.locator("#panel-inspect").get_by_role("link", name="JSON").get_attribute("href")
    assert page.request.get(site.address + json).json()["matcher"] == "lightglue-sift-small"
    shoot(page, "inspect")


def test_a_camera_live(visit, site):
    page = opened(visit(), site, "live", **LIVE)
    page.locator("#run").click()
    until(lambda: int(live_numbers(page).get("frame", -1)) >= 2, 60)
    numbers = live_numbers(page)
    until(lambda: int(live_numbers(page)["frame"]) > int(numbers["frame"]), 60)
    assert "frames a second" in page.locator(".live-numbers").inner_text()
    assert trouble(page) == ""
    page.locator("#run", has_text="Stop").click()
    page.locator("#run", has_text="Start").wait_for()
    assert page.evaluate("Isinglass.page.live.video.srcObject") is None  # the camera is let go
    page.locator("#run").click()
    until(lambda: page.evaluate("Isinglass.page.live.isRunning"))
    page.get_by_role("tab", name="Match").click()
    until(lambda: not page.evaluate("Isinglass.page.live.isRunning"))


def test_a_video_file_live(visit, site, tmp_path, shoot, motorcycle):
    write_video(tmp_path / "moving.webm", photo_of(motorcycle).resize((560, 360)))
    page = opened(visit(), site, "live", **LIVE)
    page.get_by_text("Video file").click()
    page.locator("#run").click()
    until(lambda: "No video was chosen" in trouble(page))
    page.set_input_files("#live-file", tmp_path / "moving.webm")
    page.locator("#run").click()
    until(lambda: int(live_numbers(page).get("matches", 0)) > 20, 60)
    until(lambda: int(live_numbers(page)["dropped"]) > 0, 60)  # the video goes on while one frame is matched
    run = page.evaluate("Isinglass.page.live.run")
    assert run["sent"] <= run["presented"]
    shoot(page, "live")
    page.get_by_text("Take the next frame").click()
    frame = int(live_numbers(page)["frame"])
    until(lambda: int(live_numbers(page)["frame"]) > frame + 1, 60)
    assert trouble(page) == ""


def test_a_reference_photo_live(visit, site, tmp_path):
    write_video(tmp_path / "moving.webm")
    (tmp_path / "reference.png").write_bytes(encoded(drawing(5, (400, 240))))
    page = opened(visit(), site, "live", **LIVE)
    page.get_by_text("Video file").click()
    page.set_input_files("#live-file", tmp_path / "moving.webm")
    page.locator("#live-source").get_by_text("a reference", exact=True).click()
    page.set_input_files("#live-reference", tmp_path / "reference.png")
    page.locator("#run").click()
    until(lambda: int(live_numbers(page).get("matches", 0)) > 20, 60)
    assert page.evaluate("Isinglass.page.live.base.view.size") == [400, 240]
    (tmp_path / "no.webm").write_bytes(b"not a video")
    page.set_input_files("#live-file", tmp_path / "no.webm")
    page.locator("#run", has_text="Start").click()
    until(lambda: "no video that this browser plays" in trouble(page))


def test_the_video_of_the_server_live(browser, tmp_path):
    write_video(tmp_path / "moving.webm")
    settings = Settings(port=0, device="cpu")
    with running(settings, video=str(tmp_path / "moving.webm")) as client:
        page = browser.new_page()
        page.goto(address(client, "live", **LIVE))
        page.get_by_text("Server", exact=True).wait_for()
        assert "moving.webm" in page.locator("#live-source").inner_text()
        page.get_by_text("Server", exact=True).click()
        page.locator("#run").click()
        until(lambda: int(live_numbers(page).get("matches", 0)) > 20, 60)
        until(lambda: page.evaluate("Isinglass.page.live.pair.photos.every(Boolean)"))
        page.close()


def test_keys_and_help(visit, site):
    page = opened(visit(), site)
    for key, tab in zip("2345", ("inspect", "compare", "doctor", "live"), strict=True):
        page.locator("body").press(key)
        assert page.locator(f"#tab-{tab}").get_attribute("aria-selected") == "true"
        assert page.locator(f"#panel-{tab}").is_visible()
    page.locator("#tab-live").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-match"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert "previous match" in page.locator("#help").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_names_are_text_and_never_markup(visit, site):
    page = opened(visit(), site)
    name = "<img src=x onerror=window.hacked=1>.png"
    choose(page, (name, photos()[0]), (name, photos()[1]))
    for tab in ("match", "doctor", "compare"):
        page.get_by_role("tab", name=tab.capitalize()).click()
        press_run(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_everything_can_be_reached_by_the_tab_key(visit, site):
    page = opened(visit(), site)
    take_example(page, "turned")
    press_run(page)
    page.locator("#help-button").focus()
    reached = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.type"
            )
        )
    assert {"option-extractor", "option-matcher", "run", "pair-canvas", "range"} <= reached
