"""Views cut from photos: where points of one are in the other, how they are turned, and that they are made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isinglass.datasets.synthetic import rotation_sweep, scale_sweep, synthetic_homographies
from isinglass.errors import InputError
from isinglass.geometry.two_view import apply_homography

SPOTS = np.array([[x + 13 * (y % 7), y] for x in range(60, 560, 90) for y in range(50, 400, 75)], dtype=np.float64)


@pytest.fixture
def photos(tmp_path):
    """A landscape and a portrait photo of round spots, in folders."""
    x, y = np.meshgrid(np.arange(640), np.arange(440))
    spots = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 50) for u, v in SPOTS)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    grey = (255 * np.clip(spots, 0, 1)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "photos" / "wide.png")
    Image.fromarray(grey.T.copy()).save(tmp_path / "photos" / "more" / "tall.png")
    return tmp_path / "photos"


def _grey(file):
    return np.asarray(Image.open(file).convert("L"), dtype=np.float64)


def _centroid(grey, point, radius=14):
    """Of the brightness around a point; None near the border, or where it is dark."""
    x, y = np.round(point).astype(int)
    if min(x, y) < radius or x + radius >= grey.shape[1] or y + radius >= grey.shape[0] or grey[y, x] < 120:
        return None
    rows, columns = np.mgrid[y - radius : y + radius + 1, x - radius : x + radius + 1]
    weights = np.where(np.hypot(rows - y, columns - x) <= radius, grey[rows, columns], 0)
    return np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()


def _errors(pair):
    """px: how far spots of view 1 are from where the homography takes those of view 0."""
    grey0, grey1 = _grey(pair.image0), _grey(pair.image1)
    peaks = [
        (x, y)
        for y in range(16, grey0.shape[0] - 16)
        for x in range(16, grey0.shape[1] - 16)
        if grey0[y, x] > 200 and grey0[y, x] == grey0[y - 4 : y + 5, x - 4 : x + 5].max()
    ]
    errors = []
    for peak in peaks:
        before = _centroid(grey0, peak)
        after = apply_homography(pair.homography, [before])[0]
        seen = _centroid(grey1, after) if np.isfinite(after).all() else None
        if seen is not None:
            errors.append(np.linalg.norm(after - seen))
    return errors


def test_random_homographies_are_where_they_say(tmp_path):
    """Waves are seen alike in both views where the homography says so, and not half a pixel beside."""
    x, y = np.meshgrid(np.arange(900), np.arange(600))
    for name, waves in (("wide.png", np.sin(x / 9) * np.sin(y / 11)), ("tall.png", (np.sin(x / 9) * np.sin(y / 11)).T)):
        Image.fromarray((127 + 120 * waves).round().astype(np.uint8)).save(tmp_path / name)
    photos = [tmp_path / "wide.png", tmp_path / "tall.png"]
    benchmark = synthetic_homographies(photos, 8, 0, tmp_path / "cache", photometric=False)
    assert [pair.name.rsplit("/", 2)[1:] for pair in benchmark.pairs[:3]] == [
        ["wide.png", "0"],
        ["tall.png", "1"],
        ["wide.png", "2"],
    ]
    assert benchmark.auc_at == (1, 3, 5, 10)  # SuperGlue's table has 10 px
    for index, pair in enumerate(benchmark.pairs):
        assert Image.open(pair.image1).size == ((640, 480) if index % 2 == 0 else (480, 640))
        assert _difference(pair, (0, 0)) < 1.5
        assert min(_difference(pair, shift) for shift in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))) > 2.5


def _difference(pair, shift):
    """Grey levels: mean over view 1 of how far it is from view 0 at the same place, `shift` px beside."""
    grey0, grey1 = _grey(pair.image0), _grey(pair.image1)
    x, y = np.meshgrid(np.arange(5, grey1.shape[1] - 5, 3), np.arange(5, grey1.shape[0] - 5, 3))
    points = np.column_stack([x.reshape(-1), y.reshape(-1)])
    u, v = (apply_homography(np.linalg.inv(pair.homography), points) + shift).T
    inside = (u >= 1) & (v >= 1) & (u < grey0.shape[1] - 2) & (v < grey0.shape[0] - 2)
    u, v, points = u[inside], v[inside], points[inside]
    left, top = u.astype(int), v.astype(int)
    right, down = u - left, v - top
    seen = (1 - down) * ((1 - right) * grey0[top, left] + right * grey0[top, left + 1])
    seen += down * ((1 - right) * grey0[top + 1, left] + right * grey0[top + 1, left + 1])
    return float(np.abs(grey1[points[:, 1], points[:, 0]] - seen).mean())


def test_random_views_lie_inside_the_photo(photos, tmp_path):
    for pair in synthetic_homographies(photos, 8, 1, tmp_path / "cache", photometric=False).pairs:
        width, height = Image.open(pair.image1).size
        corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
        seen = apply_homography(np.linalg.inv(pair.homography), corners)
        assert (seen > -0.5 - 1e-6).all()
        assert (seen < np.array([width, height]) - 0.5 + 1e-6).all()
        assert 0.05 < _area(seen) / (width * height) < 1


def _area(corners):
    x, y = corners.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_the_seed_decides_everything(photos, tmp_path):
    first, again, other = (
        synthetic_homographies(photos, 2, seed, tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first.protocol == again.protocol != other.protocol
    for pair, same, different in zip(first.pairs, again.pairs, other.pairs, strict=True):
        np.testing.assert_array_equal(pair.homography, same.homography)
        assert pair.image1.read_bytes() == same.image1.read_bytes()
        assert not np.allclose(pair.homography, different.homography)


def test_colours_change_but_not_the_geometry(photos, tmp_path):
    plain, coloured = (
        synthetic_homographies(photos, 2, 0, tmp_path / "cache", photometric=photometric)
        for photometric in (False, True)
    )
    for pair, other in zip(plain.pairs, coloured.pairs, strict=True):
        np.testing.assert_array_equal(pair.homography, other.homography)
        grey, changed = _grey(pair.image1), _grey(other.image1)
        assert np.abs(grey - changed).mean() > 1
        assert np.corrcoef(grey.reshape(-1), changed.reshape(-1))[0, 1] > 0.8


def test_quarter_turns_are_exact_and_counter_clockwise(photos, tmp_path):
    benchmark = rotation_sweep(photos, 90, tmp_path / "cache", side_px=200)
    assert [pair.group for pair in benchmark.pairs] == ["000", "090", "180", "270"] * 2
    for turns, pair in enumerate(benchmark.pairs[4:]):
        upright, turned = _grey(pair.image0), _grey(pair.image1)
        assert upright.shape == (200, 200)
        assert np.abs(np.rot90(upright, turns) - turned).mean() < 0.5
        expected = np.linalg.matrix_power(np.array([[0, 1, 0], [-1, 0, 199], [0, 0, 1.0]]), turns)  # x to the top
        np.testing.assert_allclose(pair.homography, expected, atol=1e-9)


def test_turned_spots_are_where_they_say(photos, tmp_path):
    benchmark = rotation_sweep([photos / "wide.png"], 30, tmp_path / "cache")
    assert [pair.group for pair in benchmark.pairs] == [f"{angle:03d}" for angle in range(0, 360, 30)]
    errors = [error for pair in benchmark.pairs for error in _errors(pair)]
    assert len(errors) > 50
    assert max(errors) < 0.1
    assert all(_grey(pair.image1).shape == (311, 311) for pair in benchmark.pairs)  # 440 / sqrt(2)


def test_magnified_spots_are_where_they_say(photos, tmp_path):
    benchmark = scale_sweep(photos, (1, 2), tmp_path / "cache", long_side_px=320)
    assert [pair.group for pair in benchmark.pairs] == ["x1", "x2"] * 2
    for pair in benchmark.pairs:
        assert sorted(Image.open(pair.image0).size) == sorted(Image.open(pair.image1).size) == [220, 320]
    np.testing.assert_allclose(benchmark.pairs[3].homography, [[2, 0, -159.5], [0, 2, -109.5], [0, 0, 1]], atol=1e-9)
    assert np.mean(_errors(benchmark.pairs[3])) < 0.1


def test_views_are_made_once_and_anew_for_other_photos(photos, tmp_path):
    def files():
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}

    first = rotation_sweep(photos, 120, tmp_path / "cache", side_px=64)
    made = files()
    assert len(made) == 6  # two photos, each upright and twice turned
    assert rotation_sweep(photos, 120, tmp_path / "cache", side_px=64).protocol == first.protocol
    assert files() == made
    Image.new("RGB", (640, 440), (0, 90, 0)).save(photos / "wide.png")
    assert rotation_sweep(photos, 120, tmp_path / "cache", side_px=64).protocol != first.protocol
    assert len(files()) == 9


def test_photos_that_cannot_be_used_are_named(photos, tmp_path):
    (photos / "broken.png").write_bytes((photos / "wide.png").read_bytes()[:2000])
    (photos / "empty.jpg").write_bytes(b"")
    Image.new("L", (15, 400)).save(photos / "thin.png")
    benchmark = rotation_sweep(photos, 180, tmp_path / "cache")
    assert {pair.name.split("/")[-2] for pair in benchmark.pairs} == {"tall.png", "wide.png"}
    assert len(benchmark.problems) == 6
    for name in ("broken.png", "empty.jpg", "thin.png"):
        assert sum(name in problem for problem in benchmark.problems) == 2


def test_bad_options(photos, tmp_path):
    with pytest.raises(InputError, match="step_deg"):
        rotation_sweep(photos, 0, tmp_path)
    with pytest.raises(InputError, match="none below 1"):
        scale_sweep(photos, (0.5, 2), tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        synthetic_homographies(tmp_path / "nowhere", 1, 0, tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no pair of synthetic"):
        synthetic_homographies(tmp_path / "none", 1, 0, tmp_path / "cache")
    with pytest.raises(InputError, match="no pair of scale"):
        scale_sweep([Path("nowhere.png")], (1, 2), tmp_path / "cache")
