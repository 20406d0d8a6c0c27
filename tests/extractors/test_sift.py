"""SIFT: places, scales and orientations in closed form; descriptors and selection against slow twins of OpenCV's."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError, MissingExtra
from isinglass.extractors.sift import SIFT
from isinglass.kernels.colour import luminance
from isinglass.types import Extractor

cv2 = pytest.importorskip("cv2")


def blob(x, y, sigma, width=160, height=120):
    """(1, 1, H, W): one bright Gaussian blob at (x, y) px, (0, 0) = centre of the top-left pixel."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return (0.2 + 0.6 * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)))[None, None]


def texture(height=120, width=160, channels=1, seed=0):
    """Values that are multiples of 1 / 255, so that 8 bits hold them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, height // 6 + 1, width // 6 + 1, generator=generator)
    return (F.interpolate(coarse, (height, width), mode="bilinear") * 255).round() / 255


def opencv(image, config=None):
    """All that OpenCV finds in an image: rows (x, y, size, angle in deg, response), descriptors."""
    config = config or SIFT.Config()
    found, descriptors = cv2.SIFT_create(
        nOctaveLayers=config.octave_layers,
        contrastThreshold=config.contrast_threshold,
        edgeThreshold=config.edge_threshold,
        sigma=config.sigma,
    ).detectAndCompute((image[0, 0] * 255).round().byte().numpy(), None)
    return np.array([(*k.pt, k.size, k.angle, k.response) for k in found], np.float32), descriptors


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0, 5.0, 12.0])
def test_a_blob_is_found_where_it_is(sigma):
    """At sub-pixel places: within 0.04 px in the mean over six, where OpenCV itself is off by 0.25 px.

    The difference of two Gaussians a factor k apart is largest for a blob sqrt(k) wider than the narrower one, and
    k = 2^(1/4) for four layers: the diameter is 2 sigma / 2^(1/8).
    """
    sift = SIFT(SIFT.Config(max_keypoints=1))
    errors, diameters = [], []
    for x, y in [(70.1, 50.2), (70.3, 50.6), (73.75, 51.4), (77.1, 52.9), (81.55, 60.3), (66.6, 57.45)]:
        features = sift.extract(blob(x, y, sigma))
        assert features.keypoints.shape == (1, 1, 2)
        errors.append(features.keypoints[0, 0] - torch.tensor([x, y]))
        diameters.append(float(features.scales))
    assert float(torch.stack(errors).mean(dim=0).abs().max()) < 0.04
    assert float(torch.stack(errors).abs().max()) < 0.12
    assert np.median(diameters) == pytest.approx(2 * sigma / 2 ** (1 / 8), rel=0.03)


@pytest.mark.parametrize("degrees", [0, 20, 90, 135, 250, 340])
def test_orientation_is_from_x_towards_y(degrees):
    """A faint blob on a steep slope, which the difference of Gaussians does not see but the gradient does."""
    rows, columns = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    along = (columns - 80) * np.cos(np.deg2rad(degrees)) + (rows - 60) * np.sin(np.deg2rad(degrees))
    image = 0.1 * blob(80.0, 60.0, 5.0) + 0.45 + 0.004 * along
    features = SIFT(SIFT.Config(max_keypoints=1)).extract(image)
    assert features.orientations is not None
    off = (np.rad2deg(float(features.orientations)) - degrees + 180) % 360 - 180
    assert abs(off) < 6


def test_orientations_are_rad_and_scales_px():
    found, _ = opencv(texture())
    features = SIFT(SIFT.Config(max_keypoints=None, one_per_pixel=False)).extract(texture())
    order = np.argsort(-found[:, 4], kind="stable")
    assert len(order) > 100
    np.testing.assert_allclose(features.keypoints[0], found[order, :2] - 0.25, atol=1e-4)
    np.testing.assert_allclose(features.scales[0], found[order, 2])
    np.testing.assert_allclose(features.orientations[0], found[order, 3] * np.pi / 180, rtol=1e-5)
    np.testing.assert_allclose(features.scores[0], found[order, 4])


def test_descriptors_are_of_unit_length():
    _, raw = opencv(texture())
    found, _ = opencv(texture())
    order = np.argsort(-found[:, 4], kind="stable")
    for rootsift, name in ((True, "rootsift"), (False, "sift")):
        config = SIFT.Config(max_keypoints=None, one_per_pixel=False, rootsift=rootsift)
        features = SIFT(config).extract(texture())
        expected = np.array([np.sqrt(row / row.sum()) if rootsift else row / (row @ row) ** 0.5 for row in raw[order]])
        np.testing.assert_allclose(features.descriptors[0], expected, atol=1e-6)
        torch.testing.assert_close(features.descriptors.norm(dim=2), torch.ones_like(features.scores))
        assert str(features.signature) == f"{name}@none/pixel-centre-0"


def test_one_keypoint_a_pixel(motorcycle):
    """As LightGlue's code: of each pixel the strongest, and of those as strong the one of least angle."""
    image = motorcycle[0][None, :1, 100:350, 200:515]
    found, _ = opencv(image)
    best = {}
    for x, y, _, angle, response in found:
        pixel, rank = (int(x), int(y)), (-response, angle)
        if pixel not in best or rank < best[pixel][0]:
            best[pixel] = (rank, (x - 0.25, y - 0.25, angle))
    features = SIFT().extract(image)
    ours = np.column_stack([features.keypoints[0].numpy(), np.rad2deg(features.orientations[0].numpy())])
    expected = np.array([row for _, row in best.values()])
    assert 1000 < len(ours) < len(found) - 100
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], expected[np.lexsort(expected.T)], atol=1e-3)


