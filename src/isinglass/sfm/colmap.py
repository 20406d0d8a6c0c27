"""COLMAP's database, by pycolmap's own classes: features and matches into one, and out of an existing one.

COLMAP has (0.5, 0.5) at the centre of the top-left pixel. That half pixel is added and taken off here and nowhere else:
to keypoints and to principal points. A model's own points and poses need none of it.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.datasets.posed import COLMAP_CENTRE
from isinglass.errors import InputError, WriteError
from isinglass.files import PathLike, write_atomically
from isinglass.files.colmap_database import check_colmap_database
from isinglass.sfm.colmap_log import quiet
from isinglass.sfm.options import check_camera, pycolmap_module
from isinglass.sfm.store import FeatureStore, MatchStore, Pair

_SQLITE = b"SQLite format 3\x00"
_VERSION_AT = 60  # byte of the file that COLMAP keeps its version at, as a big-endian number of four bytes
_BESIDE = ("-wal", "-shm")  # the log of changes, which is gone when the file is closed, and its index
_SAME_PX = 1e-3
MADE = (  # for `contents_of`: what `write_database` writes, cameras aside
    "SELECT image_id, name FROM images ORDER BY image_id",
    "SELECT image_id, rows FROM keypoints ORDER BY image_id",
    "SELECT pair_id, rows FROM matches ORDER BY pair_id",
)
VERIFIED = ("SELECT pair_id, rows, config FROM two_view_geometries ORDER BY pair_id",)


# ---- writing


@dataclass(frozen=True, kw_only=True)
class Written:
    """How many images and pairs are in a database, and its matches all together."""

    images: int
    pairs: int
    matches: int


def write_database(
    path: PathLike,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Iterable[Pair],
    cameras: Sequence[tuple[Any, Sequence[str]]],
    *,
    descriptors: bool = False,
) -> Written:
    """Write keypoints and matches as a database of COLMAP; matches are not verified yet.

    cameras      each `pycolmap.Camera` and the names of its images, see `cameras.cameras_of`; only these are written
    pairs        in either order; those without matches are left out
    descriptors  also those of "sift" and "rootsift", as COLMAP's own matcher takes them

    A database that is there is added to, in one step: its images, cameras and other pairs stay as they are.
    Raises InputError where it cannot be read, is of a later COLMAP, or has other keypoints of an image; WriteError
    where it cannot be written.
    """
    path = Path(path)
    if path.exists():
        Project(path).close()  # which says what is wrong with it
        if _log_of(path).exists():  # of a process that was killed: what it says must not be put into the new file
            Project(path, in_place=True).close()
    else:
        remove_database(path)
    with write_atomically(path) as temporary:
        try:
            if path.exists():
                shutil.copyfile(path, temporary)
            with quiet(), closing(pycolmap_module().Database.open(temporary)) as database:
                return _fill(database, features, matches, list(pairs), cameras, descriptors)
        except RuntimeError as error:
            raise WriteError(
                f"{str(path)!r} cannot be written ({error}); it is as it was. Free space, or choose another path"
            ) from error
        finally:
            for suffix in _BESIDE:
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def remove_database(path: PathLike) -> None:
    """With the log of changes that a process which was killed leaves beside it."""
    path = Path(path)
    for suffix in (*_BESIDE, ""):  # a log without its file would be taken for that of the next one
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def contents_of(path: PathLike, *queries: str) -> str:
    """Return a hash of what queries find in a database: names, numbers and counts, not the long rows themselves.

    "damaged" for a file that is missing or cannot be read.
    """
    hashed = hashlib.sha256()
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True)) as database:
            for query in queries:
                for row in database.execute(query):
                    hashed.update(repr(row).encode())
    except sqlite3.Error:
        return "damaged"
    return hashed.hexdigest()


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_BESIDE[0]}")


def _fill(
    database: Any,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Sequence[Pair],
    cameras: Sequence[tuple[Any, Sequence[str]]],
    descriptors: bool,
) -> Written:
    there = {image.name: image.image_id for image in database.read_all_images()}
    names = [name for _, group in cameras for name in group]
    for name in names:
        if name in there:
            _check_same(database, there[name], features.keypoints(name), name)
    with pycolmap_module().DatabaseTransaction(database):
        for camera, group in cameras:
            new = [name for name in group if name not in there]
            if new:
                there |= _write_camera(database, camera, new)
        for name in names:
            _write_features(database, there[name], features, name, descriptors)
        written, count = _write_matches(database, there, matches, pairs)
    return Written(images=len(names), pairs=written, matches=count)


def _write_camera(database: Any, camera: Any, names: Sequence[str]) -> dict[str, int]:
    """A camera, its images, and what COLMAP 4 wants beside them: a rig of the camera alone, a frame an image."""
    colmap = pycolmap_module()
    camera.camera_id = database.write_camera(camera)
    rig = colmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    rig_id, ids = database.write_rig(rig), {}
    for name in names:
        image = colmap.Image(name=name, camera_id=camera.camera_id)
        image.image_id = ids[name] = database.write_image(image)
        frame = colmap.Frame()
        frame.rig_id = rig_id
        frame.add_data_id(image.data_id)
        database.write_frame(frame)
    return ids


def _write_features(database: Any, image_id: int, features: FeatureStore, name: str, descriptors: bool) -> None:
    if not database.exists_keypoints(image_id):
        database.write_keypoints(image_id, features.keypoints(name) + np.float32(COLMAP_CENTRE))
    if descriptors and not database.exists_descriptors(image_id):
        if features.signature.extractor not in ("sift", "rootsift"):
            raise InputError(f"COLMAP has no place for descriptors of {features.signature.extractor}, only for SIFT's")
        colmap, values = pycolmap_module(), features.get(name).descriptors[0].float().numpy()
        data = np.clip(np.round(512 * values), 0, 255).astype(np.uint8)
        database.write_descriptors(
            image_id, colmap.FeatureDescriptors(type=colmap.FeatureExtractorType.SIFT, data=data)
        )


def _write_matches(database: Any, ids: dict[str, int], matches: MatchStore, pairs: Sequence[Pair]) -> tuple[int, int]:
    written = count = 0
    for name0, name1 in pairs:
        swapped = (name0, name1) not in matches and (name1, name0) in matches
        first, second = (name1, name0) if swapped else (name0, name1)
        if (first, second) not in matches or not {first, second} <= set(ids):
            continue
        found = matches.get(first, second).pairs().astype(np.uint32)
        if not len(found):
            continue
        if database.exists_matches(ids[first], ids[second]):
            if np.array_equal(np.asarray(database.read_matches(ids[first], ids[second])), found):
                written, count = written + 1, count + len(found)
                continue
            database.delete_matches(ids[first], ids[second])
            if database.exists_two_view_geometry(ids[first], ids[second]):
                database.delete_two_view_geometry(ids[first], ids[second])
        database.write_matches(ids[first], ids[second], found)
        written, count = written + 1, count + len(found)
    return written, count


def _check_same(database: Any, image_id: int, keypoints_N2: np.ndarray, name: str) -> None:
    if not database.exists_keypoints(image_id):
        return
    there = np.asarray(database.read_keypoints(image_id))[:, :2] - np.float32(COLMAP_CENTRE)
    if there.shape != keypoints_N2.shape or not np.allclose(there, keypoints_N2, rtol=0, atol=_SAME_PX):
        raise InputError(
            f"the database has {len(there)} other keypoints of {name!r}; expected the {len(keypoints_N2)} that were "
            "matched. Matches count keypoints, so both must be of one extraction: give another path"
        )


def camera_of(model: str, size: tuple[int, int], params: Sequence[float]) -> Any:
    """The `pycolmap.Camera` of known intrinsics.

    model   as COLMAP names it: "PINHOLE", "OPENCV_FISHEYE", ...
    size    (width, height) px
    params  in COLMAP's order (of PINHOLE: fx, fy, cx, cy), but with the principal point in this library's pixels, where
            (0, 0) is the centre of the top-left one

    Raises InputError for an unknown model, and for parameters that cannot be its.
    """
    check_camera(model, tuple(params))
    colmap = pycolmap_module()
    camera = colmap.Camera.create_from_model_name(0, model, float(max(size)), *size)
    values = np.array(params, np.float64)
    values[list(camera.principal_point_idxs())] += COLMAP_CENTRE
    camera.params = values
    camera.has_prior_focal_length = True
    return camera


# ---- reading


class Project:
    """An existing database of COLMAP, to read from a copy: COLMAP writes to files that it opens, and old ones anew.

    names    of its images, in the order of their ids
    matched  how many matches each pair has, as they were matched; pairs and the names in each are sorted
    inliers  how many agree with the pair's two-view geometry, of all pairs that were verified; 0 = there is none

    in_place  read the file itself, which only a database of this COLMAP's version takes well

    Raises InputError for a file that is none, or of a later COLMAP. To be used in a `with` statement, or to be closed.
    """

    def __init__(self, path: PathLike, *, in_place: bool = False) -> None:
        self.path = Path(path)
        _check_version(self.path)
        with ExitStack() as stack, quiet():
            file = self.path
            if not in_place:
                file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isinglass-"))) / "database.db"
                for suffix in ("", _BESIDE[0]):
                    with suppress(FileNotFoundError):
                        shutil.copyfile(f"{self.path}{suffix}", f"{file}{suffix}")
            check_colmap_database(file, self.path)
            self._database = _open(file, self.path)
            stack.callback(self._database.close)
            with self._reading("its tables"):
                self._read_tables()
            self._open = stack.pop_all()

    def _read_tables(self) -> None:
        images = self._database.read_all_images()
        self._ids = {image.name: image.image_id for image in images}
        self._camera_of = {image.name: image.camera_id for image in images}
        self._cameras = {camera.camera_id: camera for camera in self._database.read_all_cameras()}
        name_of = {image_id: name for name, image_id in self._ids.items()}
        self.names = sorted(self._ids, key=self._ids.__getitem__)
        self.matched = self._counts(name_of, *self._database.read_num_matches())
        ids, geometries = self._database.read_two_view_geometries()
        found = self._counts(name_of, ids, [len(one.inlier_matches) for one in geometries])
        tried = [pair for pair in self.matched if pair not in found and self._has_geometry(*pair)]
        self.inliers = dict(sorted({**found, **dict.fromkeys(tried, 0)}.items()))

    @contextmanager
    def _reading(self, what: object) -> Iterator[None]:
        """Raise InputError for whatever COLMAP makes of damaged rows."""
        try:
            yield
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
            raise InputError(
                f"{what} of the database {str(self.path)!r} cannot be read ({error or type(error).__name__}): it is "
                "damaged. Copy it again, or make it anew"
            ) from error

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._open.close()

    def image_id(self, name: str) -> int:
        """The number of an image. Raises InputError where there is no such image."""
        return self._id(name)

    def camera(self, name: str) -> Any:
        """The `pycolmap.Camera` of an image, in COLMAP's pixels."""
        with self._reading(f"the camera of {name!r}"):
            return self._cameras[self._camera_of[name]]

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) float32 px, this library's."""
        return self.rows(name)[:, :2]

    def rows(self, name: str) -> np.ndarray:
        """(N, 2, 4 or 6) float32: x and y, this library's px, then scale and orientation, or COLMAP's affine shape."""
        image_id = self._id(name)
        if not self._database.exists_keypoints(image_id):
            return np.zeros((0, 2), np.float32)
        with self._reading(f"keypoints of {name!r}"):
            rows = np.array(self._database.read_keypoints(image_id), np.float32)
        rows[:, :2] -= np.float32(COLMAP_CENTRE)
        return rows

    def descriptors(self, name: str) -> np.ndarray | None:
        """(N, 128) uint8 of SIFT; None where there are none, or others."""
        image_id, colmap = self._id(name), pycolmap_module()
        if not self._database.exists_descriptors(image_id):
            return None
        with self._reading(f"descriptors of {name!r}"):
            found = self._database.read_descriptors(image_id)
            return np.array(found.data, np.uint8) if found.type == colmap.FeatureExtractorType.SIFT else None

    def matches(self, name0: str, name1: str, *, verified: bool = False) -> np.ndarray:
        """(M, 2) int32, (keypoint of `name0`, keypoint of `name1`); `verified`: only those of the geometry found."""
        id0, id1 = self._id(name0), self._id(name1)
        with self._reading(f"matches of {name0!r} and {name1!r}"):
            if verified:
                found = self._database.read_two_view_geometry(id0, id1).inlier_matches
            else:
                found = self._database.read_matches(id0, id1)
            return np.array(found, np.int32).reshape(-1, 2)

    def colmap_points(self, name: str) -> np.ndarray:
        """(N, 2) float64 in COLMAP's pixels, as its cameras take them."""
        return self.keypoints(name).astype(np.float64) + COLMAP_CENTRE

    def write_geometry(self, name0: str, name1: str, geometry: Any) -> None:
        """Keep a `pycolmap.TwoViewGeometry`, in the file itself if `in_place`."""
        self._database.write_two_view_geometry(self._id(name0), self._id(name1), geometry)

    def _has_geometry(self, name0: str, name1: str) -> bool:
        return self._database.exists_two_view_geometry(self._ids[name0], self._ids[name1])

    def _id(self, name: str) -> int:
        if name not in self._ids:
            raise InputError(f"there is no image {name!r} in {str(self.path)!r}, which has {len(self._ids)}")
        return self._ids[name]

    @staticmethod
    def _counts(name_of: dict[int, str], pair_ids: Sequence[int], counts: Sequence[int]) -> dict[Pair, int]:
        to_pair = pycolmap_module().pair_id_to_image_pair
        found: dict[Pair, int] = {}
        for pair_id, count in zip(pair_ids, counts, strict=True):
            one, other = sorted(name_of[image_id] for image_id in to_pair(pair_id))
            found[one, other] = int(count)
        return dict(sorted(found.items()))


