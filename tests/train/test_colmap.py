"""Pairs of a map that is made here, so that it is known which 3-D point a keypoint sees; and how pairs are drawn."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError, MissingExtra
from isinglass.train.batch import IGNORED, UNMATCHABLE
from isinglass.train.colmap import ColmapPairs
from isinglass.train.posed import PairSampler, StoredFeatures, split_by_time
from isinglass.types import Features, Signature

pycolmap = pytest.importorskip("pycolmap")
WIDTH, HEIGHT = 320, 240
MANY = 12  # images of the made-up map
ALL = {"common_points": 1, "overlap": (0.0, 1.0)}


@dataclass
class Known:
    """An extractor that knows the keypoints of an image by its number, which the first pixel shows."""

    keypoints: dict
    signature = Signature(extractor="known")

    def extract(self, images, mask=None):
        points = torch.as_tensor(self.keypoints[round(float(images[0, 0, 0, 0]) * 255)], dtype=torch.float32)
        points = points.reshape(-1, 2)
        return Features(
            keypoints=points[None],
            descriptors=torch.ones(1, len(points), 4),
            scores=torch.linspace(1, 0, len(points))[None],  # in that order
            image_size=torch.tensor([[images.shape[3], images.shape[2]]]),
            signature=self.signature,
        )


def photo(folder, name, number, size=(WIDTH, HEIGHT)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), number, np.uint8)).save(folder / name)


def two_cameras(observed0, observed1, points):
    """A map of two images, the second 1 m to the right, f = 200 px; `observed` maps points to px of COLMAP."""
    model = pycolmap.Reconstruction()
    params = [200, 200, WIDTH / 2, HEIGHT / 2]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=params)
    )
    for number, observed in enumerate((observed0, observed1)):
        image = pycolmap.Image(
            name=f"{number}.png", keypoints=np.array(list(observed.values()), float), camera_id=1, image_id=number + 1
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-1.0 * number, 0, 0]))
        model.add_image_with_trivial_frame(image, pose)
    for point, xyz in enumerate(points):
        track = pycolmap.Track()
        for number, observed in enumerate((observed0, observed1)):
            if point in observed:
                track.add_element(number + 1, list(observed).index(point))
        model.add_point3D(np.array(xyz, float), track)
    return model


# px of COLMAP: point 0 at (160, 120) in view 0 and 40 px to the left in view 1, at 5 m, and so on
POINTS = [(0, 0, 5), (1, 0.5, 5), (-3.5, 0, 5), (2, 0, 5), (-2, 1, 5)]
OBSERVED0 = {0: (160, 120), 1: (200, 140), 2: (20, 120), 3: (240, 120), 4: (80, 160)}
OBSERVED1 = {0: (120, 120), 1: (160, 140), 3: (200, 125), 4: (40, 160)}  # 3 is 5 px off its projection; 2 is outside


@pytest.fixture
def photos(tmp_path):
    for number in (0, 1):
        photo(tmp_path / "photos", f"{number}.png", number)
    return tmp_path / "photos"


def pairs_of(model, photos, keypoints, tmp_path, monkeypatch=None, **options):
    if monkeypatch:  # both images are for learning: a tenth of two is both of them
        monkeypatch.setattr("isinglass.train.colmap.split_by_time", lambda count, **_: np.arange(count))
    features = StoredFeatures(tmp_path / "features", Known(keypoints))
    return ColmapPairs(model, photos, features, **(ALL | options))


def test_labels_by_hand(tmp_path, photos, monkeypatch):
    """Half a pixel: COLMAP's (160, 120) is (159.5, 119.5) here, so 2 px end at 161.5."""
    near, far = (159.5 + 1.9, 119.5), (199.5 + 2.1, 139.5)
    keypoints0 = [near, far, (19.5, 119.5), (239.5, 119.5), (300, 10), (79.5, 160.5), (79.5, 159.5)]
    keypoints1 = [(300, 10), (39.5, 159.5), (159.5, 139.5), (199.5, 124.5), (119.5, 119.5 - 1.9)]
    model = two_cameras(OBSERVED0, OBSERVED1, POINTS)
    pairs = pairs_of(model, photos, {0: keypoints0, 1: keypoints1}, tmp_path, monkeypatch)
    assert pairs.points_of(0).tolist() == [0, -1, 2, 3, -1, -1, 4]
    assert pairs.points_of(1).tolist() == [-1, 4, 1, -1, 0]
    target0, target1 = (one.tolist() for one in pairs.targets(0, 1))
    assert target0 == [4, IGNORED, UNMATCHABLE, IGNORED, IGNORED, IGNORED, 1]
    assert target1 == [IGNORED, 6, IGNORED, IGNORED, 0]
    assert [one.tolist() for one in pairs.targets(1, 0)] == [target1, target0]


