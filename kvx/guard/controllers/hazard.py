"""The controller of the trained model's forecast."""

from dataclasses import dataclass, replace
from typing import ClassVar

from kvx.config.controller import OperatingPoint
from kvx.config.fields import option
from kvx.errors import UserError
from kvx.guard.controllers.base import ON_LOOP, Alarms, Observation, Peaks, Policy, Thresholds


@dataclass
class Hazard(Alarms):
    """`tau_high` null: the card's threshold at `operating_point`. `tau_low` null: half of
    `tau_high`. The taus are hazards (probabilities).
    """

    kind: ClassVar[str] = "hazard"
    needs_hazard: ClassVar[bool] = True
    past_tail: ClassVar[bool] = True
    reads_entropy: ClassVar[bool] = True

    operating_point: OperatingPoint | None = option(
        None, "whose threshold of the model's card is tau_high"
    )
    tau_high: float | None = option(
        None,
        "probability from which the forecast is an alarm; null: the card's at operating_point",
        at_least=0,
        at_most=1,
    )
    tau_low: float | None = option(
        None,
        "probability below which a token is calm; null: half of tau_high",
        at_least=0,
        at_most=1,
    )
    on_loop: bool = option(False, ON_LOOP)
    card_gate: bool = option(
        False,
        "whether the gate before the first token is that of the model's card; prefill_gate_nats "
        "replaces it",
    )
    gate_point: OperatingPoint | None = option(
        None, "whose gate of the card; null: that of operating_point"
    )

    @property
    def reads_repetition(self) -> bool:
        return False  # the model's features say whether

    def check(self) -> None:
        super().check()
        low, high = self.tau_low, self.tau_high
        if low is not None and high is not None and low > high:
            raise UserError(f"controller.tau_low={low:g}: must be at most tau_high={high:g}")
        if high is None and self.operating_point is None:
            raise UserError(
                "controller.tau_high: needs a value, or controller.operating_point of the "
                "model's card"
            )

    def policy(self, thresholds: Thresholds | None = None) -> Policy:
        self.check()
        high, point = self.tau_high, self.operating_point
        card = Thresholds({}, {}) if thresholds is None else thresholds
        gated, config = self.gate_point or point, self
        if self.card_gate and self.prefill_gate_nats is None and gated is not None:
            config = replace(self, prefill_gate_nats=card.gate_nats.get(gated))
        if high is None:
            assert point is not None
            high = card.hazard.get(point)
            if high is None:
                raise UserError(
                    f"controller={self.name}: the hazard model has no threshold for the operating "
                    f"point {point.name}; set controller.tau_high"
                )
        low = high / 2 if self.tau_low is None else self.tau_low
        if low > high:
            raise UserError(
                f"controller.tau_low={low:g}: must be at most tau_high={high:g} of the model's card"
            )
        return Policy(config, low, high)

    def score(self, seen: Observation) -> tuple[float, str]:
        return seen.hazard, "hazard"

    def stays_calm(self, peaks: Peaks, policy: Policy) -> bool:
        return self.quiet(peaks) and not peaks.hazard_peak >= policy.tau_high
