"""The controller that spends the safe budget from the start: what a guard must beat in budget."""

from dataclasses import dataclass
from typing import ClassVar

from kvx.config.fields import option
from kvx.guard.controllers.base import Controller, Observation


@dataclass
class AlwaysSafe(Controller):
    kind: ClassVar[str] = "always_safe"
    from_start: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False

    safe_budget: float = option(
        1.0, "budget from the first token on, never less than its own", above=0, at_most=1
    )

    @property
    def reads_repetition(self) -> bool:
        return False

    def gate(self, seen: Observation) -> str:
        return "always_safe"
