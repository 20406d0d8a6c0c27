"""Points in space, seen by a camera that moves past them: features and matches without photos, and what is true."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.colmap import camera_of, write_database
from isinglass.sfm.mapping import MapOptions, make_map
from isinglass.sfm.reconstruct import reconstruct
from isinglass.sfm.store import FeatureStore, MatchStore, PairMatches
from isinglass.sfm.verification import verify
from isinglass.types import Features, Matches, Signature

SIZE, FIRST = (320, 240), 60
SIGNATURE = Signature(extractor="known")
PARAMS = {  # of models that a test uses, principal point in this library's pixels
    "SIMPLE_RADIAL": (250.0, 159.5, 119.5, 0.02),
    "PINHOLE": (250.0, 255.0, 159.5, 119.5),
    "OPENCV_FISHEYE": (140.0, 140.0, 159.5, 119.5, 0.02, -0.01, 0.0, 0.0),
}


class MappedScene:
    """Views 000.png, 001.png, ... of `count` points, matched all with all, one in seven matches wrong."""

    def __init__(self, folder, views=7, count=250, model="SIMPLE_RADIAL", noise_px=0.2, seed=0):
        rng = np.random.default_rng(seed)
        self.folder, self.photos, self.model = folder, folder / "photos", model
        self.photos.mkdir(parents=True, exist_ok=True)
        self.camera = camera_of(model, SIZE, PARAMS[model])
        self.names = [f"{i:03}.png" for i in range(views)]
        self.points = rng.uniform([-2, -1.5, 3.5], [4, 1.5, 7], (count, 3))
        self.centres = np.array([[0.4 * i - 1, 0.15 * np.sin(2 * i), 0.1 * np.cos(3 * i)] for i in range(views)])
        self.rotations = [turned(0.05 * (i - views / 2)) for i in range(views)]
        self.seen, self.keypoints = {}, {}
        for name, centre, rotation in zip(self.names, self.centres, self.rotations, strict=True):
            if not (self.photos / name).exists():
                photo(FIRST + len(self.seen)).save(self.photos / name)
            local = (self.points - centre) @ rotation.T
            landed = np.array(self.camera.img_from_cam(local)) - 0.5 + rng.normal(0, noise_px, (count, 2))
            inside = ((landed > 0) & (landed < np.array(SIZE) - 1)).all(axis=1)
            self.seen[name] = rng.permutation(np.flatnonzero(inside))
            self.keypoints[name] = landed[self.seen[name]].astype(np.float32)
        self.pairs = [(one, other) for i, one in enumerate(self.names) for other in self.names[i + 1 :]]
        self._rng = rng

    def features(self, path=None):
        store = FeatureStore(path or self.folder / "features.h5", SIGNATURE, "")
        store.add({name: self.features_of(name) for name in self.names}, dict.fromkeys(self.names, "of a test"))
        store.merge()
        return store

    def features_of(self, name):
        points = torch.from_numpy(self.keypoints[name])[None]
        return Features(
            keypoints=points,
            descriptors=torch.from_numpy(np.repeat(self.seen[name][:, None], 4, axis=1)).float()[None],  # its point
            scores=torch.ones(1, points.shape[1]),
            image_size=torch.tensor([SIZE]),
            signature=SIGNATURE,
        )

    def matches(self, path=None, pairs=None):
        store = MatchStore(path or self.folder / "matches.h5", SIGNATURE, "")
        store.add({pair: self.matches_of(*pair) for pair in (self.pairs if pairs is None else pairs)})
        store.merge()
        return store

    def matches_of(self, name0, name1):
        indices = matched(self.seen[name0], self.seen[name1])
        return PairMatches(indices=indices, scores=(indices >= 0).astype(np.float32))

    def centre_errors(self, model):
        """By name, m, after the similarity that aligns all."""
        import pycolmap

        placed = {image.name: image.projection_center() for image in model.images.values() if image.has_pose}
        names = sorted(placed)
        truth = np.array([self.centres[self.names.index(name)] for name in names])
        found = np.array([placed[name] for name in names])
        similarity = pycolmap.estimate_sim3d(found, truth)
        return dict(zip(names, np.linalg.norm(similarity * found - truth, axis=1), strict=True))


def mapped(folder, views, without=()):
    """A map without its page (stores, database, model) of some of the views; the stores still have those left out."""
    scene = MappedScene(folder, views=views)
    scene.features(), scene.matches()
    scene.names = [name for name in scene.names if name not in without]
    scene.pairs = [pair for pair in scene.pairs if not set(pair) & set(without)]
    cameras = [(camera_of("SIMPLE_RADIAL", SIZE, (250, 159.5, 119.5, 0.02)), scene.names)]
    store, matches = FeatureStore(folder / "features.h5"), MatchStore(folder / "matches.h5")
    write_database(folder / "database.db", store, matches, scene.pairs, cameras)
    verify(folder / "database.db")
    reconstruct(folder / "database.db", scene.photos, folder / "model", threads=1)
    return scene


SINGLE = MapOptions(cameras=CameraOptions(share="single"))


class Setup:
    """A scene, and what makes a map of it."""

    def __init__(self, folder, **scene):
        self.scene = MappedScene(folder, **scene)
        self.knowing = Knowing(self.scene)
        self.folder = folder / "map"
        self.pipeline = Pipeline(
            custom_extractor=self.knowing, custom_matcher=self.knowing, resize=None, min_distance=0.0, device="cpu"
        )

    def make(self, options=SINGLE, **more):
        return make_map(self.scene.photos, self.folder, self.pipeline, options, **more)


def photo(grey):
    """An image of one grey, by which `Knowing` knows it; but for one pixel, as images of one colour are masked."""
    image = Image.new("L", SIZE, grey)
    image.putpixel((SIZE[0] - 1, 0), 255)
    return image


def matched(points0, points1):
    """(N0,) int32, where each point is among the others; one in seven is wrong."""
    place1 = {point: i for i, point in enumerate(points1)}
    indices = np.array([place1.get(point, -1) for point in points0], np.int32)
    wrong = np.flatnonzero(indices >= 0)[::7]
    indices[wrong] = np.roll(indices[wrong], 1)
    return indices


class Knowing:
    """An extractor and matcher for the photos of a scene; it counts what it has done."""

    signature, name = SIGNATURE, "knowing"

    def __init__(self, scene):
        self.scene, self.extracted, self.matched = scene, 0, 0

    def extract(self, images, mask=None):
        self.extracted += 1
        return self.scene.features_of(self.scene.names[round(255 * float(images[0, 0, 0, 0])) - FIRST])

    def match_many(self, features0, features1):
        return [self._match(*pair) for pair in zip(features0, features1, strict=True)]

    def _match(self, *views):
        self.matched += 1
        indices = torch.from_numpy(matched(*(one.descriptors[0, :, 0].int().tolist() for one in views))).long()
        return Matches(indices=indices[None], scores=(indices >= 0).float()[None], matcher=self.name)


def turned(angle_rad):
    """(3, 3) about the upright axis."""
    sine, cosine = np.sin(angle_rad), np.cos(angle_rad)
    return np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
