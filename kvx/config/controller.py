"""Configuration of the guard's controller and of its simulation.

Apart from `kvx.config.schema`, because the guard reads it and knows no Hydra.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from kvx.config.ranges import within


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
    tau_high: float | None = within(None, at_least=0, at_most=1)
    tau_low: float | None = within(None, at_least=0, at_most=1)
    # consecutive tokens at or above tau_high until SAFE
    k: int = within(1, at_least=1)
    # consecutive tokens below tau_low until NORMAL
    j: int = within(8, at_least=1)
    # tokens that SAFE lasts at least
    cooldown: int = within(32, at_least=0)
    # the budget of a sequence in SAFE (never less than its own); live, the full cache if it derails
    # there too
    safe_budget: float = within(1.0, above=0, at_most=1)
    # whether tokens are taken back at all; if not, an alarm only relaxes
    rollback: bool = True
    # tokens dropped and decoded again when SAFE is entered; of a loop, that many before its onset,
    # of a forecast or a rule, that many before the tokens at the end that stood together before
    rollback_tokens: int = within(32, at_least=0)
    # a detected loop is an alarm at once, whatever the hazard
    on_loop: bool = False
    # divergence of full and compressed cache at the first token, from which SAFE starts there;
    # null: none, or with card_gate that of the model's card at gate_point, if it has one
    prefill_gate_nats: float | None = within(None, at_least=0)
    card_gate: bool = False
    # null: operating_point
    gate_point: OperatingPoint | None = None
    # rule_based: the last 20 tokens stood together this often before
    repetition_count: int | None = within(None, at_least=1)
    # rule_based: the sum of entropies above the reference (CUSUM) that is an alarm
    entropy_cusum_nats: float | None = within(None, above=0)
    entropy_reference_nats: float = within(3.0, at_least=0)
    # random: probability of an alarm per token; null: kvx.simulate takes that of another controller
    rate: float | None = within(None, at_least=0, at_most=1)
    seed: int = within(0, at_least=0)


class Shadow(Enum):
    """Where a sequence gets its prompt's full KV from when its budget is raised."""

    host = "host"  # kept beside the compressed cache: pinned host memory (CUDA), memory (CPU)
    recompute = "recompute"  # the prompt is prefilled again
    none = "none"  # nowhere: alarms are recorded, nothing is done


class StreamPolicy(Enum):
    """What a reader of a stream sees of text that may be taken back."""

    hold = "hold"  # only what lies behind the checkpoint
    restart = "restart"  # everything at once, and a marker where it begins anew


@dataclass
class GuardConfig:
    """How a controller acts on running sequences.

    `model` is a hazard model's directory (model.json and card.json); null: the packaged one.
    `ladder` are the budgets that the gate tries, one after the other, before 1.0.
    """

    shadow: Shadow = Shadow.host
    model: str | None = None
    ladder: list[float] = field(default_factory=lambda: [0.25, 0.5])
    # of one sequence, the gate's raises together being one; after as many nothing more is taken
    # back or given
    max_interventions: int = within(
        4, at_least=1, words="at least 1; controller=none leaves sequences alone"
    )
    # what loops with the full cache too, where nothing more can be done, is compressed again: the
    # loop is the model's own
    let_go: bool = True
    stream: StreamPolicy = StreamPolicy.hold


@dataclass
class SimulateConfig:
    """`controllers` are options of the group `controller`; one given as `controller=` is added.

    `lateness_tokens`: how long after the onset an alarm may come and still count; null: as long as
    its rollback reaches back to the onset.
    """

    controllers: list[str] = field(
        default_factory=lambda: [
            "none", "conservative", "balanced", "aggressive", "reactive", "rule_based",
            "always_safe", "random",
        ]
    )  # fmt: skip
    # whose trigger rate `random` gets
    match: str = "balanced"
    random_repeats: int = within(20, at_least=1)
    lateness_tokens: int | None = within(None, at_least=0)
    # thresholds of each sweep
    n_thresholds: int = within(24, at_least=2)
    n_boot: int = within(2_000, at_least=100)
    confidence: float = within(0.95, above=0, below=1)
    seed: int = within(0, at_least=0)
