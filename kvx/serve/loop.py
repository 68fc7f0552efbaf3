"""The decoding thread: it alone uses the model.

Between two steps of all running rows at most one prompt is prefilled, so that a burst of prompts
does not hold up those who are reading.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.engines.base import KVUse
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.guarded import LiveGuard
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import TIMEOUT, StepSignals, TimeLimit
from kvx.engines.kvpress.proof import BudgetContradictedError, kv_at_end
from kvx.engines.kvpress.sequence import Row, StepObserver
from kvx.serve.admission import PressFailedError, admitted, first_line
from kvx.serve.api_errors import ApiError, shutting_down
from kvx.serve.jobs import Done, Event, Job
from kvx.serve.prometheus import Metrics
from kvx.serve.speaker import FAILED, GuardMetrics, Speaker

log = logging.getLogger(__name__)

CANCELLED = "cancelled"
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
        logits_bytes: int,
        cap_bytes: int,
        metrics: Metrics,
        send: Send,
    ) -> None:
        super().__init__(name="kvx-decode", daemon=True)
        self.loaded, self.metrics, self.send = loaded, metrics, send
        self.max_rows, self.logits_bytes, self.cap_bytes = (
            config.serve.max_rows,
            logits_bytes,
            cap_bytes,
        )
        self.broken = False  # by a bug: the thread has ended and takes nothing more
        self._speaker = Speaker()
        observers: list[StepObserver] = [self._speaker]
        if is_guarded(config):
            observers += [LiveGuard(loaded, StepSignals()), GuardMetrics(metrics)]
        self.limit_s = config.decoding.timeout_s
        if self.limit_s is not None:
            observers.append(TimeLimit(self.limit_s))
        self.decoder = Decoder(loaded, config.decoding, observers)
        self._cache_bytes = self._host_bytes = 0  # as the last turn left them
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._suspects: deque[Job] = deque()  # were running when a step failed
        self._closed_at: float | None = None  # when running rows are cut, on perf_counter
        self._out: list[tuple[Job, Event]] = []

    # the server's side: any thread

    @property
    def load(self) -> Load:
        with self._changed:
            waiting = len(self._waiting) + len(self._suspects)
            running = len(self._speaker.jobs)
            return Load(running, waiting, self._cache_bytes, self._host_bytes)

    def submit(self, job: Job) -> None:
        """Raises `ApiError` if the server takes nothing more."""
        with self._changed:
            if self._closed_at is not None:
                raise shutting_down()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: its row is free after the running step."""
        with self._changed:
            job.cancelled = True
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
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
            left = [*self._waiting, *self._suspects, *self._speaker.jobs.values()]
            self._waiting.clear()
            self._suspects.clear()
        self._out += [(job, shutting_down()) for job in left]
        self._flush()

    def _turn(self) -> bool:
        """Wait for work, admit one job, step once; False when all is over."""
        with self._changed:
            while not (self._waiting or self._suspects or self.decoder.rows):
                if self._closed_at is not None:
                    return False
                self._changed.wait()
            if self._closed_at is not None:
                left = [*self._waiting, *self._suspects]
                self._out += [(job, shutting_down()) for job in left]
                self._waiting.clear()
                self._suspects.clear()
            job = self._next()
        self._drop_unwanted()
        if job is not None:
            self._admit(job)
        if self.decoder.rows:
            self._step()
        self._cache_bytes = self.decoder.bytes
        self._host_bytes = sum(job.host_bytes for job in self._speaker.jobs.values())
        self._flush()
        return True

    def _next(self) -> Job | None:
        """The job to prefill now. Those that may have broken a step run alone."""
        running = len(self.decoder.rows)
        if self._suspects:
            return None if running else self._suspects.popleft()
        if not self._waiting:
            return None
        held = self.decoder.bytes + running * self.logits_bytes + self._promised_bytes()
        fits = running < self.max_rows and held + self._waiting[0].bytes <= self.cap_bytes
        return self._waiting.popleft() if fits or not running else None

    def _promised_bytes(self) -> int:
        """What guarded rows may still be given of their prompts, and shadows in the same memory."""
        in_host = self.loaded.device.type == "cuda"
        promised = 0
        for job in self._speaker.jobs.values():
            if job.row is not None and job.row.guard is not None:
                promised += round((1 - job.row.guard.budget) * job.prompt_bytes)
                promised += 0 if in_host else job.host_bytes
        return promised

    def _drop_unwanted(self) -> None:
        cut = self._closed_at is not None and time.perf_counter() >= self._closed_at
        jobs = list(self._speaker.jobs.values())
        gone = [job for job in jobs if job.cancelled or cut]
        if gone:
            self._out += [(job, shutting_down()) for job in gone if not job.cancelled]
            self.decoder.end([job.row for job in gone if job.row is not None], CANCELLED)
            self._speaker.forget(gone)

    def _admit(self, job: Job) -> None:
        if job.cancelled:
            return
        begun = time.perf_counter()
        self.metrics.queue_s.observe(begun - job.created)
        try:
            found = admitted(self.loaded, job)
            assert job.row is not None
            self._speaker.jobs[id(job.row)] = job
            if job.row.tokens:
                self.decoder.readmit(found.buckets)
                return
            finished = self.decoder.admit(found.buckets, found.prefills, found.logits)
        except Exception as error:  # noqa: BLE001  this request fails; the others go on
            if job.row is not None:
                self.decoder.end([job.row], FAILED)
            self._speaker.forget([job])
            self._out.append((job, _refusal(job, error)))
            return
        finally:
            self.metrics.prefill_s.observe(time.perf_counter() - begun)
        self._finish(finished)

    def _step(self) -> None:
        """One token for every running row. If that fails, each of them is tried alone."""
        begun = time.perf_counter()
        rows = len(self.decoder.rows)
        try:
            finished = self.decoder.step()
        except Exception as error:  # noqa: BLE001  each running request is tried alone
            self.decoder.clear()
            self._finish(
                [j.row for j in self._speaker.jobs.values() if j.row is not None and _ended(j)]
            )
            jobs = list(self._speaker.jobs.values())
            self._speaker.forget(jobs)
            for job in jobs:
                job.rewind()
            if rows == 1 and jobs:
                self._out.append((jobs[0], _refusal(jobs[0], error)))
                return
            log.warning("serve: a step of %d requests failed (%s): each alone", rows, error)
            with self._changed:
                self._suspects += jobs
            return
        self.metrics.step_s.observe(time.perf_counter() - begun)
        self.metrics.rows.observe(rows)
        self._finish(finished)

    def _finish(self, rows: Sequence[Row]) -> None:
        self._out += self._speaker.said()
        for row in rows:
            job = self._speaker.jobs.pop(id(row))
            self.metrics.tokens.inc(job.n_tokens)
            if row.finish_reason == TIMEOUT:
                message = f"timed out after {self.limit_s:g} s"
                self._out.append((job, ApiError(504, message, code="timeout")))
            elif row.finish_reason == FAILED:
                self._out.append((job, ApiError(500, "the answer could not be decoded")))
            else:
                try:
                    left = job.transcript.close()
                except Exception as error:  # noqa: BLE001  this answer fails; the others go on
                    self._out.append((job, _refusal(job, error)))
                    continue
                reason = "stop" if job.transcript.stopped else str(row.finish_reason)
                guard = None if row.guard is None else row.guard.result(job.host_bytes)
                done = Done(reason, job.n_tokens, _kv_of(job, row), guard)
                self._out += [(job, event) for event in (*left, done)]

    def _flush(self) -> None:
        if self._out:
            self.send(self._out)
            self._out = []


def _ended(job: Job) -> bool:
    """Whether a step that failed had brought this answer to its end before."""
    row = job.row
    if row is None or row.finish_reason is None:
        return False
    return job.transcript.n_tokens == job.n_tokens


def _kv_of(job: Job, row: Row) -> KVUse:
    """The row's cache now that it has ended; as `engine=kvpress` reports it."""
    assert row.kv is not None
    return kv_at_end(row.kv, row, len(job.parts.compressed_ids))


def _refusal(job: Job, error: Exception) -> ApiError:
    """What a client hears of an exception while its own request was worked on."""
    reason = first_line(error)
    if isinstance(error, BudgetContradictedError):
        return ApiError(422, reason, "kvx.budget", "budget_contradicted")
    if isinstance(error, PressFailedError):
        return ApiError(422, reason, "kvx.press", "press_failed")
    log.error("serve: a request failed", exc_info=error)
    return ApiError(500, f"{type(error).__name__}: {reason}")
