"""Tuning: what is chosen under a budget and said of it, and that measuring goes on where it was killed."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.datasets.pairs import Benchmark, EvalPair
from isinglass.errors import InputError
from isinglass.eval.calibration import halves
from isinglass.eval.trade_off import Setting, Tuning
from isinglass.eval.tune import Outcome, Search, _filtered, compare, measure, tune, with_options
from isinglass.files import read_signed_json
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.metrics import auc
from isinglass.pipeline import Pipeline
from isinglass.types import Features, Signature
from support import make_pair

SMALL = LightGlueConfig(input_size=24, width=32, layers=8, heads=2, filter_threshold=0.0)


def small_model(config=SMALL):
    """Random weights, so sure of themselves that they stop after the first layer when allowed to."""
    torch.manual_seed(3)
    model = LightGlue(config).eval()
    with torch.no_grad():
        for head in model.confidences:
            head.bias.fill_(20.0)
    return model


class Corners:
    """An extractor: 80 places drawn by the image's mean, with the descriptors drawn there."""

    __slots__ = ("calls",)  # the count is no setting: it does not belong to what results depend on
    signature = Signature(extractor="corners")

    def __init__(self):
        self.calls = 0

    def extract(self, images, mask=None):
        self.calls += 1
        generator = torch.Generator().manual_seed(int(images.mean() * 1e6))
        return Features(
            keypoints=torch.rand(1, 80, 2, generator=generator) * 60,
            descriptors=torch.nn.functional.normalize(torch.randn(1, 80, 24, generator=generator), dim=-1),
            scores=torch.rand(1, 80, generator=generator),
            image_size=torch.tensor([[64, 64]]),
            signature=self.signature,
        )


def make_pipeline(matcher=None, **options):
    return Pipeline(
        custom_extractor=Corners(), custom_matcher=matcher or small_model(), device="cpu", resize=None, **options
    )


@pytest.fixture
def benchmark(tmp_path):
    """Six pairs of an image with itself."""
    pairs = []
    for i in range(6):
        Image.fromarray(np.full((64, 64, 3), 20 + 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
        pairs.append(
            EvalPair(name=f"{i}", image0=tmp_path / f"{i}.png", image1=tmp_path / f"{i}.png", homography=np.eye(3))
        )
    return Benchmark(name="same", protocol="same 1", task="homography", pairs=tuple(pairs), problems=("x.txt: bad",))


class Judge:
    """Counts what it is asked; a pair fails if its matcher stopped early, or never, as told; or interrupts."""

    def __init__(self, *, early_fails, interrupt_at=None):
        self.early_fails, self.interrupt_at, self.calls = early_fails, interrupt_at, []

    def __call__(self, pair, saved):
        if pair.name == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append(pair.name)
        return math.inf if self.early_fails and int(saved.matches.stop_layer[0]) < SMALL.layers else 0.5


FEW = Search(depths=(None, 0.9), widths=(None,), filters=(0.0, 0.5), repeats=3, budget=1.0)


# --- settings


def test_the_full_model_and_the_weights_own_setting_come_first():
    settings = FEW.settings(LightGlueConfig())
    assert settings[0] == Setting(depth_confidence=None, width_confidence=None, filter_threshold=0.1)
    assert settings[1] == Setting(depth_confidence=0.95, width_confidence=0.99, filter_threshold=0.1)
    assert len(settings) == len(set(settings)) == 3 * 2 * 3
    assert {one.depth_confidence for one in settings} == {None, 0.9, 0.95}


def test_weights_without_confidence_heads_are_never_stopped_early():
    settings = Search().settings(replace(SMALL, depth_confidence=None, width_confidence=0.95))
    assert {one.depth_confidence for one in settings} == {None}
    assert {one.width_confidence for one in settings} == {None, 0.99, 0.95, 0.9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -0.1}, "budget is -0.1"),
        ({"budget": math.nan}, "budget is nan"),
        ({"budget": 100.0}, "budget is 100"),
        ({"repeats": 0}, "repeats is 0"),
        ({"depths": (None, 95)}, "depths has 95"),
        ({"filters": (None,)}, "filters has None"),
    ],
)
def test_searches_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Search(**options)


