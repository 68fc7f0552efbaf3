"""KVGuard beside a running generation: signals, forecasts, and controllers that relax its budget.

Everything but `signals` is numpy on arrays: no torch, no Hydra, no file.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`kvx.guard.guarded` is `kvx.guarded`: it stands above the engine, which stands above this."""
    if name == "guarded":
        return importlib.import_module("kvx.engines.guarded").guarded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
