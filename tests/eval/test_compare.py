"""Comparisons: on common pairs alone, with intervals that tell luck from difference."""

import json
import math
import re

import numpy as np
import pytest

from eval.made_runs import made_run
from isinglass.errors import InputError
from isinglass.eval.compare import compare, write_comparison
from isinglass.eval.runs import Run, load_run, save_run
from isinglass.metrics import auc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def worse(folder):
    return made_run(folder, "worse", quality=0.5, pairs=40)


@pytest.fixture(scope="module")
def better(folder):
    return made_run(folder, "better", quality=1.5, pairs=40)


@pytest.fixture(scope="module")
def comparison(worse, better):
    return compare(worse, better, samples=200)


def row(comparison, metric, setting="", group="all"):
    (found,) = [
        one
        for one in comparison.differences
        if (one.metric, one.group) == (metric, group) and one.setting.startswith(setting)
    ]
    return found


def test_differences_are_of_the_second_run_from_the_first(comparison, worse, better):
    one = row(comparison, "AUC@5 px", "poselib, best")
    areas = [100 * auc(run.pairs["error__poselib__1"], [5])[0] for run in (worse, better)]
    assert [one.a, one.b] == pytest.approx(areas)
    assert one.difference == pytest.approx(areas[1] - areas[0])
    assert 0 < one.low < one.difference < one.high
    assert one.verdict == "better"
    assert one.num_pairs == comparison.num_common == 40
    assert comparison.only_a == comparison.only_b == 0


def test_less_time_is_better_and_more_matches_are_neither(comparison, worse, better):
    time = row(comparison, "time to match, ms (median)")
    assert time.high < 0
    assert time.verdict == "better"
    assert compare(better, worse, samples=200).differences[-1].verdict == "worse"
    assert row(comparison, "matches").verdict == ""


def test_groups_are_compared_alone(comparison, worse):
    one = row(comparison, "AUC@5 px", "dlt, best", "viewpoint")
    inside = worse.pairs["groups"] == "viewpoint"
    assert one.a == pytest.approx(100 * auc(worse.pairs["error__dlt__1"][inside], [5])[0])
    assert one.num_pairs == 20


@pytest.mark.parametrize(("pairs", "enough"), [(2, False), (9, False), (10, True)])
def test_few_pairs_have_no_interval_and_no_verdict(tmp_path, pairs, enough):
    """One pair has always been "better" by exactly what it differs: drawn anew it is itself."""
    runs = [made_run(tmp_path / label, label, pairs=pairs, quality=quality) for label, quality in (("a", 1), ("b", 4))]
    comparison = compare(*runs, samples=200)
    one = row(comparison, "time to match, ms (median)")
    assert one.difference < 0
    assert (one.verdict == "better") == enough == (not np.isnan(one.low))
    assert ("too few pairs" in str(comparison).split("pairs that differ most")[0].split("illumination")[0]) != enough
    told = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert (told["differences"][-1]["low"] is None) != enough


def test_a_group_of_few_pairs_has_no_interval(tmp_path):
    runs = [made_run(tmp_path / label, label, pairs=12, quality=quality) for label, quality in (("a", 1), ("b", 4))]
    one = row(compare(*runs, samples=200), "AUC@5 px", "dlt, best", "viewpoint")
    assert (one.num_pairs, one.verdict, one.interval) == (6, "", "too few pairs")


def test_a_run_is_not_different_from_itself(better):
    same = compare(better, better, samples=50)
    assert {(one.difference, one.low, one.high, one.verdict) for one in same.differences} == {(0.0, 0.0, 0.0, "")}
    assert same.pairs == ()


def changed(run, path, pairs=None, **info):
    return save_run(path, {**run.info, **info}, {**run.pairs, **(pairs or {})})


def test_noise_alone_is_not_clear(better, tmp_path):
    rng = np.random.default_rng(3)
    errors = better.pairs["error__poselib__1"] * np.exp(rng.normal(0, 0.5, 40))
    noisy = changed(better, tmp_path / "noisy.json", {"error__poselib__1": errors})
    one = row(compare(better, noisy, samples=500), "AUC@5 px", "poselib, best")
    assert one.low < 0 < one.high
    assert one.verdict == ""