@pytest.mark.parametrize(("x", "expected"), [(-1.0, UNMATCHABLE), (-0.1, UNMATCHABLE), (0.1, IGNORED)])
def test_the_edge_of_the_other_photo(tmp_path, photos, monkeypatch, x, expected):
    """A point that projects to x px of COLMAP in view 1; the photo begins at 0."""
    world_x = (x - WIDTH / 2) * 5 / 200 + 1
    observed0 = {0: (160, 120), 1: (x + 40, 120)}
    model = two_cameras(observed0, {0: (120, 120)}, [(0, 0, 5), (world_x, 0, 5)])
    keypoints = {0: [(159.5, 119.5), (x + 39.5, 119.5)], 1: [(119.5, 119.5)]}
    pairs = pairs_of(model, photos, keypoints, tmp_path, monkeypatch)
    assert pairs.targets(0, 1)[0].tolist() == [0, expected]


def test_of_two_keypoints_the_nearer_has_the_point_and_of_two_points_the_nearer_is_taken(tmp_path, photos, monkeypatch):
    observed0 = {0: (160, 120), 1: (163, 120)}
    points = [(0, 0, 5), (3 * 5 / 200, 0, 5)]
    model = two_cameras(observed0, {0: (120, 120), 1: (123, 120)}, points)
    keypoints0 = [(158.5, 119.5), (159.8, 119.5), (161.2, 119.5)]  # 1 and 0.3 px from the first; the last 1.3 and 1.7
    pairs = pairs_of(model, photos, {0: keypoints0, 1: [(0, 0)]}, tmp_path, monkeypatch)
    assert pairs.points_of(0).tolist() == [-1, 0, 1]


def test_photos_without_keypoints_match_nothing(tmp_path, photos, monkeypatch):
    model = two_cameras(OBSERVED0, OBSERVED1, POINTS)
    pairs = pairs_of(model, photos, {0: [], 1: [(119.5, 119.5)]}, tmp_path, monkeypatch)
    assert [one.tolist() for one in pairs.targets(0, 1)] == [[], [IGNORED]]
    assert pairs.batch(2, np.random.default_rng(0)).target_B2N.tolist().count([[IGNORED]] * 2) == 2


