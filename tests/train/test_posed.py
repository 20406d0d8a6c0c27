"""Posed images of a scene so simple that it can be said what is true: a wall, a board before it, a moving camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.datasets.covisible import covisible_indices
from isinglass.datasets.pairs import Depth, EvalPair, Pose
from isinglass.errors import InputError
from isinglass.files.npz import read_npz
from isinglass.geometry.camera import covisible
from isinglass.train.batch import IGNORED, UNMATCHABLE
from isinglass.train.posed import depth_of, load_rgbd, overlap_by_depth
from posed_scene import (
    CAMERA,
    HEIGHT,
    IMAGES,
    STEP_M,
    WIDTH,
    Known,
    depth_at,
    keypoints_at,
    pairs_of,
    write_scene,
)


@pytest.fixture
def folder(tmp_path):
    """The layout of RGB-D, with every second pixel of depth."""
    return write_scene(tmp_path / "scene")


def test_an_rgbd_folder_is_read_with_poses_turned_about(folder):
    found = load_rgbd(folder)
    assert len(found.images) == IMAGES and not found.problems
    third = found.images[2]
    np.testing.assert_allclose(third.camera, CAMERA)
    np.testing.assert_allclose(third.rotation @ [2 * STEP_M, 0, 0] + third.translation, 0, atol=1e-12)
    np.testing.assert_allclose(depth_of(third.depth), depth_at(2)[::2, ::2], rtol=1e-6)
    rotation, translation = found.images[0].pose_to(third)
    np.testing.assert_allclose(rotation, np.eye(3))
    np.testing.assert_allclose(translation, [-2 * STEP_M, 0, 0])


def test_a_turned_camera_lands_its_points_where_they_are(tmp_path, folder):
    """camera-to-world of the file: a point of the world is at one place by both images."""
    angle = 0.3
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    lines = (folder / "poses.txt").read_text().splitlines()
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, [1.0, 0.2, -0.5]
    (folder / "poses.txt").write_text("\n".join([lines[0], " ".join(["001", *map(str, pose.ravel())])]))
    first, second = load_rgbd(folder).images
    rotation, translation = second.pose_to(first)
    local = np.array([0.1, -0.2, 3.0])
    np.testing.assert_allclose(rotation @ local + translation, turn @ local + pose[:3, 3])


def test_broken_entries_are_left_out_and_named(folder):
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint16)).save(folder / "depth" / "001.png")
    (folder / "images" / "002.png").unlink()
    (folder / "images" / "003.png").write_bytes(b"no image")
    (folder / "depth" / "004.png").unlink()
    lines = (folder / "poses.txt").read_text().splitlines()
    lines[5] = lines[5].replace("1.0", "2.0")
    lines[6] = " ".join(lines[6].split()[:-1])
    lines[7] = lines[7].replace("0.0", "nan")
    lines[8] = lines[8].replace("0.0", "x", 1)
    (folder / "poses.txt").write_text("\n".join(lines))
    found = load_rgbd(folder)
    assert [one.file.stem for one in found.images] == ["000", "009", "010", "011"]
    assert sorted(found.problems) == [f"00{number}" for number in range(1, 9)]
    expected = ["160 x 120 px; expected 80 x 60", "does not exist", "cannot be read", "cannot be read"]
    for number, text in enumerate([*expected, "a rotation", "4 x 4", "4 x 4", "expected 4 x 4"], start=1):
        assert text in found.problems[f"00{number}"], found.problems[f"00{number}"]


def test_what_is_no_folder_or_has_nothing_to_use(tmp_path, folder):
    with pytest.raises(InputError, match="does not exist"):
        load_rgbd(tmp_path / "nowhere")
    (folder / "poses.txt").write_text("nothing 1 2 3\n")
    with pytest.raises(InputError, match=r"no image of .* can be used.*nothing"):
        load_rgbd(folder)


def test_overlap_is_the_share_that_is_seen(folder):
    """Against all pixels of the whole maps: the grid has 24 columns, so it may be off by one of them."""
    images = load_rgbd(folder).images
    overlap = overlap_by_depth(images, 0.0)
    np.testing.assert_array_equal(overlap, overlap.T)
    assert overlap[0, 1] > overlap[0, 3] > overlap[0, 6] > overlap[0, 11] > 0
    for i, j in ((0, 1), (2, 5), (1, 9)):
        x, y = np.meshgrid(np.arange(0, WIDTH, 2), np.arange(0, HEIGHT, 2))
        grid = np.stack([x, y], axis=-1).reshape(-1, 2)
        shares = []
        for one, other in ((i, j), (j, i)):
            pose = np.eye(3), np.array([-STEP_M * (other - one), 0, 0])
            grid_known = grid[depth_at(one)[grid[:, 1], grid[:, 0]] > 0]
            seen = covisible(grid_known, depth_at(one), depth_at(other), (CAMERA, CAMERA), pose)
            shares.append(seen.visible.mean())
        assert overlap[i, j] == pytest.approx(min(shares), abs=1 / 24)


def test_labels_are_those_of_the_twin(tmp_path, folder):
    """Both directions, of all pairs, against `covisible_indices` on the same files."""
    images = load_rgbd(folder)
    pairs = pairs_of(images, tmp_path, overlap=(0.05, 0.95))
    kinds = set()
    for i, j in ((0, 1), (4, 1), (2, 7), (3, 4)):
        found = [one.numpy() for one in pairs.targets(i, j)]
        for (a, b), target in zip(((i, j), (j, i)), found, strict=True):
            one, other = pairs.images[a], pairs.images[b]
            pose = Pose(rotation=np.eye(3), translation=np.array([-STEP_M * (b - a), 0, 0]))
            pair = EvalPair(
                name="twin",
                image0=one.file,
                image1=other.file,
                pose=pose,
                camera0=CAMERA,
                camera1=CAMERA,
                depth0=one.depth,
                depth1=other.depth,
            )
            keypoints = [pairs.features.get(view.file).keypoints[0].numpy() for view in (one, other)]
            np.testing.assert_array_equal(target, covisible_indices(pair, *keypoints))
            kinds |= set(np.minimum(target, 0).tolist())
    assert kinds == {0, UNMATCHABLE, IGNORED}


def test_a_point_of_the_wall_one_of_the_board_and_one_behind_it(tmp_path, folder):
    """By hand: the wall moves 10 px left, the board 20; what it hides has no match."""
    points = {0: [(100, 30), (130, 60), (119, 60), (10, 10), (5, 100)], 1: [(90, 30), (110, 60), (109, 60), (1, 10)]}
    for number, at in points.items():
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[tuple(np.array(at)[:, ::-1].T)] = [255, number, 0]
        Image.fromarray(pixels).save(folder / "images" / f"00{number}.png")
    pairs = pairs_of(load_rgbd(folder), tmp_path)
    order = [pairs.features.get(pairs.images[i].file).keypoints[0].long().tolist() for i in (0, 1)]
    target = dict(zip(map(tuple, order[0]), pairs.targets(0, 1)[0].tolist(), strict=True))
    index = {tuple(point): i for i, point in enumerate(order[1])}
    assert target[100, 30] == index[90, 30]
    assert target[130, 60] == index[110, 60]
    assert target[119, 60] == UNMATCHABLE  # at (109, 60) the board, from 100 to 129, is before the wall
    assert target[10, 10] == IGNORED  # of unknown depth
    assert target[5, 100] == UNMATCHABLE  # leaves the image


def test_a_batch_is_a_function_of_its_random_numbers(tmp_path, folder):
    pairs = pairs_of(load_rgbd(folder), tmp_path)
    first, again, other = (pairs.batch(6, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name, value in first.tensors().items():
        assert value is None or torch.equal(value, again.tensors()[name])
    assert not torch.equal(first.keypoints_B2N2[:, :, :9], other.keypoints_B2N2[:, :, :9])
    assert len(first) == 6 and (first.target_B2N >= 0).any(dim=(1, 2)).all()
    matched = first.target_B2N[:, 0] >= 0
    for b in range(6):
        index = first.target_B2N[b, 0, matched[b]]
        assert first.target_B2N[b, 1, index].tolist() == matched[b].nonzero()[:, 0].tolist()


def test_images_are_extracted_once_and_overlap_is_kept(tmp_path, folder, monkeypatch):
    images, extractor = load_rgbd(folder), Known()
    pairs = pairs_of(images, tmp_path, extractor=extractor)
    assert extractor.seen == len(pairs.images) == 10
    damaged = sorted((tmp_path / "features").glob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    monkeypatch.setattr("isinglass.train.posed.overlap_by_depth", lambda *_: pytest.fail("found again"))
    again = pairs_of(images, tmp_path, extractor=extractor)
    assert again.digest == pairs.digest and extractor.seen == 10
    for i in range(10):
        keypoints = again.features.get(again.images[i].file).keypoints[0].long().tolist()
        assert sorted(map(tuple, keypoints)) == sorted(set(map(tuple, keypoints_at(i).tolist())))
    assert extractor.seen == 11  # the damaged one
    overlap = next((tmp_path / "features").glob("overlap-*.npz"))
    whole, content = read_npz(overlap)["overlap_NN"], bytearray(overlap.read_bytes())
    content[200] ^= 1
    overlap.write_bytes(content)
    monkeypatch.undo()
    pairs_of(images, tmp_path, extractor=extractor)
    np.testing.assert_array_equal(read_npz(overlap)["overlap_NN"], whole)


def test_an_image_that_cannot_be_decoded_or_has_no_depth_is_left_out(tmp_path, folder):
    file = folder / "images" / "003.png"
    file.write_bytes(file.read_bytes()[:-200])
    pairs = pairs_of(load_rgbd(folder), tmp_path)
    assert "003.png" in next(iter(pairs.problems.values()))
    assert [one.file.stem for one in pairs.images] == ["000", "001", "002", *(f"00{i}" for i in range(4, 10))]
    assert len(pairs.batch(3, np.random.default_rng(0))) == 3


def test_a_depth_map_with_other_content_has_another_overlap(tmp_path, folder, monkeypatch):
    """The new map has the same name and size, yet the overlap of the old one is not used for it."""
    images = load_rgbd(folder)
    before = pairs_of(images, tmp_path, overlap=(0.0, 1.0))
    kept = set((tmp_path / "features").glob("overlap-*.npz"))
    depth = images.images[0].depth.file
    size = depth.stat().st_size
    content = np.array(Image.open(depth))
    Image.fromarray(content[:, ::-1].copy()).save(depth)
    with depth.open("ab") as file:
        file.write(b"\0" * max(0, size - depth.stat().st_size))
    after = pairs_of(load_rgbd(folder), tmp_path, overlap=(0.0, 1.0))
    assert len(set((tmp_path / "features").glob("overlap-*.npz"))) == len(kept) + 1
    assert len(before.images) == len(after.images)


def test_a_depth_map_that_goes_bad_in_the_middle_is_passed_over(tmp_path, folder, caplog):
    """Pairs of the other images are drawn; where none is left, the run ends with the reason."""
    pairs = pairs_of(load_rgbd(folder), tmp_path, overlap=(0.0, 1.0))
    pairs.images[0].depth.file.write_bytes(b"gone")
    assert len(pairs.batch(8, np.random.default_rng(0))) == 8
    assert "a pair is left out" in caplog.text
    for image in pairs.images:
        image.depth.file.write_bytes(b"gone")
    pairs._sight.cache_clear()
    with pytest.raises(InputError, match="hardly any pair"):
        pairs.batch(8, np.random.default_rng(1))


def test_held_out_pairs_are_of_held_out_images(tmp_path, folder):
    images = load_rgbd(folder)
    learnt = pairs_of(images, tmp_path)
    held = pairs_of(images, tmp_path, overlap=(0.1, 0.95), held_out=True)
    assert [one.file.stem for one in held.images] == ["010", "011"]
    assert not {one.file for one in held.images} & {one.file for one in learnt.images}
    assert held.digest != learnt.digest


# ---- MegaDepth


@pytest.mark.shared
def test_real_images_overlap_and_agree_where_they_match(tmp_path, shared):
    """Frames of a hand-held camera: neighbours overlap most, and points moved by depth and pose look alike."""
    found = load_rgbd(shared / "data" / "train" / "hololens")
    assert len(found.images) == 373 and not found.problems
    images = found.images[100:112]
    overlap = overlap_by_depth(images, 0.0)
    near, far = (np.median(overlap.diagonal(apart)) for apart in (1, 8))
    assert near > 0.6 and far < 0.6
    one, other = images[0], images[2]
    assert isinstance(one.depth, Depth) and isinstance(other.depth, Depth)
    grid = np.stack(np.meshgrid(np.arange(40, 500, 6), np.arange(40, 320, 6)), axis=-1).reshape(-1, 2)
    seen = covisible(
        grid, depth_of(one.depth), depth_of(other.depth), (one.camera, other.camera), one.pose_to(other), steps=(2, 2)
    )
    grey = [np.asarray(Image.open(view.file).convert("L"), float) for view in (one, other)]
    from_x, from_y = grid[seen.visible].T
    to_x, to_y = seen.points[seen.visible].round().astype(int).clip(0, [539, 359]).T
    assert seen.visible.sum() > 500
    assert np.corrcoef(grey[0][from_y, from_x], grey[1][to_y, to_x])[0, 1] > 0.9
    assert np.corrcoef(grey[0][from_y, from_x], grey[1][from_y, from_x])[0, 1] < 0.6


@pytest.mark.parametrize(
    "text", ["5./etc/passwd 0 80 0 100 60 0 0 1", "1 2 3", "nan 0 80 0 100 60 0 0 1", "", "\x10" * 5000]
)
def test_intrinsics_that_are_no_numbers(tmp_path, text):
    folder = write_scene(tmp_path / "scene")
    (folder / "K.txt").write_text(text)
    with pytest.raises(InputError, match=r"K\.txt.* expected 3 x 3 finite numbers") as caught:
        load_rgbd(folder)
    assert len(str(caught.value)) < 2200
