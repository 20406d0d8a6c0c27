"""Many pairs of files: lists of pairs, results written once, a killed run that goes on, failures that stay local."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.batch import Outputs, extract_files, list_images, list_pairs, match_files, read_pairs
from isinglass.errors import InputError, WriteError
from isinglass.files import load_features, load_matches
from isinglass.matchers.nearest import Nearest
from isinglass.pipeline import Pipeline

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def photos(motorcycle, tmp_path_factory):
    """A folder of four overlapping photos of 300 x 300 px."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        crop = (motorcycle[0][:, 100:400, 60 * i : 60 * i + 300] * 255).round().to(torch.uint8)
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


class Counting(Pipeline):
    """SIFT, counting what is computed."""

    def __init__(self, **options):
        super().__init__(extractor="rootsift", matcher="nearest", max_keypoints=150, **options)
        self.extracted, self.matched = [], 0

    def extract_turns(self, image, mask=None, *, turns=(0, 1, 2, 3)):
        self.extracted.append(image.name)
        return super().extract_turns(image, mask, turns=turns)

    def match_features(self, features0, candidates1):
        self.matched += len(features0)
        return super().match_features(features0, candidates1)


def run(photos, out, pipeline=None, **options):
    outputs = Outputs(folder=out, picture=options.pop("picture", False), formats=options.pop("formats", ("npz",)))
    return list(match_files(list_pairs(photos), pipeline or Counting(), outputs, **options))


def test_pairs_of_files_and_folders(photos, tmp_path):
    one, two = photos / "0.png", photos / "1.png"
    assert list_pairs(one, two) == [(one, two)]
    assert len(list_pairs(photos)) == 6
    assert len(list_pairs(photos, photos)) == 16
    assert list_pairs(one, photos)[2] == (one, photos / "2.png")
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(InputError, match="there is no image in"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="give a second one, or a folder"):
        list_pairs(one)
    with pytest.raises(InputError, match="no file or folder"):
        list_pairs(one, tmp_path / "missing.png")


def test_pairs_from_a_text_file(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("# a comment\na.jpg b.jpg 0 0 1 0\n\nc/d.jpg b.jpg\n")
    assert read_pairs(path) == [(tmp_path / "a.jpg", tmp_path / "b.jpg"), (tmp_path / "c/d.jpg", tmp_path / "b.jpg")]
    path.write_text("a.jpg b.jpg\nlonely.jpg\n")
    with pytest.raises(InputError, match=r"line 2 of .* is 'lonely.jpg'"):
        read_pairs(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path)


def test_each_image_is_extracted_once_and_each_pair_matched_once(photos, tmp_path):
    first = Counting()
    reports = run(photos, tmp_path, first)
    assert sorted(first.extracted) == ["0.png", "1.png", "2.png", "3.png"]
    assert first.matched == 6
    assert all(report.error is None and not report.reused for report in reports)
    again = Counting()
    repeated = run(photos, tmp_path, again)
    assert again.extracted == [] and again.matched == 0
    assert all(report.reused for report in repeated)
    assert [r.num_matches for r in repeated] == [r.num_matches for r in reports]
    saved = load_matches(reports[0].outputs[0])
    assert len(saved.points0) == reports[0].num_matches > 20


def test_batches_give_what_single_pairs_give(photos, tmp_path):
    together, alone = run(photos, tmp_path / "a", batch_size=4), run(photos, tmp_path / "b")
    for one, other in zip(together, alone, strict=True):
        assert (one.image0, one.image1, one.num_matches) == (other.image0, other.image1, other.num_matches)


def test_other_options_or_another_image_are_not_taken_for_the_same(photos, tmp_path):
    run(photos, tmp_path)
    changed = Counting(resize=500)
    assert not any(report.reused for report in run(photos, tmp_path, changed))
    assert len(changed.extracted) == 4
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in list_images(photos):
        (folder / image.name).write_bytes(image.read_bytes())
    out = tmp_path / "out"
    run(folder, out)
    Image.fromarray(np.array(Image.open(folder / "0.png"))[::-1]).save(folder / "0.png")
    flipped = Counting()
    reports = run(folder, out, flipped)
    assert flipped.extracted == ["0.png"]
    assert [report.reused for report in reports] == [False, False, False, True, True, True]


def test_a_damaged_result_is_made_again(photos, tmp_path):
    run(photos, tmp_path)
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "reports" / "0-1.json").write_text('{"key": ')
    (tmp_path / "2-3.npz").unlink()
    pipeline = Counting()
    reports = run(photos, tmp_path, pipeline)
    assert [report.reused for report in reports] == [False, True, True, True, True, False]
    assert len(load_matches(tmp_path / "0-1.npz").points0) == reports[0].num_matches


