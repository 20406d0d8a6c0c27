"""Measure what limits of verification and mapping do to a map: pairs, false ones, and what becomes of the models.

    python benchmarks/map_limits.py WORK         # the folder that maps.py was given; it is only read

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/limits.json. On the HoloLens frames, intrinsics found. A
pair is false if its images overlap by under LEAST_OVERLAP by depth and pose.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from maps import of_model, prepared
from pair_selection import overlaps

from isinglass.eval.runs import machine
from isinglass.sfm import reconstruct, verification
from isinglass.sfm.cameras import CameraOptions, cameras_of
from isinglass.sfm.colmap import Project, write_database
from isinglass.sfm.store import FeatureStore, MatchStore

RESULT = Path(__file__).resolve().parents[1] / "benchmarks/results/maps/limits.json"
SET, LEAST_OVERLAP = "hololens", 0.03
LIMITS = (  # least matches of a pair, px they may be off, share of a photo's matches that must agree, true pairs alone
    (15, 4.0, 0.25, False),
    (15, 4.0, 0.25, True),
    (15, 2.0, 0.25, False),
    (30, 2.0, 0.5, False),
    (50, 4.0, 0.25, False),
    (40, 2.0, 0.5, False),
    (50, 2.0, 0.5, False),
)
CHOSEN = (verification.LEAST_INLIERS, 2.0, reconstruct.LEAST_SHARE, False)


def measure(folder, work, limits):
    """One row."""
    least, limit_px, share, true_alone = limits
    photos, poses, _ = prepared(SET, folder.parent)
    _, overlap = overlaps(SET, work)
    shared = {tuple(Path(name).stem for name in pair): value for pair, value in overlap.items()}
    matches = MatchStore(folder / "matches.h5")
    pairs = [
        pair
        for pair in sorted(matches)
        if not true_alone or shared.get(tuple(Path(name).stem for name in pair), 1.0) >= LEAST_OVERLAP
    ]
    names = sorted(one.name for one in photos.iterdir())
    cameras = cameras_of(photos, names, CameraOptions(share="single"))
    with tempfile.TemporaryDirectory() as temporary:
        database = Path(temporary) / "database.db"
        write_database(database, FeatureStore(folder / "features.h5"), matches, pairs, cameras)
        verification.verify(database, max_error_px=limit_px, least_inliers=least)
        with Project(database) as project:
            kept = [pair for pair, count in project.inliers.items() if count]
        scale = limit_px / verification.MAX_ERROR_PX
        models = {}
        for mapper in ("incremental", "hybrid"):
            with patch.object(reconstruct, "LEAST_SHARE", share), patch.object(reconstruct, "of_size", lambda _: scale):
                made = reconstruct.reconstruct(database, photos, Path(temporary) / mapper, mapper=mapper)
            models[mapper] = [told(reconstruct.read_model(place), poses) for place in made]
    return {
        "least": least,
        "limit_px": limit_px,
        "share": share,
        "true_alone": true_alone,
        "pairs": len(kept),
        "false": sum(shared.get(tuple(Path(name).stem for name in pair), 1.0) < LEAST_OVERLAP for pair in kept),
        "models": models,
        "chosen": limits == CHOSEN,
    }


def told(model, poses):
    """Photos, and the median error of their centres in cm."""
    found = of_model(model, poses)
    return found["registered"], 100 * float(np.median(list(found["centre_errors_m"].values()) or [np.nan]))


def main(work):
    """Measure, and store."""
    rows = []
    for limits in LIMITS:
        rows.append(measure(Path(work) / SET / "ours", Path(work), limits))
        print(rows[-1], flush=True)
    about = {"about": __doc__.strip().splitlines()[0], "set": SET, "least_overlap": LEAST_OVERLAP, "machine": machine()}
    RESULT.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
