"""The base of controllers: settings, needs, and the three modes that they move between.

NORMAL keeps the point's budget. ALERT says that the hazard has reached `tau_low`: checkpoints are
kept close, nothing else changes. SAFE is entered after `k` tokens in a row at or above `tau_high`
and means: roll back, relax to `safe_budget`, go on. It lasts at least `cooldown` tokens and until
`j` tokens in a row were below `tau_low`. The same code steers a simulation and a live run; a step
costs about a microsecond.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from kvx.config import fields
from kvx.config.controller import ControllerConfig, OperatingPoint
from kvx.config.fields import option
from kvx.scoring.loops import REPORT_TOKENS

PREFILL = -1  # the token index of what is seen before the first token
RULE_LOW, RULE_HIGH = 0.5, 1.0  # scores other than a hazard: a share of what is an alarm

ON_LOOP = "whether a loop that has begun is an alarm too"  # the help of a field of several classes


class Mode(IntEnum):
    NORMAL = 0
    ALERT = 1
    SAFE = 2


class Observation(NamedTuple):
    """Observations of a sequence after token number `token` (0-based; -1: before the first).

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
    """The operating points in a hazard model's card: the `hazard` that is an alarm, and
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


class Scores(Protocol):
    """A controller's state for one sequence, token by token."""

    def step(self, seen: Observation) -> tuple[float, str]:
        """The score after a token, and the reason that an alarm by it would have."""

    def rollback(self, n_kept: int) -> None:
        """Forget the tokens from number `n_kept` on."""


class Peaks(Protocol):
    """The highest values of a recorded response (`kvx.learning.simulation.Trace`)."""

    @property
    def probe_nats(self) -> float: ...

    @property
    def hazard_peak(self) -> float: ...

    @property
    def loops(self) -> bool: ...

    def cusum_peak(self, reference_nats: float) -> float: ...


class Controller(ControllerConfig):
    """A controller: an immutable dataclass of its settings, shared by the sequences it follows.

    A controller of your own subclasses `Alarms` (see docs/guard/controllers.md). The attributes
    below are what an instance has whose class makes no fields of them.
    """

    # whether `score` can raise an alarm; if not, only the gate and loops do
    scores_tokens: ClassVar[bool] = True
    # whether an alarm goes back to before what the end repeats, as a forecast's does
    past_tail: ClassVar[bool] = False
    # whether `Observation.entropy_nats` is needed
    reads_entropy: ClassVar[bool] = True

    safe_budget: float = 1.0
    k: int = 1
    j: int = 8
    cooldown: int = 32
    rollback: bool = True
    rollback_tokens: int = 32
    on_loop: bool = False
    prefill_gate_nats: float | None = None

    @property
    def reads_repetition(self) -> bool:
        """Whether `Observation.repetition_count` is needed."""
        return True

    @property
    def gated(self) -> bool:
        """Whether the probe before the first token can start SAFE."""
        return self.prefill_gate_nats is not None

    @property
    def reach(self) -> int:
        """How many tokens the first alarm may take back.

        For a loop whose period is longer than a window, and after further alarms, it wants more.
        """
        if not self.rollback or not (self.scores_tokens or self.on_loop):
            return 0
        return self.rollback_tokens + (REPORT_TOKENS if self.on_loop else 0)

    def check(self) -> None:
        """Raises `UserError` naming the field for settings that cannot be right."""
        fields.check(self, "controller.")

    def check_live(self) -> None:
        """Raises `UserError` for settings that only a simulation can use."""

    def policy(self, thresholds: Thresholds | None = None) -> "Policy":
        """The controller ready to follow; `thresholds` are those of the hazard model's card.

        Raises `UserError` if the settings are wrong or need a threshold that the card lacks.
        """
        self.check()
        return Policy(self, RULE_LOW, RULE_HIGH)

    def gate(self, seen: Observation) -> str:
        """Before the first token: the reason to start in SAFE and stay there, or ""."""
        threshold = self.prefill_gate_nats
        return "gate" if threshold is not None and seen.probe_nats >= threshold else ""

    def score(self, seen: Observation) -> tuple[float, str]:
        """The score after a token (1 or more: an alarm), and the reason of an alarm by it."""
        return 0.0, ""

    def scores(self, key: str) -> Scores:
        """The scores of the sequence `key`; a controller that remembers overrides this."""
        return _Stateless(self.score)

    def stays_calm(self, peaks: Peaks, policy: "Policy") -> bool:
        """Whether a response with these peaks has no alarm for certain: saves its replay."""
        return False


