"""The parts of engine=openai that need no server: templates, replies, verdicts, pace."""

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.cli.command import compose
from kvx.config import environment
from kvx.config.engine import Api, OpenAIConfig, RateLimitConfig
from kvx.config.placeholders import fill, names
from kvx.config.schema import BudgetKind, Config
from kvx.config.sweep import references
from kvx.engines.base import BudgetProof, KVUse
from kvx.engines.openai import proof, rate_limits
from kvx.engines.openai.body import BodyBuilder, endpoints
from kvx.engines.openai.bridge import iterate
from kvx.engines.openai.checks import check_key
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.rate_limits import Pace, Rate
from kvx.engines.openai.reply import Accounting, Parser, Reply, accounting, entropy_nats
from kvx.errors import UserError
from kvx.points import Point, Request
from kvx.run.planning import plan
from kvx.run.work import answers_work
from kvx.store.layout import Present

URL = "engine.base_url=http://127.0.0.1:1/v1"


def openai_config(*overrides: str) -> Config:
    return compose("engine=openai", URL, "press=snapkv", "budget=0.2", *overrides)


def engine_of(config: Config) -> OpenAIConfig:
    assert isinstance(config.engine, OpenAIConfig)
    return config.engine


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Point:
    monkeypatch.chdir(tmp_path)
    (only,) = plan([openai_config("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")])
    return only


def first(point: Point) -> tuple[Request, Any]:
    return answers_work(point, Present(set(), set())).requests[0]


@pytest.mark.parametrize(
    "typed",
    [
        "engine.extra_body={a: {press: ${press}, keep: ${budget}}, m: ${model.name}, t: 3}",
        'engine.extra_body={a: {press: "${press}", keep: "${budget}"}, m: tiny_recall, t: 3}',
        "engine.extra_body={a: {press: ${press.name}, keep: ${budget.ratio}}, m: "
        "tiny_recall, t: 3}",
    ],
)
def test_placeholders_survive_the_command_line(typed: str) -> None:
    template = engine_of(openai_config(typed)).extra_body
    assert names(template) == {"press", "budget"}
    wanted = {"a": {"press": "snapkv", "keep": 0.2}, "m": "tiny_recall", "t": 3}
    assert fill(template, "snapkv", 0.2) == wanted


def test_a_placeholder_inside_a_text_and_a_mix() -> None:
    assert fill(["${press}@${budget}"], "knorm", 0.5) == ["knorm@0.5"]
    with pytest.raises(UserError, match="can stand in one text"):
        fill("${press}-${seed}", "knorm", 0.5)


def test_a_template_keeps_points_comparable(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
    typed = "engine.extra_body={keep: ${budget}}"
    one, other = plan(
        [openai_config(typed, *small), openai_config(typed, *small, "budget.ratio=0.5")]
    )
    assert one.variant_id == other.variant_id
    assert one.id != other.id


def test_where_the_server_is_does_not_identify_a_point(point: Point) -> None:
    def id_with(**changes: Any) -> str:
        engine = replace(engine_of(point.config), **changes)
        return Point(replace(point.config, engine=engine), point.manifest, point.manifest_dir).id

    same = {
        "base_url": "http://other/v1", "concurrency": 3, "max_retries": 0, "stream": False,
        "rate_limit": RateLimitConfig(max_rpm=5),
    }  # fmt: skip
    assert {id_with(**{name: value}) for name, value in same.items()} == {point.id}
    assert id_with(endpoints={0.2: "http://a/v1"}) == id_with(endpoints={"0.2": "http://b/v1"})
    different = [
        id_with(model="other"), id_with(api=Api.chat), id_with(extra_body={"x": 1}),
        id_with(omit=["seed"]), id_with(endpoints={0.2: "http://a/v1"}), point.id,
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_endpoints_by_whatever_a_budget_is_typed_as() -> None:
    found = endpoints(
        {1: "http://a/v1/", 0.2: "http://b/v1", "0.50": "http://c", "0256t": "http://d"}
    )
    ratio, tokens = BudgetKind.ratio, BudgetKind.tokens
    assert found == {
        (ratio, 1.0): "http://a/v1",
        (ratio, 0.2): "http://b/v1",
        (ratio, 0.5): "http://c",
        (tokens, 256): "http://d",
    }


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KVX_MODEL_NAME", "KVX_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("KVX_MODEL_NAME=from-file\nOPENAI_BASE_URL=http://file/v1\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://shell/v1")
    engine = engine_of(compose("engine=openai"))
    assert (engine.model, engine.base_url) == ("from-file", "http://shell/v1")
    monkeypatch.setenv("KVX_BASE_URL", "http://for-kvx/v1")
    assert engine_of(compose("engine=openai")).base_url == "http://for-kvx/v1"
    assert environment.read("KVX_NO_SUCH_VARIABLE") is None


def test_other_programs_variables_lead_no_prompt_and_no_key_anywhere(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "KVX_BASE_URL", "KVX_MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BASE_URL", "http://elsewhere/v1")
    monkeypatch.setenv("MODEL_NAME", "anothers")
    engine = engine_of(compose("engine=openai"))
    assert (engine.model, engine.base_url) == ("tiny_recall", None)
    (tmp_path / ".env").write_text("MODEL_NAME=of-this-project\nBASE_URL=http://here/v1\n")
    environment._told.clear()
    engine = engine_of(compose("engine=openai"))
    assert (engine.model, engine.base_url) == ("of-this-project", "http://here/v1")
    assert ".env: BASE_URL is the older name of OPENAI_BASE_URL; rename it" in caplog.text
    assert ".env: MODEL_NAME is the older name of KVX_MODEL_NAME; rename it" in caplog.text


def test_an_environment_variable_leads_to_no_other_node() -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"engine": {"base_url": "${kvx_env:OPENAI_BASE_URL}"}})
    assert references(cfg, "engine") == frozenset()


def test_a_kvx_server_is_told_what_is_the_context(point: Point) -> None:
    request, example = first(point)
    for api in Api:
        config = replace(point.config, engine=replace(engine_of(point.config), api=api))
        body = BodyBuilder(config).body(request, example, is_kvx=True)
        prompts = BodyBuilder(config).prompts
        compressed, rest = prompts.texts(example)
        assert body["kvx"] == {
            "press": "snapkv", "budget": 0.2, "compress_chars": len(compressed),
            "controller": "none",
        }  # fmt: skip
        if api is Api.completions:
            assert body["prompt"] == compressed + rest
        else:
            assert body["messages"][0]["content"].startswith(example.context)
    assert "kvx" not in BodyBuilder(point.config).body(request, example, is_kvx=False)


def test_a_budget_in_tokens_is_told_as_such(point: Point) -> None:
    request, example = first(point)
    in_tokens = openai_config("budget=tokens", "budget.tokens=64").budget
    other = Point(replace(point.config, budget=in_tokens), point.manifest, point.manifest_dir)
    body = BodyBuilder(point.config).body(Request(other, request.entry), example, is_kvx=True)
    assert body["kvx"]["budget_tokens"] == 64
    assert "budget" not in body["kvx"]


def test_fields_a_server_does_not_take_are_left_out() -> None:
    engine = engine_of(openai_config("engine.omit=[seed,stream_options]"))
    assert engine.omit == ["seed", "stream_options"]


@given(st.lists(st.floats(-20, 3), min_size=25, max_size=60), st.integers(0, 24))
@settings(max_examples=50, deadline=None)
def test_the_entropy_of_the_top_is_a_lower_bound(logits: list[float], chosen: int) -> None:
    logprobs = np.array(logits) - np.logaddexp.reduce(logits)
    top = sorted(logprobs.tolist(), reverse=True)[:20]
    full = float(-(np.exp(logprobs) * logprobs).sum())
    (found,) = entropy_nats([float(logprobs[chosen])], [top])
    assert -1e-9 <= found <= full + 1e-9
    (whole,) = entropy_nats([top[0]], [sorted(logprobs.tolist(), reverse=True)])
    assert math.isclose(whole, full, abs_tol=1e-6)


