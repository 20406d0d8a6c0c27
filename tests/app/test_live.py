"""Live pages: the newest frame alone, the keyframe or the reference it is held against, and the server's own video."""

import base64
import io
import json
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from asked_server import bad_files, drawing, encoded, running
from isinglass.app.settings import Limits, Settings
from isinglass.app.video import SHOWN_PX, VideoSource
from isinglass.errors import InputError
from isinglass.inspection.payload import unpack

FAST = {"extractor": "rootsift", "matcher": "lightglue-sift-small", "max_keypoints": 200, "resize": 320}
SIZE = (320, 240)


def shifted(pixels, seed=0):
    """A drawing that the camera has moved past by so many px."""
    return encoded(drawing(seed, (960, 240)).crop((pixels, 0, pixels + 320, 240)), "JPEG", quality=95)


class Page:
    """What a live page is to the server."""

    def __init__(self, server, **more):
        self.socket = connect(server.address.replace("http", "ws") + "/live", max_size=2**25, **more)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()

    def tell(self, kind, **values):
        self.socket.send(json.dumps({"type": kind, **values}))

    def start(self, **values):
        """Settings, and the answer to them."""
        self.tell("settings", **{**FAST, **values})
        return self.hear("ready")

    def hear(self, *kinds, timeout_s=30):
        """The next message of these kinds (or any); images are given as bytes."""
        while True:
            message = self.socket.recv(timeout=timeout_s)
            message = message if isinstance(message, bytes) else json.loads(message)
            kind = "image" if isinstance(message, bytes) else message["type"]
            if not kinds or kind in kinds:
                return message

    def show(self, frame):
        """Send a frame, and the next answer to a frame."""
        self.socket.send(frame)
        return self.hear("frame", "problem")


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds at 30 frames a second, in which the camera moves 4 px a frame; larger than what is shown."""
    file = tmp_path_factory.mktemp("video") / "walk.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 30, (1280, 960))
    scene = np.asarray(drawing(3, (960, 240)))[:, :, ::-1]
    for i in range(60):
        writer.write(cv2.resize(np.ascontiguousarray(scene[:, 4 * i : 4 * i + 320]), (1280, 960)))
    writer.release()
    return str(file)


# --- frames of the page


def test_a_frame_is_matched_with_the_keyframe(server):
    with Page(server) as page:
        ready = page.start()
        assert ready["options"]["max_keypoints"] == 200
        first = page.show(shifted(0))
        assert first["frame"] == 0
        assert first["reference"] == 0
        assert unpack(first["pairs"]).shape == (0, 2)
        second = page.show(shifted(10))
        pairs, keypoints = unpack(second["pairs"]), unpack(second["keypoints"])
        before = unpack(first["keypoints"])
        moved = before[pairs[:, 0]] - keypoints[pairs[:, 1]]
        inliers = unpack(second["inliers"]).astype(bool)
        assert inliers.sum() > 50
        np.testing.assert_allclose(np.median(moved[inliers], axis=0), [10, 0], atol=0.3)
        matrix = np.array(second["model"]["matrix"])
        np.testing.assert_allclose(matrix @ [100, 100, 1] / (matrix @ [100, 100, 1])[2], [90, 100, 1], atol=1)
        assert second["size"] == list(SIZE)
        assert second["latency_ms"] > 0
        assert second["rate"] > 0
        assert set(second["timings_ms"]) >= {"extract", "match", "geometry"}


def test_the_keyframe_changes_when_the_scene_moves_on(server):
    with Page(server) as page:
        page.start()
        page.show(shifted(0))
        references = [page.show(shifted(pixels))["reference"] for pixels in (8, 120, 200, 206, 212)]
        assert references[0] == 0
        assert references[-1] > 0
        assert references == sorted(references)


def test_a_cut_makes_a_new_keyframe(server):
    with Page(server) as page:
        page.start()
        page.show(shifted(0))
        lost = page.show(shifted(0, seed=5))
        assert lost["reference"] == 0
        assert page.hear("reference")["frame"] == 1
        found = page.show(shifted(4, seed=5))
        assert found["reference"] == 1
        assert found["model"]["num_inliers"] > 50


def test_a_reference_stays_however_far_the_camera_goes(server):
    with Page(server) as page:
        page.start(mode="reference")
        page.tell("reference")
        page.socket.send(shifted(0))
        reference = page.hear("reference")
        assert reference["frame"] is None
        assert reference["view"]["size"] == list(SIZE)
        assert base64.b64decode(reference["view"]["preview"]["src"].partition(",")[2])[:2] == b"\xff\xd8"
        found = [page.show(shifted(pixels)) for pixels in (5, 300, 310, 5)]
        assert [one["reference"] for one in found] == [None] * 4
        assert found[-1]["model"]["num_inliers"] > 50
        page.tell("keyframe")
        assert page.show(shifted(300))["reference"] == 4


def test_other_options_take_the_reference_along(server):
    with Page(server) as page:
        page.start(mode="reference")
        page.tell("reference")
        page.socket.send(shifted(0))
        assert len(unpack(page.hear("reference")["keypoints"])) == 200
        page.tell("settings", **{**FAST, "max_keypoints": 100}, mode="reference")
        assert page.hear("ready")["options"]["max_keypoints"] == 100
        assert len(unpack(page.hear("reference")["keypoints"])) == 100
        assert page.show(shifted(5))["model"]["num_inliers"] > 20


def test_only_the_newest_frame_waits(server):
    reached, go = threading.Event(), threading.Event()
    with Page(server) as page:
        page.start()
        page.show(shifted(0))
        held = server.home.jobs.call(lambda: reached.set() or go.wait(30))
        assert reached.wait(20)
        for i in range(1, 11):
            page.socket.send(shifted(i))
        time.sleep(0.5)
        go.set()
        held.result(20)
        answers = [page.hear("frame")]
        while answers[-1]["frame"] != 10:
            answers.append(page.hear("frame"))
        assert len(answers) <= 2  # one may have been taken before the others came
        assert answers[-1]["dropped"] == 10 - len(answers)
        with pytest.raises(TimeoutError):
            page.hear(timeout_s=0.3)


def test_pages_at_once_do_not_mix(server):
    with Page(server) as one, Page(server) as other:
        one.start()
        other.start()
        one.show(shifted(0, seed=1))
        other.show(shifted(0, seed=2))
        for page, seed in ((one, 1), (other, 2), (one, 1)):
            assert page.show(shifted(3, seed=seed))["model"]["num_inliers"] > 50


# --- what is wrong


def test_problems_are_told_and_the_page_goes_on(server):
    with Page(server) as page:
        for message, word in [
            ("no json", "no JSON"),
            ("[1, 2]", "no JSON object"),
            ('{"type": "keyframe"}', "first message"),
            (b"\xff\xd8", "before"),
            (json.dumps({"type": "settings", "colour": 1}), "not known"),
            (json.dumps({"type": "settings", "mode": "no"}), "mode"),
            (json.dumps({"type": "settings", "source": "server"}), "no video"),
            (json.dumps({"type": "settings", "matcher": "/etc/passwd"}), "matcher"),
            (json.dumps({"type": "settings", "x": "y" * 30_000}), "no JSON object"),
            ("[" * 15_000, "no JSON object"),
        ]:
            page.socket.send(message)
            assert word in page.hear("problem")["detail"]
        page.start()
        page.tell("dance")
        assert "dance" in page.hear("problem")["detail"]
        for name in ("text", "svg", "empty", "gif", "cut off"):
            problem = page.show(bad_files()[name][0])
            assert problem["type"] == "problem"
            assert bad_files()[name][2] in problem["detail"]
        page.show(shifted(0))
        assert page.show(shifted(2))["model"]["num_inliers"] > 50


def test_messages_that_wait_are_bounded(server):
    go = threading.Event()
    with Page(server) as page:
        page.start()
        held = server.home.jobs.call(lambda: go.wait(30))
        for _ in range(30):
            page.tell("settings", **FAST)
        assert "wait already" in page.hear("problem")["detail"]
        go.set()
        held.result(20)
        page.show(shifted(0))


def test_pages_of_other_origins_are_refused(server):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus) as refused:
            Page(server, additional_headers=headers)
        assert refused.value.response.status_code == 403
    with Page(server, additional_headers={"Origin": server.address}) as page:
        page.start()


def test_too_many_live_pages_are_refused_in_words():
    with running(Settings(port=0, device="cpu", limits=Limits(live=1))) as server:
        with Page(server) as first:
            first.start()
            with Page(server) as second:
                assert "live pages" in second.hear("problem")["detail"]
                with pytest.raises(ConnectionClosed):
                    second.hear()
        end = time.monotonic() + 10
        while server.home._live and time.monotonic() < end:
            time.sleep(0.01)
        with Page(server) as third:
            third.start()


# --- the server's own video


def test_the_servers_video_is_watched(video, tmp_path):
    photo = tmp_path / "reference.png"
    photo.write_bytes(encoded(drawing(3, (960, 240)).crop((0, 0, 320, 240)).resize((960, 720))))
    with running(video=video, reference=photo) as server:
        assert server.get("/choices").json()["live"]["source"] == "walk.mp4"
        with Page(server) as page:
            page.start(source="server", mode="reference")
            assert page.hear("reference")["view"]["name"] == "reference.png"
            frames, kind = [], None
            while kind != "ended":
                message = page.hear("frame", "ended")
                kind = message["type"]
                if kind == "frame":
                    image = Image.open(io.BytesIO(page.hear("image")))
                    assert list(image.size) == message["size"] == [SHOWN_PX, SHOWN_PX * 3 // 4]
                    frames.append(message)
            numbers = [one["frame"] for one in frames]
            assert numbers == sorted(set(numbers))
            assert frames[-1]["dropped"] == numbers[-1] - numbers[0] - (len(numbers) - 1)
            assert frames[0]["model"]["num_inliers"] > 30
            page.tell("settings", **FAST, source="server")  # again, from the beginning
            assert page.hear("frame")["frame"] < numbers[-1]


def test_a_video_is_read_in_real_time_by_whoever_is_slow(video):
    source = VideoSource(video)
    with source.watched():
        start, numbers = time.monotonic(), []
        while (frame := source.after(numbers[-1] if numbers else -1, 5)) is not None:
            numbers.append(frame.number)
            time.sleep(0.25)
        took_s = time.monotonic() - start
    assert source.ended
    assert took_s > 1.5
    assert len(numbers) < 20
    assert numbers[-1] >= 50
    assert np.diff(numbers).max() > 3


def test_a_video_stops_being_read_when_nobody_watches(video):
    source = VideoSource(video)
    with source.watched():
        assert source.after(-1, 5).number == 0
        with source.watched():
            assert source.after(0, 5).number > 0
    end = time.monotonic() + 5
    while any(one.name == "isinglass-video" for one in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(one.name == "isinglass-video" for one in threading.enumerate())


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no file"):
        VideoSource(str(tmp_path / "none.mp4"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="cannot be opened"):
        VideoSource(str(tmp_path / "text.mp4"))
