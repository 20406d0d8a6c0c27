"""Maps for other programs, and projects of COLMAP as stores of ours."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isinglass.errors import InputError, WriteError
from isinglass.files import PathLike, write_atomically
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from isinglass.sfm.pairs import write_pairs
from isinglass.sfm.progress import Tell
from isinglass.sfm.store import FeatureStore, MatchStore, Pair, PairMatches
from isinglass.types import Features, Signature

ROOTSIFT, BARE = Signature(extractor="rootsift", weights="colmap"), Signature(extractor="colmap", weights="none")
_DIAMETERS = 2.0  # of a keypoint in COLMAP's scales, as OpenCV has its size
_A_PART = 64


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """How much was written, and where."""

    images: int
    pairs: int
    folder: Path


# ---- in


def import_project(
    database: PathLike,
    features_path: PathLike,
    matches_path: PathLike,
    *,
    verified: bool = False,
    tell: Tell = lambda done, of: None,
) -> Exchanged:
    """The features and matches of an existing COLMAP database as stores; the database is not changed.

    SIFT with descriptors is "rootsift", which is how COLMAP normalises it unless it is told otherwise: matchers for
    RootSIFT take it. Other features have no descriptors, and no matcher takes them. Scores are scales, by which COLMAP
    chooses keypoints, or 1.

    verified  only pairs with a two-view geometry, and of their matches those that agree with it

    Raises InputError for a file that is no database of this COLMAP or an earlier one, and for stores of other features.
    """
    with Project(database) as project:
        whole = bool(project.names) and all(project.descriptors(name) is not None for name in project.names)
        signature = ROOTSIFT if whole else BARE
        settings = "of a database of COLMAP"
        features = FeatureStore(features_path, signature, settings, half=False)
        digests: dict[str, str] = {}
        for start in range(0, len(project.names), _A_PART):
            part = {name: _features(project, name, signature) for name in project.names[start : start + _A_PART]}
            digests |= {name: _digest(one) for name, one in part.items()}
            features.add(part, digests)
            tell(start + len(part), len(project.names))
        features.merge()
        counts = project.inliers if verified else project.matched
        pairs = [pair for pair, count in counts.items() if count]
        matches = MatchStore(matches_path, signature, settings)
        matches.add({pair: _matches(project, pair, verified, features) for pair in pairs}, digests)
        matches.merge()
    return Exchanged(images=len(project.names), pairs=len(pairs), folder=Path(features_path).parent)


def _features(project: Project, name: str, signature: Signature) -> Features:
    rows, camera = project.rows(name), project.camera(name)
    count, scales, angles = len(rows), None, None
    if rows.shape[1] == 4:
        scales, angles = rows[:, 2], rows[:, 3]
    elif rows.shape[1] == 6:  # an affine shape: columns are where the axes of the unit circle go
        scales = np.sqrt(np.abs(rows[:, 2] * rows[:, 5] - rows[:, 3] * rows[:, 4]))
        angles = np.arctan2(rows[:, 4], rows[:, 2])
    descriptors = project.descriptors(name) if signature == ROOTSIFT else np.zeros((count, 0), np.uint8)
    assert descriptors is not None
    values = descriptors.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return Features(
        keypoints=torch.from_numpy(rows[:, :2].copy())[None],
        descriptors=torch.from_numpy(values)[None],
        scores=torch.ones(1, count) if scales is None else torch.from_numpy(scales.copy())[None],
        image_size=torch.tensor([[camera.width, camera.height]]),
        scales=None if scales is None else torch.from_numpy(_DIAMETERS * scales)[None],
        orientations=None if angles is None else torch.from_numpy(np.mod(angles, 2 * np.pi))[None],
        signature=signature,
    )


def _digest(features: Features) -> str:
    parts = (features.keypoints.numpy().tobytes(), features.descriptors.numpy().tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _matches(project: Project, pair: Pair, verified: bool, features: FeatureStore) -> PairMatches:
    indices = np.full(len(features.keypoints(pair[0])), -1, np.int32)
    found = project.matches(*pair, verified=verified)[::-1]  # of several of a keypoint the first one stays
    indices[found[:, 0]] = found[:, 1]
    return PairMatches(indices=indices, scores=(indices >= 0).astype(np.float32))


# ---- out


def export_pairs(source: PathLike, file: PathLike, *, verified: bool = True) -> int:
    """The pairs of a map or a COLMAP database, as a list of two names a line; gives how many.

    verified  those with a two-view geometry, else those with matches
    """
    with Project(_database_of(Path(source))) as project:
        counts = project.inliers if verified else project.matched
        pairs = [pair for pair, count in counts.items() if count]
    write_pairs(file, pairs)
    return len(pairs)


def export_hloc(source: PathLike, folder: PathLike) -> Exchanged:
    """features.h5, matches.h5 and pairs.txt for the tools of hloc, of a map or of a COLMAP database.

    Raises InputError where `source` is neither, WriteError where files cannot be written.
    """
    source, folder = Path(source), Path(folder)
    features_path, matches_path = folder / "features.h5", folder / "matches.h5"
    if source.is_dir():
        for name in ("features.h5", "matches.h5"):
            if not (source / name).is_file():
                raise InputError(f"there is no {name!r} in {str(source)!r}; expected a map or a database of COLMAP")
        with _written(folder):
            for store, path in (
                (FeatureStore(source / "features.h5"), features_path),
                (MatchStore(source / "matches.h5"), matches_path),
            ):
                store.merge()
                with write_atomically(path) as temporary:
                    shutil.copyfile(store.path, temporary)
    else:
        import_project(source, features_path, matches_path)
    pairs = list(MatchStore(matches_path))
    write_pairs(folder / "pairs.txt", pairs)
    return Exchanged(images=len(FeatureStore(features_path)), pairs=len(pairs), folder=folder)


def export_colmap(
    source: PathLike,
    folder: PathLike,
    *,
    photos: PathLike | None = None,
    cameras: CameraOptions | None = None,
    descriptors: bool = False,
) -> Exchanged:
    """A project of COLMAP: database.db, the models as sparse/0, sparse/1, ..., and image-list.txt.

    source       folder of a map; or of features.h5 and matches.h5 alone, whose matches are then not verified, and
                 `photos` and `cameras` say which cameras there are
    descriptors  also those of SIFT are put into the database

    A database that is there is added to. Raises InputError where `source` is no such folder, or the database there has
    other features; WriteError where files cannot be written.
    """
    source, folder = Path(source), Path(folder)
    if not (source / "features.h5").is_file():
        raise InputError(f"there is no 'features.h5' in {str(source)!r}; expected a map, or what `match-many` wrote")
    database, features = folder / "database.db", FeatureStore(source / "features.h5")
    matches = MatchStore(source / "matches.h5")
    if (source / "database.db").is_file():
        with Project(source / "database.db") as project:
            names = project.names
            given = _by_camera(project)
        if not database.exists():
            with write_atomically(database) as temporary:
                shutil.copyfile(source / "database.db", temporary)
    elif photos is None:
        raise InputError(f"{str(source)!r} has no database; give the folder of the photos, whose cameras are needed")
    else:
        names = list(features)
        given = cameras_of(photos, names, cameras or CameraOptions())
    written = write_database(database, features, matches, list(matches), given, descriptors=descriptors)
    with _written(folder):
        _export_models(source / "model", folder / "sparse")
    with write_atomically(folder / "image-list.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return Exchanged(images=written.images, pairs=written.pairs, folder=folder)


def _by_camera(project: Project) -> list[tuple[object, list[str]]]:
    groups: dict[int, tuple[object, list[str]]] = {}
    for name in project.names:
        camera = project.camera(name)
        groups.setdefault(camera.camera_id, (camera, []))[1].append(name)
    return list(groups.values())


def _export_models(model: Path, sparse: Path) -> None:
    places = [model, *sorted((one for one in model.glob("*") if one.is_dir()), key=lambda one: int(one.name))]
    for i, place in enumerate(one for one in places if (one / "cameras.bin").is_file()):
        (sparse / str(i)).mkdir(parents=True, exist_ok=True)
        for file in place.glob("*.bin"):
            with write_atomically(sparse / str(i) / file.name) as temporary:
                shutil.copyfile(file, temporary)


def _database_of(source: Path) -> Path:
    return source / "database.db" if source.is_dir() else source


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{str(folder)!r} cannot be written ({error}). Free space, or choose another folder"
        ) from error
