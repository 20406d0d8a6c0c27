"""The evaluation itself: the truth of matches in closed form, resumed runs, problems kept apart, the run's JSON."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.datasets.pairs import Benchmark, EvalPair, Pose
from isinglass.errors import InputError
from isinglass.eval import evaluate as module
from isinglass.eval.evaluate import Protocol, evaluate
from isinglass.eval.predictions import predict
from isinglass.eval.runs import load_run, save_run
from isinglass.eval.summary import summary
from isinglass.eval.truth import homography_indices, judge
from isinglass.files import SavedMatches
from isinglass.pipeline import Pipeline
from isinglass.types import Matches
from support import HOMOGRAPHY, make_features, warp

pytest.importorskip("cv2")
pytest.importorskip("poselib")


def saved(points0, points1, indices, size=(640, 480)):
    matches = Matches(indices=torch.tensor([indices]), scores=torch.ones(1, len(indices)), matcher="m")
    return SavedMatches(
        matches=matches,
        keypoints0=torch.tensor(points0, dtype=torch.float32),
        keypoints1=torch.tensor(points1, dtype=torch.float32),
        image_size0=size,
        image_size1=size,
        signature=make_features(1).signature,
    )


SHIFT = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])


def test_matches_are_right_within_3_px_of_the_homography():
    pair = EvalPair(name="a", image0=None, image1=None, homography=SHIFT)
    points0 = [[0, 0], [50, 50], [90, 90], [200, 200]]
    points1 = [[12.9, 0], [63.1, 50], [100, 90], [400, 400]]
    truth = judge(pair, saved(points0, points1, [0, 1, 2, -1]))
    assert truth.correct.tolist() == [1, 0, 1]
    assert truth.precision == pytest.approx(2 / 3)
    assert truth.matching_score == pytest.approx(2 / 4)
    assert truth.recall == pytest.approx(1.0)  # of the two keypoints with a true match; one at 3.1 px is ignored
    halved = judge(pair, saved(points0, points1, [0, 1, 2, -1]), scale=0.5)
    assert halved.correct.tolist() == [1, 1, 1]


def test_keypoints_are_matchable_unmatchable_or_ignored():
    keypoints0 = np.array([[0, 0], [50, 0], [90, 0], [150, 0]], np.float32)
    keypoints1 = np.array([[10, 0], [64, 0], [110, 0], [161, 0], [159.5, 0]], np.float32)
    true = homography_indices(keypoints0, keypoints1, SHIFT, 1.0)
    assert true.tolist() == [0, -2, -1, 4]
    assert homography_indices(keypoints0, keypoints1[:0], SHIFT, 1.0).tolist() == [-1] * 4


def test_matches_are_right_on_their_epipolar_line():
    """A camera that moves along x: right matches stay on their row."""
    camera = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    pose = Pose(rotation=np.eye(3), translation=np.array([1.0, 0, 0]))
    pair = EvalPair(name="a", image0=None, image1=None, pose=pose, camera0=camera, camera1=camera)
    truth = judge(pair, saved([[100, 100], [200, 200]], [[130, 100], [230, 260]], [0, 1]))
    assert truth.correct.tolist() == [1, 0]
    assert np.isnan(truth.recall)


@pytest.fixture(scope="module")
def benchmark(motorcycle, tmp_path_factory):
    """Three crops of a photo and their warps; one pair lacks its image, one its truth."""
    folder = tmp_path_factory.mktemp("benchmark")
    pairs = []
    for i in range(3):
        image = motorcycle[0][:, 50:450, 80 * i : 80 * i + 500]
        for name, pixels in ((f"{i}a.png", image), (f"{i}b.png", warp(image, HOMOGRAPHY))):
            Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(folder / name)
        pair = EvalPair(
            name=f"s/{i}",
            image0=folder / f"{i}a.png",
            image1=folder / f"{i}b.png",
            group="even" if i % 2 == 0 else "odd",
            homography=HOMOGRAPHY.numpy(),
        )
        pairs.append(pair)
    pairs.append(dataclasses.replace(pairs[0], name="s/gone", image1=folder / "gone.png"))
    pairs.append(dataclasses.replace(pairs[0], name="s/untold", homography=None))
    return Benchmark(
        name="crops", protocol="crops 1", task="homography", pairs=tuple(pairs), problems=("line 7: broken",)
    )


def pipeline(**options):
    return Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=400, resize=None, **options)


PROTOCOL = Protocol(solvers=("opencv-ransac", "poselib", "dlt"), thresholds_px=(1.0, 3.0))


def test_a_run_has_all_that_was_promised(benchmark, tmp_path):
    run = evaluate(benchmark, pipeline(), tmp_path, label="run", protocol=PROTOCOL)
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["benchmark"]["num_pairs"] == 3
    assert [problem.split(":")[0] for problem in info["benchmark"]["problems"]] == ["line 7", "s/gone", "s/untold"]
    assert info["weights"] == {"rootsift": "none", "nearest": "none"}
    for key in ("options", "solvers", "thresholds_px", "seed", "versions", "machine", "timings_ms", "best"):
        assert info[key] is not None
    assert {row["group"] for row in info["tables"]} == {"all", "even", "odd"}
    assert len(info["tables"]) == 3 * (2 + 2 + 1)
    assert info["best"]["poselib"]["metrics"]["auc@5"] > 0.8
    loaded = load_run(tmp_path / "run.json")
    assert loaded.pairs["names"].tolist() == ["s/0", "s/1", "s/2"]
    assert len(loaded.pairs["match_scores"]) == loaded.pairs["num_matches"].sum() == len(loaded.pairs["match_pair"])
    assert loaded.pairs["match_correct"].sum() == loaded.pairs["num_correct"].sum()
    assert loaded.pairs["precision"].min() > 0.5
    text = summary(run)
    assert "poselib" in text and "not used: s/gone" in text


def test_a_second_run_computes_nothing_again(benchmark, tmp_path, monkeypatch):
    first = evaluate(benchmark, pipeline(), tmp_path, label="a", protocol=PROTOCOL)
    again = pipeline()
    monkeypatch.setattr(type(again.extractor), "extract", None)  # of the class: an instance's own is another extractor
    monkeypatch.setattr(type(again.matcher), "match_many", None)
    second = evaluate(benchmark, again, tmp_path, label="b", protocol=PROTOCOL)
    assert second.info["tables"] == first.info["tables"]
    assert second.info["timings_ms"] == first.info["timings_ms"]
    with pytest.raises(TypeError):  # other options are another prediction
        list(predict(benchmark, dataclasses_replace_options(again, min_distance=2.0), tmp_path))


def dataclasses_replace_options(one, **options):
    one.options = dataclasses.replace(one.options, **options)
    return one


def test_a_benchmark_without_a_usable_pair_is_an_error(benchmark, tmp_path):
    gone = dataclasses.replace(benchmark, pairs=benchmark.pairs[3:4])
    with pytest.raises(InputError, match=r"no pair of crops could be used: line 7.*gone\.png"):
        evaluate(gone, pipeline(), tmp_path, label="run", protocol=PROTOCOL)


def test_a_solver_that_fails_is_infinitely_off(benchmark, tmp_path):
    none = saved([[0, 0]], [[0, 0]], [-1])
    assert module.solver_error(benchmark.pairs[0], none, "poselib", 1.0) == float("inf")


def test_a_file_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="is no run of `isinglass eval`"):
        load_run(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_run(tmp_path / "b.json")


def test_the_command_line_knows_the_benchmarks_that_there_are():
    from isinglass.cli import evaluation
    from isinglass.eval import benchmarks

    assert set(evaluation.BENCHMARKS) == set(benchmarks.LOADERS)
    assert evaluation.OF_PHOTOS == benchmarks.OF_PHOTOS


def test_a_run_whose_hash_is_gone_is_damaged(tmp_path):
    """Unless it is of a version that wrote none: then its arrays have no seal either."""
    path = tmp_path / "run.json"
    save_run(path, {"label": "a"}, {"error": np.array([1.0, np.nan])})
    info = json.loads(path.read_text())
    del info["sha256"]
    path.write_text(json.dumps({**info, "label": "b"}))
    with pytest.raises(InputError, match="its hash is gone"):
        load_run(path)
    np.savez(tmp_path / "run.npz", error=np.array([1.0]))
    assert load_run(path).info["label"] == "b"
