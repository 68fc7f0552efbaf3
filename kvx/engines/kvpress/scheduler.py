"""The scheduler: sequences wait for memory, are prefilled, and are decoded together.

It owns the decoder. A run, a server and the guarded library submit sequences and take what
`step` says of them.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from kvx.config.schema import DecodingConfig
from kvx.engines.kvpress.account import Account
from kvx.engines.kvpress.admission import Submission, admit
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.masked import generate_masked
from kvx.engines.kvpress.memory import OUT_OF_MEMORY
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.sequence import Row, StepObserver
from kvx.errors import first_line

log = logging.getLogger(__name__)

DROPPED = "dropped"  # finish reason of rows that were taken out


class Task:
    """A sequence that somebody wants, over all attempts to generate it.

    `row` is the latest attempt's, from its prefill on. `bytes` is what it needs alone.
    """

    bytes: int
    row: Row | None = None

    def submission(self) -> Submission:
        """What the next attempt generates. Called right before its prefill."""
        raise NotImplementedError

    def begin(self, row: Row) -> None:
        """The prompt is prefilled; no token is chosen yet."""
        self.row = row

    def again(self) -> None:
        """The attempt failed together with others; the next one is alone."""

    @property
    def complete(self) -> bool:
        """Whether the answer had come to its end before the step that failed."""
        return False


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A sequence has come to its end; `row.finish_reason` says to which."""

    task: T
    row: Row


@dataclass(frozen=True)
class Refused(Generic[T]):
    """A sequence cannot be generated. `by_press`: its own press or cache is at fault."""

    task: T
    error: Exception
    by_press: bool = False


@dataclass(frozen=True)
class Step(Generic[T]):
    """What a step did: `prefilled` sequences, or one token for each of `decoded` rows.

    Both are empty if it failed or nothing was left to do.
    """

    events: list[Finished[T] | Refused[T]]
    prefilled: Sequence[T] = ()
    decoded: int = 0


@dataclass(frozen=True)
class _Group(Generic[T]):
    """Tasks with the same prompt, and the bytes they need together."""

    tasks: tuple[T, ...]
    bytes: int


