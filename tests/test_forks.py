"""Matching in forked and spawned children, and in threads, after the parent has matched with several threads."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isinglass import pipeline as pipelines
from isinglass.pipeline import Pipeline
from support import pattern, write_photos

CHILDREN = """
import multiprocessing
import sys
import numpy as np
import torch
from isinglass import Pipeline

IMAGE = np.random.default_rng(0).integers(0, 255, (200, 260, 3), dtype=np.uint8)
OPTIONS = dict(extractor="rootsift", matcher=sys.argv[2], max_keypoints=200, resize=260, device="cpu")
PIPELINE = None

def count(_=None):
    global PIPELINE
    PIPELINE = PIPELINE or Pipeline(**OPTIONS)
    return len(PIPELINE.match(IMAGE, np.roll(IMAGE, 4, 1)).scores)

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, i):
        return count()

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = count()
    if sys.argv[1] == "loader":
        found = list(torch.utils.data.DataLoader(Photos(), num_workers=2, multiprocessing_context="fork", timeout=60))
    else:
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            found = pool.map_async(count, range(3)).get(timeout=60)
    assert torch.get_num_threads() == 2, "the parent keeps its threads"
    assert expected > 0 and [int(one) for one in found] == [expected] * 3, (expected, found)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize(
    ("how", "matcher"), [("fork", "lightglue"), ("fork", "nearest"), ("loader", "superglue"), ("spawn", "nearest")]
)
def test_children_match(tmp_path, how, matcher):
    pytest.importorskip("cv2")
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    done = subprocess.run(
        [sys.executable, script, how, matcher], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


MAPS = """
import multiprocessing
import sys
from pathlib import Path
import torch
from isinglass import Pipeline
from isinglass.sfm.mapping import MapOptions, make_map

FOLDER, PHOTOS = Path(sys.argv[1]), Path(sys.argv[1]) / "photos"

def pipeline():
    return Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=200, resize=320, device="cpu")

def make(name, workers=1):
    return make_map(PHOTOS, FOLDER / name, pipeline(), MapOptions(workers=workers))

def child(name, workers, sent):
    summary = make(name, workers)
    sent.put((summary.pairs, summary.matched, summary.verified, summary.problems))

if __name__ == "__main__":
    torch.set_num_threads(2)
    names = sorted(PHOTOS.iterdir())
    pipeline().match(names[0], names[1])
    if sys.argv[2] == "map":
        make("of the parent")
    context = multiprocessing.get_context("fork")
    sent = context.Queue()
    process = context.Process(target=child, args=("of the child", int(sys.argv[3]), sent))
    process.start()
    found = sent.get(timeout=100)
    process.join(20)
    assert process.exitcode == 0, process.exitcode
    summary = make("of the parent")
    expected = summary.pairs, summary.matched, summary.verified, summary.problems
    assert found == expected and expected[1] > 0, (found, expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize(("before", "workers"), [("match", 1), ("map", 1), ("map", 2)])
def test_a_forked_child_makes_a_map(tmp_path, before, workers):
    """All that a map uses has threads of its own: torch, OpenCV, faiss, COLMAP, and worker processes."""
    for package in ("cv2", "h5py", "faiss", "pycolmap"):
        pytest.importorskip(package)
    write_photos(tmp_path / "photos", count=4, size=(320, 240), every=6)
    script = tmp_path / "maps.py"
    script.write_text(MAPS)
    command = [sys.executable, script, tmp_path, before, str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr


class Slow:
    """An extractor that takes as long as the image's first pixel says."""

    signature = Pipeline(extractor="rootsift", matcher="nearest").extractor.signature

    def __init__(self, inner):
        self.inner = inner

    def extract(self, images, mask=None):
        time.sleep(float(images[0, 0, 0, 0]))
        return self.inner.extract(images, mask)


def test_timings_of_concurrent_calls_do_not_mix():
    plain = Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=50, resize=None)
    pipeline = Pipeline(custom_extractor=Slow(plain.extractor), matcher="nearest", max_keypoints=50, resize=None)

    def match(seconds):
        image = np.float32(pattern(80, 60)) / 255
        image[0, 0] = seconds / 2  # twice: both views
        return pipeline.match(image, image).timings_ms["extract"]

    waits = [0.0, 0.8, 0.1, 0.6]
    with ThreadPoolExecutor(4) as threads:
        for seconds, spent_ms in zip(waits, threads.map(match, waits), strict=True):
            assert seconds * 1e3 <= spent_ms < seconds * 1e3 + 350


def test_threads_that_ask_at_once_load_once(monkeypatch):
    loads = []
    load = pipelines.load_matcher

    def slowly(*args):
        loads.append(args)
        time.sleep(0.2)
        return load(*args)

    monkeypatch.setattr(pipelines, "load_matcher", slowly)
    options = pipelines.Options(extractor="rootsift", matcher="nearest", max_keypoints=77)
    start = threading.Barrier(4)

    def ask(_):
        start.wait()
        return pipelines.pipeline_of(options)

    with ThreadPoolExecutor(4) as threads:
        found = set(map(id, threads.map(ask, range(4))))
    assert len(found) == len(loads) == 1
