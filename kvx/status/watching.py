"""Look at an experiment again and again, while runs work on it."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TextIO


class State(Enum):
    done = "done"
    running = "running"  # a run works on it, and some results are there
    waiting = "waiting"  # claimed by a run that has not reached it, or in SLURM's queue
    unfinished = "unfinished"  # partial results, no worker
    missing = "missing"  # no results, no worker
    failed = "failed"
    not_applicable = "not applicable"  # its press cannot be used on its model


@dataclass(frozen=True)
class PointStatus:
    """One point; counts are requests and latencies together."""

    id: str
    press: str
    budget: str
    state: State
    there: int
    asked: int
    errors: int
    first_error: str | None


@dataclass(frozen=True)
class Look:
    """The state of every point, and how it is told; `n_open` points have not ended."""

    lines: Sequence[str]
    points: Sequence[PointStatus]
    n_open: int


def watch(
    first: Look,
    look: Callable[[], Look],
    every_s: float,
    out: TextIO | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Look:
    """Show `first`, then what `look` returns every `every_s` seconds; the last of it.

    On a terminal the table changes in place. Elsewhere it is written once for each change of the
    points, so that a log does not grow while nothing happens. It ends when no point is open, and
    with Ctrl-C.
    """
    out = out or sys.stdout
    show = _in_place if out.isatty() else _by_change
    seen = first
    with show(out) as tell:
        tell(seen)
        try:
            while seen.n_open:
                sleep(every_s)
                seen = look()
                tell(seen)
        except KeyboardInterrupt:  # the usual end of watching
            pass
    return seen


@contextmanager
def _by_change(out: TextIO) -> Iterator[Callable[[Look], None]]:
    told: Sequence[PointStatus] | None = None

    def tell(seen: Look) -> None:
        nonlocal told
        if seen.points != told:
            out.write("\n".join([*([] if told is None else [""]), *seen.lines]) + "\n")
            out.flush()
            told = seen.points

    yield tell


@contextmanager
def _in_place(out: TextIO) -> Iterator[Callable[[Look], None]]:
    from rich.console import Console  # slow, and not needed to look once
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(file=out), auto_refresh=False) as live:
        yield lambda seen: live.update(
            Text("\n".join(seen.lines), no_wrap=True, overflow="ellipsis"), refresh=True
        )
