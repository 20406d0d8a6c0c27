"""docs/training.md and its figures, from the logs and runs that training.py stored. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from evaluation_page import CALIBRATION_JUDGED_ON, Page, calibration_table, known_calibrations, table, wrapped

from isinglass.eval.runs import load_run
from isinglass.metrics import auc, bootstrap_interval
from isinglass.train.recipes import recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/training.md"
AT = {"homography": (1, 3, 5), "redkitchen": (5, 10, 20)}
UNIT = {"homography": "px", "redkitchen": "deg"}
SOLVER = "poselib"
COLOURS = {"lightglue": "#0b62a4", "superglue": "#c44e00"}
KINDS = {"lightglue": "LightGlue", "superglue": "SuperGlue"}
SHORT = {"sift": "RootSIFT", "aliked": "ALIKED"}


def percent(value):
    """With one decimal."""
    return f"{100 * value:.1f}"


def interval(low_high, scale=1.0):
    """The two ends."""
    low, high = low_high
    return f"{scale * low:.1f} to {scale * high:.1f}"


# ---- held-out homographies


def precision_recall_f1(counts):
    """Of the rows [true, found, right] of some pairs, all together."""
    true, found, right = np.sum(counts, axis=0)
    return right / max(found, 1), right / max(true, 1), 2 * right / max(true + found, 1)


def f1_interval(counts, against=None):
    """95 % of F1, or of how much it is over that of `against` on the same pairs; bootstrap over pairs."""
    return bootstrap_interval(counts, against, lambda rows: precision_recall_f1(rows)[2])


def best_nearest(found):
    """Its label, of the ratio of the greatest F1."""
    return max(
        (label for label in found if label.startswith("nearest")), key=lambda one: precision_recall_f1(found[one])[2]
    )


def held_out_counts(results, features):
    """By matcher, and the label of nearest neighbours at their best."""
    found = json.loads((results / f"held-out-{features}.json").read_text())
    return found, best_nearest(found)


def f1_over(found, label, nearest):
    """Points of F1 over nearest neighbours, with the interval."""
    gain = precision_recall_f1(found[label])[2] - precision_recall_f1(found[nearest])[2]
    return f"{100 * gain:+.1f} ({interval(f1_interval(found[label], found[nearest]), 100)})"


def held_out(results, features):
    """A row a matcher."""
    found, nearest = held_out_counts(results, features)
    rows = [["matcher", "precision", "recall", "F1 (95 %)", "over nearest neighbours (95 %)"]]
    for label in [nearest, *(one for one in found if not one.startswith("nearest"))]:
        precision, recall, f1 = precision_recall_f1(found[label])
        cells = [percent(precision), percent(recall), f"{percent(f1)} ({interval(f1_interval(found[label]), 100)})"]
        over = "-" if label == nearest else f1_over(found, label, nearest)
        name = label.replace("nearest", "mutual nearest neighbours, ratio")
        rows.append([name, *cells, over])
    return table(rows)


# ---- evaluation sets


def best_errors(run, at):
    """Errors at the threshold of the greatest AUC at `at`, and that threshold."""
    names = [name for name in run.pairs if name.startswith(f"error__{SOLVER}__")]
    name = max(names, key=lambda one: auc(run.pairs[one], [at])[0])
    return run.pairs[name], name.rsplit("__", 1)[1]


def runs_on(results, name, features):
    """By matcher, and the label of nearest neighbours at their best."""
    middle = AT[name][1]
    runs = {path.stem: load_run(path) for path in sorted((results / name).glob("*.json"))}
    runs = {label: run for label, run in runs.items() if f"{features}-" in label}
    nearest = max(
        (label for label in runs if "nearest" in label),
        key=lambda label: auc(best_errors(runs[label], middle)[0], [middle])[0],
    )
    return runs, nearest


def auc_over(run, nearest, at):
    """Points of AUC over the run of nearest neighbours, with the interval."""
    (errors, _), (base, _) = best_errors(run, at), best_errors(nearest, at)
    bounds = bootstrap_interval(errors, base, lambda values: auc(values, [at])[0])
    return f"{100 * (auc(errors, [at])[0] - auc(base, [at])[0]):+.1f} ({interval(bounds, 100)})"


def on_set(results, name, features):
    """A row a matcher: AUC with intervals, and the difference to nearest neighbours on the same pairs."""
    middle = AT[name][1]
    runs, nearest = runs_on(results, name, features)
    titles = [f"AUC@{at} {UNIT[name]}" for at in AT[name]]
    rows = [["matcher", "matches", "precision", *titles, f"over nearest neighbours @{middle} (95 %)", "stop layer"]]
    for label in [nearest, *(one for one in runs if "nearest" not in one)]:
        run = runs[label]
        errors, _ = best_errors(run, middle)
        cells = [f"{run.pairs['num_matches'].mean():.0f}", percent(np.nanmean(run.pairs["precision"]))]
        for at in AT[name]:
            bounds = bootstrap_interval(errors, None, lambda values, at=at: auc(values, [at])[0])
            cells.append(f"{percent(auc(errors, [at])[0])} ({interval(bounds, 100)})")
        layers = run.pairs["stop_layer"][run.pairs["stop_layer"] > 0]
        cells.append("-" if label == nearest else auc_over(run, runs[nearest], middle))
        rows.append([label, *cells, f"{layers.mean():.1f}" if len(layers) else "-"])
    return table(rows)


def bars(results):
    """What was asked of the shipped weights, and what came out: points over nearest neighbours (95 %)."""
    rows = [
        [
            "over nearest neighbours at their best ratio, of",
            "bar",
            *(f"{kind}, {SHORT[one]}" for kind in KINDS.values() for one in SHORT),
        ]
    ]
    held_out_cells, cells = [], {name: [] for name in AT}
    for kind in KINDS:
        for features in SHORT:
            found, nearest = held_out_counts(results, features)
            held_out_cells.append(f1_over(found, f"{kind}-{features}-posed", nearest))
            for name in AT:
                runs, nearest = runs_on(results, name, features)
                cells[name].append(auc_over(runs[f"{kind}-{features}-small"], runs[nearest], AT[name][1]))
    rows.append(["F1 on photos held out", "+15", *held_out_cells])
    rows.append(["AUC@3 px of homographies", "above 0", *cells["homography"]])
    rows.append(["AUC@10 deg of RedKitchen", "above 0; RootSIFT +15", *cells["redkitchen"]])
    return table(rows)


# ---- logs


def log_of(results, label):
    """Its rows; none where there is no such log."""
    file = results / f"logs/{label}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def draw_curves(results, features):
    """Recall, precision and F1 on held-out photos against pairs seen."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, layout="constrained")
    for kind, colour in COLOURS.items():
        rows = [row for row in log_of(results, f"{kind}-{features}-homography") if "f1" in row]
        for axis, name in zip(axes, ("precision", "recall", "f1"), strict=True):
            axis.plot([row["pairs"] / 1000 for row in rows], [100 * row[name] for row in rows], ".-", color=colour,
                      label=KINDS[kind])  # fmt: skip
            axis.set(xlabel="thousand pairs seen", ylabel=f"{'F1' if name == 'f1' else name}, %", ylim=(0, 100))
            axis.grid(alpha=0.3)
    axes[0].legend()
    Page(results, []).save(figure, f"training-curves-{features}")


