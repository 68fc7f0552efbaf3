"""Configuration of the guard's controller.

Apart from `kvx.config.schema`, because the guard reads it and knows no Hydra.
"""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from kvx.config.fields import option


class ControllerKind(Enum):
    """What makes a controller relax a sequence."""

    none = "none"
    hazard = "hazard"  # the trained model's forecast
    rule_based = "rule_based"  # repeated n-grams and entropy sums, no model
    reactive = "reactive"  # a loop that is already there
    gate = "gate"  # the probe before the first token, and nothing after it
    always_safe = "always_safe"  # everything, from the start
    random = "random"  # chance


class OperatingPoint(Enum):
    """Thresholds that a hazard model's card holds."""

    conservative = "conservative"  # fewest false alarms
    balanced = "balanced"
    aggressive = "aggressive"  # fewest misses


@dataclass
class ControllerConfig:
    """NORMAL, ALERT and SAFE with hysteresis; see `kvx.guard.controller`.

    `tau_high` null: the card's threshold at `operating_point`. `tau_low` null: half of `tau_high`.
    The taus are hazards (probabilities); other kinds have rules of their own.
    """

    name: str = MISSING
    kind: ControllerKind = ControllerKind.none
    operating_point: OperatingPoint | None = None
    tau_high: float | None = option(None, at_least=0, at_most=1)
    tau_low: float | None = option(None, at_least=0, at_most=1)
    # consecutive tokens at or above tau_high until SAFE
    k: int = option(1, at_least=1)
    # consecutive tokens below tau_low until NORMAL
    j: int = option(8, at_least=1)
    # tokens that SAFE lasts at least
    cooldown: int = option(32, at_least=0)
    # the budget of a sequence in SAFE (never less than its own); live, the full cache if it derails
    # there too
    safe_budget: float = option(1.0, above=0, at_most=1)
    # whether tokens are taken back at all; if not, an alarm only relaxes
    rollback: bool = True
    # tokens dropped and decoded again when SAFE is entered; of a loop, that many before its onset,
    # of a forecast or a rule, that many before the tokens at the end that stood together before
    rollback_tokens: int = option(32, at_least=0)
    # a detected loop is an alarm at once, whatever the hazard
    on_loop: bool = False
    # divergence of full and compressed cache at the first token, from which SAFE starts there;
    # null: none, or with card_gate that of the model's card at gate_point, if it has one
    prefill_gate_nats: float | None = option(None, at_least=0)
    card_gate: bool = False
    # null: operating_point
    gate_point: OperatingPoint | None = None
    # rule_based: the last 20 tokens stood together this often before
    repetition_count: int | None = option(None, at_least=1)
    # rule_based: the sum of entropies above the reference (CUSUM) that is an alarm
    entropy_cusum_nats: float | None = option(None, above=0)
    entropy_reference_nats: float = option(3.0, at_least=0)
    # random: probability of an alarm per token; null: kvx.simulate takes that of another controller
    rate: float | None = option(None, at_least=0, at_most=1)
    seed: int = option(0, at_least=0)
