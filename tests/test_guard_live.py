"""The live guard: rows taken back and relaxed, beside rows that must not notice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvx.config.guard import GuardConfig, Shadow
from kvx.data.prompt import PromptBuilder
from kvx.engines.base import Response
from kvx.engines.kvpress import batch, guarded
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.guard.controllers import Controller, Gate, Hazard, NoController, Reactive
from kvx.guard.controllers.base import policy
from kvx.guard.live import Change, SequenceGuard
from kvx.points import Request
from tests.controllers import CLASSES, with_own
from tests.test_engine import make_work

SMALL = (
    "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=2", "dataset.binning.n_bins=2",
    "dataset.max_new_tokens=24", "prompt.query_aware=true",
)  # fmt: skip
STILL = NoController(name="scripted")


class Scripted(SequenceGuard):
    """Does what it is told: changes by the number of tokens decoded so far."""

    def __init__(self, script: dict[int, Change], nominal: float, **config: Any) -> None:
        super().__init__(policy(STILL), GuardConfig(**config), nominal)
        self.script = script

    @property
    def levels(self) -> list[float]:
        """Every budget of the ladder is prepared, without a gate."""
        return sorted({*self.config.ladder, 1.0} - {self.base})

    def gate(self, probe_nats: float) -> Change | None:
        return self.script.get(0) if not self.events else None

    def step(self, *args: Any, **kwargs: Any) -> Change | None:
        super().step(*args, **kwargs)
        return self.script.get(self._steps)


def generate(
    tmp_path: Path,
    points: Sequence[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    scripts: dict[int, dict[int, Change]] | None = None,
    **config: Any,
) -> list[list[Response]]:
    """The responses of `points` that ran together; `scripts` steer those of a point's number."""
    works = [make_work(tmp_path, *SMALL, *point) for point in points]
    ids = {work.point.id: i for i, work in enumerate(works)}

    def guard_of(request: Request) -> Callable[[], SequenceGuard] | None:
        number = ids[request.point.id]
        if scripts is None or number not in scripts:
            return guarded.guard_of(request)
        nominal = request.point.kept_share(request.entry.compressed_tokens)
        return partial(Scripted, scripts[number], nominal, **config)

    monkeypatch.setattr(batch, "guard_of", guard_of)
    engine = KVPressEngine(works[0].point.config)
    found: list[list[Response]] = [[] for _ in works]
    for item in engine.generate(works):
        assert isinstance(item, Response)
        assert item.has_response, item.error_message
        found[ids[item.request.point.id]].append(item)
    return [sorted(some, key=lambda r: r.request.entry.example_id) for some in found]


def tokens(responses: Sequence[Response]) -> list[list[int] | None]:
    return [response.token_ids for response in responses]


NONE = ("press=none",)
KNORM = ("press=knorm", "budget.ratio=0.25")
# another controller's name: a point of its own beside the one without
STEERED = (*KNORM, "controller=reactive")


@pytest.mark.parametrize("shadow", [Shadow.host, Shadow.recompute])
@pytest.mark.parametrize("press", ["knorm", "streaming", "snapkv_w16", "pyramidkv"])
def test_relaxed_from_the_start_is_the_full_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, press: str, shadow: Shadow
) -> None:
    point = (f"press={press}", "budget.ratio=0.25", "controller=always_safe")
    if "pyramidkv" in press or "snapkv" in press:
        point = (*point, "press.method.window_size=4")
    point = (*point, f"guard.shadow={shadow.value}")
    full, safe = generate(tmp_path, [NONE, point], monkeypatch)
    assert tokens(full) == tokens(safe)
    for response in safe:
        assert response.guard is not None
        assert [event.action for event in response.guard.events] == ["raise"]
        assert response.guard.mean_budget == 1.0
        assert (response.guard.bytes_host > 0) is (shadow is Shadow.host)


