"""Run the server of the app until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from isinglass.app.log import OneLine
from isinglass.app.settings import Settings
from isinglass.app.uploads import Upload, check_upload
from isinglass.app.video import VideoSource
from isinglass.errors import InputError, MissingExtra

_TRIED = 20  # ports, from the one that was asked for
_GRACE_S = 3
_ONE_LINE = OneLine()


class Listening(NamedTuple):
    """A server that can be run: its address, the socket it listens at, the web server, and the server of the app."""

    address: str
    listener: socket.socket
    runner: Any
    home: Any

    def run(self) -> None:
        """Until it is told to stop: by Ctrl-C in the main thread, by `runner.should_exit` in any."""
        with self.listener:
            self.runner.run(sockets=[self.listener])


def serve(
    settings: Settings,
    started: Callable[[str], None] | None = None,
    *,
    video: str | None = None,
    reference: Path | None = None,
) -> None:
    """Serve until Ctrl-C; `started` hears the address. The rest is as of `listen`."""
    server = listen(settings, video=video, reference=reference)
    if started is not None:
        started(server.address)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it is done
        server.run()


def listen(settings: Settings, *, video: str | None = None, reference: Path | None = None) -> Listening:
    """A server that listens and does not answer yet. A port that is taken is followed by the next free one.

    video      a file or the number of a camera, which live pages can watch
    reference  a photo that its frames are held against; None = against the previous keyframe

    Raises InputError where nothing can listen there, or the video or the photo cannot be read, MissingExtra without
    FastAPI, uvicorn, or OpenCV for a video.
    """
    home, uvicorn = _server(settings, video, reference), _uvicorn()
    listener = _listener(settings)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what it warns of is refused, and logged then
    config = uvicorn.Config(
        home.app,
        http=_protocol(settings),
        log_config=None,  # its records go where those of the app go: to the stderr of that moment by default
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ws_max_size=settings.limits.file_bytes,
        timeout_graceful_shutdown=_GRACE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_ONE_LINE)
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"
    return Listening(address, listener, uvicorn.Server(config), home)


def _server(settings: Settings, video: str | None, reference: Path | None) -> Any:
    try:
        import python_multipart  # noqa: F401

        from isinglass.app.server import Server
    except ModuleNotFoundError as error:
        package = {"python_multipart": "python-multipart"}.get(error.name or "", error.name or "fastapi")
        raise MissingExtra(package, "app") from error
    source = None if video is None else VideoSource(video)
    return Server(settings, source, None if reference is None else _reference(reference, settings))


def _reference(path: Path, settings: Settings) -> Upload:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the reference {str(path)!r} cannot be read ({error}); expected a photo") from error
    return check_upload(content, path.name, settings.limits)


def _uvicorn() -> Any:
    try:
        import uvicorn
        import websockets  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "uvicorn", "app") from error
    return uvicorn


def _protocol(settings: Settings) -> Any:
    from isinglass.app.protocol import Protocol

    return functools.partial(Protocol, limits=settings.limits)


def _listener(settings: Settings) -> socket.socket:
    try:
        family, kind, _, _, _ = socket.getaddrinfo(settings.host or None, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(
            f"host is {settings.host!r}, which is not known ({error}); expected 127.0.0.1 or 0.0.0.0"
        ) from error
    last = settings.port + (_TRIED if settings.port else 1)
    problem: OSError | None = None
    for port in range(settings.port, min(last, 65536)):
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
            listener.listen(settings.limits.connections)
            return listener
        except OSError as error:
            listener.close()
            problem = error
    raise InputError(
        f"nothing can listen at {settings.host}, port {settings.port} ({problem}); expected an address of this machine "
        "and a free port. Choose others with --host and --port"
    )
