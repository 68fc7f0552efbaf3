"""The controller that acts before the first token, by the probe, and on nothing after it."""

from dataclasses import dataclass
from typing import ClassVar

from kvx.config.fields import option
from kvx.errors import UserError
from kvx.guard.controllers.base import ON_LOOP, Alarms, Peaks, Policy


@dataclass
class Gate(Alarms):
    kind: ClassVar[str] = "gate"
    scores_tokens: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False

    on_loop: bool = option(False, ON_LOOP)

    @property
    def reads_repetition(self) -> bool:
        return False

    def check(self) -> None:
        super().check()
        if self.prefill_gate_nats is None:
            raise UserError(
                "controller.prefill_gate_nats: needs a value, the divergence in nats from which "
                "the budget is raised"
            )

    def stays_calm(self, peaks: Peaks, policy: Policy) -> bool:
        return self.quiet(peaks)
