"""kvx: which KV-cache compressor to use.

At which budget, up to which context length, and how sure we are.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# public names by the module that defines them: importing kvx imports none of them
_DOORS = {
    "guarded": "kvx.engines.guarded",
    "metric": "kvx.scoring.metrics",
    "sweep": "kvx.experiment",
}


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(_DOORS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
