"""Waiting for what is observed: a machine may be as slow as it likes."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# longer than anything takes that does not hang: the only time that a test may run out of
HANGS_S = 1200.0


def wait_until(
    happened: Callable[[], object], what: str, process: "subprocess.Popen[str] | None" = None
) -> None:
    """Until `happened()`; fails once `process` has ended without it, or if all hangs."""
    until = time.monotonic() + HANGS_S
    while not happened():
        if process is not None and process.poll() is not None and not happened():
            raise AssertionError(f"ended before {what}: {process.communicate()}")
        assert time.monotonic() < until, f"still waiting until {what}"
        time.sleep(0.01)


class Gate:
    """Lets presses of `tests.presses` do so many calls and no more, in whatever processes.

    So the work cannot run ahead of the test, and what is to be ended is still at work.
    """

    def __init__(self, folder: Path) -> None:
        self._allowed, self._marks = folder / "gate", folder / "marks"
        self._folder = folder
        self._marks.touch()
        self.allow(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"KVX_TEST_MARKS": str(self._marks), "KVX_TEST_GATE": str(self._allowed)}

    @property
    def calls(self) -> int:
        """How many there have been."""
        return self._marks.stat().st_size

    def allow(self, calls: int) -> None:
        """So many in all, those that have been included."""
        self._say(str(calls))

    def allow_each(self, calls: int) -> None:
        """So many in each process: of several, none runs ahead of the others."""
        self._say(f"each {calls}")

    def _say(self, allowed: str) -> None:
        new = self._folder / "gate.new"
        new.write_text(allowed)
        new.replace(self._allowed)

    def until(
        self,
        happened: Callable[[], object],
        what: str,
        process: "subprocess.Popen[str] | None" = None,
    ) -> None:
        """Let the work go on, call by call, until `happened()`."""

        def seen() -> bool:
            if happened():
                return True
            self.allow(self.calls + 1)
            return False

        wait_until(seen, what, process)

    def open(self) -> None:
        self.allow(10**9)
