"""Measure localisation: maps of some frames with known poses, the others as queries.

    python benchmarks/localisation.py WORK [NAME...]     # features and maps go to WORK; NAME of CASES, all if none

Needs ../shared/data (or ISINGLASS_SHARED). Writes results/maps/localisation.json.

Every case is measured with several maps of the same features and matches. "triangulated": images have the given
poses, and only points are found, so that the map's frame is that of the truth. "made": the map is what `isinglass map`
makes of the photos alone, brought to the truth by the similarity that fits the centres of its own photos best.
Intrinsics are as given with the data set, or found as the map was made, from its photos alone; queries have the map's.
Nothing is learnt from the queries' truth. Frames of the other set are queries as well: none may be found.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from isinglass.geometry.robust import estimate_fundamental
from isinglass.pipeline import Pipeline
from isinglass.sfm.cameras import CameraOptions
from isinglass.sfm.choice import PairOptions
from isinglass.sfm.colmap import camera_of, pycolmap_module, quiet
from isinglass.sfm.landmarks import Landmarks
from isinglass.sfm.localisation import LocaliseOptions, Map
from isinglass.sfm.mapping import MapOptions, make_map
from isinglass.sfm.pairs import read_pairs
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.retrieval import Retrieval
from isinglass.sfm.store import FeatureStore, MatchStore

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")
RESULT = ROOT / "benchmarks/results/maps/localisation.json"
ALIKE = 12  # images that each one is matched with for the map
BARS = ((0.05, 5.0), (0.25, 10.0))  # m, deg
WRONG_M = 1.0
STRANGERS = 12  # queries of the other set


def redkitchen():
    """The frames and the truth of the colour camera; depth images have the poses and intrinsics of their own."""
    folder = SHARED / "data/eval/redkitchen"
    poses = chained(folder / "pairs_corrected.txt")
    names = sorted(poses)
    return {
        "photos": folder / "images",
        "poses": poses,
        "camera": ("SIMPLE_RADIAL", (640, 480), (526.205, 319.5, 239.5, -0.023)),  # fitted with the poses
        "depth_poses": chained(folder / "pairs_with_gt.txt"),
        "depth_camera": np.array([[585.0, 0, 320.0], [0, 585.0, 240.0], [0, 0, 1]]),
        "mapped": [name for i, name in enumerate(names) if i % 4 != 3],
        "queries": names[3::4],
    }


def chained(file):
    """Return the poses of the frames in a list of pairs, in the frame of the first: 49 of the 50 are in it."""
    rows = [line.split() for line in file.read_text().splitlines()]
    steps = {}
    for row in rows:
        step = np.array(row[22:], float).reshape(4, 4)
        steps.setdefault(row[0], {})[row[1]] = step
        steps.setdefault(row[1], {})[row[0]] = np.linalg.inv(step)
    first = min(steps)
    poses, pending = {first: np.eye(4)}, [first]
    while pending:
        name = pending.pop()
        for other in set(steps[name]) - set(poses):
            poses[other] = steps[name][other] @ poses[name]
            pending.append(other)
    return poses


def hololens(step=2):
    """Every 4th frame is a query; of the others one in `step` is in the map."""
    folder = SHARED / "data/train/hololens"
    rows = [line.split() for line in (folder / "poses.txt").read_text().splitlines()]
    poses = {f"{row[0]}.webp": np.linalg.inv(np.array(row[1:], float).reshape(4, 4)) for row in rows}
    matrix = np.loadtxt(folder / "K.txt")
    names = sorted(poses)
    parameters = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    return {
        "photos": folder / "images",
        "poses": poses,
        "camera": ("PINHOLE", (540, 360), parameters),
        "depth_poses": poses,
        "depth_camera": matrix,
        "mapped": [name for i, name in enumerate(names) if i % 4 != 3][::step],
        "queries": names[3::4],
    }


CASES = {"redkitchen": redkitchen, "hololens": hololens}
ROWS = {"redkitchen": ("found", "given"), "hololens": ("found",)}  # intrinsics of the maps that are made


def made(case, folder, pipeline, params):
    """The map that `isinglass map` makes, its model, and its folder's matches for the others."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for name in case["mapped"]:
        if not (photos / name).exists():
            shutil.copyfile(case["photos"] / name, photos / name)
    model, _, _ = case["camera"]
    cameras = CameraOptions(share="single", model="SIMPLE_RADIAL" if params is None else model, params=params)
    pairs = PairOptions(how="retrieval", neighbours=ALIKE)
    summary = make_map(photos, folder / "map", pipeline, MapOptions(pairs=pairs, cameras=cameras))
    model = read_model(folder / "map/model")
    return Map.open(folder / "map", pipeline), model, summary.seconds


