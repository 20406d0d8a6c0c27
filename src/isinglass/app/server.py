"""The server of the app: the page, jobs for it, and `POST /match` for other programs. Needs FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from isinglass.app import examples
from isinglass.app.answers import Choices, Health, JobAnswer, MatchAnswer, Problem, Submitted
from isinglass.app.channel import Channel
from isinglass.app.choices import choices
from isinglass.app.forms import MOST_FIELDS, body_schema, make_forms, read_task
from isinglass.app.guard import App, Guard
from isinglass.app.jobs import RETRY_AFTER_S, Cancelled, Job, Jobs, Work, status_of
from isinglass.app.live import LIVE_DEFAULTS
from isinglass.app.log import message_of, shown
from isinglass.app.pipelines import Pipelines
from isinglass.app.settings import Settings
from isinglass.app.uploads import Refused, Upload
from isinglass.app.video import VideoSource
from isinglass.app.work import STEPS, run, run_plain

JSON = "application/json"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
RESULTS = {"result": "payload.json", "result.json": "matches.json", "result.npz": "matches.npz"}
_LOOK_S = 0.5  # how often it is asked whether who waits for `POST /match` is still there
_TRY_LATER = 1013  # the code of WebSockets
_CLIENT_GONE = 499  # that nobody reads
JobId = Annotated[str, Path(max_length=64, pattern=r"^[\w-]+$")]


class Server:
    """One app: its settings, its jobs and its models. `app` is what a web server runs."""

    def __init__(self, settings: Settings, video: VideoSource | None = None, reference: Upload | None = None) -> None:
        self.settings, self.video, self.reference = settings, video, reference
        choices(settings.limits)  # what is installed is asked here, before anything imports it
        examples.names()
        self.jobs = Jobs(settings.limits)
        self.pipelines = Pipelines(settings.limits.models)
        self.forms = make_forms(settings.limits)
        self.form = self.forms.match  # of live pages, too
        self._live = 0
        self.api = FastAPI(
            title="Isinglass",
            version=version("isinglass"),
            description="Matches of local features between two photos.",
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
        )
        self.api.add_exception_handler(Refused, _refused)
        self.api.add_exception_handler(HTTPException, _http_error)
        self.api.add_exception_handler(RequestValidationError, _wrong_request)
        self.api.add_exception_handler(Exception, _failed)
        self._add_pages()
        self._add_match()
        self._add_jobs()
        self._add_live()
        self.app: App = Guard(self.api, settings)

    @asynccontextmanager
    async def _lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.jobs.close)

    # --- routes

    def _add_pages(self) -> None:
        get = self.api.get

        @get("/", include_in_schema=False)
        async def page() -> Response:
            return _file("isinglass.app", "static", "index.html")

        @get("/static/{name}", include_in_schema=False)
        async def static(name: str) -> Response:
            return _file("isinglass.app", "static", name)

        @get("/shared/{name}", include_in_schema=False)
        async def shared(name: str) -> Response:
            return _file("isinglass.pages", "" if name == "page.css" else "static", name)

        @get("/examples/{name}/{view}", include_in_schema=False)
        async def photo(name: str, view: str) -> Response:
            if name not in examples.names() or view not in ("0", "1"):
                raise Refused(f"there is no such example; expected one of {', '.join(examples.names())}, 0 or 1", 404)
            made = await asyncio.to_thread(examples.example, name)
            return Response(made.files[int(view)], media_type="image/jpeg")

        @get("/choices", summary="What can be chosen")
        async def choose() -> Choices:
            found = await asyncio.to_thread(lambda: {**choices(self.settings.limits), "examples": examples.listed()})
            return Choices(**found, live=self._live_choices())

        @get("/health", summary="Whether the server is there")
        async def health() -> Health:
            return Health(status="ok", version=version("isinglass"), waiting=self.jobs.waiting)

    def _add_match(self) -> None:
        @self.api.post(
            "/match",
            summary="Match two photos",
            description="Waits in the queue of all users, and answers when it is done. Nothing is kept.",
            response_model=MatchAnswer,
            responses=_problems(403, 413, 415, 421, 422, 503),
            openapi_extra={"requestBody": body_schema(self.forms.match)},
        )
        async def match(request: Request) -> Response:
            task, held = await self._task(request, plain=True)
            job = self._submit(
                Work(kind="match", run=lambda tell: run_plain(task, self.pipelines, tell), held=held, keep=False)
            )
            waiting = asyncio.wrap_future(job.ended)
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_LOOK_S)
                if not waiting.done() and await request.is_disconnected():
                    self.jobs.cancel(job)
            try:
                return Response((await waiting)["matches.json"], media_type=JSON)
            except Cancelled:
                return Response(status_code=_CLIENT_GONE)
            except Exception as error:
                raise Refused(message_of(error), status_of(error)) from error

    def _add_jobs(self) -> None:
        api, missing = self.api, _problems(404, 422)

        @api.post(
            "/jobs",
            summary="Queue a job",
            status_code=202,
            responses=_problems(403, 413, 415, 421, 422, 503),
            openapi_extra={"requestBody": body_schema(self.forms.job)},
        )
        async def submit(request: Request) -> Submitted:
            task, held = await self._task(request, plain=False)
            work = Work(
                kind=task.kind, run=lambda tell: run(task, self.pipelines, tell), held=held, steps=STEPS[task.kind]
            )
            return Submitted(id=self._submit(work).id)

        @api.get("/jobs/{job_id}", summary="Where a job stands", responses=missing)
        async def look(job_id: JobId) -> JobAnswer:
            return self._answer(self.jobs.get(job_id))

        @api.delete("/jobs/{job_id}", summary="Cancel a job", responses=_problems(403, 404, 422))
        async def cancel(job_id: JobId) -> JobAnswer:
            job = self.jobs.get(job_id)
            self.jobs.cancel(job)
            return self._answer(job)

        for path, name in RESULTS.items():
            self._add_result(path, name)

    def _add_result(self, path: str, name: str) -> None:
        """The route of one of a result's files."""
        kind = JSON if name.endswith(".json") else "application/octet-stream"
        about = {"result": "What the page draws", "result.json": "The matches", "result.npz": "The matches as npz"}[
            path
        ]
        responses = {**_problems(404, 409, 422), 200: {"content": {kind: {}}}}

        @self.api.get(f"/jobs/{{job_id}}/{path}", summary=about, responses=responses, response_class=Response)
        async def result(job_id: JobId) -> Response:
            job = self.jobs.get(job_id)
            if job.state != "done":
                raise Refused(f"the job is {job.state}; expected one that is done. Ask GET /jobs/ID first", 409)
            if name not in job.result:
                raise Refused(f"a job of the kind {job.kind!r} has no {name}; ask for its result", 404)
            headers = {"content-disposition": f'attachment; filename="{name}"'} if path != "result" else None
            return Response(job.result[name], media_type=kind, headers=headers)

    def _add_live(self) -> None:
        @self.api.websocket("/live")
        async def live(websocket: WebSocket) -> None:
            if self._live >= self.settings.limits.live:
                await websocket.accept()
                await websocket.send_json({"type": "problem", "detail": str(_too_many_live(self._live)), "frame": None})
                await websocket.close(_TRY_LATER)
                return
            self._live += 1
            try:
                await Channel(websocket, self).run()
            finally:
                self._live -= 1

    # --- helpers

    def _live_choices(self) -> dict[str, Any]:
        source = None if self.video is None else self.video.name
        reference = None if self.reference is None else self.reference.name
        return {"source": source, "reference": reference, "defaults": LIVE_DEFAULTS}

    async def _task(self, request: Request, *, plain: bool) -> tuple[Any, int]:
        form = await _form(request)
        try:
            return await read_task(form, self.forms.match if plain else self.forms.job, self.settings, self.jobs)
        finally:
            await form.close()

    def _submit(self, work: Work) -> Job:
        try:
            return self.jobs.submit(work)
        except Refused:
            self.jobs.release(work.held)
            raise

    def _answer(self, job: Job) -> JobAnswer:
        return JobAnswer(
            id=job.id,
            kind=job.kind,
            state=job.state,
            stage=job.stage,
            position=self.jobs.position(job),
            progress=job.progress,
            error=message_of(job.problem) if job.problem is not None and job.state == "failed" else None,
        )