def test_best_are_kept_and_mask_comes_first():
    images = texture()
    every = SIFT(SIFT.Config(max_keypoints=None)).extract(images)
    few = SIFT(SIFT.Config(max_keypoints=30)).extract(images)
    torch.testing.assert_close(few.scores, every.scores[:, :30])
    column, row = every.keypoints[0].round().long().T
    mask = torch.ones(1, 120, 160, dtype=torch.bool)
    mask[0, row[:30], column[:30]] = False
    others = SIFT(SIFT.Config(max_keypoints=30)).extract(images, mask)
    assert others.scores.shape == (1, 30)
    torch.testing.assert_close(others.scores[0], every.scores[0, mask[0, row, column]][:30])


def test_batch_equals_alone():
    images = torch.cat([texture(seed=1), texture(seed=2) ** 2])
    both = SIFT().extract(images)
    counts = both.num_keypoints.tolist()
    assert counts[0] != counts[1]
    for i in range(2):
        alone = SIFT().extract(images[i : i + 1])
        for name in ("keypoints", "descriptors", "scores", "scales", "orientations", "image_size"):
            torch.testing.assert_close(getattr(both[i], name), getattr(alone, name), rtol=0, atol=0)


def test_grey_equals_rgb_of_equal_channels():
    grey, rgb = SIFT().extract(texture()), SIFT().extract(texture().expand(-1, 3, -1, -1))
    torch.testing.assert_close(rgb.keypoints, grey.keypoints, rtol=0, atol=0)
    torch.testing.assert_close(rgb.descriptors, grey.descriptors, rtol=0, atol=0)


def test_colours_become_grey_as_in_opencv():
    """But for the rounding of halves."""
    colours = texture(channels=3)
    expected = cv2.cvtColor((colours[0] * 255).round().byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    off = np.abs((luminance(colours)[0, 0] * 255).round().numpy().astype(int) - expected)
    assert off.max() <= 1
    assert off.mean() < 0.01


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 1, 1), torch.rand(2, 3, 3, 20000), torch.full((2, 1, 33, 17), 0.4)]
)
def test_nothing_to_find(images):
    features = SIFT().extract(images, torch.ones_like(images[:, 0], dtype=torch.bool))
    assert features.keypoints.shape == (2, 0, 2)
    assert features.descriptors.shape == (2, 0, 128)
    assert features.scales is not None
    assert features.image_size.tolist() == [[images.shape[3], images.shape[2]]] * 2


def test_a_small_image():
    features = SIFT().extract(blob(8.2, 15.7, 2.0, width=17, height=33))
    torch.testing.assert_close(features.keypoints[0, 0], torch.tensor([8.2, 15.7]), atol=0.1, rtol=0)


def test_who_it_is_and_what_it_refuses(monkeypatch):
    assert isinstance(SIFT(), Extractor)
    with pytest.raises(InputError, match=r"torch\.uint8"):
        SIFT().extract(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"isinglass\[sift\]"):
        SIFT()
