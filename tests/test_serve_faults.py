"""kvx.serve when things go wrong: clients that leave, a full queue, failing requests."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from kvx.engines.kvpress import decode
from kvx.serve.loop import Speaker
from kvx.text.incremental import TokenText
from tests.serving import Running, error_of, post, serving
from tests.test_serve import GREEDY, WORDS, asked_together
from tests.waiting import HANGS_S, wait_until

TOKENS = "kvx_generated_tokens_total"
LONG = {**GREEDY, "prompt": WORDS, "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = ["serve.max_request_bytes=65536", "decoding.max_new_tokens=16"]
    with serving("model=tiny_recall", *limits) as running:
        yield running


# clients that leave


def test_a_client_that_leaves_its_stream_frees_its_row(server: Running) -> None:
    names = ("kvx_disconnects_total", TOKENS)
    before = [server.metric(name) for name in names]
    asked = {"json": {**LONG, "stream": True}, "timeout": HANGS_S}
    with httpx.stream("POST", f"{server.url}/completions", **asked) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.health()["running"] == 1
    server.wait_until_idle()
    assert server.metric("kvx_disconnects_total") == before[0] + 1
    assert server.metric(TOKENS) - before[1] < LONG["max_tokens"]


def test_a_client_that_does_not_wait_for_its_answer_frees_its_row(server: Running) -> None:
    before = [server.metric(name) for name in ("kvx_disconnects_total", TOKENS)]
    held: list[socket.socket] = []
    hold(server.url, held)
    wait_until(lambda: server.at_work() == (1, 0), "it is answered")
    held[0].close()
    server.wait_until_idle()
    assert server.metric("kvx_disconnects_total") == before[0] + 1
    assert server.metric(TOKENS) - before[1] < LONG["max_tokens"]


def test_half_the_clients_leave_and_the_others_hear_the_whole_answer(server: Running) -> None:
    body = {**GREEDY, "prompt": WORDS, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
    expected = asyncio.run(asked_together(server.url, [body]))[0].choices[0].text

    async def ask(client: openai.AsyncOpenAI, leaves: bool) -> str | None:
        stream = await client.completions.create(**body, stream=True)
        text, n = "", 0
        async for chunk in stream:
            text, n = text + chunk.choices[0].text, n + 1
            if leaves and n == 5:
                await stream.close()
                return None
        return text

    async def all_of_them() -> list[str | None]:
        async with server.async_client() as client:
            return await asyncio.gather(*(ask(client, i % 2 == 0) for i in range(16)))

    assert asyncio.run(all_of_them()) == [None, expected] * 8
    server.wait_until_idle()


# a full queue


def test_a_full_queue_says_when_to_come_back() -> None:
    with serving("model=tiny_recall", "serve.max_rows=1", "serve.queue=2") as server:
        streams = []
        for expected in ((1, 0), (1, 1), (1, 2)):
            thread = threading.Thread(target=hold, args=(server.url, streams))
            thread.start()
            wait_until(lambda: server.at_work() == expected, f"{expected} run and wait")  # noqa: B023
        refused = post(server.url, LONG)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert error_of(refused)["code"] == "queue_full"
        with pytest.raises(openai.RateLimitError):
            server.client().completions.create(**GREEDY, prompt=WORDS)
        for sock in streams:
            sock.close()
        server.wait_until_idle()
        assert post(server.url, {**GREEDY, "prompt": WORDS}).status_code == 200


def hold(url: str, held: list[socket.socket]) -> None:
    """Send a long request and keep the connection open without reading."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps(LONG).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    sock = socket.create_connection((host, int(port)))
    sock.sendall(head.encode() + body)
    held.append(sock)


# requests that fail


