"""The guard's controller: what its parameters promise, and which requests it refuses."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.cli.command import compose
from kvx.config.controller import OperatingPoint
from kvx.errors import UserError
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
from kvx.guard.controllers.base import (
    Decision,
    Follower,
    Hysteresis,
    Mode,
    Observation,
    Thresholds,
    check,
    policy,
)
from kvx.guard.hazard import DEFAULT, HazardModel
from kvx.guard.loop_follower import LoopDetector, first_report, repeated_tail, repeated_tails
from kvx.identity.hashing import digest
from kvx.points import controller_identity, guard_identity
from kvx.scoring.loops import find_loop
from kvx.scoring.repetition import Repetition

HAZARDS = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=120)
PARAMETERS = st.fixed_dictionaries(
    {
        "taus": st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
        "k": st.integers(1, 6),
        "j": st.integers(1, 6),
        "cooldown": st.integers(0, 20),
    }
)


def hazard(**fields: Any) -> Hazard:
    return Hazard(name="test", **{"tau_high": 0.5, **fields})


def of(parameters: dict[str, Any]) -> Hazard:
    low, high = parameters["taus"]
    rest = {name: parameters[name] for name in ("k", "j", "cooldown")}
    return hazard(tau_low=low, tau_high=high, **rest)


def run(config: Controller, hazards: list[float], **fields: Any) -> list[Decision]:
    controller = Follower(policy(config))
    return [controller.step(Observation(i, h, **fields)) for i, h in enumerate(hazards)]


def alarms(decisions: list[Decision]) -> list[int]:
    return [i for i, d in enumerate(decisions) if d.alarm]


@given(PARAMETERS, HAZARDS)
def test_safe_is_entered_after_k_hits_in_a_row_and_never_without(
    parameters: dict[str, Any], hazards: list[float]
) -> None:
    config = of(parameters)
    assert config.tau_high is not None
    decisions = run(config, hazards)
    for at in alarms(decisions):
        assert at >= config.k - 1
        assert all(h >= config.tau_high for h in hazards[at - config.k + 1 : at + 1])
    modes = [Mode.NORMAL, *(d.mode for d in decisions)]
    for at in range(len(hazards) - config.k + 1):
        hits = all(h >= config.tau_high for h in hazards[at : at + config.k])
        if hits and all(m is not Mode.SAFE for m in modes[at : at + config.k]):
            assert modes[at + config.k] is Mode.SAFE


@given(PARAMETERS, HAZARDS)
def test_safe_lasts_cooldown_and_j_calm_tokens(
    parameters: dict[str, Any], hazards: list[float]
) -> None:
    config = of(parameters)
    assert config.tau_low is not None
    decisions = run(config, hazards)
    entered = None
    for at, decision in enumerate(decisions):
        if decision.alarm or decision.again:
            assert entered is None or decision.alarm or at - entered >= config.cooldown
            entered = at
        elif entered is not None and decision.mode is not Mode.SAFE:
            assert decision.mode is Mode.NORMAL
            assert at - entered >= max(config.cooldown, config.j)
            assert all(h < config.tau_low for h in hazards[at - config.j + 1 : at + 1])
            entered = None


@given(PARAMETERS, HAZARDS)
def test_it_never_flaps_faster_than_its_parameters_allow(
    parameters: dict[str, Any], hazards: list[float]
) -> None:
    config = of(parameters)
    at = alarms(run(config, hazards))
    least = max(config.cooldown, config.j) + config.k
    assert all(b - a >= least for a, b in itertools.pairwise(at))


@given(PARAMETERS, HAZARDS, st.floats(0, 1))
def test_a_higher_threshold_never_alarms_earlier(
    parameters: dict[str, Any], hazards: list[float], higher: float
) -> None:
    config = of(parameters)
    assert config.tau_high is not None
    stricter = replace(config, tau_high=max(higher, config.tau_high))
    first, later = alarms(run(config, hazards)), alarms(run(stricter, hazards))
    assert not later or (first and first[0] <= later[0])
    patient = alarms(run(replace(config, k=config.k + 1), hazards))
    assert not patient or (first and first[0] < patient[0])


@given(PARAMETERS, HAZARDS)
def test_the_past_alone_decides(parameters: dict[str, Any], hazards: list[float]) -> None:
    whole = run(of(parameters), hazards)
    half = len(hazards) // 2
    assert run(of(parameters), hazards[:half]) == whole[:half]


def test_alert_says_that_the_hazard_is_up_and_costs_no_budget() -> None:
    config = hazard(tau_low=0.3, j=2, k=2)
    found = run(config, [0.1, 0.4, 0.1, 0.1, 0.6, 0.6])
    assert [d.mode.name for d in found] == ["NORMAL", "ALERT", "ALERT", "NORMAL", "ALERT", "SAFE"]
    decided = policy(config)
    assert [decided.budget(mode, 0.25) for mode in Mode] == [0.25, 0.25, 1.0]
    assert policy(replace(config, safe_budget=0.5)).budget(Mode.SAFE, 0.75) == 0.75


def test_an_unknown_hazard_neither_alarms_nor_calms() -> None:
    state = Hysteresis(0.2, 0.5, 1, 2, 0)
    assert state.step(0.9)
    for value in (0.1, math.nan, 0.1, math.nan):
        state.step(value)
        assert state.mode is Mode.SAFE
    state.step(0.1)
    state.step(0.1)
    assert state.mode is Mode.NORMAL


def test_in_safe_it_says_when_the_sequence_derails_again() -> None:
    found = run(hazard(cooldown=3), [0.9] * 8)
    assert [i for i, d in enumerate(found) if d.again] == [3, 6]
    assert alarms(found) == [0]


def test_a_detected_loop_is_an_alarm_whatever_the_hazard_and_goes_back_before_it() -> None:
    seen = Observation(90, 0.0, loop_onset=50)
    assert not Follower(policy(hazard(k=5))).step(seen).alarm
    found = Follower(policy(hazard(k=5, on_loop=True))).step(seen)
    assert (found.alarm, found.rollback_to, found.reason) == (True, 18, "loop")
    reactive = Reactive(name="reactive")
    assert Follower(policy(reactive)).step(seen) == found
    early = Follower(policy(reactive)).step(Observation(30, loop_onset=10))
    assert early.rollback_to == 0


def test_the_gate_is_asked_before_the_first_token_and_holds_to_the_end() -> None:
    config = hazard(prefill_gate_nats=0.5, cooldown=0, j=1)
    for probe, expected in ((0.6, Mode.SAFE), (0.4, Mode.NORMAL), (math.nan, Mode.NORMAL)):
        controller = Follower(policy(config))
        first = controller.step(Observation(-1, probe_nats=probe))
        assert (first.mode, first.alarm) == (expected, expected is Mode.SAFE)
        assert first.rollback_to == 0
        for token in range(10):
            assert controller.step(Observation(token, 0.0)).mode is expected


def test_always_safe_and_none() -> None:
    for cls, mode in ((AlwaysSafe, Mode.SAFE), (NoController, Mode.NORMAL)):
        config: Controller = cls(name="x")
        controller = Follower(policy(config))
        assert controller.step(Observation(-1, probe_nats=9.0)).alarm == (mode is Mode.SAFE)
        for token in range(40):
            found = controller.step(Observation(token, 1.0, loop_onset=0))
            assert found == Decision(mode, False, False, token + 1, "")


def test_random_draws_by_seed_and_sequence() -> None:
    config = Random(name="r", rate=0.05, cooldown=0, j=1)

    def draw(seed: int, key: str, n: int = 4000) -> list[int]:
        controller = Follower(policy(replace(config, seed=seed)), key)
        return [t for t in range(n) if controller.step(Observation(t)).alarm]

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(1, "a") != draw(1, "b")
    assert 0.03 < len(draw(0, "a")) / 4000 < 0.07
    never = Follower(policy(replace(config, rate=0.0)))
    assert not any(never.step(Observation(t)).alarm for t in range(200))


def test_rules_sum_entropy_above_the_reference_and_count_repetition() -> None:
    entropy = RuleBased(
        name="e", entropy_cusum_nats=3.0, entropy_reference_nats=1.0
    )  # fmt: skip
    controller = Follower(policy(entropy))
    values = [2.0, 2.0, 0.0, 2.0, math.nan, 2.0]
    found = [controller.step(Observation(t, entropy_nats=v)).reason for t, v in enumerate(values)]
    assert found == ["", "", "", "", "", "entropy"]
    repetition = replace(entropy, entropy_cusum_nats=None, repetition_count=2)
    controller = Follower(policy(repetition))
    assert not controller.step(Observation(0, repetition_count=1)).alarm
    assert controller.step(Observation(1, repetition_count=2)).reason == "repetition"


@given(
    st.lists(st.floats(0, 4), min_size=1, max_size=40),
    st.lists(st.floats(0, 4), max_size=10),
    st.data(),
)
def test_after_a_rollback_sums_are_those_of_the_kept_tokens(
    kept: list[float], dropped: list[float], data: st.DataObject
) -> None:
    config = RuleBased(
        name="e", entropy_cusum_nats=1e6, entropy_reference_nats=1.0
    )  # fmt: skip
    rolled, fresh = Follower(policy(config)), Follower(policy(config))
    for t, value in enumerate([*kept, *dropped]):
        rolled.step(Observation(t, entropy_nats=value))
    rolled.rollback(len(kept))
    for t, value in enumerate(kept):
        fresh.step(Observation(t, entropy_nats=value))
    assert rolled._scores.sums == fresh._scores.sums


TOKENS = st.one_of(
    st.lists(st.integers(0, 2), max_size=90),
    st.tuples(
        st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), min_size=1,
        max_size=30), st.integers(1, 6), st.lists(st.integers(0, 5), max_size=30),
    ).map(lambda t: t[0] + t[1] * t[2] + t[3]),
)  # fmt: skip


@given(TOKENS)
def test_the_incremental_detector_agrees_with_the_one_for_whole_responses(
    tokens: list[int],
) -> None:
    detector, counter = LoopDetector(), Repetition()
    for n, token in enumerate(tokens, 1):
        now = detector.push(token)
        assert detector.found == find_loop(tokens[:n])
        count, _ = counter.push(token)
        if count >= 2:  # this window stands here for the third time
            assert now is not None
        if now is not None:
            assert detector.found is not None
            assert now < n
    if tokens:
        half = len(tokens) // 2
        detector.truncate(half)
        assert detector.found == find_loop(tokens[:half])
        assert [detector.push(t) for t in tokens[half:]] == [
            now for i, now in enumerate(map(LoopDetector().push, tokens)) if i >= half
        ]


@given(TOKENS)
def test_the_first_report_is_the_first_token_with_which_there_is_a_loop(tokens: list[int]) -> None:
    found = [find_loop(tokens[: n + 1]) is not None for n in range(len(tokens))]
    assert first_report(tokens) == (found.index(True) if True in found else None)


def test_a_loop_that_ended_is_no_loop_now() -> None:
    detector = LoopDetector()
    line = list(range(12))
    seen = [detector.push(t) for t in [*line * 5, *range(100, 140)]]
    onset = next(s for s in seen if s is not None)
    assert onset == 12
    assert seen[-1] is None
    assert detector.found is not None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tau_low": 0.6}, "controller.tau_low=0.6: must be at most tau_high=0.5"),
        ({"tau_high": 1.5}, "controller.tau_high=1.5: must be between 0 and 1"),
        ({"tau_low": -0.1}, "controller.tau_low=-0.1: must be between 0 and 1"),
        ({"k": 0}, "controller.k=0: must be at least 1"),
        ({"j": 0}, "controller.j=0: must be at least 1"),
        ({"cooldown": -1}, "controller.cooldown=-1"),
        ({"safe_budget": 0.0}, "controller.safe_budget=0: must be above 0"),
        ({"prefill_gate_nats": -1.0}, "controller.prefill_gate_nats=-1"),
        ({"tau_high": math.nan}, "controller.tau_high=nan"),
        ({"tau_high": None}, "controller.tau_high: needs a value, or controller.operating_point"),
    ],
)
def test_a_controller_that_cannot_be_right(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        check(hazard(**fields))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_rate_is_a_probability() -> None:
    with pytest.raises(UserError, match=r"controller\.rate=2: must be between 0 and 1"):
        check(Random(name="r", rate=2.0))


def test_a_gate_alone_needs_a_threshold_and_sees_nothing_else() -> None:
    gate = Gate(name="g")
    with pytest.raises(UserError, match=r"controller\.prefill_gate_nats: needs a value"):
        check(gate)
    controller = Follower(policy(replace(gate, prefill_gate_nats=0.5)))
    assert not controller.step(Observation(-1, probe_nats=0.4)).alarm
    for token in range(30):
        found = controller.step(Observation(token, 1.0, 0, 9.0, 9))
        assert found.mode is Mode.NORMAL


def test_rules_need_a_rule() -> None:
    with pytest.raises(UserError, match=r"controller=r: needs controller\.repetition_count"):
        check(RuleBased(name="r"))


def test_thresholds_come_from_the_card_unless_given() -> None:
    card = Thresholds({OperatingPoint.balanced: 0.12}, {})
    config = hazard(tau_high=None, operating_point=OperatingPoint.balanced)
    assert (policy(config, card).tau_low, policy(config, card).tau_high) == (0.06, 0.12)
    assert policy(replace(config, tau_high=0.3), card).tau_high == 0.3
    with pytest.raises(UserError, match="no threshold for the operating point aggressive"):
        policy(replace(config, operating_point=OperatingPoint.aggressive), card)
    with pytest.raises(UserError, match=r"tau_low=0.5: must be at most tau_high=0\.12"):
        policy(replace(config, tau_low=0.5), card)


SHIPPED = {
    "none": NoController, "conservative": Hazard,
    "balanced": Hazard, "aggressive": Hazard,
    "rule_based": RuleBased, "reactive": Reactive,
    "always_safe": AlwaysSafe, "random": Random,
    "gate": Gate,
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_controllers(name: str) -> None:
    config = compose(f"controller={name}").controller
    assert (config.name, type(config)) == (name, SHIPPED[name])
    card = Thresholds(dict.fromkeys(OperatingPoint, 0.2), dict.fromkeys(OperatingPoint, 1.7))
    decided = policy(config, card)
    assert decided.tau_low <= decided.tau_high
    if isinstance(config, Hazard):
        assert config.operating_point is OperatingPoint[name]
        assert decided.config.prefill_gate_nats == 1.7
    else:
        assert (decided.config.prefill_gate_nats is None) is (name != "gate")


def test_the_gate_alone_is_that_of_the_packaged_card() -> None:
    card = Thresholds.of(HazardModel.load(DEFAULT).card)
    alone = compose("controller=gate").controller.prefill_gate_nats
    assert alone == pytest.approx(card.gate_nats[OperatingPoint.balanced], abs=1e-3)


def test_the_gate_is_that_of_the_card_unless_given_or_closed() -> None:
    one, other = OperatingPoint.balanced, OperatingPoint.conservative
    card = Thresholds({one: 0.12, other: 0.3}, {one: 1.4, other: 1.7})
    config = hazard(tau_high=None, operating_point=one, card_gate=True, gate_point=other)

    def gate(config: Hazard, card: Thresholds | None = card) -> float | None:
        return policy(config, card).config.prefill_gate_nats

    assert gate(config) == 1.7
    assert gate(replace(config, gate_point=None)) == 1.4
    assert gate(replace(config, tau_high=0.3)) == 1.7
    assert gate(replace(config, prefill_gate_nats=0.4)) == 0.4
    assert gate(replace(config, card_gate=False)) is None
    assert gate(replace(config, card_gate=False, prefill_gate_nats=0.4)) == 0.4
    assert gate(config, Thresholds(card.hazard, {})) is None  # made from traces without a probe
    seen = Observation(-1, probe_nats=1.7)
    assert Follower(policy(config, card)).step(seen).reason == "gate"


def test_the_thresholds_of_a_card() -> None:
    card = {"thresholds": {"balanced": {"hazard": 0.3}}}
    assert Thresholds.of(card) == Thresholds({OperatingPoint.balanced: 0.3}, {})
    found = Thresholds.of(HazardModel.load(DEFAULT).card)
    assert set(found.hazard) == set(found.gate_nats) == set(OperatingPoint)
    conservative, balanced, aggressive = (found.gate_nats[p] for p in OperatingPoint)
    assert conservative > balanced > aggressive > 0


@given(st.integers(0, 60), st.integers(0, 40))
def test_a_forecast_drops_what_has_been_said_before_and_more(repeated: int, back: int) -> None:
    """An alarm in a loop that is not yet detected goes back to before it began, as a loop's."""
    config = hazard(rollback_tokens=back)
    seen = Observation(70, 0.9, repeated=repeated)
    assert Follower(policy(config)).step(seen).rollback_to == max(0, 71 - repeated - back)
    relaxed = Follower(policy(replace(config, rollback=False))).step(seen)
    assert relaxed.rollback_to == 71
    chance = Random(
        name="r", rate=1.0, rollback_tokens=back
    )  # fmt: skip
    assert Follower(policy(chance)).step(seen).rollback_to == 71 - back


