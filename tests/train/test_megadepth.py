"""MegaDepth as D2-Net's code prepares it: read without running anything in it."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest

from isinglass.errors import InputError
from isinglass.train import start
from isinglass.train.megadepth import arrays_of, load_megadepth
from isinglass.train.posed import depth_of, load_rgbd
from isinglass.train.recipes import recipe
from isinglass.train.start import Data
from posed_scene import (
    CAMERA,
    HEIGHT,
    IMAGES,
    STEP_M,
    WIDTH,
    depth_at,
    pairs_of,
    write_scene,
)


@pytest.fixture
def folder(tmp_path):
    """The layout of RGB-D, with every second pixel of depth."""
    return write_scene(tmp_path / "scene")


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


def test_a_posed_recipe_learns_from_megadepth_alone(tmp_path, megadepth):
    pytest.importorskip("cv2")
    file, root, _ = megadepth
    (root / "scene_info").mkdir()
    file.rename(root / "scene_info/0001.npz")
    pairs = start.pairs_of(recipe("lightglue-sift-posed-small"), Data(megadepth=root), tmp_path / "store", device="cpu")
    assert not pairs.problems
    batch = pairs.source.batch(4, np.random.default_rng(0))
    assert batch.scale_orientation_B2N2 is not None and len(batch) == 4
    assert pairs.source.digest != pairs.validation.digest
    with pytest.raises(InputError, match="no scene_info"):
        start.pairs_of(recipe("lightglue-sift-posed-small"), Data(megadepth=tmp_path / "store"), tmp_path, device="cpu")


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
        ("159 x 120", "no data set", "no data set", "does not exist"), found.problems.values(), strict=True
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
