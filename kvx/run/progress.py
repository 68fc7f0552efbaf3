"""Progress of long work: a live bar on a terminal, a log line every so often elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)
LOG_EVERY_S = 30.0
EARLY_SHARE = 0.05


class Advances(Protocol):
    """What is told of each request that is done, and of whose point."""

    def advance(self, what: str) -> None: ...


class Meter:
    """Counts requests; shows rate and time left."""

    def __init__(self, total: int, show: bool) -> None:
        self.total, self.done = total, 0
        self._start = self._logged = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("run", total=total, rate="")

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=what, rate=f"{rate:.1f}/s")
        if now - self._logged < LOG_EVERY_S:
            return
        self._logged = now
        level = logging.DEBUG if self._bar is not None else logging.INFO
        # answers come in batches: the first of them says nothing about the rate
        pace = ""
        if self.done >= EARLY_SHARE * self.total:
            minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
            pace = f", {rate:.1f}/s, about {minutes} min {seconds:02d} s left"
        log.log(level, "run: %d/%d requests%s (%s)", self.done, self.total, pace, what)