def test_other_options_on_the_same_weights():
    model = small_model()
    full = with_options(model, depth_confidence=None)
    assert full.layers[0].self_attention.qkv.weight is model.layers[0].self_attention.qkv.weight
    assert (model.config.depth_confidence, full.config.depth_confidence) == (0.95, None)
    one0, one1 = make_pair(40, 50)
    assert int(model.match(one0, one1).stop_layer) == 1
    assert int(full.match(one0, one1).stop_layer) == SMALL.layers
    twin = LightGlue(full.config).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.match(one0, one1).scores, full.match(one0, one1).scores)


def test_filtering_afterwards_is_matching_with_that_filter():
    model = small_model()
    one0, one1 = make_pair(60, 60)
    loose = model.match(one0, one1)
    threshold = float(loose.pair_scores().median())
    strict = with_options(model, filter_threshold=threshold).match(one0, one1)
    assert 0 < len(strict.pairs()) < len(loose.pairs())
    assert torch.equal(_filtered(loose, threshold).indices, strict.indices)


# --- choosing, on made outcomes

FULL, *OTHERS = (
    Setting(depth_confidence=depth, width_confidence=None, filter_threshold=0.1)
    for depth in (None, 0.95, 0.9, 0.8, 0.7)
)
TIMES = (10.0, 6.0, 3.0, 8.0, 7.0)
ERRORS = (1.0, 1.02, 2.0, 0.9, 1.5)  # px: a little worse, much worse, better than the full model, dominated
SEARCH = Search(auc_at=5.0)


def made(errors=ERRORS, times=TIMES, count=40, spread=0.0, seed=0):
    noise = np.random.default_rng(seed).uniform(0, spread, size=(count, len(errors)))
    rows = [tuple(error + more for error, more in zip(errors, row, strict=True)) for row in noise.tolist()]
    return [Outcome(name=f"s{i // 2}/{i}", errors=row, match_ms=times) for i, row in enumerate(rows)]


@pytest.mark.parametrize(("budget", "expected"), [(0.0, 3), (0.3, 3), (0.5, 1), (19.0, 1), (21.0, 2)])
def test_the_fastest_within_the_budget_is_chosen(budget, expected):
    trials, sizes = compare([FULL, *OTHERS], made(), replace(SEARCH, budget=budget))
    assert [i for i, one in enumerate(trials) if one.is_chosen] == [expected]
    assert sizes == (20, 20)


def test_the_figures_by_hand():
    trials, _ = compare([FULL, *OTHERS], made(), SEARCH)
    assert [one.here.relative_time for one in trials] == [1.0, 0.6, 0.3, 0.8, 0.7]
    assert trials[2].held_out.match_ms == 3.0
    full, other = (100 * auc([error] * 20, [5])[0] for error in (1.0, 2.0))
    assert trials[2].here.auc == pytest.approx(other)
    assert trials[2].held_out.lost == pytest.approx(full - other)
    assert trials[2].held_out.lost_interval == pytest.approx((full - other, full - other))
    assert [one.on_front for one in trials] == [False, True, True, True, False]
    assert trials[4].held_out.lost_interval is None


def test_nothing_faster_is_good_enough():
    trials, _ = compare([FULL, OTHERS[1]], made(errors=(1.0, 3.0), times=(5.0, 1.0)), SEARCH)
    assert trials[0].is_chosen


def test_of_equally_fast_settings_the_more_accurate_is_chosen():
    trials, _ = compare([FULL, *OTHERS[:2]], made(errors=(1.0, 1.02, 1.0), times=(9.0, 4.0, 4.0)), SEARCH)
    assert trials[2].is_chosen
    assert not trials[1].on_front


