"""Configuration of the guard's controller and of its simulation.

Apart from `kvx.config.schema`, because the guard reads it and knows no Hydra.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar

from omegaconf import MISSING

from kvx.config.ranges import within


class OperatingPoint(Enum):
    """Thresholds that a hazard model's card holds."""

    conservative = "conservative"  # fewest false alarms
    balanced = "balanced"
    aggressive = "aggressive"  # fewest misses


@dataclass
class ControllerConfig:
    """What the rest of kvx asks of a controller; its settings are the fields of its class.

    The classes are in `kvx.guard.controllers`. A configuration names one by its `_target_`, as it
    names a press.
    """

    # what the class is called in point ids and results
    kind: ClassVar[str] = "own"
    # whether it ever steers a sequence
    acts: ClassVar[bool] = True
    # whether it works with a hazard model's forecast
    needs_hazard: ClassVar[bool] = False
    # whether it gives its safe budget from the start to the end
    from_start: ClassVar[bool] = False

    name: str = MISSING

    @property
    def reach(self) -> int:
        """How many tokens the first alarm may take back."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """The dotted name of its class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def is_users(self) -> bool:
        """Whether the class is not one of kvx's."""
        return self.target.partition(".")[0] != "kvx"


# what a point's record held of every controller when all of them had the same fields: ids of points
# are made from what differs from this, so that they stay what they were
RECORD: Mapping[str, Any] = MappingProxyType(
    {
        "name": MISSING, "kind": "none", "operating_point": None, "tau_high": None, "tau_low": None,
        "k": 1, "j": 8, "cooldown": 32, "safe_budget": 1.0, "rollback": True, "rollback_tokens": 32,
        "on_loop": False, "prefill_gate_nats": None, "card_gate": False, "gate_point": None,
        "repetition_count": None, "entropy_cusum_nats": None, "entropy_reference_nats": 3.0,
        "rate": None, "seed": 0,
    }
)  # fmt: skip


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
