"""Cameras of photos: known intrinsics of several sizes, fisheye lenses, photos that cannot be read, COLMAP's log."""

import numpy as np
import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.sfm.cameras import cameras_of, find_cameras
from isinglass.sfm.colmap_log import distinct, listen, quiet
from isinglass.sfm.options import CameraOptions, pycolmap_module
from isinglass.sfm.summary import MapSummary, why_no_model

PINHOLE = {"model": "PINHOLE", "params": (525.0, 525.0, 319.5, 239.5)}


def photos(folder, *sizes):
    names = [f"{i}.png" for i in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        Image.new("L", size).save(folder / name)
    return names


def params_of(found):
    return {name: camera.params.tolist() for camera, names in found.groups for name in names}


@pytest.mark.parametrize("share", ["exif", "single", "folder", "image"])
def test_known_parameters_are_scaled_to_each_size(tmp_path, share):
    names = photos(tmp_path, (640, 480), (320, 240), (640, 480), (320, 240))
    found = find_cameras(tmp_path, names, CameraOptions(**PINHOLE, share=share))
    assert params_of(found) == {
        name: [262.5, 262.5, 160, 120] if name in ("1.png", "3.png") else [525, 525, 320, 240]  # half a pixel further
        for name in names
    }
    assert [(camera.width, camera.height) for camera, _ in found.groups][:2] == [(640, 480), (320, 240)]
    (note,) = found.notes
    assert "for photos of 640 x 480 px" in note and "2 of 320 x 240 px" in note


def test_the_size_that_parameters_are_for_can_be_given(tmp_path):
    names = photos(tmp_path, (320, 240))
    found = find_cameras(tmp_path, names, CameraOptions(**PINHOLE, size=(640, 480)))
    assert params_of(found) == {"0.png": [262.5, 262.5, 160, 120]}
    own = find_cameras(tmp_path, names, CameraOptions(**PINHOLE, size=(320, 240)))  # a crop: as it is
    assert params_of(own) == {"0.png": [525, 525, 320, 240]} and not own.notes


def test_parameters_of_another_size_are_refused(tmp_path):
    names = photos(tmp_path, (320, 240), (320, 240))
    with pytest.raises(InputError, match=r"look like those of 640 x 480 px.*--camera-size 640x480"):
        find_cameras(tmp_path, names, CameraOptions(**PINHOLE))


@pytest.mark.parametrize("size", [(480, 640), (640, 400), (1000, 240)])
def test_parameters_that_cannot_be_scaled_are_refused(tmp_path, size):
    names = photos(tmp_path, (640, 480), size)
    with pytest.raises(InputError, match=rf"cannot be scaled to photos of {size[0]} x {size[1]} px"):
        find_cameras(tmp_path, names, CameraOptions(**PINHOLE))


def test_sizes_that_are_rounded_can_be_scaled(tmp_path):
    names = photos(tmp_path, (4000, 3000), (333, 250))
    options = CameraOptions(model="SIMPLE_PINHOLE", params=(4000.0, 1999.5, 1499.5))
    assert params_of(find_cameras(tmp_path, names, options))["1.png"][0] == pytest.approx(333, abs=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "OPENCV_FISHY"}, "did you mean 'OPENCV_FISHEYE'"),
        ({"model": "pinhole"}, "did you mean 'PINHOLE'"),
        ({"model": "PINHOLE", "params": (1.0, 2.0)}, "2 camera parameters came; PINHOLE has 4: fx, fy, cx, cy"),
        ({"model": "PINHOLE", "params": (np.nan, 1, 1, 1)}, "finite"),
        ({"model": "PINHOLE", "params": (-525, 525, 1, 1)}, "focal length of more than 0"),
        ({"size": (640, 480)}, "params of that size"),
        ({"share": "lens"}, "'lens'"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        CameraOptions(**options)


def test_a_turned_photo_cannot_share_a_camera_and_that_is_told_before_any_work(tmp_path, isinglass):
    photos(tmp_path, (640, 480), (480, 640))
    code, _, errors = isinglass("map", tmp_path, "--camera", "single", "-o", tmp_path / "map")
    assert code == 2 and "1.png" in errors and "It is turned" in errors
    assert not (tmp_path / "map").exists()


def test_a_photo_that_cannot_be_read_is_left_out(tmp_path):
    names = photos(tmp_path, (64, 48), (64, 48))
    (tmp_path / "1.png").write_bytes(b"no image")
    found = find_cameras(tmp_path, names, CameraOptions(share="single"))
    assert list(found.problems) == ["1.png"] and [group for _, group in found.groups] == [["0.png"]]
    with pytest.raises(InputError, match=r"1\.png"):
        cameras_of(tmp_path, names, CameraOptions())


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE"])
def test_a_fisheye_camera_has_a_prior(tmp_path, model):
    """COLMAP takes no pair of fisheye photos whose focal length it does not know."""
    names = photos(tmp_path, (640, 480), (640, 480))
    found = find_cameras(tmp_path, names, CameraOptions(model=model, share="single"))
    ((camera, _),) = found.groups
    assert camera.has_prior_focal_length and camera.mean_focal_length() == 320
    assert "was assumed" in found.notes[0] and "--camera-params" in found.notes[0]


# ---- COLMAP's log


def test_colmaps_warnings_are_heard_once_and_not_on_stderr(capfd):
    log = pycolmap_module().logging
    with listen() as heard:
        log.warning("Provide a prior\nof photo 1")
        with quiet(), listen() as inner:
            log.error("Provide a prior of photo 2")
        log.info("all is well")
        log.warning("Too late")
    assert heard == ["Provide a prior of photo 1", "Too late"] and inner == []
    with quiet():
        log.error("nobody hears this")
    assert capfd.readouterr().err == ""


def test_messages_that_differ_in_numbers_are_one():
    assert distinct(["pair 1 of 2", "pair 2 of 2", "other"]) == ["pair 1 of 2", "other"]


def test_what_colmap_says_comes_before_our_guess():
    about = {"photos": 2, "problems": {}, "notes": [], "pairs": 1, "matched": 1, "verified": 0, "inliers": 0}
    rest = {"models": [], "unregistered": [], "reason": "", "seconds": {}, "reused": []}
    summary = MapSummary(**about, **rest, colmap=["Provide a focal length prior."])
    reason = why_no_model(summary, ["a", "b"]).reason
    assert reason.startswith("COLMAP says: Provide a focal length prior. Our guess: no overlap was found")
