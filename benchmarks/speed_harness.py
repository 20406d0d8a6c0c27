"""What the measurements of speed.py share: workers, contestants in turn, features and photos to measure on."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from isinglass.datasets.homography import load_hpatches
from isinglass.datasets.posed import load_superglue_pairs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")
PHOTOS = {"dsc": ("DSC_0410.JPG", "DSC_0411.JPG"), "sacre_coeur": ("sacre_coeur1.jpg", "sacre_coeur2.jpg")}
ROUNDS = (2, 9)  # at least, at most, whatever the budget
PRECISIONS = ("float32", "bfloat16")
MEASUREMENTS = {}  # name -> function of a Bench that gives {"rows": [...], ...}


def measurement(function):
    """Register a measurement under the name of its function, with - for _."""
    MEASUREMENTS[function.__name__.replace("_", "-")] = function
    return function


class WorkerDied(Exception):
    """A worker ended before it answered."""


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, command, log, threads):
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(threads),
            )
        self.log = log

    def ask(self, do, **request):
        """The reply; with "unavailable" or "error" in it where there is no result."""
        try:
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            why = "by the system, for memory" if code == -signal.SIGKILL else f"with {code}, see {self.log.name}"
            raise WorkerDied(f"the process ended {why}")
        return json.loads(line)

    def must(self, do, **request):
        """The reply of what has to work."""
        reply = self.ask(do, **request)
        if problem := reply.get("unavailable") or reply.get("error"):
            sys.exit(f"{do} {request}: {problem}; see {self.log}")
        return reply

    def close(self):
        """End the process, and wait for that."""
        self.process.stdin.close()
        self.process.wait()


def environment(threads):
    """Variables of this process, and how many threads to use."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Bench:
    """The workers, and what they work on. Files made on the way are kept in `work`."""

    def __init__(self, peer_python, work, threads, quick):
        self.peer_python, self.work, self.threads, self.quick = peer_python, work, threads, quick
        work.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def ours(self):
        """Our worker, in the Python that runs this."""
        return Worker([sys.executable, HERE / "speed_worker.py"], self.work / "ours.log", self.threads)

    @functools.cached_property
    def peers(self):
        """The peers' worker, in their Python."""
        return Worker([self.peer_python, HERE / "peers/worker.py"], self.work / "peers.log", self.threads)

    @contextmanager
    def fresh(self):
        """A worker of ours that nobody has used, for peak memory."""
        worker = Worker([sys.executable, HERE / "speed_worker.py"], self.work / "fresh.log", self.threads)
        try:
            yield worker
        finally:
            worker.close()

    def close(self):
        """End the workers that were started."""
        for name in ("ours", "peers"):
            if name in self.__dict__:
                getattr(self, name).close()

    def compare(self, contestants, budget_s=8.0, warm_up=True):
        """Label -> what the contestant, a pair of worker and request, gave: raw times, and what it tells of the result.

        All take turns, one call each a round, as many rounds as the budget allows (see ROUNDS). With `warm_up` a first
        round is not counted.
        """
        results = {}
        for label, (worker, request) in contestants.items():
            reply = worker.ask(**request, repeat=int(warm_up), tell=warm_up)
            problem = reply.get("unavailable") or reply.get("error")
            first = {"first_ms": reply["ms"][0]} if reply.get("ms") else {}
            results[label] = {"not_measured": problem} if problem else {**reply, **first, "ms": []}
        running = {label: contestants[label] for label, found in results.items() if "ms" in found}
        least, most = (1, 1) if self.quick else ROUNDS
        start, rounds = time.perf_counter(), 0
        while rounds < least or (rounds < most and time.perf_counter() - start < budget_s):
            for label, (worker, request) in running.items():
                reply = worker.must(**request, tell=not warm_up and rounds == 0)
                results[label]["ms"] += reply.pop("ms")
                results[label] |= reply
            rounds += 1
        return {label: {key: found[key] for key in found if key not in DROPPED} for label, found in results.items()}

    def sizes(self, *wanted, least=2):
        """Those wanted; in a quick run only the first of them."""
        return wanted[:least] if self.quick else wanted

    # --- what is measured on

    def photo_features(self, pair, count):
        """Requests' fields of the features of a pair of photos: by the published ALIKED, the same for everybody."""
        files = [self.work / f"{Path(name).stem}-{count}.npz" for name in PHOTOS[pair]]
        for file, name in zip(files, PHOTOS[pair], strict=True):
            if not file.is_file():
                image = str(SHARED / "images" / name)
                self.peers.must("save_features", image=image, output=str(file), keypoints=count)
        return {"features0": str(files[0]), "features1": str(files[1])}

    def random_features(self, count, width=256, size=(640, 480)):
        """The same for features without an image: two thirds of the points of view 0, moved, are in view 1."""
        files, rng = [self.work / f"random{i}-{count}.npz" for i in (0, 1)], np.random.default_rng(0)
        points, descriptors = rng.random((2, count, 2)) * size, rng.standard_normal((2, count, width))
        scores, seen = rng.random((2, count)), 2 * count // 3
        points[1, :seen] = np.clip(points[0, :seen] + rng.standard_normal((seen, 2)), 0, np.array(size) - 1)
        descriptors[1, :seen] = descriptors[0, :seen] + 0.2 * rng.standard_normal((seen, width))
        descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
        for i, file in enumerate(files):
            arrays = {"keypoints": points[i], "descriptors": descriptors[i], "keypoint_scores": scores[i]}
            np.savez(file, **{k: v.astype(np.float32) for k, v in arrays.items()}, image_size=np.float32(size))
        return {"features0": str(files[0]), "features1": str(files[1])}

    def benchmark(self, name):
        """Pairs of real images with a truth."""
        if name == "homography":
            return load_hpatches(SHARED / "data/eval/homography", name=name).pairs
        # the given truth is the depth camera's, and overlap is reckoned from depth
        return load_superglue_pairs(SHARED / "data/eval/redkitchen/pairs_with_gt.txt", name=name).pairs

    def features_of(self, image):
        """The file of an image's 1024 features, as Isinglass extracts them at 640 px."""
        file = self.work / "features" / f"{image.parent.name}-{image.stem}.npz"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            self.ours.must("save_features", image=str(image), output=str(file), keypoints=1024, resize=640)
        return str(file)

    def real_pairs(self, count):
        """So many pairs of features, of frames of RedKitchen; again from the first where there are no more."""
        pairs = self.benchmark("redkitchen")
        pairs = pairs[:8] if self.quick else pairs
        some = itertools.islice(itertools.cycle(pairs), count)
        return [(self.features_of(one.image0), self.features_of(one.image1)) for one in some]

    def enlarged_photo(self, megapixels, view=0):
        """A file of a photo enlarged to so many megapixels."""
        file = self.work / f"photo{view}-{megapixels}.jpg"
        if not file.is_file():
            with Image.open(SHARED / "images" / PHOTOS["dsc"][view]) as photo:
                factor = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
                size = round(photo.width * factor), round(photo.height * factor)
                photo.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
        return str(file)


DROPPED = ("before_mb", "peak_mb")  # of long-lived workers these say nothing


def seconds(command, threads):
    """Wall time of a command from its start to its end, which has to be a success."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(threads))
    return time.perf_counter() - start


def temporary_folder():
    """A new one, which stays."""
    return Path(tempfile.mkdtemp(prefix="isinglass-speed-"))


def agreement(theirs, ours):
    """Of two lists of matches [i, j]: the share of theirs that is among ours, and what both have of what either has."""
    a, b = {tuple(match) for match in theirs}, {tuple(match) for match in ours}
    return {
        "matches": len(b),
        "found": len(a & b) / len(a) if a else None,
        "jaccard": len(a & b) / len(a | b) if a | b else None,
    }
