"""One bad photo never ends a training run: it is left out by name, before the run or in the middle of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError
from isinglass.models import load_extractor
from isinglass.options import Options
from isinglass.train.batch import stacked
from isinglass.train.objective import Objective
from isinglass.train.sources import HomographyPairs
from isinglass.train.start import photo_views
from isinglass.train.store import DrawnViews, StoredViews
from isinglass.train.views import Photos, ViewConfig
from made_training import LIGHTGLUE, SUPERGLUE, Corners, config
from support import write_photos

SMALL, CPU = ViewConfig(size=(160, 120)), torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Four good photos among bad ones."""
    folder = write_photos(tmp_path / "photos", 4)
    whole = (folder / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (320, 240)).save(folder / "black.png")
    deep = np.random.default_rng(0).integers(0, 65536, (240, 320)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.new("L", (3000, 64), 128).save(folder / "strip.jpg")
    return folder


@pytest.fixture
def rootsift():
    pytest.importorskip("cv2")
    return load_extractor(Options(extractor="rootsift", max_keypoints=40, min_distance=0), CPU)


def names(problems):
    return {file.rsplit("/", 1)[-1] for file in problems}


@pytest.mark.timeout(300)
def test_bad_photos_are_left_out_by_name_and_the_others_are_learnt_from(folder, tmp_path, rootsift):
    photos = Photos(folder, SMALL)
    assert names(photos.problems) == {"truncated.png", "empty.jpg", "pixel.png", "black.png", "strip.jpg"}
    assert "of one colour" in photos.problems[str(folder / "black.png")]
    views = StoredViews(tmp_path / "views", photos, rootsift, per_photo=3, max_keypoints=40)
    views.fill()
    assert names(views.problems) == names(photos.problems) and not views.empty
    learnt = HomographyPairs(views)
    assert (learnt.batch(4, np.random.default_rng(0)).target_B2N >= 0).any()


def test_photos_without_a_keypoint_are_an_error_that_names_them(tmp_path, rootsift):
    folder = tmp_path / "photos"
    folder.mkdir()
    ramp = np.linspace(90, 110, 320).astype(np.uint8)[None, :, None]
    for i in range(3):
        Image.fromarray(np.broadcast_to(ramp + i, (240, 320, 3)).copy()).save(folder / f"{i}.png")
    plain = ViewConfig(size=(160, 120), photometric=0.0)
    views = StoredViews(tmp_path / "views", Photos(folder, plain), rootsift, per_photo=2)
    with pytest.raises(InputError, match=r"no view of 3 photos has a keypoint .*0\.png"):
        views.fill()


def test_a_photo_that_goes_bad_in_the_middle_has_no_keypoints_and_is_named(folder, tmp_path):
    photos = Photos(folder, SMALL)
    number = [file.name for file in photos.files].index("2.png")
    stored = StoredViews(tmp_path / "views", photos, Corners(), per_photo=2, max_keypoints=30)
    drawn = DrawnViews(photos, Corners(), max_keypoints=30, device=CPU)
    (folder / "2.png").write_bytes(b"gone")
    stored.fill()
    for views in (stored, drawn):
        features, _ = views.features(number, 1)
        assert features.keypoints.shape == (1, 0, 2)
        assert any(name.endswith("2.png") for name in views.problems)
    assert number in stored.empty and number not in HomographyPairs(stored).photos
    pairs = HomographyPairs(drawn)
    pairs.photos = np.array([number])
    assert not pairs.batch(2, np.random.default_rng(0)).mask_B2N.any()


@pytest.mark.parametrize("model", [LIGHTGLUE, SUPERGLUE], ids=["lightglue", "superglue"])
def test_a_pair_without_keypoints_spoils_no_step(folder, tmp_path, model):
    """Its loss is 0, and that of the pairs beside it is what it is alone."""
    made = config(replace(model, input_size=9))
    network = Objective(made.make_model().eval(), "matching")
    views = DrawnViews(Photos(folder, SMALL), Corners(), max_keypoints=30, device=CPU)
    good = [(views.features(0, i)[0], views.features(0, i + 1)[0]) for i in (1, 3)]
    none = tuple(features.top(0) for features in good[0])
    labels = [(torch.arange(30), torch.arange(30))] * 2
    nothing = [(torch.zeros(0, dtype=torch.long),) * 2]
    alone = network(**stacked(good, labels).tensors())["loss"]
    both = network(**stacked([*good, none], labels + nothing).tensors())["loss"]
    both.backward()
    assert 3 * both.item() == pytest.approx(2 * alone.item(), rel=1e-4)
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# ---- what is kept on disk


@pytest.fixture
def stored(folder, tmp_path):
    def make(where=folder, **options):
        settings = {"per_photo": 2, "max_keypoints": 30, **options}
        return StoredViews(tmp_path / "views", Photos(where, SMALL), Corners(), **settings)

    make().fill()
    return make


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: Image.open(folder / "0.png").rotate(7).save(folder / "new.png"), "1 new photo (new.png)"),
        (lambda folder: (folder / "1.png").unlink(), "1 missing photo (1.png)"),
        (lambda folder: (folder / "1.png").write_bytes((folder / "0.png").read_bytes()), "1 changed photo (1.png)"),
        (lambda folder: (folder / "1.png").rename(folder / "9.png"), "1 new photo (9.png), 1 missing photo (1.png)"),
    ],
)
def test_a_folder_of_photos_that_changed_is_told_by_name(stored, folder, change, words):
    change(folder)
    with pytest.raises(InputError) as error:
        stored()
    assert words in str(error.value) and "Choose another folder" in str(error.value)


