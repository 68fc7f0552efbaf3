"""A run's requests: prefills shared by points, rows decoded together, a response for each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kvx.config.press_choices import PressLayers, PressNeed
from kvx.config.schema import Config, Signals
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder, PromptParts
from kvx.engines.activity import ACTIVITY
from kvx.engines.base import PointFailed, PointWork, Response, Trace, seed_of
from kvx.engines.kvpress.account import Account
from kvx.engines.kvpress.admission import Submission
from kvx.engines.kvpress.chunks import Chunk, chunks
from kvx.engines.kvpress.guarded import LiveGuard, guard_of
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import StepSignals, TimeLimit, TraceObserver
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.proof import BudgetContradictedError, failure, response_of
from kvx.engines.kvpress.scheduler import Finished, Refused, Scheduler, Task
from kvx.engines.kvpress.sequence import Row, StepObserver
from kvx.engines.kvpress.sharing import ragged_obstacle
from kvx.points import Point, Request
from kvx.text.incremental import StopTokens, StopWatch


class Asked(Task):
    """A request of a run. Tried again, it begins anew and records the same as among others."""

    def __init__(self, batch: "Batch", request: Request, example: Example, alone: bool) -> None:
        self.batch, self.request, self.example, self.alone = batch, request, example, alone
        self.bytes = batch.account.needed([request], batch.probed([request]))

    def submission(self) -> Submission:
        return self.batch.submission(self)

    def again(self) -> None:
        self.batch.forget(self.row)
        self.row = None


class Batch:
    """Requests of points that differ in press, budget, controller and seed only.

    Iterating `run` yields what `Engine.generate` promises. With a `clock`, times are what is
    wanted: besides it, only controllers watch. `date` is the manifest's.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        account: Account,
        clock: StepObserver | None = None,
        date: str | None = None,
    ) -> None:
        self.loaded, self.config, self.account = loaded, config, account
        self.builder = PromptBuilder(loaded.tokenizer, config, date)
        signals = config.signals if clock is None else Signals.off
        self.traces, step = None, StepSignals()
        if signals is not Signals.off:
            self.traces = TraceObserver(loaded, signals is Signals.full, step)
        self.probing = signals is Signals.full
        self.observers: list[StepObserver] = [] if self.traces is None else [self.traces]
        self.observers.append(LiveGuard(loaded, step))
        if clock is not None:
            self.observers.append(clock)
        if config.decoding.timeout_s is not None:
            self.observers.append(TimeLimit(config.decoding.timeout_s))
        self.in_transformers = ragged_obstacle(loaded.model) is not None
        # a request's time means nothing among others
        timed = config.decoding.timeout_s is not None
        self.share = config.engine.share and not self.in_transformers and not timed
        self.scheduler: Scheduler[Asked] = Scheduler(
            loaded,
            config.decoding,
            self.observers,
            account,
            config.engine.max_rows if self.share else 1,
            begin=lambda tasks: ACTIVITY.begin([task.request for task in tasks]),
        )
        self.failed: set[Path] = set()
        self._stop_tokens = StopTokens(loaded.tokenizer, config.decoding.until)
        self._parts: tuple[Example, PromptParts] | None = None
        self._context_chars: dict[str, list[int] | None] = {}  # by example

    def run(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        """Exactly one response per request, unless its point fails."""
        for chunk in self.chunks(work):
            self.submit(chunk)
        with fast_linears(self.loaded.model):
            yield from self.drain()

    def submit(self, chunk: Chunk) -> None:
        tasks = [self.asked(request, chunk.example, chunk.alone) for request in chunk.requests]
        self.scheduler.submit(tasks, chunk.bytes)

    def asked(self, request: Request, example: Example, alone: bool) -> Asked:
        return Asked(self, request, example, alone)

    def drain(self) -> Iterator[Response | PointFailed]:
        """What becomes of the submitted requests."""
        while not self.scheduler.idle:
            for event in self.scheduler.step().events:
                if (found := self._answer(event)) is not None:
                    yield found

    def chunks(self, work: Sequence[PointWork]) -> list[Chunk]:
        """The requests by example, in manifest order: those that share a prefill, then others."""
        together: dict[str, list[Request]] = {}
        found: list[Chunk] = []
        examples = {}
        order: dict[str, tuple[int, int]] = {}
        for item in work:
            for position, (request, example) in enumerate(item.requests):
                name = example.example_id
                examples[name] = example
                order.setdefault(name, (request.entry.bin, position))
                if self.share and not runs_alone(item.point):
                    together.setdefault(name, []).append(request)
                else:
                    size = self.account.needed([request], self.probed([request]))
                    found.append(Chunk(example, (request,), size, alone=True))
        for name, requests in together.items():
            found += chunks(examples[name], requests, self.account, self.probed(requests))
        return sorted(found, key=lambda c: order[c.example.example_id])

    def probed(self, requests: Sequence[Request]) -> bool:
        """Whether these are compared with the full cache before their first token."""
        return self.probing or any(r.point.guarded for r in requests)

    def parts(self, example: Example) -> PromptParts:
        """The prompt of `example`, tokenised once for all that ask for it in a row."""
        if self._parts is None or self._parts[0] is not example:
            self._parts = (example, self.builder.parts(example))
        return self._parts[1]

    def submission(self, asked: Asked) -> Submission:
        request, point = asked.request, asked.request.point
        parts = self.parts(asked.example)
        n = len(parts.compressed_ids)
        probed = self.probed([request])
        in_transformers = self.in_transformers or PressNeed.masks in point.config.press.needs
        asks = PressNeed.query_in_prompt in point.config.press.needs
        asked_with = self.builder.question_tokens(asked.example) if asks else 0
        return Submission(
            parts,
            PointPress(point, n, question_tokens=asked_with),
            point.config.press.name,
            point.kept_tokens(n),
            request.max_new_tokens,
            seed_of(request),
            request,
            request.decoding,
            watched=probed,
            positions=self.probing,
            probed=probed,
            guard=guard_of(request),
            until=self._watch(),
            everywhere=point.config.press.layers is PressLayers.all,
            alone=asked.alone and not point.guarded,
            in_transformers=in_transformers,
        )

    def forget(self, row: Row | None) -> None:
        """A row that has been given up."""
        if self.traces is not None and row is not None:
            self.traces.forget([row])

    def _watch(self) -> Callable[[], StopWatch] | None:
        """What makes the watch for the stop strings of a row; None without stop strings."""
        until = self.config.decoding.until
        if not until:
            return None
        return partial(StopWatch, self.loaded.tokenizer, until, self._stop_tokens)

    def _answer(self, event: Finished[Asked] | Refused[Asked]) -> Response | PointFailed | None:
        """None of a point that has failed before."""
        point = event.task.request.point
        if point.dir in self.failed:
            return None
        if isinstance(event, Finished):
            trace = self._trace(event)
            return response_of(event.row, self.loaded, self.config.decoding, trace)
        self.forget(event.task.row)
        if isinstance(event.error, BudgetContradictedError):
            return self._fail(point, str(event.error))
        return failure(event.task.request, event.error)

    def _trace(self, event: Finished[Asked]) -> Trace | None:
        """What was recorded of a finished row."""
        if self.traces is None:
            return None
        trace, example = self.traces.trace(event.row), event.task.example
        if trace.kept_percent is None:
            return trace
        if example.example_id not in self._context_chars:
            self._context_chars[example.example_id] = self.builder.context_chars(example)
        return replace(trace, context_chars=self._context_chars[example.example_id])

    def _fail(self, point: Point, message: str) -> PointFailed:
        """Give up all requests of a point."""
        self.failed.add(point.dir)
        tasks = [*self.scheduler.waiting, *self.scheduler.running]
        gone = [task for task in tasks if task.request.point.dir == point.dir]
        self.scheduler.drop(gone)
        for task in gone:
            self.forget(task.row)
        return PointFailed(point, message)
