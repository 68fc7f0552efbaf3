"""kvx.serve with prompts that are too short for its press: full cache, and the answer says so."""

from collections.abc import Iterator

import pytest

from kvx.cli.command import compose
from kvx.serve.server import shortest_of
from tests.serving import Running, error_of, post, serving

SHORT = " ".join(["the"] * 30)
LONG = " ".join(["the"] * 100)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("press=snapkv", "budget=0.5", "controller=reactive") as running:
        yield running


def ask(server: Running, prompt: str, **more: object) -> dict:  # type: ignore[type-arg]
    body = {"model": "tiny_recall", "prompt": prompt, "max_tokens": 4, "temperature": 0, **more}
    response = post(server.url, body)
    assert response.status_code == 200, response.text
    found: dict = response.json()  # type: ignore[type-arg]
    return found


def test_a_prompt_within_the_window_keeps_its_full_cache_and_says_why(server: Running) -> None:
    short = ask(server, SHORT)
    said, kv = short["kvx"], short["kvx"]["kv"]
    assert said["press"] == "snapkv"
    assert said["budget"] == 1.0
    assert kv["entries_effective"] == kv["entries_nominal"]
    assert kv["bytes_physical"] == kv["bytes_full"]
    assert said["note"].startswith("press=snapkv needs more than 64 tokens to compress, this")
    assert said["note"].endswith("it keeps its full cache")
    full = ask(server, SHORT, kvx={"press": "none"})
    assert short["choices"][0]["text"] == full["choices"][0]["text"]


def test_a_chat_within_the_window_is_answered(server: Running) -> None:
    body = {
        "model": "tiny_recall", "max_tokens": 3, "messages": [{"role": "user", "content": "the"}],
    }  # fmt: skip
    response = post(server.url, body, "/chat/completions")
    assert response.status_code == 200, response.text
    assert response.json()["kvx"]["budget"] == 1.0


def test_a_longer_prompt_is_compressed_and_has_no_note(server: Running) -> None:
    said = ask(server, LONG)["kvx"]
    assert said["budget"] == 0.5
    assert "note" not in said


@pytest.mark.parametrize("asked", [{"budget": 0.5}, {"press": "snapkv"}, {"budget_tokens": 9}])
def test_a_request_that_names_a_budget_is_told_that_it_cannot_have_it(
    server: Running, asked: dict[str, object]
) -> None:
    body = {"model": "tiny_recall", "prompt": SHORT, "kvx": asked}
    error = error_of(post(server.url, body))
    assert error["code"] == "prompt_too_short"
    assert "needs more than 64 tokens to compress" in error["message"]


def test_a_press_that_keeps_chunks_says_how_many_entries_it_keeps(server: Running) -> None:
    said = ask(server, LONG, kvx={"press": "chunkkv", "budget": 0.9})["kvx"]
    kept = said["kv"]["entries_effective"]
    assert abs(kept - said["kv"]["entries_nominal"]) > 1
    assert said["note"].endswith(f"keeps {kept:g} by its method")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["press=snapkv", "budget=0.5"], "press=snapkv compresses prompts of more than 64 tokens"),
        (["press=snapkv"], None),
        (["press=knorm", "budget=0.5"], None),
    ],
)
def test_the_server_says_at_its_start_how_long_prompts_must_be(
    arguments: list[str], said: str | None
) -> None:
    found = shortest_of(compose(*arguments, stage="serve"))
    assert (found is None) == (said is None)
    assert (found or "").startswith(said or "")
