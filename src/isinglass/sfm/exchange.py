"""Maps for other programs, and projects of COLMAP as stores of ours."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from isinglass.errors import InputError
from isinglass.files import PathLike
from isinglass.files.folder import write_folder
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from isinglass.sfm.pairs import write_pairs
from isinglass.sfm.progress import Tell
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.store import FeatureStore, MatchStore, Pair, PairMatches
from isinglass.types import Features, Signature

ROOTSIFT, BARE = Signature(extractor="rootsift", weights="colmap"), Signature(extractor="colmap", weights="none")
_DIAMETERS = 2.0  # of a keypoint in COLMAP's scales, as OpenCV has its size
_A_PART = 64


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """How much was written, and where.

    kept  names of files in the folder that an earlier export wrote, that are not of the project of now, and that were
          not removed because somebody changed them
    """

    images: int
    pairs: int
    folder: Path
    kept: list[str] = field(default_factory=list)


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
    """Write features.h5, matches.h5 and pairs.txt for the tools of hloc, of a map or of a COLMAP database.

    Of a map the photos that it has now, and their pairs. What an earlier export wrote into the folder is replaced.
    Raises InputError where `source` is neither, or other files are in the way; WriteError where files cannot be
    written.
    """
    source, folder = Path(source), Path(folder)
    if source.is_dir():
        for name in ("features.h5", "matches.h5"):
            if not (source / name).is_file():
                raise InputError(f"there is no {name!r} in {str(source)!r}; expected a map or a database of COLMAP")
    with write_folder(folder) as making:
        features_path, matches_path = making.path / "features.h5", making.path / "matches.h5"
        if source.is_dir():
            _copy_stores(source, features_path, matches_path)
        else:
            import_project(source, features_path, matches_path)
        with MatchStore(matches_path) as matches, FeatureStore(features_path) as features:
            pairs, images = list(matches), len(features)
        write_pairs(making.path / "pairs.txt", pairs)
        for file in making.path.glob(".*.lock"):
            file.unlink()
    return Exchanged(images=images, pairs=len(pairs), folder=folder, kept=making.kept)


def _copy_stores(source: Path, features_path: Path, matches_path: Path) -> None:
    """Copy the stores of a map; without photos, and pairs of photos, that its database no longer has."""
    names: set[str] | None = None
    if (source / "database.db").is_file():
        with Project(source / "database.db") as project:
            names = set(project.names)
    with FeatureStore(source / "features.h5") as features, MatchStore(source / "matches.h5") as matches:
        features.merge()
        matches.merge()
        features.copy_to(features_path, [name for name in features if names is None or name in names])
        matches.copy_to(matches_path, [pair for pair in matches if names is None or names.issuperset(pair)])


def export_colmap(
    source: PathLike,
    folder: PathLike,
    *,
    photos: PathLike | None = None,
    cameras: CameraOptions | None = None,
    descriptors: bool = False,
) -> Exchanged:
    """Write a project of COLMAP: database.db, the models as sparse/0, sparse/1, ..., and image-list.txt.

    source       folder of a map; or of features.h5 and matches.h5 alone, whose matches are then not verified, and
                 `photos` and `cameras` say which cameras there are
    descriptors  also those of SIFT are put into the database

    Images have one number in the database and in all models. What an earlier export wrote into the folder is replaced
    by the project of now; those of its files that somebody has changed and that the project of now lacks are `kept`.
    Other files stay. Raises InputError where `source` is no such folder, its model is not of its database, or a file in
    the way is not ours or was changed; WriteError where files cannot be written.
    """
    source, folder = Path(source), Path(folder)
    if not (source / "features.h5").is_file():
        raise InputError(f"there is no 'features.h5' in {str(source)!r}; expected a map, or what `match-many` wrote")
    with (
        FeatureStore(source / "features.h5") as features,
        MatchStore(source / "matches.h5") as matches,
        write_folder(folder) as making,
    ):
        database, pairs = making.path / "database.db", list(matches)
        if (source / "database.db").is_file():
            with Project(source / "database.db") as project:
                names, pairs, given = project.names, list(project.matched), _by_camera(project)
            _copy_database(source / "database.db", database)
        elif photos is None:
            raise InputError(
                f"{str(source)!r} has no database; give the folder of the photos, whose cameras are needed"
            )
        else:
            names = list(features)
            given = cameras_of(photos, names, cameras or CameraOptions())
        written = write_database(database, features, matches, pairs, given, descriptors=descriptors)
        _export_models(source, making.path / "sparse", database)
        (making.path / "image-list.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return Exchanged(images=written.images, pairs=written.pairs, folder=folder, kept=making.kept)


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database with the log of changes beside it, which is then worked into the copy."""
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


def _by_camera(project: Project) -> list[tuple[object, list[str]]]:
    groups: dict[int, tuple[object, list[str]]] = {}
    for name in project.names:
        camera = project.camera(name)
        groups.setdefault(camera.camera_id, (camera, []))[1].append(name)
    return list(groups.values())


def _export_models(source: Path, sparse: Path, database: Path) -> None:
    """Copy the models of a map. Raises InputError where one has other images than the database."""
    model = source / "model"
    numbered = (place for place in model.glob("*") if place.is_dir() and place.name.isdecimal())
    places = [model, *sorted(numbered, key=lambda place: int(place.name))]
    with Project(database) as project:
        known = {project.image_id(name): name for name in project.names}
    for i, place in enumerate(place for place in places if (place / "cameras.bin").is_file()):
        images = {number: image.name for number, image in read_model(place).images.items()}
        if not images.items() <= known.items():
            raise InputError(
                f"the model {str(place)!r} has other images, or other numbers of them, than the database: a run was "
                "stopped between the two. Run `isinglass map` again, then export"
            )
        (sparse / str(i)).mkdir(parents=True)
        for file in place.glob("*.bin"):
            shutil.copyfile(file, sparse / str(i) / file.name)


def _database_of(source: Path) -> Path:
    return source / "database.db" if source.is_dir() else source
