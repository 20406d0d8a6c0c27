"""docs/benchmarks.md and its figures, from the runs that evaluation.py stored. Nothing is measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from isinglass.eval.evaluate import AUC_AT
from isinglass.eval.runs import load_run
from isinglass.kernels.calibration import Calibration
from isinglass.metrics import auc, bootstrap_interval, expected_calibration_error

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/benchmarks.md"
FIGURES = ROOT / "docs/images"
CALIBRATIONS = ROOT / "src/isinglass/weights/calibrations.json"
CHOSEN_AT = {"homography": "5 px", "redkitchen": "10 deg"}  # what `isinglass tune` holds its budget against


def table(rows):
    """Markdown; the first row has the titles."""
    rows = [[str(cell) for cell in row] for row in rows]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def signed(value):
    """With one decimal, and no minus before 0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def wrapped(text, width=118):
    """Its paragraphs in lines of that many characters; tables, lists, headings and code stay."""
    lines, is_code = [], False
    for paragraph in text.split("\n\n"):
        was_code, is_code = is_code, is_code ^ (paragraph.count("```") % 2 == 1)
        if was_code or paragraph.lstrip().startswith(("|", "#", "!", "-", "```")):
            lines.append(paragraph)
            continue
        line, out = "", []
        for word in paragraph.split():
            if len(line) + len(word) + 1 > width:
                out, line = [*out, line], word
            else:
                line = f"{line} {word}".strip()
        lines.append("\n".join([*out, line]))
    return "\n\n".join(lines)