@pytest.mark.parametrize("n_kept", [0, 1, 5, 9])
def test_rolled_back_is_as_if_the_full_cache_had_said_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kept: int
) -> None:
    """After rollback to n tokens: what a never-compressed cache answers to prompt + these n."""
    change = Change(1.0, n_kept, "roll_back", "hazard")
    compressed, steered = generate(tmp_path, [KNORM, STEERED], monkeypatch, {1: {10: change}})
    work = make_work(tmp_path, *SMALL, *KNORM)
    engine = KVPressEngine(work.point.config)
    builder = PromptBuilder(engine.loaded.tokenizer, work.point.config)
    examples = {e.example_id: e for _, e in work.requests}
    moved = 0
    for before, after in zip(compressed, steered, strict=True):
        assert before.token_ids is not None
        assert after.token_ids is not None
        if len(before.token_ids) < 10:
            assert after.token_ids == before.token_ids
            continue
        moved += 1
        parts = builder.parts(examples[after.request.entry.example_id])
        ids = [*parts.compressed_ids, *parts.rest_ids, *before.token_ids[:n_kept]]
        with torch.inference_mode():
            out = engine.loaded.model.generate(
                torch.tensor([ids]), max_new_tokens=24 - n_kept, do_sample=False,
                eos_token_id=sorted(engine.loaded.stop_ids),
            )  # fmt: skip
        assert after.token_ids == [*before.token_ids[:n_kept], *out[0, len(ids) :].tolist()]
        assert after.guard is not None
        (event,) = after.guard.events
        assert event.dropped_ids == before.token_ids[n_kept:10]
        assert after.guard.decoded_tokens == len(after.token_ids) + 10 - n_kept
    assert moved


def test_one_rows_intervention_changes_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [NONE, ("press=streaming", "budget.ratio=0.5"), KNORM]
    alone = generate(tmp_path, others, monkeypatch)
    script = {
        4: Change(0.5, 2, "roll_back", "hazard"),
        8: Change(1.0, 0, "restart", "loop"),
        12: Change(0.25, 6, "recompress", "calm", recompute=False),
    }
    beside = generate(tmp_path, [*others, STEERED], monkeypatch, {3: script})
    assert [tokens(some) for some in alone] == [tokens(some) for some in beside[:3]]
    acted = [len(r.guard.events) for r in beside[3] if r.guard is not None]
    assert max(acted) == 3


def test_mixed_budgets_in_one_batch_are_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        (*KNORM, f"controller={name}", *more)
        for name, more in (
            ("always_safe", ()),
            ("reactive", ("controller.prefill_gate_nats=0.05",)),
            ("random", ("controller.rate=0.2", "controller.cooldown=2", "controller.j=1")),
        )
    ]
    together = generate(tmp_path, points, monkeypatch)
    for point, responses in zip(points, together, strict=True):
        (alone,) = generate(tmp_path, [point], monkeypatch)
        assert tokens(alone) == tokens(responses)
        assert [events(r) for r in alone] == [events(r) for r in responses]


def events(response: Response) -> list[Any]:
    """What was done, without how long it took; numbers to what batching leaves of them."""
    assert response.guard is not None
    return [
        replace(e, milliseconds=0.0, hazard=None, probe_nats=None) for e in response.guard.events
    ]


