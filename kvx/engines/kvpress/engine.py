"""engine=kvpress: transformers models and kvpress presses in this process.

This package is the only place that knows kvpress.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from kvx.config import Config, Signals
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder
from kvx.engines.base import (
    KVUse,
    LatencyWork,
    Measurement,
    PointFailed,
    PointWork,
    Response,
    Timing,
)
from kvx.engines.kvpress.decode import decode
from kvx.engines.kvpress.measure import PeakMemory, cache_bytes, synchronize
from kvx.engines.kvpress.model import LoadedModel, load, resolve_attention
from kvx.engines.kvpress.observers import TIMEOUT, TimeLimit, TraceObserver
from kvx.engines.kvpress.prefill import compress_prompt
from kvx.engines.kvpress.press import build_press, check_press
from kvx.engines.kvpress.rows import Row, StepObserver, Stop
from kvx.failures import FailureType, classify_error
from kvx.hashing import digest
from kvx.points import Point, Request


class BudgetContradictedError(Exception):
    """The cache does not hold what the budget asked for."""


class KVPressEngine:
    """Runs requests one at a time at batch 1, so that every response carries its own latency."""

    def __init__(self, config: Config) -> None:
        self.model_config = config.model

    @property
    def loaded(self) -> LoadedModel:
        return load(self.model_config)

    def check(self, points: Sequence[Point]) -> None:
        for point in points:
            check_press(point)
        for point in points:
            self.loaded.set_attention(resolve_attention(point.config))

    def generate(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        for item in work:
            for response in self._point(item):
                if isinstance(response, Response):  # not alone in the process: no times
                    response = replace(response, timing=None, peak_memory_bytes=None)
                yield response

    def measure(self, work: Sequence[LatencyWork]) -> Iterator[Measurement | PointFailed]:
        for item in work:
            config = item.point.config
            self.loaded.set_attention(resolve_attention(config))
            builder = PromptBuilder(self.loaded.tokenizer, config)
            for request, example, _ in item.requests[:1] * config.latency.warmup:
                with contextlib.suppress(Exception):  # will be met again, for real
                    self._answer(request, example, builder)
            for request, example, repeat in item.requests:
                try:
                    response = self._answer(request, example, builder)
                except BudgetContradictedError as error:
                    yield PointFailed(item.point, str(error))
                    break
                except Exception as error:
                    message = describe(error)
                    kind = classify_error(message).value
                    yield Measurement(request, repeat, error_type=kind, error_message=message)
                    continue
                assert response.kv is not None and response.token_ids is not None
                yield Measurement(
                    request, repeat, response.timing, len(response.token_ids),
                    response.kv.bytes_peak, response.peak_memory_bytes,
                    response.error_type, response.error_message,
                )  # fmt: skip

    def _point(self, item: PointWork) -> Iterator[Response | PointFailed]:
        config = item.point.config
        self.loaded.set_attention(resolve_attention(config))
        builder = PromptBuilder(self.loaded.tokenizer, config)
        self._warm_up(item, builder)
        for request, example in item.requests:
            try:
                yield self._answer(request, example, builder)
            except BudgetContradictedError as error:
                yield PointFailed(item.point, str(error))
                return
            except Exception as error:  # one request's failure touches no other
                message = describe(error)
                kind = classify_error(message)
                yield Response(request, None, error_type=kind.value, error_message=message)

    def _warm_up(self, item: PointWork, builder: PromptBuilder) -> None:
        """First forward passes pay for what later ones do not: spend them on a short prompt."""
        shortest = min(item.requests, key=lambda pair: pair[0].entry.prompt_tokens)
        with contextlib.suppress(Exception):  # will be met again, for real
            self._answer(*shortest, builder, max_new_tokens=2)

    @torch.inference_mode()
    def _answer(
        self,
        request: Request,
        example: Example,
        builder: PromptBuilder,
        max_new_tokens: int | None = None,
    ) -> Response:
        point, loaded = request.point, self.loaded
        decoding = point.config.decoding
        if max_new_tokens is not None:
            decoding = replace(decoding, max_new_tokens=max_new_tokens)
        parts = builder.parts(example)
        n = len(parts.compressed_ids)
        press = build_press(point, n)
        memory = PeakMemory(loaded.device)
        clock = _Clock(loaded.device)
        with _seeded(request, loaded.device):
            prompt = compress_prompt(loaded, parts, press, point.kept_tokens(n))
        _prove_budget(point, prompt.kv)
        generator = torch.Generator().manual_seed(_seed(request))
        row = Row(request, prompt.cache, parts.n_tokens, generator=generator)
        clock.prefilled()
        observers: list[StepObserver] = [clock]
        traces = TraceObserver()
        if point.config.signals is Signals.light:
            observers.append(traces)
        if decoding.timeout_s is not None:
            observers.append(TimeLimit(decoding.timeout_s, clock.start))
        decode(loaded, [row], [prompt.prefill], decoding, observers)
        timing = clock.timing(len(row.tokens))
        timed_out = row.finish_reason == TIMEOUT
        return Response(
            request,
            text=loaded.tokenizer.decode(row.tokens, skip_special_tokens=True),
            token_ids=row.tokens,
            finish_reason=None if timed_out else row.finish_reason,
            error_type=FailureType.TIMEOUT.value if timed_out else None,
            error_message=f"stopped after {decoding.timeout_s:g} s" if timed_out else None,
            timing=timing,
            kv=replace(prompt.kv, bytes_peak=cache_bytes(row.cache)),
            budget_verified=True,
            peak_memory_bytes=memory.read_bytes(),
            trace=traces.trace(row) if traces in observers else None,
        )


def describe(error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {reason}"


class _Clock:
    """Wall-clock times of one request; its first observer, so that it times the tokens only."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self._now()
        self.first_token = 0.0

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def prefilled(self) -> None:
        self.prefill_end = self._now()

    def on_prefill(self, rows: object, prefills: object) -> None:
        return None

    def on_step(self, rows: object, logits: object, tokens: object) -> Sequence[Stop]:
        if not self.first_token:
            self.first_token = self._now()
        return ()

    def timing(self, n_tokens: int) -> Timing:
        end = self._now()
        ttft, latency = self.first_token - self.start, end - self.start
        return Timing(
            ttft_s=ttft,
            latency_s=latency,
            prefill_s=self.prefill_end - self.start,
            decode_s=end - self.prefill_end,
            tpot_s=(latency - ttft) / (n_tokens - 1) if n_tokens > 1 else None,
        )


def _prove_budget(point: Point, kv: KVUse) -> None:
    """A budget is proved, not labelled: raises if the cache holds something else than was asked."""
    off = abs(kv.entries_effective - kv.entries_nominal)
    if off > point.config.press.tolerance_tokens:
        raise BudgetContradictedError(
            f"press={point.config.press.name} was asked to keep {kv.entries_nominal:g} KV entries "
            f"per head and kept {kv.entries_effective:g}; the budget is not what its label says"
        )


def _seed(request: Request) -> int:
    """By seed and example, so that a resumed run draws what an undisturbed one would."""
    return int(digest([request.point.config.seed, request.entry.example_id], 12), 16)


@contextlib.contextmanager
def _seeded(request: Request, device: torch.device) -> Iterator[None]:
    """For presses that draw at random: layers differ, and every run draws the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(request))
        yield
