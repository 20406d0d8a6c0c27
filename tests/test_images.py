"""Reading any image into RGB floats, and the exact way back from a view to the original pixels."""

from __future__ import annotations

import io
import itertools
import math
import struct
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, UnidentifiedImageError

from isinglass import images
from isinglass.errors import InputError
from isinglass.types import Features, Signature


def pattern(width, height):
    """(H, W, 3) uint8 without symmetry."""
    y, x, c = np.indices((height, width, 3))
    return ((x * 37 + y * 61 + c * 17) % 251).astype(np.uint8)


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
    monkeypatch.setattr(Image, "open", lambda path: (_ for _ in ()).throw(UnidentifiedImageError("no such kind")))
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


# ---- the way back


def pixel_grid(view):
    """(H, W, 2) the centres (x, y) of a view's pixels."""
    y, x = torch.meshgrid(torch.arange(view.size[1]), torch.arange(view.size[0]), indexing="ij")
    return torch.stack([x, y], dim=2).double()


def assert_pixels_are_where_they_say(view, original):
    """For views that only rearrange pixels: every pixel equals the original one at the place its map names."""
    places = images.points_to_original(view, pixel_grid(view))
    x, y = places.long().unbind(2)
    assert torch.equal(places, torch.stack([x, y], dim=2).double())
    assert torch.equal(view.image, original[:, y, x])
    if view.mask is not None:
        assert torch.equal(view.mask, original[0, y, x] > 0.5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_pixel_is_found_back_through_turns_mirrors_and_crops(data):
    original = images.read_image(pattern(data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))))
    view = images.whole(original, original[0] > 0.5)
    for _ in range(data.draw(st.integers(0, 6))):
        act = data.draw(st.sampled_from(["turn", "mirror", "crop", "tile"]))
        width, height = view.size
        if act == "turn":
            view = images.turned(view, data.draw(st.integers(-5, 5)))
        elif act == "mirror":
            view = images.mirrored(view)
        elif act == "crop":
            x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
            view = images.cropped(
                view, x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
            )
        else:
            view = data.draw(st.sampled_from(images.tiles(view, data.draw(st.integers(2, 6)), 1)))
    assert view.original_size == (original.shape[2], original.shape[1])
    assert_pixels_are_where_they_say(view, original)


