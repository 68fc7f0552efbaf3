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

from kvx.config import Config
from kvx.engines.base import KVUse
from kvx.engines.kvpress.batch import BudgetContradictedError, kv_at_end, prove_budget
from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.forward import forward
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.model import LoadedModel, resolve_attention
from kvx.engines.kvpress.observers import TIMEOUT, TimeLimit
from kvx.engines.kvpress.prefill import PromptCaches, PromptRow, kv_use, prefill
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.rows import Action, Prefill, Row, StepObserver, Stop
from kvx.engines.kvpress.schedule import question_tokens
from kvx.engines.kvpress.streams import RandomStream
from kvx.points import Point
from kvx.serve.errors import ApiError, shutting_down
from kvx.serve.jobs import Done, Event, Job, Piece, ScoredToken, TokenLogprob
from kvx.serve.metrics import Metrics

log = logging.getLogger(__name__)

CANCELLED, FAILED = "cancelled", "failed"
LOWEST_LOGPROB = -9999.0  # JSON knows no -inf
Send = Callable[[Sequence[tuple[Job, Event]]], None]


@dataclass(frozen=True)
class Load:
    """How busy the loop is."""

    running: int
    waiting: int
    cache_bytes: int


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
            config.serve.max_rows, logits_bytes, cap_bytes,
        )  # fmt: skip
        self.broken = False  # by a bug: the thread has ended and takes nothing more
        self._speaker = Speaker()
        observers: list[StepObserver] = [self._speaker]
        self.limit_s = config.decoding.timeout_s
        if self.limit_s is not None:
            observers.append(TimeLimit(self.limit_s))
        self.decoder = Decoder(loaded, config.decoding, observers)
        self._cache_bytes = 0  # as the last turn left it
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
            return Load(len(self._speaker.jobs), waiting, self._cache_bytes)

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
        self._flush()
        return True

    def _next(self) -> Job | None:
        """The job to prefill now. Those that may have broken a step run alone."""
        running = len(self.decoder.rows)
        if self._suspects:
            return None if running else self._suspects.popleft()
        if not self._waiting:
            return None
        held = self.decoder.bytes + running * self.logits_bytes
        fits = running < self.max_rows and held + self._waiting[0].bytes <= self.cap_bytes
        return self._waiting.popleft() if fits or not running else None

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
            bucket, logits = self._prefill(job)
            assert job.row is not None
            self._speaker.jobs[id(job.row)] = job
            if job.row.tokens:
                self.decoder.readmit(bucket, job.row)
                return
            first = Prefill(logits[0], job.parts.n_tokens, len(job.parts.compressed_ids))
            finished = self.decoder.admit([(bucket, [job.row])], [first], logits)
        except Exception as error:
            self._speaker.forget([job])
            self._out.append((job, _refusal(job, error)))
            return
        finally:
            self.metrics.prefill_s.observe(time.perf_counter() - begun)
        self._finish(finished)

    def _prefill(self, job: Job) -> tuple[Bucket, torch.Tensor]:
        """The job's compressed cache and the logits [1, vocab] after its prompt.

        A job that has tokens already (it is tried again) gets them into its cache.
        """
        point, ids, rest = job.request.point, job.parts.compressed_ids, job.parts.rest_ids
        n, device = len(ids), self.loaded.device
        self.loaded.set_attention(resolve_attention(point.config))
        prompt = PromptRow(
            PointPress(point, n), point.kept_tokens(n), RandomStream(job.seed, device)
        )
        decoding = point.config.decoding
        room = len(rest) + decoding.max_new_tokens
        caches = self._compressed(job, prompt, room)
        if job.row is None:
            generator = torch.Generator().manual_seed(job.seed)
            job.row = Row(
                job.request, n, generator=generator, decoding=decoding, ignore_stop=job.ignore_stop
            )
        row = job.row
        row.position, row.kv = n, kv_use(prompt, n)
        prove_budget(point, row.kv)
        (bucket,) = caches.buckets
        following = [*rest, *row.tokens[:-1]]
        logits = self.loaded.model.lm_head(caches.hidden)[None]
        if following:
            tokens = torch.tensor([following], device=device)
            at_once = question_tokens(1, n + len(following))
            for some in torch.split(tokens, at_once, dim=1):
                logits = forward(self.loaded, [bucket], [row], some)[:, -1]
        return bucket, logits

    def _compressed(self, job: Job, prompt: PromptRow, room: int) -> PromptCaches:
        """Raises `_PressFailedError` if the press is at fault: some refuse some short prompts."""
        point = job.request.point
        alone = runs_alone(point)
        try:
            caches = prefill(self.loaded, job.parts.compressed_ids, [prompt], room, alone)
        except Exception as error:
            if alone and not _is_memory(error):
                raise _PressFailedError(point, error) from error
            raise
        if prompt.error is not None:
            if _is_memory(prompt.error):
                raise prompt.error
            raise _PressFailedError(point, prompt.error)
        return caches

    def _step(self) -> None:
        """One token for every running row. If that fails, each of them is tried alone."""
        begun = time.perf_counter()
        rows = len(self.decoder.rows)
        try:
            finished = self.decoder.step()
        except Exception as error:
            self.decoder.clear()
            jobs = list(self._speaker.jobs.values())
            self._speaker.forget(jobs)
            for job in jobs:
                job.rewind()
            if len(jobs) == 1:
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
            self.metrics.tokens.inc(len(row.tokens))
            if row.finish_reason == TIMEOUT:
                message = f"timed out after {self.limit_s:g} s"
                self._out.append((job, ApiError(504, message, code="timeout")))
            elif row.finish_reason == FAILED:
                self._out.append((job, ApiError(500, "the answer could not be decoded")))
            else:
                try:
                    text = "" if job.stops.found else _last_text(job)
                except Exception as error:  # this answer's last token; the others go on
                    self._out.append((job, _refusal(job, error)))
                    continue
                if text:
                    self._out.append((job, Piece(text)))
                reason = "stop" if job.stops.found else str(row.finish_reason)
                self._out.append((job, Done(reason, len(row.tokens), _kv_of(job, row))))

    def _flush(self) -> None:
        if self._out:
            self.send(self._out)
            self._out = []