def test_other_settings_of_features_are_told_by_name(stored):
    with pytest.raises(InputError, match="per_photo 2, now 3, max_keypoints 30, now 31"):
        stored(per_photo=3, max_keypoints=31)


def test_a_damaged_view_is_made_again(stored, tmp_path):
    before = stored().features(0, 1)[0]
    file = tmp_path / "views" / "keypoints.npy"
    content = bytearray(file.read_bytes())
    content[-(len(content) - 128) + 30 * 8 + 5] ^= 0x40  # photo 0, view 1
    file.write_bytes(bytes(content))
    after = stored().features(0, 1)[0]
    assert torch.equal(before.keypoints, after.keypoints)


@pytest.mark.parametrize("name", ["keypoints.npy", "about.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_torn_file_of_a_store_is_named(stored, tmp_path, name, content):
    (tmp_path / "views" / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        stored()


def test_a_store_of_version_0_1_is_read(stored, tmp_path):
    """It had no checksums, and knew less of what it was made of."""
    views = tmp_path / "views"
    (views / "checksum.npy").unlink()
    about = json.loads((views / "about.json").read_text())
    (views / "about.json").write_text(json.dumps({key: about[key] for key in ("digest", "per_photo", "signature")}))
    again = stored()
    assert again.missing == [] and again.features(0, 0)[0].keypoints.shape[1] > 0


def test_features_that_there_is_no_time_for_are_made_when_they_are_needed(folder, tmp_path):
    photos = Photos(folder, SMALL)
    some, whole = (StoredViews(tmp_path / name, photos, Corners(), per_photo=3) for name in "ab")
    some.fill(until=0.0)
    whole.fill()
    assert len(some.missing) == 3 * len(photos)
    found, expected = (HomographyPairs(views).batch(3, np.random.default_rng(0)) for views in (some, whole))
    assert torch.equal(found.keypoints_B2N2, expected.keypoints_B2N2)
    assert 0 < len(some.missing) < 3 * len(photos)


def test_views_for_mps_are_kept_as_for_a_cpu(folder, tmp_path):
    from isinglass.train.recipes import recipe

    made = recipe("lightglue-sift-homography-small")
    for device, kind in (("cpu", StoredViews), ("cuda", DrawnViews)):
        views = photo_views(made, Photos(folder, SMALL), tmp_path / device, Corners(), torch.device(device), print)
        assert isinstance(views, kind)
