"""The page of a map: what came of it is on it, whatever that was, and nothing on it comes from elsewhere."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from isinglass.errors import MissingExtra
from isinglass.sfm import page as pages
from isinglass.sfm.page import _upright
from mapped_scene import Setup


class Checked(HTMLParser):
    """Counts what is open, and gathers text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    made = Setup(tmp_path_factory.mktemp("page"), views=9)
    for name in made.scene.names[5:]:
        made.scene.seen[name] = made.scene.seen[name] + 1000
    (made.scene.photos / "<b>broken.png").write_bytes(b"no image")
    made.summary = made.make()
    made.page = (made.folder / "index.html").read_text()
    return made


def test_what_came_of_it_is_said(setup):
    read = Checked(setup.page)
    assert read.open == []
    assert "5 of 10 photos (50 %) in one model" in read.text
    assert "1 more of other photos" in read.text
    assert "<b>broken.png: " in read.text
    for title in ("model, from above", "model/1, from the side", "Match graph", "Track lengths", "reconstruction"):
        assert title in read.text


def test_photos_and_figures_are_in_the_page(setup):
    assert setup.page.count("data:image/jpeg;base64,") == 5
    assert setup.page.count("<svg role") == 6
    sources = re.findall(r'(?:src|href)="([^"#]+)', setup.page)
    assert all(source.startswith("data:") for source in sources)


def test_no_photo_at_all(tmp_path, recwarn):
    setup = Setup(tmp_path, views=2)
    for name in setup.scene.names:
        (setup.scene.photos / name).write_bytes(b"no image")
    setup.make()
    assert "There are no photos with keypoints." in Checked((setup.folder / "index.html").read_text()).text
    assert not recwarn.list


def test_no_model_is_said_with_the_reason(tmp_path):
    setup = Setup(tmp_path, views=2)
    setup.scene.seen["001.png"] = setup.scene.seen["001.png"] + 1000
    setup.make()
    read = Checked((setup.folder / "index.html").read_text())
    assert "There is no model: no overlap was found" in read.text
    assert "Photos</h2>" not in read.text


def test_without_matplotlib_there_are_no_figures(setup, tmp_path, monkeypatch):
    def new_axes(*labels):
        raise MissingExtra("matplotlib", "viz")

    monkeypatch.setattr(pages, "new_axes", new_axes)
    pages.write_map_page(tmp_path / "page.html", setup.folder, setup.scene.photos, setup.summary, {})
    text = (tmp_path / "page.html").read_text()
    assert "<svg" not in text
    assert "pip install &#x27;isinglass[viz]&#x27;" in text


def test_photos_that_are_gone_are_left_out(setup, tmp_path):
    pages.write_map_page(tmp_path / "page.html", setup.folder, tmp_path, setup.summary, {})
    assert "data:image/jpeg" not in (tmp_path / "page.html").read_text()


def test_up_is_up():
    """Cameras that are level and look in all directions, in a map that is turned."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    angles = np.linspace(0, 6, 20)
    rotations = np.array([[[np.cos(a), np.sin(a), 0], [0, 0, -1], [-np.sin(a), np.cos(a), 0]] for a in angles])
    centres = np.array([[3 * np.cos(a), np.sin(a), 0] for a in angles])
    to_map = _upright(rotations @ turn.T, centres @ turn.T)
    np.testing.assert_allclose(to_map @ turn @ [0, 0, 1], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(np.abs(to_map @ turn @ [1, 0, 0]), [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(to_map @ to_map.T, np.eye(3), atol=1e-6)
