"""uvicorn's HTTP protocol on h11, with what it leaves open: one line of log for what is no HTTP, and odd upgrades."""

from __future__ import annotations

import base64
import binascii

from uvicorn.protocols.http.h11_impl import H11Protocol

from isinglass.app.guard import UNPARSABLE


class Protocol(H11Protocol):
    """The protocol of one connection."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, which has been logged; a request that it interrupts hears of it in its scope."""
        if self.cycle is not None:
            self.cycle.scope[UNPARSABLE] = True  # pyright: ignore[reportGeneralTypeIssues]
        super().send_400_response(msg)

    def _should_upgrade(self) -> bool:
        """Upgrade to a WebSocket by a whole handshake alone: any other request is answered as one of HTTP."""
        return _is_handshake(self.scope["method"], dict(self.headers)) and super()._should_upgrade()


def _is_handshake(method: str, headers: dict[bytes, bytes]) -> bool:
    try:
        key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        return False
    return method == "GET" and len(key) == 16 and headers.get(b"sec-websocket-version") == b"13"
