"""kvx.serve with a controller: the engine's answers, streams that do not contradict it."""

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import Kvx, request_rows

from kvx.cli.command import compose, run_stage
from kvx.config.engine import Api
from kvx.config.press_choices import PressNeed
from kvx.engines.kvpress import decode
from kvx.engines.kvpress.guarded import LiveGuard
from kvx.engines.openai.reply import Parser
from kvx.points import Point
from kvx.serve.api_errors import ApiError
from kvx.serve.guarding import with_controller
from kvx.serve.service import _no_manifest
from tests.serving import Running, error_of, post, serving
from tests.test_engine import answers, recall
from tests.test_serve import GREEDY, WORDS, asked_of, asked_together
from tests.waiting import HANGS_S, wait_until

KNORM = ("model=tiny_recall", "press=knorm", "budget=0.25")
CHANCE = (
    *KNORM, "controller=random", "controller.rate=0.08", "controller.rollback_tokens=8",
    "controller.cooldown=4", "controller.j=2", "guard.max_interventions=12",
)  # fmt: skip
SAMPLED = {
    "model": "tiny_recall", "prompt": WORDS, "temperature": 1.5, "max_tokens": 60,
    "ignore_eos": True, "logprobs": 2,
}  # fmt: skip


def whole(server: Running, body: dict[str, Any], path: str = "/completions") -> dict[str, Any]:
    answer = post(server.url, body, path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(
    server: Running, body: dict[str, Any], path: str = "/completions"
) -> list[dict[str, Any]]:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", server.url + path, json=body, timeout=HANGS_S) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def guard_of(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["kvx"]["guard"]
    return found


def text_of(chunks: Sequence[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["text"] for c in chunks if c["choices"])


def done(guard: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What was done, without how long it took and what batching may round."""
    names = ("token", "mode", "action", "reason", "budget_before", "budget_after", "n_kept",
             "dropped_tokens")  # fmt: skip
    return [tuple(event[name] for name in names) for event in guard["events"]]


def text_of_tokens(server: Running, tokens: Sequence[str]) -> str:
    tokenizer = server.service.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    return str(tokenizer.decode(ids, skip_special_tokens=True))


# the same as engine=kvpress


@pytest.mark.parametrize(
    "controller",
    [
        ("controller=balanced", "controller.tau_high=0.1"),
        ("controller=always_safe", "guard.shadow=recompute"),
        ("controller=reactive", "controller.prefill_gate_nats=0.05"),
    ],
)
def test_a_controller_serves_what_engine_kvpress_answers_with_it(
    tmp_path: Path, controller: tuple[str, ...]
) -> None:
    work = [
        recall(tmp_path, point, "budget=0.2", *controller, n=3)
        for point in ("press=knorm", "press=snapkv", "press=observed_attention")
    ]
    expected = []
    for item in work:
        examples = {e.example_id: e for _, e in item.requests}
        expected += [(r, examples[r.request.entry.example_id]) for r in answers(item)]
    acted = 0
    with serving("model=tiny_recall", *controller) as server:
        for chat in (False, True):
            bodies = [asked_of(response, example, chat) for response, example in expected]
            got = asyncio.run(asked_together(server.url, bodies))
            for (response, _), answer in zip(expected, got, strict=True):
                choice = answer.choices[0]
                assert (choice.message.content if chat else choice.text) == response.text
                assert answer.usage.completion_tokens == len(response.token_ids or ())
                proof = answer.model_extra["kvx"]
                assert response.kv is not None
                assert response.guard is not None
                assert proof["kv"] == dataclasses.asdict(response.kv)
                told, own = proof["guard"], response.guard
                assert (told["mean_budget"], told["decoded_tokens"], told["bytes_host"]) == (
                    own.mean_budget, own.decoded_tokens, own.bytes_host,
                )  # fmt: skip
                assert done(told) == [
                    (e.token, e.mode, e.action, e.reason, e.budget_before, e.budget_after,
                     e.n_kept, len(e.dropped_ids)) for e in own.events
                ]  # fmt: skip
                acted += told["interventions"]
    assert acted


def test_the_harness_measures_its_points_without_the_controller_of_a_guarding_server(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    sweep = ("-m", "press=knorm", "budget=0.5,0.2", "dataset.sampling.n_per_bin=2",
             "decoding.max_new_tokens=12")  # fmt: skip
    outcome = kvx("run", *sweep, "experiment_name=here")
    assert outcome.code == 0, outcome.err
    with serving("model=tiny_recall", "controller=always_safe") as server:
        outcome = kvx(
            "run", *sweep, "experiment_name=there", "engine=openai",
            f"engine.base_url={server.url}", "engine.stream=true",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
    here, there = (
        request_rows(Path("outputs/runs") / name).sort_values(["point_id", "example_id"])
        for name in ("here", "there")
    )
    assert there["budget_verified"].all()
    assert there["guard_events"].isna().all()
    for column in ("text", "kv_entries_nominal", "kv_entries_effective", "kv_bytes_peak"):
        assert here[column].tolist() == there[column].tolist()


# who gets a controller


def test_only_what_is_compressed_has_a_controller_and_a_request_may_do_without() -> None:
    with serving(*KNORM, "controller=always_safe") as server:

        def guarded(**kvx: Any) -> bool:
            return "guard" in whole(server, {**GREEDY, "prompt": WORDS, "kvx": kvx})["kvx"]

        assert guarded()
        assert guarded(controller="always_safe")
        assert guarded(press="streaming", budget=0.5)
        assert not guarded(controller="none")
        assert not guarded(budget=1.0)
        assert not guarded(press="none")
        assert not guarded(budget_tokens=5000)
        two = whole(server, {**GREEDY, "prompt": [5, 6]})["kvx"]  # one token to compress, and kept
        assert two["kv"]["bytes_effective"] == two["kv"]["bytes_full"]
        assert "guard" not in two
        refused = post(server.url, {**GREEDY, "prompt": WORDS, "kvx": {"controller": "balanced"}})
        assert refused.status_code == 400
        error = error_of(refused)
        assert (error["param"], error["code"]) == ("kvx.controller", "controller_not_served")
        assert "always_safe or none" in error["message"]
        plain = {**GREEDY, "prompt": WORDS, "max_tokens": 30, "ignore_eos": True}
        full = whole(server, {**plain, "kvx": {"press": "none"}})
        safe = whole(server, plain)
        assert safe["choices"] == full["choices"]
        assert guard_of(safe)["mean_budget"] == 1.0
        assert [event["action"] for event in guard_of(safe)["events"]] == ["raise"]
        served = server.get("/v1/models").json()["data"][0]["kvx"]
        assert served["controller"] == "always_safe"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["press=kvzip", "budget=0.5", "controller=reactive", "prompt.query_aware=true"],
         "controller=reactive: press=kvzip hides entries and evicts none"),
        (["press=knorm", "press.needs=[changes_forward]", "controller=always_safe"],
         "press=knorm changes the forward pass"),
        (["controller=random"], "controller.rate: needs a value in a live run"),
        (["controller=balanced", "guard.model=/nowhere"], "/nowhere"),
        (["controller=balanced", "guard.ladder=[0.5,0.25]"], "guard.ladder=[0.5,0.25]"),
    ],
)  # fmt: skip
def test_a_controller_that_cannot_act_is_refused_before_the_start(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code = run_stage("serve", ["model=tiny_recall", "serve.port=0", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1), lines
    assert says in lines[0]


def test_a_press_that_no_controller_can_steer_is_refused_with_the_request() -> None:
    config = compose(*KNORM, "controller=always_safe", stage="serve")
    press = replace(config.press, name="other", needs=[PressNeed.changes_forward])
    point = Point(replace(config, press=press), _no_manifest(config), Path())
    with pytest.raises(ApiError) as refused:
        with_controller(point, None, 100)
    assert "press=other changes the forward pass" in refused.value.message
    assert '"controller": "none"' in refused.value.message
    assert not with_controller(point, "none", 100).guarded


# when a step fails


class FailsOnce:
    """The model, but the first step in which every row has so many tokens fails."""

    def __init__(self, n_rows: int, tokens: int) -> None:
        self.n_rows, self.tokens, self.forward, self.raised = n_rows, tokens, decode.forward, 0

    def __call__(self, loaded: Any, buckets: Any, rows: Any, ids: torch.Tensor) -> torch.Tensor:
        ready = len(rows) == self.n_rows and all(len(row.tokens) >= self.tokens for row in rows)
        if ready and not self.raised:
            self.raised += 1
            raise RuntimeError("no such luck, once")
        return self.forward(loaded, buckets, rows, ids)


@pytest.mark.parametrize("policy", ["hold", "restart"])
def test_after_a_step_that_failed_guarded_answers_begin_again_behind_what_was_shown(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    body = {**SAMPLED, "temperature": 0, "seed": 4, "max_tokens": 120}
    chances = {**SAMPLED, "seed": 5, "max_tokens": 120}
    bodies = [(body, False), (body, True), (chances, False), (chances, True),
              ({**body, "kvx": {"controller": "none"}}, True)]  # fmt: skip

    def ask(server: Running, asked: dict[str, Any], stream: bool, found: list[Any], i: int) -> None:
        found[i] = streamed(server, asked) if stream else whole(server, asked)

    def together(server: Running) -> list[Any]:
        found: list[Any] = [None] * len(bodies)
        threads = [
            threading.Thread(target=ask, args=(server, *each, found, i))
            for i, each in enumerate(bodies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    with serving(*CHANCE, f"guard.stream={policy}") as server:
        expected = together(server)
        fails = FailsOnce(len(bodies), 20)
        monkeypatch.setattr(decode, "forward", fails)
        got = together(server)
    assert fails.raised == 1
    for i in (0, 2):  # nothing had been shown: as if it had not failed
        got_choice, choice = got[i]["choices"][0], expected[i]["choices"][0]
        assert got_choice["text"] == choice["text"]
        assert got_choice["logprobs"]["tokens"] == choice["logprobs"]["tokens"]
        assert done(guard_of(got[i])) == done(guard_of(expected[i]))
    assert text_of(got[4]) == text_of(expected[4])
    for i in (1, 3):
        parser = Parser(Api.completions)
        for chunk in got[i]:
            parser.feed(chunk, 0.0)
        reply = parser.finish(0.0, streamed=True)
        assert reply.output_tokens == len(reply.tokens) == 120
        assert reply.text == text_of_tokens(server, reply.tokens)


def test_an_answer_that_ended_with_a_step_that_failed_is_not_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = []
    on_step = LiveGuard.on_step

    def fails_once(self: LiveGuard, rows: Any, *rest: Any) -> Any:
        ended = [row for row in rows if row.finish_reason == "length" and row.guard is None]
        if ended and len(rows) == 2 and not raised:
            raised.append(len(rows))
            raise RuntimeError("no such luck, once")
        return on_step(self, rows, *rest)

    long = {**GREEDY, "prompt": WORDS, "max_tokens": 90, "extra_body": {"ignore_eos": True}}
    more = {"ignore_eos": True, "kvx": {"controller": "none"}}
    bodies = [long, long | {"max_tokens": 30, "extra_body": more}]
    with serving(*KNORM, "controller=reactive") as server:
        expected = asyncio.run(asked_together(server.url, bodies))
        monkeypatch.setattr(LiveGuard, "on_step", fails_once)
        got = asyncio.run(asked_together(server.url, bodies))
    assert raised == [2]
    for one, other in zip(expected, got, strict=True):
        assert one.choices[0].text == other.choices[0].text
        assert one.usage == other.usage


def test_a_guarded_request_is_admitted_if_its_whole_prompt_and_its_shadow_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = [5 + i % 90 for i in range(3000)]
    asked = {"model": "tiny_recall", "temperature": 0, "prompt": prompt, "max_tokens": 25,
             "ignore_eos": True, "stream": True}  # fmt: skip
    limits = ("model=tiny_recall", "press=knorm", "budget=0.2", "engine.max_cache_gib=0.02")
    most: dict[str, int] = {}
    all_asked, rows = threading.Event(), set[int]()
    forward = decode.forward

    def watched(loaded: Any, buckets: Any, running: Any, *rest: Any) -> Any:
        """The first step waits until all three are there."""
        assert all_asked.wait(HANGS_S)
        rows.add(len(running))
        return forward(loaded, buckets, running, *rest)

    monkeypatch.setattr(decode, "forward", watched)
    with serving(*limits, "controller=reactive") as server:
        for controller in ("none", "reactive"):
            all_asked.clear()
            rows.clear()
            body = {**asked, "kvx": {"controller": controller}}
            threads = [threading.Thread(target=streamed, args=(server, body)) for _ in range(3)]
            for thread in threads:
                thread.start()
            wait_until(lambda: sum(server.at_work()) == 3, "all are there")
            all_asked.set()
            while any(thread.is_alive() for thread in threads):
                assert server.service.loop.load.cache_bytes <= 0.02 * 2**30
                time.sleep(0.005)
            most[controller] = max(rows)
        alone = post(server.url, {**asked, "stream": False, "max_tokens": 5000})
        assert error_of(alone)["code"] == "kv_cache_exceeded"
        assert "controller none" in error_of(alone)["message"]
    assert most == {"none": 3, "reactive": 1}
