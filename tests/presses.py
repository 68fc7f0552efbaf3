"""Presses for tests that need the work to wait for them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kvpress import KnormPress

from kvx.cli.press_files import shipped_presses
from kvx.config.press_choices import PressNeed

# those that kvx runs without a file of the hub
RUNNABLE = sorted(p.name for p in shipped_presses() if not p.hub and p.refused is None)
# and those of them that need neither the question nor budgets of their own
EVERYWHERE = sorted(
    p.name
    for p in shipped_presses()
    if p.name in RUNNABLE and not p.budget_above and PressNeed.query_in_prompt not in p.needs
)


@dataclass
class SlowPress(KnormPress):  # type: ignore[misc]
    """Knorm that leaves a mark at each call, and waits while it may not go on.

    The environment says where the marks are (KVX_TEST_MARKS), and which file holds how many of them
    there may be (KVX_TEST_GATE, see `tests.waiting.Gate`), so that neither is part of a point's
    identity.
    """

    own_calls: ClassVar[int] = 0  # of this process

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        if marks := os.environ.get("KVX_TEST_MARKS"):
            if gate := os.environ.get("KVX_TEST_GATE"):
                while not self._may_go_on(Path(marks), Path(gate).read_text().split()):
                    time.sleep(0.005)
            with Path(marks).open("a") as file:
                file.write(".")
            SlowPress.own_calls += 1
        return super().compress(*args, **kwargs)

    def _may_go_on(self, marks: Path, allowed: list[str]) -> bool:
        calls = self.own_calls if allowed[0] == "each" else marks.stat().st_size
        return calls < int(allowed[-1])
