"""A controller's decisions on one running sequence, as changes of its cache.

Pure: whoever decodes asks after every token, carries the change out, and says how long it took.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvx.config.guard import GuardConfig, Shadow
from kvx.guard.controllers.base import PREFILL, Follower, Mode, Observation, Policy
from kvx.guard.events import Guarded, GuardEvent
from kvx.guard.loop_follower import LoopDetector, repeated_tail

FULL, ALWAYS, LET_GO = 1.0, "always_safe", "let_go"
ROUNDING = 1e-9  # of budgets
SEEN = ("loop", "repetition")  # reasons other than a forecast


@dataclass(frozen=True)
class Change:
    """Go on from the first `n_kept` tokens with `budget` of the prompt's entries.

    With `recompute`, what was generated is passed through the new cache again.
    """

    budget: float
    n_kept: int
    action: str
    reason: str
    recompute: bool = True


class SequenceGuard:
    """Follows one sequence whose point asks for the budget `nominal`. `key` names it.

    The gate raises the budget that counts as the sequence's own; alarms raise it to the safe
    budget until it is calm, once; after a second alarm it stays. An alarm in SAFE goes one
    checkpoint further back, with the full cache; the next one to the start. What has the full cache
    from its first token on is left alone. If it loops with the full cache where nothing more can be
    done, and does not stop for a cooldown, `config.let_go` gives it the nominal one back.

    The first `floor` tokens are never taken back: whoever has shown them raises it.
    """

    def __init__(self, policy: Policy, config: GuardConfig, nominal: float, key: str = "") -> None:
        self.policy, self.config = policy, config
        self.controller = Follower(policy, key)
        self.nominal = self.budget = self.base = nominal
        self.events: list[GuardEvent] = []
        self.tokens: list[int] = []
        self.interventions = 0
        self.recomputed_tokens = 0
        self.floor = 0
        self.longest: dict[float, int] = {}  # by budget, the most tokens it has held
        self._loops = LoopDetector()
        self._checkpoint: int | None = None  # where it went on after its latest alarm
        self._fallbacks = 0
        self._alarms = 0
        self._raised = False  # by the gate
        self._over = False  # nothing more is left to do for it
        self._steps, self._budgets = 0, 0.0
        self._looping = 0  # tokens since it was found in the loop that it is in
        self._hazard = self._probe = math.nan

    @property
    def levels(self) -> list[float]:
        """Budgets above the nominal one that may be asked for, ascending; the last one is 1.0."""
        steps = self.config.ladder if self.gated else []
        safe = self.policy.config.safe_budget
        return sorted({b for b in (*steps, safe, FULL) if b > self.base + ROUNDING})

    @property
    def settled(self) -> int:
        """How many tokens can be shown without the risk that the next alarm takes one back."""
        n = len(self.tokens)
        if self._over or not self._left():
            return n
        return max(self.floor, n - self.policy.config.reach)

    @property
    def gated(self) -> bool:
        """Whether the gate depends on what the probe finds."""
        return self.policy.config.gated

    def gate(self, probe_nats: float, chosen: int | None = None) -> Change | None:
        """Before the first token, `probe_nats` from the full cache. Asked again after a change.

        Where the whole prompt is compressed, all caches agree on the first token: then it is asked
        when the second token was `chosen`, which a change takes back.
        """
        config = self.policy.config
        self._probe = probe_nats
        if config.from_start:
            return self._raise(config.safe_budget, ALWAYS, chosen)
        threshold = config.prefill_gate_nats
        if threshold is None or not self.gated or not probe_nats >= threshold:
            return None
        return self._raise(next(iter(self.levels), self.budget), "gate", chosen)

    def step(
        self,
        token: int,
        hazard: float = math.nan,
        entropy_nats: float = math.nan,
        repetition_count: int = 0,
        ended: bool = False,
        last: bool = False,
    ) -> Change | None:
        """After `token`, the next of the sequence; one that `ended` itself is left alone.

        After the `last` token that it may have, only a change that takes some back makes sense.
        """
        change = self._decide(token, hazard, entropy_nats, repetition_count, ended)
        if change is None or not last or change.n_kept < len(self.tokens):
            return change
        if change.action != "recompress":
            self._note(Change(self.budget, change.n_kept, "alarm", change.reason))
        return None

    def _decide(
        self, token: int, hazard: float, entropy_nats: float, repetition_count: int, ended: bool
    ) -> Change | None:
        onset = self._take(token)
        self._hazard = hazard
        if self._over:
            return None if ended else self._let_go()
        at, before = len(self.tokens) - 1, self.controller.mode
        seen = Observation(
            at,
            hazard,
            onset,
            entropy_nats,
            repetition_count,
            repeated=lambda: repeated_tail(self.tokens),
        )
        decision = self.controller.step(seen)
        if ended:
            return None
        if decision.alarm:
            return self._alarm(decision.rollback_to, decision.reason) or self._let_go()
        if decision.again:
            return self._again(decision.rollback_to, decision.reason) or self._let_go()
        if decision.mode is before:
            return None
        if before is Mode.SAFE and self.budget > self.base:
            if self._alarms > 1 or not self._left():  # it derailed again, or could not be rescued
                return None
            return Change(self.base, at + 1, "recompress", "calm", recompute=False)
        reason = decision.reason or ("hazard" if decision.mode is Mode.ALERT else "calm")
        self._note(Change(self.budget, at + 1, "watch", reason))
        return None

    def carried_out(self, change: Change, recomputed: int, milliseconds: float) -> None:
        """`change` is done; `recomputed` tokens of the prompt and the response passed again."""
        dropped = self.tokens[change.n_kept :]
        always, first = change.reason == ALWAYS, change.n_kept == 0 or change.action == "raise"
        self._over |= always or change.reason == LET_GO or (first and change.budget >= FULL)
        if self._over and change.action == "raise":
            self.controller.step(Observation(PREFILL, probe_nats=self._probe))
        self._note(change, dropped, milliseconds)
        self.recomputed_tokens += recomputed
        climbed = change.action == "raise" and self._raised
        if change.action != "recompress" and not climbed:  # all rungs of the gate are one
            self.interventions += 1
        self._raised |= change.action == "raise"
        if dropped:
            del self.tokens[change.n_kept :]
            self._looping = 0
            self._loops.truncate(change.n_kept)
            self.controller.rollback(change.n_kept)
        self.budget = change.budget
        if change.action == "raise":
            self.base = change.budget

    def result(self, bytes_host: int) -> Guarded:
        mean = self._budgets / self._steps if self._steps else self.budget
        mean = round(mean, 12)  # a sum of many equal budgets is not quite their multiple
        return Guarded(self.events, mean, self._steps, self.recomputed_tokens, bytes_host)

    def _take(self, token: int) -> int | None:
        """Count `token`; the onset of the loop it is in, if it is."""
        self._steps, self._budgets = self._steps + 1, self._budgets + self.budget
        self.tokens.append(token)
        self.longest[self.budget] = max(self.longest.get(self.budget, 0), len(self.tokens))
        onset = self._loops.push(token)
        self._looping = 0 if onset is None else self._looping + 1
        return onset

    def _raise(self, budget: float, reason: str, chosen: int | None) -> Change | None:
        n = len(self.tokens)
        if budget <= self.budget + ROUNDING:
            return None
        if not self._left() and not self._raised:
            self._note(Change(self.budget, n, "alarm", reason))
            return None
        if chosen is not None:
            self._take(chosen)
        return Change(budget, n, "raise", reason)

    def _alarm(self, back: int, reason: str) -> Change | None:
        self._alarms += 1
        safe = self.policy.budget(Mode.SAFE, self.base)
        n = len(self.tokens)
        if safe <= self.budget + ROUNDING:
            safe = FULL
        if not self._left() or safe <= self.budget:
            self._note(Change(self.budget, n, "alarm", reason))
            return None
        self._checkpoint = back = max(back, self.floor)
        return Change(safe, back, _name(back, n), reason)

    def _again(self, back: int, reason: str) -> Change | None:
        """In SAFE, where relaxing was not enough."""
        n, config = len(self.tokens), self.policy.config
        last = self._checkpoint
        full = self.budget >= FULL
        # a full cache that is calm but for a forecast is what was to be reached
        enough = full and (reason not in SEEN or not config.rollback)
        if last is None or enough or (full and last <= self.floor) or not self._left():
            self._note(Change(self.budget, n, "alarm", reason))
            return None
        self._fallbacks += 1
        further = 0 if config.rollback else n
        if config.rollback and self._fallbacks == 1:
            further = min(back, last - config.rollback_tokens)
        self._checkpoint = max(self.floor, further)
        return Change(FULL, self._checkpoint, _name(self._checkpoint, n), reason)

    def _let_go(self) -> Change | None:
        """Of what has not left its loop for a cooldown, though it has the full cache."""
        config = self.policy.config
        stuck = self._looping > config.cooldown and self.budget >= FULL > self.nominal
        if not stuck or config.from_start or not self.config.let_go:
            return None
        return Change(self.nominal, len(self.tokens), "recompress", LET_GO, recompute=False)

    def _left(self) -> bool:
        """Whether anything can still be done."""
        stores = self.config.shadow is not Shadow.none
        return stores and self.interventions < self.config.max_interventions

    def _note(self, change: Change, dropped: Sequence[int] = (), ms: float = 0.0) -> None:
        self.events.append(
            GuardEvent(
                len(self.tokens) - 1 if self.tokens else PREFILL,
                self.controller.mode.name.lower(),
                change.action,
                change.reason,
                None if math.isnan(self._hazard) else self._hazard,
                None if math.isnan(self._probe) else self._probe,
                self.budget,
                change.budget,
                change.n_kept,
                list(dropped),
                ms,
            )
        )


def _name(n_kept: int, n_tokens: int) -> str:
    if n_kept == n_tokens:
        return "relax"
    return "roll_back" if n_kept else "restart"
