"""The server: OpenAI's API over one engine, with branches."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from parallel_r1.errors import UserError, nearest
from parallel_r1.report import pages
from parallel_r1.serve.answers import Answers, chunk_of, usage_of
from parallel_r1.serve.metrics import Metrics
from parallel_r1.serve.protocol import Asked, Chat, Completion, Reader
from parallel_r1.serve.worker import FAILED, Job, Worker
from parallel_r1.tasks.load import example_of

STATIC = Path(__file__).parent / "static"
LOOK = Path(pages.__file__).parent / "static" / "page.css"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of the page: its own files alone, and no script in the page itself."""
FLUSH, FLUSH_EACH = 0.02, 0.002
"""Seconds for which tokens of a stream are put together, after the first one: at least, and for every open answer."""


@dataclass
class Options:
    """How a server is run.

    Attributes:
        name: of the model, for clients.
        api_key: clients must show it; None for none.
        hosts: values of the Host header that are served; ("*",) for all.
        running, queue: most answers generated at a time, and most that wait.
        body: largest request in bytes.
        seconds: longest time for one request.
        grace: seconds in which running answers may end when the server is told to stop.
    """

    name: str
    api_key: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]", "::1")
    running: int = 256
    queue: int = 256
    body: int = 1_000_000
    seconds: float = 600.0
    grace: float = 20.0


@dataclass
class State:
    """What the server knows while it runs."""

    options: Options
    reader: Reader
    worker: Worker
    metrics: Metrics = field(default_factory=Metrics)
    open: int = 0
    draining: bool = False
    jobs: set[Job] = field(default_factory=set)
    example: str | None = None

    def drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def end_all(self) -> None:
        """Cancel what still runs; clients get what there is."""
        for job in list(self.jobs):
            self.worker.cancel(job)


def make_app(worker: Worker, reader: Reader, options: Options, on_crash: Callable[[], None] = lambda: None) -> FastAPI:
    """The application.

    Args:
        worker: draws the answers; it is closed with the application.
        on_crash: called if the engine fails.
    """
    task = reader.card.task if reader.card else None
    state = State(options, reader, worker, example=example_of(task) if task else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start(asyncio.get_running_loop(), on_crash)
        yield
        worker.close()

    app = FastAPI(title="parallel-r1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.serving = state
    _add_errors(app)
    _add_pages(app, state)
    _add_completions(app, state)
    app.add_middleware(Gate, state=state)
    if options.api_key is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(options.hosts))
    return app


def _kind(status: int) -> str:
    """OpenAI's word for what is wrong."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as clients of OpenAI's API expect it."""
    body = {"error": {"message": message, "type": _kind(status), "param": None, "code": None}}
    return JSONResponse(body, status, headers=headers or None)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        if first["type"] == "json_invalid":
            return error(400, f"body: expected JSON; found a mistake at character {first['loc'][-1]}")
        if first["type"] == "extra_forbidden":
            where = first["loc"][1:-1]
            fields = _fields(where)
            return error(400, f"unknown field {place}: {nearest(str(first['loc'][-1]), fields)}")
        return error(400, f"{place}: {first['msg']}")

    @app.exception_handler(UserError)
    async def refused(_: Request, problem: UserError) -> JSONResponse:
        return error(400, str(problem))

    @app.exception_handler(HTTPException)
    async def http(_: Request, problem: HTTPException) -> JSONResponse:
        return error(problem.status_code, str(problem.detail))


def _fields(where: Sequence[Any]) -> list[str]:
    """Names of the fields at a place of a request."""
    from parallel_r1.serve.protocol import ChatMessage, Limits, Parallel, StreamOptions

    inner: dict[str, Any] = {
        "parallel": Parallel,
        "budget": Limits,
        "stream_options": StreamOptions,
        "messages": ChatMessage,
    }
    names = [part for part in where if part in inner]
    models: list[Any] = [inner[names[-1]]] if names else [Chat, Completion]
    return sorted({name for model in models for name in model.model_fields})


def _add_pages(app: FastAPI, state: State) -> None:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=headers)

    @app.get("/static/page.css", include_in_schema=False)
    async def look() -> FileResponse:
        """The look that all our pages share."""
        return FileResponse(LOOK, headers=headers)

    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/health")
    async def health() -> JSONResponse:
        if state.worker.crashed:
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "stopping" if state.draining else "ok"}, 503 if state.draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(state), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        base = state.reader.base
        shape: dict[str, Any] = {
            "paths": base.most,
            "sampler": base.sampler,
            "temperature": base.temperature,
            "form": state.reader.form,
            "example": state.example,
        }
        shape |= {"budget": base.budget.model_dump(), "task": state.reader.card.task if state.reader.card else None}
        model = {
            "id": state.options.name,
            "object": "model",
            "created": 0,
            "owned_by": "parallel-r1",
            "parallel": shape,
        }
        return {"object": "list", "data": [model]}


def _add_completions(app: FastAPI, state: State) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: Chat, request: Request) -> Response:
        return await _answer(state, asked, request)

    @app.post("/v1/completions")
    async def completions(asked: Completion, request: Request) -> Response:
        return await _answer(state, asked, request)


