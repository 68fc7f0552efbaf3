"""The controller that alarms by chance: what a guard must beat at the same trigger rate."""

import random
from dataclasses import dataclass
from typing import ClassVar

from kvx.config.fields import option
from kvx.errors import UserError
from kvx.guard.controllers.base import ON_LOOP, Alarms, Observation


@dataclass
class Random(Alarms):
    kind: ClassVar[str] = "random"
    reads_entropy: ClassVar[bool] = False

    on_loop: bool = option(False, ON_LOOP)
    rate: float | None = option(
        None,
        "probability of an alarm per token; null: kvx.simulate takes that of simulate.match, and a "
        "live run needs a value",
        at_least=0,
        at_most=1,
    )
    seed: int = option(0, "seed of the draws", at_least=0)

    @property
    def reads_repetition(self) -> bool:
        return False

    def check_live(self) -> None:
        if self.rate is None:
            raise UserError(
                "controller.rate: needs a value in a live run, the probability of an alarm per "
                "token; only kvx.simulate can take that of another controller"
            )

    def scores(self, key: str) -> "Draws":
        return Draws(f"{self.seed}/{key}", self.rate or 0.0)


class Draws:
    """One draw per token. Tokens taken back are drawn again."""

    def __init__(self, seed: str, rate: float) -> None:
        self._random, self._rate = random.Random(seed), rate

    def step(self, seen: Observation) -> tuple[float, str]:
        return float(self._random.random() < self._rate), "random"

    def rollback(self, n_kept: int) -> None:
        """The draws go on."""
