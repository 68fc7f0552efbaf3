"""The HTTP side: endpoints, streams, and every error as the API's error object."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from kvx.serve.api_errors import ApiError
from kvx.serve.jobs import Done
from kvx.serve.middleware import Gate
from kvx.serve.replies import ChatReply, CompletionReply, Reply
from kvx.serve.requests import ChatRequest, CompletionRequest, Compression, Generation
from kvx.serve.service import Service, Ticket
from kvx.serve.transcript import Piece, Restart

log = logging.getLogger(__name__)

T = TypeVar("T")
CLIENT_GONE = 499  # for the metrics; no client reads it


def create_app(service: Service, api_key: str | None) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield

    app = FastAPI(title="kvx", lifespan=lifespan, docs_url=None, redoc_url=None)
    limit = service.config.serve.max_request_bytes
    app.add_middleware(Gate, metrics=service.metrics, api_key=api_key, max_request_bytes=limit)
    _handle_errors(app)

    @app.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        return await _answer(service, asked, request, CompletionReply)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await _answer(service, asked, request, ChatReply)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.config.model.name:
            raise ApiError(404, f"there is no model {name!r} here", "model", "model_not_found")
        return _model(service)

    @app.get("/health")
    async def health() -> JSONResponse:
        load, alive = service.loop.load, service.loop.is_alive()
        status = {"status": "ok" if alive else "failed", "running": load.running}
        return JSONResponse({**status, "waiting": load.waiting}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _model(service: Service) -> dict[str, Any]:
    config = service.config
    kvx: dict[str, Any] = {
        "presses": service.presses.names,
        "press": config.press.name,
        "controller": config.controller.name,
    }
    if service.promise is not None:
        kvx["certificate"] = service.promise.body()
    return {
        "id": config.model.name,
        "object": "model",
        "created": service.started,
        "owned_by": "kvx",
        "max_model_len": service.max_context,
        "kvx": kvx,
    }


async def _answer(
    service: Service, asked: Generation, request: Request, reply_class: type[Reply]
) -> Response:
    ticket, streams = await service.submit(asked), False
    try:
        if asked.stream:
            # an error before the first token has a status of its own
            first = await _unless_gone(request, ticket.next())
            if first is not None:
                streams = True
                return _Stream(ticket, _chunks(ticket, reply_class(ticket), first))
        else:
            answer = await _unless_gone(request, _whole(ticket))
            if answer is not None:
                return JSONResponse(reply_class(ticket).body(*answer))
        return Response(status_code=CLIENT_GONE)
    finally:
        if not streams:  # a stream closes its ticket itself
            ticket.close()


async def _whole(ticket: Ticket) -> tuple[list[Piece], Done]:
    pieces: list[Piece] = []
    while not isinstance(event := await ticket.next(), Done):
        if isinstance(event, Piece):  # restarts only happen in streams
            pieces.append(event)
    return pieces, event


async def _unless_gone(request: Request, wanted: Awaitable[T]) -> T | None:
    """What is awaited, or None as soon as the client has gone."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _chunks(
    ticket: Ticket, reply: Reply, event: Piece | Restart | Done
) -> AsyncIterator[str]:
    """Server-sent events. After the first token an error is an event too."""
    try:
        if (opening := reply.opening()) is not None:
            yield _sse(opening)
        while not isinstance(event, Done):
            chunk = reply.chunk(event) if isinstance(event, Piece) else reply.restart(event)
            yield _sse(chunk)
            event = await ticket.next()
        for chunk in reply.closing(event):
            yield _sse(chunk)
    except ApiError as error:
        yield _sse(error.body())
    yield "data: [DONE]\n\n"


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


class _Stream(StreamingResponse):
    """Frees the row however the stream ends, even if it never began."""

    def __init__(self, ticket: Ticket, chunks: AsyncIterator[str]) -> None:
        super().__init__(chunks, media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self.ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ticket.close()


def _handle_errors(app: FastAPI) -> None:
    def respond(error: ApiError) -> JSONResponse:
        return _AsciiResponse(error.body(), error.status, error.headers())

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(_from_validation(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        response = respond(ApiError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return respond(ApiError(500, f"{type(error).__name__} in the server; its log says more"))


class _AsciiResponse(JSONResponse):
    """Errors quote what a client sent, which may not be encodable text."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def _from_validation(error: RequestValidationError) -> ApiError:
    """The first wrong field, with the reason from every form that the field may have."""
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON")
    param = _field(errors[0])
    reasons = dict.fromkeys(_reason(e) for e in errors if _field(e) == param)
    message = ", or: ".join(reasons)
    return ApiError(400, f"{param}: {message}" if param else message, param)


def _reason(error: dict[str, Any]) -> str:
    """What is wrong; in our words where pydantic's would not help a client."""
    where, message = error["loc"], str(error["msg"])
    match error["type"]:
        case "extra_forbidden" if where[1:2] == ("kvx",):
            return f"unknown field; there are {', '.join(Compression.model_fields)}"
        case "extra_forbidden" if len(where) > 2:
            return f"{str(where[-1])[:100]!r} is not understood by this server; leave it out"
        case "extra_forbidden":
            return "not understood by this server; leave it out"
        case "model_type" | "model_attributes_type" if where[1:] == ("kvx",):
            return 'must be an object such as {"press": "snapkv", "budget": 0.5}'
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be an object" if len(where) > 1 else "the body must be a JSON object"
        case "value_error":
            return message.removeprefix("Value error, ")
    return message


def _field(error: dict[str, Any]) -> str | None:
    """The field's name, without the forms of a union; a field below `kvx` keeps both names."""
    where = [str(part)[:100] for part in error["loc"] if part != "body"]
    return ".".join(where[:2] if where[:1] == ["kvx"] else where[:1]) or None