TAILS = st.lists(st.integers(0, 2), max_size=60)


@given(TAILS, TAILS)
def test_the_repeated_tail(before: list[int], again: list[int]) -> None:
    ids = [*before, *again, 9, *again]
    n = len(ids)
    sizes = [k for k in range(n) if any(ids[i : i + k] == ids[n - k :] for i in range(n - k))]
    assert repeated_tail(ids) == max(sizes)
    assert repeated_tail(ids) >= len(again)
    assert repeated_tails(ids) == [repeated_tail(ids[: i + 1]) for i in range(n)]


def test_of_a_loop_the_repeated_tail_began_at_its_onset() -> None:
    ids = [*range(30), *([30, 31, 32, 33, 34, 35] * 6)]
    loop = find_loop(ids)
    assert loop is not None
    assert len(ids) - repeated_tail(ids) == loop.onset == 36
    assert repeated_tail([]) == repeated_tail([1]) == repeated_tail([1, 2]) == 0


def test_the_identity_of_a_controller() -> None:
    assert controller_identity(compose()) == {"name": "none"}
    assert controller_identity(compose("controller.k=3")) == {"name": "none"}
    plain = controller_identity(compose("controller=balanced"))
    assert plain == {
        "name": "balanced", "kind": "hazard", "operating_point": "balanced",
        "on_loop": True, "card_gate": True, "gate_point": "conservative", "safe_budget": 0.5,
    }  # fmt: skip
    assert controller_identity(compose("controller=balanced", "controller.j=8")) == plain
    closed = ("controller=balanced", "controller.card_gate=false")
    idle = "controller.gate_point=aggressive"  # of a gate that is closed
    assert controller_identity(compose(*closed, idle)) == controller_identity(compose(*closed))
    assert controller_identity(compose("controller=balanced", "controller.j=9")) != plain


