"""A room of points with descriptors, photographed from known places: a map whose truth is exact, without any image."""

import numpy as np
import pycolmap
import torch

from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.pipeline import Pipeline
from isinglass.sfm.landmarks import Landmarks
from isinglass.sfm.localisation import Map
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore
from isinglass.types import Features, Signature

SIGNATURE = Signature(extractor="made")
SIZE, FOCAL_PX = (640, 480), 500.0
CHANNELS = 32


class Nothing:
    """An extractor that finds nothing."""

    signature = SIGNATURE

    def extract(self, images, mask=None):
        return features_of(np.zeros((0, 2)), np.zeros((0, CHANNELS)), (images.shape[3], images.shape[2]))


def pipeline_of():
    return Pipeline(custom_extractor=Nothing(), custom_matcher=Nearest(NearestConfig(distance=0.7)), device="cpu")


def features_of(pixels, descriptors, size=SIZE):
    count = len(pixels)
    return Features(
        keypoints=torch.tensor(np.asarray(pixels), dtype=torch.float32)[None],
        descriptors=torch.tensor(np.asarray(descriptors), dtype=torch.float32)[None],
        scores=torch.linspace(1, 0, count)[None],
        image_size=torch.tensor([size]),
        signature=SIGNATURE,
    )


def camera_of(focal_px=FOCAL_PX, size=SIZE, number=1, model="SIMPLE_PINHOLE"):
    return pycolmap.Camera.create_from_model_name(number, model, focal_px, *size)


def pose_at(centre, degrees):
    """(3, 4) of a camera that looks along the floor, `degrees` to the right of +z. y is down."""
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    return np.column_stack([rotation, -rotation @ np.asarray(centre, float)])


class Room:
    """Points on the four walls of a room of 8 x 3 x 8 m around `middle`; `look` draws the descriptors."""

    def __init__(self, look=0, middle=(0, 0, 0), count=1600, depth=0.4):
        rng = np.random.default_rng(look)
        along, height, off = rng.uniform(-4, 4, count), rng.uniform(-1.5, 1.5, count), rng.uniform(0, depth, count)
        wall = rng.integers(0, 4, count)
        x = np.choose(wall, [along, along, 4 - off, off - 4])
        z = np.choose(wall, [4 - off, off - 4, along, along])
        self.points = np.column_stack([x, height, z]) + middle
        descriptors = rng.normal(size=(count, CHANNELS))
        self.descriptors = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
        self.rng = rng

    def photo(self, pose, camera=None, clutter=100):
        """Features of what a camera sees, with half a pixel of noise and some that belong to no point; which points."""
        camera = camera or camera_of()
        seen = self.points @ pose[:, :3].T + pose[:, 3]
        pixels = np.asarray(camera.img_from_cam(seen)) - 0.5
        size = np.array([camera.width, camera.height])
        which = np.flatnonzero((seen[:, 2] > 0.5) & ((pixels > 0) & (pixels < size - 1)).all(axis=1))
        pixels = pixels[which] + self.rng.normal(0, 0.5, (len(which), 2))
        noise = 0.04 * self.rng.normal(size=(len(which), CHANNELS))
        other = self.rng.normal(size=(clutter, CHANNELS))
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        all_pixels = np.concatenate([pixels, self.rng.uniform(0, size - 1, (clutter, 2))])
        descriptors = np.concatenate([self.descriptors[which] + noise, other])
        return features_of(all_pixels, descriptors, tuple(size.tolist())), which


def places(count=16, middle=(0, 0, 0)):
    """Poses on a circle of 1 m that look outwards."""
    turns = np.arange(count) * 360 / count
    ring = np.column_stack([np.sin(np.radians(turns)), np.zeros(count), np.cos(np.radians(turns))])
    return [pose_at(centre + middle, turn) for centre, turn in zip(ring, turns, strict=True)]


def model_of(photos, points, cameras=None):
    """The `pycolmap.Reconstruction` of photos {name: (features or keypoints, which points, pose)} and points (Q, 3)."""
    model = pycolmap.Reconstruction()
    cameras = cameras or dict.fromkeys(photos, camera_of())
    for number in {camera.camera_id for camera in cameras.values()}:
        camera = next(one for one in cameras.values() if one.camera_id == number)
        model.add_camera_with_trivial_rig(camera)
    tracks = {}
    for number, (name, (features, which, pose)) in enumerate(photos.items(), start=1):
        own = features.keypoints[0].double().numpy() if isinstance(features, Features) else features
        keypoints = own + 0.5  # COLMAP's half pixel
        image = pycolmap.Image(name=name, keypoints=keypoints, camera_id=cameras[name].camera_id, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for keypoint, point in enumerate(which):
            tracks.setdefault(int(point), []).append(pycolmap.TrackElement(number, keypoint))
    for point, elements in sorted(tracks.items()):
        if len(elements) > 1:
            model.add_point3D(points[point], pycolmap.Track(elements))
    return model


def map_of(folder, room, poses=None, cameras=None):
    """A map of the room with features in `folder`, and its model."""
    folder.mkdir(parents=True, exist_ok=True)
    poses = poses or places()
    photos = {}
    for i, pose in enumerate(poses):
        name = f"photo{i:02}.jpg"
        photos[name] = (*room.photo(pose, None if cameras is None else cameras[name]), pose)
    store = FeatureStore(folder / "features.h5", SIGNATURE, "{}", half=False)
    store.add({name: features for name, (features, _, _) in photos.items()})
    model = model_of(photos, room.points, cameras)
    return Map(Landmarks(model), store, pipeline_of(), Retrieval.learn(store, words=16).add(store)), model
