"""Scenes: what follows from what, what they look like, and whether their labels are true."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from isinglass.errors import InputError
from isinglass.geometry.camera import covisible, lift, project, sample_depth
from isinglass.train import scenes
from isinglass.train.batch import UNMATCHABLE
from isinglass.train.rendering import Camera, box, cast, depth_map, landing, placed
from isinglass.train.scenes import SceneConfig, ScenePairs, Scenes, scene_views
from isinglass.train.sources import held_out_numbers
from isinglass.train.views import Photos
from isinglass.types import Features, Signature

SMALL = SceneConfig(count=40, size=(160, 120), photos_a_scene=3, objects=(3, 5))
SIGNATURE = Signature(extractor="made-up")


class Corners:
    """The pixels that differ most from their neighbours, with their patch as a descriptor."""

    signature = SIGNATURE

    def extract(self, images, mask=None):
        grey = images.mean(dim=1)
        contrast = (grey[:, 2:, 2:] + grey[:, :-2, :-2] - grey[:, 2:, :-2] - grey[:, :-2, 2:]).abs()
        score, place = contrast[0].flatten().topk(200)
        x, y = place % contrast.shape[2] + 1, place // contrast.shape[2] + 1
        patches = F.unfold(grey[:, None], 3, padding=1)[0].T[y * grey.shape[2] + x]
        size = torch.tensor([[grey.shape[2], grey.shape[1]]])
        points = torch.stack([x, y], dim=1).float()[None]
        return Features(
            keypoints=points, descriptors=patches[None], scores=score[None], image_size=size, signature=SIGNATURE
        )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """25 photos of noise, photo i of brightness 5 i and more, so that a picture tells which ones are in it."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(25):
        rng = np.random.default_rng(i)
        noise = np.kron(rng.integers(0, 120, (12, 16, 3)), np.ones((10, 10, 1))) + 5 * i
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i:02}.png")
    return Photos(folder)


@pytest.fixture(scope="module")
def small(photos):
    return Scenes(photos, SMALL)


@pytest.fixture(scope="module")
def stored(small, tmp_path_factory):
    return scene_views(small, Corners(), folder=tmp_path_factory.mktemp("store"), per_scene=4, max_keypoints=150)


def test_a_view_follows_from_the_seed_the_scene_and_the_number(photos, small):
    again = Scenes(photos, SMALL).view(5, 3)
    first = small.view(5, 3)
    assert torch.equal(first.image_3HW, again.image_3HW) and np.array_equal(first.matrix, again.matrix)
    assert first.image_3HW.shape == (3, 120, 160) and first.image_3HW.min() >= 0 and first.image_3HW.max() <= 1
    others = small.view(5, 2), small.view(6, 3), Scenes(photos, SMALL, seed=1).view(5, 3)
    assert not any(torch.equal(first.image_3HW, other.image_3HW) for other in others)
    assert len({Scenes(photos, config, seed=seed).digest for config in (SMALL, SceneConfig()) for seed in (0, 1)}) == 4


