"""The engine in this process: transformers models whose cache kvpress's presses compress."""

import importlib.util
import shlex
import sys
from types import ModuleType


def _import_fire() -> None:
    """Import `fire`, which kvpress needs, where Python has no `pipes` any more.

    kvpress 0.5 caps fire below 0.7, and fire 0.6 imports `pipes`, which Python 3.13 removed, for
    `pipes.quote`, the older name of `shlex.quote`. The stand-in is there during this import alone.
    """
    if "pipes" in sys.modules or "fire" in sys.modules:
        return
    if importlib.util.find_spec("pipes") is not None or importlib.util.find_spec("fire") is None:
        return
    stand_in = ModuleType("pipes")
    stand_in.quote = shlex.quote  # type: ignore[attr-defined]
    sys.modules["pipes"] = stand_in
    try:
        importlib.import_module("fire")
    finally:
        del sys.modules["pipes"]


_import_fire()
