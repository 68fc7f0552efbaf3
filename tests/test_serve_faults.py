"""kvx.serve when things go wrong: clients that leave, a full queue, failing requests, bad input."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from kvx.engines.kvpress import decode
from tests.serving import Running, serving
from tests.test_serve import GREEDY, WORDS, asked_together

LONG = {**GREEDY, "prompt": WORDS, "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = ["serve.max_request_bytes=65536", "decoding.max_new_tokens=16"]
    with serving("model=tiny_recall", *limits) as running:
        yield running


def post(url: str, body: Any, path: str = "/completions", **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(url + path, content=json.dumps(body), headers=headers, timeout=60)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The API's error object, whole."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# clients that leave


def test_a_client_that_leaves_its_stream_frees_its_row(server: Running) -> None:
    with httpx.stream("POST", f"{server.url}/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.health()["running"] == 1
    left = time.monotonic()
    server.wait_until_idle()
    assert time.monotonic() - left < 5  # 4,000 tokens take longer
    text = httpx.get(f"{server.root}/metrics").text
    assert "kvx_disconnects_total 0.0" not in text


def test_a_client_that_does_not_wait_for_its_answer_frees_its_row(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/completions", json=LONG, timeout=0.5)
    left = time.monotonic()
    server.wait_until_idle()
    assert time.monotonic() - left < 5


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
            until = time.monotonic() + 10
            while (state := server.health())["running"] + state["waiting"] < sum(expected):
                assert time.monotonic() < until
                time.sleep(0.01)
            assert (state["running"], state["waiting"]) == expected
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


# bad input

WRONG = {
    "no model": ({"prompt": "x"}, 400, "model"),
    "no prompt": ({"model": "tiny_recall"}, 400, "prompt"),
    "another model": ({"model": "gpt-9", "prompt": "x"}, 404, "model"),
    "an unknown field": ({"prompt": "x", "tools": []}, 400, "tools"),
    "an unknown kvx field": ({"prompt": "x", "kvx": {"ratio": 0.5}}, 400, "kvx.ratio"),
    "an unknown press": ({"prompt": "x", "kvx": {"press": "os.system"}}, 400, "kvx.press"),
    "a press that masks": ({"prompt": "x", "kvx": {"press": "adakv"}}, 400, "kvx.press"),
    "no budget at all": ({"prompt": "x", "kvx": {"budget": 0}}, 400, "kvx.budget"),
    "half of a full cache": (
        {"prompt": "x", "kvx": {"press": "none", "budget": 0.5}}, 400, "kvx.budget",
    ),
    "two budgets": ({"prompt": "x", "kvx": {"budget": 0.5, "budget_tokens": 9}}, 400, "kvx"),
    "a split outside": ({"prompt": "x", "kvx": {"compress_chars": 9}}, 400, "kvx.compress_chars"),
    "too short for the press": (
        {"prompt": "x", "kvx": {"press": "snapkv", "budget": 0.5}}, 400, "kvx.press",
    ),
    "two answers": ({"prompt": "x", "n": 2}, 400, "n"),
    "two prompts": ({"prompt": ["x", "y"]}, 400, "prompt"),
    "an empty list of tokens": ({"prompt": []}, 400, None),
    "a token that is none": ({"prompt": [5, 99999]}, 400, None),
    "half a surrogate pair": ({"prompt": "\ud800"}, 400, None),
    "a temperature in words": ({"prompt": "x", "temperature": "hot"}, 400, "temperature"),
    "a negative temperature": ({"prompt": "x", "temperature": -1}, 400, "temperature"),
    "a huge seed": ({"prompt": "x", "seed": 10**30}, 400, "seed"),
    "no tokens": ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
    "more tokens than fit": ({"prompt": "x", "max_tokens": 10**7}, 400, "prompt"),
    "five stop strings": ({"prompt": "x", "stop": list("abcde")}, 400, "stop"),
    "an empty stop string": ({"prompt": "x", "stop": ""}, 400, "stop"),
    "options of no stream": ({"prompt": "x", "stream_options": {}}, 400, None),
    "logprobs as in chat": ({"prompt": "x", "logprobs": True}, 400, "logprobs"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_refused_by_name(server: Running, what: str) -> None:
    body, status, param = WRONG[what]
    if what != "no model":
        body = {"model": "tiny_recall"} | body
    answer = post(server.url, body)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["param"] == param


def test_a_prompt_that_is_too_long_is_the_failure_every_client_knows(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(**GREEDY, prompt=[5] * 9000)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length" in caught.value.message


RAW: list[tuple[dict[str, str], bytes, int]] = [
    ({"content-type": "application/json"}, b"{", 400),
    ({"content-type": "application/json"}, b"", 400),
    ({"content-type": "application/json"}, b"[1]", 400),
    ({"content-type": "application/json"}, b"\xff\xfe", 400),
    ({"content-type": "application/json"}, b"[" * 30_000, 400),
    ({"content-type": "application/json"}, b"1" * 5000, 400),
    ({"content-type": "application/json"}, b'{"model": "tiny_recall", "prompt": NaN}', 400),
    ({"content-type": "text/plain"}, b'{"model": "tiny_recall", "prompt": "x"}', 400),
    ({"content-type": "application/json"}, b'"' + b"x" * 70_000 + b'"', 413),
]


@pytest.mark.parametrize(("headers", "content", "status"), RAW)
def test_what_is_no_request_is_refused(
    server: Running, headers: dict[str, str], content: bytes, status: int
) -> None:
    answer = httpx.post(f"{server.url}/completions", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_body_without_a_declared_length_is_limited_too(server: Running) -> None:
    answer = httpx.post(f"{server.url}/completions", content=iter([b"x" * 40_000] * 3))
    assert answer.status_code == 413


def test_other_paths_and_methods_get_the_error_object(server: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405),
        ("GET", "/v1/embeddings", 404), ("GET", "/v1/models/other", 404),
        ("GET", "/../../etc/passwd", 404),
    ):  # fmt: skip
        answer = httpx.request(method, server.root + path)
        assert answer.status_code == status
        error_of(answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
text_parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)}))


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 11).flatmap(lambda i: bad if i == 0 else good)


kvx_objects = st.fixed_dictionaries(
    {},
    optional={
        "press": st.sampled_from(["snapkv", "none", "random", "compactor", "lagkv", "chunkkv"]),
        "budget": mostly(st.sampled_from([0.01, 0.2, 0.5, 1.0]), st.floats(-0.5, 1.5)),
        "compress_chars": mostly(st.integers(1, 60), st.integers(-1, 10**9)),
    },
)
messages = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["system", "user", "assistant"]), st.just("tool")),
        "content": st.just(WORDS) | st.text(max_size=30) | text_parts,
    }
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("tiny_recall"),
    "prompt": mostly(
        st.text(max_size=60)
        | st.lists(st.integers(0, 319), min_size=1, max_size=100)
        | st.sampled_from([WORDS, [WORDS], "\x00", "<bos>", "w1 " * 90]),
        st.lists(st.text(max_size=9)) | st.lists(st.integers(-1, 400)) | st.sampled_from(["", " "]),
    ),
    "messages": mostly(st.lists(messages, min_size=1, max_size=3), st.just([])),
    "max_tokens": mostly(st.integers(1, 12), st.sampled_from([-1, 0, 10**6, 2**63])),
    "temperature": mostly(st.floats(0, 2) | st.just(1e-300), st.floats()),
    "top_p": mostly(st.floats(0, 1), st.floats()),
    "top_k": mostly(st.integers(0, 400), st.integers()),
    "seed": mostly(st.integers(-(2**63), 2**63 - 1), st.integers()),
    "n": mostly(st.just(1), st.integers()),
    "stream": st.booleans(),
    "stop": mostly(
        st.text(min_size=1, max_size=4) | st.lists(st.text(min_size=1, max_size=3), max_size=4),
        st.lists(st.text(max_size=3), max_size=6),
    ),
    "logprobs": st.booleans() | st.integers(-1, 25),
    "echo": st.booleans(),
    "ignore_eos": st.booleans(),
    "kvx": kvx_objects,
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A request that is right or nearly so: mostly plausible fields, sometimes anything."""
    path, needed = draw(
        st.sampled_from([("/completions", "prompt"), ("/chat/completions", "messages")])
    )
    others = sorted(set(PLAUSIBLE) - {"model", "prompt", "messages"})
    names = [needed, *draw(st.lists(st.sampled_from(others), max_size=4, unique=True))]
    body = {"model": "tiny_recall"} | {name: draw(PLAUSIBLE[name]) for name in names}
    if draw(st.integers(0, 7)) == 0:
        name = draw(st.sampled_from([*names, "model"]) | st.text(max_size=9))
        body[name] = draw(json_values)
    return path, body


