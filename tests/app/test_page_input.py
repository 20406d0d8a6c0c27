"""How photos and regions get into the page, and what it says of those that cannot be used."""

import base64

import numpy as np
import pytest
from PIL import Image

from asked_server import bad_files, drawing, encoded, photos
from page_of_app import choose, ended, opened, payload, press_run, readout, take_example, trouble, until

DROP = """(place, files) => {
    const data = new DataTransfer();
    for (const [name, content] of files)
        data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
    const kind = place === "paste" ? "paste" : "drop";
    const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
        : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
    (kind === "paste" ? document : document.querySelector(place)).dispatchEvent(event);
}"""


def bring(page, place, *contents):
    """Drop files on what `place` selects, or paste them."""
    files = [[f"brought{i}.png", base64.b64encode(content).decode()] for i, content in enumerate(contents)]
    page.evaluate(f"([place, files]) => ({DROP})(place, files)", [place, files])


def names(page):
    return [one.inner_text() for one in page.locator(".file-name").all()]


def drag(page, canvas, *points):
    """Draw on a canvas through points from 0 to 1 of its sides."""
    box = canvas.bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def keypoints(page, view):
    """(N, 2) px as stored."""
    values = page.evaluate(f"[...Isinglass.flat(Isinglass.page.views.match.payload.keypoints[{view}])]")
    return np.reshape(values, (-1, 2))


@pytest.mark.parametrize("place", ["#panel-match", ".place", "paste"])
def test_photos_are_dropped_and_pasted(visit, site, place):
    page = opened(visit(), site)
    bring(page, place, *photos())
    until(lambda: names(page) == ["brought0.png", "brought1.png"])
    assert page.locator("#run").is_enabled()
    page.locator("body").press("x")
    assert names(page) == ["brought1.png", "brought0.png"]
    page.get_by_text("Remove").first.click()
    assert names(page) == ["brought0.png"]
    assert page.locator("#run").is_disabled()
    bring(page, "paste", photos()[1])
    until(lambda: len(names(page)) == 2)


def test_the_camera_gives_a_photo(visit, site):
    page = opened(visit(), site)
    page.get_by_text("Camera").first.click()
    video = page.locator("dialog video")
    until(lambda: video.evaluate("video => video.videoWidth > 0 && !video.paused"))
    page.get_by_text("Take the photo").click()
    until(lambda: names(page) and names(page)[0].startswith("camera-"))
    assert page.locator(".picture canvas").count() == 1
    page.get_by_role("button", name="Camera", exact=True).click()
    page.locator("dialog.camera").get_by_text("Cancel").click()
    assert len(names(page)) == 1


def test_examples(visit, site):
    page = opened(visit(), site)
    for example in page.evaluate("Isinglass.page.choices.examples"):
        take_example(page, example["name"])
        until(lambda name=example["name"]: names(page) == [f"{name}-0.jpg", f"{name}-1.jpg"])


def test_keypoints_stay_in_a_drawn_region(visit, site):
    page = opened(visit(), site)
    choose(page, *photos())
    page.get_by_text("Region", exact=True).first.click()
    canvas = page.locator(".mask-canvas")
    drag(page, canvas, (0.25, 0.2), (0.75, 0.9))
    page.get_by_text("Done").click()
    page.get_by_text("Region (1)").wait_for()
    press_run(page)
    places = keypoints(page, 0) / (320, 240)
    assert len(places) > 20
    assert ((places > (0.24, 0.19)) & (places < (0.76, 0.91))).all()
    everywhere = keypoints(page, 1) / (320, 240)
    assert (everywhere < 0.15).any()
    page.get_by_text("Region (1)").click()
    page.get_by_text("Leave out").click()
    page.get_by_text("Done").click()
    press_run(page)
    places = keypoints(page, 0) / (320, 240)
    assert len(places) > 20
    assert not ((places > (0.26, 0.21)) & (places < (0.74, 0.89))).all(axis=1).any()


