"""docs/speed.md and its figures, from the JSON files that speed.py stored. Nothing is measured here."""

from __future__ import annotations

import json
import re

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from evaluation_page import table, wrapped
from matplotlib.ticker import NullLocator
from speed_harness import HERE, ROOT

from isinglass.eval.runs import load_run

PAGE, FIGURES = ROOT / "docs/speed.md", ROOT / "docs/images"
THIRDS = ("easy", "medium", "hard")
COLOURS = {"published": "0.3", "kornia": "tab:brown", "transformers": "tab:purple", "onnxruntime": "tab:green"}
COLOURS |= {"isinglass float32": "tab:blue", "isinglass bfloat16": "tab:orange"}
FASTEST = "fastest of ours"
BARS = {  # of LightGlue by keypoints: how many times as fast as the published code
    FASTEST: {512: 4.0, 1024: 5.0, 2048: 8.0, 4096: 8.0},
    "isinglass float32": {512: 1.5, 1024: 2.0, 2048: 3.0, 4096: 3.0},
}
AGREEMENT = {"isinglass float32": 0.999, "isinglass bfloat16": 0.98}
EXTRACTION = {"aliked": 8.0, "disk": 3.0, "superpoint": 3.0}
EVALUATED, ALIKED, SUFFIXES = ROOT / "benchmarks/results/eval", "aliked-lightglue", ("", "-bfloat16")
PAPER = {"easy": 1.86, "medium": 1.33, "hard": 1.16}


# --- numbers of the rows


def median_ms(row, label):
    """Of one contestant; of the fastest of ours; NaN = not measured."""
    if label == FASTEST:
        ours = [one for one in row["contestants"] if one.startswith("isinglass")]
        return float(np.nanmin([median_ms(row, one) for one in ours]))
    times = row["contestants"].get(label, {}).get("ms")
    return float(np.median(times)) if times else float("nan")


def ratio(row, slow, fast=FASTEST):
    """How many times as fast."""
    return median_ms(row, slow) / median_ms(row, fast)


def exponent(points, key="ms"):
    """b of y = a x^b through the points, by least squares of logarithms; NaN for fewer than two."""
    if len(points) < 2:
        return float("nan")
    x, y = ([one[name] for one in points] for name in ("size", key))
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def thirds(rows):
    """(set, third) -> (number of pairs, mean overlap, how many times as fast adaptive is than all layers, layers)."""
    found = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        for third in THIRDS:
            some = [row for row in rows if (row["set"], row["third"]) == (name, third)]
            spent = {label: sum(median_ms(row, label) for row in some) for label in ("all layers", "adaptive")}
            layers = np.mean([row["contestants"]["adaptive"]["mean_layers"] for row in some])
            overlap = float(np.mean([row["overlap"] for row in some]))
            found[name, third] = len(some), overlap, spent["all layers"] / spent["adaptive"], float(layers)
    return found


def cold_times(row):
    """Median ms of the published script, of ours, and of the script if its torch were imported as fast as ours."""
    theirs, ours = median_ms(row, "published"), median_ms(row, "isinglass")
    more = median_ms(row, "published: import torch") - median_ms(row, "isinglass: import torch")
    return theirs, ours, theirs - more


# --- text


def summary(measured):
    """Lines of a measurement, for whoever watches."""
    for row in measured.get("rows", []):
        yield ", ".join(f"{key} {value}" for key, value in row.items() if key != "contestants")
        for label, found in row["contestants"].items():
            times = found.get("ms")
            more = {key: value for key, value in found.items() if key not in ("ms", "first_ms")}
            yield f"  {label}: " + (
                f"{np.median(times):.1f} ms, least {min(times):.1f}, {more}" if times else str(more)
            )
    for label, series in measured.get("series", {}).items():
        points = [f"{one['size']}: {one['ms']:.0f} ms, {one['peak_mb']:.0f} MB" for one in series["points"]]
        yield f"{label}: {'; '.join(points)} {series.get('note', '')}"


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f} %"


def contest(rows, titles, against, more=()):
    """A table of rows by the fields `titles`, a line a contestant, with how many times as fast as `against` it is.

    `more` are further columns: (title, function of what was found).
    """
    lines = [
        [*titles, "", "median, ms", "least, ms", "rounds", f"times as fast as {against}", *(one[0] for one in more)]
    ]
    for row in rows:
        for label, found in row["contestants"].items():
            cells = [*(row[key] for key in titles), label]
            if "not_measured" in found:
                lines.append(
                    [*cells, f"not measured: {found['not_measured']}", *("-" for _ in lines[0][len(cells) + 1 :])]
                )
                continue
            times = found["ms"]
            cells += [f"{np.median(times):.1f}", f"{min(times):.1f}", len(times)]
            lines.append([*cells, f"{ratio(row, against, label):.2f}", *(tell(found) for _, tell in more)])
    return table(lines)