def triangulated(case, folder, pipeline, camera):
    """A map of the given poses, of the features and matches in the folder of a map that was made."""
    colmap = pycolmap_module()
    features, matches = FeatureStore(folder / "map/features.h5"), MatchStore(folder / "map/matches.h5")
    file = folder / "triangulated.db"
    file.unlink(missing_ok=True)
    model = colmap.Reconstruction()
    camera.camera_id = 1
    model.add_camera_with_trivial_rig(camera)
    numbers = {name: number for number, name in enumerate(case["mapped"], start=1)}
    with quiet(), colmap.Database.open(file) as database:
        database.write_camera(camera, use_camera_id=True)
        database.write_rig(model.rigs[1], use_rig_id=True)
        for name, number in numbers.items():
            points = features.keypoints(name) + np.float32(0.5)
            image = colmap.Image(name=name, keypoints=points.astype(float), camera_id=1, image_id=number)
            model.add_image_with_trivial_frame(image, colmap.Rigid3d(orthonormal(case["poses"][name])[:3]))
            database.write_image(colmap.Image(name=name, camera_id=1, image_id=number), use_image_id=True)
            database.write_frame(model.frames[number], use_frame_id=True)
            database.write_keypoints(number, points)
        for pair in read_pairs(folder / "map/pairs.txt"):
            found = matches.get(*(pair if pair in matches else pair[::-1]))
            found = found.pairs() if pair in matches else found.pairs()[:, ::-1]
            sides = [features.keypoints(name)[found[:, side]] for side, name in enumerate(pair)]
            geometry = colmap.TwoViewGeometry()
            geometry.config = colmap.TwoViewGeometryConfiguration.CALIBRATED
            geometry.inlier_matches = found[estimate_fundamental(*sides).inliers].astype(np.uint32)
            database.write_matches(numbers[pair[0]], numbers[pair[1]], found.astype(np.uint32))
            database.write_two_view_geometry(numbers[pair[0]], numbers[pair[1]], geometry)
    (folder / "triangulated").mkdir(exist_ok=True)
    with quiet():
        model = colmap.triangulate_points(model, file, folder / "photos", folder / "triangulated")
    return Map(Landmarks(model), features, pipeline, Retrieval.load(folder / "map/retrieval.npz")), model


def orthonormal(pose):
    """The pose (4, 4) with the nearest rotation: files have few digits."""
    left, _, right = np.linalg.svd(pose[:3, :3])
    result = pose.copy()
    result[:3, :3] = left @ right
    return result


def aligned(model, poses):
    """The similarity from a model to the truth, by the centres of its own photos, and what is left of them (m)."""
    images = [image for image in model.images.values() if image.has_pose and image.name in poses]
    centres = np.array([image.projection_center() for image in images])
    truth = np.array([-poses[image.name][:3, :3].T @ poses[image.name][:3, 3] for image in images])
    similarity = pycolmap_module().estimate_sim3d(centres, truth)
    return similarity, np.linalg.norm(similarity * centres - truth, axis=1)


