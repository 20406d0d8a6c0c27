"""Targets that read files, our own and those of other programs."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch

from isinglass.datasets.homography import read_homography
from isinglass.datasets.posed import load_superglue_pairs
from isinglass.errors import InputError, IsinglassError
from isinglass.eval.runs import load_run, save_run
from isinglass.extractors.aliked import ALIKED
from isinglass.files import load_features, load_matches, save_features, save_matches
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.nearest import Nearest
from isinglass.matchers.superglue import SuperGlue
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from isinglass.sfm.landmarks import Landmarks
from isinglass.sfm.pairs import covisible, read_pairs, write_pairs
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.train.megadepth import load_megadepth
from isinglass.train.posed import load_rgbd
from isinglass.weights.checkpoint import TrainingState, read_training_state, save_checkpoint
from mapped_scene import MappedScene
from posed_scene import write_scene
from support import make_pair

from .mutate import mutate
from .target import OTHER, REFUSED, SAME, Fault, FileTarget


def equal(found: Any, whole: Any) -> bool:
    """Whether two results are the same, down to the numbers of their arrays; NaN equals NaN."""
    if isinstance(whole, torch.Tensor):
        found, whole = found.detach().numpy(), whole.detach().numpy()
    if isinstance(whole, np.ndarray):
        return found.dtype == whole.dtype and np.array_equal(found, whole, equal_nan=whole.dtype.kind == "f")
    if isinstance(whole, Mapping):
        return found.keys() == whole.keys() and all(equal(found[key], whole[key]) for key in whole)
    if isinstance(whole, tuple | list):
        return len(found) == len(whole) and all(equal(a, b) for a, b in zip(found, whole, strict=True))
    if names := getattr(whole, "__dataclass_fields__", None):
        return all(equal(getattr(found, name), getattr(whole, name)) for name in names if name != "path")
    return bool(found == whole)


# ---- one image, one pair


def features(folder: Path) -> FileTarget:
    """Files of features."""
    one, _ = make_pair(20, 20)
    turned = replace(one, turns=torch.tensor([3]), scales=one.scores + 1, orientations=one.scores)
    files = [folder / name for name in ("features.npz", "features.h5")]
    for path in files:
        save_features(path, turned)
    return FileTarget(folder, files, load_features, equal)


def matches(folder: Path) -> FileTarget:
    """Files of matches."""
    one0, one1 = make_pair(20, 25)
    found = Nearest().match(one0, one1)
    files = [folder / name for name in ("matches.npz", "matches.h5", "matches.json")]
    for path in files:
        save_matches(path, found, one0, one1)
    return FileTarget(folder, files, load_matches, equal)


# ---- stores


class Stores:
    """A store of features and one of matches, and a part beside each: what is read is right, or missing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole, self.input = folder, folder / "whole", b""
        scene = MappedScene(self.whole, views=4, count=40)
        shutil.rmtree(scene.photos)
        self.features = self._features(scene.features())
        self.matches = self._matches(scene.matches())
        with FeatureStore(self.whole / "features.h5") as store:
            store.add({"000.png": scene.features_of("001.png")})  # a part that counts before the file
        self.features = self._features(FeatureStore(self.whole / "features.h5"))

    def try_one(self, rng: Random) -> str:
        """See Target."""
        here = self.folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(self.whole, here)
        path = rng.choice(sorted(here.rglob("*.h5")))
        self.input = mutate(path.read_bytes(), rng)
        path.write_bytes(self.input)
        outcome = SAME
        for kind, read, whole in (
            (FeatureStore, self._features, self.features),
            (MatchStore, self._matches, self.matches),
        ):
            try:
                store = kind(here / f"{'features' if kind is FeatureStore else 'matches'}.h5")
            except InputError:
                outcome = REFUSED
                continue
            found = read(store)
            if len(found) < len(whole) or store.problems:
                outcome = REFUSED
            older = {"000.png"} if store.problems else set()  # the part that replaces it may be what is damaged
            if wrong := [key for key in found if key not in older and not equal(found[key], whole.get(key))]:
                raise Fault(f"{wrong[:3]} of {path.relative_to(here)} came out other than they went in")
        return outcome

    def _features(self, store: FeatureStore) -> dict[Any, Any]:
        with store:
            return _read(store, lambda name: (store.get(name), store.digest(name)))

    def _matches(self, store: MatchStore) -> dict[Any, Any]:
        with store:
            return _read(store, lambda pair: (store.get(*pair),))

    def close(self) -> None:
        """See Target."""


