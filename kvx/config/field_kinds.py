"""Kinds of configuration fields, as metadata: which of them are part of a point's identity.

A field without any of these is. `kvx.points` makes the identity, `kvx.config.ranges` holds ranges.
"""

from dataclasses import field
from typing import Any

# cannot change results
NEUTRAL = {"neutral": True}
# neutral, but kept with every response
RECORDED = "recorded"
# only something derived from the value can change results: the function that derives it
IDENTITY = "identity"
# came later: at its default it changes no id
ADDED = "added"


def neutral(default: Any) -> Any:
    """A field that cannot change results: paths, logging, shard sizes."""
    return field(default=default, metadata=NEUTRAL)


def recorded(default: Any) -> Any:
    """A neutral field that may still tip a near tie in the numbers: kept with every response."""
    return field(default=default, metadata={**NEUTRAL, RECORDED: True})


def added(default: Any) -> Any:
    """A field that shapes answers and came later: ids of points that leave it out stay valid."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={ADDED: True})
    return field(default=default, metadata={ADDED: True})
