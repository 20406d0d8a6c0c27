"""What tests do on the app's page, as people would."""

import time

from asked_server import SMALL

ANSWER_MS = 90_000


def until(holds, seconds=30):
    """Whatever `holds` gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.03)
    return found


def address(site, tab="match", **options):
    """Of the page with a small and fast pipeline."""
    query = "&".join(f"{name}={value}" for name, value in {**SMALL, **options}.items())
    return f"{site.address}/#{tab}?{query}"


def opened(page, site, tab="match", **options):
    """The page, once it can be used."""
    page.goto(address(site, tab, **options))
    page.locator(f"#tab-{tab}[aria-selected=true]").wait_for()
    return page


def choose(page, *photos):
    """Give photos as files: bytes, or (name, bytes)."""
    for view, photo in enumerate(photos):
        name, content = photo if isinstance(photo, tuple) else (f"photo{view}.png", photo)
        page.set_input_files(f"#photo-{view}", {"name": name, "mimeType": "", "buffer": content})
        page.locator(f".place >> nth={view}").locator(".file-name", has_text=name).wait_for()


def take_example(page, name):
    """An example of the server."""
    page.locator(f"[data-example={name}]").click()
    page.locator("#run:enabled").wait_for()


def press_run(page):
    """Start, and wait until it has ended."""
    page.locator("#run:enabled").click()
    ended(page)


def ended(page):
    page.locator("#run:enabled").wait_for(timeout=ANSWER_MS)


def trouble(page):
    """What the page says is wrong."""
    return page.locator("#trouble").inner_text()


def readout(page, tab="match"):
    """The numbers above the picture, by what they are."""
    rows = page.locator(f"#panel-{tab} .readout > div").all()
    return {row.locator("span").inner_text(): row.locator("b").inner_text() for row in rows}


def payload(page, tab="match"):
    """What the page has of its matches: pairs, scores, inliers."""
    return page.evaluate(
        f"""() => {{ const {{ payload }} = Isinglass.page.views.{tab}; const m = payload.matches;
        return {{ names: payload.views.map((view) => view.name), model: payload.model,
        pairs: [...Isinglass.flat(m.pairs)], scores: [...Isinglass.flat(m.scores)],
        inliers: [...(Isinglass.flat(m.inliers) || [])] }} }}"""
    )


def place_of(page, view, keypoint, tab="match"):
    """Where on the page a keypoint is drawn."""
    return page.evaluate(
        f"""() => {{ const {{ pair }} = Isinglass.page.views.{tab}; const box = pair.canvas.getBoundingClientRect();
        const [x, y] = pair.place({view}, {keypoint}); return [x + box.left, y + box.top] }}"""
    )


def pixels(page, tab="match"):
    """(height, width, 4) uint8, the canvas of the picture as it is now."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    page.wait_for_timeout(120)  # it is drawn with the next frame
    url = page.evaluate(f"Isinglass.page.views.{tab}.pair.canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))