# digests of what a point's id held of its controller when every controller had the same fields
IDS = [
    ("controller=aggressive", "b6effa79"),
    ("controller=always_safe", "b8c6303b"),
    ("controller=balanced", "f23955cc"),
    ("controller=conservative", "619af5df"),
    ("controller=entropy_cusum", "9d882a79"),
    ("controller=gate", "602bc6c2"),
    ("controller=ngram", "95de3db1"),
    ("controller=none", "65e18a73"),
    ("controller=random", "e73229ee"),
    ("controller=reactive", "277ff0de"),
    ("controller=relax_only", "d9bc856b"),
    ("controller=rule_based", "ca07561d"),
    ("controller=balanced controller.tau_high=0.4 controller.k=2", "fa1a026c"),
    ("controller=random controller.rate=0.01 controller.seed=3", "8af58388"),
    ("controller=gate controller.prefill_gate_nats=0.5 controller.safe_budget=0.5", "10956f97"),
    ("controller=reactive controller.rollback=false controller.cooldown=16", "dbe89615"),
    (
        "controller=rule_based controller.repetition_count=2 controller.entropy_reference_nats=2.5",
        "bc4475f4",
    ),
    ("controller=always_safe controller.safe_budget=0.5", "8c42d8eb"),
    ("controller=balanced controller.card_gate=false", "69ae9887"),
    ("controller=balanced controller.prefill_gate_nats=0.7 controller.name=mine", "9932653d"),
    ("controller=none controller.k=3", "65e18a73"),
]


@pytest.mark.parametrize(("line", "expected"), IDS)
def test_ids_are_those_from_before_controllers_were_classes(line: str, expected: str) -> None:
    config = compose("press=knorm", "budget=0.5", *line.split())
    assert digest([controller_identity(config), guard_identity(config)]) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("controller=gate controller.tau_high=1", "controller.tau_high: controller=gate has no"),
        ("controller.kind=reactive", "controller.kind=reactive: .*: controller=reactive$"),
        ("controller=balanced controller.kind=rule_based", "controller=ngram, controller=rule_b"),
        ("controller=balanced controller.k=many", "controller.k=many: Value 'many'"),
        ("controller=balanced controller.coldown=3", "did you mean controller.cooldown"),
        ("controller=none controller.k=0", "controller.k=0: must be at least 1"),
        ("controller._target_=no_module.Mine", "controller._target_=no_module.Mine: no such"),
        ("controller._target_=kvx.points.Point", "must be a subclass of kvx.guard.controllers"),
    ],
)
def test_a_line_that_no_controller_reads(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        compose("press=knorm", "budget=0.5", *line.split())
    assert "\n" not in str(error.value)
