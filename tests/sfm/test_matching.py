"""Matches of many pairs of a store: each pair once, in an order that reuses features, by one process or several."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

from isinglass.errors import InputError, IsinglassError
from isinglass.extractors.xfeat import XFeat
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.nearest import Nearest
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.sfm import matching, workers
from isinglass.sfm.extraction import feature_settings
from isinglass.sfm.matching import Chunk, MatchRun, Views, chunks_of, match_chunk, match_stored, settings_of
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.sfm.workers import match_with_workers
from isinglass.types import Signature
from isinglass.weights.checkpoint import save_checkpoint
from support import make_features

NAMES = [f"s/{i}.jpg" for i in range(7)]
PAIRS = list(itertools.combinations(NAMES, 2))
OPTIONS = {"extractor": "rootsift", "matcher": "nearest", "device": "cpu"}


def made(i):
    """Features of image i, of which some are like those of the others."""
    features = make_features(20 + i, channels=128, seed=i, extractor="rootsift")
    features.descriptors[0, :15] = make_features(15, channels=128).descriptors[0] + 0.05 * features.descriptors[0, :15]
    return features


@pytest.fixture
def features(tmp_path):
    store = FeatureStore(tmp_path / "f.h5", Signature(extractor="rootsift"), '{"resize": 640}')
    store.add({name: made(i) for i, name in enumerate(NAMES)}, {name: f"digest {name}" for name in NAMES})
    store.merge()
    return store


class Counting(Nearest):
    """Notes how many pairs came at a time."""

    max_tokens = 100

    def __init__(self):
        super().__init__()
        self.calls = []

    def match_many(self, features0, features1):
        self.calls.append(len(features0))
        return super().match_many(features0, features1)


def run(features, pairs=PAIRS, matcher=None, **more):
    matcher = matcher or Counting()
    settings = settings_of(matcher, features.settings)
    return match_stored(features, pairs, features.path.with_name("m.h5"), matcher, settings=settings, **more)


def contents(path):
    with MatchStore(path) as store:
        return {pair: (one.indices.tobytes(), one.scores.tobytes(), one.stop_layer) for pair, one in _all(store)}


def _all(store):
    return [(pair, store.get(*pair)) for pair in store]


# ---- match_stored


def test_matches_are_those_of_the_matcher(tmp_path, features):
    told = []
    result = run(features, tell=lambda *done: told.append(done))
    assert (result.made, result.reused, result.problems) == (21, 0, {})
    assert result.seconds > 0
    assert told[0] == (0, 21)
    assert told[-1] == (21, 21)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    with MatchStore(tmp_path / "m.h5") as store:
        assert list(store) == sorted(PAIRS)
        for name0, name1 in PAIRS:
            (expected,) = Nearest().match_many([features.get(name0)], [features.get(name1)])
            found = store.get(name0, name1)
            assert np.array_equal(found.indices, expected.indices[0].numpy())
            assert np.array_equal(found.scores, expected.scores[0].numpy())
            assert len(found.pairs()) > 10
            assert store.digests((name0, name1)) == (f"digest {name0}", f"digest {name1}")
        assert json.loads(store.settings)["features"] == {"resize": 640}
        assert store.signature == features.signature
    assert not (tmp_path / "m.h5.parts").exists()


def test_each_pair_is_matched_once(features):
    matcher = Counting()
    turned = [(name1, name0) for name0, name1 in PAIRS[:4]]
    assert run(features, [*PAIRS[:3], *turned, PAIRS[0]], matcher).made == 4
    assert sum(matcher.calls) == 4
    assert list(MatchStore(features.path.with_name("m.h5"))) == sorted([*PAIRS[:3], turned[3]])  # as first given
    result = run(features, PAIRS, matcher)
    assert (result.made, result.reused, sum(matcher.calls)) == (17, 4, 21)
    before = features.path.with_name("m.h5").stat().st_mtime_ns
    result = run(features, turned + PAIRS, matcher)
    assert (result.made, result.reused, sum(matcher.calls)) == (0, 21, 21)
    assert features.path.with_name("m.h5").stat().st_mtime_ns == before


def test_pairs_of_a_changed_image_are_matched_again(tmp_path, features):
    run(features)
    features.add({NAMES[2]: made(50)}, {NAMES[2]: "changed"})
    result = run(features)
    assert (result.made, result.reused) == (6, 15)
    with MatchStore(tmp_path / "m.h5") as store:
        assert len(store.get(NAMES[2], NAMES[3]).indices) == 70
        assert store.digests((NAMES[1], NAMES[2])) == (f"digest {NAMES[1]}", "changed")


def test_pairs_that_cannot_be_matched_are_problems(tmp_path, features):
    strange = [("none", NAMES[0]), (NAMES[1], "no"), ("no", "none"), (NAMES[3], NAMES[3])]
    result = run(features, [*strange, *PAIRS[:2]])
    assert result.made == 2
    assert result.problems == {
        strange[0]: "there are no features of 'none'",
        strange[1]: "there are no features of 'no'",
        strange[2]: "there are no features of 'no' and 'none'",
        strange[3]: "an image is paired with itself",
    }
    assert run(features, strange[:1]).problems
    assert run(features, []).made == 0
    assert list(MatchStore(tmp_path / "m.h5")) == PAIRS[:2]


def test_damaged_features_are_problems_of_their_pairs(tmp_path, features):
    content = bytearray(features.path.read_bytes())
    content[content.find(made(1).keypoints.numpy().tobytes()) + 9] ^= 1
    features.path.write_bytes(content)
    result = run(FeatureStore(features.path))
    assert result.made == 15
    assert set(result.problems) == {pair for pair in PAIRS if NAMES[1] in pair}
    assert "is damaged" in result.problems[PAIRS[0]]


def test_other_settings_or_features_of_another_extractor(tmp_path, features):
    run(features)
    with pytest.raises(InputError, match=r"made with the settings .*0\.8"):
        run(features, matcher=Nearest(Nearest.Config(ratio=0.8)))
    matcher = Pipeline(extractor="rootsift", matcher="lightglue-sift-small", device="cpu").matcher
    other = FeatureStore(tmp_path / "o.h5", Signature(extractor="disk"), "")
    other.add({name: make_features(5, channels=128, extractor="disk") for name in NAMES})
    with pytest.raises(InputError, match="features of 'disk', but 'lightglue-sift-small' was made for"):
        match_stored(other, PAIRS, tmp_path / "n.h5", matcher, settings="")


def test_names_that_hloc_cannot_tell_apart_are_told_before_any_work(tmp_path):
    store = FeatureStore(tmp_path / "f.h5", Signature(extractor="rootsift"), "")
    names = ["a/b.jpg", "a-b.jpg", "c.jpg"]
    store.add({name: made(i) for i, name in enumerate(names)})
    matcher = Counting()
    with pytest.raises(InputError, match=r"one name 'a-b\.jpg'"):
        run(store, list(itertools.combinations(names, 2)), matcher)
    assert matcher.calls == []
    assert run(store, [(names[0], names[2])], matcher).made == 1


# ---- batches, chunks, order


def test_batches_are_filled_with_keypoints(features):
    matcher = Counting()
    matcher.max_tokens = 2**20
    run(features, matcher=matcher)
    assert matcher.calls == [21]
    matcher = Counting()  # of 100 keypoints: pairs of 41 to 51
    features.path.with_name("m.h5").unlink()
    run(features, matcher=matcher)
    assert sum(matcher.calls) == 21
    assert set(matcher.calls) == {1, 2}
    matcher.max_tokens, matcher.calls = 10, []  # less than a pair
    features.path.with_name("m.h5").unlink()
    run(features, matcher=matcher)
    assert matcher.calls == [1] * 21
    matcher.max_tokens, matcher.calls = 2**20, []
    features.path.with_name("m.h5").unlink()
    run(features, matcher=matcher, batch_pairs=4)
    assert matcher.calls == [4] * 5 + [1]


def test_a_run_that_goes_on_has_the_batches_of_a_whole_one(tmp_path, features):
    def batches(path):
        with MatchRun(features, PAIRS, path, settings="s", limits=(150, None), chunk_pairs=5) as one:
            return [tuple(batch) for chunk in one.chunks for batch in chunk.batches]

    whole = batches(tmp_path / "a.h5")
    assert len(whole) > 7
    with MatchRun(features, PAIRS, tmp_path / "b.h5", settings="s", limits=(150, None), chunk_pairs=5) as one:
        chunk = one.chunks[2]
        chunk.batches.pop(0)
        first = Chunk(chunk.batches[:1])
        for found in match_chunk(features.get, first, Nearest()):
            one.take(found)
    assert set(batches(tmp_path / "b.h5")) == set(whole) - {tuple(first.batches[0])}


def shuffled_pairs(clusters, size):
    """All pairs within each of some groups of images, whose names say nothing."""
    names = [f"{i:04}" for i in range(clusters * size)]
    random.Random(0).shuffle(names)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    random.Random(1).shuffle(pairs)
    return pairs


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_chunks_are_all_pairs_once(size):
    pairs = shuffled_pairs(3, 10)
    chunks = chunks_of(pairs, size)
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert sorted(pair for chunk in chunks for pair in chunk) == sorted(pairs)
    assert chunks_of(pairs[::-1] + pairs[:5], size) == chunks  # whatever the order they come in
    assert chunks_of([], size) == []


def reads(pairs, held):
    """How often features are read when so many images are held."""

    class Store:
        def get(self, name):
            return make_features(125, channels=2)  # 125 * (2 + 2 + 1) * 4 + 2 * 8 bytes

    views = Views(Store(), torch.device("cpu"), 1)
    views.most = held * 2516
    for one in itertools.chain(*pairs):
        views.get(one)
    assert len(views._held) <= held
    return views.read


def test_the_order_reuses_features():
    everything = list(itertools.combinations([f"{i:03}" for i in range(160)], 2))
    in_order = [pair for chunk in chunks_of(everything, 64) for pair in chunk]
    assert reads(in_order, held=160) == 160
    assert reads(in_order, held=128) < 700
    assert reads(in_order, held=20) < 5000
    assert reads(everything, held=20) > 12000  # as they came
    groups = shuffled_pairs(30, 12)
    in_order = [pair for chunk in chunks_of(groups, 64) for pair in chunk]
    assert reads(in_order, held=30) < 400  # of 360 images
    assert reads(groups, held=30) > 3000


def test_one_image_larger_than_the_memory(features):
    views = Views(features, torch.device("cpu"), 0)
    assert views.get(NAMES[0]).keypoints.shape == (1, 20, 2)
    assert views.get(NAMES[0]) is views.get(NAMES[0])
    assert views.get(NAMES[1]).keypoints.shape == (1, 21, 2)
    assert views.read == 2


# ---- stopped runs


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_stopped_keeps_what_it_made(tmp_path, features, error):
    def stop(done, _):
        if done >= 8:
            raise error

    with pytest.raises(error):
        run(features, tell=stop)
    kept = len(MatchStore(tmp_path / "m.h5"))
    assert 8 <= kept < 12
    result = run(features)
    assert (result.made, result.reused) == (21 - kept, kept)


def test_parts_come_as_the_run_goes(tmp_path, features, monkeypatch):
    monkeypatch.setattr(matching, "SECONDS_A_PART", 0.0)
    seen = []
    run(features, tell=lambda *_: seen.append(len(list(tmp_path.glob("m.h5.parts/*.h5")))))
    assert seen == list(range(len(seen)))
    assert len(seen) > 10


# ---- several processes


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(workers, "PAIRS_A_CHUNK", 4)


def by_workers(features, pairs=PAIRS, **more):
    path = features.path.with_name("w.h5")
    return match_with_workers(features.path, pairs, path, Options(**OPTIONS), **{"workers": 2} | more)


def test_workers_find_what_one_process_finds(tmp_path, features, small_chunks):
    run(features, matcher=Nearest())
    told = []
    result = by_workers(features, [*PAIRS, ("none", NAMES[0])], tell=lambda *done: told.append(done))
    assert (result.made, result.reused, list(result.problems)) == (21, 0, [("none", NAMES[0])])
    assert told[-1] == (22, 22)
    assert contents(tmp_path / "w.h5") == contents(tmp_path / "m.h5")
    assert by_workers(features).reused == 21  # without any worker
    assert multiprocessing.active_children() == []


def test_a_killed_worker_loses_nothing(tmp_path, features, small_chunks):
    run(features, matcher=Nearest())
    killed = []

    def kill(done, _):
        if done and len(killed) < 2:
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    result = by_workers(features, tell=kill)
    assert len(killed) == 2
    assert (result.made, result.problems) == (21, {})
    assert contents(tmp_path / "w.h5") == contents(tmp_path / "m.h5")


def test_a_chunk_that_kills_its_workers_is_a_problem(features, small_chunks, monkeypatch):
    """Whoever gets it dies, three times; the other chunks are done."""
    hand_out, killed = workers._Team._hand_out, []

    def deadly(self, worker):
        if self.waiting and PAIRS[0] in self.waiting[0].pairs:
            worker.process.kill()
            worker.process.join()
            killed.append(self.waiting[0])
        hand_out(self, worker)

    monkeypatch.setattr(workers._Team, "_hand_out", deadly)
    result = by_workers(features, workers=1)
    assert len(killed) == 3
    assert result.made == 17
    assert sorted(result.problems) == sorted(killed[0].pairs)
    assert "3 workers failed at these pairs: a worker process ended with -9" in result.problems[PAIRS[0]]


def test_what_the_matcher_refuses_is_an_error(features, small_chunks):
    features.add({NAMES[6]: make_features(9, channels=64, extractor="rootsift")})
    with pytest.raises(InputError, match="64-d descriptors; 'nearest' expects 128-d"):
        by_workers(features)
    with pytest.raises(InputError, match="64-d descriptors; 'nearest' expects 128-d"):
        run(features)


def test_workers_that_end_at_once(features, monkeypatch):
    monkeypatch.setattr(workers, "_serve", os._exit)
    with pytest.raises(IsinglassError, match="workers end before they begin"):
        by_workers(features)
    with pytest.raises(InputError, match="workers is 0"):
        by_workers(features, workers=0)


def test_weights_that_were_changed_by_hand_are_other_settings(tmp_path):
    torch.manual_seed(0)
    saved = save_checkpoint(
        LightGlue(LightGlue.Config(input_size=8, width=16, layers=1, heads=2)),
        tmp_path / "a.safetensors",
        name="a",
        licence="Apache-2.0",
        trained_on="nothing",
    )
    model, again = LightGlue.pretrained(saved), LightGlue.pretrained(saved)
    settings = settings_of(model, "")
    assert settings == settings_of(again, "") and "changed_weights" not in settings
    next(model.parameters()).data.mul_(1.01)
    changed = settings_of(model, "")
    assert changed != settings and json.loads(changed)["changed_weights"]
    model.load_state_dict(again.state_dict())
    assert settings_of(model, "") == settings


def test_extractor_weights_that_were_changed_by_hand_are_other_settings():
    pipeline = Pipeline(custom_extractor=XFeat(), matcher="nearest", device="cpu")
    first = feature_settings(pipeline)
    pipeline.extractor.load_state_dict({name: value * 1.01 for name, value in pipeline.extractor.state_dict().items()})
    assert feature_settings(pipeline) != first  # both are of the signature "random"