@dataclass
class Alarms(Controller):
    """A controller that can alarm after the first token. Its settings are fields."""

    k: int = option(1, "tokens in a row whose score is an alarm, until SAFE", at_least=1)
    j: int = option(8, "calm tokens in a row until SAFE or ALERT ends", at_least=1)
    cooldown: int = option(32, "tokens that SAFE lasts at least", at_least=0)
    safe_budget: float = option(
        1.0,
        "budget of a sequence in SAFE, never less than its own; a live sequence that derails there "
        "too gets the full cache",
        above=0,
        at_most=1,
    )
    rollback: bool = option(
        True, "whether an alarm takes tokens back; false: it only raises the budget"
    )
    rollback_tokens: int = option(
        32,
        "tokens taken back and decoded again, counted back from a loop's onset, or from where the "
        "end begins to repeat what stood before",
        at_least=0,
    )
    prefill_gate_nats: float | None = option(
        None,
        "divergence of full and compressed cache before the first token, from which the budget is "
        "raised there; null: no such gate (Hazard: that of the card, with card_gate)",
        at_least=0,
    )

    def quiet(self, peaks: Peaks) -> bool:
        """Whether neither the gate nor a loop alarms in a response with these peaks."""
        gate = self.prefill_gate_nats
        return not (gate is not None and peaks.probe_nats >= gate) and not (
            self.on_loop and peaks.loops
        )


@dataclass(frozen=True)
class Policy:
    """A checked controller with what it takes from a model's card: the taus, and in `config` the
    gate.
    """

    config: Controller
    tau_low: float
    tau_high: float

    def budget(self, mode: Mode, nominal: float) -> float:
        """The budget of a sequence in `mode` whose point asks for `nominal`."""
        return max(nominal, self.config.safe_budget) if mode is Mode.SAFE else nominal


def check(config: ControllerConfig) -> None:
    """Raises `UserError` naming the field for a controller that cannot be right."""
    _controller(config).check()


def check_live(config: ControllerConfig) -> None:
    """Raises `UserError` naming the field for settings that only a simulation can use."""
    _controller(config).check_live()


def policy(config: ControllerConfig, thresholds: Thresholds | None = None) -> Policy:
    """`Controller.policy` of a configuration's controller."""
    return _controller(config).policy(thresholds)


def _controller(config: ControllerConfig) -> Controller:
    assert isinstance(config, Controller), f"{type(config).__name__} is not a Controller"
    return config


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


class Follower:
    """Follows one sequence. `key` names it: a random controller draws differently for each."""

    def __init__(self, policy: Policy, key: str = "") -> None:
        config = policy.config
        self.policy = policy
        self._state = Hysteresis(
            policy.tau_low, policy.tau_high, config.k, config.j, config.cooldown
        )
        self._for_good = not config.acts  # the mode no longer changes
        self._on_loop = config.on_loop
        self._past_tail = config.past_tail
        self._scores = config.scores(key)

    @property
    def mode(self) -> Mode:
        return self._state.mode

    def step(self, seen: Observation) -> Decision:
        """Decide after one token; before the first one, with `seen.token` -1, at the gate."""
        state, token = self._state, seen.token
        if token <= PREFILL:
            return self._gate(seen)
        if self._for_good:
            return Decision(state.mode, False, False, token + 1, "")
        value, reason = self._scores.step(seen)
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
        self._scores.rollback(n_kept)
        self._state.forget()

    def _gate(self, seen: Observation) -> Decision:
        """SAFE for good if it starts there: calm tokens of a full cache clear no compressed one."""
        reason = self.policy.config.gate(seen)
        if reason:
            self._state.enter()
            self._for_good = True
        return Decision(self._state.mode, bool(reason), False, 0, reason)


class _Stateless:
    """Scores that depend on the latest token alone."""

    __slots__ = ("step",)

    def __init__(self, score: Callable[[Observation], tuple[float, str]]) -> None:
        self.step = score

    def rollback(self, n_kept: int) -> None:
        """Nothing was remembered."""
