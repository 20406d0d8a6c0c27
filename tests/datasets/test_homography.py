"""Planar benchmarks: each published layout on a tiny copy of it, what is wrong with a copy, and real sequences."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from isinglass.datasets.homography import (
    EVD_THRESHOLDS_PX,
    LARGE_SEQUENCES,
    WXBS_THRESHOLDS_PX,
    annotation_error,
    load_evd,
    load_hpatches,
    load_wxbs,
    read_homography,
)
from isinglass.errors import InputError
from isinglass.geometry.two_view import apply_homography
from isinglass.metrics import mean_average_accuracy

SHIFT = "1 0 3\n0 1 -2\n0 0 1\n"


def _image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (9, 8, 7)).save(file)


def _sequence(root, name, images=6, suffix=".ppm"):
    for number in range(1, images + 1):
        _image(root / name / f"{number}{suffix}")
        if number > 1:
            (root / name / f"H_1_{number}").write_text(SHIFT)


@pytest.fixture
def hpatches(tmp_path):
    _sequence(tmp_path, "i_ajuntament")
    _sequence(tmp_path, "v_abstract", suffix=".png")
    _sequence(tmp_path, "v_talent")
    _sequence(tmp_path, "oxford_graf", images=2, suffix=".webp")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("no sequence")
    return tmp_path


def test_hpatches_pairs_the_first_image_with_the_others(hpatches):
    benchmark = load_hpatches(hpatches)
    names = [pair.name for pair in benchmark.pairs]
    assert names[:2] == ["i_ajuntament/1-2", "i_ajuntament/1-3"]
    assert len(names) == len(set(names)) == 5 + 5 + 1
    assert [sum(pair.group == g for pair in benchmark.pairs) for g in ("illumination", "viewpoint", "oxford")] == [
        5,
        5,
        1,
    ]
    assert benchmark.task == "homography"
    assert not benchmark.problems
    last = benchmark.pairs[-1]
    assert (last.image0.name, last.image1.name) == ("1.png", "6.png")
    np.testing.assert_array_equal(last.homography, [[1, 0, 3], [0, 1, -2], [0, 0, 1]])


def test_hpatches_with_the_large_sequences_is_another_protocol(hpatches):
    assert len(LARGE_SEQUENCES) == 8
    assert len(load_hpatches(hpatches, large=True).pairs) == 16
    assert load_hpatches(hpatches, large=True).protocol != load_hpatches(hpatches).protocol


def test_hpatches_keeps_what_can_be_used_and_names_the_rest(hpatches):
    (hpatches / "i_ajuntament" / "H_1_3").unlink()
    (hpatches / "i_ajuntament" / "4.ppm").unlink()
    (hpatches / "v_abstract" / "H_1_5").write_text("1 0 0 0 1 0 0 0")
    (hpatches / "v_abstract" / "H_1_6").write_text("1 0 0\n0 1 x\n0 0 1")
    (hpatches / "oxford_graf" / "H_1_2").write_text("1 2 3\n2 4 6\n0 0 1")
    benchmark = load_hpatches(hpatches)
    assert [pair.name for pair in benchmark.pairs] == [
        *(f"i_ajuntament/1-{number}" for number in (2, 5, 6)),
        *(f"v_abstract/1-{number}" for number in (2, 3, 4)),
    ]
    expected = ["i_ajuntament/H_1_3", "i_ajuntament/4", "oxford_graf/H_1_2", "v_abstract/H_1_5", "v_abstract/H_1_6"]
    assert len(benchmark.problems) == 5
    assert all(part in problem for part, problem in zip(expected, benchmark.problems, strict=True))


def test_a_sequence_of_hpatches_without_its_last_images_is_a_problem(tmp_path):
    _sequence(tmp_path, "v_abstract", images=4)
    benchmark = load_hpatches(tmp_path)
    assert len(benchmark.pairs) == 3
    assert [problem.split("'")[1].rsplit("/", 1)[1] for problem in benchmark.problems] == ["5", "6"]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_hpatches(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no pair of hpatches"):
        load_hpatches(tmp_path)
    (tmp_path / "v_abstract").mkdir()
    with pytest.raises(InputError, match=r"v_abstract/1.*and 2 more"):
        load_hpatches(tmp_path)


@pytest.mark.parametrize(
    "text", ["1,0,3\r\n0,1,-2\r\n0,0,1\r\n", "\ufeff 1\t0  3 \n\n0 1 -2\n0 0 1", "1 0 3 0 1 -2 0 0 1"]
)
def test_matrices_are_read_whatever_parts_the_numbers(tmp_path, text):
    (tmp_path / "H").write_text(text, encoding="utf-8", newline="")
    np.testing.assert_array_equal(read_homography(tmp_path / "H"), [[1, 0, 3], [0, 1, -2], [0, 0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "0 numbers"), ("1 0 3 0 1 nan 0 0 1", "NaN"), ("0 0 0 0 0 0 0 0 0", "inverted"), ("one", "something else")],
)
def test_what_is_no_homography_is_refused(tmp_path, text, message):
    (tmp_path / "H").write_text(text)
    with pytest.raises(InputError, match=message):
        read_homography(tmp_path / "H")


def test_evd(tmp_path):
    for name in ("adam", "cafe", "cat"):
        _image(tmp_path / "1" / f"{name}.png")
        _image(tmp_path / "2" / f"{name}.png")
        (tmp_path / "h").mkdir(exist_ok=True)
        (tmp_path / "h" / f"{name}.txt").write_text(SHIFT)
    (tmp_path / "h" / "cafe.txt").unlink()
    (tmp_path / "1" / ".DS_Store").write_text("")
    benchmark = load_evd(tmp_path)
    assert [pair.name for pair in benchmark.pairs] == ["adam", "cat"]
    assert [pair.image1.parent.name for pair in benchmark.pairs] == ["2", "2"]
    assert len(benchmark.problems) == 1
    assert "h/cafe.txt" in benchmark.problems[0]
    assert (benchmark.task, benchmark.auc_at, benchmark.maa_px) == ("homography", (), EVD_THRESHOLDS_PX)
    expected = [1, 1.39495079, 1.94588772, 2.71441762, 3.78647901, 5.2819519, 7.368063, 10.27808533, 14.33742329, 20]
    assert expected == pytest.approx(EVD_THRESHOLDS_PX)  # as wxbs_benchmark's documentation prints them


@pytest.fixture
def wxbs(tmp_path):
    for kind, name, suffix in (("WGABS", "kremlin", ".png"), ("WGABS", "petrzin", ".png"), ("WLABS", "dh", ".jpg")):
        for number in ("01", "02"):
            _image(tmp_path / "v1.1" / kind / name / f"{number}{suffix}")
        (tmp_path / "v1.1" / kind / name / "corrs.txt").write_text("1 2 3 4\n5.5 6 7 8\n")
    return tmp_path


def test_wxbs(wxbs):
    benchmark = load_wxbs(wxbs)
    assert [(pair.name, pair.group) for pair in benchmark.pairs] == [("WGABS/kremlin", "WGABS"), ("WLABS/dh", "WLABS")]
    np.testing.assert_array_equal(benchmark.pairs[0].annotations, [[1, 2, 3, 4], [5.5, 6, 7, 8]])
    assert [pair.name for pair in load_wxbs(wxbs / "v1.1", subset="val").pairs] == ["WGABS/petrzin"]
    assert len(load_wxbs(wxbs, subset="all").pairs) == 3
    assert (benchmark.task, benchmark.auc_at, benchmark.maa_px) == ("fundamental", (), tuple(range(20)))
    with pytest.raises(InputError, match="subset"):
        load_wxbs(wxbs, subset="train")


def test_wxbs_with_broken_annotations(wxbs):
    (wxbs / "v1.1" / "WLABS" / "dh" / "corrs.txt").write_text("1 2 3\n")
    benchmark = load_wxbs(wxbs)
    assert [pair.name for pair in benchmark.pairs] == ["WGABS/kremlin"]
    assert "dh/corrs.txt" in benchmark.problems[0]


def test_annotation_error_in_closed_form():
    horizontal = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float64)  # x1^T F x0 = y0 - y1: rows are lines
    annotations = np.array([[0, 5, 9, 5], [3, 5, 1, 8], [0, 0, 0, -4.0]])
    error = annotation_error(horizontal, annotations)
    np.testing.assert_allclose(error, np.sqrt(2) * np.array([0, 3, 4]))
    assert mean_average_accuracy(error, WXBS_THRESHOLDS_PX) == pytest.approx(np.mean([20, 15, 14]) / 20)
    assert np.isinf(annotation_error(None, annotations)).all()


# ---- real data


@pytest.mark.shared
def test_real_sequences(shared):
    benchmark = load_hpatches(shared / "data" / "eval" / "homography")
    counts = {
        group: sum(pair.group == group for pair in benchmark.pairs)
        for group in ("evd", "homogr", "oxford", "viewpoint")
    }
    assert counts == {"evd": 15, "homogr": 16, "oxford": 10, "viewpoint": 10}
    assert len(benchmark.pairs) == 51
    assert not benchmark.problems


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["v_churchill/1-3", "v_dogman/1-2", "oxford_graf/1-2", "homogr_boat/1-2", "oxford_boat/1-3"]
)
def test_real_homographies_take_image_0_to_image_1(shared, name):
    benchmark = load_hpatches(shared / "data" / "eval" / "homography")
    pair = next(pair for pair in benchmark.pairs if pair.name == name)
    assert _correlation(pair, pair.homography) > 0.8
    assert _correlation(pair, np.linalg.inv(pair.homography)) < 0.5


def _correlation(pair, homography):
    """Of image 0 with image 1, nearest pixels under the homography, over what both see."""
    grey0, grey1 = (np.asarray(Image.open(file).convert("L"), dtype=np.float64) for file in (pair.image0, pair.image1))
    x, y = np.meshgrid(np.arange(2, grey0.shape[1], 5), np.arange(2, grey0.shape[0], 5))
    points = np.column_stack([x.reshape(-1), y.reshape(-1)])
    landed = np.nan_to_num(apply_homography(homography, points), nan=-9).round().clip(-9, 9999).astype(int)
    inside = ((landed >= 0) & (landed < [grey1.shape[1], grey1.shape[0]])).all(axis=1)
    if inside.sum() < 100:
        return 0.0
    seen0 = grey0[points[inside, 1], points[inside, 0]]
    return float(np.corrcoef(seen0, grey1[landed[inside, 1], landed[inside, 0]])[0, 1])
