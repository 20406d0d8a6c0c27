"""Posed images of a scene so simple that it can be said what is true: a wall, a board before it, a moving camera."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.datasets.covisible import covisible_indices
from isinglass.datasets.pairs import Depth, EvalPair, Pose
from isinglass.errors import InputError
from isinglass.geometry.camera import covisible
from isinglass.train.batch import IGNORED, UNMATCHABLE
from isinglass.train.colmap import arrays_of, load_megadepth
from isinglass.train.posed import PosedPairs, StoredFeatures, depth_of, load_rgbd, overlap_by_depth
from isinglass.types import Features, Signature

WIDTH, HEIGHT, FOCAL_PX = 160, 120, 100.0
CAMERA = np.array([[FOCAL_PX, 0, 79.5], [0, FOCAL_PX, 59.5], [0, 0, 1]])
WALL_M, BOARD_M = 4.0, 2.0
STEP_M = 0.4  # to the right from image to image: the wall moves left by 10 px, the board by 20
IMAGES = 12


class Known:
    """An extractor that finds the pixels of an image that are red, and counts the images that it saw."""

    signature = Signature(extractor="known")

    def __init__(self):
        self.seen = 0

    def extract(self, images, mask=None):
        self.seen += 1
        y, x = (images[0, 0] > 0.9).nonzero().T
        count = len(x)
        generator = torch.Generator().manual_seed(count)
        return Features(
            keypoints=torch.stack([x, y], dim=1).float()[None],
            descriptors=torch.randn(1, count, 4, generator=generator),
            scores=torch.linspace(1, 0, count)[None],
            image_size=torch.tensor([[images.shape[3], images.shape[2]]]),
            signature=self.signature,
        )


def depth_at(number):
    """(H, W) metres; the left upper corner is not known."""
    depth = np.full((HEIGHT, WIDTH), WALL_M)
    left = 120 - 20 * number
    depth[40:80, max(left, 0) : max(left + 30, 0)] = BOARD_M
    depth[:20, :20] = 0
    return depth


def keypoints_at(number, count=60):
    """(N, 2) px, some of the same points of the wall in every image."""
    rng = np.random.default_rng(number)
    shared = np.random.default_rng(99).integers([0, 0], [WIDTH + 10 * IMAGES, HEIGHT], (200, 2)) - [10 * number, 0]
    points = np.concatenate([shared, rng.integers([0, 0], [WIDTH, HEIGHT], (count, 2))])
    return points[((points >= 0) & (points < [WIDTH, HEIGHT])).all(axis=1)]


@pytest.fixture
def folder(tmp_path):
    """The layout of RGB-D, with every second pixel of depth."""
    return write_scene(tmp_path / "scene")


def write_scene(folder, step=2):
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    np.savetxt(folder / "K.txt", CAMERA)
    poses = []
    for number in range(IMAGES):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        x, y = keypoints_at(number).T
        pixels[y, x, 0] = 255
        pixels[0, 0, 1] = number  # no two files are the same
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        depth = (depth_at(number)[::step, ::step] * 1000).astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{number:03}.png")
        pose = np.eye(4)
        pose[0, 3] = STEP_M * number
        poses.append(" ".join([f"{number:03}", *map(str, pose.ravel())]))
    (folder / "poses.txt").write_text("\n".join(poses))
    return folder


def pairs_of(images, tmp_path, **options):
    extractor = options.pop("extractor", None) or Known()
    return PosedPairs(images, StoredFeatures(tmp_path / "features", extractor), **options)


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
    for number, text in enumerate([*expected, "a rotation", "4 x 4", "4 x 4", "could not convert"], start=1):
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


def test_an_image_that_cannot_be_decoded_or_has_no_depth_is_left_out(tmp_path, folder):
    file = folder / "images" / "003.png"
    file.write_bytes(file.read_bytes()[:-200])
    pairs = pairs_of(load_rgbd(folder), tmp_path)
    assert "003.png" in next(iter(pairs.problems.values()))
    assert [one.file.stem for one in pairs.images] == ["000", "001", "002", *(f"00{i}" for i in range(4, 10))]
    assert len(pairs.batch(3, np.random.default_rng(0))) == 3


def test_held_out_pairs_are_of_held_out_images(tmp_path, folder):
    images = load_rgbd(folder)
    learnt = pairs_of(images, tmp_path)
    held = pairs_of(images, tmp_path, overlap=(0.1, 0.95), held_out=True)
    assert [one.file.stem for one in held.images] == ["010", "011"]
    assert not {one.file for one in held.images} & {one.file for one in learnt.images}
    assert held.digest != learnt.digest


# ---- MegaDepth


@pytest.fixture
def megadepth(tmp_path, folder):
    """The same scene as published: HDF5, poses world-to-camera, cameras of COLMAP, and entries without a file."""
    h5py = pytest.importorskip("h5py")
    for number in range(IMAGES):
        with h5py.File(folder / "depth" / f"{number:03}.h5", "w") as file:
            file["depth"] = depth_at(number).astype(np.float32)
    count = IMAGES + 1
    images, depths, intrinsics, poses = (np.full(count, None, dtype=object) for _ in range(4))
    for number in range(IMAGES):
        row = number + (number > 3)  # of entry 4 there is nothing
        images[row], depths[row] = f"images/{number:03}.png", f"depth/{number:03}.h5"
        intrinsics[row] = CAMERA + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        poses[row] = np.eye(4)
        poses[row][0, 3] = -STEP_M * number
    overlap = np.random.default_rng(0).uniform(0.2, 0.6, (count, count))
    arrays = {"image_paths": images, "depth_paths": depths, "intrinsics": intrinsics, "poses": poses}
    arrays |= {"overlap_matrix": overlap, "n_matches": np.zeros(2)}
    np.savez(tmp_path / "scene.npz", **arrays)
    return tmp_path / "scene.npz", folder, arrays


def test_megadepth_as_published_is_the_same_scene(tmp_path, megadepth):
    file, root, arrays = megadepth
    found, rgbd = load_megadepth(file, root), load_rgbd(root)
    assert not found.problems
    for one, other in zip(found.images, rgbd.images, strict=True):
        assert one.file == other.file
        np.testing.assert_allclose(one.camera, other.camera)
        np.testing.assert_allclose(one.translation, other.translation)
        np.testing.assert_allclose(depth_of(one.depth)[::2, ::2], depth_of(other.depth), rtol=1e-6)
    assert found.overlap_NN[3, 4] == min(arrays["overlap_matrix"][3, 5], arrays["overlap_matrix"][5, 3])
    pairs = pairs_of(found, tmp_path)
    twin = pairs_of(load_rgbd(write_scene(tmp_path / "full", step=1), depth_step=1), tmp_path)
    np.testing.assert_array_equal(pairs.targets(2, 4)[0], twin.targets(2, 4)[0])
    assert len(pairs.batch(4, np.random.default_rng(0))) == 4


def test_broken_entries_of_megadepth_are_left_out_and_named(megadepth):
    h5py = pytest.importorskip("h5py")
    file, root, arrays = megadepth
    with h5py.File(root / "depth" / "000.h5", "w") as depth:
        depth["depth"] = np.ones((HEIGHT, WIDTH - 1), np.float32)
    with h5py.File(root / "depth" / "001.h5", "w") as depth:
        depth["other"] = np.ones((HEIGHT, WIDTH), np.float32)
    (root / "depth" / "002.h5").write_bytes(b"no HDF5")
    (root / "images" / "003.png").unlink()
    found = load_megadepth(file, root)
    assert [one.file.stem for one in found.images] == [f"{i:03}" for i in range(4, IMAGES)]
    assert list(found.problems) == [f"images/00{i}.png" for i in range(4)]
    for text, problem in zip(
        ("159 x 120", "no data set", "no data set", "cannot be read"), found.problems.values(), strict=True
    ):
        assert text in problem
    kept = arrays["overlap_matrix"][5:, 5:]
    np.testing.assert_array_equal(found.overlap_NN, np.minimum(kept, kept.T))


class Spy:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_scene_info_runs_no_code(tmp_path, megadepth):
    file, root, arrays = megadepth
    spied = arrays["poses"].copy()
    spied[0] = Spy(tmp_path / "spied")
    np.savez(file, **(arrays | {"poses": spied}))
    with pytest.raises(InputError, match="which may run code"):
        load_megadepth(file, root)
    assert not (tmp_path / "spied").exists()
    np.load(file, allow_pickle=True)["poses"][0].close()
    assert (tmp_path / "spied").exists()  # what it would have done


@pytest.mark.parametrize(
    ("protocol", "package"), [(2, b"numpy.core"), (3, b"numpy.core"), (3, b"numpy._core"), (4, None)]
)
def test_arrays_of_objects_are_read_as_numpy_reads_them(tmp_path, protocol, package):
    """Of other versions of NumPy and pickle, with numbers of either byte order, by rows and by columns."""
    rng = np.random.default_rng(0)
    values = np.empty(6, dtype=object)
    column = np.asfortranarray(rng.uniform(size=(3, 2)))
    values[:] = [None, "a/b.jpg", rng.uniform(size=(3, 3)), column, np.arange(300, dtype=">i4"), np.float32(0.1)]
    content = pickle.dumps(values, protocol=protocol)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (6,)})
    if protocol < 4:  # later ones have the length of a name before it
        content = content.replace(b"numpy._core", package).replace(b"numpy.core", package)
        assert package in content
    with zipfile.ZipFile(tmp_path / "one.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + content)
    (found,) = arrays_of(tmp_path / "one.npz", ["x"])
    assert found.shape == (6,) and found[0] is None
    for one, expected in zip(found[1:], values[1:], strict=True):
        np.testing.assert_array_equal(one, expected)


def test_a_scene_info_that_lacks_an_array_or_has_another_shape(tmp_path, megadepth):
    file, root, arrays = megadepth
    np.savez(file, **{name: value for name, value in arrays.items() if name != "overlap_matrix"})
    with pytest.raises(InputError, match="overlap_matrix"):
        load_megadepth(file, root)
    np.savez(file, **(arrays | {"overlap_matrix": np.ones((3, 3))}))
    with pytest.raises(InputError, match=r"\(3, 3\)"):
        load_megadepth(file, root)
    with pytest.raises(InputError, match="cannot be read"):
        load_megadepth(tmp_path / "nowhere.npz", root)


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
