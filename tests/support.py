"""What several tests make: features without an image, and pairs of them that have something to match."""

import numpy as np
import torch
from PIL import Image

from isinglass import images
from isinglass.types import Features, Signature


def make_features(count, channels=24, seed=0, size=(640, 480), extractor="x", **more):
    """Random features of one image; the same for the same count and seed."""
    generator = torch.Generator().manual_seed(1000 * seed + count)
    return Features(
        keypoints=torch.rand(1, count, 2, generator=generator) * torch.tensor(size),
        descriptors=torch.nn.functional.normalize(torch.randn(1, count, channels, generator=generator), dim=-1),
        scores=torch.rand(1, count, generator=generator),
        image_size=torch.tensor([size]),
        signature=Signature(extractor=extractor),
        **more,
    )


def make_pair(count0, count1, seed=0, **options):
    """Two views that share their first keypoints, moved and blurred, so that there is something to match."""
    one0, one1 = make_features(count0, seed=seed, **options), make_features(count1, seed=seed + 1, **options)
    shared = min(count0, count1) // 2
    one1.descriptors[:, :shared] = one0.descriptors[:, :shared] + 0.05 * one1.descriptors[:, :shared]
    one1.keypoints[:, :shared] = one0.keypoints[:, :shared] + 5
    return one0, one1


def dense_batch(pairs):
    """Both views of some pairs, padded, as the matchers' `forward` takes them: (keypoints, descriptors, size), mask."""
    features = Features.stack([one for pair in pairs for one in pair])
    shape = (len(pairs), 2)
    mask = None if features.mask is None else features.mask.unflatten(0, shape)
    tensors = features.keypoints, features.descriptors, features.image_size
    return tuple(x.unflatten(0, shape) for x in tensors), mask


def reference_features(path, extractor):
    """A file of published outputs, and the features of both its images."""
    data = np.load(path)
    return data, [
        Features(
            keypoints=torch.from_numpy(data[f"keypoints{i}"])[None],
            descriptors=torch.from_numpy(data[f"descriptors{i}"])[None],
            scores=torch.from_numpy(data[f"keypoint_scores{i}"])[None],
            image_size=torch.from_numpy(data[f"image_size{i}"])[None],
            signature=Signature(extractor=extractor),
        )
        for i in (0, 1)
    ]


HOMOGRAPHY = torch.tensor([[0.92, -0.10, 40.0], [0.06, 0.95, -12.0], [6e-5, -4e-5, 1.0]], dtype=torch.float64)


def warp(image_3HW, homography):
    """The image under a homography that maps its pixels to those of the result, bilinear, same size."""
    height, width = image_3HW.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).double() @ torch.linalg.inv(homography).T
    points = points[..., :2] / points[..., 2:]
    grid = points / torch.tensor([width - 1, height - 1]) * 2 - 1
    return torch.nn.functional.grid_sample(image_3HW[None], grid[None].float(), align_corners=True)[0]


def transfer(points, homography):
    mapped = torch.cat([points, torch.ones(len(points), 1)], dim=1).double() @ homography.T
    return (mapped[:, :2] / mapped[:, 2:]).float()


def motorcycle_precision(result, disparity, threshold_px):
    """Share of the motorcycle pair's matches within a distance of the truth, and how many have a known truth.

    Where the left view sees (x, y), the right one sees (x - disparity, y).
    """
    x, y = result.points0.round().long().T
    truth = result.points0[:, 0] - torch.from_numpy(np.asarray(disparity, dtype=np.float32))[y, x]
    known = torch.isfinite(truth)
    error = torch.hypot(result.points1[:, 0] - truth, result.points1[:, 1] - result.points0[:, 1])[known]
    return float((error < threshold_px).float().mean()), len(error)


def pattern(width, height):
    """(H, W, 3) uint8 without symmetry."""
    y, x, c = np.indices((height, width, 3))
    return ((x * 37 + y * 61 + c * 17) % 251).astype(np.uint8)


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


def write_photos(folder, count, size=(800, 600), every=10, seed=0):
    """So many soft random pictures 0.png, 1.png, ... of `size` px, that detectors find something in. The folder."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    width, height = size
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (height // every, width // every, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder
