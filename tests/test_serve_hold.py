"""What a guarded stream may show: nothing that is taken back, unless its reader is told."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.config.engine import Api
from kvx.config.guard import GuardConfig
from kvx.engines.kvpress import decode
from kvx.engines.openai.reply import Parser
from kvx.guard.controllers import AlwaysSafe, Controller, Gate, Hazard, NoController, Reactive
from kvx.guard.controllers.base import policy
from kvx.guard.live import SequenceGuard
from kvx.scoring.loops import REPORT_TOKENS
from kvx.serve.transcript import Piece, Restart, Transcript
from kvx.text.incremental import StopStrings, TokenText
from tests.controllers import CLASSES, with_own
from tests.serving import Running, serving
from tests.test_serve import GREEDY, WORDS
from tests.test_serve_guard import (
    CHANCE,
    KNORM,
    SAMPLED,
    done,
    guard_of,
    streamed,
    text_of,
    text_of_tokens,
    whole,
)  # fmt: skip
from tests.test_serve_text import TOKENIZERS

MADE: dict[str, Any] = {}


# what a stream shows


class Planted:
    """The model, but it says what a script says, and falls into a loop where it is compressed."""

    def __init__(self, at: int, period: int) -> None:
        self.at, self.period, self.forward = at, period, decode.forward

    def says(self, index: int, compressed: bool) -> int:
        if compressed and index >= self.at:
            return 60 + (index - self.at) % self.period
        return 5 + (index * index) % 53 if index % 3 else 5 + index % 50

    def __call__(self, loaded: Any, buckets: Any, rows: Any, ids: torch.Tensor) -> torch.Tensor:
        logits = self.forward(loaded, buckets, rows, ids)
        for i, row in enumerate(rows):
            compressed = row.guard is not None and row.guard.budget < 1.0
            logits[i, -1, self.says(len(row.tokens), compressed)] = 1e4
        return logits


@pytest.mark.parametrize("period", [1, 7, 19])
def test_a_planted_loop_is_never_shown_and_the_answer_goes_on_as_the_full_cache_s(
    monkeypatch: pytest.MonkeyPatch, period: int
) -> None:
    planted = Planted(at=110, period=period)
    monkeypatch.setattr(decode, "forward", planted)
    body = {**GREEDY, "prompt": WORDS, "max_tokens": 220, "ignore_eos": True}
    with serving(*KNORM, "controller=reactive") as server:
        decoded = server.service.tokenizer.decode
        answer = whole(server, body)
        chunks = streamed(server, body)
    text = answer["choices"][0]["text"]
    said = decoded([planted.says(i, False) for i in range(1, 220)], skip_special_tokens=True)
    assert text.endswith(said)
    first, *more = guard_of(answer)["events"]
    assert (first["action"], first["reason"]) == ("roll_back", "loop")
    assert first["n_kept"] == 110 + period - 32  # that many before the loop's onset
    # calm again, and once more in the loop: then it stays relaxed
    assert [event["action"] for event in more] == ["recompress", "roll_back"]
    assert text_of(chunks) == text
    assert chunks[-1]["usage"] == answer["usage"]
    assert done(guard_of(chunks[-1])) == done(guard_of(answer))
    assert not any("restart" in chunk.get("kvx", {}) for chunk in chunks)


def test_a_held_stream_trails_behind_and_stops_at_a_stop_string_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = Planted(at=1000, period=1)
    monkeypatch.setattr(decode, "forward", planted)
    body = {**GREEDY, "prompt": WORDS, "max_tokens": 200, "ignore_eos": True, "logprobs": 0}
    with serving(*KNORM, "controller=reactive") as server:
        chunks = streamed(server, body)
        at_once = streamed(server, {**body, "kvx": {"controller": "none"}})
        text = text_of(chunks)
        stop = text[300:306]
        cut = streamed(server, {**body, "stop": stop})
    held = 32 + REPORT_TOKENS
    shown = [len(c["choices"][0]["logprobs"]["tokens"]) for c in chunks if c["choices"]
             and c["choices"][0]["logprobs"]]  # fmt: skip
    assert shown == [1] * (200 - held) + [held]
    assert text_of(at_once) == text
    assert len(at_once) > 200
    assert text_of(cut) == text[: text.index(stop)]
    assert cut[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def holding() -> Iterator[Running]:
    with serving(*CHANCE) as server:
        yield server


@pytest.fixture(scope="module")
def restarting() -> Iterator[Running]:
    with serving(*CHANCE, "guard.stream=restart") as server:
        yield server


def test_a_held_stream_says_each_token_once_whatever_is_taken_back(holding: Running) -> None:
    dropped = 0
    for seed in range(8):
        chunks = streamed(holding, {**SAMPLED, "seed": seed})
        shown = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
        tokens = [token for part in shown if part for token in part["tokens"]]
        offsets = [offset for part in shown if part for offset in part["text_offset"]]
        assert len(tokens) == chunks[-1]["usage"]["completion_tokens"] == 60
        assert text_of(chunks) == text_of_tokens(holding, tokens)
        assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
        guard = guard_of(chunks[-1])
        dropped += sum(event["dropped_tokens"] for event in guard["events"])
        assert guard["decoded_tokens"] == 60 + sum(e["dropped_tokens"] for e in guard["events"])
    assert dropped > 50


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_with_restarts_is_cut_by_its_markers_to_the_answer(
    restarting: Running, chat: bool
) -> None:
    path, restarts = ("/chat/completions" if chat else "/completions"), 0
    for seed in range(8):
        body = {**SAMPLED, "seed": seed}
        if chat:
            del body["prompt"]
            body |= {"messages": [{"role": "user", "content": WORDS}], "logprobs": True}
        answer, chunks = whole(restarting, body, path), streamed(restarting, body, path)
        parser = Parser(Api.chat if chat else Api.completions)
        for chunk in chunks:
            parser.feed(chunk, 0.0)
            restarts += "restart" in chunk.get("kvx", {})
        reply = parser.finish(0.0, streamed=True)
        choice = answer["choices"][0]
        assert reply.text == (choice["message"]["content"] if chat else choice["text"])
        logprobs = choice["logprobs"]
        told = [token["token"] for token in logprobs["content"]] if chat else logprobs["tokens"]
        assert list(reply.tokens) == told
        assert reply.output_tokens == answer["usage"]["completion_tokens"]
        assert done(guard_of(chunks[-1])) == done(guard_of(answer))
    assert restarts > 5


def test_metrics_count_what_controllers_did(holding: Running) -> None:
    def metric(name: str) -> float:
        text = holding.get("/metrics").text
        values = [float(v.split()[-1]) for v in text.splitlines() if v.startswith(name)]
        return sum(values)

    names = (
        "kvx_guard_actions_total",
        "kvx_guard_dropped_tokens_total",
        "kvx_guard_pause_seconds_count",
    )
    before = [metric(name) for name in names]
    events = [
        event
        for seed in range(3)
        for event in guard_of(whole(holding, SAMPLED | {"seed": seed}))["events"]
    ]
    after = [metric(name) for name in names]
    rebuilt = sum(event["action"] not in ("watch", "alarm") for event in events)
    dropped = sum(event["dropped_tokens"] for event in events)
    assert [a - b for a, b in zip(after, before, strict=True)] == [len(events), dropped, rebuilt]
    assert rebuilt
    assert metric("kvx_guard_host_bytes") == 0  # nobody is running


# the promise itself


SEEN = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 6), st.integers(0, 2)),
    max_size=300,
)


@given(SEEN, st.sampled_from(CLASSES), st.booleans(), st.integers(0, 20))
def test_nothing_settled_is_ever_taken_back(
    seen: list[tuple[int, float, float, int]], cls: type[Controller], on_loop: bool, rollback: int
) -> None:
    config = with_own(
        cls, name="test", tau_high=0.8, on_loop=on_loop, prefill_gate_nats=1.0,
        repetition_count=1, entropy_cusum_nats=8.0, rate=0.3, cooldown=2, j=2,
        rollback_tokens=rollback,
    )  # fmt: skip
    guard = SequenceGuard(policy(config), GuardConfig(max_interventions=6), 0.25, "a")
    shown: list[int] = []
    for token, hazard, entropy, count in seen:
        change = guard.step(token, hazard, entropy, count)
        if change is not None:
            assert len(shown) <= change.n_kept <= len(guard.tokens)
            guard.carried_out(change, 0, 1.0)
        assert len(shown) <= guard.settled <= len(guard.tokens)
        assert guard.tokens[: len(shown)] == shown
        shown = guard.tokens[: guard.settled]
        guard.floor = len(shown)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 40))
def test_a_short_loop_is_taken_back_whole_though_text_was_shown(
    before: int, period: int, rollback: int
) -> None:
    config = Reactive(name="t", rollback_tokens=rollback)
    guard = SequenceGuard(policy(config), GuardConfig(), 0.25)
    loop = [1000 + i % period for i in range(period + REPORT_TOKENS)]
    for token in [*range(before), *loop]:
        change = guard.step(token)
        if change is not None:
            break
        guard.floor = max(guard.floor, guard.settled)
    assert change is not None
    assert len(guard.tokens) - (before + period) <= REPORT_TOKENS
    assert change.n_kept == max(0, before + period - rollback)
    assert len(guard.tokens) - change.n_kept <= config.reach


def test_what_cannot_take_anything_back_holds_nothing() -> None:
    for cls in (AlwaysSafe, Gate, NoController):
        assert cls(name="t").reach == 0
    assert Reactive(name="t", rollback=False).reach == 0
    hazard = Hazard(name="t")
    assert hazard.reach == 32
    assert replace(hazard, on_loop=True).reach == 32 + REPORT_TOKENS == 72


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 255)),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.just("show"), st.floats(0, 1)),
    ),
    max_size=120,
)


@settings(deadline=None)
@given(
    MOVES,
    st.sampled_from(["byte_level", "cleaned_words"]),
    st.lists(st.text("ab ", min_size=1), max_size=2),
)
def test_a_reader_who_follows_the_markers_has_the_text_of_the_tokens_that_stayed(
    moves: list[tuple[str, Any]], kind: str, stops: list[str]
) -> None:
    tokenizer = MADE.setdefault(kind, TOKENIZERS[kind]())
    said = Transcript(TokenText(tokenizer), StopStrings(stops), rewindable=True)
    tokens: list[int] = []
    reader = ""

    def hear(events: Sequence[Piece | Restart]) -> None:
        nonlocal reader
        for event in events:
            if isinstance(event, Restart):
                assert event.kept_characters <= len(reader)
                reader = reader[: event.kept_characters]
            else:
                reader += event.text

    for move, value in moves:
        if move == "push":
            if said.stopped:
                continue
            tokens.append(value % (256 if kind == "byte_level" else 13))
            said.push(tokens[-1])
        elif move == "rewind":
            del tokens[int(value * len(tokens)) :]
            said.rewind(len(tokens))
        else:
            hear(said.show(int(value * len(tokens))))
        assert said.n_tokens == len(tokens)
    hear(said.close())
    plain = Transcript(TokenText(tokenizer), StopStrings(stops))
    for token in tokens:
        plain.push(token)
    assert reader == "".join(e.text for e in plain.close() if isinstance(e, Piece))