class Scheduler(Generic[T]):
    """One forward pass per `step`: the prefill of a group that fits, else a token for every row.

    Without an `account`, everything fits. At most `max_rows` run, except for a group that is larger
    itself. `interleaved` puts a decoding step between two prefills, so that a burst of prompts does
    not hold up running rows. `begin` is told which tasks are prefilled next.

    Tasks that fail together are tried alone, one after the other, before anything else is admitted.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: DecodingConfig,
        observers: Sequence[StepObserver],
        account: Account | None = None,
        max_rows: int | None = None,
        interleaved: bool = False,
        begin: Callable[[Sequence[T]], None] | None = None,
    ) -> None:
        self.loaded, self.config, self.observers = loaded, config, observers
        self.account, self.max_rows, self.interleaved = account, max_rows, interleaved
        self.decoder = Decoder(loaded, config, observers)
        self._begin = begin
        self._waiting: deque[_Group[T]] = deque()
        self._suspects: deque[T] = deque()  # failed together; each is tried alone
        self._running: dict[int, T] = {}
        self._alone = False  # a suspect is running
        self._prefilled = False  # by the latest step

    @property
    def running(self) -> list[T]:
        return list(self._running.values())

    @property
    def waiting(self) -> list[T]:
        return [*self._suspects, *(task for group in self._waiting for task in group.tasks)]

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._suspects or self._running)

    def submit(self, tasks: Sequence[T], group_bytes: int | None = None) -> None:
        """Take in tasks with the same prompt, which need `group_bytes`; without: the sum."""
        together = sum(task.bytes for task in tasks)
        self._waiting.append(_Group(tuple(tasks), together if group_bytes is None else group_bytes))

    @torch.inference_mode()
    def drop(self, tasks: Iterable[T]) -> None:
        """Give up tasks, waiting or running; nothing more is said of them."""
        gone = {id(task) for task in tasks}
        self._suspects = deque(task for task in self._suspects if id(task) not in gone)
        groups = [
            replace(g, tasks=tuple(t for t in g.tasks if id(t) not in gone)) for g in self._waiting
        ]
        self._waiting = deque(group for group in groups if group.tasks)
        running = [self._running.pop(key) for key in gone & self._running.keys()]
        self.decoder.end([task.row for task in running if task.row is not None], DROPPED)

    @torch.inference_mode()
    def step(self) -> Step[T]:
        """Prefill what fits, or decode. Events are in the order in which they happened."""
        group = self._next()
        self._prefilled = group is not None
        if group is not None:
            return Step(self._admit(group), group.tasks)
        if self._running:
            return self._decode()
        return Step([])

    def _next(self) -> _Group[T] | None:
        running = len(self._running)
        if running and (self._suspects or self._alone):
            return None
        self._alone = bool(self._suspects)
        if self._suspects:
            task = self._suspects.popleft()
            return _Group((task,), task.bytes)
        if not self._waiting or (running and self.interleaved and self._prefilled):
            return None
        fits = not running or self._fits(self._waiting[0], running)
        return self._waiting.popleft() if fits else None

    def _fits(self, group: _Group[T], running: int) -> bool:
        if self.max_rows is not None and running + len(group.tasks) > self.max_rows:
            return False
        if self.account is None:
            return True
        taken = self.account.taken(self.decoder.rows, self.decoder.bytes)
        return taken + group.bytes <= self.account.cap_bytes

    def _admit(self, group: _Group[T]) -> list[Finished[T] | Refused[T]]:
        events: list[Finished[T] | Refused[T]] = []
        left = {id(task): task for task in group.tasks}
        if self._begin is not None:
            self._begin(group.tasks)
        try:
            asked = [replace(task.submission(), owner=task) for task in group.tasks]
            if asked[0].in_transformers:
                (task,) = group.tasks
                row = generate_masked(self.loaded, asked[0], self.config, self.observers)
                task.begin(row)
                return [Finished(task, row)]
            found = admit(self.loaded, asked)
            for index, error in found.refused:
                del left[id(group.tasks[index])]
                events.append(Refused(group.tasks[index], error, by_press=True))
            for row in found.rows:
                row.owner.begin(row)
                self._running[id(row.owner)] = row.owner
            if asked[0].row is not None and asked[0].row.tokens:
                self.decoder.readmit(found.buckets)
            elif found.buckets:
                finished = self.decoder.admit(found.buckets, found.prefills, found.logits)
                events += self._finished(finished)
        except Exception as error:  # noqa: BLE001  this group fails; the others go on
            joined = [row for row in self.decoder.rows if id(row.owner) in left]
            self.decoder.end(joined, DROPPED)
            for key in left:
                self._running.pop(key, None)
            events += self._failed(list(left.values()), error, len(group.tasks))
        return events

    def _decode(self) -> Step[T]:
        rows = len(self._running)
        try:
            return Step(self._finished(self.decoder.step()), decoded=rows)
        except Exception as error:  # noqa: BLE001  a press may raise anything
            self.decoder.clear()
            tasks = self.running
            self._running.clear()
            done: list[Finished[T] | Refused[T]] = [
                Finished(task, task.row) for task in tasks if task.row is not None and task.complete
            ]
            left = [task for task in tasks if not task.complete]
            return Step(done + self._failed(left, error, rows))

    def _finished(self, rows: Sequence[Row]) -> list[Finished[T] | Refused[T]]:
        return [Finished(self._running.pop(id(row.owner)), row) for row in rows]

    def _failed(
        self, tasks: Sequence[T], error: Exception, together: int
    ) -> list[Finished[T] | Refused[T]]:
        """Tasks whose pass failed with `together` in it: each is tried alone, unless it was."""
        crowded = isinstance(error, OUT_OF_MEMORY) and bool(self._running)
        if together == 1 and not crowded:
            return [Refused(task, error) for task in tasks]
        reason = first_line(error)
        log.warning("%d sequences failed together (%s): each is tried alone", together, reason)
        for task in tasks:
            task.again()
        self._suspects += tasks
        return []