def eroded(mask, radius):
    """True where the mask is True for `radius` px around, the outside counting as False."""
    outside = F.pad((~mask)[None].float(), (radius,) * 4, value=1.0)
    return F.max_pool2d(outside, 2 * radius + 1, stride=1)[0] == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_ramp_is_found_back_through_any_composition_with_resizing(data):
    """Red is x and green is y of the original, so each pixel of a view says where it comes from; a symmetric blur
    leaves a ramp as it is but for the border, which the mask keeps out."""
    width, height = data.draw(st.integers(24, 60)), data.draw(st.integers(24, 60))
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    view = images.whole(torch.stack([x, y, x]).float() / 64, torch.ones(height, width, dtype=torch.bool))
    for _ in range(data.draw(st.integers(1, 5))):
        act = data.draw(st.sampled_from(["turn", "mirror", "crop", "long side", "size"]))
        width, height = view.size
        if act == "turn":
            view = images.turned(view, data.draw(st.integers(0, 3)))
        elif act == "mirror":
            view = images.mirrored(view)
        elif act == "crop":
            x, y = data.draw(st.integers(0, width // 4)), data.draw(st.integers(0, height // 4))
            view = images.cropped(view, x, y, width - x - data.draw(st.integers(0, width // 4)), height - y)
        elif act == "long side":
            view = images.resized(view, data.draw(st.integers(20, 90)))
        else:
            view = images.resized(view, size=(data.draw(st.integers(16, 90)), data.draw(st.integers(16, 90))))
        if act in ("long side", "size"):
            spread = math.ceil(2 * max(1.0, view.size[0] / width, view.size[1] / height))
            view = replace(view, mask=eroded(view.mask, spread))
    places = images.points_to_original(view, pixel_grid(view))
    values = view.image[:2].permute(1, 2, 0).double() * 64
    assert view.mask.shape == values.shape[:2]
    assert torch.allclose(places[view.mask], values[view.mask], atol=2e-4)


def test_a_marked_point_is_found_back_to_a_hundredth_of_a_pixel():
    y, x = torch.meshgrid(torch.arange(400), torch.arange(600), indexing="ij")
    blob = torch.exp(-((x - 417.3) ** 2 + (y - 121.8) ** 2) / (2 * 9.0**2))
    view = images.whole(blob.expand(3, -1, -1).clone())
    for change in (
        lambda view: images.resized(view, 271),
        lambda view: images.turned(view, 1),
        images.mirrored,
        lambda view: images.cropped(view, 20, 30, 120, 200),
        lambda view: images.resized(view, 333),
    ):
        view = change(view)
        weight = view.image[0].double()
        centre = (pixel_grid(view) * weight[..., None]).sum((0, 1)) / weight.sum()
        assert torch.allclose(
            images.points_to_original(view, centre), torch.tensor([417.3, 121.8], dtype=torch.float64), atol=1e-2
        )


def test_points_keep_dtype_and_shape():
    view = images.resized(images.whole(torch.zeros(3, 32, 40)), 10)
    points = images.points_to_original(view, torch.zeros(2, 5, 2))
    assert points.dtype == torch.float32
    assert torch.equal(points, torch.full((2, 5, 2), 1.5))
    assert images.points_to_original(view, torch.zeros(0, 2)).shape == (0, 2)


# ---- resizing


def dense_twin(image, size, antialias):
    """Blur by the full 2-d kernel after reflection, then the library's bilinear sampling."""
    height, width = image.shape[1:]
    factors = (height / size[1], width / size[0])
    kernels = []
    for factor, length in zip(factors, (height, width), strict=True):
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3))
        taps = 1 if length == 1 else taps + 1 - taps % 2
        offset = torch.arange(taps) - taps // 2
        kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
        kernels.append(kernel / kernel.sum())
    if antialias:
        padding = [len(kernels[i]) // 2 for i in (1, 1, 0, 0)]
        kernel = (kernels[0][:, None] * kernels[1])[None, None]
        image = F.conv2d(F.pad(image[:, None], padding, mode="reflect"), kernel)[:, 0]
    return F.interpolate(image[None], size=size[::-1], mode="bilinear", align_corners=False)[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_resizing_equals_its_slow_twin(width, height, new_width, new_height):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(width * 41 + height))
    view = images.resized(images.whole(image), size=(new_width, new_height))
    expected = dense_twin(image, (new_width, new_height), new_width < width or new_height < height)
    assert view.size == (new_width, new_height)
    assert torch.allclose(view.image, expected, atol=2e-6)


def published_pattern():
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(8), torch.arange(11), indexing="ij")
    return images.whole(((x * 37 + y * 61 + c * 17) % 101).float() / 100)


def test_resizing_equals_the_published_numbers():
    """The numbers are those of kornia 0.9 `resize(image, 5 | 13 | (2, 14), side="long", antialias=True)`."""
    shrunk = images.resized(published_pattern(), 5)
    expected = [
        [0.448751, 0.573798, 0.434162, 0.556179, 0.38486],
        [0.645354, 0.428579, 0.473594, 0.511844, 0.536535],
        [0.477971, 0.588797, 0.471897, 0.593914, 0.391314],
    ]
    assert torch.allclose(shrunk.image[1], torch.tensor(expected), atol=1e-6)
    enlarged = images.resized(published_pattern(), 13)
    expected = [0.455, 0.351154, 0.547692, 0.627692, 0.513462, 0.476923, 0.79, 0.675769, 0.561538, 0.447308]
    assert enlarged.size == (13, 9)
    assert torch.allclose(enlarged.image[2, 4, :10], torch.tensor(expected), atol=1e-6)
    both = images.resized(published_pattern(), size=(14, 2))
    expected = [[0.414724, 0.553388, 0.607212, 0.573827], [0.376473, 0.576857, 0.617687, 0.535575]]
    assert torch.allclose(both.image[0, :, :4], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((4000, 3000), 1024, (1024, 768)),
        ((2560, 1707), 1024, (1024, 682)),  # 682.8 is rounded down
        ((37, 53), 20, (13, 20)),
        ((500, 500), 1024, (1024, 1024)),
        ((1, 1), 5, (5, 5)),
        ((20000, 3), 1024, (1024, 1)),
        ((3, 20000), 1024, (1, 1024)),
    ],
)
def test_the_long_side_sets_the_size_as_published(size, long_side, expected):
    view = images.resized(images.whole(torch.full((3, size[1], size[0]), 0.5)), long_side)
    assert view.size == expected
    assert torch.allclose(view.image, torch.tensor(0.5))
    corners = torch.tensor([[-0.5, -0.5], [expected[0] - 0.5, expected[1] - 0.5]]).double()
    far = torch.tensor([[-0.5, -0.5], [size[0] - 0.5, size[1] - 0.5]]).double()
    assert torch.allclose(images.points_to_original(view, corners), far)


def test_the_policy_of_resizing():
    view = images.whole(torch.rand(3, 30, 40))
    assert images.resized(view) is view
    assert images.resized(view, 40) is view
    assert images.resized(view, 80).size == (80, 60)
    assert images.resized(view, 80, only_shrink=True) is view
    assert images.resized(view, 20, only_shrink=True).size == (20, 15)
    for wrong in ({"long_side": 0}, {"size": (5, 0)}, {"long_side": 5, "size": (5, 5)}, {"long_side": -3}):
        with pytest.raises(InputError):
            images.resized(view, **wrong)


def test_masks_take_the_nearest_pixel():
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[11:20, 7:16] = True
    view = images.resized(images.whole(torch.zeros(3, 30, 40), mask), 20)
    assert torch.equal(view.mask, mask[1::2, 1::2])
    view = images.resized(images.whole(torch.zeros(3, 30, 40), mask), 80)
    assert torch.equal(view.mask, mask.repeat_interleave(2, 0).repeat_interleave(2, 1))


# ---- crops, tiles, features


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 11, 2), (0, 9, 2, 2), (3, 3, 0, 2)])
def test_a_crop_that_is_not_inside_is_refused(box):
    with pytest.raises(InputError, match="not inside the image of 10 x 10 px"):
        images.cropped(images.whole(torch.zeros(3, 10, 10)), *box)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20), st.data())
