"""docs/maps.md and its figure, from what maps.py, localisation.py, pair_selection.py and match_many.py stored."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from evaluation_page import Page, table, wrapped

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/maps.md"
MISSING = "Not measured yet."
SETS = {"redkitchen": "RedKitchen", "hololens": "HoloLens"}
STAGES = ("extract", "retrieval", "match", "database", "verify", "reconstruct")


def stored(results, name):
    """What a script stored; None where it has not been run."""
    file = results / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


# ---- maps


def rows_of(results, name):
    """Label -> what was measured, of a set."""
    found = stored(results, "maps")
    return {} if found is None else found["sets"].get(name, {})


def on_common(row, other, truth):
    """Errors (cm) of the first row on the photos that both placed, aligned to the truth by these alone."""
    import pycolmap

    names = sorted(set(row.get("centres", ())) & set(other.get("centres", ())))
    if len(names) < 3:
        return {}
    centres, given = (np.array([of[name] for name in names]) for of in (row["centres"], truth))
    errors = np.linalg.norm(pycolmap.estimate_sim3d(centres, given) * centres - given, axis=1)
    return dict(zip(names, 100 * errors, strict=True))


def median_of(errors):
    """Over all."""
    return float(np.median(list(errors.values()))) if errors else float("nan")


def told_cm(errors):
    """The median, or a dash where a model cannot be aligned."""
    return f"{100 * median_of(errors):.1f}" if errors else "-"


def against_colmap(rows, truth):
    """A row a side and kind of intrinsics."""
    titles = ["", "registered", "median centre error, cm", "90 %, cm", "median angle, deg", "points", "photos a point"]
    lines = [[*titles, "reprojection error, px", "focal length, px", "other models: photos (median, cm)"]]
    for label, row in rows.items():
        share = f"{row['registered']} ({100 * row['registered'] / row['photos']:.0f} %)"
        if not row["registered"]:
            lines.append([label, share, *["-"] * 8])
            continue
        errors, other = row["centre_errors_m"], rows.get(f"COLMAP, {label.rsplit(', ', 1)[1]}", {})
        centre = f"{100 * median_of(errors):.2f} ({median_of(on_common(row, other, truth)):.2f})"
        lines.append(
            [
                label.replace("ours", "Isinglass"),
                share,
                centre,
                f"{100 * np.percentile(list(errors.values()), 90):.2f}",
                f"{median_of(row['rotation_errors_deg']):.2f}",
                f"{row['points']:,}",
                f"{row['track_length']:.2f}",
                f"{row['reprojection_error_px']:.2f}",
                f"{row['camera'][0]:.1f}",
                ", ".join(f"{one['registered']} ({told_cm(one['centre_errors_m'])})" for one in row["others"]) or "-",
            ]
        )
    return table(lines)


def verdict(rows, truth):
    """The bars, and whether either mapper meets them."""
    theirs = rows.get("COLMAP, intrinsics found")
    lines = []
    for label, title in (
        ("ours", "hybrid"),
        ("ours, incremental mapper", "incremental"),
        ("ours, global mapper", "global"),
    ):
        mine = rows.get(f"{label}, intrinsics found")
        if not (mine and theirs and mine["registered"] and theirs["registered"]):
            continue
        share = mine["registered"] / mine["photos"]
        medians = [median_of(row["centre_errors_m"]) for row in (mine, theirs)]
        met = "met" if share >= 0.95 and medians[0] < medians[1] else "missed"
        both = [on_common(*sides, truth) for sides in ((mine, theirs), (theirs, mine))]
        pairs = np.array([list(errors.values()) for errors in both])
        drawn = np.random.default_rng(0).integers(0, len(both[0]), (5000, len(both[0])))
        over = np.median(pairs[0][drawn], axis=1) - np.median(pairs[1][drawn], axis=1)
        low, high = np.percentile(over, [2.5, 97.5])
        lines.append(
            f"by the {title} mapper {met} ({100 * share:.0f} %, {100 * medians[0]:.2f} against "
            f"{100 * medians[1]:.2f} cm; on the {len(both[0])} photos that both placed "
            f"{low:+.2f} to {high:+.2f} cm over COLMAP's, 95 %)"
        )
    bar = "The bar, at least 95 % registered and a median centre error under that of COLMAP's own SIFT, is "
    return f"\n\n{bar}{', '.join(lines)}." if lines else ""


def times(results):
    """A row a stage, a column a set and side."""
    columns = {
        f"{title}, {side}": rows_of(results, name)[f"{label}, intrinsics found"]
        for name, title in SETS.items()
        for side, label in (("Isinglass", "ours"), ("COLMAP", "COLMAP"))
        if rows_of(results, name)
    }
    lines = [["stage", *columns]]
    for stage in STAGES:
        cells = [row["seconds"].get(stage) for row in columns.values()]
        lines.append([stage, *("-" if one is None else f"{one:.1f}" for one in cells)])
    lines.append(["pairs", *(row["pairs"] for row in columns.values())])
    return table(lines)


def draw_errors(results):
    """The share of photos whose centre is within an error, a panel a set."""
    figure, axes = plt.subplots(1, len(SETS), figsize=(9, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, SETS.items(), strict=True):
        for label, colour in (("ours", "#0b62a4"), ("COLMAP", "#c44e00")):
            for intrinsics, dashes in (("found", "-"), ("given", ":")):
                row = rows_of(results, name).get(f"{label}, intrinsics {intrinsics}")
                if row is None or not row["registered"]:
                    continue
                errors = np.sort([100 * value for value in row["centre_errors_m"].values()])
                shares = 100 * np.arange(1, len(errors) + 1) / row["photos"]
                shown = f"{label.replace('ours', 'Isinglass')}, intrinsics {intrinsics}"
                axis.step(errors, shares, dashes, color=colour, where="post", label=shown)
        axis.set(title=title, xlabel="camera centre error, cm", ylabel="photos, %", ylim=(0, 102), xscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    Page(results, []).save(figure, "map-errors")


# ---- what other scripts stored


def localisation(results):
    """A row a map."""
    found = stored(results, "localisation")
    if found is None:
        return MISSING
    bars = [f"within {100 * m:.0f} cm, {deg:.0f} deg" for m, deg in found["bars"]]
    lines = [["set and map", "queries", *bars, "median, cm", "median, deg", "wrong by over 1 m", "s a query"]]
    for name, measured in found["sets"].items():
        for label, row in measured["rows"].items():
            recall = [f"{100 * share:.1f} %" for share in row["recall"]]
            medians = [f"{100 * row['median_m']:.1f}", f"{row['median_deg']:.2f}"]
            title = f"{SETS.get(name, name)}, {label}"
            lines.append([title, row["queries"], *recall, *medians, row["wrong"], f"{row['wall_s']:.1f}"])
    strangers = [
        f"{one['strangers']['found']} of {one['strangers']['queries']} on {SETS.get(name, name)}"
        for name, one in found["sets"].items()
        if "strangers" in one
    ]
    told = f"\n\nQueries of the other set, which no map shows, reported as found: {', '.join(strangers)}."
    return table(lines) + (told if strangers else "")


def pair_selection(results):
    """A table a set and extractor."""
    found = stored(results, "pair_selection")
    if found is None:
        return MISSING
    parts = []
    for name, one in found["sets"].items():
        leasts = list(one["overlapping"])
        heads = [f"finds of those with {100 * float(least):.0f} % overlap" for least in leasts]
        lines = [["way", "pairs", *heads, f"right at {100 * float(leasts[0]):.0f} %"]]
        for label, way in one["ways"].items():
            shares = [f"{100 * way[least]['found']:.1f} %" for least in leasts]
            lines.append([label, f"{way['pairs']:,}", *shares, f"{100 * way[leasts[0]]['right']:.1f} %"])
        counts = " and ".join(f"{one['overlapping'][least]:,} ({100 * float(least):.0f} %)" for least in leasts)
        costs = ", ".join(f"{label} {ms} ms" for label, ms in one["cpu_ms_a_pair"].items())
        about = (
            f"**{name}**: {one['images']} images, pairs that overlap: {counts}. Time of a processor for a first pass: "
            f"{costs}; of a vector, an image: {one['described_cpu_ms_an_image']} ms."
        )
        parts += [about, table(lines)]
    return "\n\n".join(parts)


def throughput(results):
    """Two tables: against the published code, and by processes."""
    found = stored(results, "match_many")
    if found is None:
        return MISSING
    parts = []
    for title, part in (("Against the published code", "against_published"), ("Growth", "growth")):
        lines = [[title, "pairs a second"]]
        for label, one in found[part]["contestants"].items():
            lines.append([label, f"{one['pairs_a_second']:.2f}"])
        parts.append(table(lines))
    about = f"{found['images']} frames, {found['keypoints']} keypoints, {found['machine']['cpu']}."
    ratio = f"In float32 `match-many` is {found['against_published']['times_as_fast_in_float32']:.2f} times as fast."
    return "\n\n".join([about, *parts, ratio])


def growths(index):
    """Of the index of image vectors: seconds to make it and to look one image up, by the number of images.

    Cells are four times the root of the number of images: their means cost a time in proportion to the images,
    putting images into cells one to images x cells, a look-up one to cells and what is in the few that are seen.
    """
    counts = np.array([float(count) for count in index])
    made, looked_up = (np.array([row[key] for row in index.values()]) for key in ("make_s", "look_up_s"))
    make = np.linalg.solve(np.stack([counts, counts**1.5], axis=1), made)
    look_up = np.linalg.solve(np.stack([np.ones(2), counts**0.5], axis=1), looked_up)
    return (
        lambda n: float(np.maximum(make, 0) @ [n, n**1.5]),
        lambda n: float(np.maximum(look_up, 0) @ [1, n**0.5]),
    )


def cost_model(results):
    """What so many images need, by what was measured of an image, a pair and the index."""
    found, chosen = stored(results, "costs"), stored(results, "pair_selection")
    if found is None or chosen is None:
        return MISSING
    way = chosen["sets"]["hololens aliked"]["ways"]["retrieval 20"]
    a_pair = found["match_s"] + found["verify_s"]
    pairs_an_image = way["pairs"] / chosen["sets"]["hololens aliked"]["images"]
    make_s, look_up_s = growths(found["index"])
    sizes = (1e3, 1e5, 1e8)
    rows = {
        "features, on disk": lambda n: bytes_told(n * found["features_bytes"]),
        "vectors of images, in memory": lambda n: bytes_told(n * 2 * found["dimensions"]),
        "extraction": lambda n: time_told(n * found["extract_s"]),
        "vectors, index and look-ups": lambda n: time_told(
            n * found["vector_s"] + (make_s(n) + n * look_up_s(n) if n > 5e4 else n * n * look_up_s(5e4) / 5e4)
        ),
        f"pairs by likeness ({pairs_an_image:.1f} an image)": lambda n: count_told(n * pairs_an_image),
        "matching and verifying these": lambda n: time_told(n * pairs_an_image * a_pair),
        "matches of these and COLMAP's database, on disk": lambda n: bytes_told(
            n * pairs_an_image * (found["matches_bytes"] + found["database_bytes"])
        ),
        "all pairs instead": lambda n: count_told(n * (n - 1) / 2),
        "matching and verifying all pairs": lambda n: time_told(n * (n - 1) / 2 * a_pair),
    }
    lines = [["images", *(count_told(n) for n in sizes)], *([name, *map(tell, sizes)] for name, tell in rows.items())]
    about = (
        f"Measured on one core ({found['machine']['cpu']}), {found['keypoints']:.0f} keypoints an image: "
        f"{found['extract_s']:.2f} s an image for ALIKED's features, {1e3 * found['vector_s']:.1f} ms for its vector, "
        f"{found['match_s']:.2f} s a pair for LightGlue ({1 / found['match_s']:.1f} pairs/s), "
        f"{1e3 * found['verify_s']:.1f} ms for its verification; {found['features_bytes'] / 1e3:.0f} kB an image, "
        f"{found['matches_bytes'] / 1e3:.1f} kB a pair and {found['database_bytes'] / 1e3:.1f} kB in COLMAP's."
    )
    return f"{about}\n\n{table(lines)}\n\n{found_by_likeness(chosen)}"


def found_by_likeness(chosen):
    """What two numbers of neighbours find on HoloLens."""
    told = []
    for count in (20, 80):
        way = chosen["sets"]["hololens aliked"]["ways"][f"retrieval {count}"]
        shares = " and ".join(f"{100 * way[least]['found']:.0f} %" for least in ("0.1", "0.3"))
        told.append(f"{count} neighbours an image ({way['pairs']:,} pairs) find {shares}")
    return f"Of HoloLens' pairs that overlap by 10 % and by 30 %, {'; '.join(told)}."


def count_told(number):
    """With words for large numbers."""
    for size, word in ((1e15, "million billion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.3g} {word}"
    return f"{number:,.0f}"


def bytes_told(number):
    """In the unit that fits."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number / 1e3:,.3g} kB"


