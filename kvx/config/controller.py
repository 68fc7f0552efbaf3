"""Configuration of the guard's controller and of its simulation.

Apart from `kvx.config.schema`, because the guard reads it and knows no Hydra.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar

from omegaconf import MISSING

from kvx.config.fields import option


class OperatingPoint(Enum):
    """Thresholds that a hazard model's card holds."""

    conservative = "conservative"  # fewest false alarms
    balanced = "balanced"
    aggressive = "aggressive"  # fewest misses


@dataclass
class ControllerConfig:
    """A controller's settings: the fields of its class, named by `_target_` like a press's class.

    kvx's own classes are in `kvx.guard.controllers`. Each takes only the fields that it has; below
    are those of all of them. A class of the user's own has what it declares.
    """

    # what the class is called in point ids and results
    kind: ClassVar[str] = "own"
    # whether it ever steers a sequence
    acts: ClassVar[bool] = True
    # whether it works with a hazard model's forecast
    needs_hazard: ClassVar[bool] = False
    # whether it gives its safe budget from the start to the end
    from_start: ClassVar[bool] = False

    name: str = option(MISSING, "what the controller is called in point ids, folders and tables")

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
