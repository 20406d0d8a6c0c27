"""ALIKED: equal to the published outputs with the published weights, and to a dense, slow twin with random ones."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.errors import InputError
from isinglass.extractors.aliked import ALIKED, ARCHITECTURES, Pyramid
from isinglass.images import features_to_original, read_image, resized, whole
from isinglass.types import Extractor

PHOTOS = {"dsc": ("DSC_0410.JPG", "DSC_0411.JPG"), "sacre_coeur": ("sacre_coeur1.jpg", "sacre_coeur2.jpg")}


def random_model(seed=0, **options):
    """With random weights, scaled so that scores and offsets differ from place to place."""
    torch.manual_seed(seed)
    model = ALIKED(ALIKED.Config(**options)).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if name.endswith("offset_conv") or name == "desc_head.offset_conv.2":
                module.weight.data *= 2.0
                torch.nn.init.uniform_(module.bias, -3, 3)
            if name == "score_head.6":
                module.weight.data *= 4.0
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def random_images(batch, height, width, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, height // 6 + 1, width // 6 + 1, generator=generator)
    fine = torch.rand(batch, channels, height, width, generator=generator)
    return 0.7 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.3 * fine


# ---- published outputs


def assert_equals_reference(features, reference, view, tolerance_px=0.05, least_cosine=0.9999):
    """At least 99 % of the published keypoints are among ours, with their descriptors."""
    published, descriptors = (torch.from_numpy(reference[f"{name}{view}"]) for name in ("keypoints", "descriptors"))
    assert features.image_size[0].tolist() == reference[f"image_size{view}"].tolist()
    distance, nearest = torch.cdist(published.double(), features.keypoints[0].double()).min(dim=1)
    cosine = F.cosine_similarity(descriptors, features.descriptors[0, nearest], dim=1)
    assert float(((distance <= tolerance_px) & (cosine >= least_cosine)).float().mean()) >= 0.99
    scores = torch.from_numpy(reference[f"keypoint_scores{view}"])
    close = (scores - features.scores[0, nearest]).abs() < 1e-3
    assert float(close.float().mean()) >= 0.99
    assert features.keypoints.shape[1] == len(published)


@pytest.mark.weights
@pytest.mark.shared
@pytest.mark.parametrize("count", [512, 2048])
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("scene", PHOTOS)
def test_equals_published(shared, scene, view, count):
    reference = np.load(shared / "reference" / f"aliked_lightglue_{scene}_{count}.npz")
    seen = resized(whole(read_image(shared / "images" / PHOTOS[scene][view])), 1024)
    features = ALIKED.pretrained("aliked-n16", max_keypoints=count).extract(seen.image[None])
    assert_equals_reference(features_to_original(seen, features), reference, view)


@pytest.mark.weights
@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_every_published_variant_loads(variant, motorcycle):
    model = ALIKED.pretrained(f"aliked-{variant}", max_keypoints=50, detection_threshold=0.0)
    features = model.extract(motorcycle[0][None, :, 100:228, 100:260])
    assert model.config.variant == variant
    assert features.signature.extractor == f"aliked-{variant}"
    assert features.descriptors.shape == (1, 50, 64 if variant == "t16" else 128)


# ---- the slow twin


def slow_deformable_conv(state, name, x):
    """Tap by tap, each by a sampled map; offsets are (dy, dx)."""
    height, width = x.shape[2:]
    limit = max(height, width) / 4
    offsets = F.conv2d(x, state[f"{name}.offset_conv.weight"], state[f"{name}.offset_conv.bias"], padding=1)
    offsets = offsets.clamp(-limit, limit)
    y, x_ = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = 0
    for tap in range(9):
        rows, columns = y + tap // 3 - 1 + offsets[:, 2 * tap], x_ + tap % 3 - 1 + offsets[:, 2 * tap + 1]
        grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
        sampled = F.grid_sample(x, grid, align_corners=False)
        out = out + F.conv2d(sampled, state[f"{name}.regular_conv.weight"][:, :, tap // 3, tap % 3, None, None])
    return out


def slow_block(state, name, x, deformable):
    def layer(x, i):
        if deformable:
            x = slow_deformable_conv(state, f"{name}.conv{i}", x)
        else:
            x = F.conv2d(x, state[f"{name}.conv{i}.weight"], padding=1)
        mean, var, weight, bias = (
            state[f"{name}.bn{i}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    y = layer(F.selu(layer(x, 1)), 2)
    if name != "block1":
        y = y + F.conv2d(x, state[f"{name}.downsample.weight"], state[f"{name}.downsample.bias"])
    return F.selu(y)


def slow_dense_maps(state, image):
    """Scores (H, W) and the normalised feature map (C, H, W), both at full resolution."""
    height, width = image.shape[2:]
    top, left = (-height % 32) // 2, (-width % 32) // 2
    x = F.pad(image, (left, -width % 32 - left, top, -height % 32 - top), mode="replicate")
    size, maps = x.shape[2:], []
    for i, pool in enumerate((1, 2, 4, 4), start=1):
        x = slow_block(state, f"block{i}", F.avg_pool2d(x, pool), deformable=i > 2)
        aligned = F.selu(F.conv2d(x, state[f"conv{i}.weight"]))
        maps.append(F.interpolate(aligned, size, mode="bilinear", align_corners=True))
    features = torch.cat(maps, dim=1)
    scores = F.conv2d(features, state["score_head.0.weight"])
    for i in (2, 4, 6):
        scores = F.conv2d(F.selu(scores), state[f"score_head.{i}.weight"], padding=1)
    inner = (slice(top, top + height), slice(left, left + width))
    return scores.sigmoid()[0, 0][inner], F.normalize(features, dim=1)[0][:, *inner]


def slow_peaks(scores, threshold, radius=2):
    """Pixels (x, y): maxima, and twice those among what no maximum is near to; off the border; above the threshold."""
    hidden, found = scores.copy(), set()
    for _ in range(3):
        new = set()
        for y, x in np.ndindex(scores.shape):
            window = hidden[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            if hidden[y, x] == window.max() > 0:
                new.add((x, y))
        found |= new
        for x, y in new:
            hidden[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 0
    height, width = scores.shape
    inner = {(x, y) for x, y in found if radius <= x < width - radius and radius <= y < height - radius}
    above = {(x, y) for x, y in inner if scores[y, x] > threshold}
    return above or {(x, y) for x, y in inner if scores[y, x] > scores.mean()}


def slow_refined(scores, x, y, radius=2):
    """The soft argmax of the window, in double precision."""
    total = shift_x = shift_y = 0.0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            weight = math.exp((float(scores[y + dy, x + dx]) - float(scores[y, x])) / 0.1)
            total, shift_x, shift_y = total + weight, shift_x + weight * dx, shift_y + weight * dy
    return x + shift_x / total, y + shift_y / total


def slow_descriptor(state, features, point):
    """One keypoint at a time, of the dense map, as the published code has it."""
    channels, height, width = features.shape
    size = torch.tensor([width, height]) - 1
    column, row = (min(max(int(p) - 1, 0), n - 4) for p, n in zip(point, (width, height), strict=True))
    window = features[None, :, row : row + 3, column : column + 3]
    hidden = F.selu(F.conv2d(window, state["desc_head.offset_conv.0.weight"], state["desc_head.offset_conv.0.bias"]))
    hidden = F.conv2d(hidden, state["desc_head.offset_conv.2.weight"], state["desc_head.offset_conv.2.bias"])
    limit = max(height, width) / 4
    offsets = hidden.clamp(-limit, limit).view(2, -1).T
    grid = ((torch.tensor(point) + offsets) / size * 2 - 1)[None, :, None]
    sampled = F.grid_sample(features[None], grid, align_corners=True)
    sampled = F.selu(F.conv2d(sampled, state["desc_head.sf_conv.weight"]))[0, :, :, 0]
    descriptor = sum(sampled[:, m] @ weights for m, weights in enumerate(state["desc_head.agg_weights"]))
    assert descriptor.shape == (channels,)
    return descriptor / descriptor.norm()


@pytest.mark.parametrize(
    ("variant", "size", "threshold"),
    [("n16", (33, 45), 0.2), ("t16", (32, 32), 0.2), ("n32", (33, 17), 0.2), ("t16", (30, 41), 0.999)],
)
def test_equals_slow_twin(variant, size, threshold):
    """The last case has no score above the threshold, so that the mean takes its place."""
    model = random_model(variant=variant, detection_threshold=threshold)
    images = random_images(1, *size)
    state = model.state_dict()
    scores, features = slow_dense_maps(state, images)
    found = model.extract(images)
    expected = sorted(slow_peaks(scores.numpy(), threshold), key=lambda point: (point[1], point[0]))
    assert len(expected) > 5
    refined = [slow_refined(scores, x, y) for x, y in expected]
    torch.testing.assert_close(found.keypoints[0], torch.tensor(refined), atol=1e-3, rtol=0)
    for point, score, descriptor in zip(refined, found.scores[0], found.descriptors[0], strict=True):
        grid = torch.tensor([[[point]]]) / (torch.tensor(size[::-1]) - 1) * 2 - 1
        sampled = F.grid_sample(scores[None, None], grid.float(), align_corners=True)
        assert float(score) == pytest.approx(float(sampled), abs=1e-4)
        expected_descriptor = slow_descriptor(state, features, point)
        assert float(descriptor @ expected_descriptor) > 0.9999


def test_pyramid_equals_dense_map():
    model = random_model(variant="t16")
    images = random_images(1, 45, 70)
    _, dense = slow_dense_maps(model.state_dict(), images)
    _, maps = model(images)
    pyramid = Pyramid([level[0] for level in maps], 70, 45)
    torch.testing.assert_close(pyramid.at(torch.arange(45 * 70)), dense.flatten(1).T, atol=1e-4, rtol=0)


def test_descriptors_of_any_point_equal_slow_twin():
    """At the very border too, where the window of the offsets is shifted inwards."""
    model = random_model(variant="t16")
    images = random_images(1, 30, 41)
    state = model.state_dict()
    _, dense = slow_dense_maps(state, images)
    corners = [(x, y) for x in (0.0, 0.6, 1.4, 38.4, 39.2, 40.0) for y in (0.0, 1.9, 15.5, 27.1, 28.0, 29.0)]
    pyramid = Pyramid([level[0] for level in model(images)[1]], 41, 30)
    found = model.desc_head(pyramid, torch.tensor(corners))
    expected = torch.stack([slow_descriptor(state, dense, point) for point in corners])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


# ---- the rest of the contract


def test_threshold_is_decided_for_each_image():
    """An image that falls back to its mean score does so beside any other, and its mask has no say in it."""
    model = random_model(variant="t16", detection_threshold=0.5)
    bright, dim = torch.zeros(2, 40, 50)
    bright[10, 10], bright[30, 30], dim[20, 20], dim[35, 15] = 0.9, 0.4, 0.4, 0.3
    assert model.detect(bright).round().tolist() == [[10, 10]]
    assert model.detect(dim).round().tolist() == [[20, 20], [15, 35]]
    mask = torch.ones(40, 50, dtype=torch.bool)
    mask[:20] = False
    assert model.detect(bright, mask).tolist() == []


def test_detection_is_differentiable():
    model = random_model(variant="t16", detection_threshold=0.0)
    scores = torch.rand(20, 30, requires_grad=True)
    points = model.detect(scores)
    points.sum().backward()
    assert len(points) > 5
    assert bool((scores.grad != 0).any())


def test_training_reaches_every_parameter():
    model = random_model(variant="t16").train()
    images = random_images(2, 64, 64)
    scores, maps = model(images)
    points = model.detect(scores[0])
    descriptors = model.desc_head(Pyramid([level[0] for level in maps], 64, 64), points)
    (scores.sum() + points.sum() + descriptors[:, :7].sum()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_best_are_kept_and_mask_comes_first():
    images = random_images(1, 80, 100)
    every = random_model(variant="t16", max_keypoints=None).extract(images)
    few = random_model(variant="t16", max_keypoints=30).extract(images)
    assert every.keypoints.shape[1] > 90
    assert few.keypoints.shape == (1, 30, 2)
    mask = torch.ones(1, 80, 100, dtype=torch.bool)
    column, row = few.keypoints[0].round().long().T
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            mask[0, row + dy, column + dx] = False
    others = random_model(variant="t16", max_keypoints=30).extract(images, mask)
    assert others.keypoints.shape == (1, 30, 2)
    positions = {tuple(point) for point in every.keypoints[0].tolist()}
    best = {tuple(point) for point in few.keypoints[0].tolist()}
    rest = {tuple(point) for point in others.keypoints[0].tolist()}
    assert best <= positions
    assert rest <= positions - best


def test_best_first():
    scores = torch.rand(40, 50)
    peaks = sorted(slow_peaks(scores.numpy(), 0.2), key=lambda point: -float(scores[point[1], point[0]]))
    assert len(peaks) > 40
    expected = torch.tensor([slow_refined(scores, x, y) for x, y in peaks[:30]])
    found = random_model(variant="t16", max_keypoints=30).detect(scores)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_mask_keeps_the_pixels_where_it_is_true():
    images = random_images(1, 60, 90)
    model = random_model(variant="t16")
    mask = torch.rand(1, 60, 90) > 0.5
    every, kept = model.extract(images), model.extract(images, mask)
    scores = model(images)[0].detach()
    pixels = sorted(slow_peaks(scores[0].numpy(), 0.2), key=lambda point: (point[1], point[0]))
    inside = [bool(mask[0, y, x]) for x, y in pixels]
    assert True in inside
    assert False in inside
    torch.testing.assert_close(kept.keypoints, every.keypoints[:, inside])
    assert model.extract(images, torch.zeros_like(mask)).keypoints.shape == (1, 0, 2)


@pytest.mark.parametrize("count", [None, 0, 10**6])
def test_extreme_counts(count):
    images = random_images(1, 40, 50)
    model = random_model(variant="t16", max_keypoints=count)
    expected = 0 if count == 0 else len(slow_peaks(model(images)[0][0].detach().numpy(), 0.2))
    features = model.extract(images)
    assert features.keypoints.shape == (1, expected, 2)
    assert features.descriptors.shape == (1, expected, 64)


def test_batch_equals_alone():
    model = random_model()
    images = torch.cat([random_images(1, 70, 100, seed=3), random_images(1, 70, 100, seed=4) ** 4])
    both = model.extract(images)
    assert both.mask is not None
    for i in range(2):
        alone = model.extract(images[i : i + 1])
        assert alone.keypoints.shape[1] > 20
        torch.testing.assert_close(both[i].keypoints, alone.keypoints, atol=1e-3, rtol=0)
        torch.testing.assert_close(both[i].scores, alone.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(both[i].descriptors, alone.descriptors, atol=1e-3, rtol=0)


def test_grey_equals_rgb_of_equal_channels():
    model = random_model(variant="t16")
    images = random_images(1, 64, 96, channels=1)
    grey, rgb = model.extract(images), model.extract(images.repeat(1, 3, 1, 1))
    assert grey.keypoints.shape[1] > 20
    torch.testing.assert_close(rgb.keypoints, grey.keypoints)
    torch.testing.assert_close(rgb.descriptors, grey.descriptors)


@pytest.mark.parametrize("size", [(1, 1), (3, 20000), (20000, 3), (4, 4)])
def test_images_within_the_border_have_no_keypoints(size):
    features = random_model(variant="t16").extract(torch.rand(1, 3, *size))
    assert features.keypoints.shape == (1, 0, 2)
    assert features.descriptors.shape == (1, 0, 64)
    assert features.image_size.tolist() == [[size[1], size[0]]]


@pytest.mark.parametrize("size", [(5, 5), (33, 17), (7, 40)])
@pytest.mark.parametrize("value", [None, 0.0, 0.4, 1.0])
def test_small_and_one_colour_images(size, value):
    images = torch.rand(1, 3, *size) if value is None else torch.full((1, 3, *size), value)
    features = random_model(variant="t16").extract(images)
    assert bool((features.keypoints >= 0).all())
    assert bool((features.keypoints <= torch.tensor(size[::-1]) - 1).all())
    torch.testing.assert_close(features.descriptors.norm(dim=2), torch.ones_like(features.scores))


def test_keypoints_are_float32_in_half_precision():
    model, images = random_model(variant="t16"), random_images(1, 64, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.extract(images)
    assert features.keypoints.dtype == torch.float32
    assert features.keypoints.shape[1] > 20


def test_who_it_is_and_what_it_refuses():
    model = random_model(variant="t16")
    assert isinstance(model, Extractor)
    assert str(model.signature) == "random-aliked@random/pixel-centre-0"
    with pytest.raises(InputError, match=r"no variant 'n17'.* t16, n16"):
        ALIKED.Config(variant="n17")
    with pytest.raises(InputError, match=r"shape \(2, 64, 64\)"):
        model.extract(torch.rand(2, 64, 64))
    with pytest.raises(InputError, match="uint8"):
        model.extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match="mask has shape"):
        model.extract(torch.rand(1, 1, 64, 64), torch.ones(1, 64, 32, dtype=torch.bool))
