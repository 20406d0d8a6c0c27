"""What stands before the app: who may ask, how much a request may send, and headers that keep pages to themselves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from isinglass.app.settings import Settings

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


class BodyTooLarge(Exception):
    """More came than a request may hold."""


class Guard:
    """An ASGI app around another one.

    Refused are: hosts by foreign names where only this machine may ask (a page of the web that lets its name point
    here), requests that change something and live connections from pages of other origins, and bodies over the limit.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.most = settings.limits.body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:120]})
            return
        guarded = _with_headers(send)
        if refusal is None and int(_digits(headers.get("content-length"))) > self.most:
            refusal = 413, self._too_large()
        if refusal is not None:
            await _drain(receive, _DRAINED * self.most)
            await _refuse(guarded, *refusal)
            return
        await self._bounded(scope, receive, guarded)

    async def _bounded(self, scope: Message, receive: Receive, send: Send) -> None:
        """The app, which hears no more than a body may have."""
        count, started = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.most:
                raise BodyTooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if count > self.most and not started:  # whatever the app makes of the error
                return
            started = True
            await send(message)

        with contextlib.suppress(BodyTooLarge):
            await self.app(scope, counted, noted)
        if count > self.most and not started:
            await _drain(receive, _DRAINED * self.most)
            await _refuse(send, 413, self._too_large())

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        known = self.settings.known_names
        if known is not None and _name_of(host) not in known:
            return 421, (
                f"this server was asked as {_shown(host)}; expected {' or '.join(sorted(known))}. Open it by one of "
                "these, or start it with --name"
            )
        if scope["type"] == "http" and scope["method"] in _READING:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site in ("cross-site", "same-site"):
            return 403, (
                f"the request came from a page of {_shown(origin or site or '')}; expected one of this server. Open "
                "its own page, or send no Origin from other programs"
            )
        return None

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


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _digits(text: str | None) -> str:
    return text if text is not None and text.isdigit() else "0"


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            given += [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in names]
            message = {**message, "headers": given}
        await send(message)

    return guarded


async def _drain(receive: Receive, most: int) -> None:
    count, more = 0, True
    while more and count <= most:
        message = await receive()
        count += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


async def _refuse(send: Send, status: int, detail: str) -> None:
    content = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