MATCHES = (
    ("matches", lambda found: found.get("agreement", {}).get("matches", "-")),
    ("of theirs found", lambda found: _percent(found.get("agreement", {}).get("found"))),
    ("Jaccard", lambda found: _percent(found.get("agreement", {}).get("jaccard"))),
)
LAYERS = (("layers", lambda found: found.get("stop_layer", "-")),)
KEYPOINTS = (
    ("keypoints", lambda found: found.get("num_keypoints", "-")),
    ("of theirs within 0.5 px", lambda found: _percent(found.get("found"))),
)


def _verdict(what, bar, measured, met):
    return [what, bar, measured, "met" if met else "missed"]


def bars(results):
    """The table of what was asked for and what came out."""
    rows = [["what", "bar", "measured", ""], *_lightglue_bars(results["lightglue"]["rows"])]
    one = results["superglue"]["rows"][0]
    rows.append(_accuracy_bar())
    rows.append(_fastest_and_default("SuperGlue against transformers", 3, [one], "transformers"))
    for row in results["extract"]["rows"]:
        against = next(iter(row["contestants"]))
        found, bar = ratio(row, against), EXTRACTION.get(row["extractor"])
        what = f"{row['extractor']} against {against}, extraction"
        rows.append(
            _verdict(what, f"{bar:g}x", f"{found:.1f}x", found >= bar) if bar else [what, "-", f"{found:.1f}x", ""]
        )
    rows.append(_fastest_and_default("two photos to matches, warm", 6, results["photos"]["rows"], "published"))
    theirs, ours, corrected = cold_times(results["cold"]["rows"][0])
    shown = f"{theirs / ours:.1f}x; {corrected / ours:.1f}x were their torch imported as fast as ours"
    rows.append(_verdict("cold process to printed result", "2x", shown, corrected / ours >= 2))
    for (name, third), (_, _, found, _) in thirds(results["adaptive"]["rows"]).items():
        what, bar = f"adaptive against all layers, {third} pairs of {name}", PAPER[third]
        rows.append(_verdict(what, f"{bar:g}x", f"{found:.2f}x", found >= bar))
    found = ratio(results["batch"]["rows"][0], "a call each", "one call")
    rows.append(_verdict("64 pairs in one call against 64 calls", "1x", f"{found:.2f}x", found >= 1))
    shown = [
        ratio(row, "SuperGlue, 100 iterations", "LightGlue, adaptive") for row in results["lightglue-superglue"]["rows"]
    ]
    rows.append(_verdict("LightGlue against our SuperGlue", "2.5x", _slashed(shown), min(shown) >= 2.5))
    return table(rows)


def _fastest_and_default(what, bar, rows, slow):
    """The fastest precision decides; float32, which this CPU takes by default, is told beside it."""
    found, default = (min(ratio(row, slow, fast) for row in rows) for fast in (FASTEST, "isinglass float32"))
    return _verdict(what, f"{bar}x", f"{found:.1f}x; {default:.1f}x in float32, the default here", found >= bar)


def _accuracy_bar():
    """AUC in bfloat16 less that in float32, on the sets of benchmarks.md; in float32 matches are the published ones."""
    shown, worst = [], 0.0
    for name, what in (("homography", "homographies"), ("redkitchen", "poses")):
        of = [load_run(EVALUATED / name / f"{ALIKED}{suffix}.json").info["best"]["poselib"] for suffix in SUFFIXES]
        at = [metric for metric in of[0]["metrics"] if metric.startswith("auc@")]
        points = [100 * (of[1]["metrics"][metric] - of[0]["metrics"][metric]) for metric in at]
        worst = max(worst, *map(abs, points))
        thresholds = "/".join(metric.removeprefix("auc@") for metric in at)
        shown.append(f"{what} @{thresholds}: " + " / ".join(f"{value:+.1f}" for value in points))
    return _verdict("AUC in bfloat16 less that in float32, PoseLib", "0.5 points", "; ".join(shown), worst <= 0.5)