def test_only_common_pairs_count_whatever_their_order(worse, better, tmp_path):
    chosen = np.random.default_rng(0).permutation(40)[:25]  # shuffled, and some missing
    flat = ("match_scores", "match_correct", "match_pair")
    pairs = {name: values if name in flat else values[chosen] for name, values in better.pairs.items()}
    fewer = save_run(tmp_path / "fewer.json", better.info, pairs)
    found = compare(worse, fewer, samples=50)
    assert (found.num_common, found.only_a, found.only_b) == (25, 15, 0)
    one = row(found, "AUC@5 px", "poselib, best")
    assert one.a == pytest.approx(100 * auc(worse.pairs["error__poselib__1"][chosen], [5])[0])
    assert one.b == pytest.approx(100 * auc(better.pairs["error__poselib__1"][chosen], [5])[0])
    assert "25 pairs in common; left out: 15 only in worse." in str(found)


def test_pairs_that_differ_most_come_first(worse, better, tmp_path):
    errors = worse.pairs["error__poselib__1"].copy()
    counts = worse.pairs["num_correct"].copy()
    errors[7], errors[11], counts[2] = math.inf, errors[11] + 1, counts[2] + 5
    errors[11] = min(errors[11], 4.9)
    moved = changed(worse, tmp_path / "moved.json", {"error__poselib__1": errors, "num_correct": counts})
    names = [pair.name for pair in compare(worse, moved, samples=10).pairs]
    assert set(names) == {"scene1/7", "scene2/11", "scene0/2"}
    assert names[-1] == "scene0/2"  # no error differs: the number of right matches does
    first = compare(worse, moved, samples=10, num_pairs=1).pairs
    assert len(first) == 1


def test_the_fixed_threshold_is_compared_where_it_is_not_the_best(worse, better, tmp_path):
    assert not [one for one in compare(worse, better, samples=10).differences if "fixed" in one.setting]
    best = {**worse.info["best"], "poselib": {"threshold_px": 3.0, "metrics": {}}}
    moved = changed(worse, tmp_path / "moved.json", best=best)
    one = row(compare(moved, better, samples=10), "AUC@5 px", "poselib, fixed")
    assert one.a == pytest.approx(100 * auc(worse.pairs["error__poselib__1"], [5])[0])
    assert row(compare(moved, better, samples=10), "AUC@5 px", "poselib, best").a != pytest.approx(one.a)


def test_other_protocols_are_refused_by_name(folder, better, tmp_path):
    other = made_run(tmp_path, "other", protocol="made 2", pictures=False)
    with pytest.raises(InputError, match=r"better\.json.*made 1.*other\.json.*made 2.*same benchmark"):
        compare(better, other)


def test_no_common_pair_is_refused(better, tmp_path):
    names = np.array([f"elsewhere/{i}" for i in range(40)])
    other = changed(better, tmp_path / "other.json", {"names": names})
    with pytest.raises(InputError, match="no pair in common"):
        compare(better, other)


def test_as_dict_is_json_and_failures_are_none(comparison):
    told = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert told["label_b"] == "better"
    assert told["num_common"] == 40
    assert {"metric", "a", "b", "difference", "low", "high", "verdict", "setting", "group"} <= set(
        told["differences"][0]
    )
    assert all(set(one) >= {"name", "error_a", "error_b"} for one in told["pairs"])


def test_a_failed_pair_is_said_to_have_failed(worse, tmp_path):
    errors = worse.pairs["error__poselib__1"].copy()
    easy = int(errors.argmin())
    errors[easy] = math.inf
    failed = compare(worse, changed(worse, tmp_path / "f.json", {"error__poselib__1": errors}), samples=10)
    assert failed.as_dict()["pairs"][0]["error_b"] is None
    assert re.search(rf"{worse.pairs['names'][easy]}: [\d.]+ px -> failed, (\d+) -> \1 right matches", str(failed))


def test_the_table_for_people_has_every_row(comparison):
    text = str(comparison)
    assert text.startswith("made (made 1): a = worse, b = better\n40 pairs in common.")
    for one in comparison.differences:
        name = one.metric if one.group == "all" else f"{one.metric}, {one.group}"
        numbers = [
            name,
            str(one.num_pairs),
            f"{one.a:.1f}",
            f"{one.b:.1f}",
            f"{one.difference:+.1f}",
            f"{one.low:+.1f} to",
        ]
        assert re.search(" +".join(map(re.escape, numbers)), text), one


def test_the_page_has_both_pictures_of_pairs_that_differ(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    path = write_comparison(comparison, tmp_path / "compare.html", num_pictures=3)
    page = path.read_text("utf-8")
    assert page.count("data:image/jpeg") == 6
    assert page.count('class="beside"') == 3
    assert "better against worse" in page
    assert page.count("<svg role") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert len(page) < 5e6


def test_runs_are_read_as_they_were_written(better):
    again = load_run(better.path)
    assert isinstance(again, Run)
    assert compare(better, again, samples=10).pairs == ()
