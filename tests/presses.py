"""Presses for tests that need time to pass."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvpress import KnormPress


@dataclass
class SlowPress(KnormPress):  # type: ignore[misc]
    """Knorm that takes its time, so that a process can be ended while it works.

    The environment says how much time (KVX_TEST_PAUSE_S) and where each call leaves a mark
    (KVX_TEST_MARKS), so that neither is part of a point's identity.
    """

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        if marks := os.environ.get("KVX_TEST_MARKS"):
            with Path(marks).open("a") as file:
                file.write(".")
        time.sleep(float(os.environ.get("KVX_TEST_PAUSE_S", "0")))
        return super().compress(*args, **kwargs)
