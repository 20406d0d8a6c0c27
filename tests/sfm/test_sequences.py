"""Videos, and runs that are killed."""

import shutil
import subprocess
import sys
from dataclasses import fields

import cv2
import numpy as np
import pytest
from PIL import Image

from isinglass.cli import sequences as commands
from isinglass.errors import InputError, WriteError
from isinglass.pipeline import Pipeline
from isinglass.sfm import sequences
from isinglass.sfm.frames import open_frames, read_ahead
from isinglass.sfm.sequences import track_sequence
from isinglass.sfm.store import FeatureStore, MatchStore
from isinglass.sfm.tracking import TrackOptions

WIDTH, HEIGHT, STEP_PX = 320, 240, 14
OPTIONS = TrackOptions(least_matches=15)
MATCHING = {"extractor": "rootsift", "matcher": "nearest", "ratio": 0.8, "max_keypoints": 300, "resize": None}
COMMAND = [
    "--extractor",
    "rootsift",
    "--matcher",
    "nearest",
    "--ratio",
    "0.8",
    "--max-keypoints",
    "300",
    "--original-size",
]
KILLED = """
import os, signal, sys
from isinglass.pipeline import Pipeline
from isinglass.sfm import sequences
from isinglass.sfm.tracking import TrackOptions
sequences.SECONDS_A_PART = 0.0
def tell(frame, done, of):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
pipeline = Pipeline(extractor="rootsift", matcher="nearest", ratio=0.8, max_keypoints=300, resize=None)
sequences.track_sequence(sys.argv[1], sys.argv[2], pipeline, TrackOptions(least_matches=15), tell=tell)
"""


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(**MATCHING)


