"""Views: exact coordinates through resizing, turns, crops and tiles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isinglass import images
from isinglass.errors import InputError
from isinglass.types import Features, Signature
from support import assert_pixels_are_where_they_say, pattern, pixel_grid

# ---- the way back


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
            view = data.draw(st.sampled_from(list(images.tiles(view, data.draw(st.integers(2, 6)), 1))))
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
    parts = list(images.tiles(images.whole(torch.zeros(3, height, width)), size, overlap))
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
