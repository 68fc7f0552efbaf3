"""What a guarded stream may show: nothing that is taken back, unless its reader is told."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.controller_config import ControllerConfig, ControllerKind, GuardConfig
from kvx.guard.controller import policy
from kvx.guard.detectors import REPORT_TOKENS
from kvx.guard.live import SequenceGuard, reach
from kvx.serve.text import StopStrings, TokenText
from kvx.serve.transcript import Piece, Restart, Transcript
from tests.test_serve_text import TOKENIZERS

MADE: dict[str, Any] = {}
SEEN = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 6), st.integers(0, 2)),
    max_size=300,
)


@given(SEEN, st.sampled_from(list(ControllerKind)), st.booleans(), st.integers(0, 20))
def test_nothing_settled_is_ever_taken_back(
    seen: list[tuple[int, float, float, int]], kind: ControllerKind, on_loop: bool, rollback: int
) -> None:
    config = ControllerConfig(
        name="test", kind=kind, tau_high=0.8, on_loop=on_loop, prefill_gate_nats=1.0,
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
    config = ControllerConfig(name="t", kind=ControllerKind.reactive, rollback_tokens=rollback)
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
    assert len(guard.tokens) - change.n_kept <= reach(config)


def test_what_cannot_take_anything_back_holds_nothing() -> None:
    for kind in (ControllerKind.always_safe, ControllerKind.gate, ControllerKind.none):
        assert reach(ControllerConfig(name="t", kind=kind)) == 0
    assert reach(ControllerConfig(name="t", kind=ControllerKind.reactive, rollback=False)) == 0
    hazard = ControllerConfig(name="t", kind=ControllerKind.hazard)
    assert reach(hazard) == 32
    assert reach(replace(hazard, on_loop=True)) == 32 + REPORT_TOKENS == 72


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