def test_a_stream_is_put_together_with_its_times() -> None:
    parser = Parser(Api.completions)
    for at_s, text in ((0.1, "a "), (0.3, "b "), (0.5, "c")):
        parser.feed({"choices": [{"text": text, "finish_reason": None}]}, at_s)
    parser.feed({"choices": [{"text": "", "finish_reason": "stop"}]}, 0.6)
    parser.feed({"choices": [], "usage": {"completion_tokens": 3}}, 0.6)
    reply = parser.finish(0.7, streamed=True)
    assert (reply.text, reply.finish_reason, reply.output_tokens) == ("a b c", "stop", 3)
    assert reply.timing.ttft_s == 0.1
    assert reply.timing.latency_s == 0.5
    assert reply.timing.tpot_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    "part",
    [
        None, [], "text", {}, {"choices": None}, {"choices": [{}]}, {"choices": [{"text": 5}]},
        {"choices": [], "kvx": {"press": "snapkv"}}, {"choices": ["a"]},
    ],
)  # fmt: skip
def test_a_wrong_schema_is_a_fault_and_no_crash(part: Any) -> None:
    with pytest.raises(Fault, match="wrong schema"):
        Parser(Api.completions).feed(part, 0.0)


def reply_of(*logprobs: float, text: str = "a b") -> Reply:
    parser = Parser(Api.completions)
    tokens = text.split()
    choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
    if logprobs:
        tops = [
            {token: value, "z": value - 1} for token, value in zip(tokens, logprobs, strict=True)
        ]
        choice["logprobs"] = {
            "tokens": tokens, "token_logprobs": list(logprobs), "top_logprobs": tops,
        }  # fmt: skip
    parser.feed({"choices": [choice]}, 0.1)
    return parser.finish(0.1, streamed=True)


@pytest.mark.parametrize(
    ("again", "other", "verdict"),
    [
        (reply_of(-0.5, -0.6), reply_of(-0.5, -0.6), BudgetProof.PROBE_SAME),
        (reply_of(-0.5, -0.6), reply_of(-0.5, -0.9), BudgetProof.PROBE_DIFFERS),
        (reply_of(-0.5, -0.6), reply_of(-0.5, -0.6, text="a c"), BudgetProof.PROBE_DIFFERS),
        (reply_of(-0.5, -0.8), reply_of(-0.5, -0.9), BudgetProof.PROBE_UNCLEAR),
        (reply_of(-0.5, -0.6, text="x y"), reply_of(-0.5, -0.6), BudgetProof.PROBE_UNCLEAR),
        (reply_of(), reply_of(), BudgetProof.PROBE_UNCLEAR),
        (reply_of(), reply_of(text="c d"), BudgetProof.PROBE_DIFFERS),
    ],
)
def test_what_a_probe_concludes(
    point: Point, again: Reply, other: Reply, verdict: BudgetProof
) -> None:
    assert proof.compare(reply_of(-0.5, -0.6), again, other, "1", point).proof is verdict


def accounting_for(request: Request, **changes: Any) -> Accounting:
    full = request.entry.compressed_tokens
    kept = float(request.point.kept_tokens(full))
    kv = KVUse(kept, kept, kept, int(kept) * 8, int(kept) * 8, int(kept) * 8, full * 8, full * 8)
    said = Accounting("snapkv", 0.2, "ratio", kv)
    own = {k: v for k, v in changes.items() if k in ("press", "budget", "budget_kind")}
    inner = {k: v for k, v in changes.items() if k not in own}
    return replace(said, kv=replace(kv, **inner), **own)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"press": "knorm"}, "the server used knorm"),
        ({"budget": 0.5}, "budget 0.2 was asked for, the server says 0.5"),
        ({"budget_kind": "tokens"}, "was asked for"),
        ({"entries_effective": 1.0}, "the server kept 1"),
        ({"bytes_full": 8}, "the server compressed 1"),
        ({"bytes_physical": 0}, "nothing was in its cache"),
    ],
)
def test_accounting_is_held_against_what_was_asked(
    point: Point, changes: dict[str, Any], words: str | None
) -> None:
    request, _ = first(point)
    found = proof.contradiction(request, accounting_for(request, **changes), split_is_ours=True)
    assert (found is None) if words is None else (words in (found or ""))


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_that_is_no_number_proves_nothing(budget: float) -> None:
    kv = dict.fromkeys((f.name for f in dataclasses.fields(KVUse)), 1)
    with pytest.raises(ValueError, match="budget"):
        accounting({"press": "snapkv", "budget": budget, "budget_kind": "ratio", "kv": kv})


@pytest.mark.parametrize("key", ["sk-sésame-sésame", "sk-two\nlines-of-it", "sk-tab\there-it-is"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds a character") as caught:
        check_key(key, engine_of(openai_config()))
    assert "sk-" not in str(caught.value)


def test_a_push_back_counts_once_per_congestion() -> None:
    pace = Pace("auto", 64)
    begun = time.monotonic()
    pace.pushed_back(begun)
    assert pace.limit == 2
    pace.pushed_back(begun)  # it began before the server said so
    assert pace.limit == 2
    pace.pushed_back(time.monotonic())
    pace.pushed_back(time.monotonic())
    pace.pushed_back(time.monotonic())
    assert pace.limit == 1
    fixed = Pace(8, 64)
    fixed.pushed_back(time.monotonic())
    assert fixed.limit == 8


def test_the_limit_grows_while_latency_holds_and_not_beyond() -> None:
    """A made-up server of eight places: beyond them, latency grows as concurrency does."""

    async def run() -> list[int]:
        pace, limits = Pace("auto", 64), []

        async def worker() -> None:
            for _ in range(60):
                async with pace.slot() as begun:
                    await asyncio.sleep(0.001)
                    # as if it had taken that long: no machine is too busy for this test
                    pace.succeeded(begun, 0.02 * max(1.0, pace.running / 8), 0, 1)
                    limits.append(pace.limit)

        await asyncio.gather(*(worker() for _ in range(40)))
        return limits

    limits = asyncio.run(run())
    assert max(limits) >= 8
    settled = limits[len(limits) // 2 :]
    assert 6 <= sum(settled) / len(settled) <= 16


def test_tokens_per_minute_are_kept() -> None:
    async def run() -> float:
        rate = Rate(RateLimitConfig(max_tpm=60_000), largest_tokens=100)
        begun = time.monotonic()
        for _ in range(6):
            await rate.wait(100)
        return time.monotonic() - begun

    # 100 at once, the other 500 at 59,900 a minute
    assert asyncio.run(run()) >= 0.48


def test_no_minute_holds_two_requests_that_are_too_much_together(monkeypatch: Any) -> None:
    monkeypatch.setattr(rate_limits, "MINUTE_S", 0.3)
    stamps: list[float] = []  # as the limiter sees the time

    def clock() -> float:
        stamps.append(time.monotonic())
        return stamps[-1]

    monkeypatch.setattr(rate_limits, "time", SimpleNamespace(monotonic=clock))

    async def run() -> list[tuple[float, int]]:
        rate = Rate(RateLimitConfig(max_tpm=1000), largest_tokens=700)
        taken = []
        for tokens in (700, 300, 700, 200, 100, 600):
            await rate.wait(tokens)
            taken.append((stamps[-1], tokens))
        return taken

    taken = asyncio.run(run())
    for at, _ in taken:
        assert sum(n for when, n in taken if at <= when < at + 0.299) <= 1000
    assert taken[-1][0] - taken[0][0] >= 0.6
    assert len(stamps) >= 6


def test_an_interrupted_iterator_cancels_and_gives_what_arrived() -> None:
    async def work(put: Callable[[int], None]) -> None:
        put(1)
        try:
            await asyncio.sleep(60)
        finally:
            put(2)

    items = iterate(work)
    assert next(items) == 1
    assert cast(Any, items).throw(KeyboardInterrupt()) == 2
    with pytest.raises(KeyboardInterrupt):
        next(items)


def test_closing_the_iterator_cancels_and_waits() -> None:
    ended: list[int] = []

    async def work(put: Callable[[int], None]) -> None:
        put(1)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    items = iterate(work)
    assert next(items) == 1
    cast(Any, items).close()
    assert ended == [1]


def test_the_first_error_of_several_tasks_is_raised() -> None:
    async def fail() -> None:
        raise UserError("no such server")

    async def work(put: Callable[[int], None]) -> None:
        async with asyncio.TaskGroup() as group:
            put(1)
            group.create_task(fail())

    items = iterate(work)
    assert next(items) == 1
    with pytest.raises(UserError, match="no such server"):
        next(items)
