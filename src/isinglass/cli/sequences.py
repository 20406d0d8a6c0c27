"""`isinglass track` and `view`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isinglass.cli.checks import OUTPUT_FOLDER, PHOTOS, PRESENT, Command, Number
from isinglass.cli.common import (
    MATCHER_OPTIONS,
    OK,
    PIPELINE_OPTIONS,
    SOME_FAILED,
    complain,
    make_pipeline,
    options,
)
from isinglass.cli.photos import FOLDER_OPTIONS, Photos

if TYPE_CHECKING:
    from isinglass.sfm.sequences import TrackSummary
    from isinglass.sfm.tracking import TrackedFrame

# options of isinglass.sfm.tracking.TrackOptions, with its defaults (a test holds them equal)
TRACK_OPTIONS = (
    click.option(
        "--window",
        type=click.IntRange(1),
        default=2,
        show_default=True,
        help="Keyframes that each frame is matched with.",
    ),
    click.option(
        "--frame-keypoints",
        type=click.IntRange(8),
        default=1024,
        show_default=True,
        help="Keypoints per frame that are matched; keyframes have --max-keypoints.",
    ),
    click.option(
        "--least-matches",
        type=click.IntRange(8),
        default=25,
        show_default=True,
        help="Minimum matches; a frame with fewer is lost.",
    ),
    click.option(
        "--least-share",
        type=Number(0, 1, min_open=True),
        default=0.6,
        show_default=True,
        help="Minimum share of the newest keyframe's best number of matches; a frame with less becomes a keyframe.",
    ),
    click.option(
        "--most-motion",
        type=Number(0, 1, min_open=True),
        default=0.15,
        show_default=True,
        help="Maximum median motion of the matches, as a share of the diagonal; a frame with more becomes a keyframe.",
    ),
    click.option("--most-frames", type=click.IntRange(1), help="Maximum frames from keyframe to keyframe."),
    click.option(
        "--threshold-px",
        type=Number(0, min_open=True),
        default=3.0,
        show_default=True,
        help="Inlier threshold in px of the geometry between frames.",
    ),
    click.option(
        "--least-sharpness",
        type=Number(0, 1),
        default=0.35,
        show_default=True,
        help="Minimum share of the neighbours' sharpness; below it a sharper neighbour becomes the keyframe. 0: off.",
    ),
)


@click.command(
    cls=Command,
    needs={"h5py": "maps", "cv2": "maps", "poselib": "maps"},
    short_help="Track points through a video or a folder of frames.",
)
@click.argument("source", type=PRESENT)
@click.option(
    "-o", "--output", type=OUTPUT_FOLDER, default=Path("tracks"), show_default=True, help="Folder of the results."
)
@click.option(
    "--every", type=click.IntRange(1), default=1, show_default=True, help="Step between the frames that are read."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@options(*TRACK_OPTIONS, *FOLDER_OPTIONS, *PIPELINE_OPTIONS, *MATCHER_OPTIONS)
def track(source: Path, output: Path, every: int, as_json: bool, **settings: Any) -> int:
    """Track points through SOURCE: a video, or a folder of frames in the order of their names.

    Writes keyframes (images/, features.h5, matches.h5: `isinglass map OUTPUT/images -o OUTPUT` goes on from there),
    tracks.npz and track.json. A run that was stopped goes on where it was when the same command is given again.
    """
    listed = Photos(settings)
    selection = listed.selection(source)
    if source.is_dir():
        listed.say_left_out(source)
    from dataclasses import fields

    from isinglass.sfm.sequences import track_sequence
    from isinglass.sfm.tracking import TrackOptions

    chosen = TrackOptions(**{one.name: settings.pop(one.name) for one in fields(TrackOptions)})
    live = _Live()
    pipeline = make_pipeline(settings)
    summary = track_sequence(source, output, pipeline, chosen, every=every, selection=selection, tell=live.tell)
    live.end()
    for problem in summary.problems:
        complain(problem, SOME_FAILED)
    told = {**asdict(summary), "left_out": listed.left_out}
    click.echo(json.dumps(told) if as_json else _told(summary, output))
    if len(summary.keyframes) + len(summary.lost) == summary.frames > 1 and summary.tracks == 0:
        return complain("no frame matches another: blank frames, too few keypoints, or no overlap", SOME_FAILED)
    return SOME_FAILED if summary.problems or not summary.keyframes else OK


@click.command(cls=Command, needs={"viser": "viewer", "pycolmap": "viewer"}, short_help="Look at a map in the browser.")
@click.argument("map_folder", metavar="MAP", type=PHOTOS)
@click.option("--photos", type=PHOTOS, help="Folder of the photos.  [default: the one that the map names]")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets other machines connect."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; the next free one if it is taken.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser.")
def view(map_folder: Path, photos: Path | None, host: str, port: int, browser: bool) -> int:
    """Show MAP in the browser until Ctrl-C: points, cameras with their photos, the graph of matches, a pair's matches.

    MAP is a folder that `isinglass map` wrote, or of a COLMAP model (cameras, images and points3D).
    """
    import threading
    import webbrowser

    from isinglass.sfm.scene import Scene
    from isinglass.sfm.viewer import MapViewer

    viewer = MapViewer(Scene(map_folder, photos), host, port)
    try:
        click.echo("Ctrl-C ends it", err=True)
        click.echo(viewer.url)
        if browser:
            webbrowser.open(viewer.url)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.close()
    return OK


def _told(summary: TrackSummary, output: Path) -> str:
    return (
        f"{summary.frames} frames ({len(summary.lost)} lost), {len(summary.keyframes)} keyframes, "
        f"{len(summary.cuts)} cuts; {summary.tracks} tracks of {summary.mean_track_length} frames on average; "
        f"{summary.frames_per_s} frames/s. Written into {output}"
    )


class _Live:
    """The rate on stderr: one line that changes where a person is looking, else a line every ten seconds."""

    def __init__(self) -> None:
        self.start_s = self.told_s = time.monotonic()
        self.frames = self.keyframes = self.lost = 0
        self.width = 0

    def tell(self, frame: TrackedFrame, done: int, of: int | None) -> None:
        """Hear of a frame."""
        now = time.monotonic()
        self.frames += 1
        self.keyframes += len(frame.added)
        self.lost += not frame.tracked
        for one in frame.added:
            if one.why == "cut":
                self._line(f"frame {one.number}: a cut; a new keyframe, and new track ids")
        looking = sys.stderr.isatty()
        if now - self.told_s < (0.1 if looking else 10.0):
            return
        self.told_s = now
        rate = self.frames / max(now - self.start_s, 1e-9)
        left = "" if of is None else f", {max(of - done, 0) / rate:.0f} s left"
        text = (
            f"{done}{'' if of is None else f' of {of}'} frames, {rate:.1f} frames/s{left}, {self.keyframes} keyframes"
        )
        text += f", {self.lost} lost" if self.lost else ""
        if looking:
            click.echo(f"\r{text.ljust(self.width)}", nl=False, err=True)
            self.width = len(text)
        else:
            click.echo(text, err=True)

    def end(self) -> None:
        """Leave the changing line."""
        if self.width:
            click.echo(err=True)
            self.width = 0

    def _line(self, text: str) -> None:
        self.end()
        click.echo(text, err=True)
