"""Configuration of what a controller does to running sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option
from kvx.config.numbers import exact


class Shadow(Enum):
    """The source of a prompt's full KV when a budget is raised."""

    host = "host"  # kept beside the compressed cache: pinned host memory (CUDA), memory (CPU)
    recompute = "recompute"  # the prompt is prefilled again
    none = "none"  # nowhere: alarms are recorded, nothing is done


class StreamPolicy(Enum):
    """When a stream shows text that may be taken back."""

    hold = "hold"  # only what lies behind the checkpoint
    restart = "restart"  # everything at once, and a marker where it begins anew


def _is_none(shadow: Shadow) -> bool:
    return shadow is Shadow.none


def _ascending(steps: Sequence[float]) -> str | None:
    if all(0 < budget < 1 for budget in steps) and sorted(set(steps)) == list(steps):
        return None
    listed = ",".join(map(exact, steps))
    return f"=[{listed}]: must be ascending budgets between 0 and 1; 1.0 always comes last"


@dataclass
class GuardConfig:
    """How a controller acts on running sequences. Without one, these fields have no effect."""

    shadow: Shadow = option(
        Shadow.host,
        "full KV to restore from: host (kept beside the compressed cache), recompute (prefilled "
        "again) or none (alarms are recorded, nothing is done)",
        identity=_is_none,
    )
    model: str | None = option(
        None,
        "directory of a hazard model (model.json and card.json); null: the packaged one",
        derived=True,
    )
    ladder: list[float] = option(
        [0.25, 0.5], "budgets that the gate tries one after the other, before 1.0", check=_ascending
    )
    max_interventions: int = option(
        4,
        "interventions in one sequence, the gate's raises together being one; after as many "
        "nothing more is taken back or given",
        at_least=1,
        words="at least 1; controller=none leaves sequences alone",
    )
    let_go: bool = option(
        True,
        "compress again what loops with the full cache too, where nothing more can be done: the "
        "loop is the model's own",
    )
    stream: StreamPolicy = option(
        StreamPolicy.hold,
        "hold: a reader sees what lies behind the checkpoint; restart: all at once, with a marker "
        "where the text begins anew",
        neutral=True,
    )
