"""Views of photos, their features kept on disk, and pairs of them: exact, the same every time, nothing lost."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError
from isinglass.kernels.threads import in_team
from isinglass.train.batch import IGNORED, stacked
from isinglass.train.sources import HELD_OUT_EVERY, HomographyPairs, MixedPairs
from isinglass.train.store import DrawnViews, StoredViews
from isinglass.train.views import Photos, ViewConfig, between, resampled
from made_training import Corners

PLAIN = ViewConfig(size=(96, 64), photometric=0.0)


@pytest.fixture
def folder(tmp_path):
    """Photos of both shapes, among files that are none."""
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(160, 120), (120, 160), (200, 150)] * 2):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    Image.new("RGB", (20, 20)).save(tmp_path / "tiny.png")
    return tmp_path


def test_photos_that_cannot_be_used_are_named_and_left_out(folder, tmp_path):
    photos = Photos(folder, PLAIN)
    assert len(photos) == 6
    assert {file.split("/")[-1] for file in photos.problems} == {"broken.jpg", "tiny.png"}
    assert "20 x 20 px" in photos.problems[str(folder / "tiny.png")]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no photo to learn from"):
        Photos(empty)


@pytest.mark.parametrize("bad", [{"inward": 0.5}, {"size": (10, 10)}, {"max_angle_deg": 200}, {"photometric": -1}])
def test_views_that_make_no_sense_are_an_error(bad):
    with pytest.raises(InputError):
        ViewConfig(**bad)


def test_a_view_shows_what_its_matrix_says(folder):
    """Each pixel of a view is the photo's at the place that the matrix tells, as far as both are smooth."""
    photos = Photos(folder, ViewConfig(size=(96, 64), photometric=0.0, max_angle_deg=180))
    for photo, number in ((0, 1), (1, 2), (2, 5)):
        view = photos.view(photo, number)
        pixels = torch.from_numpy(np.array(Image.open(photos.files[photo]))).permute(2, 0, 1).float() / 255
        height, width = view.image_3HW.shape[1:]
        assert (width, height) == ((64, 96) if photo == 1 else (96, 64))
        v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        there = torch.stack([u, v, torch.ones_like(u)], dim=-1).double() @ torch.from_numpy(view.matrix).T
        x, y = (there[..., :2] / there[..., 2:]).unbind(-1)
        grid = torch.stack([2 * x / pixels.shape[2] - 1, 2 * y / pixels.shape[1] - 1], dim=-1).float()
        expected = torch.nn.functional.grid_sample(pixels[None], grid[None], align_corners=False)[0]
        assert (view.image_3HW - expected).abs().mean() < 0.01
        assert float(x.min()) >= 0 and float(x.max()) <= pixels.shape[2]  # nothing is filled in


def test_views_are_a_function_of_seed_photo_and_number(folder):
    one, other = Photos(folder, ViewConfig(size=(96, 64))), Photos(folder, ViewConfig(size=(96, 64)), seed=1)
    assert torch.equal(one.view(0, 3).image_3HW, Photos(folder, one.config).view(0, 3).image_3HW)
    for changed in (one.view(0, 4), one.view(2, 3), other.view(0, 3)):
        assert not np.allclose(changed.matrix, one.view(0, 3).matrix)
    assert one.digest != other.digest


def test_light_changes_pixels_within_bounds(folder):
    plain, lit = (Photos(folder, ViewConfig(size=(96, 64), photometric=p)).view(0, 1).image_3HW for p in (0.0, 1.0))
    assert 0.01 < (plain - lit).abs().mean() < 0.5 and lit.min() >= 0 and lit.max() <= 1


def test_a_shrunk_view_is_not_aliased():
    """Stripes of one pixel become grey."""
    stripes = (torch.arange(800) % 2).float().expand(3, 600, 800)
    seen = resampled(stripes, np.diag([8.0, 8.0, 1.0]), (100, 75))
    assert (seen - 0.5).abs().max() < 0.1


def test_labels_of_a_pair_are_where_its_homography_says(folder):
    views = DrawnViews(Photos(folder, PLAIN), Corners(), max_keypoints=30, device=torch.device("cpu"))
    batch = HomographyPairs(views).batch(6, np.random.default_rng(1))
    assert (batch.target_B2N >= 0).any()
    same = HomographyPairs(views).batch(6, np.random.default_rng(1))
    assert torch.equal(batch.target_B2N, same.target_B2N)
    first, _ = views.features(0, 1)
    assert batch.keypoints_B2N2.shape == (6, 2, 30, 2) and first.keypoints.shape[1] == 30


