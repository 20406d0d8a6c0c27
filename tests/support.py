"""What several tests make: features without an image, and pairs of them that have something to match."""

import numpy as np
import torch

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
