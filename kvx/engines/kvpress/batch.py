"""Running many requests at once: prefills shared by points, rows decoded together."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kvx.config.schema import Config, PressNeed, Signals
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder, PromptParts
from kvx.engines.activity import ACTIVITY
from kvx.engines.base import PointFailed, PointWork, Response, seed_of
from kvx.engines.kvpress.admission import Submission, admit
from kvx.engines.kvpress.attention import ragged_obstacle
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.guarded import LiveGuard, guard_of
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.masked import decode_masked, prefill_masked
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import StepSignals, TimeLimit, TraceObserver
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.probe import probes
from kvx.engines.kvpress.proof import BudgetContradictedError, failure, prove_budget, response_of
from kvx.engines.kvpress.schedule import Chunk, RowCost, chunks
from kvx.engines.kvpress.sequence import Prefill, Row, StepObserver
from kvx.engines.kvpress.shadow import RowShadow
from kvx.engines.kvpress.streams import RandomStream
from kvx.guard.trace_arrays import PROBE_TOKENS
from kvx.points import Point, Request
from kvx.text.incremental import StopTokens, StopWatch

log = logging.getLogger(__name__)


class Batch:
    """Requests of points that differ in press, budget, controller and seed only.

    Iterating `run` yields what `Engine.generate` promises. Rows join while their caches fit below
    `cap_bytes`, and leave when they are finished. With a `clock`, times are what is wanted: besides
    it, only controllers watch. `date` is the manifest's.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        cost: RowCost,
        cap_bytes: int,
        clock: StepObserver | None = None,
        date: str | None = None,
    ) -> None:
        self.loaded, self.config, self.cost, self.cap_bytes = loaded, config, cost, cap_bytes
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
        self.decoder = Decoder(loaded, config.decoding, self.observers)
        self.in_transformers = ragged_obstacle(loaded.model) is not None
        # a request's time means nothing among others
        timed = config.decoding.timeout_s is not None
        self.share = config.engine.share and not self.in_transformers and not timed
        self.failed: set[Path] = set()
        self._stop_tokens = StopTokens(loaded.tokenizer, config.decoding.until)
        self._parts: tuple[Example, PromptParts] | None = None
        self._examples: dict[str, Example] = {}  # of the running rows, by request

    def run(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        """Exactly one response per request, unless its point fails."""
        pending = deque(self._chunks(work))
        with fast_linears(self.loaded.model):
            while pending or self.decoder.rows:
                while pending and self._fits(pending[0]):
                    yield from self.start(pending.popleft())
                if self.decoder.rows:
                    yield from self.go_on()

    def _chunks(self, work: Sequence[PointWork]) -> list[Chunk]:
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
                    found.append(self._alone(request, example))
        for name, requests in together.items():
            found += chunks(
                examples[name], requests, self.cost, self.cap_bytes, self._probed(requests)
            )
        return sorted(found, key=lambda c: order[c.example.example_id])

    def _alone(self, request: Request, example: Example) -> Chunk:
        """A request that shares its prefill with no other, but for what it is compared with.

        One that is tried again is prefilled as it was among others, so that it records the same.
        """
        size = self.cost.of(request.point, request)
        if self._probed([request]):
            size += request.entry.prompt_tokens * self.cost.entry_bytes
        alone = not self.share or runs_alone(request.point)
        return Chunk(example, (request,), size, alone)

    def _probed(self, requests: Sequence[Request]) -> bool:
        """Whether these are compared with the full cache before their first token."""
        guarded = any(r.point.guarded for r in requests)
        return self.probing or guarded

    def parts(self, example: Example) -> PromptParts:
        """The prompt of `example`, tokenised once for all that ask for it in a row."""
        if self._parts is None or self._parts[0] is not example:
            self._parts = (example, self.builder.parts(example))
        return self._parts[1]

    def _fits(self, chunk: Chunk) -> bool:
        running = len(self.decoder.rows)
        if running == 0:
            return True
        held = self.decoder.bytes + running * self.cost.logits_bytes
        held += self._shadow_bytes() + self._promised_bytes()
        return (
            self.share
            and running + len(chunk.requests) <= self.config.engine.max_rows
            and held + chunk.bytes <= self.cap_bytes
        )

    def _shadow_bytes(self) -> int:
        """Full caches that running rows hold beside their own, where that is the same memory."""
        if self.loaded.device.type == "cuda":
            return 0
        sources = [r.origin.source for r in self.decoder.rows if r.origin is not None]
        held = [s.prompt for s in sources if isinstance(s, RowShadow)]
        shadows = {id(prompt): prompt for prompt in held}
        return sum(shadow.bytes for shadow in shadows.values())

    def _promised_bytes(self) -> int:
        """What running rows may still be given, and a row twice while it is built again."""
        more = [
            (1 - row.guard.budget) * row.request.entry.compressed_tokens
            for row in self.decoder.rows
            if row.guard is not None
        ]
        return round((sum(more) + max(more, default=0)) * self.cost.entry_bytes)

    def start(self, chunk: Chunk) -> Iterator[Response | PointFailed]:
        """Prefill a chunk and let its rows join; what ends with that is answered at once.

        If a prefill for several requests fails, each is tried alone.
        """
        requests = [r for r in chunk.requests if r.point.dir not in self.failed]
        if not requests:
            return
        ended: list[Response | PointFailed] = []
        reason: Response | None = None
        self._examples |= {r.id: chunk.example for r in requests}
        ACTIVITY.begin(requests)
        try:
            parts = self.parts(chunk.example)
            if self.in_transformers or PressNeed.masks in requests[0].point.config.press.needs:
                ended.append(self._masked(requests[0], parts))
            else:
                self._admit(requests, parts, chunk.alone, ended)
        except BudgetContradictedError as error:
            ended.append(self._fail(requests[0].point, str(error)))
        except Exception as error:  # noqa: BLE001  this chunk fails; the others go on
            reason = failure(requests[0], error)
            asked = {r.id for r in requests}
            joined = [row for row in self.decoder.rows if row.request.id in asked]
            self.decoder.end(joined, "failed")
            self._forget(joined)
        yield from ended
        if reason is not None:
            answered = {item.request.id for item in ended if isinstance(item, Response)}
            left = [r for r in requests if r.id not in answered]
            yield from self._one_by_one(left, chunk.example, reason)

    def go_on(self) -> Iterator[Response | PointFailed]:
        """One step of all running rows; the responses that are finished with it.

        If it fails, each of the running requests is tried alone.
        """
        try:
            with torch.inference_mode():
                finished = self._responses(self.decoder.step())
        except Exception as error:  # noqa: BLE001  a press may raise anything
            rows = self.decoder.clear()
            self._forget(rows)
            reason = failure(rows[0].request, error)
        else:
            yield from finished
            return
        if len(rows) == 1:
            yield reason
            return
        for row in rows:
            yield from self._one_by_one([row.request], self._examples[row.request.id], None)

    def _forget(self, rows: Sequence[Row]) -> None:
        """Rows that have been given up."""
        if self.traces is not None:
            self.traces.forget(rows)

    def _one_by_one(
        self, requests: Sequence[Request], example: Example, reason: Response | None
    ) -> Iterator[Response | PointFailed]:
        """Every request alone, to its end; with a `reason`, a single one has been tried already."""
        if len(requests) == 1 and reason is not None:
            yield replace(reason, request=requests[0])
            return
        for request in requests:
            yield from self.start(self._alone(request, example))
            while self.decoder.rows:
                yield from self.go_on()

    def _admit(
        self,
        requests: Sequence[Request],
        parts: PromptParts,
        alone: bool,
        ended: list[Response | PointFailed],
    ) -> None:
        alone = alone and not any(r.point.guarded for r in requests)
        found = admit(self.loaded, [self._submission(r, parts) for r in requests], alone)
        for index, error in found.refused:
            request = requests[index]
            if isinstance(error, BudgetContradictedError):
                ended.append(self._fail(request.point, str(error)))
            else:
                ended.append(failure(request, error))
        if found.buckets:
            with torch.inference_mode():
                over = self.decoder.admit(found.buckets, found.prefills, found.logits)
            ended += self._responses(over)

    def _submission(self, request: Request, parts: PromptParts) -> Submission:
        point, n = request.point, len(parts.compressed_ids)
        probed = self._probed([request])
        return Submission(
            parts,
            PointPress(point, n),
            point.config.press.name,
            point.kept_tokens(n),
            request.max_new_tokens,
            seed_of(request),
            request,
            request.decoding,
            watched=probed,
            probed=probed,
            guard=guard_of(request),
            until=self._watch(),
        )

    @torch.inference_mode()
    def _masked(self, request: Request, parts: PromptParts) -> Response:
        point, n, loaded = request.point, len(parts.compressed_ids), self.loaded
        press = PointPress(point, n).build()
        seed, probing = seed_of(request), self._probed([request])
        keep, beside = PROBE_TOKENS if probing else 1, None
        if probing and press is not None:
            beside = prefill_masked(loaded, parts, None, n, keep).logits
        with RandomStream(seed, loaded.devices).drawing():
            kept = point.kept_tokens(n)
            prompt = prefill_masked(loaded, parts, press, kept, keep, watched=probing)
        prove_budget(point, prompt.kv)
        generator, watch = torch.Generator().manual_seed(seed), self._watch()
        row = Row(
            request,
            parts.n_tokens,
            generator=generator,
            kv=prompt.kv,
            decoding=request.decoding,
            until=None if watch is None else watch(),
            opens_reasoning=parts.opens_reasoning,
        )
        row.pack(parts.n_tokens - prompt.position)
        probe = None
        if probing:
            both = torch.stack([prompt.logits if beside is None else beside, prompt.logits])
            probe = probes(both, 0)[1]
        first = Prefill(prompt.logits[-1], parts.n_tokens, n, probe, prompt.evicted)
        decode_masked(loaded, row, prompt.cache, first, self.config.decoding, self.observers)
        return self._response(row)

    def _watch(self) -> Callable[[], StopWatch] | None:
        """What makes the watch for the stop strings of a row; None without stop strings."""
        until = self.config.decoding.until
        if not until:
            return None
        return partial(StopWatch, self.loaded.tokenizer, until, self._stop_tokens)

    def _fail(self, point: Point, message: str) -> PointFailed:
        self.failed.add(point.dir)
        for row in self.decoder.rows:  # need not go on
            if row.request.point.dir == point.dir:
                row.finish_reason = "failed"
        return PointFailed(point, message)

    def _responses(self, rows: Sequence[Row]) -> list[Response]:
        responses = [self._response(row) for row in rows]
        return [r for r in responses if r.request.point.dir not in self.failed]

    def _response(self, row: Row) -> Response:
        trace = None if self.traces is None else self.traces.trace(row)
        return response_of(row, self.loaded, self.config.decoding, trace)
