"""Progress of long work: a live bar on a terminal, a log line every few seconds elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvx.config.measures import Measure
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


class Heartbeat(AbstractContextManager["Heartbeat"]):
    """Calls `beat` every `TICK_S` seconds in its own thread, also while the main one is busy."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat, self._over = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvx progress", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            self._beat()


class Due:
    """When the next line is to be written."""

    def __init__(self, now: float) -> None:
        self._start = self._last = now

    def is_due(self, now: float) -> bool:
        """Whether the next line is due; if so, it counts as written."""
        early = now - self._start < FIRST_MINUTES_S
        if now - self._last < LOG_EVERY_S[0 if early else 1]:
            return False
        self._last = now
        return True


@contextmanager
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

    with Heartbeat(beat):
        yield


class Meter(AbstractContextManager["Meter"]):
    """Counts requests of `units`; shows what is being done, the rate and the time left.

    Other processes report by `heard`; this one is observed directly. `width` workers share the
    answers.
    """

    def __init__(self, units: Sequence[Unit], show: bool, width: int = 1) -> None:
        now = time.monotonic()
        loads = dict.fromkeys(Measure, NOTHING)
        for unit in units:
            loads[unit.measure] += unit.load
        widths = {Measure.quality: width, Measure.fidelity: width}  # latencies: alone
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
        self._heart, self._shown = Heartbeat(self.beat), ExitStack()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("run", total=self.total, pace="")

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._shown.enter_context(self._bar)
        self._shown.enter_context(self._heart)
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    @property
    def done(self) -> int:
        return sum(pace.done for pace in self._paces.values())

    def begin(self, unit: Unit) -> None:
        """Requests that finish from now on are of this unit's kind."""
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
        """This process has ended."""
        with self._lock:
            self._last.pop(worker, None)

    def _learn(self, worker: Hashable, seen: Seen) -> None:
        if (pace := self._paces.get(self._kind)) is not None:
            pace.learn(self._last[worker], seen)
        self._last[worker] = seen

    def beat(self) -> None:
        """Show what is new; write a line if one is due."""
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
        if not rate:
            return told
        return f"{rate:.1f}/s, {told}" if rate >= 1 else f"{60 * rate:.1f}/min, {told}"