def time_told(seconds):
    """Of one core, in the unit that fits."""
    for size, unit in ((3600 * 24 * 365.25, "core years"), (3600, "core hours"), (60, "core minutes")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}" if seconds / size < 1e3 else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} core seconds"


def limits(results):
    """A row a set of limits."""
    found = stored(results, "limits")
    if found is None:
        return MISSING
    titles = ["least matches of a pair, px they may be off, share of a photo's that agrees", "pairs", "of them false"]
    mappers = list(found["rows"][0]["models"])
    lines = [[*titles, *(f"{mapper}: photos (median error, cm) of each model" for mapper in mappers)]]
    for row in found["rows"]:
        label = f"{row['least']}, {row['limit_px']:.0f} px, {row['share']:.0%}"
        label += ", of pairs that overlap alone" if row["true_alone"] else ""
        label += " (chosen)" if row["chosen"] else ""
        models = [", ".join(f"{count} ({cm:.1f})" for count, cm in row["models"][mapper]) for mapper in mappers]
        lines.append([label, row["pairs"], row["false"], *models])
    return table(lines)


def tracking(results):
    """A row an extractor."""
    found = stored(results, "tracking")
    if found is None:
        return MISSING
    lines = [["extractor", "matcher", "frames/s", "frames", "lost", "keyframes", "tracks", "frames a track"]]
    for name, row in found["rows"].items():
        counts = [row["frames"], row["lost"], row["keyframes"], f"{row['tracks']:,}", f"{row['mean_track_length']:.1f}"]
        lines.append([name, row["matcher"], f"{row['frames_a_second']:.2f}", *counts])
    about = (
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores (load {found['machine']['load']:.1f} at the end)"
    )
    return f"On {about}:\n\n{table(lines)}"


