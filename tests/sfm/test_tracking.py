"""Tracks through frames whose truth is known: windows that move over one photo."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from isinglass.errors import InputError
from isinglass.pipeline import Pipeline
from isinglass.sfm.extraction import extract_images, feature_settings, image_names
from isinglass.sfm.frames import open_frames
from isinglass.sfm.matching import match_stored, matching_settings
from isinglass.sfm.sequences import track_sequence
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.sfm.tracking import NO_TRACK, Tracker, TrackOptions

WIDTH, HEIGHT, STEP_PX = 320, 240, 14
OPTIONS = TrackOptions(least_matches=15)
MATCHING = {"extractor": "rootsift", "matcher": "nearest", "ratio": 0.8, "max_keypoints": 500, "resize": None}
COMMAND = [
    "--extractor",
    "rootsift",
    "--matcher",
    "nearest",
    "--ratio",
    "0.8",
    "--max-keypoints",
    "500",
    "--original-size",
]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(**MATCHING)


@pytest.fixture(scope="module")
def photo(motorcycle):
    return (motorcycle[0].permute(1, 2, 0) * 255).round().byte().numpy()


def left_of(number):
    return STEP_PX * number


def window(photo, number, top=200):
    return np.ascontiguousarray(photo[top : top + HEIGHT, left_of(number) : left_of(number) + WIDTH])


def other_scene(photo, number):
    """What SIFT cannot match: the mirror image."""
    return np.ascontiguousarray(window(photo, number, top=0)[:, ::-1])


def write_frames(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png", compress_level=1)
    return folder


def tracks_of(folder):
    with np.load(folder / "tracks.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def sequence(photo, pipeline, tmp_path_factory):
    """A folder of sixteen frames, and what became of it."""
    folder = write_frames(tmp_path_factory.mktemp("sequence") / "frames", [window(photo, i) for i in range(16)])
    output = folder.parent / "out"
    return folder, output, track_sequence(folder, output, pipeline, OPTIONS)


# --- what tracks are


def test_a_track_is_one_point(sequence):
    _, output, summary = sequence
    tracks = tracks_of(output)
    in_photo = tracks["x"] + left_of(tracks["frame"])
    _, first, track, counts = np.unique(tracks["track_id"], return_index=True, return_inverse=True, return_counts=True)
    off = np.hypot(in_photo - in_photo[first][track], tracks["y"] - tracks["y"][first][track])
    assert (off < 2).mean() > 0.97
    assert (counts.min(), len(counts), len(track)) == (2, summary.tracks, summary.observations)
    assert summary.tracks > 300
    assert summary.mean_track_length == pytest.approx(counts.mean(), abs=0.01)
    assert summary.mean_track_length > 4


def test_no_frame_has_a_track_twice_and_entries_are_in_order(sequence):
    tracks = tracks_of(sequence[1])
    key = tracks["track_id"] * 1000 + tracks["frame"]
    assert (np.diff(key) > 0).all()


def test_tracks_go_on_through_keyframes(sequence):
    _, output, summary = sequence
    numbers = [one["number"] for one in summary.keyframes]
    assert numbers[0] == 0
    assert 3 <= len(numbers) <= 10
    assert {one["why"] for one in summary.keyframes[1:]} <= {"motion", "matches"}
    tracks = tracks_of(output)
    seen = [set(tracks["track_id"][tracks["frame"] == number]) for number in numbers]
    assert all(len(one & other) > 30 for one, other in itertools.pairwise(seen))
    assert len(seen[0] & seen[2]) > 5


def test_thresholds_do_what_they_say(photo, pipeline):
    frames = [pipeline.extract(window(photo, i)) for i in range(8)]

    def reasons(**changes):
        quiet = {"least_share": 0.01, "most_motion": 1.0, "window": 1} | changes
        tracker = Tracker(pipeline, TrackOptions(least_matches=15, **quiet))
        return [(one.number, one.why) for frame in frames for one in tracker.add_features(frame).added]

    assert reasons() == [(0, "first")]
    assert reasons(most_frames=3) == [(0, "first"), (3, "frames"), (6, "frames")]
    after = next(n for n in range(8) if n * STEP_PX > 0.09 * np.hypot(WIDTH, HEIGHT))
    assert reasons(most_motion=0.09)[1] == (after, "motion")
    assert reasons(least_share=0.9)[1][1] == "matches"


def test_a_frame_says_what_it_matches(photo, pipeline):
    tracker = Tracker(pipeline, OPTIONS)
    first, second = tracker.add(window(photo, 0)), tracker.add(window(photo, 1), number=7)
    assert (first.keyframe.why, first.number, second.number) == ("first", 0, 7)
    assert second.keyframe is None
    assert second.tracked
    assert second.share == 1
    assert second.motion == pytest.approx(STEP_PX / np.hypot(WIDTH, HEIGHT), rel=0.02)
    pairs = second.matches[0]
    moved = first.features.keypoints[0, pairs[:, 0]] - second.features.keypoints[0, pairs[:, 1]]
    assert torch.median(moved, dim=0).values.tolist() == pytest.approx([STEP_PX, 0], abs=0.1)
    assert (second.track_ids[pairs[:, 1]] == first.track_ids[pairs[:, 0]]).all()
    assert (second.track_ids != NO_TRACK).sum() == len(pairs)


def test_fewer_keypoints_of_frames(photo, pipeline):
    tracker = Tracker(pipeline, TrackOptions(least_matches=15, frame_keypoints=100))
    tracker.add(window(photo, 0))
    frame = tracker.add(window(photo, 1))
    assert frame.features.keypoints.shape[1] > 200
    assert frame.matches[0][:, 1].max() < 100


# --- cuts, and what is none


def test_after_a_cut_ids_are_new(photo, pipeline, tmp_path, isinglass):
    images = [window(photo, i) for i in range(4)] + [other_scene(photo, i) for i in range(4)]
    frames = write_frames(tmp_path / "frames", images)
    options = ["--least-matches", 15, *COMMAND]
    code, out, err = isinglass("track", frames, "-o", tmp_path / "out", "--json", *options)
    assert code == 0
    assert "frame 4: a cut" in err
    summary = json.loads(out)
    assert (summary["cuts"], summary["lost"], summary["frames"]) == ([4], [], 8)
    tracks = tracks_of(tmp_path / "out")
    before = tracks["frame"] < 4
    assert before.any()
    assert (~before).any()
    assert not set(tracks["track_id"][before]) & set(tracks["track_id"][~before])


def test_a_black_frame_is_no_cut(photo, pipeline):
    tracker = Tracker(pipeline, OPTIONS)
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    first, blank, after = (tracker.add(image) for image in (window(photo, 0), black, window(photo, 1)))
    assert not blank.tracked
    assert not blank.added
    assert after.tracked
    assert not after.added
    assert np.isin(after.track_ids[after.track_ids != NO_TRACK], first.track_ids).all()


def test_a_frame_of_another_scene_alone_is_no_cut(photo, pipeline):
    tracker = Tracker(pipeline, OPTIONS)
    found = [tracker.add(image) for image in (window(photo, 0), other_scene(photo, 0), window(photo, 1))]
    assert [one.tracked for one in found] == [True, False, True]
    assert [len(one.added) for one in found] == [1, 0, 0]


def test_the_frame_before_becomes_a_bridge(photo, pipeline):
    """Frame 2 has nothing in common with the keyframe, but with frame 1, which was no keyframe until then."""
    tracker = Tracker(pipeline, TrackOptions(least_matches=15, most_motion=1.0, least_share=0.01, window=1))
    _, second, third = (tracker.add(window(photo, number)) for number in (0, 14, 28))
    assert second.tracked
    assert not second.added
    assert [(one.number, one.why) for one in third.added] == [(1, "bridge")]
    assert third.tracked
    bridge = third.added[0]
    known = second.track_ids != NO_TRACK
    assert (bridge.track_ids[known] == second.track_ids[known]).all()
    assert (bridge.track_ids != NO_TRACK).all()
    assert list(bridge.matches) == [0]


def test_blank_frames_only(pipeline, tmp_path, isinglass):
    frames = write_frames(tmp_path / "frames", [np.full((HEIGHT, WIDTH, 3), 90, np.uint8)] * 3)
    code, out, err = isinglass("track", frames, "-o", tmp_path / "out", *COMMAND)
    assert code == 1
    assert "3 frames (3 lost), 0 keyframes" in out
    assert "no frame matches another" in err


# --- what is written


def test_a_map_goes_on_from_there(sequence, pipeline):
    """Its own extraction and matching find everything done."""
    frames, output, summary = sequence
    names = [one["name"] for one in summary.keyframes]
    assert sorted(names) == image_names(output / "images")
    assert all((output / "images" / name).read_bytes() == (frames / name).read_bytes() for name in names)
    filled = extract_images(output / "features.h5", output / "images", names, pipeline)
    assert (filled.made, filled.reused, filled.problems) == (0, len(names), {})
    pairs = [pair for i in (1, 2) for pair in zip(names, names[i:], strict=False)]
    with FeatureStore(output / "features.h5") as features:
        settings = matching_settings(pipeline, features)
        matched = match_stored(features, pairs, output / "matches.h5", pipeline.matcher, settings=settings)
        assert (matched.made, matched.reused, matched.problems) == (0, len(pairs), {})
        for number, one in zip([k["number"] for k in summary.keyframes], names, strict=True):
            tracks = tracks_of(output)
            here = tracks["frame"] == number
            rows = features.keypoints(one)[tracks["keypoint"][here]]
            assert np.array_equal(rows, np.column_stack([tracks["x"][here], tracks["y"][here]]))


def test_stored_matches_are_those_of_the_stored_features(sequence, pipeline):
    _, output, summary = sequence
    one, other = (keyframe["name"] for keyframe in summary.keyframes[:2])
    features = FeatureStore(output / "features.h5", pipeline.extractor.signature, feature_settings(pipeline))
    (again,) = pipeline.matcher.match_many([features.get(one)], [features.get(other)])
    stored = MatchStore(output / "matches.h5").get(one, other)
    assert np.array_equal(stored.indices, again.indices[0].numpy())
    assert len(stored.pairs()) > 30


def test_what_is_finished_is_not_done_again(sequence, pipeline, monkeypatch):
    frames, output, summary = sequence
    monkeypatch.setattr(pipeline, "extract_each", None)
    assert track_sequence(frames, output, pipeline, OPTIONS) == summary
    assert not (output / "track.parts").exists()
    with pytest.raises(InputError, match="of another source or of other options"):
        track_sequence(frames, output, pipeline, TrackOptions(window=3))


# --- sources


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_frames(tmp_path / "frames", [np.zeros((4, 4, 3), np.uint8)] * 12)
    assert [one.name for one in open_frames(tmp_path / "frames").read()] == [f"{i}.png" for i in range(12)]
    chosen = list(open_frames(tmp_path / "frames", every=5).read(start=3))
    assert [(one.number, one.name) for one in chosen] == [(5, "5.png"), (10, "10.png")]


def test_names_of_any_letters_are_sorted(tmp_path):
    """Digits of other scripts are numbers, signs that only look like digits are text, and numbers have any length."""
    names = [
        "10²000000.jpg",
        "9²000000.jpg",
        "²1.jpg",
        "½.jpg",
        "①.jpg",
        "f٣.jpg",
        "f2.jpg",
        "f१०.jpg",
        f"{'7' * 200}.jpg",
    ]
    names += ["a.jpg", "A 1.jpg", "-1.jpg", "é2.jpg", "007.jpg", "7.jpg", "1e9.jpg"]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG")
    found = [one.name for one in open_frames(tmp_path).read()]
    assert sorted(found) == sorted(names)
    assert found.index("9²000000.jpg") < found.index("10²000000.jpg")
    assert found.index("f2.jpg") < found.index("f٣.jpg") < found.index("f१०.jpg")
    assert found.index("1e9.jpg") < found.index("007.jpg") < found.index("7.jpg") < found.index(f"{'7' * 200}.jpg")


def test_a_frame_that_cannot_be_read_is_said_and_left_out(photo, tmp_path, isinglass):
    frames = write_frames(tmp_path / "frames", [window(photo, i) for i in range(4)])
    (frames / "2.png").write_bytes((frames / "2.png").read_bytes()[:1000])
    code, out, err = isinglass("track", frames, "-o", tmp_path / "out", *COMMAND)
    assert code == 1
    assert "2.png" in err
    assert "3 frames (0 lost)" in out
    assert set(tracks_of(tmp_path / "out")["frame"]) == {0, 1, 3}


def test_bad_input(photo, pipeline, tmp_path):
    frames = write_frames(tmp_path / "frames", [window(photo, 0)])
    with pytest.raises(InputError, match="there is no file or folder"):
        track_sequence(tmp_path / "none", tmp_path / "out", pipeline)
    with pytest.raises(InputError, match="in the folder of the frames"):
        track_sequence(frames, frames / "out", pipeline)
    with pytest.raises(InputError, match="every is 0"):
        open_frames(frames, every=0)
    with pytest.raises(InputError, match="rotation is 'auto'"):
        Tracker(Pipeline(**MATCHING, rotation="auto"))
    for name, value in (("window", 0), ("least_matches", 2), ("least_share", 0.0), ("most_motion", 1.5)):
        with pytest.raises(InputError, match=name):
            TrackOptions(**{name: value})
    tracker = Tracker(pipeline)
    tracker.add(window(photo, 0), number=4)
    with pytest.raises(InputError, match="frame 4 came after frame 4"):
        tracker.add(window(photo, 0), number=4)
