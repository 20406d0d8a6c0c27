"""The one way to open an image: formats, damaged and false EXIF, limits, files that do not hold what they promise."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from isinglass import images
from isinglass.errors import InputError
from isinglass.images import header
from isinglass.images.formats import REMEDIES, kind_of_content
from support import pattern

SOURCE = Path(__file__).parents[2] / "src" / "isinglass"
BASE, DETAILS, GPS = ExifTags.Base, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo


def content_of(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif_with(tags=None, details=None):
    exif = Image.Exif()
    exif.update(tags or {})
    exif.get_ifd(DETAILS).update(details or {})
    return exif


def header_with(details, size=(64, 48)):
    return images.read_header(content_of(Image.new("RGB", size), "JPEG", exif=exif_with(details=details)))


def test_nothing_else_opens_images():
    places = [
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if re.search(r"(?<!`)\bImage\.open\(|infer_camera_from_image|register_heif_opener", file.read_text("utf-8"))
    ]
    assert places == []


@pytest.mark.parametrize(
    "suffix",
    [
        "jpg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "tif",
        "bmp",
        "dib",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "gif",
        "jp2",
        "j2k",
        "tga",
        "qoi",
        "sgi",
        "pcx",
        "avif",
    ],
)
def test_every_readable_suffix_is_read_by_header_and_pixels(tmp_path, suffix):
    assert f".{suffix}" in images.READABLE_SUFFIXES
    image = Image.fromarray(pattern(40, 30))
    if suffix in ("pgm", "pbm", "gif"):
        image = image.convert("1" if suffix == "pbm" else "L")
    forms = {"dib": "DIB", "j2k": "JPEG2000"}
    path = tmp_path / f"photo.{suffix}"
    image.save(path, forms.get(suffix))
    assert images.read_header(path).size == (40, 30)
    assert images.read_image(path).shape == (3, 30, 40)


def test_what_is_not_read_is_named_with_its_remedy(tmp_path):
    for suffix in (".dng", ".cr2", ".mov", ".psd", ".svg", ".pdf", ".exr"):
        assert images.remedy(f"photo{suffix.upper()}") == REMEDIES[suffix]
    assert images.remedy("photo.JPG") is None and images.remedy("notes.txt") is None
    for content, what in (
        (b"\0\0\0\x18ftypqt  \0\0\0\0", "a video or sound"),
        (b"%PDF-1.7 ", "a PDF document"),
        (b"8BPS\0\x09" + bytes(40), "a Photoshop project"),
        (b"<!DOCTYPE html><html>login</html>", "a web page.*fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
        (b"FUJIFILMCCD-RAW 0201", "raw file.*develop"),
        (bytes(4096), "all zeros"),
    ):
        (tmp_path / "photo.jpg").write_bytes(content)
        with pytest.raises(InputError, match=rf"photo\.jpg.*{what}"):
            images.read_image(tmp_path / "photo.jpg")


def test_a_raw_file_is_not_its_preview(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"  # DNGVersion
    Image.new("RGB", (64, 48)).save(tmp_path / "renamed.tif", tiffinfo=tags)
    Image.new("RGB", (64, 48)).save(tmp_path / "sensor.nef", "TIFF")
    for name in ("renamed.tif", "sensor.nef"):
        with pytest.raises(InputError, match=rf"{name}.*raw file.*develop"):
            images.read_header(tmp_path / name)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content_of(Image.new("L", (5, 4)), "PNG"))
    assert images.read_header(tmp_path / "photo.jpg").format == "PNG"


def heic(tmp_path, **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(Image.fromarray(np.kron(pattern(16, 12), np.ones((8, 8, 1), np.uint8)))).save(path)
    return path


@pytest.fixture
def unregistered(monkeypatch):
    """Pillow as it comes: other packages register HEIF with it for the whole process."""
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)


@pytest.mark.usefixtures("unregistered")
def test_heic_is_read_with_its_extra_without_registering_it(tmp_path):
    path = heic(tmp_path)
    assert images.read_header(path).format == "HEIF" and images.read_image(path).shape == (3, 96, 128)
    assert "HEIF" not in Image.OPEN
    renamed = path.rename(tmp_path / "IMG_0001.jpg")
    assert images.read_image(renamed).shape == (3, 96, 128)
    assert ".heic" in images.readable_suffixes() and images.remedy("a.heic") is None
    renamed.write_bytes(renamed.read_bytes()[:-500])
    with pytest.raises(InputError):
        images.read_image(renamed)


@pytest.mark.usefixtures("unregistered")
def test_heic_without_its_extra_says_how_to_get_it(tmp_path, monkeypatch):
    path = heic(tmp_path)
    monkeypatch.setattr(header, "has_heif", lambda: False)
    for name in ("IMG_0001.HEIC", "IMG_0001.jpg"):
        path = path.rename(tmp_path / name)
        with pytest.raises(InputError, match=r"HEIC photo; .*pip install 'isinglass\[heic\]'"):
            images.read_image(path)


def test_a_name_that_is_not_utf8_can_be_read_and_named(tmp_path):
    good, bad = (os.fsencode(tmp_path) + name for name in (b"/gr\xfc\xdfe.png", b"/\xff.jpg"))
    Image.new("L", (5, 4)).save(os.fsdecode(good), "PNG")
    Path(os.fsdecode(bad)).write_text("no image")
    assert images.read_image(os.fsdecode(good)).shape == (3, 4, 5)
    with pytest.raises(InputError) as raised:
        images.read_header(os.fsdecode(bad))
    str(raised.value).encode("utf-8")


# ---- limits


def test_pillows_limit_is_neither_in_the_way_nor_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(header, "_PILLOW_WARNS_PX", 100)
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        path = tmp_path / f"large.{form}"
        Image.fromarray(pattern(40, 30)).save(path, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
        assert images.read_header(path).size == (40, 30)
        assert images.read_image(path).shape == (3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.slow
def test_two_hundred_megapixels_are_read(tmp_path):
    Image.new("L", (16320, 12240), 90).save(tmp_path / "large.jpg")
    assert images.read_header(tmp_path / "large.jpg").size == (16320, 12240)
    assert images.read_image(tmp_path / "large.jpg").shape == (3, 12240, 16320)


def test_what_is_truncated_is_refused_though_the_program_allows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = Image.fromarray(np.kron(pattern(16, 12), np.ones((8, 8, 1), np.uint8)))
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000"):
        content = content_of(whole, form)
        (tmp_path / "cut").write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(InputError, match=r"cut'.*truncated|cut'.*cannot be read"):
            images.read_image(tmp_path / "cut")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_jpeg_whose_end_is_zeros_is_refused(tmp_path):
    content = content_of(Image.fromarray(np.kron(pattern(32, 24), np.ones((8, 8, 1), np.uint8))), "JPEG", quality=98)
    (tmp_path / "card.jpg").write_bytes(content[: len(content) // 2] + bytes(len(content)))
    with pytest.raises(InputError, match="ends in zeros"):
        images.read_image(tmp_path / "card.jpg")
    (tmp_path / "padded.jpg").write_bytes(content + bytes(5000))
    assert images.read_image(tmp_path / "padded.jpg").shape == (3, 192, 256)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_holds_all_its_rows(tmp_path, compression):
    path = tmp_path / "scan.tif"
    array = np.kron(pattern(12, 90), np.ones((8, 8, 1), np.uint8))
    Image.fromarray(array).save(path, compression=compression, tiffinfo={278: 72})
    assert np.array_equal((images.read_image(path) * 255).round().byte().permute(1, 2, 0).numpy(), array)
    content = bytearray(path.read_bytes())
    ifd = struct.unpack_from("<L", content, 4)[0]
    for entry in range(ifd + 2, ifd + 2 + 12 * struct.unpack_from("<H", content, ifd)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] == 257:
            struct.pack_into("<HLL", content, entry + 2, 4, 1, 1_500_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"10 of 20834 strips|px are of no photo"):
        images.read_image(path)
    path.write_bytes(bytes(content).replace(struct.pack("<L", 1_500_000), struct.pack("<L", 7200)))
    with pytest.raises(InputError, match=r"10 of 100 strips, which cover 720 of 7200 rows"):
        images.read_image(path)


@pytest.mark.shared
def test_the_tiff_whose_strips_cover_72_of_720_rows_is_refused(shared):
    with pytest.raises(InputError, match="cover 72 of 720 rows"):
        images.read_image(shared / "cases" / "tiff_rows720.tif")


def test_so_few_bytes_are_not_so_many_pixels(tmp_path):
    content = bytearray(content_of(Image.new("L", (64, 64)), "JPEG"))
    at = content.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", content, at, 12000, 16000)
    (tmp_path / "bomb.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"16000 x 12000 px cannot be in \d+ bytes"):
        images.read_image(tmp_path / "bomb.jpg")


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_a_size_that_no_photo_has_is_refused_in_containers(tmp_path, form):
    path = heic(tmp_path) if form == "HEIF" else tmp_path / "photo.avif"
    if form == "AVIF":
        Image.fromarray(pattern(64, 48)).save(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(">L", content, content.index(b"ispe") + 8, 15_000_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"of no photo|more than max_pixels|cannot be read"):
        images.read_image(path)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_tiff_with_an_orientation_is_given_as_stored(tmp_path, orientation):
    array = pattern(16, 8)
    Image.fromarray(array).save(tmp_path / "scan.tif", tiffinfo={274: orientation})
    read = images.read_header(tmp_path / "scan.tif")
    assert (read.size, read.exif.orientation) == ((16, 8), orientation)
    photo = images.read_photo(tmp_path / "scan.tif")
    assert photo.orientation == orientation
    assert np.array_equal((photo.image * 255).round().byte().permute(1, 2, 0).numpy(), array)


# ---- EXIF


@pytest.mark.shared
def test_exif_of_wrong_types_does_no_harm(shared):
    read = images.read_header(shared / "cases" / "exif_cameras_TypeError.webp")
    assert read.size == (64, 48) and read.exif.focal_35mm in (None, 35.0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_damage_to_exif_costs_the_photo(form):
    exif = exif_with({BASE.Make: "maker", BASE.Model: "model", BASE.Orientation: 6}, {BASE.FocalLength: 4.2})
    exif.get_ifd(DETAILS).update({BASE.FocalLengthIn35mmFilm: 28, BASE.LensModel: "lens"})
    exif.get_ifd(GPS).update({1: "N", 2: (47.0, 22.0, 3.0), 3: "E", 4: (8.0, 32.0, 0.0)})
    photo = Image.fromarray(pattern(64, 48))
    content = content_of(photo, form, exif=exif)
    start = max(content.find(b"II*\0"), content.find(b"MM\0*")) if form != "PNG" else content.find(b"eXIf") + 4
    length = len(exif.tobytes()) - 6  # behind the header "Exif", which not all formats have
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(start + 8, start + length, 4):
            if at < len(damaged):
                damaged[at] ^= int(rng.integers(1, 256))
        try:
            read = images.read_header(bytes(damaged))
        except InputError:  # the tags of a TIFF are its structure, too
            assert form in ("TIFF", "PNG")
        else:
            assert read.size == (64, 48) or form == "TIFF"
            assert read.exif.orientation in range(1, 9)
            assert read.exif.focal_35mm is None or 0 < read.exif.focal_px((64, 48)) < 1e5


@pytest.mark.parametrize(
    ("focal_35mm", "focal_mm", "believed"),
    [
        (28, 4.2, True),
        (28, None, True),
        (8, None, True),  # a fisheye lens
        (300, None, True),
        (400, 400.0, True),  # a real telephoto lens
        (3000, 539.0, True),  # the longest zoom of a camera
        (1, None, False),
        (1, 1.0, False),
        (400, None, False),
        (400, 4.2, False),
        (28, 500.0, False),
        (65535, None, False),
    ],
)
def test_only_the_focal_length_of_a_lens_is_believed(focal_35mm, focal_mm, believed):
    details = {BASE.FocalLengthIn35mmFilm: focal_35mm} | ({} if focal_mm is None else {BASE.FocalLength: focal_mm})
    exif = header_with(details).exif
    assert (exif.focal_35mm == focal_35mm) is believed and (exif.focal_px((64, 48)) is not None) is believed
    assert bool(exif.notes) is not believed
    assert believed or f"35 mm equivalent of {focal_35mm} mm" in exif.notes[0]


def test_exif_of_another_size_is_believed_if_the_photo_was_only_scaled():
    def focal(width, height, size):
        details = {BASE.FocalLengthIn35mmFilm: 28, BASE.ExifImageWidth: width, BASE.ExifImageHeight: height}
        return header_with(details, size).exif.focal_35mm

    assert focal(4000, 3000, (64, 48)) == focal(4000, 3000, (48, 64)) == focal(64, 48, (64, 36)) == 28
    assert focal(4000, 3000, (48, 48)) is None


def test_exif_after_the_pixels_of_a_png_is_found_without_decoding_them(monkeypatch):
    content = content_of(Image.new("L", (64, 48)), "PNG", exif=exif_with({BASE.Orientation: 6}))
    block = re.search(rb"....eXIf", content, re.DOTALL).start()
    length = struct.unpack_from(">L", content, block)[0] + 12
    moved = content[:block] + content[block + length : -12] + content[block : block + length] + content[-12:]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels were decoded"))
    assert images.read_header(moved).exif.orientation == 6


def test_content_that_is_no_known_kind():
    assert kind_of_content(b"\x01\x02\x03\xff\xfe") is None and kind_of_content(b"") is None