async def _answer(state: State, asked: Asked, request: Request) -> Response:
    """Answer a request: admit it, or say when to come again."""
    worker, options = state.worker, state.options
    if asked.model != options.name:
        return error(404, f"expected model '{options.name}'; found '{asked.model:.80}'")
    if asked.stream and asked.n > 1:
        return error(400, "n: a stream has one answer; leave stream or n out")
    if asked.parallel.branches and (not asked.stream or not isinstance(asked, Chat)):
        return error(400, "parallel.branches: branches come as the stream of a chat; give stream: true")
    if worker.crashed:
        return error(*FAILED)
    if state.draining:
        return error(503, "the server is stopping", **{"Retry-After": "30"})
    if state.open + asked.n > options.running + options.queue:
        state.metrics.outcome("busy")
        return error(429, "as many requests wait as may; come again", **{"Retry-After": "1"})
    orders = [state.reader.read(asked, worker.number(), index) for index in range(asked.n)]
    jobs = [worker.submit(order) for order in orders]
    answers = Answers(asked, jobs, state.reader.policy, f"{asked.__class__.__name__.lower()}-{uuid.uuid4().hex}")
    state.open += len(jobs)
    state.jobs.update(jobs)
    if asked.stream:
        return StreamingResponse(_stream(state, answers, request), media_type="text/event-stream")
    try:
        await _until_over(state, jobs, request)
        failed = next((job.failed for job in jobs if job.failed), None)
        if failed:
            return error(*failed)
        return JSONResponse(answers.whole())
    finally:
        _leave(state, jobs)


async def _until_over(state: State, jobs: Sequence[Job], request: Request) -> None:
    """Wait for the ends of jobs; cancel them when the client has gone or their time is over."""
    gone = asyncio.ensure_future(_gone(request))
    ends = asyncio.ensure_future(_all_over(jobs))
    try:
        await asyncio.wait({gone, ends}, timeout=state.options.seconds, return_when=asyncio.FIRST_COMPLETED)
        _cancel(state, jobs)
        await ends
    finally:
        gone.cancel()
        ends.cancel()


async def _all_over(jobs: Sequence[Job]) -> None:
    for job in jobs:
        await job.over.wait()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _cancel(state: State, jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.over.is_set():
            state.worker.cancel(job)


def _leave(state: State, jobs: Sequence[Job]) -> None:
    """Forget jobs, and cancel those that go on because their client has gone."""
    _cancel(state, jobs)
    state.open -= len(jobs)
    state.jobs.difference_update(jobs)
    for job in jobs:
        state.metrics.ended(job)


async def _stream(state: State, answers: Answers, request: Request) -> AsyncIterator[str]:
    """The events of a stream: the first token at once, later ones put together for a moment."""
    (job,) = answers.jobs
    end = time.monotonic() + state.options.seconds
    try:
        yield _event(chunk_of(answers, {"role": "assistant", "content": ""}))
        while not job.over.is_set() or job.tokens:
            job.news.clear()
            if not job.over.is_set() and not job.tokens and not await _within(end - time.monotonic(), job.news):
                _cancel(state, [job])
                end = math.inf
            if new := "".join(_event(chunk_of(answers, delta)) for delta in answers.new()):
                yield new
            await _within(FLUSH + FLUSH_EACH * state.open, job.over)
        if job.failed:
            status, message = job.failed
            yield _event({"error": {"message": message, "type": _kind(status)}})
            return
        for delta in answers.rest():
            yield _event(chunk_of(answers, delta))
        wanted = answers.asked.stream_options is not None and answers.asked.stream_options.include_usage
        branches = answers.asked.parallel.branches
        yield _event(chunk_of(answers, {}, answers.finish(0)) | (usage_of(answers) if branches else {}))
        if wanted and not branches:
            yield _event(chunk_of(answers, None) | usage_of(answers))
        yield "data: [DONE]\n\n"
    finally:
        _leave(state, [job])


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, but no longer than this. Returns whether it has come."""
    try:
        await asyncio.wait_for(event.wait(), None if seconds == math.inf else max(0.0, seconds))
    except TimeoutError:
        return False
    return True


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Gate:
    """ASGI middleware: the key, the size of the body, and its type."""

    def __init__(self, app: Any, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        options, path = self.state.options, scope["path"]
        private = path.startswith("/v1/") or path == "/metrics"
        if options.api_key is not None and private:
            shown = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(shown.encode(), options.api_key.encode()):
                response = error(401, "expected the API key of this server as a Bearer token")
                await response(scope, receive, send)
                return
        if scope["method"] == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                await error(415, "expected Content-Type: application/json")(scope, receive, send)
                return
            body = await _body(receive, options.body, headers.get("content-length", ""))
            if body is None:
                await error(413, f"a request has at most {options.body} bytes")(scope, receive, send)
                return
            receive = _again(body, receive)
        await self.app(scope, receive, send)


async def _body(receive: Any, most: int, announced: str) -> bytes | None:
    """The body of a request; None if it is too large, which is noticed before all of it is read."""
    if announced.isdecimal() and int(announced[:20]) > most:
        return None
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def _again(body: bytes, receive: Any) -> Any:
    """Gives a body that has been read to who asks for it, then what follows: the end of the connection."""
    given = False

    async def next_message() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
