"""The controller that waits for a loop that is already there: no model, no forecast."""

from dataclasses import dataclass
from typing import ClassVar

from kvx.guard.controllers.base import Alarms


@dataclass
class Reactive(Alarms):
    kind: ClassVar[str] = "reactive"
    scores_tokens: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False
    on_loop = True

    @property
    def reads_repetition(self) -> bool:
        return False