def test_prompts_without_a_rest_are_gated_at_their_second_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the question compressed too, the first token is the same at every budget."""
    work = make_work(tmp_path, *SMALL, *KNORM)
    builder = PromptBuilder(KVPressEngine(work.point.config).loaded.tokenizer, work.point.config)
    gated = (*KNORM, "controller=gate", "controller.name=gated", "guard.ladder=[0.5]")
    always = (*gated, "controller.prefill_gate_nats=0.0")
    sometimes = (*gated, "controller.prefill_gate_nats=12.0")
    half = ("press=knorm", "budget.ratio=0.5")
    points = [NONE, half, KNORM, always, sometimes]
    full, at_half, low, raised, some = generate(tmp_path, points, monkeypatch)
    assert tokens(raised) == tokens(full)
    reached = set()
    for i, response in enumerate(some):
        assert not builder.parts(dict_of(work)[response.request.entry.example_id]).rest_ids
        assert response.guard is not None
        seen = response.guard.events
        assert [(e.budget_after, e.n_kept) for e in seen] == [(0.5, 1), (1.0, 1)][: len(seen)]
        assert all(e.probe_nats is not None and e.probe_nats >= 12.0 for e in seen)
        assert response.token_ids == (low, at_half, full)[len(seen)][i].token_ids
        reached.add(len(seen))
    assert len(reached) > 1


def dict_of(work: Any) -> dict[str, Any]:
    return {e.example_id: e for _, e in work.requests}


def test_events_replay_to_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = (
        *KNORM, "controller=random", "controller.rate=0.3", "controller.cooldown=2",
        "controller.rollback_tokens=4", "controller.j=1",
    )  # fmt: skip
    (live,) = generate(tmp_path, [chance], monkeypatch)
    replayed = 0
    for i, response in enumerate(live):
        assert response.guard is not None
        script: dict[int, Change] = {}
        dropped = 0
        for event in response.guard.events:
            if event.action in ("watch", "alarm"):
                continue
            at = event.token + 1 + dropped
            script[at] = Change(
                event.budget_after, event.n_kept, event.action, event.reason,
                recompute=event.action != "recompress",
            )  # fmt: skip
            dropped += len(event.dropped_ids)
        (again,) = generate(tmp_path, [STEERED], monkeypatch, {0: script})
        assert again[i].token_ids == response.token_ids
        replayed += len(script)
    assert replayed


def test_without_a_shadow_alarms_are_only_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = (*KNORM, "controller=always_safe", "guard.shadow=none")
    plain, watched = generate(tmp_path, [KNORM, point], monkeypatch)
    assert tokens(plain) == tokens(watched)
    for response in watched:
        assert response.guard is not None
        assert [e.action for e in response.guard.events] == ["alarm"]
        assert response.guard.bytes_host == 0


@pytest.mark.parametrize("press", ["knorm", "streaming", "expected_attention", "pyramidkv"])
def test_a_budget_from_the_shadow_is_what_the_press_keeps_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, press: str
) -> None:
    """Relaxed to half at the start is the same press at half, token for token."""
    low, half = ((f"press={press}", f"budget.ratio={b}") for b in (0.25, 0.5))
    window = ("press.method.window_size=4",) if press == "pyramidkv" else ()
    low, half = (*low, *window), (*half, *window)
    script = {1: {0: Change(0.5, 0, "raise", "gate")}}
    at_half, raised = generate(tmp_path, [half, (*low, "controller=reactive")], monkeypatch, script)
    assert tokens(at_half) == tokens(raised)
    script = {1: {0: Change(0.25, 0, "raise", "gate")}}
    at_low, again = generate(tmp_path, [low, (*low, "controller=reactive")], monkeypatch, script)
    assert tokens(at_low) == tokens(again)


def test_an_alarm_in_a_loop_that_is_not_yet_detected_goes_back_to_before_it() -> None:
    config = Hazard(
        name="test", tau_high=0.8, rollback_tokens=8
    )  # fmt: skip
    guard = SequenceGuard(policy(config), GuardConfig(), 0.125, "a")
    for token in (*range(30), *range(20, 29)):  # ten tokens, then nine of them again
        assert guard.step(token, 0.1) is None
    change = guard.step(29, 0.9)
    assert change is not None
    assert (change.n_kept, change.reason) == (40 - 10 - 8, "hazard")


def test_the_gate_reaches_the_full_cache_however_long_its_ladder() -> None:
    config = Gate(name="gate", prefill_gate_nats=1.0)
    settings = GuardConfig(ladder=[0.3, 0.4, 0.5, 0.6, 0.7], max_interventions=1)
    guard = SequenceGuard(policy(config), settings, 0.2, "a")
    while (change := guard.gate(5.0)) is not None:
        guard.carried_out(change, 0, 1.0)
    assert [e.budget_after for e in guard.events] == [0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
    assert guard.interventions == 1


STEP = st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 6), st.integers(0, 2))
# stretches that repeat themselves: loops, some of which go on for long
SEEN = st.lists(
    st.tuples(st.lists(STEP, min_size=1, max_size=3), st.integers(1, 30)), max_size=8
).map(lambda stretches: [step for unit, times in stretches for step in unit * times])


def test_a_loop_of_the_full_cache_is_let_go_of() -> None:
    config = Reactive(name="test", cooldown=5, j=2)
    guard = SequenceGuard(policy(config), GuardConfig(), 0.25, "a")
    for _ in range(120):
        if (change := guard.step(7, hazard=0.1 * guard.budget)) is not None:
            guard.carried_out(change, 0, 1.0)
    done = [(e.action, e.reason, e.budget_before, e.budget_after) for e in guard.events]
    assert done == [
        ("restart", "loop", 0.25, 1.0),
        ("recompress", "let_go", 1.0, 0.25),
    ]
    assert guard.events[-1].hazard == 0.1  # of its own token
    assert guard.settled == len(guard.tokens)


def test_what_never_had_the_full_cache_is_not_let_go_of() -> None:
    config = Reactive(name="test", cooldown=5, j=2, safe_budget=0.5)
    guard = SequenceGuard(policy(config), GuardConfig(max_interventions=1), 0.25, "a")
    for _ in range(120):
        if (change := guard.step(7)) is not None:
            guard.carried_out(change, 0, 1.0)
    assert {e.action for e in guard.events} == {"restart", "alarm"}
    assert guard.budget == 0.5


@given(SEEN, st.sampled_from(CLASSES), st.integers(1, 5), st.floats(0, 3))
def test_interventions_are_bounded_and_budgets_stay_in_range(
    seen: list[tuple[int, float, float, int]], cls: type[Controller], most: int, probe: float
) -> None:
    config = with_own(
        cls, name="test", tau_high=0.8, on_loop=True, prefill_gate_nats=1.0,
        repetition_count=1, entropy_cusum_nats=8.0, rate=0.3, cooldown=2, j=2,
        rollback_tokens=8,
    )  # fmt: skip
    guard = SequenceGuard(policy(config), GuardConfig(max_interventions=most), 0.125, "a")
    change = guard.gate(probe)
    while change is not None:
        assert change.n_kept == 0
        assert change.budget > guard.budget
        guard.carried_out(change, 0, 1.0)
        probe /= 2
        change = guard.gate(probe)
    for token, hazard, entropy, count in seen:
        change = guard.step(token, hazard, entropy, count)
        if change is None:
            continue
        assert 0 <= change.n_kept <= len(guard.tokens)
        assert 0.125 <= change.budget <= 1.0
        n = len(guard.tokens)
        guard.carried_out(change, change.n_kept, 1.0)
        assert len(guard.tokens) == change.n_kept <= n
    result = guard.result(0)
    done = [e for e in result.events if e.action not in ("watch", "alarm", "recompress")]
    raised = sum(e.action == "raise" for e in done)
    assert len(done) - max(0, raised - 1) == guard.interventions <= most
    assert sum(e.reason == "calm" and e.action == "recompress" for e in result.events) <= 1
    assert all(e.reason != "let_go" for e in result.events[:-1])
    assert 0.125 <= result.mean_budget <= 1.0
    assert result.decoded_tokens == len(seen)
    for event in result.events:
        assert event.n_kept + len(event.dropped_ids) == event.token + 1
    if cls is NoController:
        assert not result.events