def machine(results):
    """In words."""
    told = (stored(results, "maps") or {}).get("machine")
    return "-" if told is None else f"{told['cpu']}, {told['cores']} cores (load {told['load']:.1f} at the end)"


def write(results):
    """docs/maps.md."""
    sections = {"machine": machine(results), "times": times(results), "localisation": localisation(results)}
    sections |= {"pairs": pair_selection(results), "throughput": throughput(results), "limits": limits(results)}
    sections |= {"costs": cost_model(results), "tracking": tracking(results)}
    for name in SETS:
        rows = rows_of(results, name)
        row = next((one for one in rows.values() if one["registered"]), None)
        truth = stored(results, "maps")["truth"][name] if rows else {}
        sections[name] = against_colmap(rows, truth) + verdict(rows, truth) if rows else MISSING
        sections[f"{name}_photos"] = str(row["photos"]) if row else "-"
        sections[f"{name}_posed"] = (
            str(max(len(one.get("centre_errors_m", {})) for one in rows.values())) if row else "-"
        )
        sections[f"{name}_extent"] = f"{row['extent_m']:.1f} m" if row else "-"
    if any(rows_of(results, name) for name in SETS):
        draw_errors(results)
    text = (ROOT / "benchmarks/maps_page.md").read_text()
    for name, section in sections.items():
        text = text.replace(f"{{{name}}}", section)
    PAGE.write_text(wrapped(text))