def seen_in(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints of a model's image: (N, 2) float64 px, this library's, and (N,) bool, which see a point of it."""
    points = [(*one.xy, one.has_point3D()) for one in image.points2D]
    values = np.array(points, np.float64).reshape(-1, 3)
    return values[:, :2] - COLMAP_CENTRE, values[:, 2] > 0


# ---- files


def _open(path: Path, shown: Path) -> Any:
    try:
        return pycolmap_module().Database.open(path)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{str(shown)!r} cannot be opened as a database of COLMAP: it is damaged, of another program, or the disk "
            "is full. Free space, give another path, or make it again"
        ) from error


def _check_version(path: Path) -> None:
    """Raises InputError unless pycolmap can read the file as it is, or knows how to bring it up to date."""
    try:
        with path.open("rb") as opened:
            head = opened.read(_VERSION_AT + 4)
    except OSError as error:
        raise InputError(f"the database {str(path)!r} cannot be read ({error}). Check the path") from error
    if not head.startswith(_SQLITE):
        raise InputError(f"{str(path)!r} is no database of COLMAP, which is an SQLite file. Check the path")
    found, ours = int.from_bytes(head[_VERSION_AT:], "big"), pycolmap_module().__version__
    known = sum(int(part) * 100 ** (3 - i) for i, part in enumerate(ours.split(".")[:3]))
    if not found:
        raise InputError(f"{str(path)!r} is an SQLite file of another program; expected a database of COLMAP")
    if found > known:
        made = f"{found // 10**6}.{found // 10**4 % 100}.{found // 100 % 100}"
        raise InputError(
            f"{str(path)!r} was written by COLMAP {made}, later than the {ours} of pycolmap here. Update it: "
            "pip install -U pycolmap"
        )
