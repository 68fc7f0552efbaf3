"""What every request passes first: API key, size of the body, counting. Plain ASGI."""

import asyncio
import hmac
import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvx.serve.api_errors import ApiError
from kvx.serve.prometheus import Metrics

OPEN_PATHS = ("/health",)
BODY_PAUSE_S = 30.0  # a client that sends nothing for this long is given up
COUNTED = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")


class Gate:
    """Answers requests that may not pass; hands the whole body on in one piece."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, api_key: str | None, max_request_bytes: int
    ) -> None:
        self.app, self.metrics, self.max_request_bytes = app, metrics, max_request_bytes
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in COUNTED else "other"

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        headers = dict(scope["headers"])
        try:
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await _answer(error, counted)
            return
        if body is None:
            return  # the client has gone
        try:
            await self.app(scope, _replay(body, receive), counted)
        except Exception:  # a bug: the caller answers it
            if not begun:
                self.metrics.requests.labels(path, "500").inc()
            raise

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._expected is None or path in OPEN_PATHS:
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Raises `ApiError` if it is too large or does not come; None if the client has gone."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self.max_request_bytes:
            raise self._too_large()
        parts, size, more = [], 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), BODY_PAUSE_S)
            except TimeoutError:
                raise ApiError(408, "the body of the request did not come") from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_request_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.max_request_bytes} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body, then the real messages (the client's disconnect)."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


async def _answer(error: ApiError, send: Any) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "connection": "close", **error.headers()}
    encoded = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
