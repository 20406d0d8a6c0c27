"""A model is moved into the frame of an earlier one by the photos that both have."""

import numpy as np
import pycolmap
import pytest

from isinglass.sfm.alignment import keep_frame
from mapped_scene import MappedScene, turned


def model_of(centres, rotations, names, points=()):
    """A reconstruction of one camera with poses alone."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 250.0, 320, 240))
    for number, (name, centre, rotation) in enumerate(zip(names, centres, rotations, strict=True), start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        model.add_image_with_trivial_frame(image, pose)
    for point in points:
        model.add_point3D(np.asarray(point, float), pycolmap.Track())
    return model


@pytest.fixture
def scene(tmp_path):
    return MappedScene(tmp_path, views=8)


def centres_of(model):
    return np.array([image.projection_center() for image in sorted(model.images.values(), key=lambda one: one.name)])


MOVED = pycolmap.Sim3d(0.7, pycolmap.Rotation3d(turned(1.1)), np.array([3.0, -2.0, 1.0]))


@pytest.mark.parametrize("line", [False, True])
def test_the_earlier_frame_is_found_again(scene, line):
    """Also where all centres are on a line, which leaves a turn about it to the rotations of the cameras."""
    centres = scene.centres * ([1, 0, 0] if line else [1, 1, 1])
    old = model_of(centres[:6], scene.rotations[:6], scene.names[:6])
    new = model_of(centres, scene.rotations, scene.names, [[0, 0, 5]])
    new.transform(MOVED)
    assert "kept, by 6 common photos" in keep_frame([new], [old])
    np.testing.assert_allclose(centres_of(new), centres, atol=1e-9)
    np.testing.assert_allclose(next(iter(new.points3D.values())).xyz, [0, 0, 5], atol=1e-9)


def test_a_photo_that_moved_does_not_pull_the_frame(scene):
    old = model_of(scene.centres, scene.rotations, scene.names)
    centres = scene.centres.copy()
    centres[3] += [2, 0, 1]
    new = model_of(centres, scene.rotations, scene.names)
    new.transform(MOVED)
    keep_frame([new], [old])
    np.testing.assert_allclose(np.delete(centres_of(new), 3, axis=0), np.delete(scene.centres, 3, axis=0), atol=1e-6)


def test_each_model_goes_to_the_one_it_shares_photos_with(scene):
    olds = [
        model_of(scene.centres[:5], scene.rotations[:5], scene.names[:5]),
        model_of(10 * scene.centres[5:], scene.rotations[5:], scene.names[5:]),
    ]
    new = model_of(scene.centres[5:], scene.rotations[5:], scene.names[5:])
    assert "kept" in keep_frame([new], olds)
    np.testing.assert_allclose(centres_of(new), 10 * scene.centres[5:], atol=1e-9)


@pytest.mark.parametrize("common", [0, 1])
def test_a_frame_that_cannot_be_kept_is_told(scene, common):
    old = model_of(scene.centres, scene.rotations, scene.names)
    names = [*scene.names[:common], *(f"new{i}" for i in range(8 - common))]
    new = model_of(scene.centres, scene.rotations, names)
    assert f"new frame: it has {common} photos in common" in keep_frame([new], [old])
    assert keep_frame([new], []) == ""