def reached(results, features, shares=(0.5, 0.6, 0.7, 0.75, 0.8, 0.85)):
    """Pairs that each kind had seen when its F1 was first that high."""
    rows = [["F1 of at least", *KINDS.values(), "ratio"]]
    for share in shares:
        cells = []
        for kind in KINDS:
            seen = [
                row["pairs"] for row in log_of(results, f"{kind}-{features}-homography") if row.get("f1", 0) >= share
            ]
            cells.append(seen[0] if seen else None)
        if any(cells):
            ratio = f"{cells[1] / cells[0]:.1f}" if all(cells) else "-"
            rows.append([f"{100 * share:.0f} %", *(f"{one:,}" if one else "not reached" for one in cells), ratio])
    return table(rows)


def ablation(results):
    """Each variant, and the whole model after as many pairs; None = not trained."""
    files = sorted((results / "logs").glob("ablation-*.jsonl"))
    if not files:
        return None
    variants = {file.stem.removeprefix("ablation-"): log_of(results, file.stem) for file in files}
    ends = {name: [row for row in rows if "f1" in row][-1] for name, rows in variants.items()}
    whole = [row for row in log_of(results, "lightglue-sift-homography") if "f1" in row]
    seen = next(iter(ends.values()))["pairs"]
    ends = {"the whole model": next(row for row in whole if row["pairs"] == seen), **ends}
    rows = [["variant", "pairs seen", "precision", "recall", "F1"]]
    for name, row in ends.items():
        cells = (percent(row[key]) for key in ("precision", "recall", "f1"))
        rows.append([name.replace("-", " "), f"{row['pairs']:,}", *cells])
    return table(rows)