def localised(mapped, case, similarity, camera, options):
    """A record of each query; errors None where it was not found."""
    records = {}
    files = [case["photos"] / name for name in case["queries"]]
    for result in mapped.localize_many(files, cameras=lambda _: camera, options=options):
        name = Path(result.name).name
        record = {
            key: value
            for key, value in result.as_dict().items()
            if key in ("success", "reason", "camera_from", "num_matches", "num_inliers", "centre_std", "timings_ms")
        }
        record["images"] = len(result.images)
        if result.success:
            truth = orthonormal(case["poses"][name])
            centre, turn = result.centre[None], result.cam_from_world[:, :3]
            if similarity is not None:
                centre, turn = similarity * centre, turn @ similarity.rotation.matrix().T
            record["error_m"] = float(np.linalg.norm(centre[0] + truth[:3, :3].T @ truth[:3, 3]))
            chord = np.linalg.norm(turn - truth[:3, :3]) / np.sqrt(8)
            record["error_deg"] = float(np.degrees(2 * np.arcsin(min(chord, 1.0))))
        records[name] = record
        print(f"    {name} {record.get('error_m', record['reason'])} {record['timings_ms']}", file=sys.stderr)
    return records


def summed(records):
    """Recall at the bars, medians, and the poses that are wrong though success was reported."""
    errors = np.array([[one.get("error_m", np.inf), one.get("error_deg", np.inf)] for one in records.values()])
    found = errors[np.isfinite(errors[:, 0])]
    stages = next(iter(records.values()))["timings_ms"]
    return {
        "queries": len(errors),
        "found": len(found),
        "recall": [float(((errors[:, 0] <= m) & (errors[:, 1] <= deg)).mean()) for m, deg in BARS],
        "median_m": float(np.median(found[:, 0])),
        "median_deg": float(np.median(found[:, 1])),
        "wrong": int((found[:, 0] > WRONG_M).sum()),
        "images_matched": float(np.mean([one["images"] for one in records.values()])),
        "median_ms": {
            stage: float(np.median([one["timings_ms"][stage] for one in records.values()])) for stage in stages
        },
    }


def measure(name, work, pipeline, options):
    """All rows of a case."""
    case, other = CASES[name](), CASES[next(one for one in CASES if one != name)]()
    folder, rows = work / name, {}
    given = camera_of(*case["camera"])
    maps = {}
    for label in ROWS[name]:
        params = None if label == "found" else case["camera"][2]
        mapped, model, seconds = made(case, folder, pipeline, params)
        similarity, left_m = aligned(model, case["poses"])
        camera = next(iter(model.cameras.values()))
        about = {"map_s": seconds, "map_centre_errors_m": [float(np.median(left_m)), float(left_m.max())]}
        maps[f"made, intrinsics {label}"] = mapped, model, similarity, camera, about
        if label == "found":
            found = camera
    for label, camera in (("found", found), ("given", given)):
        if label == "found" and name == "hololens":  # its given intrinsics are right
            continue
        mapped, model = triangulated(case, folder, pipeline, camera)
        maps[f"triangulated, intrinsics {label}"] = mapped, model, None, camera, {}
    for label, (mapped, model, similarity, camera, about) in maps.items():
        start, processor = time.perf_counter(), time.process_time()
        records = localised(mapped, case, similarity, camera, options)
        count = len(records)
        rows[label] = {
            **summed(records),
            "wall_s": (time.perf_counter() - start) / count,
            "processor_s": (time.process_time() - processor) / count,
            **about,
            "images": model.num_reg_images(),
            "points": model.num_points3D(),
            "reprojection_error_px": model.compute_mean_reprojection_error(),
            "camera": [camera.model_name, *map(float, camera.params)],
            "each": records,
        }
        print(f"  {name}, {label}: {rows[label]['recall']}, {rows[label]['wrong']} wrong", file=sys.stderr)
    mapped = maps["made, intrinsics found"][0]
    files = [other["photos"] / one for one in other["queries"][:: max(len(other["queries"]) // STRANGERS, 1)]]
    strangers = list(mapped.localize_many(files[:STRANGERS], options=options))
    return {
        "rows": rows,
        "strangers": {"queries": len(strangers), "found": sum(one.success for one in strangers)},
        "reasons": sorted({one.reason for one in strangers}),
    }


def main(work, *names):
    """Measure, and store what came of it beside what other runs stored."""
    pipeline, options = Pipeline(), LocaliseOptions()
    stored = json.loads(RESULT.read_text()) if RESULT.is_file() else {"sets": {}}
    for name in names or CASES:
        stored["sets"][name] = measure(name, Path(work), pipeline, options)
        stored["options"] = asdict(options)
        stored["bars"] = BARS
        stored["machine"] = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
