"""Figures are looked at as data: which artists they hold, where those lie, how many there are."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image

from isinglass import viz
from isinglass.errors import InputError, MissingExtra
from isinglass.types import Features, Matches, Signature

LEFT = np.full((40, 60, 3), 0.5)
RIGHT = np.full((80, 50, 3), 200, dtype=np.uint8)  # twice as tall: drawn at half size


def drawn_points(axes, label):
    """(K, 2) positions of the markers of that name."""
    found = [line.get_xydata() for line in axes.get_lines() if line.get_label() == label]
    assert found, f"nothing named {label}"
    return np.concatenate(found)


def drawn_lines(axes, label):
    """(K, 2, 2) ends of the lines of that name."""
    (lines,) = [one for one in axes.collections if isinstance(one, LineCollection) and one.get_label() == label]
    return np.array(lines.get_segments()).reshape(-1, 2, 2)


def legends(figure):
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


def titles(figure):
    return [text.get_text() for text in figure.texts]


def features(points, size=(60, 40)):
    count = len(points)
    return Features(
        keypoints=torch.as_tensor(np.reshape(points, (1, count, 2)), dtype=torch.float32),
        descriptors=torch.zeros(1, count, 4),
        scores=torch.zeros(1, count),
        image_size=torch.tensor([size]),
        signature=Signature(extractor="made-up"),
    )


@pytest.fixture
def pair():
    """Five and four keypoints, three matches, layers 1 to 4 of which the pair stopped at 4."""
    matches = Matches(
        indices=torch.tensor([[3, -1, 0, -1, 1]]),
        scores=torch.tensor([[0.9, 0.0, 0.8, 0.0, 0.7]]),
        stop_layer=torch.tensor([4]),
        pruned_at0=torch.tensor([[4, 2, 4, 4, 4]]),
        pruned_at1=torch.tensor([[4, 4, 1, 4]]),
        matcher="some-matcher",
    )
    points0 = [(0, 0), (10, 5), (20, 10), (30, 15), (59, 39)]
    return features(points0), features([(0, 0), (49, 79), (25, 40), (10, 20)], size=(50, 80)), matches


def test_a_line_joins_the_two_places_of_every_match():
    points0, points1 = np.array([[0.0, 0.0], [59, 39]]), np.array([[0.0, 0.0], [49, 79]])
    axes = viz.plot_matches(LEFT, RIGHT, points0, points1).axes[0]
    lines = drawn_lines(axes, "matches")
    np.testing.assert_allclose(lines[:, 0], points0)  # the axes are in px of the first image
    shift = 60 + 0.01 * (60 + 25)
    corners = [[shift + 0.25 - 0.5, 0.25 - 0.5], [shift + 24.75 - 0.5, 39.75 - 0.5]]  # centres of half-size pixels
    np.testing.assert_allclose(lines[:, 1], corners)
    np.testing.assert_allclose(drawn_points(axes, "matches"), np.concatenate([points0, corners]))


def test_both_images_are_as_tall_and_fill_the_axes():
    axes = viz.plot_matches(LEFT, RIGHT, [[1, 1]], [[1, 1]]).axes[0]
    left, right = (image.get_extent() for image in axes.get_images())
    assert list(left) == [-0.5, 59.5, 39.5, -0.5]
    assert right[2:] == left[2:]
    assert right[1] - right[0] == pytest.approx(25)
    assert axes.get_xlim() == (-0.5, right[1])
    assert axes.get_ylim() == (39.5, -0.5)


def test_inliers_and_outliers_differ_without_colour():
    rng = np.random.default_rng(0)
    points, inliers = rng.uniform(0, 39, (20, 2)), np.arange(20) < 15
    figure = viz.plot_matches(LEFT, LEFT, points, points, inliers=torch.from_numpy(inliers))
    axes = figure.axes[0]
    assert legends(figure) == [["15 inliers", "5 outliers"]]
    assert len(drawn_lines(axes, "inliers")) == 15
    np.testing.assert_allclose(drawn_lines(axes, "outliers")[:, 0], points[~inliers])
    styles = {one.get_label(): one.get_linestyle()[0][1] for one in axes.collections}
    assert styles["inliers"] is None  # solid
    assert styles["outliers"] is not None
    markers = {line.get_label(): line.get_marker() for line in axes.get_lines()}
    assert markers["inliers"] != markers["outliers"]
    heights = {one.get_label(): one.get_zorder() for one in axes.collections}
    assert heights["outliers"] > heights["inliers"]  # the few are not hidden by the many


def test_of_thousands_of_matches_all_are_marked_and_some_drawn():
    rng = np.random.default_rng(0)
    points, inliers = rng.uniform(0, 39, (5000, 2)), rng.random(5000) < 0.9
    figure = viz.plot_matches(LEFT, LEFT, points, points, inliers=inliers, scores=rng.random(5000), max_lines=200)
    axes = figure.axes[0]
    assert len(drawn_points(axes, "inliers")) == 2 * inliers.sum()
    drawn = {name: len(drawn_lines(axes, name)) for name in ("inliers", "outliers")}
    assert drawn["inliers"] == round(200 * inliers.mean())
    assert drawn["outliers"] == 50  # more than their share: a quarter
    counts = {"inliers": inliers.sum(), "outliers": (~inliers).sum()}
    assert legends(figure) == [[f"{counts[name]} {name}, {drawn[name]} drawn" for name in drawn]]


def test_drawn_lines_are_spread_and_the_best_of_their_place():
    crowd = np.random.default_rng(0).uniform(0, 10, (1000, 2))
    lonely = np.array([[90.0, 90.0], [90.0, 10.0], [10.0, 90.0]])
    points = np.concatenate([crowd, lonely])
    scores = np.concatenate([np.linspace(0, 1, 1000), [0.0, 0.0, 0.0]])
    chosen = viz._spread(points, scores, 40)
    assert sorted(chosen) == list(range(963, 1003))  # the lonely three, and the best 37 of the crowd


def test_spread_of_equal_points_and_of_a_line():
    assert len(viz._spread(np.zeros((50, 2)), None, 7)) == 7
    line = np.stack([np.arange(1000.0), np.zeros(1000)], axis=1)
    chosen = np.sort(viz._spread(line, None, 10))
    assert np.diff(chosen).min() > 50


def test_no_matches_at_all():
    figure = viz.plot_matches(LEFT, RIGHT, np.zeros((0, 2)), [], inliers=[], scores=[])
    assert legends(figure) == [["0 inliers", "0 outliers"]]
    assert len(figure.axes[0].get_images()) == 2
    figure.savefig("/dev/null", format="png")


def test_keypoints_are_coloured_by_layer_and_marked_by_state():
    points, layers = np.arange(12.0).reshape(6, 2), np.array([1, 2, 3, 3, 3, 2])
    matched = np.array([False, False, True, False, True, False])
    figure = viz.plot_keypoints(LEFT, points, layers=layers, matched=matched, num_layers=5)
    axes, bar = figure.axes
    assert legends(figure) == [["3 left early", "1 not matched", "2 matched"]]
    assert sorted(map(tuple, drawn_points(axes, "left early"))) == [(0, 1), (2, 3), (10, 11)]
    np.testing.assert_array_equal(drawn_points(axes, "not matched"), points[[3]])
    np.testing.assert_array_equal(drawn_points(axes, "matched"), points[[2, 4]])
    assert list(bar.get_xticks()) == [1, 2, 3, 4, 5]
    filled = {label: line for line in axes.get_lines() if len(line.get_xdata()) for label in [line.get_label()]}
    assert filled["not matched"].get_markerfacecolor() == "none"
    assert filled["left early"].get_marker() == "x"
    used = {tuple(line.get_color()) for line in axes.get_lines() if len(line.get_xdata())}
    assert len(used) == 3  # layers 1, 2 and 3


def test_keypoints_without_layers_are_plain():
    figure = viz.plot_keypoints(torch.rand(1, 30, 20), torch.rand(7, 2, dtype=torch.bfloat16))
    assert legends(figure) == [["7 keypoints"]]
    assert len(figure.axes) == 1  # no bar of layers
    assert legends(viz.plot_keypoints(LEFT, [], layers=[], matched=[])) == [
        ["0 left early", "0 not matched", "0 matched"]
    ]


def test_a_pair_is_shown_whole(pair):
    figure = viz.plot_pair(LEFT, RIGHT, *pair, inliers=[True, False, True], num_layers=9)
    top, bottom, bar = figure.axes
    assert titles(figure) == ["some-matcher: 5 and 4 keypoints, 3 matches, 2 inliers (67%), stopped after layer 4 of 9"]
    assert legends(figure) == [["2 inliers", "1 outliers"], ["2 left early", "1 not matched", "6 matched"]]
    place = [[10, 5], [60 + 0.01 * 85 + 25.5 / 2 - 0.5, 40.5 / 2 - 0.5]]
    np.testing.assert_allclose(sorted(drawn_points(bottom, "left early").tolist()), place)
    np.testing.assert_allclose(drawn_lines(top, "outliers")[0, 0], [20, 10])  # the second match, keypoint 2
    assert len(bar.get_xticks()) == 9


def test_a_pair_of_resized_images_is_the_same_picture(pair):
    full = viz.plot_pair(LEFT, RIGHT, *pair, inliers=[True] * 3).axes[0]
    small = viz.plot_pair(LEFT[::2, ::2], RIGHT[::2, ::2], *pair, inliers=[True] * 3).axes[0]
    full_lines, small_lines = drawn_lines(full, "inliers"), drawn_lines(small, "inliers")
    np.testing.assert_allclose((small_lines + 0.5) * 2, full_lines + 0.5, atol=1e-6)


def test_a_pair_by_a_matcher_without_layers(pair):
    plain = Matches(indices=pair[2].indices, scores=pair[2].scores, matcher="nearest")
    figure = viz.plot_pair(LEFT, RIGHT, pair[0], pair[1], plain, title="mine")
    assert titles(figure) == ["mine", "nearest: 5 and 4 keypoints, 3 matches"]
    assert legends(figure) == [["3 matches"], ["3 not matched", "6 matched"]]
    assert len(figure.axes) == 2


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_saved_files_are_whole(tmp_path, pair, suffix):
    path = tmp_path / "new" / f"picture{suffix}"
    assert viz.save_figure(viz.plot_pair(LEFT, RIGHT, *pair), str(path)) == path
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix.lower()])
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left
    if suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 800


def test_a_failed_save_keeps_what_was_there(tmp_path, pair):
    path = tmp_path / "picture.png"
    path.write_text("old")
    figure = viz.plot_pair(LEFT, RIGHT, *pair)
    figure.savefig = lambda *_args, **_options: (_ for _ in ()).throw(OSError("no space left"))
    with pytest.raises(InputError, match="no space"):
        viz.save_figure(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_suffixes_are_refused(tmp_path, pair):
    with pytest.raises(InputError, match=r"'.bmp'.*\.png, \.pdf, \.svg"):
        viz.save_figure(viz.plot_pair(LEFT, RIGHT, *pair), tmp_path / "picture.bmp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3)])
def test_images_of_odd_shapes(tmp_path, shape):
    figure = viz.plot_matches(np.zeros(shape), LEFT, [[0, 0]], [[0, 0]], title="odd")
    width, height = figure.get_size_inches() * figure.dpi
    assert 500 < width < 4000
    assert 100 < height < 4000
    viz.save_figure(figure, tmp_path / "odd.png")


def test_large_photos_are_drawn_finer_and_reduced():
    large = np.zeros((4000, 6000), dtype=np.uint8)
    figure = viz.plot_matches(large, large, [[5999, 3999]], [[0, 0]])
    width, _ = figure.get_size_inches() * figure.dpi
    assert width > 3000
    left = figure.axes[0].get_images()[0]
    assert max(left.get_array().shape) == 3000
    assert list(left.get_extent()) == [-0.5, 5999.5, 3999.5, -0.5]  # coordinates stay those of the photo


@pytest.mark.parametrize(
    "image",
    [torch.full((3, 4, 6), 0.5), np.full((4, 6, 3), 0.5), np.full((4, 6), 128, np.uint8), torch.full((1, 4, 6), 0.5)],
)
def test_every_kind_of_image_is_the_same_picture(image):
    picture, width, height = viz._picture(image)
    assert (width, height) == (6, 4)
    np.testing.assert_array_equal(picture, np.full((4, 6, 3), 128))


def test_numbers_out_of_range_do_not_wrap():
    picture, _, _ = viz._picture(np.array([[-1.0, 2.0, np.nan]]))
    assert picture[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.plot_keypoints(np.zeros((4, 6, 2)), [[0, 0]]), r"shape \(4, 6, 2\); expected"),
        (lambda: viz.plot_keypoints(np.zeros((0, 6)), [[0, 0]]), r"shape \(0, 6\)"),
        (lambda: viz.plot_keypoints(np.zeros((4, 6), dtype=np.int64), [[0, 0]]), "int64; expected uint8"),
        (lambda: viz.plot_keypoints(LEFT, [[0, 0, 0]]), r"points has shape \(1, 3\); expected \(N, 2\)"),
        (lambda: viz.plot_keypoints(LEFT, [[0, 0]], layers=[1, 2]), r"layers has shape \(2,\); expected \(1,\)"),
        (lambda: viz.plot_matches(LEFT, LEFT, [[0, 0]], [[0, 0], [1, 1]]), "1 points0 and 2 points1"),
        (lambda: viz.plot_matches(LEFT, LEFT, [[0, 0]], [[0, 0]], inliers=[[True]]), "inliers has shape"),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_batch_is_no_pair(pair):
    with pytest.raises(InputError, match="got 2 and 1 images, 1 pairs"):
        viz.plot_pair(LEFT, RIGHT, Features.stack([pair[0], pair[0]]), pair[1], pair[2])


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"isinglass\[viz\]"):
        viz.plot_keypoints(LEFT, [[0, 0]])


def test_no_global_state_of_matplotlib_is_used(tmp_path):
    code = (
        "import sys, numpy as np; from isinglass import viz; assert 'matplotlib' not in sys.modules\n"
        "image = np.zeros((9, 9)); figure = viz.plot_matches(image, image, [[1, 1]], [[2, 2]], inliers=[True])\n"
        f"viz.save_figure(figure, {str(tmp_path / 'a.png')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_real_photos_in_colour_and_grey(motorcycle, tmp_path):
    left, right, disparity = motorcycle
    y, x = np.nonzero(np.isfinite(disparity[::25, ::25]))
    points0 = np.stack([x, y], axis=1) * 25.0
    points1 = points0 - np.stack([disparity[::25, ::25][y, x], 0 * y], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = viz.plot_matches(left, right.mean(0, keepdim=True), points0, points1, inliers=points1[:, 0] > 0)
        path = viz.save_figure(figure, tmp_path / "motorcycle.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    green = (pixels[..., 1] - pixels[..., 0] > 80) & (pixels[..., 1] - pixels[..., 2] > 30)
    red = (pixels[..., 0] - pixels[..., 1] > 120) & (pixels[..., 0] - pixels[..., 2] > 80)
    assert green.mean() > 0.02
    assert 0.0005 < red.mean() < 0.02
