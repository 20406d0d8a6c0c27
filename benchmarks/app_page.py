"""docs/app.md and its figure, from app_page.md and what app.py stored.

python benchmarks/app_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from evaluation_page import Page, table, wrapped

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/app.json"


def latencies(found):
    """A row an action."""
    lines = [["what a user does", "times", "how it ended", "median, s", "95 %, s", "longest, s"]]
    for name, row in found["actions"].items():
        outcomes = ", ".join(f"{outcome} {count}" for outcome, count in row["outcomes"].items())
        times = [f"{row[key]:.2f}" for key in ("median_s", "p95_s", "most_s")]
        lines.append([name, sum(row["outcomes"].values()), outcomes, *times])
    return table(lines)


def draw_memory(found):
    """What the server held, second by second."""
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axis.plot([at / 60 for at, _ in found["rss_mb"]], [mb for _, mb in found["rss_mb"]], color="#0b62a4", lw=1)
    axis.set(xlabel="minutes", ylabel="memory of the server, MB", ylim=(0, None))
    axis.grid(alpha=0.3)
    Page(RESULT.parent, []).save(figure, "app-memory")


def least(found, minute):
    """The least memory in one of the whole minutes, MB."""
    by_minute = {}
    for at_s, mb in found["rss_mb"]:
        by_minute.setdefault(int(at_s // 60), []).append(mb)
    return min(by_minute[sorted(by_minute)[minute]])


def main():
    """Write."""
    found = json.loads(RESULT.read_text())
    draw_memory(found)
    memory, unexpected = found["memory_mb"], len(found["unexpected"])
    log = "something" if found["log"] else "nothing"
    about = (
        f"{found['minutes']:g} minutes, {found['users']} users at once, {found['requests']:,} requests: {unexpected} "
        f"answers that had not been said before, {log} in the server's log ({found['cpu']}, {found['cores']} cores, "
        f"load {found['load'][0]:.1f} at the end). Its memory was {memory['start']:.0f} MB at the start, "
        f"{memory['after_warm_up']:.0f} MB (median) when a quarter of the time was over, "
        f"{memory['at_the_end']:.0f} MB in the last part, {memory['peak']:.0f} MB at most and "
        f"{memory['idle_after']:.0f} MB when idle afterwards: {memory['slope_per_minute']:+.1f} MB a minute by a line "
        f"through all but the first quarter; the least of a minute was {least(found, 3):.0f} MB in the fourth and "
        f"{least(found, -1):.0f} MB in the last (results are kept, up to 128 MB of them)."
    )
    text = (ROOT / "benchmarks/app_page.md").read_text()
    text = text.replace("{about}", about).replace("{latencies}", latencies(found))
    (ROOT / "docs/app.md").write_text(wrapped(text))


if __name__ == "__main__":
    main()
