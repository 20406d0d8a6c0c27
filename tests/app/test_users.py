"""Several users at once: they queue, never mix, can leave, and hear when to come again."""

import threading
import time

import numpy as np
import pytest
import requests
from PIL import Image

from asked_server import SMALL, drawing, encoded, expect, photos, running
from isinglass.app.settings import Limits, Settings
from isinglass.inspection.payload import unpack


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


def test_users_at_once_queue_and_do_not_mix(server):
    """Each of four users gets its own answer: by name, and by what Python gives for its photos."""
    results = {}

    def user(seed):
        names = [(f"user{seed}-{view}.png", content) for view, content in enumerate(photos(seed))]
        if seed % 2:
            results[seed] = server.result(server.submit(names))
        else:
            results[seed] = server.match(names).json()

    threads = [threading.Thread(target=user, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, found in results.items():
        pairs = unpack(found["matches"]["pairs"]).tolist() if seed % 2 else found["pairs"]
        assert pairs == expect(seed).matches.pairs().tolist()
        if seed % 2:
            assert [view["name"] for view in found["views"]] == [f"user{seed}-{view}.png" for view in (0, 1)]
    assert len(results) == 4


class Held:
    """Holds the server's thread until it is let go."""

    def __init__(self, server):
        self.reached, self.open = threading.Event(), threading.Event()
        self.future = server.home.jobs.call(self._wait)
        assert self.reached.wait(20)

    def _wait(self):
        self.reached.set()
        assert self.open.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open.set()
        self.future.result(20)


def test_a_waiting_job_tells_its_place_and_can_be_cancelled(server):
    with Held(server):
        jobs = [server.submit(photos(seed)) for seed in range(3)]
        found = [server.get(f"/jobs/{job}").json() for job in jobs]
        assert [one["position"] for one in found] == [0, 1, 2]
        assert [one["state"] for one in found] == ["queued"] * 3
        assert server.get("/health").json()["waiting"] == 3
        assert server.delete(f"/jobs/{jobs[1]}").json()["state"] == "cancelled"
        assert server.get(f"/jobs/{jobs[2]}").json()["position"] == 1
        assert server.get(f"/jobs/{jobs[2]}/result").status_code == 409
    assert [server.wait(job)["state"] for job in jobs] == ["done", "cancelled", "done"]


def test_a_running_job_can_be_cancelled(server):
    """The doctor of a hopeless pair matches up to twenty times; it stops before the next."""
    noise = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)))
    job = server.submit([noise, encoded(drawing(7, (640, 480)))], kind="doctor", resize="1024", max_keypoints="2048")
    server.wait(job, ("running", "done"))
    start = time.monotonic()
    server.delete(f"/jobs/{job}")
    found = server.wait(job)
    assert found["state"] == "cancelled"
    assert time.monotonic() - start < 10
    assert server.get(f"/jobs/{job}/result").status_code == 409
    assert server.match(photos()).status_code == 200


def test_whoever_leaves_is_not_waited_for(server):
    with Held(server):
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(server.address + "/match", files=_files(), data=SMALL, timeout=0.5)
        end = time.monotonic() + 20
        while server.home.jobs.waiting and time.monotonic() < end:
            time.sleep(0.02)
        assert server.home.jobs.waiting == 0
    assert server.home.jobs._reserved == 0


def _files():
    return {f"image{view}": content for view, content in enumerate(photos())}


def test_a_full_server_says_when_to_come_again():
    limits = Limits(waiting=2)
    with running(Settings(port=0, device="cpu", limits=limits)) as server, Held(server):
        jobs = [server.submit(photos()) for _ in range(2)]
        for path in ("/jobs", "/match"):
            answer = server.post(path, photos())
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "2 jobs wait" in answer.json()["detail"]
        server.delete(f"/jobs/{jobs[0]}")
        server.submit(photos())