def _slashed(values):
    return " / ".join(f"{value:.1f}x" for value in values)


def _lightglue_bars(rows):
    """The lesser of the two pairs of photos counts; agreement is over all matches of all rows."""
    counts = list(dict.fromkeys(row["keypoints"] for row in rows))
    for label, wanted in BARS.items():
        least = [min(ratio(row, "published", label) for row in rows if row["keypoints"] == count) for count in counts]
        asked = [wanted[count] for count in counts]
        met = all(value >= bar for value, bar in zip(least, asked, strict=True))
        what = f"LightGlue, {' / '.join(map(str, counts))} keypoints, {label}"
        yield _verdict(what, " / ".join(f"{bar:g}x" for bar in asked), _slashed(least), met)
    for label, bar in AGREEMENT.items():
        found = [(row["contestants"]["published"], row["contestants"][label].get("agreement")) for row in rows]
        found = [(theirs["agreement"]["matches"], ours["found"]) for theirs, ours in found if ours]
        if found:
            share = sum(count * part for count, part in found) / sum(count for count, _ in found)
            shown = f"{100 * share:.2f} %; least {100 * min(part for _, part in found):.2f} %"
            yield _verdict(f"matches of the published code found, {label}", f"{100 * bar:g} %", shown, share >= bar)


def adaptive_table(rows):
    """A row a third."""
    lines = [["pairs", "third", "number", "mean overlap", "layers a keypoint went through", "times as fast", "paper"]]
    for (name, third), (number, overlap, found, layers) in thirds(rows).items():
        lines.append([name, third, number, f"{overlap:.2f}", f"{layers:.1f} of 9", f"{found:.2f}", PAPER[third]])
    return table(lines)


def growth_table(results):
    """A row a point, and the exponents."""
    lines = [["against", "series", "size", "time, s", "peak memory, MB", "held before the call, MB"]]
    fits = [["against", "series", "exponent of time", "exponent of memory beyond what is held before", "note"]]
    for measured in results:
        for label, series in measured["series"].items():
            points = series["points"]
            lines += [
                [
                    measured["axis"],
                    label,
                    one["size"],
                    f"{one['ms'] / 1e3:.2f}",
                    f"{one['peak_mb']:.0f}",
                    f"{one['before_mb']:.0f}",
                ]
                for one in points
            ]
            beyond = [{**one, "beyond_mb": max(one["peak_mb"] - one["before_mb"], 1.0)} for one in points]
            shown = [f"{exponent(points):.2f}", f"{exponent(beyond, 'beyond_mb'):.2f}"]
            fits.append([measured["axis"], label, *shown, series.get("note", "-")])
    return f"{table(fits)}\n\n{table(lines)}"


# --- figures


def save(figure, name):
    """As docs/images/speed-<name>.svg."""
    file = FIGURES / f"speed-{name}.svg"
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    file.write_text(re.sub(r"[ \t]+$", "", file.read_text(), flags=re.MULTILINE))


def draw_lightglue(results):
    """Time against keypoints, adaptive and with all layers, of one pair of photos."""
    figure, all_axes = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained", sharey=True)
    for axes, name in zip(all_axes, ("lightglue", "layers"), strict=True):
        rows = [row for row in results[name]["rows"] if row["pair"] == "dsc"]
        for label, colour in COLOURS.items():
            points = [(row["keypoints"], median_ms(row, label)) for row in rows]
            points = [(count, ms) for count, ms in points if np.isfinite(ms)]
            if points:
                axes.loglog(*zip(*points, strict=True), marker="o", label=label, color=colour)
        counts = [row["keypoints"] for row in rows]
        axes.set(title={"lightglue": "adaptive"}.get(name, "all layers"), xlabel="keypoints an image")
        axes.set_xticks(counts, list(map(str, counts)), minor=False)
        axes.minorticks_off()
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize="small")
    all_axes[0].set_ylabel("time to match a pair, ms")
    save(figure, "lightglue")


def draw_photos(results):
    """Bars of extraction, and of two photos to matches."""
    bars = [(row["extractor"], row) for row in results["extract"]["rows"]]
    bars += [(f"two photos:\n{row['pair']}", row) for row in results["photos"]["rows"]]
    labels = [one for one in COLOURS if any(np.isfinite(median_ms(row, one)) for _, row in bars)]
    figure, axes = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
    for number, label in enumerate(labels):
        places = np.arange(len(bars)) + (number - (len(labels) - 1) / 2) * 0.8 / len(labels)
        heights = [median_ms(row, label) for _, row in bars]
        axes.bar(places, heights, 0.8 / len(labels), label=label, color=COLOURS[label])
    axes.set_xticks(range(len(bars)), [name for name, _ in bars])
    axes.set(ylabel="time, ms")
    axes.grid(color="0.9", axis="y")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    save(figure, "photos")