def _read(store: Any, get: Callable[[Any], Any]) -> dict[Any, Any]:
    found = {}
    for key in store:
        try:
            found[key] = get(key)
        except InputError:
            continue
    return found


# ---- weights


def checkpoints(folder: Path) -> FileTarget:
    """Weights as we write them, and as others do."""
    torch.manual_seed(0)
    light = LightGlue(LightGlue.Config(input_size=16, width=16, layers=2, heads=2))
    glue = SuperGlue(SuperGlue.Config(width=16, layers=2, heads=2, encoder_widths=(8,)))
    files = []
    for name, model in (("light", light), ("glue", glue)):
        about = {"licence": "Apache-2.0", "trained_on": "nothing"}
        files.append(save_checkpoint(model, folder / f"{name}.safetensors", name=name, **about))

    def read(path: Path) -> Any:
        kind = SuperGlue if b"SuperGlue" in path.read_bytes()[:4000] else LightGlue
        model = kind.pretrained(path)
        return dict(model.state_dict()), model.config, model.name, model.accepts

    return FileTarget(folder, files, read, equal)


def foreign_checkpoints(folder: Path) -> FileTarget:
    """Weights as others write them, in a pickle and in safetensors: a sane model, or refused."""
    torch.manual_seed(0)
    state = {name.replace("input_projection", "proj"): value for name, value in ALIKED().state_dict().items()}
    small = {name: value for name, value in state.items() if value.numel() < 2000}
    torch.save(small, folder / "small.pth")
    torch.save({"model": small, "epoch": 3}, folder / "nested.pth")
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in small.items()}, folder / "small.safetensors"
    )
    files = [folder / name for name in ("small.pth", "nested.pth", "small.safetensors")]

    def read(path: Path) -> Any:
        return ALIKED.pretrained(path)

    return FileTarget(folder, files, read)


def training_runs(folder: Path) -> FileTarget:
    """Checkpoints that training goes on from."""
    torch.manual_seed(0)
    model = LightGlue(LightGlue.Config(input_size=16, width=16, layers=1, heads=2))
    state = TrainingState(
        tensors={"weights/a": torch.rand(5), "mean/a": torch.rand(5)}, about={"progress": {"step": 3}}
    )
    path = folder / "last.safetensors"
    save_checkpoint(model, path, name="run", licence="Apache-2.0", trained_on="nothing", training=state)
    return FileTarget(folder, [path], read_training_state, equal)


# ---- COLMAP


class Models:
    """A COLMAP model of which one file is mutated: read, or refused."""

    def __init__(self, folder: Path) -> None:
        from made_map import Room, model_of, places

        self.folder, self.input = folder, b""
        room = Room(count=400)
        photos = {f"photo{i:02}.jpg": (*room.photo(pose, clutter=5), pose) for i, pose in enumerate(places(16))}
        model = model_of(photos, room.points)
        for name, write in (("binary", model.write_binary), ("text", model.write_text)):
            (folder / name).mkdir()
            write(folder / name)

    def try_one(self, rng: Random) -> str:
        """See Target."""
        here, kind = self.folder / "here", rng.choice(("binary", "text"))
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(self.folder / kind, here)
        path = rng.choice(sorted(here.iterdir()))
        self.input = mutate(path.read_bytes(), rng, text=kind == "text")
        path.write_bytes(self.input)
        try:
            landmarks = Landmarks.read(here)
            landmarks.seen_by(range(len(landmarks.xyz)))
            covisible(here, common_points=1)
        except IsinglassError:
            return REFUSED
        return OTHER

    def close(self) -> None:
        """See Target."""


def databases(folder: Path) -> FileTarget:
    """Databases of COLMAP: bytes of the file, and rows of its tables."""
    scene = MappedScene(folder / "scene", views=3, count=40)
    path = folder / "database.db"
    with scene.features() as store, scene.matches() as found:
        write_database(path, store, found, scene.pairs, cameras_of(scene.photos, scene.names, CameraOptions()))

    def change(data: bytes, rng: Random) -> bytes:
        return _other_row(data, folder / "rows.db", rng) if rng.random() < 0.4 else mutate(data, rng)

    def read(path: Path) -> Any:
        with Project(path) as project:
            for name in project.names:
                project.camera(name), project.rows(name), project.descriptors(name)
            return [project.matches(*pair) for pair in project.matched]

    return FileTarget(folder, [path], read, change=change)