def test_a_photo_that_its_exif_turns_is_seen_upright(tmp_path, photos, monkeypatch):
    """The camera was upside down: the extractor sees the photo turned, and so does the matcher; the map does not."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(photos / "0.png").save(photos / "0.png", exif=exif)
    upright = [(WIDTH - 1 - 159.5, HEIGHT - 1 - 119.5), (WIDTH - 1 - 199.5, HEIGHT - 1 - 139.5)]
    keypoints = {0: upright, 1: [(159.5, 139.5), (119.5, 119.5)]}
    pairs = pairs_of(two_cameras(OBSERVED0, OBSERVED1, POINTS), photos, keypoints, tmp_path, monkeypatch)
    assert pairs.points_of(0).tolist() == [0, 1]
    assert pairs.targets(0, 1)[0].tolist() == [1, 0]
    batch = pairs.batch(1, np.random.default_rng(0))
    assert sorted(batch.keypoints_B2N2[0].tolist()) == sorted(
        [[list(one) for one in view] for view in keypoints.values()]
    )


# ---- a map of many photos, with a lens that is not straight


@pytest.fixture
def made_up(tmp_path):
    """A synthetic map, its photos, and for each photo keypoints: all that COLMAP observed, in another order."""
    pycolmap.set_random_seed(1)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=MANY, num_points3D=80, num_points2D_without_point3D=10
    )
    options.camera_width, options.camera_height = WIDTH, HEIGHT
    options.camera_params = [400, WIDTH / 2, HEIGHT / 2, 0.05]
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    for number, image in enumerate(model.images.values()):  # which see the fewer points the later they come
        for index, point in enumerate(image.points2D):
            if point.has_point3D() and rng.uniform() < 0.8 * number / MANY:
                model.delete_observation(image.image_id, index)
    keypoints, truth = {}, {}
    for number, image in enumerate(sorted(model.images.values(), key=lambda one: one.name)):
        photo(tmp_path / "photos", image.name, number)
        order = np.random.default_rng(number).permutation(len(image.points2D))
        keypoints[number] = np.array([image.points2D[int(k)].xy for k in order]) - 0.5
        truth[number] = [
            image.points2D[int(k)].point3D_id if image.points2D[int(k)].has_point3D() else None for k in order
        ]
    return model, tmp_path / "photos", keypoints, truth


def test_a_map_of_many_photos_against_its_own_tracks(tmp_path, made_up):
    model, photos, keypoints, truth = made_up
    pairs = pairs_of(model, photos, keypoints, tmp_path, overlap=(0.0, 1.0))
    assert len(pairs.photos) == MANY - 2 and not pairs.problems
    matches = 0
    for i, j in ((0, 1), (2, 7), (9, 4)):
        target0, target1 = (one.tolist() for one in pairs.targets(i, j))
        for target, here, there in ((target0, truth[i], truth[j]), (target1, truth[j], truth[i])):
            for index, point in zip(target, here, strict=True):
                if point is not None and point in there:
                    assert there[index] == point and index >= 0
                    matches += 1
                else:
                    assert index in ({IGNORED} if point is None else {IGNORED, UNMATCHABLE})
    assert matches > 100


def test_overlap_is_of_common_points(tmp_path, made_up):
    """Those pairs are drawn that have the share and the number of common points that were asked for, and no others."""
    model, photos, keypoints, truth = made_up
    seen = [{point for point in truth[i] if point is not None} for i in range(MANY - 2)]
    common = {(i, j): len(seen[i] & seen[j]) for i in range(MANY - 2) for j in range(i)}
    share = {(i, j): count / min(len(seen[i]), len(seen[j])) for (i, j), count in common.items()}
    low, high = np.quantile(list(share.values()), [0.2, 0.8]).tolist()
    for overlap, least in (((low, high), 1), ((0.0, 1.0), int(np.median(list(common.values()))))):
        expected = {pair for pair in common if overlap[0] <= share[pair] <= overlap[1] and common[pair] >= least}
        pairs = pairs_of(model, photos, keypoints, tmp_path, overlap=overlap, common_points=least)
        drawn = {tuple(map(int, pair[::-1])) for one in pairs.sampler.bins for pair in one}
        assert drawn == expected and 0 < len(expected) < len(common)


def test_a_batch_from_a_folder_of_colmap(tmp_path, made_up):
    model, photos, keypoints, _ = made_up
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    pairs = pairs_of(tmp_path / "model", photos, keypoints, tmp_path)
    same = pairs_of(model, photos, keypoints, tmp_path)
    batch, again = pairs.batch(5, np.random.default_rng(3)), same.batch(5, np.random.default_rng(3))
    assert pairs.digest == same.digest
    assert torch.equal(batch.target_B2N, again.target_B2N) and torch.equal(batch.keypoints_B2N2, again.keypoints_B2N2)
    assert len(batch) == 5 and (batch.target_B2N[:, 0] >= 0).any(dim=1).all()


def test_held_out_photos_are_others(tmp_path, made_up):
    model, photos, keypoints, _ = made_up
    learnt, held = (pairs_of(model, photos, keypoints, tmp_path, held_out=held) for held in (False, True))
    names = sorted(file.name for file in photos.iterdir())
    assert [one.file.name for one in held.photos] == names[-2:]
    assert [one.file.name for one in learnt.photos] == names[:-2]
    assert learnt.digest != held.digest


# ---- what is wrong


def test_photos_that_cannot_be_used_are_left_out_and_named(tmp_path, made_up):
    model, photos, keypoints, _ = made_up
    names = sorted(file.name for file in photos.iterdir())
    (photos / names[0]).unlink()
    photo(photos, names[1], 1, size=(HEIGHT, WIDTH))
    (photos / names[2]).write_bytes((photos / names[2]).read_bytes()[:-30])
    pairs = pairs_of(model, photos, keypoints, tmp_path)
    assert [one.file.name for one in pairs.photos] == names[3:-2]
    problems = [pairs.problems[str(photos / name)] for name in names[:3]]
    for problem, text in zip(problems, ("does not exist", "240 x 320 px; expected 320 x 240", "decoded"), strict=True):
        assert text in problem


def test_models_and_folders_that_are_none(tmp_path, made_up):
    model, photos, keypoints, _ = made_up
    with pytest.raises(InputError, match="no model of COLMAP"):
        pairs_of(tmp_path / "nowhere", photos, keypoints, tmp_path)
    with pytest.raises(InputError, match="expected a folder of photos"):
        pairs_of(model, tmp_path / "nowhere", keypoints, tmp_path)
    with pytest.raises(InputError, match=r"overlaps by 0\.1 to 0\.7: there is no pair"):
        pairs_of(model, photos, keypoints, tmp_path, overlap=(0.1, 0.7), common_points=10_000)


def test_without_pycolmap_the_extra_is_named(tmp_path, made_up, monkeypatch):
    _, photos, keypoints, _ = made_up
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingExtra, match=r"isinglass\[maps\]"):
        pairs_of(tmp_path / "model", photos, keypoints, tmp_path)


# ---- what all sources of posed pairs share


def test_large_images_are_shrunk_and_keypoints_are_of_the_stored_pixels(tmp_path, photos):
    """The corners of 40 x 30 px are 3.5 px inside of those of 320 x 240."""
    features = StoredFeatures(tmp_path / "features", Known({1: [(0, 0), (39, 29)]}), long_side=40).get(photos / "1.png")
    assert features.keypoints[0].tolist() == [[3.5, 3.5], [315.5, 235.5]]
    assert features.image_size.tolist() == [[WIDTH, HEIGHT]]


def test_pairs_are_drawn_evenly_over_overlap_and_in_both_orders():
    """A hundred pairs of little overlap and one of much: half of what is drawn is that one."""
    overlap = np.zeros((30, 30))
    overlap[:10, 10:20] = overlap[10:20, :10] = 0.12
    overlap[20, 21] = overlap[21, 20] = 0.7
    overlap[22, 23] = overlap[23, 22] = 0.71
    sampler, rng = PairSampler(overlap, (0.1, 0.7), "a test"), np.random.default_rng(0)
    drawn = [sampler.draw(rng) for _ in range(4000)]
    assert all(overlap[pair] in (0.12, 0.7) for pair in drawn)
    assert sum(overlap[pair] == 0.7 for pair in drawn) == pytest.approx(2000, abs=150)
    assert drawn.count((20, 21)) == pytest.approx(1000, abs=130)
    assert len(set(drawn)) == 202


def test_ranges_without_a_pair_and_that_are_none():
    with pytest.raises(InputError, match=r"3 images of a test overlaps by 0.1 to 0.7: overlaps run from 0.90 to 0.90"):
        PairSampler(np.full((3, 3), 0.9), (0.1, 0.7), "a test")
    with pytest.raises(InputError, match="there is no pair"):
        PairSampler(np.ones((1, 1)), (0.1, 0.7), "a test")
    with pytest.raises(InputError, match="expected two shares"):
        PairSampler(np.ones((3, 3)), (0.7, 0.1), "a test")


@pytest.mark.parametrize(("count", "held"), [(100, 10), (15, 2), (5, 2), (2, 2), (1, 1), (0, 0)])
def test_what_is_held_out_is_the_end_in_one_piece(count, held):
    learnt, kept = split_by_time(count, held_out=False).tolist(), split_by_time(count, held_out=True).tolist()
    assert learnt + kept == list(range(count)) and len(kept) == held
