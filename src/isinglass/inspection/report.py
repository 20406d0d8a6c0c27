"""An inspection as one HTML file with everything inside: photos, numbers, and the scripts that draw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isinglass.files import write_atomically
from isinglass.inspection.tracing import Inspection
from isinglass.pages import page

STATIC = Path(page.__file__).with_name("static")
STYLES = ("pair.css", "inspector.css")
SCRIPTS = ("base.js", "pair.js", "inspector-parts.js", "inspector.js")  # in the order in which they are loaded
_START = """
const payload = JSON.parse(document.getElementById("payload").textContent);
globalThis.inspector = new Isinglass.Inspector(document.getElementById("inspector"), payload);
"""


def write_report(inspection: Inspection, path: Path | str) -> Path:
    """Write the inspection as one HTML file, whole or not at all; it needs nothing else, and no network.

    Raises InputError beyond 65535 keypoints of a photo, or where the file cannot be written.
    """
    path, payload = Path(path), inspection.payload()
    text = _document(payload)
    with write_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def _document(payload: dict[str, Any]) -> str:
    names = [view["name"] for view in payload["views"]]
    numbers = json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    scripts = [(STATIC / name).read_text("utf-8") for name in SCRIPTS]
    body = "\n".join(
        [
            page.heading("Inspection", " and ".join(names), _lead(payload)),
            '<noscript><p class="note">This page is drawn by its own scripts, which this browser does not run.</p>'
            "</noscript>",
            '<div id="inspector"></div>',
            page.details("How it was made", _facts(payload)),
            f'<script type="application/json" id="payload">{numbers}</script>',
            *(f"<script>\n{script}</script>" for script in (*scripts, _START)),
        ]
    )
    style = "".join((STATIC / name).read_text("utf-8") for name in STYLES)
    return page.document(f"Inspection of {' and '.join(names)}", body).replace("</style>", f"{style}</style>", 1)


def _lead(payload: dict[str, Any]) -> str:
    counts = [array["shape"][0] for array in payload["keypoints"]]
    found = payload["matches"]["pairs"]["shape"][0]
    layers, stop, model = payload["num_layers"], payload["stop_layer"], payload["model"]
    how = f", stopped after layer {stop} of {layers}" if payload["trace"]["ended"] == "exit" else ""
    kinds = {"homography": "a homography", "fundamental": "a fundamental matrix"}
    agree = "" if model is None else f"; {model['num_inliers']} of them agree on {kinds[model['kind']]}"
    return page.escape(
        f"{counts[0]} and {counts[1]} keypoints ({payload['extractor']}), {found} matches "
        f"({payload['matcher']}{how}){agree}."
    )


def _facts(payload: dict[str, Any]) -> str:
    sizes = [f"{view['name']}: {view['size'][0]} × {view['size'][1]} px" for view in payload["views"]]
    times = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in payload["timings_ms"].items())
    options = ", ".join(f"{name} = {value}" for name, value in payload["options"].items())
    listed = page.facts([("photos", "; ".join(sizes)), ("time", times), ("options", options)])
    return f"{listed}<pre><code>{page.escape(payload['code'])}</code></pre>"