def _other_row(data: bytes, path: Path, rng: Random) -> bytes:
    """The database with one value of one table exchanged."""
    path.write_bytes(data)
    database = sqlite3.connect(path)
    tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
    values = [None, -1, 0, 2**31, 2**62, 1.5, "", "x" * 3000, b"", b"\x00" * 7, rng.randbytes(64), float("inf")]
    for _ in range(5):
        table = rng.choice(tables)
        columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
        try:
            database.execute(f"update {table} set {rng.choice(columns)} = ?", [rng.choice(values)])
            database.commit()
            break
        except sqlite3.Error:
            continue
    database.close()
    return path.read_bytes()


# ---- what training and evaluation read


class PosedFolders:
    """A folder of photos with poses and depth, of which one file is mutated."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole, self.input = folder, write_scene(folder / "whole"), b""

    def try_one(self, rng: Random) -> str:
        """See Target."""
        here = self.folder / "here"
        if not here.exists():
            shutil.copytree(self.whole, here)
        names = ["K.txt", "poses.txt", "poses.txt", "depth/003.png", "images/003.png"]
        name = rng.choice(names)
        self.input = mutate((self.whole / name).read_bytes(), rng, text=name.endswith(".txt"))
        (here / name).write_bytes(self.input)
        try:
            images = load_rgbd(here)
            for image in images.images:
                if not all(np.isfinite(x).all() for x in (image.camera, image.rotation, image.translation)):
                    raise Fault(f"a camera or pose that is not finite in {image.file.name}")
        except IsinglassError:
            return REFUSED
        finally:
            (here / name).write_bytes((self.whole / name).read_bytes())
        return REFUSED if images.problems else OTHER

    def close(self) -> None:
        """See Target."""


def megadepth(folder: Path) -> FileTarget:
    """A scene of MegaDepth, whose arrays hold pickles."""
    scene = write_scene(folder / "scene")
    images = np.array([f"images/{i:03}.png" for i in range(3)] + [None], dtype=object)
    depths = np.array([f"depth/{i:03}.png" for i in range(3)] + [None], dtype=object)
    intrinsics = np.array([np.eye(3)] * 3 + [None], dtype=object)
    poses = np.array([np.eye(4)] * 3 + [None], dtype=object)
    path = folder / "scene.npz"
    np.savez(
        path, image_paths=images, depth_paths=depths, intrinsics=intrinsics, poses=poses, overlap_matrix=np.ones((4, 4))
    )
    return FileTarget(folder, [path], lambda path: load_megadepth(path, scene))


def runs(folder: Path) -> FileTarget:
    """Runs of `isinglass eval`."""
    path = folder / "run.json"
    info = {"label": "a", "benchmark": {"name": "b", "num_pairs": 2}, "tables": {"auc": [1.5, None]}}
    save_run(path, info, {"names": np.array(["a", "b"]), "error": np.array([1.0, np.nan])})

    def read(path: Path) -> Any:
        run = load_run(path)
        return run.info, run.pairs

    return FileTarget(folder, [path], read, equal, text=True)


def lists(folder: Path) -> FileTarget:
    """Lists of pairs: names that are there, or refused."""
    names = ["a.jpg", "my photo 1.jpg", "left/é.png", '#"quoted".jpg']
    path = folder / "pairs.txt"
    write_pairs(path, [(names[0], names[1]), (names[1], names[2]), (names[2], names[3])])

    def check(pairs: Any) -> None:
        if unknown := {name for pair in pairs for name in pair if name not in names}:
            raise Fault(f"names that no photo has: {unknown}")

    return FileTarget(folder, [path], lambda path: read_pairs(path, names), check=check, text=True)


def truths(folder: Path) -> FileTarget:
    """Homographies and lists of pairs with poses, as evaluation reads them."""
    homography = folder / "H_1_2.txt"
    np.savetxt(homography, np.array([[1.1, 0.01, 3], [0, 0.9, -2], [1e-5, 0, 1]]))
    scene = write_scene(folder / "scene")
    pairs = folder / "pairs_with_gt.txt"
    camera, pose = "500 0 80 0 500 60 0 0 1", "1 0 0 0.1 0 1 0 0 0 0 1 0 0 0 0 1"
    pairs.write_text("".join(f"00{i}.png 00{i + 1}.png 0 0 {camera} {camera} {pose}\n" for i in range(3)))

    def read(path: Path) -> Any:
        if path.stat().st_size < 200:
            return read_homography(path)
        return load_superglue_pairs(path, scene / "images")

    def check(result: Any) -> None:
        numbers = [result] if isinstance(result, np.ndarray) else [pair.camera0 for pair in result.pairs]
        if not all(value is None or np.isfinite(value).all() for value in numbers):  # None = a pair without its truth
            raise Fault("numbers that are not finite")

    return FileTarget(folder, [homography, pairs], read, check=check, text=True)