def draw_adaptive(rows):
    """Each pair: how many times as fast adaptive is, against overlap."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, marker in zip(dict.fromkeys(row["set"] for row in rows), "os", strict=True):
        some = [row for row in rows if row["set"] == name]
        speed = [ratio(row, "all layers", "adaptive") for row in some]
        axes.plot([row["overlap"] for row in some], speed, marker, label=name)
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xlabel="overlap of the pair", ylabel="times as fast as all layers", ylim=(0, None))
    axes.grid(color="0.9")
    axes.legend(frameon=False)
    save(figure, "adaptive")


def draw_growth(results):
    """Time and peak memory against each axis, with the exponents."""
    figure, all_axes = plt.subplots(2, len(results), figsize=(9.6, 5.6), layout="constrained", sharex="col")
    for column, measured in zip(all_axes.T, results, strict=True):
        for label, series in measured["series"].items():
            sizes = [one["size"] for one in series["points"]]
            shown = f"{label}: exponent {exponent(series['points']):.2f}"
            column[0].loglog(sizes, [one["ms"] / 1e3 for one in series["points"]], marker="o", label=shown)
            column[1].loglog(sizes, [one["peak_mb"] for one in series["points"]], marker="o")
        column[0].legend(frameon=False, fontsize="small")
        sizes = sorted({one["size"] for series in measured["series"].values() for one in series["points"]})
        column[1].set_xlabel(measured["axis"])
        for axes in column:
            axes.set_xticks(sizes, list(map(str, sizes)), rotation=45)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(color="0.9")
    all_axes[0, 0].set_ylabel("time, s")
    all_axes[1, 0].set_ylabel("peak memory, MB")
    save(figure, "growth")


# --- the page


def write(folder):
    """docs/speed.md."""
    results = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    growth = [results[f"growth-{axis}"] for axis in ("keypoints", "megapixels", "pairs")]
    draw_lightglue(results)
    draw_photos(results)
    draw_adaptive(results["adaptive"]["rows"])
    draw_growth(growth)
    made = results["lightglue"]
    versions = {
        side: ", ".join(f"{name} {at}" for name, at in found.items()) for side, found in made["versions"].items()
    }
    cold = cold_times(results["cold"]["rows"][0])
    text = (HERE / "speed_page.md").read_text()
    filled = text.format(
        cpu=made["machine"]["cpu"],
        cores=made["machine"]["cores"],
        threads=made["machine"]["threads"]["isinglass"],
        ours=versions["isinglass"],
        peers=versions["peers"],
        minutes=f"{sum(one['spent_s'] for one in results.values()) / 60:.0f}",
        bars=bars(results),
        lightglue=contest(made["rows"], ("pair", "keypoints"), "published", (*LAYERS, *MATCHES)),
        layers=contest(results["layers"]["rows"], ("keypoints",), "published", MATCHES),
        superglue=contest(results["superglue"]["rows"], ("keypoints", "iterations"), "transformers", MATCHES),
        extract=_by_peer(results["extract"]["rows"]),
        photos=contest(results["photos"]["rows"], ("pair",), "published"),
        cold=contest(results["cold"]["rows"], ("pair",), "published"),
        cold_corrected=f"{cold[2] / cold[1]:.1f}",
        adaptive=adaptive_table(results["adaptive"]["rows"]),
        batch=contest(results["batch"]["rows"], ("pairs", "keypoints"), "a call each"),
        lightglue_superglue=contest(
            results["lightglue-superglue"]["rows"], ("keypoints",), "SuperGlue, 100 iterations"
        ),
        growth=growth_table(growth),
    )
    PAGE.write_text(wrapped(filled).rstrip("\n") + "\n")


def _by_peer(rows):
    """The extractors' rows in one table, each against its own peer."""
    tables = [contest([row], ("extractor",), next(iter(row["contestants"])), KEYPOINTS).splitlines() for row in rows]
    tables[0][0] = tables[0][0].replace("times as fast as published", "times as fast as the peer")
    return "\n".join([*tables[0][:2], *(line for lines in tables for line in lines[2:])])
