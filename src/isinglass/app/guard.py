"""What stands before the app: who may ask, what and how much a request may send, and what becomes of errors.

Whatever comes over a connection ends in an answer or a closed connection, and in at most one line of log: refusals
(4xx, 503) and broken connections in a warning, mistakes of ours in an error with an id (500).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from isinglass.app.log import log_failure, log_refusal, message_of, shown
from isinglass.app.settings import Settings
from isinglass.app.uploads import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_READING = ("GET", "HEAD", "OPTIONS")
_DRAINED = 4  # times what a body may have is read and thrown away, so that the sender hears the refusal
_STALLED_S = 30.0  # a body that sends nothing for so long is given up, and so is one that is so long behind
_LEAST_RATE = 1000.0  # bytes per second
_BODY = {"content-length", "transfer-encoding"}  # without these headers a request has no body
_HOST = re.compile(r"(\[[0-9a-f:.]+(%\w+)?\]|[\w.-]*)(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_FAILED = 1011  # of WebSockets: the server failed
UNPARSABLE = "isinglass.unparsable"  # in the scope of a request whose rest was no HTTP: answered and logged already


class Guard:
    """An ASGI app around another one.

    Refused are: malformed headers that anything here depends on, hosts by foreign names where only this machine may ask
    (a page of the web that lets its name point here), requests that change something and live connections from pages of
    other origins, and bodies over the limit or that stall.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.most = settings.limits.body_bytes
        self._requests = 0  # that are being answered

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        body = _Body(receive, self.most, self._too_large(), is_whole=not _BODY & headers.keys())
        answer = _Answer(scope, send, body)
        try:
            self._requests += 1
            if self._requests > self.settings.limits.connections:
                await answer.refuse(503, f"{self._requests - 1} requests are being answered already; try again later")
            elif refusal := self._refusal(scope, headers) or self._refused_length(headers):
                if (_length(headers) or 0) <= _DRAINED * self.most:
                    await body.drain()
                await answer.refuse(*refusal)
            else:  # HEAD is GET without the body, which the web server leaves out
                seen = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self.app(seen, body.receive, answer.send)
        except ClientDisconnect:
            body.is_gone = True
        except Exception as error:
            log_failure(error, scope)
            with contextlib.suppress(Exception):
                await answer.refuse(500, message_of(error))
        finally:
            self._requests -= 1
        if body.is_gone and not answer.is_whole:
            if UNPARSABLE not in scope:
                when = "before the answer" if body.is_whole else f"{body.count:,} bytes into the body"
                log_refusal(scope, f"the connection broke off {when}")
        elif answer.status >= 400 and answer.status != 500:
            log_refusal(scope, f"{answer.status} {answer.said}")

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        if refusal := self._refusal(scope, _headers(scope)):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:120]})
            log_refusal(scope, f"{refusal[0]} {refusal[1]}")
            return
        is_accepted = False

        async def noted(message: Message) -> None:
            nonlocal is_accepted
            is_accepted = is_accepted or message["type"] == "websocket.accept"
            if not is_accepted:
                log_refusal(scope, "403 there is no such connection; expected /live")
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            log_failure(error, scope)
            with contextlib.suppress(Exception):
                await send({"type": "websocket.close", "code": _FAILED})

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        if scope["http_version"] not in ("1.0", "1.1"):
            return 400, f"the request is of HTTP/{scope['http_version']}; expected HTTP/1.1"
        host = headers.get("host", "")
        if not _HOST.fullmatch(host):
            return 400, f"the header Host is {_shown(host)}; expected a name, or a name and a port"
        known = self.settings.known_names
        if known is not None and _name_of(host) not in known:
            return 421, (
                f"this server was asked as {_shown(host)}; expected {' or '.join(sorted(known))}. Open it by one of "
                "these, or start it with --name"
            )
        if scope["type"] == "http" and scope["method"] in _READING:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and _netloc(origin) != host.lower()
        if foreign or site in ("cross-site", "same-site"):
            return 403, (
                f"the request came from a page of {_shown(origin or site or '')}; expected one of this server. Open "
                "its own page, or send no Origin from other programs"
            )
        return None

    def _refused_length(self, headers: dict[str, str]) -> tuple[int, str] | None:
        length = _length(headers)
        if length is None:
            return 400, f"the header Content-Length is {_shown(headers['content-length'])}; expected a number"
        return (413, self._too_large()) if length > self.most else None

    def _too_large(self) -> str:
        limit = self.settings.limits.file_bytes / 1e6
        return f"the request is too large; expected files of at most {limit:.0f} MB each. Save them smaller, as JPEG"


