"""Presses for tests that need time to pass, or something to go wrong."""

import time
from dataclasses import dataclass
from typing import Any

from kvpress import KnormPress


@dataclass
class SlowPress(KnormPress):  # type: ignore[misc]
    """Knorm that takes its time, so that a process can be ended while it works."""

    pause_s: float = 0.03

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.pause_s)
        return super().compress(*args, **kwargs)
