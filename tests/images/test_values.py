"""Values of pixels: ranges that are hardly used are stretched, holes masked, foreign ranges named."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import images
from isinglass.errors import InputError
from isinglass.images.values import unit_values
from support import pattern

GREY = pattern(64, 48)[..., 0]


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (29000, 30500), (0, 255)])
def test_12_bit_and_thermal_images_use_the_whole_range(tmp_path, caplog, low, high):
    deep = (low + GREY.astype(np.float64) / 255 * (high - low)).round().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "sensor.tif")
    with caplog.at_level(logging.WARNING, "isinglass"):
        photo = images.read_photo(tmp_path / "sensor.tif")
    expected = torch.from_numpy((GREY - GREY.min()) / np.ptp(GREY).astype(np.float32)).float()
    assert torch.allclose(photo.image[0], expected, atol=0.01)
    assert "were stretched to the whole range" in photo.notes[0] and "sensor.tif" in caplog.text
    plain = images.read_photo(tmp_path / "sensor.tif", stretch="none")
    assert torch.equal(plain.image[0], torch.from_numpy(deep.astype(np.float64) / 65535).float()) and not plain.notes


def test_a_few_hot_pixels_do_not_hide_that_the_range_is_not_used():
    deep = np.kron(GREY, np.ones((4, 4))).astype(np.uint16) * 16
    deep[0, :5] = 65535
    assert images.read_image(deep).median() > 0.2


def test_well_used_constant_and_8_bit_images_are_left_alone():
    for array in (GREY.astype(np.uint16) * 100, np.full((8, 8), 300, np.uint16), GREY // 40):
        values = unit_values(array)
        assert not values.notes
        assert np.array_equal(values.planes[0], (array / np.iinfo(array.dtype).max).astype(np.float32))


def test_any_type_can_be_stretched_by_name(tmp_path):
    heights = (GREY.astype(np.int32) * 20 - 400).astype(np.int16)
    for array in (heights, heights.astype(np.int64), heights.astype(np.float64), heights.astype(np.float32)):
        planes = unit_values(array, stretch="percentile").planes
        assert planes.min() == 0 and planes.max() == 1
        assert abs(np.corrcoef(planes.ravel(), GREY.ravel())[0, 1]) > 0.999
    with pytest.raises(InputError, match=r"int16; expected uint8.* -400 to .*stretch='percentile'"):
        images.read_image(heights)
    with pytest.raises(InputError, match="stretch is 'best'"):
        unit_values(GREY, stretch="best")


def int16_tiff(path, array):
    import struct

    tags = [(256, array.shape[1]), (257, array.shape[0]), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, array.shape[0]), (279, array.nbytes), (339, 2)]
    head = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(struct.pack("<HHLL", t, 4, 1, v) for t, v in tags)
    path.write_bytes((head + bytes(200))[:200] + array.astype("<i2").tobytes())


def test_a_height_map_is_named_with_its_type(tmp_path):
    int16_tiff(tmp_path / "dem.tif", GREY.astype(np.int16) - 100)
    with pytest.raises(InputError, match=r"dem\.tif.*int16.* has values from -\d+ to \d+.*stretch='percentile'"):
        images.read_image(tmp_path / "dem.tif")
    assert images.read_image(tmp_path / "dem.tif", stretch="percentile").max() == 1
    int16_tiff(tmp_path / "dem.tif", GREY.astype(np.int16))
    assert images.read_image(tmp_path / "dem.tif").max() == 1


def test_floats_that_resampling_pushed_out_are_clipped():
    floats = np.linspace(-0.09, 1.01, 600, dtype=np.float32).reshape(20, 30)
    values = unit_values(floats)
    assert np.array_equal(values.planes[0], floats.clip(0, 1)) and "clipped" in values.notes[0]
    assert not unit_values(np.linspace(-5e-5, 1, 9, dtype=np.float32)[None]).notes


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 255, "from 0 to 255.*such as 255"),
        (0, 65535, "from 0 to 65535.*such as 65535"),
        (-1, 1, r"from -1 to 1.*\(x \+ 1\) / 2"),
        (20.5, 35.2, "from 20.5 to 35.2.*stretch='percentile'"),
    ],
)
def test_other_ranges_of_floats_are_named_with_the_remedy(low, high, message):
    with pytest.raises(InputError, match=message):
        images.read_image(np.linspace(low, high, 600).reshape(20, 30))


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_holes_are_masked_and_named(tmp_path, hole):
    floats = GREY.astype(np.float32) / 255
    floats[:, :16] = hole
    Image.fromarray(floats).save(tmp_path / "ortho.tif")
    for source in (floats, tmp_path / "ortho.tif", torch.from_numpy(floats)[None]):
        photo = images.read_photo(source)
        assert torch.equal(photo.valid, torch.from_numpy(np.isfinite(floats)))
        assert bool(torch.isfinite(photo.image).all()) and "0.25 of its pixels are NaN" in photo.notes[0]
    with pytest.raises(InputError, match="no pixel that holds a number"):
        images.read_image(np.full((5, 6), hole))


def test_the_nodata_value_of_gdal_is_masked(tmp_path):
    floats = GREY.astype(np.float32) / 255
    floats[:10] = -9999
    Image.fromarray(floats).save(tmp_path / "ortho.tif", tiffinfo={42113: "-9999"})
    photo = images.read_photo(tmp_path / "ortho.tif")
    assert not photo.valid[:10].any() and photo.valid[10:].all()


def test_no_keypoint_lies_in_a_hole():
    pytest.importorskip("cv2")
    from isinglass import Pipeline

    floats = np.kron(pattern(24, 20)[..., 0], np.ones((8, 8), np.uint8)).astype(np.float32) / 255
    floats[:, :96] = np.nan
    features = Pipeline(extractor="rootsift", matcher="nearest", resize=None).extract(floats)
    assert features.keypoints.shape[1] > 10 and float(features.keypoints[0, :, 0].min()) >= 95.5


def test_a_match_carries_the_notes_of_its_images():
    pytest.importorskip("cv2")
    from isinglass import match

    thermal = (29000 + np.kron(GREY, np.ones((4, 4))) * 5).astype(np.uint16)
    result = match(thermal, thermal, extractor="rootsift", matcher="nearest")
    assert [note.partition(":")[0] for note in result.notes] == ["image 0", "image 1"]
    assert len(result.points0) > 50
    assert len(match(thermal, thermal, extractor="rootsift", matcher="nearest", stretch="none").points0) < 10


def test_a_mask_is_never_stretched(tmp_path):
    mask = np.full((48, 64), 100, np.uint16)
    mask[:, 32:] = 200
    mask[:5] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert torch.equal(images.read_mask(tmp_path / "mask.png", (64, 48)), torch.from_numpy(mask > 0))


def test_16_bit_colour_is_read_with_a_word(tmp_path):
    cv2 = pytest.importorskip("cv2")
    for suffix in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"deep.{suffix}"), pattern(64, 48).astype(np.uint16) * 257)
        header = images.read_header(tmp_path / f"deep.{suffix}")
        assert header.deep and "8 bits a channel" in header.notes[0]


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "P", "PA", "YCbCr", "1", "LA"])
def test_every_mode_of_a_tiff_is_read(tmp_path, mode):
    colours = Image.fromarray(pattern(64, 48))
    image = colours.convert("L").convert(mode) if mode in ("1", "LA", "PA", "P") else colours
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
    elif image is colours:
        image = colours.convert(mode)
    image.save(tmp_path / "scan.tif")
    assert images.read_image(tmp_path / "scan.tif").shape == (3, 48, 64)


def test_keys_change_only_for_images_whose_values_changed(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "b.png")
    assert images.reading_version(tmp_path / "a.png") == images.reading_version(tmp_path / "none.png") == ""
    assert images.reading_version(tmp_path / "b.png") != ""