async def _form(request: Request) -> FormData:
    """Read the form. Raises Refused (422) whatever is wrong with it: a parser fails in ways that nobody can list."""
    _check_charset(request.headers.get("content-type", ""))
    try:
        return await request.form(max_files=4, max_fields=MOST_FIELDS)
    except (Refused, ClientDisconnect, OSError, MemoryError):
        raise
    except Exception as error:
        why = error.detail if isinstance(error, HTTPException) else f"{type(error).__name__}: {error}"
        raise Refused(f"the form cannot be read ({shown(str(why), 120)}); expected multipart/form-data", 422) from error


def _check_charset(content_type: str) -> None:
    """Raises Refused (415) for one that does not read ASCII as what it is: unknown, no text, or of wide letters."""
    charset = Message()
    charset["content-type"] = content_type
    name = charset.get_param("charset", "utf-8")
    try:
        is_known = isinstance(name, str) and b"image0".decode(name) == "image0"
    except (LookupError, ValueError):  # of which UnicodeError is one
        is_known = False
    if not is_known:
        raise Refused(f"the charset of the form is {shown(str(name), 40)!r}; expected utf-8", 415)


def _too_many_live(count: int) -> Refused:
    return Refused(f"{count} live pages are open already; expected fewer. Close one, or try again later", 503)


def _file(package: str, folder: str, name: str) -> Response:
    """A file of the package, by its name in a folder's list: what is asked for is never part of a path."""
    home: Traversable = files(package)
    place = home / folder if folder else home
    listed = {one.name: one for one in place.iterdir() if one.is_file()}
    suffix = f".{name.rpartition('.')[2]}"
    if name not in listed or suffix not in TYPES:
        raise Refused("there is no such page; open /", 404)
    return Response(listed[name].read_bytes(), media_type=TYPES[suffix], headers={"cache-control": "no-cache"})


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _MEANING[status]} for status in statuses}


_MEANING = {
    403: "Sent by a page of another origin",
    404: "There is none",
    409: "Not done",
    413: "A file or photo is too large",
    415: "No photo, or of a kind that is not read",
    421: "Asked by a foreign name",
    422: "A field or photo cannot be used",
    503: "Too much waits, or weights cannot be had here",
}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"retry-after": str(RETRY_AFTER_S)} if error.status == 503 else None
    return JSONResponse({"detail": str(error)}, error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no {shown(request.scope['path'], 80)}; open /",
        405: f"{request.method} is not for this path",
    }
    detail = words.get(error.status_code, str(error.detail))
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


async def _wrong_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:3])
    return JSONResponse({"detail": f"{said}; see /openapi.json for what is expected"}, 422)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": message_of(error)}, 500)
