"""The worker that runs Isinglass; speed.py starts it and talks to it as to that of the peers (peers/protocol.py)."""

from __future__ import annotations

import functools
import platform
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peers.protocol import Unavailable, limit_memory, serve

from isinglass.extractors.aliked import ALIKED
from isinglass.extractors.superpoint import SuperPoint
from isinglass.images import read_image
from isinglass.matchers.superglue import SuperGlue
from isinglass.pipeline import Options, Pipeline
from isinglass.types import Features, Signature

PACKAGES = ("isinglass", "torch", "numpy", "pillow")


def versions():
    """Of Python and of the packages, and how many threads torch uses."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return (lambda: None), (lambda _: {"versions": found, "threads": torch.get_num_threads()})


@functools.cache
def pipeline(precision="auto", **options):
    """As a user makes it."""
    if any(one.name == "precision" for one in fields(Options)):
        options["precision"] = precision
    elif precision == "bfloat16":
        raise Unavailable("this version of Isinglass has no option for the precision")
    return Pipeline(device="cpu", **options)


@functools.cache
def random_model(kind, weights, precision, **options):
    """A model with weights that no Pipeline loads."""
    model = {"superglue": SuperGlue, "superpoint": SuperPoint}[kind].pretrained(weights, **options)
    if precision == "auto":  # whatever a Pipeline would choose
        usual = pipeline()
        dtype = getattr(usual.matcher if kind == "superglue" else usual.extractor, "compute_dtype", torch.float32)
    else:
        dtype = getattr(torch, precision)
    _check_precision(model, dtype)
    model.compute_dtype = dtype
    return model


def _check_precision(model, dtype):
    if dtype != torch.float32 and not hasattr(model, "compute_dtype"):
        raise Unavailable(f"this version of Isinglass computes {type(model).__name__} in float32 alone")


@functools.cache
def read_features(path, count=None, extractor="aliked-n16"):
    """Features of a file, the best `count`."""
    with np.load(path) as data:
        found = {name: torch.from_numpy(data[name])[None] for name in data.files}
    return Features(
        keypoints=found["keypoints"][:, :count],
        descriptors=found["descriptors"][:, :count],
        scores=found["keypoint_scores"][:, :count],
        image_size=found["image_size"],
        signature=Signature(extractor=extractor),
    )


def save_features(image, output, keypoints, resize, threshold=0.2):
    """Features of ALIKED in a file; threshold 0 = as many keypoints as wanted, however weak."""
    aliked = ALIKED.pretrained("aliked-n16", max_keypoints=keypoints, detection_threshold=threshold)
    options = {"matcher": "nearest", "max_keypoints": keypoints, "resize": resize, "min_distance": 0, "device": "cpu"}
    extract = Pipeline(custom_extractor=aliked, **options).extract

    def call():
        found = extract(image)
        np.savez(
            output,
            keypoints=found.keypoints[0].numpy(),
            descriptors=found.descriptors[0].float().numpy(),
            keypoint_scores=found.scores[0].float().numpy(),
            image_size=found.image_size[0].float().numpy(),
        )

    return call, lambda _: {}


def _tell(found):
    pruned = [one for one in (found.pruned_at0, found.pruned_at1) if one is not None]
    layers = float(torch.cat(pruned, dim=1).float().mean()) if pruned else None
    return {"stop_layer": int(found.stop_layer[0]), "mean_layers": layers, "matches": found.pairs().tolist()}


def lightglue(features0, features1, count, adaptive=True, precision="auto"):
    """A pair by LightGlue."""
    matcher = pipeline(precision, adaptive=adaptive).matcher
    views = read_features(features0, count), read_features(features1, count)
    return (lambda: matcher.match(*views)), _tell


def superglue(weights, features0, features1, count, iterations, precision="auto"):
    """A pair by SuperGlue with weights of a file; every match is kept."""
    options = {"sinkhorn_iterations": iterations, "filter_threshold": 0.0}
    matcher = random_model("superglue", weights, precision, **options)
    views = [read_features(path, count, "superpoint") for path in (features0, features1)]
    return (lambda: matcher.match(*views)), lambda found: {"matches": found.pairs().tolist()}


def many(pairs, count, at_once, precision="auto", adaptive=True):
    """Many pairs by LightGlue, in one call or in as many."""
    matcher = pipeline(precision, adaptive=adaptive).matcher
    views0, views1 = ([read_features(path, count) for path in paths] for paths in zip(*pairs, strict=True))

    def call():
        if at_once:
            return matcher.match_many(views0, views1)
        return [matcher.match(*views) for views in zip(views0, views1, strict=True)]

    return call, lambda found: {"stop_layers": [int(one.stop_layer[0]) for one in found]}


def save_store(files, names, output, count):
    """A store of features of files, float32 as they are there."""
    from isinglass.sfm.store import FeatureStore

    features = {name: read_features(path, count) for name, path in zip(names, files, strict=True)}

    def call():
        with FeatureStore(output, next(iter(features.values())).signature, "", half=False) as store:
            store.add(features)
            store.merge()

    return call, lambda _: {}


def match_stored(store, pairs, output, precision="auto", workers=0):
    """Pairs of a store into a new store: by this process, or by so many that it starts; `steady` leaves out the start.

    Reading, writing and merging count.
    """
    from isinglass.options import Options
    from isinglass.sfm import matching
    from isinglass.sfm.store import FeatureStore, MatchStore
    from isinglass.sfm.workers import match_with_workers

    matcher = pipeline(precision).matcher
    pairs, output, heard = [tuple(pair) for pair in pairs], Path(output), []

    def call():
        output.unlink(missing_ok=True)
        heard.clear()
        told = {"tell": lambda done, _: heard.append((done, time.perf_counter()))}
        if workers:
            options = Options(precision=precision, device="cpu")
            return match_with_workers(store, pairs, output, options, workers=workers, **told)
        with FeatureStore(store) as features:
            settings = matching.settings_of(matcher, features.settings)
            return matching.match_stored(features, pairs, output, matcher, settings=settings, **told)

    def describe(result):
        (first, first_s), (last, last_s) = heard[1], heard[-1]
        with MatchStore(output) as found:
            ours = [found.get(*pair) for pair in pairs]
        return {
            "failed": len(result.problems),
            "steady_pairs_a_second": (last - first) / (last_s - first_s) if last > first else None,
            "stop_layers": [one.stop_layer for one in ours],
            "matches": [one.pairs().tolist() for one in ours],
        }

    return call, describe


def extract(extractor, image, keypoints, weights=None, precision="auto"):
    """Keypoints of a photo in memory, at its size."""
    pixels = read_image(image)[None]
    if extractor == "superpoint":
        made = random_model("superpoint", weights, precision, max_keypoints=keypoints)
        pixels = pixels.mean(dim=1, keepdim=True)
    else:
        options = {"extractor": extractor, "matcher": "nearest", "max_keypoints": keypoints, "min_distance": 0}
        made = pipeline(precision, **options).extractor
        _check_precision(made, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return (lambda: made.extract(pixels)), lambda found: {"keypoints": found.keypoints[0].tolist()}


def photos(image0, image1, keypoints, precision="auto"):
    """Two files to matches, with all defaults."""
    made = pipeline(precision, max_keypoints=keypoints)
    return (lambda: made.match(image0, image1)), lambda result: {"matches": len(result.scores)}


def extract_file(image, how, keypoints, precision="auto"):
    """Features of a file at its own size, whole or in tiles as `how` says."""
    made = pipeline(precision, resize=None, max_keypoints=keypoints, matcher="nearest", **how)
    return (lambda: made.extract(image)), lambda found: {"num_keypoints": found.keypoints.shape[1]}


if __name__ == "__main__":
    serve(
        {
            "versions": versions,
            "save_features": save_features,
            "lightglue": lightglue,
            "superglue": superglue,
            "many": many,
            "save_store": save_store,
            "match_stored": match_stored,
            "extract": extract,
            "photos": photos,
            "extract_file": extract_file,
            "limit_memory": limit_memory,
        }
    )
