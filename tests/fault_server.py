"""A real HTTP server with OpenAI's API whose answers are made up and whose faults are real.

The text of an answer is decided by the prompt alone, so that tests can tell whether answers were
lost or crossed. What happens to each request is decided by a test's `plan`.
"""

import asyncio
import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.waiting import HANGS_S

Plan = Callable[[int, dict[str, Any]], str]
MODEL, KEY = "tiny_recall", "sk-secret-0123456789"
OK = "ok"
WHOLE = (OK, "length", "refusal", "empty")  # what a client can make an answer of


def prompt_of(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def answer_to(prompt: str) -> str:
    return "answer " + hashlib.sha256(prompt.encode()).hexdigest()[:12]


@dataclass
class FaultServer:
    """`plan(n, body)` names what happens to the n-th request; see `_act` for the names."""

    plan: Plan = lambda n, body: OK
    answer: Callable[[str], str] = answer_to
    accounting: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None
    # what the server does with the body's budget, seen in its log-probs
    shift: Callable[[dict[str, Any]], float] = lambda body: 0.0
    owned_by: str = "test"
    key: str | None = None
    retry_after: str = "0.05"
    before_key: str = ""  # in the message that repeats the key
    capacity: int | None = None  # more at once get 429
    delay_s: float = 0.0
    # instead of made-up words: what a body gets, as (seconds before it, choice)
    choices: Callable[[dict[str, Any]], list[tuple[float, dict[str, Any]]]] | None = None
    usage: dict[str, Any] | None = None  # at the end of these
    paths: tuple[str, ...] = ("/completions", "/chat/completions")
    wrong_path: Callable[[], web.Response] | None = None  # 404 and aiohttp's page
    gives_logprobs: bool = True
    refuses_logprobs: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)  # whole answers, by prompt
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        for path in self.paths:
            app.router.add_post(f"/v1{path}", self._generate)
        if (answer := self.wrong_path) is not None:

            async def wrong(request: web.Request) -> web.Response:
                return answer()

            app.router.add_route("*", "/{any:.*}", wrong)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._expired(request)
        listed = [{"id": MODEL, "object": "model", "owned_by": self.owned_by}]
        return web.json_response({"object": "list", "data": listed})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "prompt" not in body and "messages" not in body:
            return self._error(400, "Field required", "missing")
        n = len(self.bodies)
        self.bodies.append(body)
        self.times.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.capacity is not None and self.in_flight > self.capacity:
                return self._error(429, "too many requests", "queue_full")
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            return await self._act(self.plan(n, body), request, body)
        finally:
            self.in_flight -= 1

    async def _act(self, what: str, request: web.Request, body: dict[str, Any]) -> Any:
        if body.get("logprobs") and self.refuses_logprobs:
            return self._error(400, "logprobs must be at most 5", "invalid_value")
        match what:
            case "429":
                return self._error(429, "Rate limit reached", "rate_limit_exceeded")
            case "429_after":
                after = {"Retry-After": self.retry_after}
                return self._error(429, "Rate limit reached", "rate_limit_exceeded", after)
            case "quota":
                return self._error(429, "You exceeded your current quota", "insufficient_quota")
            case "500":
                return self._error(500, "the engine tripped", None)
            case "503":
                return web.Response(status=503, text="upstream is away")
            case "context":
                said = "This model's maximum context length is 128 tokens"
                return self._error(400, said, "context_length_exceeded")
            case "wrong_model":
                return self._error(404, "The model `x` does not exist", "model_not_found")
            case "expired_key":
                return self._expired(request)
            case "slow_first":
                await asyncio.sleep(HANGS_S)
            case "malformed_body":
                return web.Response(text='{"choices": [', content_type="application/json")
            case "not_json":
                return web.Response(text="<html>hello</html>", content_type="text/html")
        if self.choices is not None:
            return await self._given(self.choices(body), request, body)
        if body.get("stream"):
            return await self._stream(what, request, body)
        return web.json_response(self._whole(what, body))

    def _expired(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        said = f"{self.before_key}Incorrect API key provided: {given}"
        return self._error(401, said, "invalid_api_key")

    @staticmethod
    def _error(
        status: int, message: str, code: str | None, headers: dict[str, str] | None = None
    ) -> web.Response:
        error = {"message": message, "type": "error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)

    async def _given(
        self, choices: list[tuple[float, dict[str, Any]]], request: web.Request, body: Any
    ) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response({"choices": [choices[0][1]], "usage": self.usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for pause_s, choice in choices:
            await asyncio.sleep(pause_s)
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        last = json.dumps({"choices": [], "usage": self.usage})
        await response.write(f"data: {last}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _stream(
        self, what: str, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        prompt = prompt_of(body)
        words = self._words(what, prompt)

        async def send(event: dict[str, Any] | str) -> None:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())

        for position, word in enumerate(words):
            if position == 1:
                match what:
                    case "stall":
                        await asyncio.sleep(HANGS_S)
                    case "reset":
                        assert request.transport is not None
                        request.transport.abort()
                        return response
                    case "cut":
                        await response.write_eof()
                        return response
                    case "malformed":
                        await send('{"choices": [{"text": ')
                    case "wrong_schema":
                        await send({"choices": [{"text": {"not": "a string"}, "delta": "?"}]})
                    case "error_in_stream":
                        await send({"error": {"message": "CUDA out of memory", "code": 500}})
            await send({"choices": [self._choice(body, what, word, position)]})
        reason = {"length": "length", "refusal": "stop"}.get(what, "stop")
        if what != "empty_choices":
            await send({"choices": [self._choice(body, what, None, 0, reason)]})
        last: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": len(words)}}
        if (said := self.accounting(body)) is not None:
            last["kvx"] = said
        await send(last)
        await send("[DONE]")
        self.answered[prompt] += what in WHOLE
        return response

    def _whole(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = prompt_of(body)
        words = self._words(what, prompt)
        reason = "length" if what == "length" else "stop"
        text = "".join(words)
        content = {"message": {"content": text}} if "messages" in body else {"text": text}
        choice = {"index": 0, "finish_reason": reason, **content}
        whole: dict[str, Any] = {
            "choices": [] if what == "empty_choices" else [choice],
            "usage": {"completion_tokens": len(words)},
        }
        if what == "wrong_schema":
            whole["choices"] = {"text": text}
        if (said := self.accounting(body)) is not None:
            whole["kvx"] = said
        self.answered[prompt] += bool(whole["choices"])
        return whole

    def _words(self, what: str, prompt: str) -> list[str]:
        if what in ("empty", "empty_choices"):
            return []
        return [f"{word} " for word in self.answer(prompt).split()]

    def _choice(
        self, body: dict[str, Any], what: str, word: str | None, position: int,
        reason: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        chat = "messages" in body
        if not chat:
            choice["text"] = word or ""
        elif what == "refusal":
            choice["delta"] = {"refusal": word or ""}
        else:
            choice["delta"] = {"content": word or ""}
        if word is not None and body.get("logprobs") and self.gives_logprobs:
            choice["logprobs"] = self._logprobs(body, chat, word, position)
        return choice

    def _logprobs(
        self, body: dict[str, Any], chat: bool, word: str, position: int
    ) -> dict[str, Any]:
        share = 0.9 - 0.1 * position - self.shift(body)
        top = {word: math.log(share), "other": math.log((1 - share) / 2)}
        if not chat:
            return {"tokens": [word], "token_logprobs": [top[word]], "top_logprobs": [top]}
        several = [{"token": token, "logprob": value} for token, value in top.items()]
        return {"content": [{"token": word, "logprob": top[word], "top_logprobs": several}]}


@contextmanager
def serving(server: FaultServer) -> Iterator[FaultServer]:
    """Run the server in a thread, on a free port of this machine."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        server.url = f"http://127.0.0.1:{port}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(HANGS_S)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(HANGS_S)
        loop.close()