def as_tuning(trials, sizes, budget):
    return Tuning(
        benchmark="made", protocol="made 1", judged_by="nobody", budget=budget, matcher="m", weights="0", options={},
        machine={}, versions={}, num_pairs=sizes, own=OTHERS[0], trials=tuple(trials), problems=("a.png: broken",),
    )  # fmt: skip


def test_a_choice_that_only_fits_where_it_was_made_is_called_so():
    outcomes = made(errors=(1.0, 1.0), times=(9.0, 3.0))
    first = halves([one.name for one in outcomes])
    outcomes = [
        one if is_first else replace(one, errors=(1.0, 3.0)) for one, is_first in zip(outcomes, first, strict=True)
    ]
    tuning = as_tuning(*compare([FULL, OTHERS[0]], outcomes, SEARCH), budget=0.5)
    assert tuning.chosen.here.lost == 0
    assert tuning.chosen.held_out.lost > 20
    assert not tuning.is_certain
    assert "MORE than the budget of 0.5" in str(tuning)


def test_a_choice_among_noise_is_not_certain():
    outcomes = made(errors=(1.0, 1.0), times=(9.0, 3.0), spread=3.0, seed=5)
    tuning = as_tuning(*compare([FULL, OTHERS[0]], outcomes, replace(SEARCH, budget=5.0)), budget=5.0)
    low, high = tuning.chosen.held_out.lost_interval
    assert low < tuning.chosen.held_out.lost <= 5 < high
    assert not tuning.is_certain
    assert "not certain" in str(tuning)


def test_what_people_and_programs_get():
    tuning = as_tuning(*compare([FULL, *OTHERS], made(), SEARCH), budget=0.5)
    text = str(tuning)
    assert tuning.is_certain
    assert "not certain" not in text
    assert "1.67 times as fast" in text
    assert "not used: a.png: broken" in text
    assert "depth_confidence=0.95, width_confidence=None, filter_threshold=0.1" in text
    rows = [line for line in text.splitlines() if line.endswith(("full model", "the weights' own", "]"))]
    assert len(rows) == 4  # of five: one is neither on the front, nor full, nor own
    assert [row.split()[0] for row in rows] == ["0.9", "*", "0.8", "off"]
    plot = [line.split("|", 1)[1] for line in text.splitlines() if line[6:8] == " |"]
    assert plot[0].rstrip().endswith("o")  # the best is the second slowest; nothing is above it
    assert plot[-1].strip() == "o"  # the fastest is the worst
    assert sum(row.count("*") for row in plot) == sum(row.count("F") for row in plot) == 1
    values = json.loads(json.dumps(tuning.as_dict(), allow_nan=False))
    assert values["chosen"] == {"depth_confidence": 0.95, "width_confidence": None, "filter_threshold": 0.1}
    assert len(values["trials"]) == 5
    assert values["certain"] is True


def test_budgets_that_decide_nothing_and_too_few_pairs():
    with pytest.raises(InputError, match="any setting would do"):
        compare([FULL, OTHERS[0]], made(errors=(math.inf, math.inf), times=(2.0, 1.0)), SEARCH)
    with pytest.raises(InputError, match=r"80\.5 AUC points, so a budget of 90"):
        compare([FULL, *OTHERS], made(), replace(SEARCH, budget=90.0))
    outcomes = [*made()[:3], Outcome(name="bad", problem="no file")]
    with pytest.raises(InputError, match=r"3 pairs could be used.*bad: no file"):
        compare([FULL, *OTHERS], outcomes, SEARCH)


# --- measuring


def test_stopping_early_is_chosen_where_it_costs_nothing(benchmark, tmp_path):
    result = tune(benchmark, make_pipeline(), tmp_path / "out", FEW, judge=Judge(early_fails=False))
    assert result.chosen.setting.depth_confidence in (0.9, 0.95)
    assert result.chosen.held_out.relative_time < 0.7
    assert result.chosen.held_out.lost == 0
    assert result.problems == ("x.txt: bad",)
    written = read_signed_json(tmp_path / "out" / "tune-same-random-lightglue.json")
    assert written == result.as_dict()