def test_tiles_are_equal_cover_all_and_overlap(width, height, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    parts = images.tiles(images.whole(torch.zeros(3, height, width)), size, overlap)
    seen = torch.zeros(height, width, dtype=torch.int64)
    for part in parts:
        assert part.size == (min(size, width), min(size, height))
        x, y = part.to_original[:, 2].long().tolist()
        seen[y : y + part.size[1], x : x + part.size[0]] += 1
    assert seen.min() >= 1
    lefts = sorted({int(part.to_original[0, 2]) for part in parts})
    assert all(left + size - right >= overlap for left, right in itertools.pairwise(lefts))
    assert (len(lefts) - 1) * (size - overlap) < max(width - overlap, 1)  # no more than needed


def test_tiles_refuse_an_overlap_that_leaves_nothing():
    for size, overlap in ((5, 5), (0, 0), (5, -1)):
        with pytest.raises(InputError, match="overlap"):
            images.tiles(images.whole(torch.zeros(3, 9, 9)), size, overlap)


def test_features_go_back_with_scale_and_direction():
    """An arrow drawn in the view at angle and length of a keypoint is, by its two ends, the arrow in the original."""
    view = images.whole(torch.zeros(3, 300, 400))
    view = images.cropped(images.mirrored(images.turned(images.resized(view, 200), 1)), 5, 7, 90, 150)
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(1, 20, 2, generator=generator) * 80
    angles = torch.rand(1, 20, generator=generator) * 6 - 3
    features = Features(
        keypoints=keypoints,
        descriptors=torch.zeros(1, 20, 4),
        scores=torch.zeros(1, 20),
        image_size=torch.tensor([[90, 150]]),
        scales=torch.full((1, 20), 5.0),
        orientations=angles,
        signature=Signature(extractor="sift"),
    )
    back = images.features_to_original(view, features)
    tips = images.points_to_original(view, keypoints + 5 * torch.stack([angles.cos(), angles.sin()], dim=-1))
    assert torch.allclose(back.keypoints, images.points_to_original(view, keypoints))
    assert torch.allclose(back.scales, torch.tensor(10.0))
    arrows = back.scales[..., None] * torch.stack([back.orientations.cos(), back.orientations.sin()], dim=-1)
    assert torch.allclose(back.keypoints + arrows, tips, atol=1e-3)
    assert back.image_size.tolist() == [[400, 300]]
    with pytest.raises(InputError, match="batch of one"):
        images.features_to_original(view, Features.stack([features, features]))
    plain = images.features_to_original(view, replace(features, scales=None, orientations=None))
    assert plain.scales is None
    assert plain.orientations is None


@pytest.mark.parametrize("code", range(8))
def test_features_tell_how_their_view_was_turned(code):
    """features_to_original then as_seen = the coordinates in the view, for every turn and mirror, resized and all."""
    view = images.whole(torch.zeros(3, 40, 60))
    view = images.turned(images.mirrored(view) if code >= 4 else view, code)
    assert view.turns == code
    small = images.resized(view, size=(view.size[0] // 2, view.size[1] // 2))
    assert small.turns == code
    points = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(code)) * 20
    found = Features(
        keypoints=points,
        descriptors=torch.zeros(1, 5, 1),
        scores=torch.zeros(1, 5),
        image_size=torch.tensor([small.size]),
        scales=torch.ones(1, 5),
        orientations=torch.linspace(0.1, 6.2, 5)[None],
        signature=Signature(extractor="x"),
    )
    back = images.features_to_original(small, found)
    assert (0 if back.turns is None else back.turns.item()) == code
    seen = back.as_seen()
    torch.testing.assert_close(seen.keypoints, points * 2 + 0.5)
    torch.testing.assert_close(seen.orientations.cos(), found.orientations.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.orientations.sin(), found.orientations.sin(), atol=1e-5, rtol=0)
    assert seen.image_size.tolist() == [list(view.size)]
