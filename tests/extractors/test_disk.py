"""DISK: equal to the published outputs with the published weights, and to a dense, slow twin with random ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError
from isinglass.extractors.disk import DISK
from isinglass.images import features_to_original, read_image, resized, whole
from isinglass.types import Extractor

PHOTOS = {"dsc": ("DSC_0410.JPG", "DSC_0411.JPG"), "sacre_coeur": ("sacre_coeur1.jpg", "sacre_coeur2.jpg")}


def random_model(seed=0, **options):
    """With random weights, scaled so that scores differ from place to place."""
    torch.manual_seed(seed)
    model = DISK(DISK.Config(**options)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, 0.0, 0.5)
    return model


def random_images(batch, height, width, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, height // 6 + 1, width // 6 + 1, generator=generator)
    fine = torch.rand(batch, channels, height, width, generator=generator)
    return 0.7 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.3 * fine


# ---- published outputs


def assert_equals_reference(features, reference, view):
    """The published keypoints, in the published order, with their descriptors: the bar is 99 % of them."""
    published, descriptors = (torch.from_numpy(reference[f"{name}{view}"]) for name in ("keypoints", "descriptors"))
    assert features.image_size[0].tolist() == reference[f"image_size{view}"].tolist()
    assert features.keypoints.shape[1] == len(published)
    distance, nearest = torch.cdist(published.double(), features.keypoints[0].double()).min(dim=1)
    cosine = F.cosine_similarity(descriptors, features.descriptors[0, nearest], dim=1)
    scores = torch.from_numpy(reference[f"keypoint_scores{view}"])
    close = (scores - features.scores[0, nearest]).abs() < 0.05  # logits, near 100
    in_order = nearest == torch.arange(len(nearest))
    assert float(((distance <= 0.05) & (cosine >= 0.9999) & close & in_order).float().mean()) >= 0.99


@pytest.mark.weights
@pytest.mark.shared
@pytest.mark.parametrize("count", [512, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("scene", PHOTOS)
def test_equals_published(shared, scene, view, count):
    reference = np.load(shared / "reference" / f"disk_lightglue_{scene}_{count}.npz")
    seen = resized(whole(read_image(shared / "images" / PHOTOS[scene][view])), 1024)
    features = DISK.pretrained("disk", max_keypoints=count).extract(seen.image[None])
    assert features.signature.extractor == "disk"
    assert_equals_reference(features_to_original(seen, features), reference, view)


# ---- the slow twin


def slow_dense_maps(state, image):
    """Scores (H, W) and normalised descriptors (128, H, W), all of them, from the state dict alone."""

    def gated(x, name):
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = torch.where(x > 0, x, x * state[f"{name}.1.weight"][:, None, None])
        return F.conv2d(x, state[f"{name}.3.weight"], state[f"{name}.3.bias"], padding=2)

    height, width = image.shape[2:]
    x = torch.zeros(1, 3, (height + 15) // 16 * 16, (width + 15) // 16 * 16)
    x[:, :, :height, :width] = image
    x = F.conv2d(x, state["unet.path_down.0.1.3.weight"], state["unet.path_down.0.1.3.bias"], padding=2)
    maps = [x]
    for i in range(1, 5):
        maps.append(gated(F.avg_pool2d(maps[-1], 2), f"unet.path_down.{i}.1"))
    x = maps[4]
    for i in range(4):
        upsampled = F.interpolate(x, maps[3 - i].shape[2:], mode="bilinear")
        x = gated(torch.cat([upsampled, maps[3 - i]], dim=1), f"unet.path_up.{i}.conv")
    x = x[0, :, :height, :width]
    return x[128], x[:128] / x[:128].norm(dim=0)


def slow_peaks(scores, threshold=0.0, radius=2):
    """Pixels (x, y), in raster order, that are greater than all others of their whole square."""
    height, width = scores.shape
    found = []
    for y in range(radius, height - radius):
        for x in range(radius, width - radius):
            square = scores[y - radius : y + radius + 1, x - radius : x + radius + 1]
            if scores[y, x] > threshold and (scores[y, x] > square).sum() == square.numel() - 1:
                found.append((x, y))
    return found


@pytest.mark.parametrize(("size", "radius"), [((48, 64), 2), ((45, 70), 2), ((33, 17), 1), ((30, 25), 4)])
def test_equals_slow_twin(size, radius):
    """With a radius of 1 px the 5 x 5 windows of keypoints at the border leave the image."""
    model = random_model(nms_radius=radius)
    images = random_images(1, *size)
    scores, descriptors = slow_dense_maps(model.state_dict(), images)
    torch.testing.assert_close(model(images)[0][0], scores, atol=1e-4, rtol=1e-4)
    expected = slow_peaks(scores, 0.0, radius)
    assert len(expected) >= 3
    if radius == 1:
        assert any(x == 1 or y == 1 for x, y in expected)
    found = model.extract(images)
    assert found.keypoints[0].tolist() == [[x, y] for x, y in expected]
    column, row = found.keypoints[0].long().T
    torch.testing.assert_close(found.scores[0], scores[row, column], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.descriptors[0], descriptors[:, row, column].T, atol=1e-4, rtol=0)


# ---- the rest of the contract


def test_equals_and_plateaus_are_no_maxima():
    model = random_model()
    scores = torch.zeros(12, 16)
    scores[4, 4], scores[4, 12] = 2.0, 3.0
    assert model.detect(scores).tolist() == [[4, 4], [12, 4]]
    scores[6, 5] = 2.0  # an equal in the square of (4, 4)
    assert model.detect(scores).tolist() == [[12, 4]]
    assert model.detect(torch.ones(12, 16)).tolist() == []
    scores[1, 8] = 9.0  # its square leaves the image, but it hides none
    assert model.detect(scores).tolist() == [[12, 4]]


def test_best_are_kept_and_mask_comes_first():
    images = random_images(1, 80, 100)
    every = random_model().extract(images)
    few = random_model(max_keypoints=30).extract(images)
    assert every.keypoints.shape[1] > 90
    index = every.scores[0].topk(30).indices.sort().values
    assert torch.equal(few.keypoints, every.keypoints[:, index])
    assert torch.equal(few.scores, every.scores[:, index])
    mask = torch.ones(1, 80, 100, dtype=torch.bool)
    column, row = few.keypoints[0].long().T
    mask[0, row, column] = False
    others = random_model(max_keypoints=30).extract(images, mask)
    rest = [i for i in range(every.keypoints.shape[1]) if i not in index.tolist()]
    second = every.scores[0, rest].topk(30).indices.sort().values
    assert torch.equal(others.keypoints, every.keypoints[:, rest][:, second])


@pytest.mark.parametrize("count", [None, 0, 10**6])
def test_extreme_counts(count):
    images = random_images(1, 40, 50)
    model = random_model(max_keypoints=count)
    expected = 0 if count == 0 else len(slow_peaks(model(images)[0][0].detach()))
    features = model.extract(images)
    assert features.keypoints.shape == (1, expected, 2)
    assert features.descriptors.shape == (1, expected, 128)


def test_batch_equals_alone():
    model = random_model()
    images = torch.cat([random_images(1, 50, 70, seed=3), random_images(1, 50, 70, seed=4) ** 4])
    both = model.extract(images)
    assert both.mask is not None
    for i in range(2):
        alone = model.extract(images[i : i + 1])
        assert alone.keypoints.shape[1] > 20
        assert torch.equal(both[i].keypoints, alone.keypoints)
        torch.testing.assert_close(both[i].scores, alone.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both[i].descriptors, alone.descriptors, atol=1e-4, rtol=0)


def test_grey_equals_rgb_of_equal_channels():
    model = random_model()
    images = random_images(1, 48, 64, channels=1)
    grey, rgb = model.extract(images), model.extract(images.repeat(1, 3, 1, 1))
    assert grey.keypoints.shape[1] > 20
    assert torch.equal(rgb.keypoints, grey.keypoints)
    torch.testing.assert_close(rgb.descriptors, grey.descriptors)


@pytest.mark.parametrize("size", [(1, 1), (3, 20000), (20000, 3), (4, 4)])
def test_images_within_the_border_have_no_keypoints(size):
    features = random_model().extract(torch.rand(1, 3, *size))
    assert features.keypoints.shape == (1, 0, 2)
    assert features.descriptors.shape == (1, 0, 128)
    assert features.image_size.tolist() == [[size[1], size[0]]]


@pytest.mark.parametrize("size", [(5, 5), (16, 16), (33, 17)])
@pytest.mark.parametrize("value", [None, 0.0, 0.4, 1.0])
def test_small_and_one_colour_images(size, value):
    """16 px and less become one pixel at the bottom of the network, of which no variance can be had."""
    images = torch.rand(1, 3, *size) if value is None else torch.full((1, 3, *size), value)
    features = random_model().extract(images)
    assert bool((features.keypoints >= 2).all())
    assert bool((features.keypoints <= torch.tensor(size[::-1]) - 3).all())
    torch.testing.assert_close(features.descriptors.norm(dim=2), torch.ones_like(features.scores))


def test_training_reaches_every_parameter():
    model = random_model().train()
    scores, context = model(random_images(1, 48, 64))
    descriptors = model.describe(context[0], model.detect(scores[0].detach()))
    (scores.square().sum() + descriptors[:, :7].sum()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_who_it_is_and_what_it_refuses():
    model = random_model()
    assert isinstance(model, Extractor)
    assert str(model.signature) == "random-disk@random/pixel-centre-0"
    with pytest.raises(InputError, match=r"shape \(2, 64, 64\)"):
        model.extract(torch.rand(2, 64, 64))
    with pytest.raises(InputError, match="mask has shape"):
        model.extract(torch.rand(1, 1, 64, 64), torch.ones(1, 64, 32, dtype=torch.bool))
