"""The controller: NORMAL, ALERT and SAFE with hysteresis, one per running sequence.

NORMAL keeps the point's budget. ALERT says that the hazard has reached `tau_low`: checkpoints are
kept close, nothing else changes. SAFE is entered after `k` tokens in a row at or above `tau_high`
and means: roll back, relax to `safe_budget`, go on. It lasts at least `cooldown` tokens and until
`j` tokens in a row were below `tau_low`. The same code steers a simulation and a live run; a step
costs about a microsecond.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

from kvx.config import fields
from kvx.config.controller import ControllerConfig, ControllerKind, OperatingPoint
from kvx.errors import UserError

PREFILL = -1  # the token index of what is seen before the first token
RULE_LOW, RULE_HIGH = 0.5, 1.0  # rules without a hazard: a share of the sum that is an alarm


class Mode(IntEnum):
    NORMAL = 0
    ALERT = 1
    SAFE = 2


class Observation(NamedTuple):
    """What is known of a sequence after token number `token` (0-based; -1: before the first).

    `hazard` is the probability that a catastrophe starts within the horizon, nan where there is no
    forecast. `loop_onset` is the token at which a loop began, None unless the sequence is in one
    now. `repetition_count` as in `kvx.scoring.repetition`. `probe_nats` matters at -1 only.
    `repeated` is `kvx.guard.loop_follower.repeated_tail`, or what gives it: it takes time, and
    matters only where the hazard or a rule alarms.
    """

    token: int
    hazard: float = math.nan
    loop_onset: int | None = None
    entropy_nats: float = math.nan
    repetition_count: int = 0
    probe_nats: float = math.nan
    repeated: Callable[[], int] | int = 0


class Decision(NamedTuple):
    """`alarm`: SAFE is entered with this token. `again`: it was not enough, in SAFE, once more.

    With either, tokens from `rollback_to` on are to be dropped and decoded again; without, it is
    the next token. `reason` is gate, hazard, loop, repetition, entropy, random or always_safe.
    """

    mode: Mode
    alarm: bool
    again: bool
    rollback_to: int
    reason: str


@dataclass(frozen=True)
class Thresholds:
    """What a hazard model's card says of its operating points: the `hazard` that is an alarm, and
    the divergence in nats at the gate before the first token.
    """

    hazard: Mapping[OperatingPoint, float]
    gate_nats: Mapping[OperatingPoint, float]

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> "Thresholds":
        """Those of a card that has been checked; an operating point or a gate may be missing."""
        found, gates = card["thresholds"], card.get("gate", {})
        points = {p.name: p for p in OperatingPoint}
        return cls(
            {points[n]: float(found[n]["hazard"]) for n in points if n in found},
            {points[n]: float(gates[n]["nats"]) for n in points if n in gates},
        )


@dataclass(frozen=True)
class Policy:
    """A checked `ControllerConfig` with what it gets from a model's card filled in: the taus, and
    the gate in `config`.
    """

    config: ControllerConfig
    tau_low: float
    tau_high: float

    def budget(self, mode: Mode, nominal: float) -> float:
        """The budget of a sequence in `mode` whose point asks for `nominal`."""
        return max(nominal, self.config.safe_budget) if mode is Mode.SAFE else nominal


def needs_hazard(config: ControllerConfig) -> bool:
    """Whether the controller cannot work without a hazard model."""
    return config.kind is ControllerKind.hazard


def check(config: ControllerConfig) -> None:
    """Raises `UserError` naming the field for a controller that cannot be right."""
    fields.check(config, "controller.")
    c = config
    if c.tau_low is not None and c.tau_high is not None and c.tau_low > c.tau_high:
        raise UserError(
            f"controller.tau_low={c.tau_low:g}: must be at most tau_high={c.tau_high:g}"
        )
    if c.kind is ControllerKind.hazard and c.tau_high is None and c.operating_point is None:
        raise UserError(
            "controller.tau_high: needs a value, or controller.operating_point of the model's card"
        )
    if c.kind is ControllerKind.gate and c.prefill_gate_nats is None:
        raise UserError("controller.prefill_gate_nats: needs a value for controller.kind=gate")
    reads = "card_gate" if c.card_gate else "gate_point" if c.gate_point is not None else None
    if reads is not None and c.kind is not ControllerKind.hazard:
        raise UserError(
            f"controller.{reads}: controller={c.name} reads no model's card; set "
            "controller.prefill_gate_nats"
        )
    if c.kind is ControllerKind.rule_based and (c.repetition_count, c.entropy_cusum_nats) == (
        None,
        None,
    ):
        raise UserError(
            "controller.kind=rule_based: needs repetition_count, entropy_cusum_nats or both"
        )


def policy(config: ControllerConfig, thresholds: Thresholds | None = None) -> Policy:
    """`config` with its taus and its gate; `thresholds` are those of the hazard model's card.

    Raises `UserError` if the configuration is wrong or needs a threshold that the card has not.
    """
    check(config)
    if config.kind is not ControllerKind.hazard:
        return Policy(config, RULE_LOW, RULE_HIGH)
    high, point = config.tau_high, config.operating_point
    card = Thresholds({}, {}) if thresholds is None else thresholds
    gated = config.gate_point or point
    if config.card_gate and config.prefill_gate_nats is None and gated is not None:
        config = replace(config, prefill_gate_nats=card.gate_nats.get(gated))
    if high is None:
        assert point is not None
        high = card.hazard.get(point)
        if high is None:
            raise UserError(
                f"controller={config.name}: the hazard model has no threshold for the operating "
                f"point {point.name}; set controller.tau_high"
            )
    low = high / 2 if config.tau_low is None else config.tau_low
    if low > high:
        raise UserError(
            f"controller.tau_low={low:g}: must be at most tau_high={high:g} of the model's card"
        )
    return Policy(config, low, high)


class Hysteresis:
    """The three modes over one number per token."""

    __slots__ = ("_above", "_below", "_held", "cooldown", "j", "k", "mode", "tau_high", "tau_low")

    def __init__(self, tau_low: float, tau_high: float, k: int, j: int, cooldown: int) -> None:
        self.tau_low, self.tau_high = tau_low, tau_high
        self.k, self.j, self.cooldown = k, j, cooldown
        self.mode = Mode.NORMAL
        self._above = self._below = self._held = 0

    def enter(self) -> None:
        """Go to SAFE now."""
        self.mode = Mode.SAFE
        self._above = self._below = self._held = 0

    def forget(self) -> None:
        """Start to count again: the tokens that were counted are gone."""
        self._above = self._below = 0

    def step(self, value: float, certain: bool = False) -> bool:
        """Whether this token's `value` calls for SAFE; in SAFE, whether it does so again.

        `certain` counts as enough on its own. nan is neither above nor below.
        """
        self._above = self._above + 1 if value >= self.tau_high else 0
        self._below = self._below + 1 if value < self.tau_low and not certain else 0
        enough = certain or self._above >= self.k
        if self.mode is Mode.SAFE:
            self._held += 1
            if self._held < self.cooldown:
                return False
            if enough:
                self.enter()
            elif self._below >= self.j:
                self.mode = Mode.NORMAL
            return enough
        if enough:
            self.enter()
        elif value >= self.tau_low:
            self.mode = Mode.ALERT
        elif self._below >= self.j:
            self.mode = Mode.NORMAL
        return enough


class Controller:
    """Follows one sequence. `key` names it: a random controller draws differently for each."""

    def __init__(self, policy: Policy, key: str = "") -> None:
        config = policy.config
        self.policy = policy
        self._state = Hysteresis(
            policy.tau_low, policy.tau_high, config.k, config.j, config.cooldown
        )
        self._off = config.kind is ControllerKind.none
        self._for_good = False  # SAFE until the end
        # chance knows nothing of where what it alarms at began
        self._past_tail = config.kind in (ControllerKind.hazard, ControllerKind.rule_based)
        self._on_loop = config.on_loop or config.kind is ControllerKind.reactive
        self._sums: list[float] = []  # entropy above the reference, after each token
        self._random = random.Random(f"{config.seed}/{key}")
        self._score: Callable[[Observation], tuple[float, str]] = {
            ControllerKind.hazard: self._hazard,
            ControllerKind.rule_based: self._rules,
            ControllerKind.random: self._chance,
        }.get(config.kind, _nothing)

    @property
    def mode(self) -> Mode:
        return self._state.mode

    def step(self, seen: Observation) -> Decision:
        """Decide after one token; before the first one, with `seen.token` -1, at the gate."""
        state, token = self._state, seen.token
        if token <= PREFILL:
            return self._gate(seen)
        if self._off or self._for_good:
            return Decision(state.mode, False, False, token + 1, "")
        value, reason = self._score(seen)
        certain = self._on_loop and seen.loop_onset is not None
        was_safe = state.mode is Mode.SAFE
        if not state.step(value, certain):
            return Decision(state.mode, False, False, token + 1, "")
        start = token + 1
        if certain:
            assert seen.loop_onset is not None
            start, reason = min(start, seen.loop_onset), "loop"
        elif self._past_tail:
            start = max(0, start - (seen.repeated() if callable(seen.repeated) else seen.repeated))
        config = self.policy.config
        back = max(0, start - config.rollback_tokens) if config.rollback else token + 1
        return Decision(Mode.SAFE, not was_safe, was_safe, back, reason)

    def rollback(self, n_kept: int) -> None:
        """Forget what was seen of tokens from number `n_kept` on; the mode stays."""
        del self._sums[n_kept:]
        self._state.forget()

    def _gate(self, seen: Observation) -> Decision:
        """SAFE for good if it starts there: calm tokens of a full cache clear no compressed one."""
        config = self.policy.config
        gate = config.prefill_gate_nats
        reason = ""
        if config.kind is ControllerKind.always_safe:
            reason = "always_safe"
        elif gate is not None and not self._off and seen.probe_nats >= gate:
            reason = "gate"
        if reason:
            self._state.enter()
            self._for_good = True
        return Decision(self._state.mode, bool(reason), False, 0, reason)

    def _hazard(self, seen: Observation) -> tuple[float, str]:
        return seen.hazard, "hazard"

    def _rules(self, seen: Observation) -> tuple[float, str]:
        """The larger of the two rules, each as a share of what is an alarm."""
        config = self.policy.config
        repeated = summed = 0.0
        if config.repetition_count is not None:
            repeated = seen.repetition_count / config.repetition_count
        if config.entropy_cusum_nats is not None:
            before = self._sums[-1] if self._sums else 0.0
            step = seen.entropy_nats - config.entropy_reference_nats
            total = before if math.isnan(step) else max(0.0, before + step)
            # no higher than the alarm: it shall come down as soon as it is over
            self._sums.append(min(total, config.entropy_cusum_nats))
            summed = self._sums[-1] / config.entropy_cusum_nats
        return (repeated, "repetition") if repeated >= summed else (summed, "entropy")

    def _chance(self, seen: Observation) -> tuple[float, str]:
        return float(self._random.random() < (self.policy.config.rate or 0.0)), "random"


def _nothing(seen: Observation) -> tuple[float, str]:
    return 0.0, ""
