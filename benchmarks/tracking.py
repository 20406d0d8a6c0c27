"""Measure `isinglass track`: frames a second, and what is tracked, by extractor.

    python benchmarks/tracking.py

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/tracking.json. The machine should have nothing else to
do.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from localisation import CASES

from isinglass.eval.runs import machine
from isinglass.pipeline import Pipeline
from isinglass.sfm.sequences import track_sequence

RESULT = Path(__file__).resolve().parents[1] / "benchmarks/results/maps/tracking.json"
FRAMES = 40  # in a row, of HoloLens, in their own size
MATCHERS = {"rootsift": "lightglue-sift-small", "xfeat": "lighterglue-xfeat", "aliked": "lightglue"}


def main():
    """Measure, and store."""
    photos, rows = CASES["hololens"]()["photos"], {}
    for extractor, matcher in MATCHERS.items():
        with tempfile.TemporaryDirectory() as temporary:
            frames = Path(temporary) / "frames"
            frames.mkdir()
            for source in sorted(photos.iterdir())[:FRAMES]:
                shutil.copy2(source, frames)
            pipeline = Pipeline(extractor=extractor, matcher=matcher, resize=None)
            found = track_sequence(frames, Path(temporary) / "tracks", pipeline)
        rows[extractor] = {
            "matcher": matcher,
            "frames": found.frames,
            "lost": len(found.lost),
            "keyframes": len(found.keyframes),
            "tracks": found.tracks,
            "mean_track_length": found.mean_track_length,
            "frames_a_second": found.frames_per_s,
        }
        print(extractor, rows[extractor], flush=True)
    RESULT.write_text(json.dumps({"rows": rows, "machine": {**machine(), "load": os.getloadavg()[0]}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