def trained_rows(results):
    """Of each extractor the pairs seen in both stages, and the hours that LightGlue and SuperGlue took."""
    rows = []
    for features in ("sift", "aliked"):
        logs = {
            kind: [log for stage in ("homography", "posed") if (log := log_of(results, f"{kind}-{features}-{stage}"))]
            for kind in KINDS
        }
        seen = {tuple(log[-1]["pairs"] for log in stages) for stages in logs.values()}
        assert len(seen) == 1, f"the kinds saw other numbers of pairs: {seen}"
        pairs = [f"{count:,}" for count in seen.pop()]
        hours = (f"{sum(map(seconds_of, stages)) / 3600:.1f}" for stages in logs.values())
        rows.append(f"| {features} | {' | '.join([*pairs, 'none'][:2])} | {' and '.join(hours)} |")
    return "\n".join(rows)


def taken_up(results, first_ends):
    """F1 on held-out photos when the first stage's learning rate had decayed once (at step `first_ends`), and again."""
    rows = [["features", "matcher", "pairs", "F1", "pairs", "F1"]]
    for features, title in SHORT.items():
        for kind, matcher in KINDS.items():
            seen = {row["step"]: row for row in log_of(results, f"{kind}-{features}-homography") if "f1" in row}
            if seen:
                ends = seen[first_ends[features]], seen[max(seen)]
                rows.append(
                    [title, matcher, *(cell for row in ends for cell in (f"{row['pairs']:,}", percent(row["f1"])))]
                )
    return table(rows)


def seconds_of(log):
    """That the run took; the last row that tells is from shortly before its end."""
    last = [row for row in log if "seconds" in row][-1]
    return last["seconds"] * log[-1]["pairs"] / last["pairs"]


# ---- exits and speed


def exits(results, features):
    """A row a set: where pairs stop, what is saved and lost; None = not measured."""
    label = f"lightglue-{features}-small"
    if not (results / "exit-times.json").is_file():
        return None
    times = json.loads((results / "exit-times.json").read_text())
    rows = [["set", "stop after layer", "time saved", "AUC lost (95 %)"]]
    for name, at in (("homography", 3), ("redkitchen", 10)):
        paths = [results / name / f"{one}.json" for one in (label, f"{label}-full")]
        if not all(path.is_file() for path in paths):
            return None
        early, full = (load_run(path) for path in paths)
        layers = early.pairs["stop_layer"].astype(int)
        shares = {layer: np.mean(layers == layer) for layer in range(1, layers.max() + 1)}
        (errors, _), (base, _) = best_errors(early, at), best_errors(full, at)
        lost = bootstrap_interval(base, errors, lambda values, at=at: auc(values, [at])[0])
        shipped_ms, whole_ms = np.sum(times[f"{label} {name}"], axis=0)
        rows.append(
            [
                name,
                ", ".join(f"{layer}: {100 * share:.0f} %" for layer, share in shares.items() if share),
                f"{100 * (1 - shipped_ms / whole_ms):.0f} %",
                f"{100 * (auc(base, [at])[0] - auc(errors, [at])[0]):+.1f} ({interval(lost, 100)})",
            ]
        )
    return table(rows)


