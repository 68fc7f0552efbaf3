"""Latency: one request at a time, at batch 1, nothing shared with any other."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kvx.data.example import Example
from kvx.engines.activity import ACTIVITY
from kvx.engines.base import (
    LatencyWork,
    Measurement,
    PointFailed,
    Response,
    Timing,
    interleaved,
)
from kvx.engines.kvpress.account import Account
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.chunks import Chunk
from kvx.engines.kvpress.machine_load import OthersLoad, gpu_others
from kvx.engines.kvpress.measure import PeakMemory, synchronize
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.sequence import Action, StepObserver
from kvx.points import Request


class Clock(StepObserver):
    """Wall-clock times of one request. It is the only observer, so it times nothing else."""

    def __init__(self, *devices: torch.device) -> None:
        self.devices = devices
        self.start = self.prefill_end = self.first_token = self.last_token = 0.0

    def begin(self) -> None:
        """Start the clock; the prompt is tokenised already."""
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
    loaded: LoadedModel, work: Sequence[LatencyWork], account: Account
) -> Iterator[Measurement | PointFailed]:
    """Every request of all points in turn, after each point's warm-up."""
    work = [item for item in work if item.requests]
    for item in work:
        for request, example, _ in item.requests[:1] * item.point.config.latency.warmup:
            ACTIVITY.say(f"warming up {item.point.id}")
            _alone(loaded, request, example, 0, account)
    failed: set[Path] = set()
    for item, (request, example, repeat) in interleaved(work):
        if item.point.dir in failed:
            continue
        ACTIVITY.say(f"measuring {item.point.id}, {request.entry.prompt_tokens:,} prompt tokens")
        measured = _alone(loaded, request, example, repeat, account)
        if isinstance(measured, PointFailed):
            failed.add(item.point.dir)
        yield measured


def _alone(
    loaded: LoadedModel, request: Request, example: Example, repeat: int, account: Account
) -> Measurement | PointFailed:
    loaded.set_attention(loaded.attention_for(request.point.config))
    neighbours = gpu_others(loaded.device)
    memory = PeakMemory(*loaded.devices)
    clock = Clock(*loaded.devices)
    point = request.point
    batch = Batch(loaded, point.config, account, clock, point.manifest.date)
    batch.submit(Chunk(example, (request,), account.needed([request], False), alone=True))
    batch.parts(example)  # remembered
    others = OthersLoad()
    clock.begin()
    items: list[Response | PointFailed] = list(batch.drain())
    others_cpu_share = others.cpu_share()
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
        others_cpu_share=others_cpu_share,
        gpu_others=neighbours,
    )
