"""Latency: one request at a time, at batch 1, nothing shared with any other."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from kvx.data.example import Example
from kvx.engines.base import LatencyWork, Measurement, PointFailed, Response, Timing
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.measure import PeakMemory, synchronize
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.rows import Action, StepObserver
from kvx.engines.kvpress.schedule import Chunk, RowCost
from kvx.points import Request


class Clock(StepObserver):
    """Wall-clock times of one request; its only observer, so that it times nothing else."""

    def __init__(self, *devices: torch.device) -> None:
        self.devices = devices
        self.start = self.prefill_end = self.first_token = self.last_token = 0.0

    def begin(self) -> None:
        """The prompt is tokenised: from here it counts."""
        self.start = self._now()

    def _now(self) -> float:
        synchronize(*self.devices)
        return time.perf_counter()

    def on_prefill(self, rows: object, prefills: object) -> Sequence[Action]:
        self.prefill_end = self._now()
        return ()

    def on_step(self, rows: object, logits: object, tokens: object) -> Sequence[Action]:
        self.last_token = self._now()
        self.first_token = self.first_token or self.last_token
        return ()

    def timing(self, n_tokens: int) -> Timing:
        ttft, latency = self.first_token - self.start, self.last_token - self.start
        return Timing(
            ttft_s=ttft,
            latency_s=latency,
            prefill_s=self.prefill_end - self.start,
            decode_s=self.last_token - self.prefill_end,
            tpot_s=(latency - ttft) / (n_tokens - 1) if n_tokens > 1 else None,
        )


def measure(
    loaded: LoadedModel, work: LatencyWork, cost: RowCost, cap_bytes: int
) -> Iterator[Measurement | PointFailed]:
    """Every request of one point, after its warm-up."""
    for request, example, _ in work.requests[:1] * work.point.config.latency.warmup:
        _alone(loaded, request, example, 0, cost, cap_bytes)
    for request, example, repeat in work.requests:
        measured = _alone(loaded, request, example, repeat, cost, cap_bytes)
        yield measured
        if isinstance(measured, PointFailed):
            return


def _alone(
    loaded: LoadedModel,
    request: Request,
    example: Example,
    repeat: int,
    cost: RowCost,
    cap_bytes: int,
) -> Measurement | PointFailed:
    memory = PeakMemory(*loaded.devices)
    clock = Clock(*loaded.devices)
    point = request.point
    batch = Batch(loaded, point.config, cost, cap_bytes, clock, point.manifest.date)
    chunk = Chunk(example, (request,), cost.of(point, request), alone=True)
    batch.parts(example)  # remembered
    clock.begin()
    items: list[Response | PointFailed] = list(batch.start(chunk))
    while batch.decoder.rows:
        items += batch.go_on()
    (item,) = items
    if isinstance(item, PointFailed):
        return item
    measured = Measurement(
        request, repeat, error_type=item.error_type, error_message=item.error_message
    )
    if item.token_ids is None or item.kv is None:
        return measured
    return replace(
        measured,
        timing=clock.timing(len(item.token_ids)),
        output_tokens=len(item.token_ids),
        kv_bytes_peak=item.kv.bytes_peak,
        peak_memory_bytes=memory.read_bytes(),
    )
