"""Pictures of pairs for reports: both images with the cached matches, right ones green and wrong ones red."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isinglass.errors import InputError
from isinglass.eval.runs import Run
from isinglass.files import load_matches
from isinglass.images import opened, read_image
from isinglass.viz import plot_matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH_PX, _QUALITY = 880, 70  # about 60 kB each
_HEIGHT_PX = 620
_LINES = 90
_BETWEEN = "#7d8790"  # the gap between two images


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A pair of a run as JPEG, or the reason why there is none."""

    caption: str
    jpeg: bytes = b""
    problem: str = ""

    def html(self, alt: str) -> str:
        """A <figure> with the picture inside."""
        if self.problem:
            return f'<figure class="pair"><p class="absent">{html.escape(self.problem)}</p></figure>'
        source = base64.b64encode(self.jpeg).decode()
        image = f'<img loading="lazy" alt="{html.escape(alt)}" src="data:image/jpeg;base64,{source}">'
        return f'<figure class="pair">{image}<figcaption>{html.escape(self.caption)}</figcaption></figure>'


def picture(run: Run, pair: int) -> Picture:
    """Pair number `pair` of the run: matches that are right solid green, wrong ones dashed red, unknown ones blue."""
    try:
        file = _matches_file(run, pair)
        saved = load_matches(file)
        image0, image1 = (read_image(_beside(run, image)) for image in run.info["images"][pair])
    except InputError as error:
        return Picture(caption="", problem=f"No picture: {error}")
    correct = _correct(run, pair, len(saved.points0))
    known = np.ones(len(saved.points0), dtype=bool) if correct is None else correct >= 0
    figure = plot_matches(
        image0,
        image1,
        np.asarray(saved.points0)[known],
        np.asarray(saved.points1)[known],
        inliers=None if correct is None else correct[known] == 1,
        scores=saved.matches.pair_scores().numpy()[known],
        max_lines=_LINES,
    )
    counted = f"{len(saved.points0)} matches"
    if correct is not None:
        unknown = f", {int((~known).sum())} not judged" if not known.all() else ""
        counted += f", {int((correct == 1).sum())} right, {int((correct == 0).sum())} wrong{unknown}"
    return Picture(caption=counted, jpeg=_jpeg_of_axes(figure))


def colours(run: Run) -> str:
    """What the lines of its pictures mean, in a sentence."""
    correct = run.pairs.get("match_correct")
    if correct is None or not (correct >= 0).any():
        return "Blue: matches; which of them are right is not known."
    return "Green and solid: right matches; red and dashed: wrong ones."


def _matches_file(run: Run, pair: int) -> Path:
    files = run.pairs.get("prediction")
    if files is None or not str(files[pair]) or "images" not in run.info:
        raise InputError("the run does not say which images and matches it is of. Run `isinglass eval` again")
    return _beside(run, str(files[pair]))


def _beside(run: Run, path: str) -> Path:
    """Paths in a run are absolute, or from where its JSON lies."""
    return run.path.parent / path


def _correct(run: Run, pair: int, count: int) -> np.ndarray | None:
    """(M,) 1 right, 0 wrong, -1 not known; None where the run does not tell of as many matches."""
    if "match_correct" not in run.pairs or "match_pair" not in run.pairs:
        return None
    correct = run.pairs["match_correct"][run.pairs["match_pair"] == pair]
    return correct if len(correct) == count and bool((correct >= 0).any()) else None


def _jpeg_of_axes(figure: Figure) -> bytes:
    """Only what lies within the figure's axes: legend and margins are the page's affair."""
    axes = figure.axes[0]
    figure.set_facecolor(_BETWEEN)
    box = axes.get_position()
    width_in, height_in = figure.get_size_inches()
    dpi = min(_WIDTH_PX / (box.width * width_in), _HEIGHT_PX / (box.height * height_in))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor=_BETWEEN, pil_kwargs={"compress_level": 1})
    with opened(content.getvalue()) as image:
        drawn = image.convert("RGB")
    width, height = drawn.size
    left, upper = round(box.x0 * width), round((1 - box.y1) * height)
    right, lower = round(box.x1 * width), round((1 - box.y0) * height)
    picture = io.BytesIO()
    drawn.crop((left, upper, right, lower)).save(picture, "JPEG", quality=_QUALITY, optimize=True)
    return picture.getvalue()
