"""kvx.serve and bad input: the API's error object and the right status, never a 500."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.serving import Running, error_of, post, serving
from tests.test_serve import GREEDY, WORDS
from tests.waiting import HANGS_S


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = ["serve.max_request_bytes=65536", "decoding.max_new_tokens=16"]
    with serving("model=tiny_recall", *limits) as running:
        yield running


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


KNOWN = "press, budget, budget_tokens, compress_chars, controller"
SAID: list[tuple[Any, str]] = [
    ({"kvx": {"budgt": 0.5}}, f"kvx.budgt: unknown field; there are {KNOWN}"),
    (
        {"kvx": {"budget": 0.5, "budget_tokens": 9}},
        "kvx: give budget or budget_tokens, not both",
    ),
    ({"kvx": 0.5}, 'kvx: must be an object such as {"press": "snapkv", "budget": 0.5}'),
    ({"tools": []}, "tools: not understood by this server; leave it out"),
    ({"stream": True, "stream_options": 3}, "stream_options: must be an object"),
    (
        {"stream": True, "stream_options": {"usage": True}},
        "stream_options: 'usage' is not understood by this server; leave it out",
    ),
    ({"stream_options": {}}, "stream_options is for stream=true"),
    ([1], "the body must be a JSON object"),
]


@pytest.mark.parametrize(("body", "said"), SAID)
def test_what_is_wrong_is_said_in_words_of_the_api(server: Running, body: Any, said: str) -> None:
    if isinstance(body, dict):
        body = {"model": "tiny_recall", "prompt": "x"} | body
    assert error_of(post(server.url, body))["message"] == said


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
    answer = httpx.post(
        f"{server.url}/completions", content=content, headers=headers, timeout=HANGS_S
    )
    assert answer.status_code == status, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_body_without_a_declared_length_is_limited_too(server: Running) -> None:
    answer = httpx.post(
        f"{server.url}/completions", content=iter([b"x" * 40_000] * 3), timeout=HANGS_S
    )
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
        max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(bodies())
    def holds(request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        answer = connection.post(
            server.url + path, content=content, headers=headers, timeout=HANGS_S
        )
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

    with httpx.Client(timeout=HANGS_S) as connection:
        holds()
    assert answered[200] > 50
    assert answered[400] > 50
    assert server.health()["running"] == server.health()["waiting"] == 0