def test_stored_views_are_the_drawn_ones_and_survive_a_kill(folder, tmp_path):
    photos, store = Photos(folder, PLAIN), tmp_path / "store"
    extractor, drawn = Corners(), DrawnViews(photos, Corners(), max_keypoints=30, device=torch.device("cpu"))
    stored = StoredViews(store, photos, extractor, per_photo=3, max_keypoints=30)
    in_team(lambda: stored._make([0, 4, 7]))()  # and then the process dies
    again = StoredViews(store, photos, extractor, per_photo=3, max_keypoints=30)
    assert again.missing == [i for i in range(18) if i not in (0, 4, 7)]
    told = []
    again.fill(lambda done, of: told.append((done, of)))
    assert not again.missing and told[0] == (0, 15)
    calls = extractor.calls
    for photo, number in ((0, 0), (1, 1), (5, 2)):
        (kept, view0), (made, view1) = again.features(photo, number), drawn.features(photo, number)
        np.testing.assert_allclose(view0, view1)
        assert torch.equal(kept.keypoints, made.keypoints) and kept.signature == made.signature
        torch.testing.assert_close(kept.descriptors, made.descriptors, atol=1e-3, rtol=0)
    assert extractor.calls == calls
    with pytest.raises(InputError, match="Choose another folder"):
        StoredViews(store, Photos(folder, PLAIN, seed=3), extractor, per_photo=3, max_keypoints=30)
    assert json.loads((store / "about.json").read_text())["per_photo"] == 3


def test_a_damaged_store_of_views_is_refused_by_name_or_made_again(folder, tmp_path):
    photos, store, rng = Photos(folder, PLAIN), tmp_path / "store", np.random.default_rng(0)

    def opened():
        views = StoredViews(store, photos, Corners(), per_photo=1, max_keypoints=5)
        return [views.features(photo, 0) for photo in range(2)]

    whole = opened()
    about = (store / "about.json").read_text()
    fields = json.loads(about)
    assert fields.pop("sha256")
    for path in [store / "about.json"] * 100 + sorted(store.glob("*.npy")) * 10:
        content = bytearray(path.read_bytes())
        place = rng.integers(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
        try:
            found = opened()
        except InputError as error:
            assert path.name in str(error)
        else:
            assert path.suffix == ".npy" or path.read_text().lower() == about
            for (features, matrix), (expected, expected_matrix) in zip(found, whole, strict=True):
                assert torch.equal(features.keypoints, expected.keypoints) and np.allclose(matrix, expected_matrix)
                assert torch.equal(features.descriptors, expected.descriptors)
        path.write_bytes(content)
    (store / "about.json").write_text(json.dumps(fields))  # as earlier versions wrote it
    opened()


def test_photos_held_out_are_in_no_training_pair(folder):
    class Asked(DrawnViews):
        def features(self, photo, number):
            asked.add(photo)
            return super().features(photo, number)

    views = Asked(Photos(folder, PLAIN), Corners(), max_keypoints=30, device=torch.device("cpu"))
    views.num_photos = 6
    seen = []
    for held_out in (False, True):
        asked = set()
        source = HomographyPairs(views, held_out=held_out)
        for i in range(6):
            source.batch(4, np.random.default_rng(i))
        seen.append(asked)
    assert not seen[0] & seen[1] and seen[0] and seen[1]
    numbers = np.arange(100)
    assert (numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1).sum() == 5


def test_mixed_sources_by_their_shares(folder):
    views = DrawnViews(Photos(folder, PLAIN), Corners(), max_keypoints=30, device=torch.device("cpu"))
    few = HomographyPairs(views, max_keypoints=5)
    mixed = MixedPairs([HomographyPairs(views), few], [3, 1])
    sizes = [mixed.batch(1, np.random.default_rng(i)).target_B2N.shape[2] for i in range(40)]
    assert 3 <= sizes.count(5) <= 20 and sizes.count(30) == 40 - sizes.count(5)
    for bad in ([1], [0, 1]):
        with pytest.raises(InputError, match="expected 2 numbers over 0"):
            MixedPairs([few, few], bad)
    with pytest.raises(InputError, match="no source"):
        MixedPairs([])


def test_padding_is_masked_and_ignored(folder):
    views = DrawnViews(Photos(folder, PLAIN), Corners(), max_keypoints=30, device=torch.device("cpu"))
    batch = HomographyPairs(views).batch(2, np.random.default_rng(0))
    assert batch.mask_B2N is None
    assert [len(part) for part in batch.split(2)] == [1, 1]
    (first, _), (second, _) = views.features(0, 1), views.features(0, 2)
    labels = torch.zeros(20, dtype=torch.int64), torch.zeros(30, dtype=torch.int64)
    padded = stacked([(first.top(20), second)], [labels])
    assert padded.mask_B2N[0].sum(dim=1).tolist() == [20, 30]
    assert (padded.target_B2N[~padded.mask_B2N] == IGNORED).all() and (padded.target_B2N[padded.mask_B2N] == 0).all()


def test_the_homography_between_views_is_in_house_pixels():
    shift, zoom = np.array([[1, 0, 8], [0, 1, 4], [0, 0, 1.0]]), np.diag([2.0, 2.0, 1.0])
    found = between(shift, zoom)  # the middle of pixel (0, 0) of view 0 is (8.5, 4.5) of the photo: (4.25, 2.25)
    np.testing.assert_allclose(found @ [0, 0, 1], [3.75, 1.75, 1])