def test_regions_are_drawn_by_hand_and_by_keys(visit, site):
    page = opened(visit(), site)
    choose(page, *photos())
    page.get_by_text("Region", exact=True).nth(1).click()
    canvas = page.locator(".mask-canvas")
    page.get_by_text("Freehand").click()
    drag(page, canvas, (0.1, 0.1), (0.9, 0.1), (0.1, 0.9))  # a triangle
    page.get_by_text("Undo").click()
    drag(page, canvas, (0.1, 0.1), (0.9, 0.1), (0.1, 0.9))
    page.get_by_text("Done").click()
    press_run(page)
    x, y = (keypoints(page, 1) / (320, 240)).T
    assert len(x) > 10
    assert (x + y < 1.03).all()
    page.get_by_text("Region (1)").click()
    page.get_by_text("Clear").click()
    for key in ["Enter", *["ArrowRight"] * 20, *["ArrowDown"] * 20, "Enter"]:
        canvas.press(key)
    page.get_by_text("Done").click()
    press_run(page)
    places = keypoints(page, 1) / (320, 240)
    assert len(places) > 5
    assert ((places > 0.49) & (places < 0.92)).all()


@pytest.mark.parametrize(("form", "orientation"), [("JPEG", 3), ("JPEG", 6), ("JPEG", 8), ("PNG", 6), ("WEBP", 6)])
def test_regions_of_a_photo_that_is_turned_when_shown(visit, site, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    page = opened(visit(), site)
    choose(page, ("turned.jpg", encoded(drawing(), form, quality=92, exif=exif)), photos()[1])
    page.get_by_text("Region", exact=True).first.click()
    drag(page, page.locator(".mask-canvas"), (0.02, 0.02), (0.45, 0.45))  # the top left as people see it
    page.get_by_text("Done").click()
    press_run(page)
    assert trouble(page) == ""
    places = keypoints(page, 0) / (320, 240)
    at_right, at_bottom = {3: (True, True), 6: (False, True), 8: (True, False)}[orientation]
    at_bottom &= form != "WEBP"  # which browsers show as stored
    assert len(places) > 5
    assert ((places[:, 0] > 0.5) == at_right).all()
    assert ((places[:, 1] > 0.5) == at_bottom).all()


@pytest.mark.parametrize("kind", ["text", "cut off", "svg", "gif", "empty"])
def test_files_that_cannot_be_used_are_told_in_the_page(visit, site, kind):
    content, _, word = bad_files()[kind]
    page = opened(visit(), site)
    choose(page, (f"{kind.replace(' ', '-')}.jpg", content), photos()[1])
    press_run(page)
    assert word in trouble(page)
    assert f"{kind.replace(' ', '-')}.jpg" in trouble(page)
    assert "expected" in trouble(page)
    choose(page, photos()[0])  # and all is well again
    assert trouble(page) == ""
    press_run(page)
    assert int(readout(page)["matches"]) > 40


def test_a_bomb_is_neither_shown_nor_sent(visit, site):
    page = opened(visit(), site)
    bomb = {"name": "bomb.png", "mimeType": "image/png", "buffer": bad_files()["bomb"][0]}
    page.set_input_files("#photo-0", bomb)
    until(lambda: "bomb.png has 20000 x 10000 px; expected at most 50 megapixels" in trouble(page))
    assert names(page) == []


def test_a_file_over_the_limit_is_not_even_sent(visit, site, tmp_path):
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(33_000_000)
    page = opened(visit(), site)
    page.set_input_files("#photo-0", large)
    until(lambda: "33 MB" in trouble(page))
    assert "at most 32 MB" in trouble(page)
    assert names(page) == []


def test_identical_files_are_told(visit, site):
    page = opened(visit(), site)
    choose(page, photos()[0], photos()[0])
    press_run(page)
    assert "identical" in page.locator("#panel-match .notice").first.inner_text()
    pairs = np.reshape(payload(page)["pairs"], (-1, 2))
    assert (pairs[:, 0] == pairs[:, 1]).mean() > 0.95


def test_photos_of_different_things_are_told(visit, site):
    page = opened(visit(), site)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    choose(page, photos()[0], encoded(noise.resize((160, 120)).resize((320, 240))))
    press_run(page)
    assert "doctor" in page.locator("#panel-match .notice").first.inner_text().lower()


def test_numbers_out_of_range_are_refused_at_once(visit, site):
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#option-max_keypoints").fill("100000")
    page.locator("#run").click()
    assert page.locator("#option-max_keypoints").evaluate("input => input.validationMessage") != ""
    assert page.locator("#panel-match .readout").count() == 0
    page.locator("#option-max_keypoints").fill("60")
    page.locator("#option-max_keypoints").press("Enter")  # starts as well
    ended(page)
    page.locator("#panel-match .readout").wait_for()
    assert readout(page)["keypoints"] == "60 and 60"
