"""Presses for tests that need the work to wait for them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvpress import KnormPress


@dataclass
class SlowPress(KnormPress):  # type: ignore[misc]
    """Knorm that leaves a mark at each call, and waits while it may not go on.

    The environment says where the marks are (KVX_TEST_MARKS), and which file holds how many of them
    there may be (KVX_TEST_GATE, see `tests.waiting.Gate`), so that neither is part of a point's
    identity.
    """

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        if marks := os.environ.get("KVX_TEST_MARKS"):
            if gate := os.environ.get("KVX_TEST_GATE"):
                while Path(marks).stat().st_size >= int(Path(gate).read_text()):
                    time.sleep(0.005)
            with Path(marks).open("a") as file:
                file.write(".")
        return super().compress(*args, **kwargs)
