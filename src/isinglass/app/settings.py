"""How the server of the app is set up, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from isinglass.errors import InputError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes on. Whatever is over a limit is refused with a message that says so.

    file_bytes      of an uploaded photo, video frame or mask
    pixels          of a photo; its header is asked before it is decoded
    max_keypoints   of a photo
    least_resize    px of the side that extractors see, at least
    most_resize     and at most
    waiting         jobs that wait or run
    waiting_bytes   of the uploads of all these together
    results         finished jobs that are kept, and
    results_bytes   of them together: the oldest go first
    keep_s          how long a result is kept
    models          pipelines that stay loaded
    live            live pages at once
    connections     at once, of which those without a request are closed for others; and requests at once
    head_s          seconds within which the head of a request must come
    """

    file_bytes: int = 32_000_000
    pixels: int = 50_000_000
    max_keypoints: int = 4096
    least_resize: int = 64
    most_resize: int = 2048
    waiting: int = 32
    waiting_bytes: int = 256_000_000
    results: int = 32
    results_bytes: int = 128_000_000
    keep_s: float = 900.0
    models: int = 3
    live: int = 4
    connections: int = 128
    head_s: float = 10.0

    @property
    def body_bytes(self) -> int:
        """Of a whole request: two photos, two masks, and fields."""
        return 4 * self.file_bytes + 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of one server.

    host, port   where it listens; port 0 is any free one
    names        by which it may be asked besides its own address: a page of another name that points here is refused
    device       that matches are computed on; None = the best there is
    limits       see there

    Raises InputError for a port that is none.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    names: tuple[str, ...] = ()
    device: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise InputError(f"port is {self.port}; expected 0 (any) to 65535")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def known_names(self) -> frozenset[str] | None:
        """Host names, without port, that requests may carry; None = any, where other machines may ask."""
        if not self.is_local and not self.names:
            return None
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset({*LOOPBACK_NAMES, own, *self.names})
