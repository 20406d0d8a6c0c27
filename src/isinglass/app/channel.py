"""The WebSocket of a live page: the newest frame is matched, older ones are dropped.

From the page come JSON texts {"type": "settings" | "reference" | "keyframe"} and images: after "reference" the
reference photo, else frames. To it go JSON texts {"type": "ready" | "reference" | "frame" | "problem" | "ended"}; where
the server reads the video, a JPEG of the frame follows each "frame".
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from PIL import Image
from pydantic import BaseModel
from starlette.websockets import WebSocket, WebSocketDisconnect

from isinglass.app.forms import read_options
from isinglass.app.jobs import Jobs
from isinglass.app.live import LIVE_DEFAULTS, Frame, LiveMatcher, LiveSettings, live_options
from isinglass.app.log import message_of
from isinglass.app.pipelines import Pipelines
from isinglass.app.settings import Settings
from isinglass.app.uploads import Refused, Upload, check_upload
from isinglass.app.video import VideoSource, no_source
from isinglass.errors import IsinglassError

Act = Callable[[LiveMatcher], Any]  # gives messages, or None
MOST_TEXT = 20_000  # letters of a message
MOST_ACTS = 8  # that wait
_WAIT_S = 0.5
_QUALITY = 80
_BUSY, _GOING_AWAY = 1013, 1001


class Home(Protocol):
    """What a channel needs of the server."""

    settings: Settings
    jobs: Jobs
    pipelines: Pipelines
    form: type[BaseModel]
    video: VideoSource | None
    reference: Upload | None


class Channel:
    """One live page. `run` returns when it is gone."""

    def __init__(self, websocket: WebSocket, home: Home) -> None:
        self.websocket, self.home = websocket, home
        self._matcher: LiveMatcher | None = None
        self._frame: Frame | None = None  # the newest one that waits
        self._acts: list[Act] = []  # what else is to be done before it
        self._count = self._dropped = 0
        self._expects_reference = self._to_watch = False
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Listen and answer until one of both ends."""
        await self.websocket.accept()
        tasks = [asyncio.create_task(one) for one in (self._listen(), self._work())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._matcher is not None:
                self._matcher.close()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | RuntimeError):
                raise result

    # --- from the page

    async def _listen(self) -> None:
        while True:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                if message.get("text") is not None:
                    self._hear(_parsed(message["text"]))
                else:
                    await self._see(message.get("bytes") or b"")
            except Refused as error:
                await self._send({"type": "problem", "detail": str(error), "frame": None})
            self._woken.set()

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message.pop("type", None)
        if kind == "settings":
            self._set(message)
        elif self._matcher is None:
            raise Refused('the first message has the wrong type; expected {"type": "settings", ...}', 422)
        elif kind == "reference":
            self._expects_reference = True
        elif kind == "keyframe":
            self._act(LiveMatcher.forget_reference)
        else:
            raise Refused(
                f"a message of the type {str(kind)[:40]!r} came; expected settings, reference or keyframe", 422
            )

    def _set(self, values: dict[str, Any]) -> None:
        mode, source = values.pop("mode", "keyframe"), values.pop("source", "client")
        if mode not in ("reference", "keyframe") or source not in ("client", "server"):
            raise Refused("mode or source is wrong; expected reference or keyframe, and client or server", 422)
        if source == "server" and self.home.video is None:
            raise no_source()
        options, geometry = read_options({**LIVE_DEFAULTS, **values}, self.home.form, self.home.settings)
        settings = LiveSettings(mode=mode, source=source, options=live_options(options), geometry=geometry)
        if self._matcher is None:
            self._matcher = LiveMatcher(settings, self.home.pipelines)
        self._to_watch = source == "server"
        self._act(lambda matcher: [_ready(settings), *matcher.change(settings)])
        reference = self.home.reference
        if source == "server" and mode == "reference" and reference is not None:
            self._act(lambda matcher: matcher.set_reference(reference))

    def _act(self, act: Act) -> None:
        if len(self._acts) >= MOST_ACTS:
            raise Refused(f"{MOST_ACTS} messages wait already; expected fewer. Wait for the answers", 503)
        self._acts.append(act)

    async def _see(self, content: bytes) -> None:
        if self._matcher is None:
            raise Refused('a frame came before {"type": "settings", ...}; send that first', 422)
        if self._expects_reference:
            self._expects_reference = False
            photo = await self._checked(content, "the reference")
            self._act(lambda matcher: matcher.set_reference(photo))
            return
        number, self._count = self._count, self._count + 1
        photo = await self._checked(content, f"frame {number}")
        self._dropped += self._frame is not None
        self._frame = Frame(number=number, image=photo, arrived_s=time.monotonic())

    async def _checked(self, content: bytes, name: str) -> Upload:
        return await asyncio.to_thread(check_upload, content, name, self.home.settings.limits)

    # --- to the page

    async def _work(self) -> None:
        while True:
            if not (self._acts or self._frame or self._to_watch):
                await self._woken.wait()
            self._woken.clear()
            if (matcher := self._matcher) is None:
                continue
            await self._act_all(matcher)
            frame, self._frame = self._frame, None
            if self._to_watch and self.home.video is not None:
                with self.home.video.watched():
                    await self._watch(matcher, self.home.video)
            elif frame is not None:
                await self._do(partial(matcher.answer, frame, self._dropped), frame.number)

    async def _act_all(self, matcher: LiveMatcher) -> None:
        acts, self._acts = self._acts, []
        for act in acts:
            await self._do(partial(act, matcher))

    async def _watch(self, matcher: LiveMatcher, video: VideoSource) -> None:
        """The newest frames of the server's video, until it ends or the page wants its own."""
        last = -1
        while self._to_watch:
            await self._act_all(matcher)
            seen = await asyncio.to_thread(video.after, last, _WAIT_S)
            if seen is not None:
                self._dropped += seen.number - last - 1 if last >= 0 else 0
                last = seen.number
                frame = Frame(number=last, image=seen.pixels, arrived_s=seen.arrived_s)
                await self._do(partial(matcher.answer, frame, self._dropped), last, seen.pixels)
            elif video.ended:
                self._to_watch = False
                await self._send({"type": "ended"})

    async def _do(self, act: Callable[[], Any], number: int | None = None, pixels: Any = None) -> None:
        """Run it in the thread of the jobs, and send what it gives; its errors are told and nothing ends."""
        try:
            messages = await asyncio.wrap_future(self.home.jobs.call(act))
        except IsinglassError as error:
            await self._send({"type": "problem", "detail": message_of(error), "frame": number})
            return
        for message in messages or ():
            await self._send(message)
            if pixels is not None and message["type"] == "frame":
                await self.websocket.send_bytes(await asyncio.to_thread(_jpeg, pixels))

    async def _send(self, message: dict[str, Any]) -> None:
        await self.websocket.send_text(json.dumps(message, allow_nan=False, separators=(",", ":")))


def _ready(settings: LiveSettings) -> dict[str, Any]:
    return {"type": "ready", "source": settings.source, "mode": settings.mode, "options": asdict(settings.options)}


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text) if len(text) <= MOST_TEXT else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Refused('a text came that is no JSON object; expected {"type": "settings", ...}', 422)
    return message


def _jpeg(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=_QUALITY)
    return content.getvalue()
