"""What is taken as a photo, and what is refused, with which words."""

import numpy as np
import pytest
from PIL import Image

from asked_server import SVG, animated, bad_files, drawing, encoded, photos
from isinglass.app.settings import Limits, Settings
from isinglass.app.uploads import Refused, check_upload, shown_name
from isinglass.errors import InputError

LIMITS = Limits()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_refused(name):
    content, status, word = bad_files()[name]
    with pytest.raises(Refused, match=word) as refused:
        check_upload(content, "thing.png", LIMITS).decoded()
    assert refused.value.status == status
    message = str(refused.value)
    assert message.startswith("thing.png")
    assert "expected" in message
    assert ". " in message  # a remedy follows


def test_a_bomb_is_refused_by_its_head(monkeypatch):
    def decode(*given):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    content, *_ = bad_files()["bomb"]
    assert len(content) < 100_000
    with pytest.raises(Refused, match="20000 x 10000 px"):
        check_upload(content, "bomb.png", LIMITS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_photos_are_taken(form):
    upload = check_upload(encoded(drawing(), form), "a photo", LIMITS)
    assert upload.size == (320, 240)
    difference = np.asarray(upload.decoded().convert("RGB"), float) - np.asarray(drawing(), float)
    assert np.abs(difference).mean() < 12


def test_a_phones_two_images_in_one_are_one_photo():
    first, second = drawing(0), drawing(1)
    upload = check_upload(encoded(first, "MPO", save_all=True, append_images=[second]), "phone.jpg", LIMITS)
    assert np.abs(np.asarray(upload.decoded(), float) - np.asarray(first, float)).mean() < 12


def test_limits_are_exact():
    content = photos()[0]
    check_upload(content, "a", Limits(file_bytes=len(content), pixels=320 * 240))
    with pytest.raises(Refused, match="0 MB") as refused:
        check_upload(content, "a", Limits(file_bytes=len(content) - 1))
    assert refused.value.status == 413
    with pytest.raises(Refused, match="320 x 240") as refused:
        check_upload(content, "a", Limits(pixels=320 * 240 - 1))
    assert refused.value.status == 413


def test_equal_files_have_equal_digests():
    one, other = (check_upload(content, "a", LIMITS) for content in photos())
    assert one.digest == check_upload(photos()[0], "b", LIMITS).digest != other.digest


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.png", "a.png"),
        ("a\x00\x1b[31m\nb.png", "a[31mb.png"),
        ("", "photo"),
        ("/", "photo"),
        ("\u202e\n", "photo"),
        ("é" * 300 + ".png", "é" * 67 + "..." + "é" * 6 + ".png"),
    ],
)
def test_names_are_shown_without_folders_and_what_cannot_be_shown(name, shown):
    assert shown_name(name, "photo") == shown
    assert len(shown) <= 80


def test_a_moving_picture_of_one_frame_is_a_photo():
    assert check_upload(animated("GIF", 1), "a.gif", LIMITS).size == (320, 240)


def test_an_svg_without_a_head_is_told_too():
    with pytest.raises(Refused, match="SVG"):
        check_upload(SVG.partition(b"\n")[2], "a.svg", LIMITS)


def test_settings():
    assert Settings().is_local
    assert Settings(host="localhost").is_local
    assert Settings(host="::1").is_local
    assert "[::1]" in Settings(host="::1").known_names
    assert not Settings(host="0.0.0.0").is_local
    assert Settings(host="0.0.0.0").known_names is None
    assert Settings(host="0.0.0.0", names=("lab.example",)).known_names >= {"lab.example", "localhost"}
    assert not Settings(host="lab.example").is_local
    with pytest.raises(InputError, match="70000"):
        Settings(port=70_000)
