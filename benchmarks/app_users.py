"""What users of the app's server do in app.py, and what they must be answered."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import requests
from PIL import Image
from websockets.sync.client import connect

from isinglass.app.settings import Limits

LIMITS = Limits()
SMALL = {"extractor": "rootsift", "matcher": "lightglue-sift-small", "max_keypoints": "512", "resize": "480"}
LARGEST = {"max_keypoints": str(LIMITS.max_keypoints), "resize": str(LIMITS.most_resize)}
ENDED = ("done", "failed", "cancelled")
TIMEOUT_S = 600


class Unexpected(Exception):
    """An answer that had not been said."""


class Action(NamedTuple):
    """What a user does, how often relative to other things, and a name for how it ended."""

    weight: float
    act: Callable[[User], str]


class User:
    """One of several; keeps count of what it asks."""

    all: ClassVar[list[User]] = []

    def __init__(self, address: str, chance: Any, things: dict[str, Any], number: int) -> None:
        self.address, self.chance, self.things, self.number = address, chance, things, number
        self.session, self.asked = requests.Session(), 0
        User.all.append(self)

    def ask(self, method: str, path: str, expected: tuple[int, ...], **more: Any) -> requests.Response:
        """The answer, whose status must be one of these."""
        self.asked += 1
        answer = self.session.request(method, self.address + path, timeout=TIMEOUT_S, **more)
        if answer.status_code not in expected:
            raise Unexpected(f"{method} {path} gave {answer.status_code}, expected {expected}: {answer.text[:300]}")
        if answer.status_code >= 400 and len(answer.json()["detail"]) < 10:
            raise Unexpected(f"{method} {path} gave {answer.status_code} without words: {answer.text[:300]}")
        return answer

    def post(self, path: str, pair: tuple[bytes, bytes], fields: dict[str, str], *expected: int) -> requests.Response:
        """Two photos, by names of this user's."""
        files = {f"image{view}": (f"user{self.number}-{view}.jpg", content) for view, content in enumerate(pair)}
        return self.ask("POST", path, expected, files=files, data=fields)

    def photos(self) -> tuple[bytes, bytes]:
        """Some pair of the usual size."""
        return self.chance.choice(self.things["pairs"])

    def job(self, pair: tuple[bytes, bytes], **fields: str) -> str | None:
        """The id of a job, or None where the queue was full."""
        answer = self.post("/jobs", pair, fields, 202, 503)
        return answer.json()["id"] if answer.status_code == 202 else None

    def wait(self, job: str) -> dict[str, Any]:
        """How a job ended."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            answer = self.ask("GET", f"/jobs/{job}", (200, 404))
            found = answer.json()
            if answer.status_code == 404:
                return {"state": "forgotten"}
            if found["state"] in ENDED:
                return found
            time.sleep(0.1)
        raise Unexpected(f"job {job} did not end in {TIMEOUT_S} s")

    def wait_until_idle(self, timeout_s: float) -> None:
        """Until no job waits or runs."""
        end = time.monotonic() + timeout_s
        while self.ask("GET", "/health", (200,)).json()["waiting"] and time.monotonic() < end:
            time.sleep(0.5)

    def done(self, job: str | None) -> str:
        """Wait for a job, and fetch all of its result."""
        if job is None:
            return "busy"
        found = self.wait(job)
        if found["state"] == "failed":
            raise Unexpected(f"a job failed: {found['error']}")
        if found["state"] == "done":
            for name in ("result", "result.json", "result.npz"):
                answer = self.ask("GET", f"/jobs/{job}/{name}", (200, 404))
                if name == "result" and answer.status_code == 200 and f"user{self.number}-0.jpg" not in answer.text:
                    raise Unexpected(f"the result of user {self.number} is another one's")
        return found["state"]


# --- what they do


def match(user: User, pair: Any = None, **fields: str) -> str:
    """POST /match."""
    answer = user.post("/match", pair or user.photos(), fields, 200, 503)
    return "matched" if answer.status_code == 200 else "busy"


def match_bad_file(user: User) -> str:
    """A file that must be refused, on either side."""
    name, (content, status) = user.chance.choice(sorted(user.things["bad"].items()))
    pair = (content, user.photos()[1])
    user.post("/match", pair if user.chance.random() < 0.5 else pair[::-1], SMALL, status, 503)
    return f"refused: {name}"


def match_bad_field(user: User) -> str:
    """A field that must be refused."""
    over = {"max_keypoints": str(LIMITS.max_keypoints + 1)}, {"resize": str(LIMITS.most_resize + 1)}
    wrong = {"matcher": "/etc/passwd"}, {"colour": "red"}, {"extractor": "disk", "matcher": "lightglue-aliked"}
    user.post("/match", user.photos(), {**SMALL, **user.chance.choice([*over, *wrong])}, 422, 503)
    return "refused"


def cancel(user: User) -> str:
    """A job that is cancelled some time after it was queued."""
    kind = user.chance.choice(["match", "inspect", "doctor"])
    job = user.job(user.things["hopeless"] if kind == "doctor" else user.photos(), kind=kind)
    if job is None:
        return "busy"
    time.sleep(user.chance.choice([0, 0, 0.3, 1.0]))
    user.ask("DELETE", f"/jobs/{job}", (200,))
    state = user.wait(job)["state"]
    if state not in ("cancelled", "done"):
        raise Unexpected(f"a cancelled job is {state}")
    return state


def burst(user: User) -> str:
    """As many jobs as the queue takes, and more; then nobody wants them."""
    jobs = [user.job(user.photos(), **SMALL) for _ in range(LIMITS.waiting + 4)]
    for job in jobs:
        if job is not None:
            user.ask("DELETE", f"/jobs/{job}", (200, 404))
    return "refused some" if None in jobs else "took all"


def leave(user: User) -> str:
    """Somebody who does not wait for the answer."""
    user.asked += 1
    files = {f"image{view}": content for view, content in enumerate(user.photos())}
    with contextlib.suppress(requests.exceptions.RequestException):
        requests.post(user.address + "/match", files=files, timeout=(5, 0.2))
    return "left"


def browse(user: User) -> str:
    """The page, what can be chosen, and paths that must not be read."""
    user.ask("GET", "/choices", (200,))
    user.ask("GET", "/", (200, 404))
    for path in ("/static/..%2fsettings.py", "/shared/%2e%2e/page.py", "/jobs/nobody", "/examples/passwd/0"):
        user.ask("GET", path, (404, 422))
    user.ask("POST", "/jobs", (403,), headers={"Origin": "http://elsewhere.example"})
    return "seen"


def live(user: User) -> str:
    """A live page for some frames, faster than they can be matched."""
    user.asked += 1
    answers = 0
    with connect(user.address.replace("http", "ws") + "/live", max_size=2**25) as page:
        page.send(json.dumps({"type": "settings", **SMALL}))
        for i in range(30):
            page.send(user.things["frames"][i % len(user.things["frames"])])
            time.sleep(1 / 15)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                message = json.loads(page.recv(timeout=0.5))
            except TimeoutError:
                continue
            if message["type"] == "problem":
                if "live pages" in message["detail"]:
                    return "busy"
                raise Unexpected(f"a live page heard {message['detail']}")
            answers += message["type"] == "frame"
            if message["type"] == "frame" and message["frame"] >= 29:
                break
    return "watched" if answers else "watched nothing"


ACTIONS = {
    "match, small": Action(10, lambda user: match(user, **SMALL)),
    "match, as it is": Action(6, match),
    "match, most keypoints": Action(2, lambda user: match(user, **LARGEST)),
    "match, largest photos": Action(0.6, lambda user: match(user, user.things["largest"], **SMALL)),
    "match, best of four turns": Action(2, lambda user: match(user, rotation="auto", **SMALL)),
    "match, bad file": Action(10, match_bad_file),
    "match, bad field": Action(4, match_bad_field),
    "job, match": Action(6, lambda user: user.done(user.job(user.photos()))),
    "job, inspect": Action(2, lambda user: user.done(user.job(user.photos(), kind="inspect", **SMALL))),
    "job, inspect at the limit": Action(
        0.5, lambda user: user.done(user.job(user.photos(), kind="inspect", max_keypoints=LARGEST["max_keypoints"]))
    ),
    "job, compare": Action(
        2, lambda user: user.done(user.job(user.photos(), kind="compare", other_matcher="nearest", **SMALL))
    ),
    "job, doctor": Action(1, lambda user: user.done(user.job(user.things["hopeless"], kind="doctor", **SMALL))),
    "cancel": Action(4, cancel),
    "burst": Action(0.6, burst),
    "leave": Action(3, leave),
    "browse": Action(4, browse),
    "live": Action(1.5, live),
}


# --- what they send


def material() -> dict[str, Any]:
    """Photos, frames and bad files, made once."""
    from isinglass.app.examples import example, names

    pairs = [example(name).files for name in names()]
    motorcycle = Image.open(io.BytesIO(pairs[0][0]))
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    largest = motorcycle.resize((8150, 6130), Image.Resampling.BICUBIC)  # 49.96 megapixels
    frames = [motorcycle.crop((4 * i, 0, 4 * i + 480, 360)) for i in range(30)]
    return {
        "pairs": pairs,
        "hopeless": (encoded(noise), pairs[-1][0]),
        "largest": (encoded(largest), encoded(largest.transpose(Image.Transpose.ROTATE_180))),
        "frames": [encoded(frame) for frame in frames],
        "bad": bad_files(pairs[0][0]),
    }


def bad_files(photo: bytes) -> dict[str, tuple[bytes, int]]:
    """By name: a file, and the status it must be refused with."""
    moving = io.BytesIO()
    images = [Image.new("L", (50, 50), shade) for shade in (0, 100, 200)]
    images[0].save(moving, format="GIF", save_all=True, append_images=images[1:])
    return {
        "bomb": (bomb(20_000, 10_000), 413),
        "51 megapixels": (bomb(8_500, 6_000), 413),
        "huge file": (photo + bytes(LIMITS.file_bytes), 413),
        "cut off": (photo[: len(photo) // 2], 422),
        "noise": (np.random.default_rng(1).bytes(100_000), 415),
        "text": (b"no photo\n" * 100, 415),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', 415),
        "moving": (moving.getvalue(), 415),
        "empty": (b"", 422),
    }


def bomb(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, all black, whose file is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(image: Image.Image) -> bytes:
    """As JPEG."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=90)
    return content.getvalue()