class Speaker(StepObserver):
    """The observer that turns tokens into text and log-probabilities, and sees stop strings."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}  # running, by id of their row
        self._said: list[tuple[Job, Event]] = []

    def said(self) -> list[tuple[Job, Event]]:
        """What was said since this was last asked."""
        said, self._said = self._said, []
        return said

    def forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.jobs.pop(id(job.row), None)

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        scored = self._scores(rows, logits, tokens)
        actions: list[Action] = []
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            job = self.jobs[id(row)]
            try:
                text = job.stops.push(job.text.push(token))
            except Exception:  # this row's answer; the others go on
                log.exception("serve: a token could not be decoded")
                actions.append(Stop(row, FAILED))
                continue
            if text or index in scored:
                self._said.append((job, Piece(text, scored.get(index, ()))))
            if job.stops.found:
                actions.append(Stop(row, "stop"))
        return actions

    def _scores(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> dict[int, tuple[ScoredToken, ...]]:
        """By index, for the rows that ask for log-probabilities."""
        wanted = {
            i: n for i, row in enumerate(rows) if (n := self.jobs[id(row)].logprobs) is not None
        }
        if not wanted:
            return {}
        indices = list(wanted)
        logprobs = torch.log_softmax(logits[indices].float(), dim=-1).cpu()
        chosen = tokens[indices].cpu()
        own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        values, ids = logprobs.topk(min(max(wanted.values()), logprobs.shape[1]))
        found: dict[int, tuple[ScoredToken, ...]] = {}
        for i, index in enumerate(indices):
            n = wanted[index]
            likeliest = zip(ids[i, :n].tolist(), values[i, :n].tolist(), strict=True)
            top = tuple(TokenLogprob(t, max(p, LOWEST_LOGPROB)) for t, p in likeliest)
            token = TokenLogprob(int(chosen[i]), max(own[i], LOWEST_LOGPROB))
            found[index] = (ScoredToken(token, top),)
        return found


def _last_text(job: Job) -> str:
    return job.stops.push(job.text.rest()) + job.stops.rest()


def _kv_of(job: Job, row: Row) -> KVUse:
    """The row's cache now that it has ended; as `engine=kvpress` reports it."""
    assert row.kv is not None
    return kv_at_end(row.kv, row, len(job.parts.compressed_ids))


def _refusal(job: Job, error: Exception) -> ApiError:
    """What a client hears of an exception while its own request was worked on."""
    reason = _first_line(error)
    if isinstance(error, BudgetContradictedError):
        return ApiError(422, reason, "kvx.budget", "budget_contradicted")
    if isinstance(error, _PressFailedError):
        return ApiError(422, reason, "kvx.press", "press_failed")
    log.error("serve: a request failed", exc_info=error)
    return ApiError(500, f"{type(error).__name__}: {reason}")


class _PressFailedError(Exception):
    def __init__(self, point: Point, error: Exception) -> None:
        press, reason = point.config.press.name, _first_line(error) or type(error).__name__
        super().__init__(f"press={press} cannot compress this prompt: {reason}")


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
