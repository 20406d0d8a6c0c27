"""uvicorn's HTTP protocol on h11, with what it leaves open: clients without a request, odd upgrades, what is no HTTP.

A connection is kept only as long as a request is on its way. The head of a request must come within a few seconds, and
where there are too many connections, those that have waited longest for one are closed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from isinglass.app.guard import UNPARSABLE
from isinglass.app.log import log_refusal
from isinglass.app.settings import Limits

_SETTLE_S = 0.1  # in which a new connection's request comes, where one was sent with it
_MOST = 4  # times the limit of connections, within that time


class Protocol(H11Protocol):
    """The protocol of one connection."""

    def __init__(self, *given: Any, limits: Limits, **named: Any) -> None:
        """Take `connections` and `head_s` of the limits; the rest is uvicorn's."""
        super().__init__(*given, **named)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None  # while the head of a request is waited for

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch_head()
        if len(self.connections) > _MOST * self._limits.connections:
            self._make_room()
        elif len(self.connections) > self._limits.connections:
            self.loop.call_later(_SETTLE_S, self._make_room)

    def data_received(self, data: bytes) -> None:
        """Handle what came."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, which has been logged; a request that it interrupts hears of it in its scope."""
        if self.cycle is not None:
            self.cycle.scope[UNPARSABLE] = True  # pyright: ignore[reportGeneralTypeIssues]
        super().send_400_response(msg)

    def _should_upgrade(self) -> bool:
        """Upgrade to a WebSocket by a whole handshake alone: any other request is answered as one of HTTP."""
        return _is_handshake(self.scope["method"], dict(self.headers)) and super()._should_upgrade()

    def _watch_head(self) -> None:
        """Start or stop the timer: it runs while the head of a request is waited for, however little of it comes."""
        is_waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not is_waiting:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        """Close a connection without a whole request in time; one that has sent some of it is answered."""
        self._stop_timer()
        if self.conn.trailing_data[0] and not self.transport.is_closing():
            why = f"the head of the request was not whole after {self._limits.head_s:g} seconds"
            log_refusal({"client": self.client, "method": "?", "path": "?"}, f"408 {why}")
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(why), why.encode())
            )
        self.transport.close()

    def _make_room(self) -> None:
        """Close connections without a request while there are too many: first those that have waited longest."""
        excess = len(self.connections) - self._limits.connections
        idle = [peer for peer in self.connections if isinstance(peer, Protocol) and peer._is_idle()]
        for peer in sorted(idle, key=Protocol._give_up_at)[: max(excess, 0)]:
            peer._stop_timer()
            self.connections.discard(peer)
            peer.transport.abort()

    def _is_idle(self) -> bool:
        return self._head_timer is not None or self.transport.is_closing()

    def _give_up_at(self) -> float:
        """Return when no head is waited for any more; never, where the end of an answer is still to be sent."""
        return math.inf if self._head_timer is None else self._head_timer.when()


def _is_handshake(method: str, headers: dict[bytes, bytes]) -> bool:
    try:
        key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        return False
    return method == "GET" and len(key) == 16 and headers.get(b"sec-websocket-version") == b"13"
