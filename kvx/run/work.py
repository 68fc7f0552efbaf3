"""What is still to be done for a point, and how an engine does it."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from kvx.data.frozen_examples import load_examples
from kvx.engines.base import Engine, LatencyWork, Measurement, PointFailed, PointWork
from kvx.points import Point, Request
from kvx.run.collect import Collector
from kvx.stats.repeats import others_share, spread, unsteady
from kvx.store import journal
from kvx.store.layout import Present

log = logging.getLogger(__name__)
Measured = Measurement | PointFailed


def answer(engine: Engine, collector: Collector, work: Sequence[PointWork]) -> None:
    """Let the engine answer, and note how fast that went for `kvx.plan`."""
    work = [item for item in work if item.requests]
    begun = time.monotonic()
    try:
        collector.consume(engine.generate(work))
    finally:  # a run that is cut short has a rate, too
        seconds, answered = time.monotonic() - begun, collector.answered
        journal.record_rate([w.point for w in work], seconds, len(answered), sum(answered))


def measure(engine: Engine, collector: Collector, work: Sequence[LatencyWork]) -> None:
    """Let the engine measure, and warn of what makes its times hard to compare."""
    work = [item for item in work if item.requests]
    seen: list[Measurement] = []

    def noted(items: Iterable[Measured]) -> Iterator[Measured]:
        for item in items:
            if isinstance(item, Measurement) and item.timing is not None:
                seen.append(item)
            yield item

    collector.consume(noted(engine.measure(work)))
    if reasons := unsteady(*_disturbances(seen)):
        log.warning(
            "run: latencies were measured on a loaded machine: %s; points took turns, so all were "
            "slowed alike, but do not trust small differences",
            ", ".join(reasons),
        )


def _disturbances(seen: Sequence[Measurement]) -> tuple[float, float, float | None]:
    """Spread of repeats, and the shares of cores and GPU that other processes took."""
    seconds = [m.timing.latency_s for m in seen if m.timing is not None]
    shares = [math.nan if m.others_cpu_share is None else m.others_cpu_share for m in seen]
    on_gpu = [m.gpu_others for m in seen if m.gpu_others is not None]
    return (
        spread(seconds, [m.request.id for m in seen]),
        others_share(shares, seconds),
        max(on_gpu, default=None),
    )


def answers_work(
    point: Point, present: Present, example_ids: Iterable[str] | None = None
) -> PointWork:
    """The requests without an answer yet; none if the configuration asks for latencies only.

    If `example_ids` are given, only requests on these.
    """
    if not point.wants_answers:
        return PointWork(point, ())
    examples = load_examples(point.manifest_dir)
    wanted = examples.keys() if example_ids is None else set(example_ids)
    requests = [Request(point, e) for e in point.manifest.entries if e.example_id in wanted]
    missing = [r for r in requests if r.id not in present.request_ids]
    return PointWork(point, tuple((r, examples[r.entry.example_id]) for r in missing))


def compare(engine: Engine, collector: Collector, work: Sequence[PointWork]) -> None:
    """Let the engine compare points with the full cache."""
    collector.consume(engine.fidelity([item for item in work if item.requests]))


def fidelity_work(point: Point, present: Present, example_ids: Iterable[str]) -> PointWork:
    """The requests on `example_ids` that are not compared with the full cache yet."""
    entries, wanted = point.fidelity_entries, set(example_ids)
    requests = [Request(point, entry) for entry in entries if entry.example_id in wanted]
    missing = [r for r in requests if r.id not in present.fidelity]
    examples = load_examples(point.manifest_dir) if missing else {}
    return PointWork(point, tuple((r, examples[r.entry.example_id]) for r in missing))


def latency_work(point: Point, present: Present) -> LatencyWork:
    """Latencies that are still to be measured; none unless the configuration asks for them."""
    if not point.wants_latency:
        return LatencyWork(point, ())
    examples = load_examples(point.manifest_dir)
    items = [(Request(point, entry), repeat) for entry, repeat in point.latency_items]
    missing = [(r, repeat) for r, repeat in items if (r.id, repeat) not in present.latency]
    return LatencyWork(point, tuple((r, examples[r.entry.example_id], n) for r, n in missing))
