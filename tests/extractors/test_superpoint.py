"""SuperPoint: equal to the transformers class (Magic Leap's variant) and to a slow twin (the open one).

The weights are random, scaled so that hundreds of keypoints stand out.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError
from isinglass.extractors.superpoint import SuperPoint
from isinglass.types import Extractor, Features

MAGIC_LEAP = {"batch_norm": False, "sampling": "magic-leap"}


def random_model(seed=0, **options):
    torch.manual_seed(seed)
    model = SuperPoint(SuperPoint.Config(**options)).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
            if name == "detector.1.conv":
                module.weight.data *= 3.0
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def random_images(batch, height, width, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, height // 6 + 1, width // 6 + 1, generator=generator)
    fine = torch.rand(batch, channels, height, width, generator=generator)
    return 0.8 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.2 * fine


def transformers_name(name):
    """The name in SuperPointForKeypointDetection of one of our parameters."""
    part, block, *rest = name.split(".")
    if part == "backbone":
        return f"encoder.conv_blocks.{block}.conv_{'ab'[int(rest[0])]}.{rest[-1]}"
    full = {"detector": "keypoint_decoder.conv_score", "descriptor": "descriptor_decoder.conv_descriptor"}[part]
    return f"{full}_{'ab'[int(block)]}.{rest[-1]}"


def by_position(features: Features):
    """Keypoints as a dictionary (x, y) -> (score, descriptor)."""
    xy = [tuple(point) for point in features.keypoints[0].tolist()]
    assert len(set(xy)) == len(xy)
    return dict(zip(xy, zip(features.scores[0], features.descriptors[0], strict=True), strict=True))


@pytest.mark.parametrize("size", [(96, 128), (77, 109)])
def test_equals_transformers(size):
    """Its coordinates are x / width, without half pixels, so ours are theirs times the width.

    Its border removal multiplies the size by 8 once more and so keeps the right and lower border: removed here.
    """
    transformers = pytest.importorskip("transformers")
    model = random_model(**MAGIC_LEAP)
    twin = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig()).eval()
    twin.load_state_dict({transformers_name(key): value for key, value in model.state_dict().items()})
    height, width = size
    images = random_images(1, height, width)
    with torch.inference_mode():
        theirs = twin(images.expand(-1, 3, -1, -1))
    x, y = (theirs.keypoints[0] * torch.tensor([width, height])).round().T
    inside = (x < width // 8 * 8 - 4) & (y < height // 8 * 8 - 4)
    assert not inside.all()
    expected = {
        (float(x[i]), float(y[i])): (theirs.scores[0, i], theirs.descriptors[0, i]) for i in inside.nonzero()[:, 0]
    }
    ours = by_position(model.extract(images))
    assert len(ours) > 80
    assert ours.keys() == expected.keys()
    for point, (score, descriptor) in ours.items():
        torch.testing.assert_close(score, expected[point][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(descriptor, expected[point][1], atol=1e-4, rtol=0)


def slow_open_variant(model, image, threshold=0.005, radius=4, border=4):
    """{(x, y): (score, descriptor)} of the open variant, pixel by pixel, from the state dict alone."""
    state = model.state_dict()

    def layer(x, name, relu=True):
        x = F.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding="same")
        x = x.clamp(min=0) if relu else x
        mean, var, weight, bias = (
            state[f"{name}.bn.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 0.001).sqrt() * weight + bias

    x = image
    for block in range(4):
        x = layer(layer(x, f"backbone.{block}.0"), f"backbone.{block}.1")
        x = F.max_pool2d(x, 2) if block < 3 else x
    probability = layer(layer(x, "detector.0"), "detector.1", relu=False)[0].double().softmax(dim=0).numpy()
    dense = layer(layer(x, "descriptor.0"), "descriptor.1", relu=False)[0].double().numpy()
    dense = dense / np.linalg.norm(dense, axis=0)
    rows, columns = probability.shape[1:]
    scores = np.zeros((8 * rows, 8 * columns))
    for y, x in np.ndindex(scores.shape):
        scores[y, x] = probability[8 * (y % 8) + x % 8, y // 8, x // 8]

    found, hidden = set(), scores.copy()
    for _ in range(3):  # the published code: the maxima, and twice those among what no maximum is near to
        new = set()
        for y, x in np.ndindex(scores.shape):
            window = hidden[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            if hidden[y, x] == window.max() > 0:
                new.add((y, x))
        found |= new
        for y, x in new:
            hidden[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 0

    result = {}
    for y, x in found:
        inside = border <= y < 8 * rows - border and border <= x < 8 * columns - border
        if not inside or scores[y, x] <= threshold:
            continue
        u, v = (x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5  # cells
        u0, v0 = int(np.floor(u)), int(np.floor(v))
        descriptor = np.zeros(dense.shape[0])
        for du, dv in np.ndindex(2, 2):
            if 0 <= u0 + du < columns and 0 <= v0 + dv < rows:
                weight = (1 - abs(u - u0 - du)) * (1 - abs(v - v0 - dv))
                descriptor += weight * dense[:, v0 + dv, u0 + du]
        result[float(x), float(y)] = scores[y, x], descriptor / np.linalg.norm(descriptor)
    return result


@pytest.mark.parametrize("size", [(80, 96), (61, 75)])
def test_open_variant_equals_slow_twin(size):
    model = random_model(seed=1)
    images = random_images(1, *size, seed=1)
    expected = slow_open_variant(model, images)
    ours = by_position(model.extract(images))
    assert len(ours) > 50
    assert ours.keys() == expected.keys()
    for point, (score, descriptor) in ours.items():
        assert float(score) == pytest.approx(expected[point][0], abs=1e-5)
        np.testing.assert_allclose(descriptor.numpy(), expected[point][1], atol=1e-4)


@pytest.mark.parametrize(("options", "far_cell"), [({}, 8.5), (MAGIC_LEAP, 8.5 * 9 / (10 - 9 / 16))])
def test_where_descriptors_are_read(options, far_cell):
    """Of a row of 10 cells: at 3.5 px the first in both variants, at 71.5 px cell 8.5 or, by Magic Leap's code, 8.1."""
    ramp = torch.stack([torch.ones(1, 10), torch.arange(10.0)[None]])  # D = 2: the ratio of both is the cell read
    points = torch.tensor([[3.5, 0.0], [71.5, 0.0]])
    descriptors = SuperPoint(SuperPoint.Config(**options))._descriptors_at(points, ramp)
    torch.testing.assert_close(descriptors[:, 1] / descriptors[:, 0], torch.tensor([0.0, far_cell]))


