"""Images, masks and EXIF: every usual source is read, everything else is refused by name."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from isinglass import images
from isinglass.errors import InputError
from support import assert_pixels_are_where_they_say, pattern


def encoded(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options)
    return buffer.getvalue()


def as_bytes(image):
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# ---- reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "gif", "webp"])
def test_reads_files_of_every_usual_format(tmp_path, suffix):
    array = np.repeat(pattern(13, 7)[..., :1], 3, axis=2)  # grey, which a palette of 256 holds
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(array).save(path, lossless=True)
    image = images.read_image(path)
    assert image.shape == (3, 7, 13)
    assert image.dtype == torch.float32
    assert np.array_equal(as_bytes(image), array)
    assert np.array_equal(as_bytes(images.read_image(str(path))), array)


def test_bytes_become_the_same_floats_as_in_the_published_code():
    array = np.arange(256, dtype=np.uint8)[None]
    assert torch.equal(images.read_image(array)[0, 0], torch.tensor(np.arange(256) / 255.0, dtype=torch.float))


def test_all_pil_modes_agree_on_a_grey_image(tmp_path):
    grey = pattern(9, 5)[..., 0]
    base = Image.fromarray(grey)
    for mode in ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "P", "I", "HSV"):
        image = images.read_image(base.convert("RGB").convert(mode) if mode in ("CMYK", "HSV") else base.convert(mode))
        assert np.abs(as_bytes(image).astype(int) - grey[..., None]).max() <= (257 if mode == "I" else 2), mode
    assert torch.equal(images.read_image(base.convert("I")), images.read_image(grey.astype(np.uint16)))
    one_bit = Image.fromarray(grey > 100)
    assert one_bit.mode == "1"
    assert torch.equal(images.read_image(one_bit)[0].bool(), torch.from_numpy(grey > 100))


def test_16_bit_files_keep_their_precision(tmp_path):
    deep = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(deep).save(tmp_path / name)
        image = images.read_image(tmp_path / name)
        assert torch.equal(image[1], torch.from_numpy(deep.astype(np.float64) / 65535).float())
    big_endian = images.read_image(deep.astype(">u2"))
    assert torch.equal(big_endian, image)


def test_float_files_are_taken_in_their_range(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "float.tiff")
    assert torch.equal(images.read_image(tmp_path / "float.tiff")[2], torch.from_numpy(values))
    Image.fromarray(values * 255).save(tmp_path / "large.tiff")
    with pytest.raises(InputError, match=r"large\.tiff.*0 to 255"):
        images.read_image(tmp_path / "large.tiff")


def test_alpha_is_dropped_and_colours_kept(tmp_path):
    rgba = np.dstack([pattern(6, 4), np.zeros((4, 6), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    for source in (tmp_path / "clear.png", rgba, Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1)):
        assert np.array_equal(as_bytes(images.read_image(source)), rgba[..., :3])
    palette = Image.fromarray(pattern(6, 4)).quantize(16)
    opaque = images.read_image(palette)
    palette.info["transparency"] = bytes(16)
    assert torch.equal(images.read_image(palette), opaque)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (200, 10)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert as_bytes(images.read_image(tmp_path / "moving.gif")).min() == 200


def test_arrays_and_tensors_of_all_accepted_kinds_agree():
    array = pattern(6, 4)
    expected = images.read_image(array)
    assert expected.is_contiguous()
    assert torch.equal(images.read_image(array[:, ::-1][:, ::-1]), expected)  # negative strides
    assert torch.equal(images.read_image(np.asfortranarray(array)), expected)
    assert torch.equal(images.read_image(torch.from_numpy(array).permute(2, 0, 1)), expected)
    assert torch.equal(images.read_image(expected), expected)
    for dtype in (np.float16, np.float64, np.longdouble):
        floats = expected.permute(1, 2, 0).numpy().astype(dtype)
        assert torch.allclose(images.read_image(floats), expected, atol=1e-3 if dtype == np.float16 else 0)
    assert torch.allclose(images.read_image(expected.to(torch.bfloat16)), expected, atol=4e-3)
    grey = array[..., 0]
    for one in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert torch.equal(images.read_image(one), expected[:1].expand(3, -1, -1))
    assert torch.equal(images.read_image(grey > 99)[0], torch.from_numpy(grey > 99).float())


def test_reading_leaves_the_source_alone():
    array = pattern(4, 4).astype(np.float32) / 255
    array[0, 0] = 1.00005
    before = array.copy()
    image = images.read_image(array)
    assert image.max() == 1
    image.zero_()
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 4), np.uint8), "at least one pixel"),
        (np.zeros((4, 0, 3), np.uint8), "at least one pixel"),
        (np.zeros((3, 20, 30), np.uint8), "channels last"),
        (np.zeros((2, 5, 6, 3), np.uint8), r"\(2, 5, 6, 3\)"),
        (np.zeros((5, 6), np.int64), "int64; expected uint8"),
        (np.zeros((5, 6), complex), "complex128"),
        (np.zeros((5, 6), object), "object"),
        (np.full((5, 6), 255.0), "from 255 to 255; expected finite floats"),
        (np.full((5, 6), -0.5), "from -0.5"),
        (np.full((5, 6), np.nan), "nan"),
        (np.full((5, 6), np.inf), "inf"),
        (torch.zeros(1, 3, 5, 6), "Index a batch"),
        (torch.zeros(5, 6, 3), "permute"),
        (torch.zeros(3, 0, 6), "at least one pixel"),
        (torch.zeros(3, 5, 6, dtype=torch.int64), "int64"),
        (Image.new("RGB", (0, 5)), "at least one pixel"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "70000"),
        (b"image.jpg", "came as bytes"),
        (None, "came as NoneType"),
    ],
)
def test_what_is_no_image_is_refused_with_what_came(source, message):
    with pytest.raises(InputError, match=message):
        images.read_image(source)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image, but a letter " * 50)
    for name, message in (
        ("none.jpg", "does not exist"),
        ("empty.png", "is an empty file"),
        ("text.jpg", "as an image"),
    ):
        for read in (images.read_image, images.exif_orientation):
            with pytest.raises(InputError, match=rf"{name}.*{message}"):
                read(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        images.read_image(tmp_path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_an_error_or_whole(tmp_path, form):
    whole = encoded(np.kron(pattern(16, 12), np.ones((8, 8, 1), np.uint8)), format=form)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    expected = images.read_image(path)
    refused = 0
    for cut in np.linspace(1, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:cut])
        try:
            image = images.read_image(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert torch.equal(image, expected)  # only what follows the pixels was lost
    assert refused >= 38


def test_a_damaged_png_is_refused(tmp_path):
    data = bytearray(encoded(pattern(40, 30), format="PNG"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.png.*Copy it again"):
        images.read_image(tmp_path / "damaged.png")


def bomb(path, width, height):
    """A PNG that claims to be large and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    bomb(tmp_path / "bomb.png", 60000, 60000)
    with pytest.raises(InputError, match=r"60000 x 60000 px, more than max_pixels.*max_pixels=3600000000"):
        images.read_image(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="max_pixels = 20"):
        images.read_image(Image.new("L", (5, 5)), max_pixels=20)