def test_a_bad_image_fails_its_pairs_and_no_others(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    (folder / "2.jpg").write_text("no picture at all")
    (folder / "3.png").write_bytes((photos / "3.png").read_bytes()[:3000])
    reports = run(folder, tmp_path / "out")
    assert [report.error is None for report in reports] == [True, False, False, False, False, False]
    assert "2.jpg" in reports[1].error and "cannot be read as an image" in reports[1].error
    assert "3.png" in reports[2].error and "truncated" in reports[2].error


def test_a_folder_that_cannot_be_written_ends_the_run_at_once(photos, tmp_path):
    """It is not the images' fault: nothing more is extracted that could not be kept."""
    (tmp_path / "out").write_text("a file where the folder should be")
    pipeline = Counting()
    with pytest.raises(WriteError, match="cannot be written"):
        run(photos, tmp_path / "out", pipeline)
    assert len(pipeline.extracted) == 1


def test_another_matcher_is_not_taken_for_the_same(photos, tmp_path):
    run(photos, tmp_path)
    strict = Counting(custom_matcher=Nearest(Nearest.Config(distance=0.2)))
    assert not any(report.reused for report in run(photos, tmp_path, strict))
    assert strict.extracted == []


def test_names_of_results_never_collide(photos, tmp_path):
    for sub in ("a", "b"):
        (tmp_path / sub).mkdir()
        (tmp_path / sub / "0.png").write_bytes((photos / f"{'01'[sub == 'b']}.png").read_bytes())
    pairs = [(tmp_path / "a/0.png", photos / "2.png"), (tmp_path / "b/0.png", photos / "2.png")]
    reports = list(match_files(pairs, Counting(), Outputs(folder=tmp_path / "out", picture=False)))
    assert reports[0].outputs != reports[1].outputs


def test_a_full_run_writes_what_was_asked_for(photos, tmp_path):
    pytest.importorskip("h5py")
    pytest.importorskip("matplotlib")
    pytest.importorskip("poselib")
    pair = [(photos / "0.png", photos / "1.png")]
    outputs = Outputs(folder=tmp_path, formats=("npz", "h5", "json"))
    report = next(iter(match_files(pair, Counting(rotation="auto"), outputs)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "0-1.h5",
        "0-1.json",
        "0-1.npz",
        "0-1.png",
    ]
    with Image.open(tmp_path / "0-1.png") as picture:
        assert min(picture.size) > 400
    assert report.num_inliers > 0.8 * report.num_matches
    assert report.model == "homography"  # two crops of one photo
    assert set(report.timings_ms) == {"read", "extract", "match", "verify", "write"}
    assert torch.equal(load_matches(tmp_path / "0-1.h5").points1, load_matches(tmp_path / "0-1.npz").points1)
    assert len(json.loads((tmp_path / "0-1.json").read_text())["scores"]) == report.num_matches


def test_features_are_extracted_into_files_once(photos, tmp_path):
    pipeline = Counting()
    made = list(extract_files(list_images(photos), pipeline, tmp_path))
    assert [image.name for image, _, _ in made] == ["0.png", "1.png", "2.png", "3.png"]
    assert torch.equal(load_features(made[0][1]).keypoints, made[0][2].keypoints)
    again = Counting()
    list(extract_files(list_images(photos), again, tmp_path))
    assert again.extracted == []


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_whole(photos, tmp_path):
    """SIGKILL at growing delays; what is there is never torn, and never made twice."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isinglass", "match", str(photos), "-o", str(out), "--json", "--no-picture"]
    command += ["--extractor", "rootsift", "--matcher", "nearest", "--max-keypoints", "150"]
    finished: dict = {}
    start = time.monotonic()
    for attempt in range(40):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            text, _ = process.communicate(timeout=1.5 + 0.4 * attempt)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            text = None
        for path in (*out.glob("*.npz"), *(out / "reports").glob("*.json")):
            content = json.loads(path.read_text()) if path.suffix == ".json" else load_matches(path).points0.tolist()
            assert finished.setdefault((path, path.stat().st_mtime_ns), content) == content
        if text is not None:
            break
        assert time.monotonic() - start < 300
    reports = [json.loads(line) for line in text.splitlines()]
    assert len(reports) == 6 and all(report["error"] is None for report in reports)
    assert attempt > 0, "the first attempt must be killed, or this proves nothing"
