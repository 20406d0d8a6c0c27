"""docs/reliability.md, from reliability_page.md and the counts that `make fuzz` stored.

python benchmarks/reliability_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

from evaluation_page import table

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/reliability.json"


def counts(targets):
    """Return a row per target: what was read, and how many inputs ended in which way."""
    lines = [["target", "what is mutated", "inputs", "as if whole", "refused", "other data, rightly", "faults"]]
    for name, row in targets.items():
        outcomes = [f"{row['outcomes'].get(kind, 0):,}" for kind in ("same", "refused", "other")]
        lines.append([name, row["what"], f"{row['inputs']:,}", *outcomes, len(row["faults"])])
    return table(lines)


def main():
    """Write the page."""
    found = json.loads(RESULT.read_text())
    targets, kills = found["targets"], found["kills"]
    page = Template((ROOT / "benchmarks/reliability_page.md").read_text()).substitute(
        counts=counts(targets),
        inputs=f"{sum(row['inputs'] for row in targets.values()):,}",
        faults=sum(len(row["faults"]) for row in targets.values()),
        minutes=round(found["seconds"] / 60),
        seed=found["seed"],
        machine=", ".join(f"{name} {value}" for name, value in found["machine"].items() if value is not None),
        versions=", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        kills=kills["kills"],
        runs=kills["runs"],
        differences=kills["differences"],
    )
    (ROOT / "docs/reliability.md").write_text(page)


if __name__ == "__main__":
    main()