def test_every_pixel_shows_something_and_cameras_are_in_the_room(small):
    for scene in range(12):
        layout, here = small.layout(scene), small.camera(scene, 0)
        depth = depth_map(layout.rectangles_K33, here)
        assert torch.isfinite(depth).all() and depth.quantile(0.1) > 0.5
        assert (np.abs(here.centre[[0, 2]]) < layout.room_3[[0, 2]] / 2).all()
        assert -layout.room_3[1] < here.centre[1] < 0
        np.testing.assert_allclose(here.rotation @ here.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(here.rotation) == pytest.approx(1)


def test_cameras_are_where_they_see(photos):
    """In crowded rooms, where chance alone would often put them into boxes or before them."""
    crowded = Scenes(photos, replace(SMALL, objects=(12, 12), room_m=(4, 5), distance_m=(1, 2)))
    found = [scenes._clear_m(crowded.layout(i).rectangles_K33, crowded.camera(i, n)) for i in range(10) for n in (0, 1)]
    by_chance = []
    for i in range(10):
        rng, layout = np.random.default_rng(i), crowded.layout(i)
        by_chance += [
            scenes._clear_m(layout.rectangles_K33, crowded._any_camera(layout, rng)) > scenes._CLEAR_M for _ in range(4)
        ]
    assert np.mean(np.array(found) > scenes._CLEAR_M) > 0.9 > np.mean(by_chance)


def test_clear_sight_by_hand():
    matrix = np.array([[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    here = Camera(size=(64, 48), matrix=matrix, rotation=np.eye(3), translation=np.zeros(3))
    room = placed(box((9, 9, 9), inside=True), np.eye(3), (0, 0, 0))
    poster = placed(box((9, 9, 0))[4:], np.eye(3), (0, 0, 1.5))
    assert scenes._clear_m(room, here) == pytest.approx(4.5)
    assert scenes._clear_m(np.concatenate([room, poster]), here) == pytest.approx(1.5)
    assert scenes._clear_m(np.concatenate([room, box((1, 1, 1))]), here) == 0


def test_a_piece_is_bright_where_it_faces_the_lamp_and_darker_far_from_it():
    piece = torch.full((3, 20, 20), 100.0)
    wall = np.array([[-2.0, -2, 2], [4, 0, 0], [0, 4, 0]])
    lit = scenes._lit(piece, wall, np.array([-2.0, 0, 0]))
    assert (lit[0, :, 1:] < lit[0, :, :-1]).all() and torch.allclose(lit, lit.flip(1))
    turned = scenes._lit(piece, wall, np.array([0, 0, 3.0]))  # the lamp is behind it
    assert lit.min() > turned.max() and torch.allclose(turned, torch.tensor(70.0))


def test_blank_parts_of_photos_are_left_out(tmp_path):
    for i in range(3):
        pixels = np.full((96, 128, 3), 90, np.uint8)
        pixels[:, :80] = np.random.default_rng(i).integers(0, 255, (96, 80, 3))
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    half_blank = Scenes(Photos(tmp_path), replace(SMALL, objects=(0, 0)))
    papered = half_blank._papered(0)
    assert len(papered) == len(half_blank.layout(0).rectangles_K33)
    assert all(levels[0].float().std() > 20 for levels in papered)


def test_views_are_exposed_and_then_recoloured(photos, small):
    as_it_is = Scenes(photos, replace(SMALL, photometric=0)).view(4, 0).image_3HW
    assert as_it_is.mean() == pytest.approx(0.45, abs=0.03)
    assert (as_it_is - small.view(4, 0).image_3HW).abs().mean() > 0.02


def test_landing_agrees_with_depth_maps(small):
    """The NumPy twin of evaluation, which knows depth maps alone; it cannot tell at edges, so nearly all must agree."""
    agreed = total = 0
    for scene in range(8):
        cameras, rectangles = [small.camera(scene, n) for n in (0, 1)], small.layout(scene).rectangles_K33
        depth0, depth1 = (depth_map(rectangles, one).numpy() for one in cameras)
        points = np.random.default_rng(scene).uniform(0, 119, (200, 2))
        rotation = cameras[1].rotation @ cameras[0].rotation.T
        pose = rotation, cameras[1].translation - rotation @ cameras[0].translation
        twin = covisible(points, depth0, depth1, tuple(one.matrix for one in cameras), pose, tolerance=0.02)
        found = landing(rectangles, cameras, torch.from_numpy(points))
        known = ~found.point_N2.isnan().any(dim=1).numpy()
        smooth_M = (
            np.abs(
                sample_depth(depth0, points)
                * cast(rectangles, cameras[0], torch.from_numpy(points)).inverse_depth_N.numpy()
                - 1
            )
            < 1e-6
        )
        near = known & smooth_M
        np.testing.assert_allclose(found.point_N2.numpy()[near], twin.points[near], atol=0.02)
        agreed += int((found.hidden_N.numpy() == twin.hidden)[near].sum())
        total += int(near.sum())
    assert total > 1000 and agreed > 0.98 * total


def test_views_of_a_scene_overlap_mostly(photos):
    drawn = Scenes(photos, replace(SMALL, count=60))
    low, high = SMALL.overlap
    overlaps = np.array([drawn.overlap(scene, 0, 1) for scene in range(60)])
    assert ((overlaps >= low) & (overlaps <= high)).mean() > 0.7
    assert drawn.overlap(3, 2, 2) == 1


def test_pairs_overlap_as_the_config_says(photos, small):
    for overlap in ((0.1, 0.2), (0.5, 0.9)):
        drawn = Scenes(photos, replace(SMALL, overlap=overlap))
        source = ScenePairs(scene_views(drawn, Corners()), drawn)
        pairs = [source._overlapping(scene, np.random.default_rng(scene)) for scene in range(12)]
        found = [drawn.overlap(scene, *numbers) for scene, numbers in enumerate(pairs)]
        assert np.mean([overlap[0] <= one <= overlap[1] for one in found]) > 0.9


def test_validation_shows_no_photo_of_training(photos, small):
    held_out_scenes, held_out_photos = held_out_numbers(len(small)), held_out_numbers(len(photos))
    assert held_out_scenes.sum() == 2 and np.flatnonzero(held_out_photos).tolist() == [19]
    for scene in range(len(small)):
        assert held_out_photos[small.photos_of(scene)].all() == held_out_scenes[scene]
        assert held_out_photos[small.photos_of(scene)].any() == held_out_scenes[scene]
    for scene in (19, 20):  # and that is what is read
        read = []
        watched = Scenes(photos, SMALL)
        watched._photo = lambda photo, read=read, watched=watched: read.append(photo) or Scenes._photo(watched, photo)
        watched.view(scene, 0)
        assert set(read) == set(watched.photos_of(scene)) and (19 in read) == (scene == 19)


def test_pieces_of_a_photo_share_no_pixel():
    numbered = torch.arange(3 * 70 * 90.0).reshape(3, 70, 90)
    pieces = scenes._pieces(numbered, 4)
    values = torch.cat([piece.flatten() for piece in pieces])
    assert len(pieces) == 16 and len(values.unique()) == len(values)


def test_labels_agree_with_reprojection(stored, small):
    source, drawn = ScenePairs(stored, small), []
    batch, choose = source.batch(16, np.random.default_rng(0)), source._overlapping
    source._overlapping = lambda scene, rng: drawn.append((scene, choose(scene, rng))) or drawn[-1][1]
    again = source.batch(16, np.random.default_rng(0))
    assert torch.equal(batch.target_B2N, again.target_B2N) and torch.equal(batch.keypoints_B2N2, again.keypoints_B2N2)
    matched = alone = unseen = 0
    for (scene, numbers), points, target in zip(drawn, again.keypoints_B2N2, again.target_B2N, strict=True):
        first, second = (small.camera(scene, n) for n in numbers)
        depth = 1 / cast(small.layout(scene).rectangles_K33, first, points[0]).inverse_depth_N.numpy()
        world = (lift(points[0].numpy(), depth, first.matrix) - first.translation) @ first.rotation
        landed = project(world @ second.rotation.T + second.translation, second.matrix)
        i = (target[0] >= 0).nonzero()[:, 0]
        off = np.linalg.norm(landed[i] - points[1][target[0][i]].numpy(), axis=1)
        assert (off < 3).all()
        matched += len(i)
        nobody = (target[0] == UNMATCHABLE).numpy()
        ahead = ~np.isnan(landed).any(axis=1)
        met = cast(small.layout(scene).rectangles_K33, second, torch.from_numpy(landed)).inverse_depth_N.numpy()
        depth1 = (world @ second.rotation.T + second.translation)[:, 2]
        inside = ahead & (landed >= -0.5).all(axis=1) & (landed < np.array(SMALL.size) - 0.5).all(axis=1)
        seen = inside & (np.abs(met * depth1 - 1) < 1e-3)
        apart = np.linalg.norm(landed[:, None] - points[1].numpy(), axis=2).min(axis=1)
        assert (apart[nobody & seen] > 5).all()
        alone, unseen = alone + int((nobody & seen).sum()), unseen + int((nobody & ~seen).sum())
    assert min(matched, alone, unseen) > 60


def test_a_store_goes_on_where_it_was_and_refuses_other_scenes(stored, photos, small):
    features, matrix = stored.features(2, 1)
    drawn = scene_views(small, Corners(), max_keypoints=150)
    alike, same_matrix = drawn.features(2, 1)
    assert torch.equal(features.keypoints, alike.keypoints) and np.array_equal(matrix, same_matrix)
    again = scene_views(small, Corners(), folder=stored.folder, per_scene=4, max_keypoints=150)
    assert 2 * 4 + 1 not in again.missing and len(again.missing) > 0
    with pytest.raises(InputError, match="Choose another folder"):
        scene_views(Scenes(photos, SMALL, seed=1), Corners(), folder=stored.folder, per_scene=4, max_keypoints=150)


def test_held_out_pairs_are_of_held_out_scenes(stored, small):
    training, validation = ScenePairs(stored, small), ScenePairs(stored, small, held_out=True)
    assert sorted([*training.numbers, *validation.numbers]) == list(range(40))
    assert validation.numbers.tolist() == [19, 39]
    assert len(validation.batch(3, np.random.default_rng(1))) == 3
    few = ScenePairs(stored, small, max_keypoints=20).batch(2, np.random.default_rng(1))
    assert few.keypoints_B2N2.shape == (2, 2, 20, 2)
    assert training.signature == SIGNATURE and len(training.digest) == 64


def test_what_makes_no_sense_is_refused(photos, small, stored, tmp_path):
    with pytest.raises(InputError, match="objects is 5 to 3"):
        SceneConfig(objects=(5, 3))
    with pytest.raises(InputError, match="no room"):
        SceneConfig(room_m=(1, 2))
    with pytest.raises(InputError, match="too large"):
        SceneConfig(objects=(3, 300))
    with pytest.raises(InputError, match="makes no sense"):
        SceneConfig(count=1)
    Image.linear_gradient("L").save(tmp_path / "one.png")
    with pytest.raises(InputError, match="at least 2"):
        Scenes(Photos(tmp_path))
    with pytest.raises(InputError, match="expected 60"):
        ScenePairs(stored, Scenes(photos, replace(SMALL, count=60)))
