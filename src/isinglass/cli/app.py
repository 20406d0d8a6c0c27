"""`isinglass app` and `isinglass live`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from isinglass.cli.checks import DEVICE, IMAGE, Command
from isinglass.cli.common import OK, options
from isinglass.errors import InputError

SERVER_OPTIONS = (
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; 0.0.0.0 lets other machines connect.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8090,
        show_default=True,
        help="Port to listen on; the next free one if it is taken.",
    ),
    click.option(
        "--name", "names", multiple=True, help="Host name that requests may use besides the address; repeatable."
    ),
    click.option("--device", type=DEVICE, help="Device: cpu, cuda, cuda:N or mps.  [default: the fastest]"),
    click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser."),
)


_PACKAGES = {"fastapi": "app", "uvicorn": "app", "websockets": "app", "python_multipart": "app", "cv2": "app"}


def _check_source(params: Mapping[str, Any]) -> None:
    """Raise InputError unless the source of `live` is the number of a camera or a file."""
    source = params["source"]
    if not source.isdecimal() and not Path(source).is_file():
        raise InputError(f"there is no file {source!r}; expected a video, or the number of a camera. Check the path")


@click.command(cls=Command, needs=_PACKAGES, short_help="Match photos in the browser.")
@options(*SERVER_OPTIONS)
def app(browser: bool, **settings: Any) -> int:
    """Serve a page on which photos are matched, inspected, compared and diagnosed, until Ctrl-C.

    POST /match gives matches as JSON to other programs; /openapi.json describes it.
    """
    from isinglass.app.serve import serve
    from isinglass.app.settings import Settings

    serve(Settings(**settings), lambda address: _open(address, browser))
    return OK


@click.command(
    cls=Command, needs=_PACKAGES, checks=[_check_source], short_help="Match a video or camera live in the browser."
)
@click.argument("source", metavar="VIDEO|CAMERA")
@click.option("--reference", type=IMAGE, help="Photo to match frames with.  [default: the previous keyframe]")
@options(*SERVER_OPTIONS)
def live(source: str, reference: Path | None, browser: bool, **settings: Any) -> int:
    """Serve a page that shows SOURCE, a video file or the number of a camera of this machine, with its matches.

    The video is read as fast as it was filmed; frames that come while one is matched are dropped. The page's own
    camera or files need no SOURCE: isinglass app.
    """
    from isinglass.app.serve import serve
    from isinglass.app.settings import Settings

    serve(Settings(**settings), lambda at: _open(f"{at}/#live", browser), video=source, reference=reference)
    return OK


def _open(address: str, browser: bool) -> None:
    """Tell where it is, and open it."""
    import webbrowser

    click.echo("Ctrl-C ends it", err=True)
    click.echo(address)
    if browser:
        webbrowser.open(address)