def exit_choice(results):
    """F1 and layers on held-out pairs of the posed stage for each alpha; None = not measured."""
    file = results / "exits.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    rows = [["alpha", *(f"{SHORT[label.split('-')[1]]}: F1, layers" for label in found)]]
    for alpha in next(iter(found.values())):
        cells = (f"{percent(one[alpha]['f1'])}, {one[alpha]['layers']:.1f}" for one in found.values())
        rows.append(["all layers" if alpha == "None" else alpha, *cells])
    return table(rows)


def calibration(results):
    """Calibration errors of the shipped weights; None = not measured."""
    runs = {}
    for name in known_calibrations():
        paths = [results / benchmark / f"{name}.json" for benchmark in CALIBRATION_JUDGED_ON]
        if name.endswith("-small") and all(path.is_file() for path in paths):
            runs[name] = [load_run(path) for path in paths]
    return calibration_table(runs) if runs else None


def speed(results):
    """Pairs a second, and what share of the arithmetic ceiling that is."""
    file = results / "speed.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    rows = [["matcher", "pairs a second", "GFLOP a pair", "GFLOP/s", "of float32's ceiling", "of bfloat16's"]]
    for kind, title in KINDS.items():
        one = found[kind]
        rate = one["gflop"] / one["step_s"]
        shares = (f"{100 * rate / found['ceilings'][name]:.0f} %" for name in ("float32", "bfloat16"))
        pairs = one["pairs"]
        rows.append([title, f"{pairs / one['step_s']:.1f}", f"{one['gflop'] / pairs:.2f}", f"{rate:.0f}", *shares])
    views = ", ".join(f"{value:.1f} of {name}" for name, value in found["views_a_second"].items())
    ceilings = " and ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in found["ceilings"].items())
    first = found["lightglue"]
    text = (
        f"On {found['machine']['threads']} threads, {first['pairs']} pairs a step, 2 x {first['keypoints']} keypoints, "
        "bfloat16 where autocast has it. The ceiling is that of products of 8192 x 192 x 192: "
        f"{ceilings}. Features are made once and apart: {views} views a second."
    )
    return f"{table(rows)}\n\n{text}"


def finetuning(results):
    """Before and after; None = not measured."""
    file = results / "finetuning.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    rows = [["", "precision", "recall", "F1"]]
    for name in ("before", "after"):
        rows.append([name, *(percent(found[name][key]) for key in ("precision", "recall", "f1"))])
    return table(rows)


MISSING = "Not measured yet."


def write(results, first_ends):
    """docs/training.md; `first_ends` are the steps that the first schedule of each features' first stage ended at."""
    sections = {
        name: make(results) or MISSING
        for name, make in (
            ("ablation", ablation), ("speed", speed), ("exit_choice", exit_choice), ("calibration", calibration)
        )
    }  # fmt: skip
    counts = (
        sum(one.numel() for one in recipe(f"{kind}-sift-homography-small").config.make_model().parameters())
        for kind in KINDS
    )
    sections["parameters"] = " and ".join(f"{count / 1e6:.2f}" for count in counts) + " million"
    sections["trained_rows"] = trained_rows(results)
    sections["bars"] = bars(results)
    sections["taken_up"] = taken_up(results, first_ends)
    sections["finetuning"] = finetuning(results) or MISSING
    for features in ("sift", "aliked"):
        is_there = (results / f"held-out-{features}.json").is_file()
        sections[f"held_out_{features}"] = held_out(results, features) if is_there else MISSING
        for name in ("homography", "redkitchen"):
            sections[f"{name}_{features}"] = on_set(results, name, features) if is_there else MISSING
        sections[f"exits_{features}"] = exits(results, features) or MISSING
        sections[f"reached_{features}"] = reached(results, features) if is_there else MISSING
        if is_there:
            draw_curves(results, features)
    text = (ROOT / "benchmarks/training_page.md").read_text()
    for name, section in sections.items():
        text = text.replace(f"{{{name}}}", section)
    PAGE.write_text(wrapped(text))
