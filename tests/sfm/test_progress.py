"""How much is left, by a clock that the test turns; and stages that are each done once."""

import pytest

from isinglass.sfm.choice import PairOptions, expected_pairs
from isinglass.sfm.progress import GUESSES, Progress
from isinglass.sfm.stages import Stages, key_of


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_guesses_are_replaced_by_what_is_measured():
    clock = Clock()
    progress = Progress({"extract": 10, "match": 40, "reconstruct": 10}, clock)
    guessed = 10 * GUESSES["extract"] + 40 * GUESSES["match"] + 10 * GUESSES["reconstruct"]
    assert progress.left_s == pytest.approx(guessed)
    progress.update("extract", 0, 10)
    clock.now = 5 * GUESSES["extract"] * 3  # three times slower than guessed
    progress.update("extract", 5, 10)
    assert progress.left_s == pytest.approx(3 * (guessed - 5 * GUESSES["extract"]))
    progress.update("match", 0, 20)  # half as many as thought, at the same speed until more is known
    assert progress.left_s == pytest.approx(3 * (20 * GUESSES["match"] + 10 * GUESSES["reconstruct"]))


def test_what_an_earlier_run_did_says_nothing_of_the_speed():
    clock = Clock()
    progress = Progress({"match": 100}, clock)
    progress.update("match", 90, 100)
    clock.now = 1.0
    progress.update("match", 91, 100)
    assert progress.left_s == pytest.approx(9.0)


def test_nothing_is_left_in_the_end():
    progress = Progress({"extract": 2, "reconstruct": 3}, Clock())
    progress.update("reconstruct", 3, 3)
    assert progress.left_s == 0


def test_pairs_that_are_to_be_expected():
    assert expected_pairs(50, PairOptions()) == 1225
    assert expected_pairs(1000, PairOptions(neighbours=20)) == 20_000
    assert expected_pairs(1000, PairOptions(how="sequential", overlap=10, loops=5)) == 15_000
    assert expected_pairs(3, PairOptions(how="retrieval")) == 3


def test_a_stage_is_done_once(tmp_path):
    done = []

    def work():
        done.append(1)
        (tmp_path / "output").write_text("x")
        return {"made": len(done)}

    for key, reused, made in (("a", False, 1), ("a", True, 1), ("b", False, 2), ("a", False, 3)):
        stage = Stages(tmp_path / "stages").run("one", key, [tmp_path / "output"], work)
        assert (stage.reused, stage.result) == (reused, {"made": made})


def test_a_stage_whose_work_fails_or_whose_output_is_gone_is_done_again(tmp_path):
    def fail():
        raise KeyboardInterrupt

    stages = Stages(tmp_path / "stages")
    stages.run("one", "a", [], dict)
    with pytest.raises(KeyboardInterrupt):
        stages.run("one", "b", [], fail)
    assert not stages.run("one", "a", [], dict).reused
    assert not stages.run("one", "a", [tmp_path / "absent"], dict).reused
    (tmp_path / "stages/one.json").write_text('{"key": "a", ')
    assert not stages.run("one", "a", [], dict).reused


def test_keys_tell_apart_what_differs():
    assert key_of(["a", "b"], 1) == key_of(["a", "b"], 1)
    assert len({key_of(1), key_of("1"), key_of([1]), key_of(1, None), key_of({"a": 1}), key_of({"a": 2})}) == 6