class Poisoned:
    """The model, as long as no row has generated `token` tokens of the poisoned prompt."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.forward, self.raised = prompt_tokens, decode.forward, 0

    def __call__(self, loaded: Any, buckets: Any, rows: Any, ids: torch.Tensor) -> torch.Tensor:
        for row in rows:
            poisoned = row.request.entry.prompt_tokens == self.prompt_tokens
            if poisoned and len(row.tokens) == 7:
                self.raised += 1
                raise RuntimeError("no such luck")
        return self.forward(loaded, buckets, rows, ids)


def test_a_step_that_fails_ends_only_the_request_that_made_it_fail(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(n: int, seed: int = 0, **more: Any) -> dict[str, Any]:
        return {"model": "tiny_recall", "prompt": [5 + i % 90 for i in range(n)], "seed": seed,
                "max_tokens": 20, "extra_body": {"ignore_eos": True}, **more}  # fmt: skip

    good = [body(100 + 7 * i, temperature=0) for i in range(6)] + [body(90, seed=3, temperature=1)]
    bad_start = body(333, temperature=0, max_tokens=7)
    *expected, start = [
        a.choices[0].text for a in asyncio.run(asked_together(server.url, [*good, bad_start]))
    ]
    poisoned = Poisoned(prompt_tokens=333)
    monkeypatch.setattr(decode, "forward", poisoned)

    async def with_the_bad_one() -> tuple[list[str], str]:
        async with server.async_client() as client:

            async def bad() -> str:
                told = ""
                try:
                    asked = body(333, temperature=0, stream=True)
                    async for chunk in await client.completions.create(**asked):
                        told += chunk.choices[0].text
                except openai.APIError as error:
                    return told + f"; {error.message}"
                return told

            async def one(asked: dict[str, Any]) -> str:
                return str((await client.completions.create(**asked)).choices[0].text)

            *texts, told = await asyncio.gather(*map(one, good), bad())
            return texts, told

    texts, told = asyncio.run(with_the_bad_one())
    assert poisoned.raised >= 2  # in company, and alone
    assert texts == expected
    assert told.startswith(start + "; ")  # after its seven tokens an error, not an end
    assert "no such luck" in told
    assert server.health()["status"] == "ok"


def test_a_token_that_is_chosen_but_not_said_is_chosen_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**GREEDY, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    bodies = [asked | {"prompt": WORDS[7 * i :], "logprobs": (None, 1)[i % 2]} for i in range(4)]
    expected = asyncio.run(asked_together(server.url, bodies))
    scores, calls = Speaker._scores, []

    def fails_once(self: Speaker, rows: Any, *rest: Any) -> Any:
        if len(rows) > 1 and not calls and all(len(row.tokens) > 3 for row in rows):
            calls.append(len(rows))
            raise RuntimeError("out of memory, once")
        return scores(self, rows, *rest)

    monkeypatch.setattr(Speaker, "_scores", fails_once)
    got = asyncio.run(asked_together(server.url, bodies))
    assert calls
    for one, other in zip(expected, got, strict=True):
        assert one.choices[0].text == other.choices[0].text
        assert one.usage == other.usage
        if one.choices[0].logprobs is not None:
            assert one.choices[0].logprobs.tokens == other.choices[0].logprobs.tokens


@pytest.mark.parametrize("at", [2, 6])
def test_an_answer_that_cannot_be_decoded_fails_alone_even_at_its_end(
    server: Running, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    good = {**GREEDY, "prompt": WORDS, "max_tokens": 20}
    expected = asyncio.run(asked_together(server.url, [good]))[0].choices[0].text
    decode_ = TokenText._decode

    def poisoned(self: TokenText, start: int) -> str:
        if self.tokenizer.poisoned is self and self.n_tokens >= at:
            raise IndexError("piece id is out of range.")
        return decode_(self, start)

    first = TokenText.push

    def marks(self: TokenText, token: int) -> str:
        if not self._ids and not hasattr(self.tokenizer, "poisoned"):
            self.tokenizer.poisoned = self
        return first(self, token)

    monkeypatch.setattr(TokenText, "_decode", poisoned)
    monkeypatch.setattr(TokenText, "push", marks)

    async def both() -> list[Any]:
        async with server.async_client() as client:
            bad = asyncio.create_task(
                client.completions.create(
                    **good | {"max_tokens": 6}, extra_body={"ignore_eos": True}
                )
            )
            while not hasattr(server.service.loaded.tokenizer, "poisoned"):  # it has begun
                await asyncio.sleep(0.001)
            return await asyncio.gather(
                bad, client.completions.create(**good), return_exceptions=True
            )

    try:
        bad, other = asyncio.run(both())
    finally:
        del server.service.loaded.tokenizer.poisoned
    assert isinstance(bad, openai.InternalServerError)
    assert other.choices[0].text == expected
    assert server.health()["status"] == "ok"


def test_a_press_that_raises_fails_its_request_only() -> None:
    target = "press.method._target_=tests.test_engine.MoodyPress"
    with serving("model=tiny_recall", "press=knorm", target, "budget=0.5") as server:

        async def both() -> list[Any]:
            async with server.async_client() as client:
                return await asyncio.gather(
                    *(
                        client.completions.create(**GREEDY, prompt=[5] * n, max_tokens=9)
                        for n in (300, 700, 400)
                    ),
                    return_exceptions=True,
                )

        short, long, other = asyncio.run(both())
    assert short.choices
    assert other.choices
    assert isinstance(long, openai.UnprocessableEntityError)
    assert "press=knorm cannot compress this prompt: CUDA out of memory (pretended)" in long.message


def test_a_press_that_keeps_more_than_it_says_is_found_out() -> None:
    target = "press.method._target_=tests.test_engine.HalfHeartedPress"
    with serving("model=tiny_recall", "press=knorm", target, "budget=0.5") as server:
        answer = post(server.url, {**GREEDY, "prompt": WORDS})
    assert answer.status_code == 422
    assert error_of(answer)["code"] == "budget_contradicted"
