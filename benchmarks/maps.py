"""Measure maps of photos whose poses are known, against COLMAP's own SIFT on the same photos in the same run.

    python benchmarks/maps.py WORK [SET...]       # maps and databases go to WORK, which may be kept; all SETS if none
    python benchmarks/maps.py --page              # docs/maps.md, from what is stored

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/maps.json.

Both sides have one camera for all photos of a set, of unknown focal length or of the one that came with it; the
same seed of a mapper; and are aligned to the given camera centres by the similarity that fits all best.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from localisation import CASES
from PIL import Image

from isinglass.eval.runs import machine
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.colmap import Project, camera_of, pycolmap_module, quiet
from isinglass.sfm.mapping import MapOptions, make_map
from isinglass.sfm.reconstruct import read_model

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/maps/maps.json"
EVERY = {"redkitchen": 1, "hololens": 4}


def prepared(name, work):
    """Photos in a format that COLMAP reads, too; poses by name; known intrinsics: camera model and parameters."""
    case = CASES[name]()
    photos = work / name / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    poses = {}
    for source in sorted(case["photos"].iterdir())[:: EVERY[name]]:
        target = photos / (source.name if source.suffix == ".jpg" else f"{source.stem}.png")
        if not target.exists():
            if source.suffix == ".jpg":
                shutil.copy2(source, target)
            else:
                Image.open(source).convert("RGB").save(target)
        if source.name in case["poses"]:
            poses[target.name] = case["poses"][source.name]
    model, _, params = case["camera"]
    return photos, poses, (model, params)


def ours(photos, folder, given, pipeline, mapper="hybrid"):
    """A map by `isinglass map`'s function, what it says of itself, and its largest model."""
    model, params = given or ("SIMPLE_RADIAL", None)
    cameras = CameraOptions(share="single", model=model, params=params)
    stages = []

    def tell(stage, done, of):
        if done == of or stage not in stages:
            stages.append(stage)
            print(f"  {stage} {done} of {of}", file=sys.stderr)

    summary = make_map(photos, folder, pipeline, MapOptions(cameras=cameras, mapper=mapper), tell=tell)
    models = [read_model(folder / "model" / (str(i) if i else "")) for i in range(len(summary.models))]
    return summary.seconds, models, {"pairs": summary.pairs, "verified": summary.verified}


def truth_of(name, work):
    """Camera centres, m."""
    _, poses, _ = prepared(name, work)
    return {image: (-pose[:3, :3].T @ pose[:3, 3]).tolist() for image, pose in poses.items()}


def by_size(models):
    """Largest first."""
    return sorted(models, key=lambda one: -one.num_reg_images())


def theirs(photos, folder, given, mapper="incremental"):
    """COLMAP's own features, matcher and one of its mappers, on the CPU; both mappers work on one database."""
    colmap = pycolmap_module()
    folder.mkdir(parents=True, exist_ok=True)
    database, seconds = folder / "database.db", {}
    sparse = folder / f"sparse-{mapper}"
    sparse.mkdir(exist_ok=True)
    if mapper == "incremental":
        make, options = colmap.incremental_mapping, colmap.IncrementalPipelineOptions()
        options.ba_refine_focal_length = options.ba_refine_extra_params = given is None
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = given is None
    else:
        make, options = colmap.global_mapping, colmap.GlobalPipelineOptions()
        adjustment = options.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = given is None
    options.random_seed = 0
    reader = colmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL" if given is None else given[0])
    if given is not None:
        with Image.open(next(photos.iterdir())) as photo:
            camera = camera_of(given[0], photo.size, given[1])
        reader.camera_params = ",".join(map(str, camera.params))
    stages = {
        "extract": lambda: colmap.extract_features(
            database, photos, camera_mode=colmap.CameraMode.SINGLE, reader_options=reader, device=colmap.Device.cpu
        ),
        "match": lambda: colmap.match_exhaustive(database, device=colmap.Device.cpu),
        mapper: lambda: make(database, photos, sparse, options),
    }
    done = folder / "seconds.json"  # of an earlier run of this folder
    if done.is_file():
        seconds = json.loads(done.read_text())
    else:
        database.unlink(missing_ok=True)
        colmap.Database.open(database).close()
    for stage, work in stages.items():
        if stage in seconds:
            continue
        start = time.perf_counter()
        with quiet():
            work()
        seconds[stage] = time.perf_counter() - start
        print(f"  COLMAP: {stage} {seconds[stage]:.0f} s", file=sys.stderr)
        done.write_text(json.dumps(seconds))
    with Project(database) as project:
        counts = {"pairs": len(project.matched), "verified": sum(count > 0 for count in project.inliers.values())}
    models = [read_model(place) for place in sorted(sparse.iterdir())]
    told = {stage: seconds[stage] for stage in ("extract", "match")} | {"reconstruct": seconds[mapper]}
    return told, by_size(models), counts