def _headers(scope: Message) -> dict[str, str]:
    """By name; of several of one name, which no honest client sends, all, so that none fits."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _name_of(host: str) -> str:
    """Of "localhost:8090" the name."""
    name, _, port = host.lower().rpartition(":")
    return name if name and port.isdigit() else host.lower()


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None where it is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(shown(text, 60))


def _length(headers: dict[str, str]) -> int | None:
    """Return the length that a body is announced with; 0 = none is; None = the header is no number."""
    given = headers.get("content-length", "0")
    if not (given.isascii() and given.isdigit()):
        return None
    return int(given) if len(given) <= 18 else 10**18


class _Body:
    """The body of a request as it comes, which ends at its limit and where nothing comes any more.

    count    bytes that came
    is_whole whether the last of it came
    is_gone  whether the sender is gone
    """

    def __init__(self, receive: Receive, most: int, too_large: str, *, is_whole: bool) -> None:
        self._receive, self._most, self._too_large = receive, most, too_large
        self.count, self.is_whole, self.is_gone = 0, is_whole, False
        self._waited_s = 0.0

    async def receive(self) -> Message:
        """Return the next message. Raises Refused: 413 beyond the limit, of which the sender is let finish, and 408."""
        message = await self._next()
        if self.count > self._most:
            await self.drain()
            raise Refused(self._too_large, 413)
        return message

    async def drain(self) -> None:
        """Read the rest and throw it away, up to a limit: who still sends hears no answer."""
        with contextlib.suppress(Refused):
            while not (self.is_whole or self.is_gone) and self.count <= _DRAINED * self._most:
                await self._next()

    async def _next(self) -> Message:
        wait = self._receive()
        if self.is_whole:  # then it is the end of the connection that is waited for
            message = await wait
        else:
            started, ahead_s = time.monotonic(), self.count / _LEAST_RATE - self._waited_s
            try:
                message = await asyncio.wait_for(wait, max(0.0, _STALLED_S + min(0.0, ahead_s)))
            except TimeoutError:
                raise Refused(
                    f"the body is slower than {_LEAST_RATE:g} bytes per second, or nothing came for {_STALLED_S:g} "
                    f"seconds, {self.count:,} bytes into it; expected all of it",
                    408,
                ) from None
            self._waited_s += time.monotonic() - started
        self.count += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self.is_gone = True
        elif not message.get("more_body", False):
            self.is_whole = True
        return message


class _Answer:
    """What is sent: with `HEADERS`, nothing to who is gone, and the connection closed where a body was not read whole.

    status    0 = none yet
    said      the beginning of an answer of 400 or more
    is_whole  whether the last of it was sent
    """

    def __init__(self, scope: Message, send: Send, body: _Body) -> None:
        self._scope, self._send, self._body = scope, send, body
        self.status, self.said, self.is_whole = 0, "", False

    async def send(self, message: Message) -> None:
        """Send a message. Raises ClientDisconnect where it cannot be sent."""
        if UNPARSABLE in self._scope:
            await self._body.drain()  # until the web server has closed the connection
        if self._body.is_gone:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._headers(list(message.get("headers", ())))}
        elif self.status >= 400 and not self.said:
            self.said = _detail(message.get("body", b""))
        try:
            await self._send(message)
        except Exception as error:
            raise ClientDisconnect from error
        self.is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def refuse(self, status: int, detail: str) -> None:
        """Send a whole answer, where none has begun."""
        if self.status:
            return
        content = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})

    def _headers(self, given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        names = {name.lower() for name, _ in given}
        given += [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in names]
        return given if self._body.is_whole else [*given, (b"connection", b"close")]


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return shown(body[:200].decode("utf-8", "replace"), 200)
