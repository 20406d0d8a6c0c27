"""A real server of the app on a free port, small photos to send it, and files that it must refuse."""

import faulthandler
import functools
import io
import struct
import threading
import time
import zlib
from contextlib import contextmanager

import numpy as np
import requests
from PIL import Image, ImageDraw

import isinglass
from isinglass.app.serve import listen
from isinglass.app.settings import Settings

SMALL = {"extractor": "rootsift", "matcher": "lightglue-sift-small", "max_keypoints": "256", "resize": "320"}
ENDED = ("done", "failed", "cancelled")


class Client:
    """Asks a server; `address` is where it is, `home` the server itself where it runs in this process."""

    def __init__(self, address, home=None):
        self.address, self.home = address, home

    def get(self, path, **more):
        return requests.get(self.address + path, timeout=60, **more)

    def delete(self, path):
        return requests.delete(self.address + path, timeout=60)

    def post(self, path, photos, masks=(), fields=SMALL, **more):
        """`photos` and `masks` are bytes, or (name, bytes)."""
        files = {}
        for kind, items in (("image", photos), ("mask", masks)):
            for view, item in enumerate(items):
                if item is not None:
                    files[f"{kind}{view}"] = item if isinstance(item, tuple) else (f"{kind}{view}.jpg", item)
        return requests.post(self.address + path, files=files, data=dict(fields), timeout=60, **more)

    def match(self, photos, **fields):
        return self.post("/match", photos, fields={**SMALL, **fields})

    def submit(self, photos, masks=(), **fields):
        """The id of a job."""
        answer = self.post("/jobs", photos, masks, fields={**SMALL, **fields})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def wait(self, job, states=ENDED, timeout_s=60):
        """The job once it is in one of these states."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = self.get(f"/jobs/{job}").json()
            if found["state"] in states:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{found} is not {states} after {timeout_s} s")

    def result(self, job):
        """The payload of a job that must succeed."""
        found = self.wait(job)
        assert found["state"] == "done", found
        return self.get(f"/jobs/{job}/result").json()


@contextmanager
def running(settings=None, **more):
    """A client of a server that runs in a thread of this process."""
    server = listen(settings or Settings(port=0, device="cpu"), **more)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.runner.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(server.address, server.home)
    finally:
        server.runner.should_exit = True
        thread.join(timeout=20)
        if thread.is_alive():
            faulthandler.dump_traceback()  # of every thread: what it waits for
            raise AssertionError("the server did not end within 20 s of being told to")


@functools.cache
def drawing(seed=0, size=(320, 240)):
    """A drawing of random shapes, full of corners."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(120, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(90 * size[0] * size[1] // (320 * 240)):
        x, y = rng.uniform((0, 0), size)
        a, b = rng.uniform(4, 30, 2)
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = pen.ellipse if rng.random() < 0.3 else pen.rectangle
        shape([x, y, x + a, y + b], fill=colour)
    return image


@functools.cache
def photos(seed=0):
    """Two PNG files: a drawing, and the same moved by (12, 7) px and turned by 5 degrees."""
    first = drawing(seed)
    second = first.rotate(5, Image.Resampling.BICUBIC, translate=(12, 7))
    return encoded(first), encoded(second)


def expect(seed=0, **options):
    """What Python gives for both photos of a seed."""
    images = [Image.open(io.BytesIO(content)) for content in photos(seed)]
    numbers = {"max_keypoints": 256, "resize": 320}
    return isinglass.match(*images, **{**SMALL, **numbers, "device": "cpu", **options})


def encoded(image, form="PNG", **options):
    """The file of an image."""
    content = io.BytesIO()
    image.save(content, format=form, **options)
    return content.getvalue()


def animated(form, frames=3):
    """A moving picture, or pages."""
    images = [drawing(seed) for seed in range(frames)]
    return encoded(images[0], form, save_all=True, append_images=images[1:])


def bomb(width, height):
    """A PNG of one bit a pixel, all black, whose file is small."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'


@functools.cache
def bad_files():
    """By name: (a file, the status it is refused with, a word of the message)."""
    return {
        "bomb": (bomb(20_000, 10_000), 413, "megapixels"),
        "large": (bomb(10_000, 10_000), 413, "megapixels"),
        "cut off": (encoded(drawing(), "JPEG")[:3000], 422, "damaged"),
        "cut off in the head": (photos()[0][:40], 415, "no image"),
        "noise": (np.random.default_rng(0).bytes(5000), 415, "no image"),
        "text": (b"Not a photo.\n" * 20, 415, "text file"),
        "svg": (SVG, 415, "SVG"),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", 415, "PDF"),
        "heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", 415, "HEIC"),
        "video": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", 415, "video"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 415, "text file"),
        "gif": (animated("GIF"), 415, "moving"),
        "webp": (animated("WEBP"), 415, "moving"),
        "png": (animated("PNG"), 415, "moving"),
        "pages": (animated("TIFF"), 415, "pages"),
        "empty": (b"", 422, "empty"),
    }
