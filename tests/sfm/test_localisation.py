"""Queries in a map of exact truth: found where they are, or not at all."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.sfm.landmarks import Landmarks
from isinglass.sfm.localisation import LocaliseOptions, Map
from isinglass.sfm.query import exif_camera, intrinsics
from isinglass.types import Signature
from made_map import CHANNELS, SIZE, Room, camera_of, features_of, map_of, pipeline_of, places, pose_at

QUERIES = [pose_at([0.3, 0.1, -0.2], 10), pose_at([-0.5, 0, 0.6], 100), pose_at([0, -0.2, 0], 200)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    room = Room()
    return *map_of(tmp_path_factory.mktemp("map"), room), room


def off(result, pose):
    """m and degrees."""
    cosine = (np.trace(result.cam_from_world[:, :3] @ pose[:, :3].T) - 1) / 2
    return np.linalg.norm(result.centre + pose[:, :3].T @ pose[:, 3]), math.degrees(math.acos(min(cosine, 1)))


@pytest.mark.parametrize("points_only", [True, False])
def test_queries_are_found_where_they_are(made, points_only):
    mapped, _, room = made
    photos = [room.photo(pose)[0] for pose in QUERIES]
    options = LocaliseOptions(images=5, points_only=points_only)
    found = list(mapped.localize_many(photos, options=options))
    for result, pose in zip(found, QUERIES, strict=True):
        assert result.success and result.reason == "" and result.camera_from == "map"
        distance, angle = off(result, pose)
        assert distance < 0.02 and angle < 0.2 and distance < 5 * result.centre_std
        assert 100 < result.num_inliers <= result.num_matches and result.inlier_ratio > 0.8
        assert set(result.images) <= set(mapped.landmarks.names) and len(result.images) >= 5
        assert {"retrieve", "match", "pose"} <= set(result.timings_ms)


def test_queries_in_a_batch_are_as_alone(made):
    mapped, _, room = made
    photos = [room.photo(pose)[0] for pose in QUERIES] + [Room(look=9).photo(QUERIES[0])[0]]
    together = list(mapped.localize_many(photos, options=LocaliseOptions(images=4, batch=4)))
    for result, photo in zip(together, photos, strict=True):
        alone = mapped.localize(photo, options=LocaliseOptions(images=4, batch=1))
        assert alone.images == result.images and alone.success == result.success
        if alone.success:
            np.testing.assert_array_equal(alone.cam_from_world, result.cam_from_world)


def test_an_image_of_another_place_is_nowhere(made):
    mapped, _, _ = made
    for pose in QUERIES:
        result = mapped.localize(Room(look=5).photo(pose)[0])
        assert not result.success and result.reason
        assert result.cam_from_world is None and result.centre is None and result.covariance is None


def test_a_few_matches_that_agree_among_many_that_do_not_are_no_place(made):
    """Something of the room stands elsewhere, and what is around it is matched at random."""
    mapped, _, room = made
    photo, _ = room.photo(QUERIES[0], clutter=0)
    count = photo.keypoints.shape[1]
    assert count > 250
    rng = np.random.default_rng(0)
    for right, found in ((28, False), (120, True)):
        pixels = photo.keypoints[0].numpy().copy()
        wrong = rng.permutation(count)[right:]
        pixels[wrong] = rng.uniform(0, SIZE, (len(wrong), 2))
        result = mapped.localize(features_of(pixels, photo.descriptors[0].numpy()))
        assert result.success == found
        assert right - 10 < result.num_inliers < right + 15
        assert found or "agree" in result.reason


def test_without_keypoints_there_is_a_reason(made, tmp_path):
    mapped, _, _ = made
    empty = features_of(np.zeros((0, 2)), np.zeros((0, CHANNELS)))
    assert "no keypoints" in mapped.localize(empty).reason
    Image.new("RGB", SIZE).save(tmp_path / "black.png")
    assert "no keypoints" in mapped.localize(tmp_path / "black.png").reason
    other = Room(look=5).photo(QUERIES[0], clutter=0)[0]
    assert mapped.localize(other.select(np.arange(0))).num_matches == 0


def test_an_image_that_cannot_be_read_does_not_end_the_run(made, tmp_path):
    mapped, _, room = made
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    good = room.photo(QUERIES[0])[0]
    first, torn, last = mapped.localize_many([good, tmp_path / "torn.jpg", good])
    assert first.success and last.success
    assert not torn.success and not torn.readable and "torn.jpg" in torn.reason
    with pytest.raises(InputError, match=r"torn\.jpg"):
        mapped.localize(tmp_path / "torn.jpg")


def test_a_second_round_matches_images_that_see_the_same(made):
    mapped, _, room = made
    photo = room.photo(QUERIES[0])[0]
    few = LocaliseOptions(images=1, neighbours=4, enough=10_000)
    first = mapped.localize(photo, options=dataclasses.replace(few, neighbours=0))
    more = mapped.localize(photo, options=few)
    assert len(first.images) == 1 and len(more.images) == 5
    assert more.num_inliers > first.num_inliers
    start, *others = (mapped.landmarks.place[name] for name in more.images)
    assert all(mapped.landmarks.shared(start)[other] for other in others)
    enough = dataclasses.replace(few, enough=10)
    assert mapped.localize(photo, options=enough).images == first.images


def test_as_long_as_nothing_is_found_less_likely_images_are_tried(made):
    mapped, _, _ = made
    stranger = Room(look=5).photo(QUERIES[0])[0]
    assert len(mapped.localize(stranger, options=LocaliseOptions(images=2, neighbours=0)).images) == 6
    without = Map(mapped.landmarks, mapped.features, pipeline_of())
    assert len(without.localize(stranger, options=LocaliseOptions(images=2)).images) == 16


def test_a_place_that_is_there_twice_is_said_to_be_so(tmp_path):
    """Two rooms that look the same: an image of one of them must not be put into the other."""
    one, other = Room(), Room(middle=(50, 0, 0))
    both = Room()
    both.points = np.concatenate([one.points, other.points])
    both.descriptors = np.concatenate([one.descriptors, other.descriptors])
    poses = places()[:6] + places(middle=(50, 0, 0))[:6]
    for i, far in enumerate([False] * 6 + [True] * 6):  # walls hide the other room
        assert (poses[i][0, 3] ** 2 + poses[i][2, 3] ** 2 > 100) == far
    mapped, _ = _map_of_two(tmp_path, one, other, poses)
    result = mapped.localize(one.photo(pose_at([0.3, 0, 0.2], 30))[0], options=LocaliseOptions(images=12))
    assert not result.success and "two places" in result.reason and result.cam_from_world is None
    alone, _ = map_of(tmp_path / "alone", one, poses[:6])
    assert alone.localize(one.photo(pose_at([0.3, 0, 0.2], 30))[0]).success


def _map_of_two(tmp_path, one, other, poses):
    class Both:
        points = np.concatenate([one.points, other.points])

        @staticmethod
        def photo(pose, camera=None):
            near = np.abs(-pose[:, :3].T @ pose[:, 3])[0] < 10
            features, which = (one if near else other).photo(pose, camera)
            return features, which if near else which + len(one.points)

    return map_of(tmp_path / "two", Both(), poses)


# ---- cameras of queries


def test_the_camera_of_a_query_is_given_or_that_of_the_map_or_found(made):
    mapped, _, room = made
    wide = camera_of(focal_px=380.0, size=(800, 600))
    photo = room.photo(QUERIES[0], wide)[0]
    given = mapped.localize(photo, camera=wide)
    assert given.camera_from == "given" and off(given, QUERIES[0])[0] < 0.02
    guessed = mapped.localize(photo)
    assert guessed.camera_from == "guessed" and guessed.camera.focal_length == pytest.approx(380, rel=0.03)
    assert off(guessed, QUERIES[0])[0] < 0.15
    zoomed = mapped.localize(room.photo(QUERIES[0], camera_of(focal_px=650.0))[0])  # as large as the map's photos
    assert zoomed.camera_from == "guessed" and zoomed.camera.focal_length == pytest.approx(650, rel=0.03)
    assert off(zoomed, QUERIES[0])[0] < 0.15


def test_exif_counts_unless_the_map_knows_better(made, tmp_path):
    mapped, _, _ = made
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model"
    exif.get_ifd(0x8769)[0xA405] = 28  # mm, of film of 36 mm
    Image.new("RGB", SIZE).save(tmp_path / "photo.jpg", exif=exif)
    camera = exif_camera(tmp_path / "photo.jpg", SIZE)
    assert camera.mean_focal_length() == pytest.approx(28 / 36 * 640, rel=0.05)
    assert exif_camera(tmp_path / "photo.jpg", (320, 240)) is None
    Image.new("RGB", SIZE).save(tmp_path / "plain.png")
    assert exif_camera(tmp_path / "plain.png", SIZE) is None
    about = intrinsics(None, camera, mapped.landmarks, SIZE)
    assert (about.source, about.focal) == ("map", "known")
    far = camera_of(focal_px=700.0)
    assert intrinsics(None, far, mapped.landmarks, SIZE).source == "exif"
    assert intrinsics(far, camera, mapped.landmarks, SIZE).camera is far
    assert intrinsics(None, None, mapped.landmarks, (99, 99)).focal == "unknown"


def test_cameras_that_differ_are_not_taken_for_a_query(tmp_path):
    room = Room(count=400)
    cameras = {f"photo{i:02}.jpg": camera_of(500.0 + 5 * i, number=i + 1) for i in range(4)}
    _, model = map_of(tmp_path / "alike", room, places()[:4], cameras)
    camera, alone = Landmarks(model).camera_of_size(SIZE)
    assert camera.focal_length == 510 and not alone
    cameras["photo03.jpg"].focal_length = 800
    _, model = map_of(tmp_path / "unlike", room, places()[:4], cameras)
    assert Landmarks(model).camera_of_size(SIZE) is None


# ---- maps


def test_landmarks_count_shared_points_as_a_loop_does(made):
    mapped, model, _ = made
    landmarks = mapped.landmarks
    seen = {
        image.name: {point.point3D_id for point in image.points2D if point.has_point3D()}
        for image in model.images.values()
    }
    for i, name in enumerate(landmarks.names):
        expected = [0 if other == name else len(seen[name] & seen[other]) for other in landmarks.names]
        assert landmarks.shared(i).tolist() == expected
    near, far = [0, 1], [8, 9]
    assert landmarks.clusters([*near, *far], least=50) == [near, far]
    assert landmarks.seen_by([]).sum() == 0


def test_other_keypoints_get_the_points_they_lie_on(made):
    mapped, _, _ = made
    landmarks = mapped.landmarks
    own, rows = landmarks.keypoints[0], landmarks.rows[0]
    np.testing.assert_array_equal(landmarks.assigned(0, own.astype(np.float32), 3.0), rows)
    order = np.random.default_rng(0).permutation(len(own))[:150]
    moved = np.concatenate([own[order] + [0.4, -0.3], own[order[:20]] + [0.9, 0], [[-50.0, -50.0]]])
    found = landmarks.assigned(0, moved, 3.0)
    right = rows[order]
    assert (found[:150] == right)[right >= 0].mean() > 0.9  # some have a nearer neighbour
    assert (found[150:] == -1).all()  # taken by a nearer keypoint, or far from all
    assert len(np.unique(found[found >= 0])) == (found >= 0).sum()
    assert landmarks.assigned(0, np.zeros((0, 2)), 3.0).shape == (0,)


def test_what_cannot_be_a_map_is_an_error(made, tmp_path):
    import pycolmap

    mapped, _, room = made
    with pytest.raises(InputError, match="0 registered images"):
        Landmarks(pycolmap.Reconstruction())
    with pytest.raises(InputError, match="model"):
        Landmarks.read(tmp_path)
    with pytest.raises(InputError, match="expected a map"):
        Map.open(tmp_path)
    foreign = pipeline_of()
    foreign.extractor.signature = Signature(extractor="other")
    with pytest.raises(InputError, match="extractor"):
        Map(mapped.landmarks, mapped.features, foreign)
    with pytest.raises(InputError, match="640 x 480"):
        mapped.localize(room.photo(QUERIES[0])[0], camera=camera_of(size=(99, 99)))
    with pytest.raises(InputError, match="images"):
        LocaliseOptions(images=0)
    with pytest.raises(InputError, match="threshold_px"):
        LocaliseOptions(threshold_px=-1.0)


def test_features_in_memory_are_bounded_and_asked_for_once(made, monkeypatch):
    mapped, _, room = made
    fresh = Map(mapped.landmarks, mapped.features, pipeline_of(), mapped.retrieval)
    asked = []
    get = type(fresh.features).get
    monkeypatch.setattr(type(fresh.features), "get", lambda self, name: asked.append(name) or get(self, name))
    photo = room.photo(QUERIES[0])[0]
    for _ in range(2):
        assert fresh.localize(photo).success
    assert len(asked) == len(set(asked)) <= 16


def test_all_models_of_a_map_are_tried(tmp_path):
    """A query of the second scene is found in the second model, and the answer says so."""
    from mapped_scene import Setup

    setup = Setup(tmp_path, views=9)
    for name in setup.scene.names[5:]:
        setup.scene.seen[name] = setup.scene.seen[name] + 1000
    assert [model.images for model in setup.make().models] == [5, 4]
    mapped = Map.open(setup.folder, setup.pipeline)
    queries = {name: setup.scene.features_of(name) for name in ("002.png", "007.png")}
    found = dict(zip(queries, mapped.localize_many(list(queries.values())), strict=True))
    assert {name: result.model for name, result in found.items()} == {"002.png": "model", "007.png": "model/1"}
    assert found["007.png"].success and found["007.png"].as_dict()["model"] == "model/1"
    only = Map.open(setup.folder / "model" / "1", setup.pipeline)
    assert only.localize(queries["007.png"]).model == "model/1"
    lost = only.localize(queries["002.png"])
    assert not lost.success and lost.model == "" and "fits 'model'" in lost.reason
    assert not Map.open(setup.folder / "model", setup.pipeline).localize(queries["007.png"]).success
