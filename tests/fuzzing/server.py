"""Targets that ask a real server: raw HTTP requests, multipart bodies, and messages of a live page."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from asked_server import drawing, encoded, running
from isinglass.app.settings import Settings

from .mutate import mutate
from .target import OTHER, REFUSED, Fault

TIMEOUT_S, PATIENCE_S = 15.0, 1.0
BOUNDARY = b"boundary7"
FIELDS = {"extractor": "rootsift", "matcher": "nearest", "max_keypoints": "32", "resize": "64"}
HEADERS = [
    "Origin: http://[", "Content-Type: text/plain; charset=undefined", "Content-Length: -1", "Content-Length: 9" * 2,
    "Transfer-Encoding: chunked", "Transfer-Encoding: x", "Host: [::1", "Host:", "Range: bytes=9-1",
    "Expect: 100-continue",
    "If-None-Match: \udcff", "Cookie: " + "a" * 9000, "Accept: */*;q=x", "Upgrade: websocket", "Connection: upgrade",
]  # fmt: skip


class _Log(logging.Handler):
    """Keeps what has a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        if record.exc_info or "Traceback" in record.getMessage():
            self.tracebacks.append(f"{record.getMessage()} {record.exc_info}")


class _Asking:
    def __init__(self, folder: Path) -> None:
        self.input, self.count, self._stack = b"", 0, ExitStack()
        self.log = _Log()
        self.client = self._stack.enter_context(running(Settings(port=0, device="cpu")))
        for name in ("", "uvicorn", "uvicorn.error", "isinglass", "asyncio"):
            logging.getLogger(name).addHandler(self.log)
        where = urlsplit(self.client.address)
        self.where = where.hostname or "127.0.0.1", where.port or 80

    def alive(self) -> None:
        """Raise Fault unless the server still answers and has logged no traceback."""
        self.count += 1
        if self.log.tracebacks:
            told, self.log.tracebacks = self.log.tracebacks[0], []
            raise Fault(f"a traceback in the log: {told[:250]}")
        if self.count % 25 == 0 and self.client.get("/health").status_code != 200:
            raise Fault("the server no longer answers")

    def close(self) -> None:
        """See Target."""
        self._stack.close()


class Requests(_Asking):
    """Bytes of whole requests: each is answered with a status below 500, or the connection is closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        body = _multipart()
        host = f"Host: {self.where[0]}:{self.where[1]}\r\n".encode()
        kind = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY + b"\r\n"
        length = f"Content-Length: {len(body)}\r\n".encode()
        self.requests = [
            (b"POST /match HTTP/1.1\r\n" + host + kind + length, body),
            (b"POST /jobs HTTP/1.1\r\n" + host + kind + length, body),
            (b"GET /choices HTTP/1.1\r\n" + host, b""),
            (b"GET /jobs/nothing/result HTTP/1.1\r\n" + host, b""),
            (b"GET /static/app.js HTTP/1.1\r\n" + host, b""),
            (b"DELETE /jobs/nothing HTTP/1.1\r\n" + host, b""),
        ]

    def try_one(self, rng: Random) -> str:
        """See Target."""
        head, body = self.requests[rng.choice((0, 0, 0, 0, 1, 2, 3, 4, 5))]
        which, whole = rng.random(), False
        if body and which >= 0.3:
            body = mutate(body, rng, text=rng.random() < 0.5)
            if whole := rng.random() < 0.8:
                lines = [line for line in head.splitlines(keepends=True) if not line.startswith(b"Content-Length")]
                head = b"".join([*lines, f"Content-Length: {len(body)}\r\n".encode()])
        if which < 0.35:
            head, whole = mutate(head, rng, text=True), False
        elif which < 0.6:
            head, whole = head + rng.choice(HEADERS).encode("utf-8", "surrogateescape") + b"\r\n", False
        self.input = head + b"Connection: close\r\n\r\n" + body
        status = self._ask(self.input, TIMEOUT_S if whole else PATIENCE_S)
        self.alive()
        if status is None:
            return REFUSED
        if status >= 500 and status != 503:
            raise Fault(f"the answer was {status}")
        return REFUSED if status >= 400 else OTHER

    def _ask(self, request: bytes, patience_s: float) -> int | None:
        """Return the status, or None where the connection was closed without one.

        The server may wait for the rest of a request; after `patience_s` it is told that there is none.
        """
        answer = b""
        with socket.create_connection(self.where, timeout=patience_s) as connection:
            with suppress(OSError):  # it has had enough; what it said may still be read
                connection.sendall(request)
            for last in (False, True):
                try:
                    while len(answer) < 4096 and (part := connection.recv(4096)):
                        answer += part
                    break
                except TimeoutError as error:
                    if last:
                        raise Fault(f"no answer within {TIMEOUT_S:.0f} s") from error
                    connection.settimeout(TIMEOUT_S)
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                except OSError:
                    break
        words = answer.split(b" ", 2)
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


class LivePages(_Asking):
    """Messages of a live page: each is answered, or the connection is closed with a reason that is not ours."""

    def try_one(self, rng: Random) -> str:
        """See Target."""
        photo = encoded(drawing(0, (64, 48)), "JPEG")
        settings = json.dumps({"type": "settings", "mode": "keyframe", **FIELDS}).encode()
        messages: list[tuple[bool, bytes]] = [(True, settings), (True, b'{"type": "reference"}'), (False, photo)]
        messages += [(False, photo), (True, b'{"type": "keyframe"}')]
        place = rng.randrange(len(messages))
        is_text, content = messages[place]
        changed = mutate(content, rng, text=is_text)
        messages[place] = (rng.random() < 0.1) != is_text, changed
        self.input = changed
        outcome = OTHER
        try:
            with connect(
                f"ws://{self.where[0]}:{self.where[1]}/live", max_size=None, open_timeout=TIMEOUT_S, close_timeout=2
            ) as page:
                for is_text, content in messages[: place + 2]:
                    page.send(content.decode("utf-8", "replace") if is_text else content)
                page.send("{")  # which is always answered
                while True:
                    answer = json.loads(page.recv(timeout=TIMEOUT_S))
                    if answer["type"] == "problem":
                        outcome = REFUSED
                        break
        except TimeoutError as error:
            raise Fault(f"no answer within {TIMEOUT_S:.0f} s") from error
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code == 1011:
                raise Fault("the server closed the page by a fault of its own") from error
            outcome = REFUSED
        except WebSocketException:
            outcome = REFUSED
        self.alive()
        return outcome


def _multipart() -> bytes:
    photos = [encoded(drawing(seed, (64, 48))) for seed in (0, 1)]
    parts = [
        b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name.encode(), value.encode())
        for name, value in FIELDS.items()
    ]
    parts += [
        b'Content-Disposition: form-data; name="image%d"; filename="%d.png"\r\nContent-Type: image/png\r\n\r\n%s'
        % (i, i, photo)
        for i, photo in enumerate(photos)
    ]
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"
