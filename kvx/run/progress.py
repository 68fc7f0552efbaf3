"""Progress of long work: a live bar on a terminal, a log line every few seconds elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from kvx.config.schema import Measure
from kvx.engines.activity import ACTIVITY, Seen
from kvx.run.time_left import NOTHING, Pace
from kvx.run.units import Unit

log = logging.getLogger(__name__)
TICK_S = 1.0
LOG_EVERY_S = (10.0, 30.0)  # seconds between lines: at first, and after the first minutes
FIRST_MINUTES_S = 600.0
HERE = "here"


class Advances(Protocol):
    """What progress records of each finished request, and of its point."""

    def advance(self, what: str) -> None: ...


class Heartbeat:
    """Calls `beat` every `TICK_S` seconds in a thread of its own: also while nothing happens here.

    Not while `beat` is called already.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat, self._over = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvx progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            self._beat()


class Due:
    """When the next line is to be written."""

    def __init__(self, now: float) -> None:
        self._start = self._last = now

    def is_due(self, now: float) -> bool:
        """Whether it is now; counts as written then."""
        early = now - self._start < FIRST_MINUTES_S
        if now - self._last < LOG_EVERY_S[0 if early else 1]:
            return False
        self._last = now
        return True


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Log what this process is doing every few seconds, where nothing can be counted yet.

    `doing` is shown until the work reports something else (`kvx.engines.activity`).
    """
    begun = time.monotonic()
    due = Due(begun)
    ACTIVITY.say(doing)

    def beat() -> None:
        now = time.monotonic()
        if due.is_due(now):
            log.info("run: %s, %.0f s so far", ACTIVITY.seen.doing or doing, now - begun)

    heart = Heartbeat(beat)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


class Meter:
    """Counts requests of `units`; shows what is being done, the rate and the time left.

    Workers in other processes are `heard`; what this one does is seen without being told. `width`
    workers share the answers.
    """

    def __init__(self, units: Sequence[Unit], show: bool, width: int = 1) -> None:
        now = time.monotonic()
        loads = dict.fromkeys(Measure, NOTHING)
        for unit in units:
            loads[unit.measure] += unit.load
        widths = {Measure.quality: width}  # latencies are measured alone
        self._paces = {
            kind: Pace(load, now, widths.get(kind, 1))
            for kind, load in loads.items()
            if load.requests
        }
        self._kind = units[0].measure if units else Measure.quality
        self.total = sum(load.requests for load in loads.values())
        self._due, self._begun = Due(now), now
        self._last: dict[Hashable, Seen] = {HERE: ACTIVITY.seen}
        self._what = ""
        self._lock = threading.RLock()
        self._heart = Heartbeat(self.beat)
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"), TimeElapsedColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("run", total=self.total, pace="")

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._bar.start()
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._heart.stop()
        if self._bar is not None:
            self._bar.stop()

    @property
    def done(self) -> int:
        return sum(pace.done for pace in self._paces.values())

    def begin(self, unit: Unit) -> None:
        """Requests that are done from now on are of this unit's kind."""
        with self._lock:
            self._kind = unit.measure

    def advance(self, what: str) -> None:
        """One request of the point `what` is done."""
        with self._lock:
            self._what = what
            self._learn(HERE, ACTIVITY.seen)
            if (pace := self._paces.get(self._kind)) is not None:
                pace.finish(time.monotonic())
            self.beat()

    def heard(self, worker: Hashable, seen: Seen) -> None:
        """What another process has done since it began."""
        with self._lock:
            self._last.setdefault(worker, Seen())
            self._learn(worker, seen)

    def gone(self, worker: Hashable) -> None:
        """This process does nothing any more."""
        with self._lock:
            self._last.pop(worker, None)

    def _learn(self, worker: Hashable, seen: Seen) -> None:
        if (pace := self._paces.get(self._kind)) is not None:
            pace.learn(self._last[worker], seen)
        self._last[worker] = seen

    def beat(self) -> None:
        """Show what is new; a line if it is time for one."""
        with self._lock:
            now = time.monotonic()
            due = self._due.is_due(now)
            if not due and self._bar is None:
                return
            self._learn(HERE, ACTIVITY.seen)
            pace = self._pace(now)
            if self._bar is not None:
                about = self._what or self._doing()
                self._bar.update(self._task, completed=self.done, description=about, pace=pace)
            if not due:
                return
            level = logging.DEBUG if self._bar is not None else logging.INFO
            told = ", ".join(part for part in (f"{self.done}/{self.total} requests", pace) if part)
            about = "; ".join(part for part in (self._what, self._doing()) if part)
            log.log(level, "run: %s, %.0f s so far (%s)", told, now - self._begun, about)

    def _doing(self) -> str:
        """What workers are doing, each thing once."""
        busy = {key: seen.doing for key, seen in self._last.items() if seen.doing}
        if len(busy) > 1:
            busy.pop(HERE, None)  # it waits for the others
        return "; ".join(dict.fromkeys(busy.values()))

    def _pace(self, now: float) -> str:
        """`1.5/s, about 3 min 20 s left`; empty while it is not known."""
        seconds = 0.0
        for kind, pace in self._paces.items():
            left = pace.left_s(now)
            if left is None and kind is not self._kind:
                left = self._paces[self._kind].alone_s(pace.load)
            if left is None:
                return ""
            seconds += left
        rate = self._paces[self._kind].per_s(now) if self._kind in self._paces else None
        minutes, rest = divmod(round(seconds), 60)
        told = f"about {minutes} min {rest:02d} s left"
        return f"{_rate(rate)}, {told}" if rate else told


def _rate(per_s: float) -> str:
    """`2.5/s`, or `7.5/min` where it is slower than one a second."""
    return f"{per_s:.1f}/s" if per_s >= 1 else f"{60 * per_s:.1f}/min"