def test_all_layers_are_run_where_stopping_early_fails(benchmark, tmp_path):
    result = tune(benchmark, make_pipeline(), tmp_path / "out", FEW, judge=Judge(early_fails=True))
    assert result.chosen.setting.depth_confidence is None
    early = [one for one in result.trials if one.setting.depth_confidence is not None]
    assert all(one.here.auc == 0 and one.here.relative_time < 0.9 for one in early)


def test_by_the_solver(benchmark, tmp_path):
    """An image is matched with itself: the homography is the identity, whatever the layers."""
    pytest.importorskip("poselib")
    [first, *_] = outcomes = list(measure(benchmark, make_pipeline(), tmp_path / "out", replace(FEW, filters=(0.0,))))
    assert len(first.errors) == len(first.match_ms) == 6
    assert all(error < 1e-3 for one in outcomes for error in one.errors)


def test_a_killed_run_goes_on_where_it_was(benchmark, tmp_path):
    killed = Judge(early_fails=True, interrupt_at="3")
    with pytest.raises(KeyboardInterrupt):
        list(measure(benchmark, make_pipeline(), tmp_path, FEW, judge=killed))
    pipeline, judge = make_pipeline(), Judge(early_fails=True)
    outcomes = list(measure(benchmark, pipeline, tmp_path, FEW, judge=judge))
    assert set(killed.calls) == {"0", "1", "2"}
    assert set(judge.calls) == {"3", "4", "5"}
    assert pipeline.extractor.calls == 2  # image 3 was extracted before the end
    again = Judge(early_fails=True)
    assert list(measure(benchmark, make_pipeline(), tmp_path, FEW, judge=again)) == outcomes
    assert not again.calls
    assert math.inf in outcomes[0].errors
    list(measure(benchmark, pipeline, tmp_path, replace(FEW, filters=(0.0, 0.6)), judge=again))
    assert set(again.calls) == set("012345")


def test_a_damaged_outcome_is_measured_again(benchmark, tmp_path):
    list(measure(benchmark, make_pipeline(), tmp_path, FEW, judge=Judge(early_fails=True)))
    [folder] = (tmp_path / "tune").iterdir()
    sorted(folder.iterdir())[0].write_text('{"name": "0", "err')
    judge = Judge(early_fails=True)
    assert len(list(measure(benchmark, make_pipeline(), tmp_path, FEW, judge=judge))) == 6
    assert len(set(judge.calls)) == 1


def test_a_bad_pair_is_named_and_the_others_are_kept(benchmark, tmp_path):
    (tmp_path / "2.png").unlink()
    unknown = replace(benchmark.pairs[4], homography=None)
    pairs = (*benchmark.pairs[:4], unknown, benchmark.pairs[5])
    outcomes = list(measure(replace(benchmark, pairs=pairs), make_pipeline(), tmp_path / "out", FEW))
    assert [one.name for one in outcomes if one.problem] == ["2", "4"]
    assert "2.png" in outcomes[2].problem
    assert "neither" in outcomes[4].problem


def test_what_cannot_be_tuned(benchmark, tmp_path):
    nearest = Pipeline(custom_extractor=Corners(), matcher="nearest", device="cpu")
    with pytest.raises(InputError, match="'nearest', which has no adaptive settings"):
        tune(benchmark, nearest, tmp_path)
    with pytest.raises(InputError, match="adaptive=False"):
        tune(benchmark, make_pipeline(adaptive=False), tmp_path)
    with pytest.raises(InputError, match=r"no solver 'ransac' for a homography; there are .*poselib"):
        tune(benchmark, make_pipeline(), tmp_path, Search(solver="ransac"))