@pytest.fixture(scope="module")
def windows(motorcycle):
    """Twelve windows that move over a photo; after eight of them, four of its mirror image."""
    photo = (motorcycle[0].permute(1, 2, 0) * 255).round().byte().numpy()
    shots = [photo[200 : 200 + HEIGHT], np.ascontiguousarray(photo[:HEIGHT, ::-1])]
    return [shots[i // 8][:, STEP_PX * i : STEP_PX * i + WIDTH] for i in range(12)]


@pytest.fixture(scope="module")
def frames(windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for number, image in enumerate(windows):
        Image.fromarray(image).save(folder / f"{number:03}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(frames, pipeline, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    return output, track_sequence(frames, output, pipeline, OPTIONS)


def write_video(path, images):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for image in images:
        writer.write(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def everything_in(folder):
    """All arrays of tracks and stores, by name."""
    with np.load(folder / "tracks.npz") as file:
        found = {("tracks", name): file[name] for name in file.files}
    with FeatureStore(folder / "features.h5") as features:
        for name in features:
            one = features.get(name)
            found |= {(name, "keypoints"): one.keypoints.numpy(), (name, "descriptors"): one.descriptors.numpy()}
            found |= {(name, "digest"): np.array(features.digest(name))}
    with MatchStore(folder / "matches.h5") as matches:
        for pair in matches:
            found |= {(*pair, "digests"): np.array(matches.digests(pair))}
            found |= {(*pair, "matches"): matches.get(*pair).indices, (*pair, "scores"): matches.get(*pair).scores}
    images = (folder / "images").iterdir()
    return found | {(file.name, "image"): np.frombuffer(file.read_bytes(), np.uint8) for file in images}


def assert_same(folder, other):
    ours, theirs = everything_in(folder), everything_in(other)
    assert set(ours) == set(theirs)
    assert not [name for name in ours if not np.array_equal(ours[name], theirs[name])]


# --- killed runs


@pytest.mark.parametrize("after", [2, 9])
def test_a_killed_run_goes_on_as_if_nothing_had_been(after, frames, undisturbed, pipeline, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, frames, tmp_path / "out", str(after)], check=False)
    assert killed.returncode == -9
    assert len(list((tmp_path / "out" / "track.parts").glob("*.npz"))) >= after - 1
    seen = []
    summary = track_sequence(
        frames, tmp_path / "out", pipeline, OPTIONS, tell=lambda frame, done, of: seen.append((frame.number, done, of))
    )
    assert seen == [(number, number + 1, 12) for number in range(after, 12)]
    assert_same(tmp_path / "out", undisturbed[0])
    assert (summary.keyframes, summary.lost, summary.cuts) == (
        undisturbed[1].keyframes,
        undisturbed[1].lost,
        undisturbed[1].cuts,
    )
    assert summary.cuts == [8]


def test_a_damaged_store_of_a_killed_run_is_made_anew(frames, undisturbed, pipeline, tmp_path, monkeypatch):
    """The keyframes that its parts count on are not there any more."""
    monkeypatch.setattr(sequences, "SECONDS_A_PART", 0.0)

    def stop(frame, done, of):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track_sequence(frames, tmp_path, pipeline, OPTIONS, tell=stop)
    for part in (tmp_path / "features.h5.parts").glob("*.h5"):
        part.write_bytes(b"no HDF5")
    track_sequence(frames, tmp_path, pipeline, OPTIONS)
    assert_same(tmp_path, undisturbed[0])


@pytest.mark.parametrize("place", [0, 3])
def test_a_damaged_part_of_a_killed_run_is_tracked_again(
    place, frames, undisturbed, pipeline, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(sequences, "SECONDS_A_PART", 0.0)

    def stop(frame, done, of):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track_sequence(frames, tmp_path, pipeline, OPTIONS, tell=stop)
    part = tmp_path / "track.parts" / f"{place:08}.npz"
    content = bytearray(part.read_bytes())
    content[-200] ^= 1
    part.write_bytes(content)
    track_sequence(frames, tmp_path, pipeline, OPTIONS)
    assert f"{part.name}' is made again" in caplog.text
    assert_same(tmp_path, undisturbed[0])


@pytest.mark.parametrize("name", ["track.json", "tracks.npz"])
def test_damaged_tracks_are_refused_by_name_and_made_anew_once_deleted(name, frames, undisturbed, pipeline, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    content = bytearray((tmp_path / name).read_bytes())
    content[100] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}' is damaged .* Delete it and make it again"):
        track_sequence(frames, tmp_path, pipeline, OPTIONS)
    (tmp_path / name).unlink()
    track_sequence(frames, tmp_path, pipeline, OPTIONS)
    assert_same(tmp_path, undisturbed[0])


def test_a_full_disk_leaves_what_was_there(frames, undisturbed, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "SECONDS_A_PART", 0.0)
    with monkeypatch.context() as full:
        written = []

        def savez(file, **arrays):
            written.append(file)
            if len(written) > 4:
                raise OSError(28, "No space left on device")
            real(file, **arrays)

        real = np.savez
        full.setattr(np, "savez", savez)
        with pytest.raises(WriteError, match="No space left"):
            track_sequence(frames, tmp_path, pipeline, OPTIONS)
    track_sequence(frames, tmp_path, pipeline, OPTIONS)
    assert_same(tmp_path, undisturbed[0])


# --- videos


def test_a_video(windows, tmp_path, isinglass):
    video = write_video(tmp_path / "video.avi", windows)
    code, out, _ = isinglass("track", video, "-o", tmp_path / "out", "--least-matches", 15, *COMMAND)
    assert code == 0
    assert "12 frames (0 lost)" in out
    assert "1 cuts" in out
    keyframes = sorted(file.name for file in (tmp_path / "out" / "images").iterdir())
    assert {"frame_000000.png", "frame_000008.png"} <= set(keyframes)
    with Image.open(tmp_path / "out" / "images" / "frame_000008.png") as image:
        assert np.abs(np.asarray(image).astype(int) - windows[8]).mean() < 6  # MJPG
    assert FeatureStore(tmp_path / "out" / "features.h5").problems == {}


def test_every_so_many_th_frame_of_a_video(windows, tmp_path):
    video = write_video(tmp_path / "video.avi", windows)
    frames = open_frames(video, every=5)
    assert frames.count == 3
    assert [one.number for one in frames.read()] == [0, 5, 10]
    assert [one.number for one in frames.read(start=5)] == [5, 10]
    assert frames.problems == []


def test_a_video_that_breaks_off_says_so(windows, tmp_path, isinglass):
    video = write_video(tmp_path / "video.avi", windows)
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 3 // 5])
    code, out, err = isinglass("track", video, "-o", tmp_path / "out", *COMMAND)
    assert code == 1
    assert "of 12 frames could be decoded" in err
    assert 5 <= int(out.split()[0]) <= 9


@pytest.mark.parametrize("contents", [b"", b"no video at all" * 100])
def test_what_is_no_video(contents, tmp_path, isinglass):
    (tmp_path / "video.mp4").write_bytes(contents)
    code, _, err = isinglass("track", tmp_path / "video.mp4", "-o", tmp_path / "out", *COMMAND)
    assert code == 2
    assert "cannot be opened as a video" in err


def test_a_video_without_a_frame(windows, tmp_path, pipeline):
    video = write_video(tmp_path / "video.avi", windows[:1])
    contents = bytearray(video.read_bytes())
    start = contents.index(b"movi")
    contents[start + 4 :] = bytes(len(contents) - start - 4)
    video.write_bytes(contents)
    with pytest.raises(InputError, match=r"holds no frame|cannot be opened"):
        track_sequence(video, tmp_path / "out", pipeline)


# --- small things


def test_reading_ahead_keeps_order_and_errors():
    def numbers():
        yield from range(5)
        raise InputError("broken")

    items = read_ahead(numbers())
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="broken"):
        next(items)


def test_the_options_of_the_command_are_those_of_the_tracker():
    given = commands.track.make_context("track", [__file__]).params
    for field in fields(TrackOptions):
        assert given[field.name] == field.default, field.name
