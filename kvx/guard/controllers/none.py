"""The controller that leaves sequences alone."""

from dataclasses import dataclass
from typing import ClassVar

from kvx.guard.controllers.base import Controller, Observation


@dataclass
class NoController(Controller):
    """Never acts. In a sweep beside others it ignores their settings."""

    kind: ClassVar[str] = "none"
    acts: ClassVar[bool] = False
    scores_tokens: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False

    @property
    def reads_repetition(self) -> bool:
        return False

    def gate(self, seen: Observation) -> str:
        return ""
