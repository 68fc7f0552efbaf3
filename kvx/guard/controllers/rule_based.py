"""The controller of repeated n-grams and entropy sums: rules without a model."""

import math
from dataclasses import dataclass
from typing import ClassVar

from kvx.config.fields import option
from kvx.errors import UserError
from kvx.guard.controllers.base import ON_LOOP, Alarms, Observation, Peaks, Policy


@dataclass
class RuleBased(Alarms):
    kind: ClassVar[str] = "rule_based"
    past_tail: ClassVar[bool] = True
    reads_entropy: ClassVar[bool] = True

    on_loop: bool = option(False, ON_LOOP)
    repetition_count: int | None = option(
        None,
        "how often the last 20 tokens stood together before, for an alarm; null: no such rule",
        at_least=1,
    )
    entropy_cusum_nats: float | None = option(
        None,
        "sum of entropies above the reference (CUSUM) that is an alarm; null: no such rule",
        above=0,
    )
    entropy_reference_nats: float = option(
        3.0, "entropy per token that entropy_cusum_nats counts from", at_least=0
    )

    @property
    def reads_repetition(self) -> bool:
        return self.repetition_count is not None

    def check(self) -> None:
        super().check()
        if self.repetition_count is None and self.entropy_cusum_nats is None:
            raise UserError(
                f"controller={self.name}: needs controller.repetition_count, "
                "controller.entropy_cusum_nats or both"
            )

    def scores(self, key: str) -> "Rules":
        return Rules(self)

    def stays_calm(self, peaks: Peaks, policy: Policy) -> bool:
        if self.repetition_count is not None or not self.quiet(peaks):
            return False
        assert self.entropy_cusum_nats is not None
        return peaks.cusum_peak(self.entropy_reference_nats) < self.entropy_cusum_nats


class Rules:
    """The larger of the two rules, each as a share of what is an alarm."""

    def __init__(self, config: RuleBased) -> None:
        self._config = config
        self.sums: list[float] = []  # entropy above the reference, after each token

    def step(self, seen: Observation) -> tuple[float, str]:
        config = self._config
        repeated = summed = 0.0
        if config.repetition_count is not None:
            repeated = seen.repetition_count / config.repetition_count
        if config.entropy_cusum_nats is not None:
            before = self.sums[-1] if self.sums else 0.0
            step = seen.entropy_nats - config.entropy_reference_nats
            total = before if math.isnan(step) else max(0.0, before + step)
            # no higher than the alarm: it shall come down as soon as it is over
            self.sums.append(min(total, config.entropy_cusum_nats))
            summed = self.sums[-1] / config.entropy_cusum_nats
        return (repeated, "repetition") if repeated >= summed else (summed, "entropy")

    def rollback(self, n_kept: int) -> None:
        del self.sums[n_kept:]
