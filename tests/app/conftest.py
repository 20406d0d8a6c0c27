"""The app's server, a browser, and pages that must not fail."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

DESK = {"width": 1400, "height": 900}
SHOTS = os.environ.get("ISINGLASS_SCREENSHOTS")  # a folder for the pictures of docs/app.md
SHOT_BYTES = 195_000
SHOT_HEIGHT = 780  # of a desk's window


@pytest.fixture(scope="session")
def site():
    """A server that all pages share; a `Client` of it."""
    pytest.importorskip("fastapi", reason="needs FastAPI, which the extra app installs")
    from asked_server import running

    with running() as client:
        yield client


@pytest.fixture
def visit(browser, site):
    """Opens pages, each of its own user. Scripts that fail, and what comes from elsewhere, are failures of the test."""
    contexts, problems = [], []

    def open_one(viewport=DESK, **more):
        context = browser.new_context(viewport=viewport, permissions=["clipboard-read", "clipboard-write"], **more)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Policy" in message.text else None)
        page.on("request", lambda request: problems.append(request.url) if _is_foreign(request.url, site) else None)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def _is_foreign(url, site):
    return not url.startswith((site.address, site.address.replace("http", "ws", 1), "blob:", "data:", "about:"))


@pytest.fixture
def shoot():
    """Keeps a picture of a page for the docs, where ISINGLASS_SCREENSHOTS says so."""

    def keep(page, name, width=1000):
        if SHOTS is None:
            return
        size = page.viewport_size
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], SHOT_HEIGHT)}
        picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        content = b""
        while not content or len(content) > SHOT_BYTES:
            size = width, round(width * picture.height / picture.width)
            small = picture.resize(size, Image.Resampling.LANCZOS).quantize(256, dither=Image.Dither.NONE)
            buffer = io.BytesIO()
            small.save(buffer, "PNG", optimize=True)
            content, width = buffer.getvalue(), round(width * 0.94)
        (Path(SHOTS) / f"app-{name}.png").write_bytes(content)

    return keep