def test_best_are_kept_and_mask_comes_first():
    model = random_model()
    images = random_images(1, 96, 128)
    every = model.extract(images)
    few = random_model(max_keypoints=50).extract(images)
    assert few.scores.shape == (1, 50)
    torch.testing.assert_close(few.scores[0], every.scores[0].sort(descending=True).values[:50])
    x, y = every.keypoints[0].long().T
    mask = torch.ones(1, 96, 128, dtype=torch.bool)
    mask[0, few.keypoints[0, :, 1].long(), few.keypoints[0, :, 0].long()] = False  # without the 50 best
    others = random_model(max_keypoints=50).extract(images, mask)
    assert others.scores.shape == (1, 50)
    expected = every.scores[0, mask[0, y, x]].sort(descending=True).values[:50]
    torch.testing.assert_close(others.scores[0], expected)


def test_batch_equals_alone():
    model = random_model()
    images = torch.cat([random_images(1, 88, 120, seed=3), 0.3 * random_images(1, 88, 120, seed=4)])
    both = model.extract(images)
    counts = both.num_keypoints.tolist()
    assert counts[0] != counts[1]
    assert both.mask is not None
    for i in range(2):
        alone = by_position(model.extract(images[i : i + 1]))
        together = by_position(both[i])
        assert alone.keys() == together.keys()
        for point, (score, descriptor) in alone.items():
            torch.testing.assert_close(together[point][0], score, atol=1e-5, rtol=0)
            torch.testing.assert_close(together[point][1], descriptor, atol=1e-5, rtol=0)


def test_grey_equals_rgb():
    """Of equal channels, and of colours with that luminance."""
    model = random_model()
    colours = random_images(1, 72, 96, channels=3)
    images = (torch.tensor([0.299, 0.587, 0.114]) @ colours.flatten(2)).reshape(1, 1, 72, 96)
    grey = by_position(model.extract(images))
    assert len(grey) > 50
    for same in (images.expand(-1, 3, -1, -1), colours):
        rgb = by_position(model.extract(same))
        assert grey.keys() == rgb.keys()
        for point, (score, descriptor) in grey.items():
            torch.testing.assert_close(rgb[point][0], score, atol=1e-4, rtol=0)
            torch.testing.assert_close(rgb[point][1], descriptor, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 20000), (7, 64), (8, 8)])
def test_images_within_the_border_have_no_keypoints(size):
    features = random_model().extract(torch.rand(2, 3, *size))
    assert features.keypoints.shape == (2, 0, 2)
    assert features.descriptors.shape == (2, 0, 256)
    assert features.image_size.tolist() == [[size[1], size[0]]] * 2


def test_small_and_one_colour_images():
    model = random_model(detection_threshold=0.001)
    for images in (torch.rand(1, 1, 33, 17), torch.full((1, 1, 33, 17), 0.4)):
        features = model.extract(images, torch.ones(1, 33, 17, dtype=torch.bool))
        assert features.keypoints.shape[1] > 0
        assert bool((features.keypoints >= 4).all())
        assert bool((features.keypoints < torch.tensor([16 - 4, 32 - 4])).all())
        torch.testing.assert_close(features.descriptors.norm(dim=2), torch.ones_like(features.scores))


def test_who_it_is_and_what_it_refuses():
    model = random_model()
    assert isinstance(model, Extractor)
    assert str(model.signature) == "random-superpoint@random/pixel-centre-0"
    with pytest.raises(InputError, match=r"shape \(1, 2, 64, 64\)"):
        model.extract(torch.rand(1, 2, 64, 64))
    with pytest.raises(InputError, match="mask has shape"):
        model.extract(torch.rand(1, 1, 64, 64), torch.ones(1, 64, 32, dtype=torch.bool))
