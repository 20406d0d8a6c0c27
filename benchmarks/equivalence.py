"""Hold Isinglass against the published outputs and against known truth; write the figures and the page about them.

    python benchmarks/equivalence.py            # measure, write results/equivalence.json and docs/equivalence.md
    python benchmarks/equivalence.py --page     # only write the page again, from the JSON

Needs the photos and reference outputs of the published implementation in ../shared (or ISINGLASS_SHARED), and
scikit-image for the motorcycle pair.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import isinglass  # noqa: E402
from support import HOMOGRAPHY, motorcycle_precision, reference_features, transfer, warp  # noqa: E402

SHARED = Path(os.environ.get("ISINGLASS_SHARED") or ROOT.parent / "shared")
RESULTS = ROOT / "benchmarks/results/equivalence.json"
PAGE = ROOT / "docs/equivalence.md"
PHOTOS = {"dsc": ("DSC_0410.JPG", "DSC_0411.JPG"), "sacre_coeur": ("sacre_coeur1.jpg", "sacre_coeur2.jpg")}
EXTRACTORS = {"aliked": "aliked-n16", "disk": "disk"}


def references():
    """(family, scene, number of keypoints, published outputs, features of both images)."""
    for family, extractor in EXTRACTORS.items():
        for scene in PHOTOS:
            for count in (512, 2048):
                path = SHARED / f"reference/{family}_lightglue_{scene}_{count}.npz"
                yield family, scene, count, *reference_features(path, extractor)


def measure_lightglue():
    """Matches of the published features, with and without adaptivity."""
    rows = []
    for family, scene, count, data, features in references():
        for mode, off in (("full", {"depth_confidence": None, "width_confidence": None}), ("adaptive", {})):
            found = isinglass.LightGlue.pretrained(f"lightglue-{family}", **off).match(*features)
            rows.append(
                {
                    "features": f"{family} {scene} {count}",
                    "mode": mode,
                    "matches": int((data[f"{mode}_matches0"] >= 0).sum()),
                    "same_match": float((found.indices[0].numpy() == data[f"{mode}_matches0"]).mean()),
                    "score_difference": float(np.abs(found.scores[0].numpy() - data[f"{mode}_scores0"]).max()),
                    "stop_layer": int(found.stop_layer[0]),
                    "published_stop_layer": int(data[f"{mode}_stop"]),
                }
            )
    return rows


def measure_extractors():
    """Keypoints and descriptors of the photos, against the published ones."""
    rows = []
    for family, scene, count, data, _ in references():
        for view, name in enumerate(PHOTOS[scene]):
            features = isinglass.extract(
                SHARED / "images" / name, extractor=family, max_keypoints=count, min_distance=0
            )
            published = torch.from_numpy(data[f"keypoints{view}"])
            distance, nearest = torch.cdist(published.double(), features.keypoints[0].double()).min(dim=1)
            descriptors = torch.from_numpy(data[f"descriptors{view}"])
            cosine = torch.cosine_similarity(descriptors, features.descriptors[0, nearest], dim=1)
            near = distance <= 0.05
            rows.append(
                {
                    "image": f"{family} {name} {count}",
                    "within_px": float((near & (cosine >= 0.9999)).float().mean()),
                    "largest_distance_px": float(distance[near].max()),
                    "least_cosine": float(cosine[near].min()),
                }
            )
    return rows


def measure_batch():
    """Eight pairs of 37 to 1024 keypoints at once against one at a time, default adaptivity."""
    model = isinglass.LightGlue.pretrained("lightglue-aliked")
    pairs = []
    for scene in PHOTOS:
        _, (one0, one1) = reference_features(SHARED / f"reference/aliked_lightglue_{scene}_2048.npz", "aliked-n16")
        pairs += [(one0.top(a), one1.top(b)) for a, b in [(37, 1024), (1024, 1024), (512, 300), (150, 700)]]
    together = model.match_many(*zip(*pairs, strict=True))
    alone = [model.match(*pair) for pair in pairs]
    return {
        "pairs": len(pairs),
        "stop_layers": [int(one.stop_layer[0]) for one in together],
        "same_indices": all(torch.equal(a.indices, b.indices) for a, b in zip(together, alone, strict=True)),
        "same_stop_layers": all(torch.equal(a.stop_layer, b.stop_layer) for a, b in zip(together, alone, strict=True)),
        "score_difference": max(float((a.scores - b.scores).abs().max()) for a, b in zip(together, alone, strict=True)),
    }


def measure_homography(image):
    """Median reprojection error of a photo against its warp, with resizing, tiles and turns on."""
    rows = []
    warped = warp(image, HOMOGRAPHY)
    for options in ({"resize": 640}, {"resize": None, "tile": 320}, {"resize": 640, "tile": 400, "rotation": "auto"}):
        turned = options.get("rotation") == "auto"
        result = isinglass.match(image, warped.rot90(-1, (1, 2)) if turned else warped, max_keypoints=1024, **options)
        points1 = result.points1
        if turned:  # a clockwise turn took (x, y) to (h - 1 - y, x)
            points1 = torch.stack([points1[:, 1], image.shape[1] - 1 - points1[:, 0]], dim=1)
        error = (transfer(result.points0, HOMOGRAPHY) - points1).norm(dim=1)
        shown = ", ".join(f"{name}={value}" for name, value in options.items())
        rows.append({"options": shown, "matches": len(error), "median_error_px": float(error.median())})
    return rows


def measure_motorcycle(images, disparity):
    """Precision against the dense disparity, for each pair of extractor and matcher at hand."""
    rows = []
    for extractor, matcher in [
        ("aliked", "lightglue"),
        ("disk", "lightglue"),
        ("xfeat", "lightglue"),
        ("aliked", "nearest"),
        ("rootsift", "nearest"),
    ]:
        result = isinglass.match(*images, extractor=extractor, matcher=matcher)
        row = {"extractor": extractor, "matcher": result.matches.matcher, "matches": len(result.scores)}
        for px in (1, 2, 3):
            row[f"precision_{px}_px"], row["with_truth"] = motorcycle_precision(result, disparity, px)
        rows.append(row)
    return rows


def measure():
    """All figures, with what made them."""
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    images = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in (left, right)]
    return {
        "made_with": {
            "isinglass": version("isinglass"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
        "lightglue": measure_lightglue(),
        "extractors": measure_extractors(),
        "batch": measure_batch(),
        "homography": measure_homography(images[0]),
        "motorcycle": measure_motorcycle(images, disparity),
    }


COLUMNS = {  # of each table: title and format of the row's fields
    "lightglue": {
        "features": "{features}",
        "mode": "{mode}",
        "matches": "{matches}",
        "same match": "{same_match:.2%}",
        "largest score difference": "{score_difference:.1e}",
        "stop layer": "{stop_layer}",
        "published": "{published_stop_layer}",
    },
    "extractors": {
        "image": "{image}",
        "within 0.05 px": "{within_px:.2%}",
        "largest distance, px": "{largest_distance_px:.5f}",
        "least cosine": "{least_cosine:.7f}",
    },
    "homography": {"options": "{options}", "matches": "{matches}", "median error, px": "{median_error_px:.3f}"},
    "motorcycle": {
        "extractor": "{extractor}",
        "matcher": "{matcher}",
        "matches": "{matches}",
        "with truth": "{with_truth}",
        "at 1 px": "{precision_1_px:.1%}",
        "at 2 px": "{precision_2_px:.1%}",
        "at 3 px": "{precision_3_px:.1%}",
    },
}


def table(figures, name):
    """A Markdown table."""
    columns = COLUMNS[name]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(columns.values()).format(**row) for row in figures[name]]
    return "\n".join(f"| {line} |" for line in lines)


def page(figures):
    """docs/equivalence.md."""
    made, batch = figures["made_with"], figures["batch"]
    equal = {True: "equal", False: "NOT EQUAL"}
    return f"""# Held against the published implementations

