"""Replays: what counts as prevented, as false, and what it costs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.guard.controllers import (
    AlwaysSafe,
    Controller,
    Gate,
    Hazard,
    NoController,
    Random,
    Reactive,
    RuleBased,
)
from kvx.guard.controllers.base import Mode, Policy, policy
from kvx.learning.simulation import (
    Outcome,
    Trace,
    matching_rate,
    observations,
    pareto_front,
    replay,
    replay_all,
    summarise,
    thresholds,
)
from tests.controllers import with_own


def trace(
    hazard: list[float],
    onset: int | None = None,
    catastrophe: bool | None = None,
    loop: tuple[int, int] | None = None,
    budget: float = 0.25,
    entries: int = 100,
    probe: float = math.nan,
    key: str = "x",
) -> Trace:
    """`loop`: from which token on it is known, and its onset."""
    n = len(hazard)
    known, start = loop or (n, 0)
    seen = observations(
        hazard, [1.0] * n, [start if t >= known else None for t in range(n)], [0] * n, probe
    )
    event = onset is not None if catastrophe is None else catastrophe
    return Trace(key, seen, budget, entries, event, event, onset)


def hazard_policy(**fields: Any) -> Policy:
    given = {"tau_high": 0.5, "cooldown": 4, "j": 2, "rollback_tokens": 8, **fields}
    return policy(Hazard(name="h", **given))


def policy_of(cls: type[Controller], **fields: Any) -> Policy:
    return policy(with_own(cls, name=cls.kind, **fields))


def peak(n: int, at: int) -> list[float]:
    return [0.9 if t == at else 0.0 for t in range(n)]


def test_an_alarm_in_a_loop_is_in_time_if_it_goes_back_to_its_onset() -> None:
    """After the onset what is said again grows by a token each: an alarm goes back behind it."""
    onset, late = 20, 35
    blind = trace(peak(40, late), onset=onset)
    assert not replay(blind, hazard_policy()).prevents(blind, None)
    repeated = [max(0, t - onset + 1) for t in range(40)]
    seen = observations(peak(40, late), [1.0] * 40, [None] * 40, [0] * 40, repeated=repeated)
    sighted = Trace("x", seen, 0.25, 100, True, True, onset)
    found = replay(sighted, hazard_policy())
    assert (found.alarm, found.rollback_to) == (late, onset - 8)
    assert found.prevents(sighted, None)
    assert found.dropped_tokens == late + 1 - (onset - 8)


def test_an_alarm_before_the_onset_prevents_at_best() -> None:
    found = replay(t := trace(peak(40, 12), onset=20), hazard_policy())
    assert (found.alarm, found.rollback_to) == (12, 5)
    assert found.prevents(t, None)
    assert found.forecasts(t)
    assert found.lead(t) == 8
    assert found.dropped_tokens == 8


@pytest.mark.parametrize(
    ("at", "lateness", "prevents"),
    [(27, None, True), (28, None, False), (20, 0, True), (21, 0, False), (25, 5, True),
     (26, 5, False)],
)  # fmt: skip
def test_how_late_an_alarm_may_come(at: int, lateness: int | None, prevents: bool) -> None:
    found = replay(t := trace(peak(40, at), onset=20), hazard_policy())
    assert found.prevents(t, lateness) is prevents
    assert found.forecasts(t) is (at < 20)


def test_the_reactive_guard_rolls_back_before_the_loop_however_late_it_sees_it() -> None:
    reactive = policy_of(Reactive)
    found = replay(t := trace([0.0] * 120, onset=40, loop=(100, 40)), reactive)
    assert (found.alarm, found.rollback_to, found.dropped_tokens) == (100, 8, 93)
    assert found.prevents(t, None)
    assert not found.forecasts(t)
    assert not found.prevents(t, 20)
    assert found.lead(t) == -60


def test_a_catastrophe_without_an_onset_is_prevented_by_any_alarm() -> None:
    t = trace(peak(40, 30), catastrophe=True)
    found = replay(t, hazard_policy())
    assert found.prevents(t, None)
    assert not found.forecasts(t)
    assert math.isnan(found.lead(t))
    calm = trace([0.0] * 40, catastrophe=True)
    assert not replay(calm, hazard_policy()).prevents(calm, None)


def test_the_budget_is_paid_by_the_tokens_after_the_decision() -> None:
    # alarm at token 3, SAFE for 4 tokens: tokens 4 to 7
    found = replay(trace(peak(10, 3)), hazard_policy())
    assert found.mean_budget == pytest.approx((6 * 0.25 + 4 * 1.0) / 10)
    half = replay(trace(peak(10, 3)), hazard_policy(safe_budget=0.5))
    assert half.mean_budget == pytest.approx((6 * 0.25 + 4 * 0.5) / 10)
    always = replay(trace([0.0] * 10), policy_of(AlwaysSafe))
    assert (always.mean_budget, always.alarm, always.dropped_tokens) == (1.0, -1, 0)
    nothing = replay(trace([1.0] * 10), policy_of(NoController))
    assert (nothing.mean_budget, nothing.alarm) == (0.25, None)


def test_a_gate_prevents_what_starts_at_once() -> None:
    gate = hazard_policy(prefill_gate_nats=0.5)
    t = trace([0.0] * 30, onset=0, probe=0.7)
    assert replay(t, gate).prevents(t, 0)
    assert replay(t, gate).mean_budget == 1.0
    assert not replay(t, hazard_policy()).prevents(t, None)


HAZARDS = st.lists(st.sampled_from([0.0, 0.2, 0.45, 0.5, 0.7, math.nan]), min_size=1, max_size=40)


@given(
    HAZARDS, st.booleans(), st.booleans(), st.sampled_from([None, 0.3, 0.5]),
    st.sampled_from([Hazard, RuleBased, Gate]),
)  # fmt: skip
def test_skipping_calm_traces_changes_nothing(
    values: list[float], loops: bool, on_loop: bool, gate: float | None, cls: type[Controller]
) -> None:
    if cls is Gate:
        gate = gate or 0.45
    start = [0 if loops and t >= len(values) // 2 else None for t in range(len(values))]
    seen = observations(values, values, start, [0] * len(values), 0.4)
    t = Trace("x", seen, 0.25, 10, False, False, None)
    chosen = policy_of(
        cls, on_loop=on_loop, prefill_gate_nats=gate, tau_high=0.5, j=2, cooldown=4,
        entropy_cusum_nats=0.6, entropy_reference_nats=0.2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        quick = replay(t, chosen)
        patch.setattr(cls, "stays_calm", lambda *_: False)
        assert replay(t, chosen) == quick


@given(HAZARDS, st.floats(0.05, 1.0))
def test_the_mean_budget_lies_between_the_two(hazard: list[float], budget: float) -> None:
    t = trace(hazard, budget=budget)
    found = replay(t, hazard_policy())
    assert budget - 1e-9 <= found.mean_budget <= 1.0 + 1e-9
    assert found.n_alarms >= (found.alarm is not None)


def many() -> tuple[list[Trace], list[str]]:
    """Ten prompts, each with a catastrophe that is foreseen, one that is not, and a calm trace."""
    traces, clusters = [], []
    for prompt in range(10):
        group = [
            trace(peak(50, 20), onset=30), trace([0.0] * 50, onset=30),
            trace(peak(50, 20) if prompt < 2 else [0.0] * 50), trace([0.0] * 50, onset=2),
        ]  # fmt: skip
        traces += group
        clusters += [f"p{prompt}"] * len(group)
    return traces, clusters


def test_a_summary_counts_traces_and_resamples_prompts() -> None:
    traces, clusters = many()
    found = replay_all(traces, [[hazard_policy()] * len(traces)])
    got = summarise(traces, found, clusters, 500, 0.95, 0)
    assert got.prevented.value == pytest.approx(1 / 3)
    assert got.prevented_preventable.value == pytest.approx(1 / 2)
    assert got.prevented_instant.value == 0
    assert got.prevented_placed.value == got.forecast.value == pytest.approx(1 / 3)
    # nobody of ten prompts: the exact interval of 0 in 10
    assert got.prevented_instant.interval.high == pytest.approx(0.3085, abs=1e-4)
    assert got.false_triggers.value == pytest.approx(0.2)
    assert 0 <= got.false_triggers.interval.low < 0.2 < got.false_triggers.interval.high <= 0.6
    assert got.triggered.value == pytest.approx(12 / 40)
    assert got.lead_median_tokens == 10
    assert got.dropped_per_1000.value == pytest.approx(1000 * 12 * 8 / (40 * 50))
    # 12 traces pay for 4 of 50 tokens, the others never
    assert got.mean_budget.value == pytest.approx(0.25 + 0.75 * (12 * 4) / (40 * 50))
    assert got.mean_budget.interval.low <= got.mean_budget.value <= got.mean_budget.interval.high


def test_mean_budget_weighs_tokens_and_prompt_entries() -> None:
    traces = [trace([0.0] * 10, budget=0.5, entries=300), trace([0.0] * 30, budget=0.2)]
    found = replay_all(traces, [[policy_of(NoController)] * 2])
    got = summarise(traces, found, ["a", "b"], 200, 0.95, 0)
    assert got.mean_budget.value == pytest.approx((0.5 * 3000 + 0.2 * 3000) / 6000)


def test_where_there_is_nothing_there_is_no_share() -> None:
    traces = [trace([0.0] * 10)] * 3
    found = replay_all(traces, [[hazard_policy()] * 3])
    got = summarise(traces, found, ["a", "b", "c"], 200, 0.95, 0)
    assert math.isnan(got.prevented.value)
    assert got.false_triggers.value == 0


def test_random_controllers_are_averaged() -> None:
    traces = [trace([0.0] * 20, onset=15, key=str(i)) for i in range(30)]
    policies = [[policy_of(Random, rate=0.05, seed=s)] * len(traces) for s in range(10)]
    found = replay_all(traces, policies)
    single = [replay_all(traces, [p]) for p in policies]
    assert found.prevented == pytest.approx(np.mean([s.prevented for s in single], axis=0))
    assert set(np.unique(found.triggered)) - {0.0, 1.0}


@given(st.floats(0.001, 0.99), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_chance_triggers_as_often_as_it_is_asked_to(share: float, lengths: list[int]) -> None:
    rate = matching_rate(share, lengths)
    assert 0 < rate < 1
    assert np.mean(1 - (1 - rate) ** np.array(lengths, float)) == pytest.approx(share, abs=1e-6)


@given(
    st.lists(
        st.tuples(*[st.integers(0, 4).map(float)] * 3), min_size=1, max_size=25
    )
)  # fmt: skip
def test_no_choice_on_the_front_is_beaten_and_every_other_one_is(
    choices: list[tuple[float, float, float]],
) -> None:
    front = pareto_front(*zip(*choices, strict=True))

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    for choice, on in zip(choices, front, strict=True):
        assert on == (not any(beats(other, choice) for other in choices))


def test_thresholds_tell_traces_apart() -> None:
    peaks = np.linspace(0, 1, 201)
    found = thresholds([*peaks, math.nan], 20)
    assert found == sorted(set(found))
    assert len(found) == 20
    assert set(found) <= set(peaks.tolist())
    assert found[0] == 0
    assert found[-1] == 1
    assert sum(t >= 0.9 for t in found) >= 10
    assert thresholds([math.nan], 20) == []


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        observations([0.1, 0.2], [1.0], [None], [0])
    t = trace([0.1])
    with pytest.raises(ValueError, match="zip"):
        replay_all([t, t], [[hazard_policy()]])


def test_an_outcome_without_an_alarm_prevents_nothing() -> None:
    t = trace([0.0] * 5, onset=3)
    silent = Outcome(None, None, 0.25, 0, 0)
    assert not silent.prevents(t, None)
    assert not silent.prevents(t, 1000)
    assert not silent.forecasts(t)
    assert Mode.SAFE > Mode.ALERT > Mode.NORMAL