class Page:
    """The sections of the page, of the runs in a folder."""

    def __init__(self, results, labels):
        self.results, self.labels = results, list(labels)

    def runs(self, name, labels=None):
        """Those of a benchmark that are stored, in the order of their labels."""
        paths = [self.results / name / f"{label}.json" for label in labels or self.labels]
        return [load_run(path) for path in paths if path.is_file()]

    def solvers(self, name):
        """A row a run and solver: AUC at the best threshold with intervals, at the fixed one."""
        found = self.runs(name)
        task, fixed_px = found[0].info["benchmark"]["task"], found[0].info["fixed_threshold_px"]
        unit = "px" if task == "homography" else "deg"
        titles = [f"AUC@{at} {unit} (95 %)" for at in AUC_AT[task]]
        rows = [["features and matcher", "solver", "best threshold", *titles, f"at {fixed_px:g} px"]]
        for run in found:
            for solver, best in run.info["best"].items():
                errors = run.pairs[f"error__{solver}__{best['threshold_px']:g}"]
                cells = [run.info["label"], solver, f"{best['threshold_px']:g} px"]
                for at in AUC_AT[task]:
                    low, high = bootstrap_interval(errors, None, lambda values, at=at: auc(values, [at])[0])
                    cells.append(f"{100 * best['metrics'][f'auc@{at}']:.1f} ({100 * low:.1f} to {100 * high:.1f})")
                fixed = auc(run.pairs[f"error__{solver}__{fixed_px:g}"], AUC_AT[task])
                rows.append([*cells, " / ".join(f"{100 * area:.1f}" for area in fixed)])
        return table(rows)

    def matches(self, name):
        """A row a run: what does not depend on a solver."""
        rows = [["features and matcher", "matches", "precision", "recall", "stop layer"]]
        for run in self.runs(name):
            pairs = run.pairs
            layers = pairs["stop_layer"][pairs["stop_layer"] > 0]
            known = np.isfinite(pairs["recall"]).any()
            cells = [f"{pairs['num_matches'].mean():.0f}", f"{100 * np.nanmean(pairs['precision']):.1f}"]
            cells.append(f"{100 * np.nanmean(pairs['recall']):.1f}" if known else "-")
            rows.append([run.info["label"], *cells, f"{layers.mean():.1f}" if len(layers) else "-"])
        return table(rows)

    def radial(self):
        """A sentence on the radial distortion, which lists of pairs have no place for."""
        file = self.results / "radial-redkitchen.json"
        if not file.is_file():
            return ""
        found = json.loads(file.read_text())
        undone, ignored = (
            " / ".join(f"{100 * area:.1f}" for area in found["auc"][key]) for key in ("undone", "ignored")
        )
        at = " / ".join(map(str, AUC_AT["pose"]))
        return (
            f"Lists of pairs have no place for radial distortion ({found['radial']:g}), so all rows ignore it: undone, "
            f"it brings {found['label']} an AUC@{at} deg of {undone} instead of {ignored} (PoseLib, "
            f"{found['threshold_px']:g} px)."
        )

    def rotation(self):
        """By angle: share of photos whose homography is found, and share of matches that are right."""
        found = self.runs("rotation")
        angles = sorted(set(found[0].pairs["groups"].tolist()), key=float)
        rows = [["features and matcher", *(f"{float(angle):g}" for angle in angles)]]
        for run in found:
            cells = []
            for angle in angles:
                inside = run.pairs["groups"] == angle
                share = np.mean(run.pairs["error__poselib__3"][inside] < 3)
                right = run.pairs["num_correct"][inside].mean()
                cells.append(f"{100 * share:.0f} ({right:.0f})")
            rows.append([run.info["label"], *cells])
        return table(rows)

    def times(self):
        """Run time against keypoints, and the figure of it."""
        names = sorted((self.results / "runtime").glob("*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
        families = {label: [] for label in self.labels}
        for path in names:
            families[path.stem.rpartition("-")[0]].append(load_run(path))
        families = {label: found for label, found in families.items() if found}
        wanted = [run.info["options"]["max_keypoints"] for run in next(iter(families.values()))]
        rows = [["features and matcher", *(f"{count} keypoints" for count in wanted)]]
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for (label, found), marker in zip(families.items(), "osD^vP", strict=False):
            spent = [np.median(run.pairs["match_ms"]) for run in found]
            counts = [np.mean(run.pairs["num_keypoints0"] + run.pairs["num_keypoints1"]) / 2 for run in found]
            areas = [run.info["best"]["poselib"]["metrics"]["auc@5"] for run in found]
            axes.plot(counts, spent, marker=marker, label=label)
            cells = [f"{ms:.0f} ms, AUC {100 * area:.0f}" for ms, area in zip(spent, areas, strict=True)]
            rows.append([label, *cells])
        axes.set(xlabel="keypoints an image (mean)", ylabel="time to match a pair, ms (median)", ylim=(0, None))
        axes.grid(color="0.9")
        axes.legend(frameon=False)
        self.save(figure, "run-time")
        return table(rows)

    def tuned(self, name):
        """The trials on the front and the chosen one, the full model and the weights' own settings."""
        result = json.loads((self.results / f"tune-{name}.json").read_text())
        full, trials = result["trials"][0], result["trials"]
        rows = [["depth", "width", "filter", "time", "lost here", "time, held out", "lost, held out (95 %)", ""]]
        own = result["own"]
        shown = [one for one in trials if one["on_front"] or one["is_chosen"] or one["setting"] == own or one is full]
        for one in sorted(shown, key=lambda one: one["here"]["relative_time"]):
            setting, here, there = one["setting"], one["here"], one["held_out"]
            remark = "chosen" if one["is_chosen"] else "all layers" if one is full else ""
            remark = remark or ("the weights' own" if setting == own else "")
            interval = " ({} to {})".format(*map(signed, there["lost_interval"])) if there["lost_interval"] else ""
            cells = ["off" if value is None else f"{value:g}" for value in setting.values()]
            cells += [f"{here['relative_time']:.2f}", signed(here["lost"]), f"{there['relative_time']:.2f}"]
            rows.append([*cells, signed(there["lost"]) + interval, remark])
        return result, table(rows)

    def trade_off(self, results):
        """Accuracy against time of all settings with the weights' own filter, joined by depth_confidence."""
        figure, all_axes = plt.subplots(1, len(results), figsize=(8.4, 3.6), layout="constrained", squeeze=False)
        for axes, (name, result) in zip(all_axes[0], results.items(), strict=True):
            counts, by_depth = np.array(result["num_pairs"]), {}
            for one in result["trials"]:
                if one["setting"]["filter_threshold"] != result["own"]["filter_threshold"]:
                    continue
                halves = [one["here"], one["held_out"]]
                # both are means over pairs, so the means over all pairs follow from the two halves
                mean = [float(np.dot(counts, [half[key] for half in halves]) / counts.sum()) for key in METRICS]
                by_depth.setdefault(one["setting"]["depth_confidence"], []).append(mean)
            for (depth, points), marker in zip(by_depth.items(), "osD^vP", strict=False):
                ms, area = np.array(sorted(points)).T
                label = "depth off" if depth is None else f"depth {depth:g}"
                axes.plot(ms, area, marker=marker, label=label, linewidth=1)
            axes.set(title=name, xlabel="time to match a pair, ms (mean)", ylabel=f"AUC@{CHOSEN_AT[name]}")
            axes.grid(color="0.9")
        all_axes[0][0].legend(frameon=False)
        self.save(figure, "adaptive")

    def calibration(self):
        """Calibration errors on training pairs not fitted on, and on the two evaluation sets."""
        runs = {
            (benchmark, run.info["matcher"]): run
            for benchmark in CALIBRATION_JUDGED_ON
            for run in reversed(self.runs(benchmark, self.labels[1:]))
        }
        names = [name for name in known_calibrations() if (CALIBRATION_JUDGED_ON[0], name) in runs]
        return calibration_table({name: [runs[one, name] for one in CALIBRATION_JUDGED_ON] for name in names})

    def save(self, figure, name):
        """As docs/images/<name>.svg."""
        with plt.rc_context({"svg.hashsalt": name}):
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)
        file = FIGURES / f"{name}.svg"
        file.write_text(re.sub(r"[ \t]+$", "", file.read_text(), flags=re.MULTILINE))


CALIBRATION_JUDGED_ON = ("homography", "redkitchen")


def known_calibrations():
    """Those in the package, by the name of the weights."""
    return {name: Calibration.from_dict(one) for name, one in json.loads(CALIBRATIONS.read_text()).items()}


def calibration_table(runs):
    """Errors in percent before and after, a row for each name of weights, of their runs on CALIBRATION_JUDGED_ON."""
    rows = [["weights", "training pairs held out", "homographies", "RedKitchen"]]
    for name, judged in runs.items():
        one = known_calibrations()[name]
        errors = [(one.ece_before, one.ece_after)]
        for run in judged:
            scores, correct = run.pairs["match_scores"], run.pairs["match_correct"] == 1
            after = one.apply(torch.from_numpy(scores)).numpy()
            errors.append([expected_calibration_error(values, correct) for values in (scores, after)])
        rows.append([name, *(f"{100 * before:.1f} to {100 * after:.1f}" for before, after in errors)])
    return table(rows)


METRICS = ("match_ms", "auc")


def write(results, labels):
    """docs/benchmarks.md."""
    page = Page(results, labels)
    first = page.runs("homography")[0]
    machine, versions = first.info["machine"], first.info["versions"]
    tuned = {name: page.tuned(name) for name in CHOSEN_AT}
    page.trade_off({name: result for name, (result, _) in tuned.items()})
    text = (ROOT / "benchmarks/evaluation_page.md").read_text()
    PAGE.write_text(
        wrapped(
            text.format(
                cpu=machine["cpu"],
                cores=machine["cores"],
                versions=", ".join(f"{name} {number}" for name, number in versions.items()),
                num_pairs=first.info["benchmark"]["num_pairs"],
                homography_matches=page.matches("homography"),
                homography_solvers=page.solvers("homography"),
                redkitchen_matches=page.matches("redkitchen"),
                redkitchen_solvers=page.solvers("redkitchen"),
                radial=page.radial(),
                rotation=page.rotation(),
                times=page.times(),
                tuned_homography=verdict(*tuned["homography"]),
                tuned_redkitchen=verdict(*tuned["redkitchen"]),
                calibration=page.calibration(),
            )
        )
    )


def verdict(result, rows):
    """A sentence, then the table."""
    one = next(one for one in result["trials"] if one["is_chosen"])
    there, (here_pairs, held_pairs) = one["held_out"], result["num_pairs"]
    low, high = map(signed, there["lost_interval"])
    return (
        f"{result['judged_by']}; {here_pairs} pairs to choose on, {held_pairs} held out. The chosen setting is "
        f"{1 / there['relative_time']:.2f} times as fast as all layers on the held-out pairs, and loses "
        f"{signed(there['lost'])} AUC points there ({low} to {high}); the budget is {result['budget']:g}."
        f"\n\n{rows}"
    )
