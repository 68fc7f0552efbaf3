"""KVGuard beside a running generation: signals, forecasts, and controllers that relax its budget.

Only `signals` imports torch; the rest is numpy on arrays.
"""

from typing import Any

import kvx


def __getattr__(name: str) -> Any:
    """`kvx.guard.guarded` is an older name of `kvx.guarded`."""
    if name == "guarded":
        return kvx.guarded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
