"""Many pairs of files: lists of pairs, results written once, a killed run that goes on, failures that stay local."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass import batch, options
from isinglass.batch import Outputs, extract_files, list_images, list_pairs, match_files, read_pairs
from isinglass.cache import FeatureCache, matching_key
from isinglass.errors import InputError, WriteError
from isinglass.files import load_features, load_matches
from isinglass.matchers.nearest import Nearest
from isinglass.pipeline import Pipeline
from isinglass.types import Signature

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
        super().__init__(extractor="rootsift", matcher="nearest", **({"max_keypoints": 150, "resize": 300} | options))
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


# --- a result names the run that made it


def stopped(pipeline, **options):
    """A run that is killed as it starts to write a pair's report, with all files of the pair there."""

    class Killed(Exception):
        pass

    def kill(self, told):
        if told["key"] is not None:
            raise Killed
        original(self, told)

    original = batch._Job._report
    batch._Job._report = kill
    try:
        with pytest.raises(Killed):
            run(pipeline=pipeline, **options)
    finally:
        batch._Job._report = original


def test_a_run_killed_between_its_files_and_its_report_leaves_no_report_of_another(photos, tmp_path):
    run(photos, tmp_path, Counting(max_keypoints=60))
    stopped(Counting(max_keypoints=120), photos=photos, out=tmp_path)
    assert len(load_matches(tmp_path / "0-1.npz").keypoints0) == 120
    again = run(photos, tmp_path, Counting(max_keypoints=60))
    assert [report.reused for report in again] == [False, True, True, True, True, True]
    assert len(load_matches(tmp_path / "0-1.npz").keypoints0) == again[0].num_keypoints0 == 60


def test_a_report_does_not_describe_a_file_that_something_else_wrote(photos, tmp_path):
    pytest.importorskip("matplotlib")
    run(photos, tmp_path, picture=True)
    shutil.copy(tmp_path / "0-2.npz", tmp_path / "0-1.npz")
    shutil.copy(tmp_path / "0-2.png", tmp_path / "0-3.png")
    (tmp_path / "1-2.png").unlink()
    again = run(photos, tmp_path, picture=True)
    assert [report.reused for report in again] == [False, True, False, False, True, True]
    assert (tmp_path / "1-2.png").is_file()


def test_results_of_pairs_with_equal_names_are_all_kept(photos, tmp_path):
    for sequence, images in (("seq1", "01"), ("seq2", "23"), ("SEQ3", "12")):
        (tmp_path / sequence).mkdir()
        for number, image in enumerate(images, start=1):
            suffix = "JPG" if sequence == "SEQ3" else "jpg"
            Image.open(photos / f"{image}.png").save(tmp_path / sequence / f"{number}.{suffix}", "PNG")
    pairs = [
        (tmp_path / s / f"1.{e}", tmp_path / s / f"2.{e}")
        for s, e in (("seq1", "jpg"), ("seq2", "jpg"), ("SEQ3", "JPG"))
    ]
    outputs = Outputs(folder=tmp_path / "out", picture=False)
    alone = [next(iter(match_files([pair], Counting(), outputs))) for pair in pairs]
    assert [Path(report.outputs[0]).name[:4] for report in alone] == ["1-2.", "1-2-", "1-2-"]
    assert len({report.outputs[0] for report in alone}) == 3
    together = list(match_files(pairs[::-1], Counting(), outputs))
    assert [report.outputs for report in together[::-1]] == [report.outputs for report in alone]
    assert all(report.reused for report in together)
    for report in alone:
        assert len(load_matches(report.outputs[0]).points0) == report.num_matches


