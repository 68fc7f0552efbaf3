"""The decoding thread: it alone uses the model.

Between two steps of all running rows at most one prompt is prefilled, so that a burst of prompts
does not hold up those who are reading.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.engines.base import KVUse
from kvx.engines.kvpress.account import Account, shadow_bytes
from kvx.engines.kvpress.guarded import LiveGuard
from kvx.engines.kvpress.layers import Layers, layers_of
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.memory import OUT_OF_MEMORY
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import TIMEOUT, StepSignals, TimeLimit
from kvx.engines.kvpress.proof import BudgetContradictedError, bytes_host, kv_at_end
from kvx.engines.kvpress.scheduler import Finished, Refused, Scheduler
from kvx.engines.kvpress.sequence import Row, StepObserver
from kvx.errors import first_line
from kvx.serve.api_errors import ApiError, shutting_down
from kvx.serve.jobs import Done, Event, Job
from kvx.serve.prometheus import Metrics
from kvx.serve.speaker import FAILED, GuardMetrics, Speaker

log = logging.getLogger(__name__)

Send = Callable[[Sequence[tuple[Job, Event]]], None]


@dataclass(frozen=True)
class Load:
    """How busy the loop is. `host_bytes` are in the shadows of guarded rows."""

    running: int
    waiting: int
    cache_bytes: int
    host_bytes: int


class DecodeLoop(threading.Thread):
    """Generates for every submitted job; events go out through `send`, once per step."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        account: Account,
        metrics: Metrics,
        send: Send,
    ) -> None:
        super().__init__(name="kvx-decode", daemon=True)
        self.loaded, self.metrics, self.send = loaded, metrics, send
        self.broken = False  # by a bug: the thread has ended and takes nothing more
        self._speaker = Speaker()
        observers: list[StepObserver] = [self._speaker]
        if is_guarded(config):
            observers += [LiveGuard(loaded, StepSignals()), GuardMetrics(metrics)]
        self.limit_s = config.decoding.timeout_s
        if self.limit_s is not None:
            observers.append(TimeLimit(self.limit_s))
        self.scheduler: Scheduler[Job] = Scheduler(
            loaded,
            config.decoding,
            observers,
            account,
            config.serve.max_rows,
            interleaved=True,
            begin=self._begun,
        )
        self._load = Load(0, 0, 0, 0)  # as the last turn left it, without what waits
        self._waiting: tuple[Job, ...] = ()
        self._changed = threading.Condition()
        self._new: list[Job] = []  # submitted since the last turn
        self._closed_at: float | None = None  # when running rows are cut, on perf_counter
        self._out: list[tuple[Job, Event]] = []

    # the server's side: any thread

    @property
    def load(self) -> Load:
        with self._changed:
            waiting = sum(not job.cancelled for job in (*self._waiting, *self._new))
            return replace(self._load, waiting=waiting)

    def submit(self, job: Job) -> None:
        """Raises `ApiError` if the server takes nothing more."""
        with self._changed:
            if self._closed_at is not None:
                raise shutting_down()
            self._new.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: its row is free after the running step."""
        with self._changed:
            job.cancelled = True
            if job in self._new:
                self._new.remove(job)
            self._changed.notify()

    def close(self, drain_s: float) -> None:
        """Take nothing more; waiting jobs end at once, running ones after `drain_s` seconds."""
        with self._changed:
            self._closed_at = time.perf_counter() + drain_s
            self._changed.notify()

    # the decoding thread

    def run(self) -> None:
        try:
            with torch.inference_mode(), fast_linears(self.loaded.model):
                while self._turn():
                    pass
        except Exception:
            self.broken = True
            log.exception("serve: the decoding thread ended")
        with self._changed:
            self._closed_at = time.perf_counter()
            left = [*self._new, *self.scheduler.waiting, *self.scheduler.running]
            self._new.clear()
        self._out += [(job, shutting_down()) for job in left]
        self._flush()

    def _turn(self) -> bool:
        """Wait for work, and take one step; False when all is over."""
        with self._changed:
            while self.scheduler.idle and not self._new:
                if self._closed_at is not None:
                    return False
                self._changed.wait()
            for job in self._new:
                self.scheduler.submit([job])
            self._new.clear()
            self._look()
        self._drop_unwanted()
        begun = time.perf_counter()
        step = self.scheduler.step()
        spent_s = time.perf_counter() - begun
        if step.prefilled:
            self.metrics.prefill_s.observe(spent_s)
        if step.decoded:
            self.metrics.step_s.observe(spent_s)
            self.metrics.rows.observe(step.decoded)
        self._answer(step.events)
        with self._changed:
            self._look()
        self._flush()
        return True

    def _look(self) -> None:
        scheduler = self.scheduler
        running = scheduler.running
        self._waiting = tuple(scheduler.waiting)
        self._load = Load(
            len(running),
            len(self._waiting),
            scheduler.decoder.bytes,
            shadow_bytes([job.row for job in running if job.row is not None]),
        )

    def _begun(self, jobs: Sequence[Job]) -> None:
        """Called before these are prefilled."""
        for job in jobs:
            self.metrics.queue_s.observe(time.perf_counter() - job.created)
        with self._changed:
            self._look()

    def _drop_unwanted(self) -> None:
        """Drop jobs whose client has gone, and jobs that a closing server does not answer."""
        now, closed_at = time.perf_counter(), self._closed_at
        waiting, running = self.scheduler.waiting, self.scheduler.running
        gone = [job for job in (*waiting, *running) if job.cancelled]
        refused = [] if closed_at is None else waiting
        if closed_at is not None and now >= closed_at:
            refused = [*waiting, *running]
        self._out += [(job, shutting_down()) for job in refused if not job.cancelled]
        if gone or refused:
            self.scheduler.drop([*gone, *refused])
            self._speaker.forget([*gone, *refused])

    def _answer(self, events: Sequence[Finished[Job] | Refused[Job]]) -> None:
        self._out += self._speaker.said()
        for event in events:
            if isinstance(event, Finished):
                self._finish(event.task, event.row)
            else:
                self._out.append((event.task, _refusal(event)))

    def _finish(self, job: Job, row: Row) -> None:
        self.metrics.tokens.inc(job.n_tokens)
        if row.finish_reason == TIMEOUT:
            message = f"timed out after {self.limit_s:g} s"
            self._out.append((job, ApiError(504, message, code="timeout")))
        elif row.finish_reason == FAILED:
            self._out.append((job, ApiError(500, "the answer could not be decoded")))
        else:
            try:
                left = job.transcript.close()
            except Exception as error:  # noqa: BLE001  this answer fails; others go on
                self._out.append((job, _refusal(Refused(job, error))))
                return
            reason = "stop" if job.transcript.stopped else str(row.finish_reason)
            guard = None if row.guard is None else row.guard.result(bytes_host(row))
            done = Done(reason, job.n_tokens, _kv_of(job, row, layers_of(self.loaded.model)), guard)
            self._out += [(job, event) for event in (*left, done)]

    def _flush(self) -> None:
        if self._out:
            self.send(self._out)
            self._out = []


def _kv_of(job: Job, row: Row, layers: Layers) -> KVUse:
    """The row's cache now that it has ended; as `engine=kvpress` reports it."""
    assert row.kv is not None
    return kv_at_end(row.kv, row, len(job.parts.compressed_ids), layers)


def _refusal(refused: Refused[Job]) -> ApiError:
    """What a client is told of an exception in its own request."""
    error, reason = refused.error, first_line(refused.error)
    if isinstance(error, BudgetContradictedError):
        return ApiError(422, reason, "kvx.budget", "budget_contradicted")
    if refused.by_press and not isinstance(error, OUT_OF_MEMORY):
        press = refused.task.request.point.config.press.name
        message = f"press={press} cannot compress this prompt: {reason}"
        return ApiError(422, message, "kvx.press", "press_failed")
    log.error("serve: a request failed", exc_info=error)
    return ApiError(500, f"{type(error).__name__}: {reason}")
