"""Servers that are not kvx's: reasoning, stop strings, odd parts, finish reasons, missing paths."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from conftest import Kvx, Outcome, request_rows
from fault_server import KEY, FaultServer, serving

from kvx.config.engine import Api
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.finish import SAID, meaning
from kvx.engines.openai.reply import Parser, Reply

CHAT, TEXT = "engine.api=chat", "engine.api=completions"
STEP_S = 0.05


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def small(server: FaultServer, *overrides: str) -> list[str]:
    return [
        "engine=openai", f"engine.base_url={server.url}", "experiment_name=e",
        "dataset.binning.n_bins=1", "dataset.sampling.n_per_bin=2", "engine.max_retries=0",
        "dataset.source.n_examples=20", "dataset.source.max_words=400", *overrides,
    ]  # fmt: skip


def run(kvx: Kvx, server: FaultServer, *overrides: str) -> pd.DataFrame:
    outcome = kvx("run", *small(server, *overrides))
    assert outcome.code == 0, outcome.err
    return pq.read_table(next(Path().glob("outputs/runs/e/points/*/requests.parquet"))).to_pandas()


def scored(kvx: Kvx, table: str, *overrides: str) -> pd.DataFrame:
    outcome = kvx("score", "experiment_name=e", *overrides)
    assert outcome.code == 0, outcome.err
    return pq.read_table(next(Path().glob(f"outputs/runs/e/points/*/{table}.parquet"))).to_pandas()


def whole(text: str, reason: str = "stop", **message: Any) -> list[tuple[float, dict[str, Any]]]:
    return [(0.0, {"index": 0, "finish_reason": reason, "text": text,
                   "message": {"content": text, **message}})]  # fmt: skip


def parsed(*choices: dict[str, Any], api: Api = Api.completions, **usage: Any) -> Reply:
    parser = Parser(api)
    for at, choice in enumerate(choices, start=1):
        parser.feed({"choices": [choice], "usage": usage or None}, at / 10)
    return parser.finish(1.0, streamed=True)


# reasoning


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_times_are_over_all_tokens_and_reasoning_is_told_apart(kvx: Kvx, name: str) -> None:
    thoughts = [(STEP_S, {"delta": {name: f"t{i} "}}) for i in range(6)]
    answer = [(STEP_S, {"delta": {"content": "Par"}}), (STEP_S, {"delta": {"content": "is"}})]
    end = [(0.0, {"delta": {}, "finish_reason": "stop"})]
    details = {"completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 6}}
    server = FaultServer(choices=lambda body: thoughts + answer + end, usage=details)
    with serving(server):
        found = run(kvx, server, CHAT, "engine.timeouts.first_token_s=0.2")
    assert set(found["text"]) == {"Paris"}
    assert set(found["reasoning"]) == {"t0 t1 t2 t3 t4 t5 "}
    assert set(found["output_tokens"]) == {8}
    assert set(found["reasoning_tokens"]) == {6}
    # a machine that does other things may be late, never early
    assert (found["tpot_s"] > 0.9 * STEP_S).all()
    assert (found["ttft_s"] < found["latency_s"] - 5 * STEP_S).all()
    assert set(scored(kvx, "scores")["reasoning_tokens"]) == {6}


def test_reasoning_that_is_not_streamed_is_told_apart_too(kvx: Kvx) -> None:
    server = FaultServer(choices=lambda body: whole("Paris", reasoning_content="two words"))
    with serving(server):
        found = run(kvx, server, CHAT, "engine.stream=false")
    assert set(found["text"]) == {"Paris"}
    assert set(found["reasoning"]) == {"two words"}
    assert (found["reasoning_tokens"] > 0).all()  # counted here: the server did not say


def test_tags_are_no_part_of_the_answer_unless_they_are_kept(kvx: Kvx) -> None:
    server = FaultServer(choices=lambda body: whole("<think>\nI cannot help with that</think>x y"))
    with serving(server):
        found = run(kvx, server, TEXT, "engine.stream=false")
    assert set(found["text"]) == {"<think>\nI cannot help with that</think>x y"}
    assert (found["reasoning_tokens"] > 0).all()
    assert set(scored(kvx, "scores")["prediction_normalized"]) == {"x y"}
    assert len(scored(kvx, "failures")) == 0
    kept = scored(kvx, "scores", "score.reasoning=keep")
    assert kept["prediction_normalized"].str.startswith("think i cannot").all()


@pytest.mark.parametrize(("reason", "kind"), [("length", "TRUNCATED"), ("stop", "EMPTY_OUTPUT")])
@pytest.mark.parametrize("beside", [True, False])
def test_an_answer_that_is_all_reasoning_is_a_failure_that_says_so(
    kvx: Kvx, reason: str, kind: str, beside: bool
) -> None:
    def choices(body: Any) -> list[tuple[float, dict[str, Any]]]:
        if beside:
            return whole("", reason, reasoning="so far")
        return whole("<think>so far", reason)

    server = FaultServer(choices=choices)
    with serving(server):
        run(kvx, server, CHAT, "engine.stream=false")
    found = scored(kvx, "failures")
    assert set(found["error_type"]) == {kind}
    assert set(found["message"]) == {"only reasoning, no answer"}
    assert set(scored(kvx, "scores")["score"]) == {0.0}


# stop strings


def test_a_server_is_told_where_to_stop_and_cut_where_it_does_not(kvx: Kvx) -> None:
    words = [(0.0, {"text": text}) for text in ("18\n#### 18\n", "\nQues", "tion: next ", "#### 3")]
    end = [(0.0, {"text": "", "finish_reason": "length"})]
    server = FaultServer(choices=lambda body: words + end, usage={"completion_tokens": 9})
    with serving(server):
        outcome = kvx("run", *small(server, r'decoding.until=["\nQuestion:"]'))
    assert outcome.code == 0, outcome.err
    found = request_rows(Path("outputs/runs/e"))
    assert {tuple(body["stop"]) for body in server.bodies} == {("\nQuestion:",)}
    assert set(found["text"]) == {"18\n#### 18\n"}
    assert set(found["finish_reason"]) == {"stop"}
    assert outcome.err.count("ignores the stop strings") == 1


def test_more_stop_strings_than_a_server_takes_are_all_kept(kvx: Kvx) -> None:
    server = FaultServer(choices=lambda body: whole("a e b"))
    with serving(server):
        found = run(kvx, server, "engine.stream=false", "decoding.until=[q,w,z,t,e]")
    assert [len(body["stop"]) for body in server.bodies] == [4, 4]
    assert set(found["text"]) == {"a "}


# odd parts


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None]},
        {"tokens": ["a"], "token_logprobs": [None]},
        {"tokens": ["a", "b"], "token_logprobs": [-0.1]},
        {"tokens": ["a"], "token_logprobs": ["x"], "top_logprobs": [{"a": "y"}]},
        {"tokens": None, "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1}]},
        {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": None},
        {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": None}]},
        {"tokens": 5, "token_logprobs": {}, "top_logprobs": "?"},
        {"content": None}, {"content": [None]}, {"content": [{"token": None, "logprob": None}]},
        {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": None}]},
        {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": [None, {"logprob": None}]}]},
        [], "x", 5, {},
    ],
)  # fmt: skip
@pytest.mark.parametrize("api", list(Api))
def test_odd_logprobs_cost_the_trace_and_not_the_answer(api: Api, logprobs: Any) -> None:
    choice = {"text": "Paris", "delta": {"content": "Paris"}, "logprobs": logprobs}
    reply = parsed({**choice, "finish_reason": "stop"}, api=api)
    assert reply.text == "Paris"
    if reply.trace is not None:
        assert all(map(math.isfinite, reply.trace.logprob))


@pytest.mark.parametrize(
    "usage",
    [
        None, [], {"completion_tokens": None}, {"completion_tokens": "3"},
        {"completion_tokens": 3, "completion_tokens_details": None},
        {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": None}},
        {"completion_tokens": 3, "completion_tokens_details": "none"},
    ],
)  # fmt: skip
def test_odd_usage_costs_the_count_and_not_the_answer(usage: Any) -> None:
    parser = Parser(Api.chat)
    parser.feed({"choices": [{"index": None, "delta": {"content": "Paris"}}], "usage": usage}, 0.1)
    parser.feed({"choices": [{"delta": None, "finish_reason": "stop"}]}, 0.2)
    reply = parser.finish(0.3, streamed=True)
    assert (reply.text, reply.reasoning_tokens) == ("Paris", None)
    assert reply.output_tokens in (None, 3)


def test_a_stream_may_end_with_usage_and_no_choices() -> None:
    for last in ({"usage": {"completion_tokens": 3.0}}, {"choices": None, "usage": {}}):
        parser = Parser(Api.completions)
        parser.feed({"choices": [None, {"text": "Paris", "finish_reason": "stop"}]}, 0.1)
        parser.feed(last, 0.2)
        reply = parser.finish(0.3, streamed=True)
        assert (reply.text, reply.output_tokens) in (("Paris", 3), ("Paris", None))


def test_log_probs_of_the_answer_alone_are_no_trace_of_all_tokens() -> None:
    scored = {"content": [{"token": "P", "logprob": -0.1, "top_logprobs": [{"logprob": -0.1}]}]}
    answer = {"delta": {"content": "P"}, "logprobs": scored, "finish_reason": "stop"}
    thought = {"delta": {"reasoning": "so"}}
    assert parsed(answer, api=Api.chat, completion_tokens=2).trace is not None
    assert parsed(thought, answer, api=Api.chat, completion_tokens=9).trace is None


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Paris"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
         {"type": "text", "text": "Paris"}],
        ["Par", {"type": "text", "text": "is"}],
    ],
)  # fmt: skip
def test_content_in_parts_is_the_text_in_them(content: Any) -> None:
    reply = parsed({"delta": {"content": content}, "finish_reason": "stop"}, api=Api.chat)
    assert reply.text == "Paris"
    assert reply.reasoning in (None, "so")


def test_reasoning_that_a_server_does_not_count_is_added() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 90}}
    choice = {"delta": {"content": "Paris"}, "finish_reason": "stop"}
    apart = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 102, **details}
    assert parsed(choice, api=Api.chat, **apart).output_tokens == 92
    among = {"prompt_tokens": 10, "completion_tokens": 92, "total_tokens": 102, **details}
    assert parsed(choice, api=Api.chat, **among).output_tokens == 92


# finish reasons


@pytest.mark.parametrize(
    ("said", "means"),
    [(word, means) for means, words in SAID.items() for word in words]
    + [
        ("MAX_TOKENS", "length"), ("FINISH_REASON_MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("content-filter", "content_filter"), ("eosFound", "stop"), ("maxLength", "length"),
        ({"type": "length", "length": 64}, "length"), ({"type": "stop", "matched": 2}, "stop"),
        ("", None), ("null", None), (None, None), (5, None), ("Something New", "Something New"),
    ],
)  # fmt: skip
def test_finish_reasons_in_one_vocabulary(said: Any, means: str | None) -> None:
    assert meaning(said) == means


def test_an_answer_that_the_server_broke_off_is_a_fault() -> None:
    with pytest.raises(Fault, match="broke the answer off"):
        parsed({"text": "Par", "finish_reason": "abort"})


def test_a_repetition_that_the_server_saw_is_a_loop(kvx: Kvx) -> None:
    server = FaultServer(choices=lambda body: whole("la la la la", "repetition"))
    with serving(server):
        found = run(kvx, server, "engine.stream=false")
    assert set(found["finish_reason"]) == {"repetition"}
    seen = scored(kvx, "catastrophes")
    assert seen["looping"].all()
    assert set(seen["loop_rule"]) == {"server"}
    assert not seen["cap_reached"].any()
    assert len(scored(kvx, "failures")) == 0


def test_an_answer_that_came_whole_need_not_say_why_it_ended(kvx: Kvx) -> None:
    server = FaultServer(choices=lambda body: [(0.0, {"text": "Paris", "finish_reason": None})])
    with serving(server):
        assert set(run(kvx, server, "engine.stream=false")["text"]) == {"Paris"}
        streamed = kvx("run", *small(server, "experiment_name=s"))
    assert streamed.code == 0
    assert set(request_rows(Path("outputs/runs/s"))["text"]) == {"Paris"}


# paths


def refused(kvx: Kvx, server: FaultServer, *overrides: str) -> Outcome:
    outcome = kvx("run", *small(server, *overrides))
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert not server.bodies
    return outcome


def test_a_server_without_completions_is_known_before_the_start(kvx: Kvx) -> None:
    with serving(FaultServer(paths=("/chat/completions",))) as server:
        err = refused(kvx, server).err
    assert f"engine.api=completions: {server.url} has no /completions; set engine.api=chat" in err


def test_and_so_is_one_without_chat(kvx: Kvx) -> None:
    with serving(FaultServer(paths=("/completions",))) as server:
        err = refused(kvx, server, CHAT).err
    assert "has no /chat/completions; set engine.api=completions" in err


def test_a_server_that_says_wrong_path_with_status_200(kvx: Kvx) -> None:
    def lm_studio() -> web.Response:
        return web.json_response({"error": "Unexpected endpoint or method. (POST /v1/completions)"})

    with serving(FaultServer(paths=("/chat/completions",), wrong_path=lm_studio)) as server:
        assert "set engine.api=chat" in refused(kvx, server).err


def test_a_server_that_says_404_to_a_wrong_method_has_the_path(kvx: Kvx) -> None:
    """llama.cpp and Ollama do: only a request tells."""
    server = FaultServer(wrong_path=lambda: web.Response(status=404, text="not found"))
    app = server.app

    def without_405() -> web.Application:
        made = app()
        made.router.add_get("/v1/completions", lambda request: web.Response(status=404))
        return made

    server.app = without_405  # type: ignore[method-assign]
    with serving(server):
        assert kvx("run", *small(server)).code == 0


def test_a_missing_model_is_no_missing_path(kvx: Kvx) -> None:
    with serving(FaultServer(lambda n, body: "wrong_model")) as server:
        outcome = kvx("run", *small(server))
    assert outcome.code == 1
    assert "The model `x` does not exist" in outcome.err
    assert "engine.api" not in outcome.err
    failed = json.dumps(request_rows(Path("outputs/runs/e"))["error_message"].tolist())
    assert "engine.api" not in failed
