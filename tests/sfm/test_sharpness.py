"""Blurred frames of a sequence: they are recognised among their neighbours, and become no keyframes."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.images import read_image
from isinglass.pipeline import Pipeline
from isinglass.sfm import sequences
from isinglass.sfm.frames import Frame, open_frames
from isinglass.sfm.sequences import track_sequence
from isinglass.sfm.sharpness import NEIGHBORS, sharpness, with_sharpness
from isinglass.sfm.tracking import Tracker, TrackOptions

WIDTH, HEIGHT, STEP_PX = 320, 240, 20
BLURS = ("motion", "motion upwards", "motion aslant", "focus")
BLUR_PX = 25


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(extractor="rootsift", matcher="nearest", ratio=0.8, max_keypoints=300, resize=480)


@pytest.fixture(scope="module")
def photo(motorcycle):
    return (motorcycle[0].permute(1, 2, 0) * 255).round().byte().numpy()


def window(photo, number):
    return np.ascontiguousarray(photo[200 : 200 + HEIGHT, STEP_PX * number : STEP_PX * number + WIDTH])


def blurred(pixels, kind="motion"):
    """The image as the camera moves by BLUR_PX, or out of focus by as much."""
    kernel = np.zeros((BLUR_PX, BLUR_PX), np.float32)
    if kind == "focus":
        cv2.circle(kernel, (BLUR_PX // 2, BLUR_PX // 2), BLUR_PX // 2, 1.0, -1)
    else:
        end = {"motion": (1, 0), "motion upwards": (0, 1), "motion aslant": (1, 1)}[kind]
        middle, reach = BLUR_PX // 2, np.array(end) * (BLUR_PX // 2)
        cv2.line(kernel, (middle - reach).tolist(), (middle + reach).tolist(), 1.0)
    return cv2.filter2D(pixels, -1, kernel / kernel.sum())


def write(folder, images):
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:03}.png", compress_level=1)
    return folder


def keyframes_of(source, output, pipeline, **options):
    return [one["number"] for one in track_sequence(source, output, pipeline, TrackOptions(**options)).keyframes]


@pytest.fixture(scope="module")
def hololens(shared):
    """24 frames, of which every sixth is to be blurred."""
    files = sorted((shared / "data/train/hololens/images").iterdir())[:24]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


# --- keyframes


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["motion", "focus"])
def test_no_blurred_frame_becomes_a_keyframe(hololens, kind, pipeline, tmp_path):
    frames = write(tmp_path / "frames", [blurred(one, kind) if i % 6 == 0 else one for i, one in enumerate(hololens)])
    options = {"least_matches": 15}
    chosen = keyframes_of(frames, tmp_path / "out", pipeline, **options)
    assert len(chosen) >= 4
    assert not [number for number in chosen if number % 6 == 0]
    careless = keyframes_of(frames, tmp_path / "careless", pipeline, **options, least_sharpness=0)
    assert [number for number in careless if number % 6 == 0]  # what it is about


@pytest.mark.shared
def test_no_blurred_frame_of_a_video_becomes_a_keyframe(hololens, pipeline, tmp_path):
    height, width = hololens[0].shape[:2]
    writer = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    for number, pixels in enumerate(hololens):
        writer.write(cv2.cvtColor(blurred(pixels) if number % 6 == 0 else pixels, cv2.COLOR_RGB2BGR))
    writer.release()
    chosen = keyframes_of(tmp_path / "video.avi", tmp_path / "out", pipeline, least_matches=15)
    assert len(chosen) >= 4
    assert not [number for number in chosen if number % 6 == 0]


def test_a_keyframe_that_is_due_waits_for_a_sharp_frame(photo, pipeline):
    tracker = Tracker(pipeline, TrackOptions(least_matches=15, most_frames=2, least_share=0.01, most_motion=1.0))
    ratios = [1.0, 1.0, 0.2, 0.2, 1.0, 1.0]
    frames = [tracker.add(window(photo, i // 3), sharpness=ratio) for i, ratio in enumerate(ratios)]
    assert [one.number for frame in frames for one in frame.added] == [0, 4]
    assert all(frame.tracked for frame in frames)


def test_blur_without_end_is_not_waited_for(photo, pipeline):
    tracker = Tracker(pipeline, TrackOptions(least_matches=15, most_frames=1, least_share=0.01, most_motion=1.0))
    frames = [tracker.add(window(photo, 0), sharpness=0.1) for _ in range(6)]
    assert [one.number for frame in frames for one in frame.added] == [3, 4, 5]


def test_the_sharp_frame_before_a_blurred_one_becomes_the_bridge(photo, pipeline):
    """Frame 3 has nothing in common with the keyframe; frames 1 and 2 do, and with frame 3, and frame 2 is blurred."""
    options = TrackOptions(least_matches=15, most_motion=1.0, least_share=0.01, window=1)
    for ratio, bridge in ((0.2, 1), (1.0, 2)):
        tracker = Tracker(pipeline, options)
        added = [tracker.add(window(photo, n), sharpness=r).added for n, r in ((0, 1), (9, 1), (9, ratio), (19, 1))]
        assert [(one.number, one.why) for one in added[3]] == [(bridge, "bridge")]


def test_a_scene_does_not_begin_with_a_blurred_frame(photo, pipeline):
    tracker = Tracker(pipeline, TrackOptions(least_matches=15))
    mirrored = [np.ascontiguousarray(window(photo, i)[:, ::-1]) for i in range(3)]
    added = [tracker.add(window(photo, 0)).added]
    added += [tracker.add(one, sharpness=r).added for one, r in zip(mirrored, (0.2, 1.0, 1.0), strict=True)]
    assert [[(one.number, one.why) for one in some] for some in added][:3] == [[(0, "first")], [], []]
    assert (added[3][0].number, added[3][0].why) == (2, "cut")


@pytest.mark.parametrize("after", [1, 5, 6, 10])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(photo, pipeline, tmp_path, monkeypatch, after):
    monkeypatch.setattr(sequences, "SECONDS_A_PART", 0.0)
    images = [window(photo, i) for i in range(12)]
    frames = write(tmp_path / "frames", [blurred(one) if i in (0, 4, 5, 9) else one for i, one in enumerate(images)])
    options = TrackOptions(least_matches=15)

    def stop(frame, done, of):
        if done == after:
            raise KeyboardInterrupt

    whole = track_sequence(frames, tmp_path / "whole", pipeline, options)
    with pytest.raises(KeyboardInterrupt):
        track_sequence(frames, tmp_path / "out", pipeline, options, tell=stop)
    summary = track_sequence(frames, tmp_path / "out", pipeline, options)
    assert (summary.keyframes, summary.lost, summary.cuts) == (whole.keyframes, whole.lost, whole.cuts)
    assert not {0, 4, 5, 9} & {one["number"] for one in summary.keyframes}
    with np.load(tmp_path / "out/tracks.npz") as ours, np.load(tmp_path / "whole/tracks.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)


# --- the measure


@pytest.mark.parametrize("kind", BLURS)
def test_blur_in_any_direction_is_seen(photo, kind):
    frames = [Frame(number=i, name="", image=window(photo, i)) for i in range(9)]
    frames[4] = Frame(number=4, name="", image=blurred(frames[4].image, kind))
    ratios = [ratio for _, ratio in with_sharpness(frames)]
    assert ratios[4] < 0.1
    assert min(ratios[:4] + ratios[5:]) > 0.6


def test_what_changes_slowly_is_not_blurred(photo):
    """Exposure that goes down to a tenth, and a content that changes."""
    pixels = [(window(photo, i % 15) * 0.8**i).astype(np.uint8) for i in range(12)]
    ratios = [ratio for _, ratio in with_sharpness(Frame(number=i, name="", image=one) for i, one in enumerate(pixels))]
    assert min(ratios) > 0.35


def test_sharpness_is_of_one_size(photo, tmp_path):
    """A photo of twelve megapixels that is sharp at the size that is matched is as sharp as the small one."""
    small = Image.fromarray(photo).resize((640, 480), Image.Resampling.BOX)
    large = small.resize((2560, 1920), Image.Resampling.NEAREST)
    assert sharpness(read_image(large)) == pytest.approx(sharpness(read_image(small)), rel=1e-4)


def test_frames_are_not_collected(photo):
    """The source has no end: only the frames that are compared may be read ahead."""
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield Frame(number=read[-1], name="", image=window(photo, 0))

    judged = with_sharpness(endless())
    for number in range(20):
        frame, ratio = next(judged)
        assert (frame.number, round(ratio, 6)) == (number, 1)
        assert len(read) == number + NEIGHBORS + 1


@pytest.mark.parametrize("every", [1, 5])
def test_what_cannot_be_compared_counts_as_sharp(photo, tmp_path, every):
    frames = write(tmp_path / "frames", [window(photo, i % 3) for i in range(16)])
    (frames / "005.png").write_bytes(b"no image")
    shutil.copy(frames / "000.png", frames / "999.png")
    judged = {frame.number: ratio for frame, ratio in with_sharpness(open_frames(frames, every).read(), every)}
    assert list(judged) == list(range(0, 17, every))
    assert judged[5] == 1
    assert all(0.5 < ratio < 2 for ratio in judged.values())
    blank = [Frame(number=i, name="", image=np.zeros((4, 4, 3), np.uint8)) for i in range(3)]
    assert [ratio for _, ratio in with_sharpness(blank)] == [1, 1, 1]
    assert [ratio for _, ratio in with_sharpness(blank[:1])] == [1]
    assert list(with_sharpness([])) == []


def test_values_that_make_no_sense_are_refused():
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="least_sharpness"):
            TrackOptions(least_sharpness=value)