def judged(models, poses, count):
    """What is stored of the largest model, and in short of the others, each aligned on its own."""
    if not models:
        return {"photos": count, "registered": 0, "others": []}
    others = [judged([model], poses, count) for model in models[1:]]
    short = [{"registered": one["registered"], "centre_errors_m": one["centre_errors_m"]} for one in others]
    return {"photos": count, "others": short, **of_model(models[0], poses)}


def of_model(model, poses):
    """Errors are of all photos that it holds and whose pose is known."""
    colmap = pycolmap_module()
    images = {image.name: image for image in model.images.values() if image.has_pose}
    names = sorted(set(images) & set(poses))
    found = np.array([images[name].projection_center() for name in names])
    truth = np.array([-poses[name][:3, :3].T @ poses[name][:3, 3] for name in names])
    similarity = colmap.estimate_sim3d(found, truth) if len(names) > 2 else None
    if similarity is None:  # too few, or on a line
        return {"registered": len(images), "centre_errors_m": {}}
    errors_m = np.linalg.norm(similarity * found - truth, axis=1)
    to_truth = similarity.rotation.matrix()
    turns = [images[name].cam_from_world().rotation.matrix() @ to_truth.T @ poses[name][:3, :3].T for name in names]
    angles_deg = [float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))) for turn in turns]
    return {
        "registered": len(images),
        "points": model.num_points3D(),
        "track_length": model.compute_mean_track_length(),
        "reprojection_error_px": model.compute_mean_reprojection_error(),
        "camera": [float(value) for value in next(iter(model.cameras.values())).params],
        "centres": dict(zip(names, (similarity * found).tolist(), strict=True)),
        "centre_errors_m": dict(zip(names, errors_m.tolist(), strict=True)),
        "rotation_errors_deg": dict(zip(names, angles_deg, strict=True)),
        "extent_m": float(np.linalg.norm(truth.max(axis=0) - truth.min(axis=0))),
    }


def measure(name, work, pipeline):
    """All rows of a set."""
    photos, poses, intrinsics_given = prepared(name, work)
    count = len(list(photos.iterdir()))
    rows = {}
    for intrinsics, given in (("found", None), ("given", intrinsics_given)):
        for label, run in (
            ("ours", partial(ours, photos, work / name / "ours", given, pipeline)),
            *(
                (f"ours, {mapper} mapper", partial(ours, photos, work / name / "ours", given, pipeline, mapper))
                for mapper in ("incremental", "global")
            ),
            ("COLMAP", partial(theirs, photos, work / name / f"colmap-{intrinsics}", given)),
            ("COLMAP, global mapper", partial(theirs, photos, work / name / f"colmap-{intrinsics}", given, "global")),
        ):
            print(f"{name}, intrinsics {intrinsics}: {label}", file=sys.stderr)
            seconds, models, counts = run()
            rows[f"{label}, intrinsics {intrinsics}"] = {"seconds": seconds, **counts, **judged(models, poses, count)}
            row = rows[f"{label}, intrinsics {intrinsics}"]
            median = np.median(list(row.get("centre_errors_m", {"": np.nan}).values()))
            print(f"  {row['registered']} of {count}, median centre error {100 * median:.2f} cm", file=sys.stderr)
    return rows


def main(work, *names):
    """Measure, and store what came of it beside what other runs stored."""
    pipeline = Pipeline()
    stored = json.loads(RESULT.read_text()) if RESULT.is_file() else {"sets": {}}
    for name in names or CASES:
        stored["sets"][name] = measure(name, Path(work), pipeline)
        stored.setdefault("truth", {})[name] = truth_of(name, Path(work))
        stored["machine"] = {
            **machine(),
            "load": os.getloadavg()[0],
            "pycolmap": pycolmap_module().__version__,
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["--page"]:
        from maps_page import write

        write(RESULT.parent)
    else:
        main(*sys.argv[1:])