Written by `python benchmarks/equivalence.py` from `benchmarks/results/equivalence.json`; do not edit. Made with
Isinglass {made["isinglass"]}, torch {made["torch"]}, Python {made["python"]} on {made["machine"]}. Outputs of the
published implementations (LightGlue, ALIKED, DISK; long side 1024, published defaults) were stored beforehand. The same
bars are asserted in the tests, as are SuperGlue, SuperPoint and LightGlue against the classes of transformers with the
same random parameters (scores within 1e-4): `tests/equivalence`, `tests/matchers`, `tests/extractors`.

## LightGlue on the published features

Asked: the same match for at least 99.9 % of keypoints and scores within 1e-3 with adaptivity off; the same stop layer
and the same match for at least 99 % with the default adaptivity.

{table(figures, "lightglue")}

## Extractors on the published photos

Asked: at least 99 % of the published keypoints within 0.05 px of one of ours, whose descriptor has a cosine of at
least 0.9999. Distance and cosine are of those keypoints. The four photos have a long side of 1024 px already, so
resizing is not part of this; it is held against the published resizing in `tests/test_images.py`.

{table(figures, "extractors")}

## A batch of pairs against each alone

{batch["pairs"]} pairs of 37 to 1024 keypoints, default adaptivity; they stop after layers
{", ".join(map(str, batch["stop_layers"]))}. In the batch and alone: stop layers {equal[batch["same_stop_layers"]]},
indices {equal[batch["same_indices"]]}, largest difference of scores {batch["score_difference"]:.1e} (asked: 1e-4).

## A known homography

The left motorcycle photo against its own warp, turned by a quarter where rotation="auto"; ALIKED and LightGlue, 1024
keypoints. Asked: a median reprojection error under 0.5 px.

{table(figures, "homography")}

## The motorcycle pair against its disparity

Middlebury 2014, 741 x 500 px, 2048 keypoints, default options. Precision is the share of matches (whose truth is
known) within so many px of it.

{table(figures, "motorcycle")}
"""


def main():
    """Measure unless --page, then write the page."""
    if "--page" not in sys.argv:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