def test_a_pair_keeps_its_name_when_a_photo_changes_or_all_move(photos, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(photos / name, tmp_path / "a" / name)
    run(tmp_path / "a", tmp_path / "out")
    (tmp_path / "a").rename(tmp_path / "b")
    assert run(tmp_path / "b", tmp_path / "out")[0].reused
    shutil.copy(photos / "2.png", tmp_path / "b" / "1.png")
    changed = run(tmp_path / "b", tmp_path / "out")[0]
    assert not changed.reused and changed.outputs == [str(tmp_path / "out" / "0-1.npz")]


def test_a_photo_is_never_overwritten_by_a_picture(photos, tmp_path):
    pytest.importorskip("matplotlib")
    for source, name in (("0", "0"), ("1", "1"), ("2", "0-1")):
        shutil.copy(photos / f"{source}.png", tmp_path / f"{name}.png")
    pair = [(tmp_path / "0.png", tmp_path / "1.png")]
    (report,) = match_files(pair, Counting(), Outputs(folder=tmp_path))
    assert (tmp_path / "0-1.png").read_bytes() == (photos / "2.png").read_bytes()
    assert Path(report.outputs[1]).name.startswith("0-1-")
    assert [path.name for path in list_images(tmp_path)] == ["0-1.png", "0.png", "1.png"]


def test_names_of_any_kind_are_pairs_like_others(photos, tmp_path):
    pytest.importorskip("matplotlib")
    names = ["a" * 140 + ".png", "ä" * 100 + ".png", "$x^$ #3 'q\" 100%.png", "-rf.png", "写真👩‍👩‍👧.png"]
    if os.name == "posix":
        names.append(os.fsdecode(b"caf\xe9.png"))
    for name in names:
        shutil.copy(photos / "0.png", tmp_path / name)
    pairs = [(tmp_path / name, photos / "1.png") for name in names]
    pairs += [(tmp_path / names[0], tmp_path / names[1]), (tmp_path / ("b" * 300 + ".png"), photos / "1.png")]
    reports = list(match_files(pairs, Counting(), Outputs(folder=tmp_path / "out", formats=("npz", "json"))))
    assert [report.error is None for report in reports] == [True] * (len(names) + 1) + [False]
    assert len({name for report in reports[:-1] for name in report.outputs}) == 3 * (len(names) + 1)
    assert all(report.num_matches == reports[0].num_matches for report in reports[: len(names)])


def test_a_name_that_cannot_be_written_is_the_pairs_fault_and_a_full_disk_is_not(photos, tmp_path, monkeypatch):
    (tmp_path / "0-1.npz").mkdir(parents=True)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "0-1.json").write_text("{}")  # so that the name is taken for the pair's
    reports = run(photos, tmp_path)
    assert [report.error is None for report in reports] == [False] + [True] * 5
    assert "0-1.npz" in reports[0].error

    def full(*arguments):
        raise WriteError("full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch, "save_matches", full)
    with pytest.raises(WriteError, match="full"):
        run(photos, tmp_path / "other")


def test_a_photo_that_fails_while_matching_fails_its_pair_alone(photos, tmp_path):
    class Failing(Counting):
        def match_features(self, features0, candidates1):
            if any(float(one.image_size[0, 0]) == 300 and one.keypoints.shape[1] == 77 for one in features0):
                raise InputError("these features cannot be matched")
            return super().match_features(features0, candidates1)

        def extract_turns(self, image, mask=None, *, turns=(0, 1, 2, 3)):
            found = super().extract_turns(image, mask, turns=turns)
            return [one.top(77) for one in found] if image.name == "2.png" else found

    reports = run(photos, tmp_path, Failing(), batch_size=6)
    assert [report.error is None for report in reports] == [True, True, True, True, True, False]
    assert "cannot be matched" in reports[-1].error


def test_masks_by_image(photos, tmp_path):
    left = np.zeros((300, 300), np.uint8)
    left[:, :150] = 255
    Image.fromarray(left).save(tmp_path / "mask.png")
    masks = {photos / "0.png": tmp_path / "mask.png"}
    reports = run(photos, tmp_path / "out", masks=masks)
    assert float(load_matches(reports[0].outputs[0]).keypoints0[:, 0].max()) < 151
    assert float(load_matches(reports[5].outputs[0]).keypoints0[:, 0].max()) > 200
    ((_, _, masked), (_, _, whole), *_) = extract_files(list_images(photos), Counting(), tmp_path / "f", masks=masks)
    assert float(masked.keypoints[..., 0].max()) < 151 < float(whole.keypoints[..., 0].max())


# --- keys


def test_what_features_depend_on_is_stated_once():
    import inspect

    from isinglass import cache, options
    from isinglass.sfm.extraction import feature_settings
    from isinglass.train import posed, store

    known = {field.name for field in fields(options.Options)}
    assert known >= options.NOT_OF_FEATURES and known >= options.NOT_OF_MATCHES
    assert json.loads(feature_settings(Counting())) == options.feature_settings(Counting().options, None)
    for module in (cache, posed, store):
        assert "features_key(" in inspect.getsource(module)


def test_settings_of_stores_are_those_of_earlier_versions():
    from isinglass.sfm.extraction import feature_settings

    assert feature_settings(Counting(rotation="auto")) == (
        '{"max_keypoints": 150, "resize": 300, "resize_side": "long", "rotation": "exif", "tile": null, '
        '"tile_overlap": null, "min_distance": 1.0}'
    )


@pytest.mark.parametrize(
    ("option", "matters"),
    [
        ({"device": "cpu"}, (False, False)),
        ({"accept_licence": True}, (False, False)),
        ({"ratio": 0.8}, (False, True)),
        ({"adaptive": False}, (False, True)),
        ({"rotation": "auto"}, (False, True)),
        ({"rotation": "none"}, (True, True)),
        ({"resize": 999}, (True, True)),
        ({"tile": 128}, (True, True)),
        ({"min_distance": 2.0}, (True, True)),
        ({"stretch": "percentile"}, (True, True)),
    ],
)
def test_keys_change_with_what_results_depend_on_and_nothing_else(photos, tmp_path, option, matters):
    plain, changed = Counting(), Counting(**option)
    keys = [(FeatureCache(p, tmp_path).key(photos / "0.png"), matching_key(p)) for p in (plain, changed)]
    assert tuple(one != other for one, other in zip(*keys, strict=True)) == matters


def test_an_option_that_is_added_counts_at_once():
    @dataclass(frozen=True, kw_only=True)
    class Newer(options.Options):
        sharpen: str = "auto"

    assert options.feature_settings(Newer(), None) == options.feature_settings(options.Options(), None)
    assert options.feature_settings(Newer(sharpen="much"), None)["sharpen"] == "much"
    assert options.matching_options(Newer())["sharpen"] == "auto"


def test_weights_count_by_their_content(photos, tmp_path):
    def keys(matcher, extractor):
        pipeline = Pipeline(custom_extractor=extractor, custom_matcher=matcher)
        return matching_key(pipeline), FeatureCache(pipeline, tmp_path).key(photos / "0.png")

    class Mine(torch.nn.Module):
        name, limit = "mine", 0.5
        signature = Signature(extractor="mine")

        def __init__(self, limit=0.5):
            super().__init__()
            self.linear, self.limit, self.bytes_per_pixel = torch.nn.Linear(2, 2), limit, None

    model = Mine()
    before = keys(model, model)
    assert before == keys(model, model)
    with torch.no_grad():
        model.linear.weight.data[0, 0] += 1e-6
    changed = keys(model, model)
    assert changed[0] != before[0] and changed[1] != before[1]
    other = Mine(limit=0.6)
    other.load_state_dict(model.state_dict())
    assert keys(other, other)[0] != changed[0]

    class Further(Mine):
        pass

    further = Further()
    further.load_state_dict(model.state_dict())
    assert keys(further, further)[0] != changed[0]


def test_a_photo_that_changes_while_a_cache_is_open_is_seen(photos, tmp_path):
    cache, photo = FeatureCache(Counting(), tmp_path / "features"), tmp_path / "a.png"
    shutil.copy(photos / "0.png", photo)
    first = cache.key(photo)
    Image.fromarray(np.array(Image.open(photo))[::-1]).save(photo)
    assert cache.key(photo) != first
