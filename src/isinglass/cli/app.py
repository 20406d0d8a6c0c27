"""`isinglass app` and `isinglass live`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from isinglass.cli.common import OK, PATH, options

SERVER_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: other machines can ask, too."),
    click.option(
        "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Or the next free one."
    ),
    click.option("--name", "names", multiple=True, help="A host name by which it may be asked, besides its address."),
    click.option("--device", help="cpu, cuda or mps; the best there is if not given."),
    click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page."),
)


@click.command(short_help="Match photos in the browser.")
@options(*SERVER_OPTIONS)
def app(browser: bool, **settings: Any) -> int:
    """Serve a page on which photos are matched, inspected, compared and diagnosed, until Ctrl-C.

    POST /match gives matches as JSON to other programs; /openapi.json describes it.
    """
    from isinglass.app.serve import serve
    from isinglass.app.settings import Settings

    serve(Settings(**settings), lambda address: _open(address, browser))
    return OK


@click.command(short_help="Match a video or a camera live, in the browser.")
@click.argument("source", metavar="VIDEO|CAMERA")
@click.option("--reference", type=PATH, help="A photo to hold frames against; the previous keyframe if not given.")
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