@pytest.mark.filterwarnings("error")
def test_more_pixels_than_pillow_allows_can_be_asked_for(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    bomb(tmp_path / "large.png", 15000, 12500)
    with pytest.raises(InputError, match="cannot be decoded"):  # not refused for its size: 187.5 megapixels
        images.read_image(tmp_path / "large.png")
    bomb(tmp_path / "bomb.png", 60000, 60000)
    assert images.exif_orientation(tmp_path / "bomb.png") == 1
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "bomb.png")


def test_reading_from_threads_gives_the_limit_back(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    Image.fromarray(pattern(30, 20)).save(tmp_path / "image.png")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(images.read_image(tmp_path / "image.png"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(one, found[0]) for one in found)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_format_that_pillow_rejects_names_its_reason(tmp_path, monkeypatch):
    Image.fromarray(pattern(3, 3)).save(tmp_path / "x.png")
    Image.init()
    monkeypatch.setitem(
        Image.OPEN, "PNG", (lambda *_: (_ for _ in ()).throw(UnidentifiedImageError("no such kind")), None)
    )
    with pytest.raises(InputError, match="no such kind"):
        images.read_image(tmp_path / "x.png")


# ---- masks


def test_masks_of_all_kinds_agree(tmp_path):
    keep = pattern(7, 5)[..., 0] > 120
    Image.fromarray((keep * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    sources = [tmp_path / "mask.png", keep, keep[..., None], keep * -3, keep * 0.25, torch.from_numpy(keep)]
    for source in [*sources, Image.fromarray(keep), keep[:, ::-1][:, ::-1]]:
        mask = images.read_mask(source, (7, 5))
        assert mask.dtype == torch.bool
        assert np.array_equal(mask.numpy(), keep)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones((7, 5)), r"5 x 7 px, its image 7 x 5"),
        (np.full((5, 7), np.nan), "NaN"),
        (np.ones((5, 7, 3)), r"\(5, 7, 3\)"),
        (np.full((5, 7), "a"), "numbers"),
        ("missing.png", "does not exist"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        images.read_mask(source, (7, 5))


# ---- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_shows_what_pillow_shows_and_knows_the_way_back(tmp_path, orientation):
    array = pattern(16, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path, exif=exif)
    stored = images.read_image(path)
    assert np.array_equal(as_bytes(stored), array)  # not turned
    assert images.exif_orientation(path) == orientation
    with Image.open(path) as image:
        assert images.exif_orientation(image) == orientation
        shown = np.asarray(ImageOps.exif_transpose(image))
    view = images.upright(images.whole(stored), images.exif_orientation(path))
    assert np.array_equal(as_bytes(view.image), shown)
    assert_pixels_are_where_they_say(view, stored)


def test_without_a_sound_orientation_there_is_no_turn(tmp_path):
    for name, value in (("none", None), ("zero", 0), ("nine", 9)):
        exif = Image.Exif()
        if value is not None:
            exif[0x0112] = value
        Image.fromarray(pattern(8, 8)).save(tmp_path / f"{name}.jpg", exif=exif)
        assert images.exif_orientation(tmp_path / f"{name}.jpg") == 1
    assert images.exif_orientation(pattern(3, 3)) == 1
    with pytest.raises(InputError, match="expected 1"):
        images.upright(images.whole(torch.zeros(3, 2, 2)), 9)
