"""Metrics, one file per family: each a decorated function, found by its name.

Predictions are scored as they are, as LongBench does for NarrativeQA: no cut at the first line.
A user's metric is named by its dotted path, or by an entry point of the group `kvx.metrics`.
"""

from collections.abc import Sequence

from kvx.errors import UserError
from kvx.identity.registry import Registry
from kvx.scoring.metrics.base import Metric, Score, measured, metric

__all__ = ["METRICS", "Metric", "Score", "measured", "metric", "resolve"]

METRICS = Registry("metric", Metric, __name__, "kvx.metrics")


def resolve(names: Sequence[str], field: str = "dataset.metrics") -> dict[str, Metric]:
    """The metrics by name, in the order asked; the first is the primary one.

    Raises `UserError`, which names the configuration's `field`, for an unknown name, and for a
    primary metric that is better where it is lower.
    """
    found = {name: METRICS.get(name, field) for name in names}
    if names and not found[names[0]].higher_is_better:
        raise UserError(
            f"{field}: {names[0]} is better where it is lower; name a metric before it that is "
            "better where it is higher, since losses are read from the first one"
        )
    return found