def test_no_request_makes_the_server_fail(server: Running) -> None:
    answered: dict[int, int] = {}

    @settings(
        max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(bodies())
    def holds(request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        answer = connection.post(server.url + path, content=content, headers=headers)
        answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 404, 422), (body, answer.text)
        if answer.status_code != 200:
            error_of(answer)
        elif body.get("stream"):
            assert answer.text.endswith("data: [DONE]\n\n")
            assert '"kvx": {' in answer.text
        else:
            kind = Completion if path == "/completions" else ChatCompletion
            parsed = kind.model_validate(answer.json())
            assert parsed.choices[0].finish_reason in ("stop", "length")
            assert (parsed.usage.completion_tokens if parsed.usage else 0) >= 1
            assert answer.json()["kvx"]["kv"]["entries_physical"] >= 1

    with httpx.Client(timeout=60) as connection:
        holds()
    assert answered[200] > 50
    assert answered[400] > 50
    assert server.health()["running"] == server.health()["waiting"] == 0


# keys, ports, signals


def test_a_key_is_asked_for_everything_but_health() -> None:
    with serving("model=tiny_recall", api_key="sésame") as server:
        bearer = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{server.url}/models", headers=bearer).status_code == 200  # type: ignore[arg-type]
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": ""}):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nowhere"):
                answer = httpx.get(server.root + path, headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
                assert "sésame" not in answer.text
        assert httpx.get(f"{server.root}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()


def kvx_serve(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvx.serve", *arguments], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = kvx_serve("model=tiny_recall", f"serve.port={port}", cwd=tmp_path)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith(f"kvx serve: serve.host=127.0.0.1 serve.port={port}: the port is in use")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve.host=0.0.0.0"], "it needs an API key"),
        (["press=adakv", "budget=0.5"], "hides entries"),
        (["budget=0.5"], "press=none: keeps the full cache"),
        (["serve.queue=0"], "serve.queue=0: must be at least 1"),
        (["-m", "press=snapkv,streaming", "budget=0.5"], "leave the sweep (-m) away"),
    ],
)
def test_a_server_that_cannot_be_is_one_line(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    arguments = ["model=tiny_recall", "serve.port=0", *arguments]
    process = kvx_serve(*arguments, cwd=tmp_path, KVX_API_KEY="")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_short_answers_end_and_tells_long_ones(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = kvx_serve(
        "model=tiny_recall", "serve.port=0", "serve.drain_s=3", "serve.max_rows=2", cwd=tmp_path,
        KVX_API_KEY="k",
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while "http://" not in (line := process.stderr.readline()):
            assert line, "ended early"
        url = line[line.index("http://") :].strip()
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        more = {"extra_body": {"ignore_eos": True}, "stream": True}
        short = client.completions.create(**GREEDY, prompt=WORDS, max_tokens=150, **more)
        long = client.completions.create(**GREEDY, prompt=WORDS, max_tokens=7000, **more)
        next(iter(short))
        next(iter(long))
        process.send_signal(number)
        text = [c.choices[0] for c in short]
        assert text[-1].finish_reason == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            list(long)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err.splitlines()[-1] == "serve: stopped"
    assert "Traceback" not in err
