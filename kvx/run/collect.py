"""Write the engine's stream of results to shards on disk, point by point."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvx.engines.base import (
    Fidelity,
    LatencyWork,
    Measurement,
    PointFailed,
    PointWork,
    Response,
)
from kvx.points import Point
from kvx.run.progress import Advances
from kvx.store.point_dir import PointStore

log = logging.getLogger(__name__)

WRITING_SHARE = 0.05  # of a run's time that writing shards early may take
Result = Response | Measurement | Fidelity


class Collector:
    """Writes a shard every few requests or seconds, and finishes a point with its last one.

    If hundreds of points run together, few rows arrive per point and second. Then shards are
    written as often as `WRITING_SHARE` of the run's time allows. `failed` holds the points that
    could not be completed, and why; `answered` the prompt tokens of every request that got an
    answer.
    """

    def __init__(
        self,
        work: Sequence[PointWork],
        stores: dict[Path, PointStore],
        meter: Advances,
        latency: Sequence[LatencyWork] = (),
    ) -> None:
        self.stores, self.meter = stores, meter
        self.failed: dict[Path, str] = {}
        self.answered: list[int] = []
        self._left: Counter[Path] = Counter()
        everything: list[PointWork | LatencyWork] = [*work, *latency]
        for item in everything:
            self._left[item.point.dir] += len(item.requests)
        self._pending: dict[Path, list[tuple[Result, datetime]]] = {f: [] for f in self._left}
        self._begun = time.monotonic()
        self._writing_s = 0.0
        self._written = dict.fromkeys(self._left, self._begun)
        for point in {item.point.dir: item.point for item in everything}.values():
            if not self._left[point.dir]:  # killed between its last shard and DONE
                self._complete(point)

    def consume(self, items: Iterable[Result | PointFailed]) -> None:
        """Take all that the engine yields; what has arrived is written even after an error."""
        iterator = iter(items)
        try:
            for item in iterator:
                self._put(item)
        except KeyboardInterrupt as interrupt:
            if isinstance(iterator, Generator):  # a server's answers may have arrived meanwhile
                with contextlib.suppress(KeyboardInterrupt, StopIteration):
                    self._put(iterator.throw(interrupt))
                    for item in iterator:
                        self._put(item)
            raise
        finally:
            for folder in self._left:
                self._flush(folder)

    def _put(self, item: Result | PointFailed) -> None:
        if isinstance(item, PointFailed):
            self._pending[item.point.dir] = []
            self.stores[item.point.dir].fail(item.message)
            self._note_failed(item.point, item.message)
            return
        point = item.request.point
        folder, settings, now_s = point.dir, point.config.run, time.monotonic()
        self._pending[folder].append((item, datetime.now(UTC)))
        if isinstance(item, Response) and item.error_message is None:
            self.answered.append(item.request.entry.prompt_tokens)
        self._left[folder] -= 1
        self.meter.advance(point.id)
        late = now_s - self._written[folder] > settings.shard_s
        affordable = self._writing_s < WRITING_SHARE * (now_s - self._begun)
        if self._left[folder] == 0:
            self._complete(point)
        elif len(self._pending[folder]) >= settings.shard_requests or (late and affordable):
            self._flush(folder)

    def _complete(self, point: Point) -> None:
        self._flush(point.dir)
        if (reason := self.stores[point.dir].finish()) is not None:
            self._note_failed(point, reason)

    def _note_failed(self, point: Point, reason: str) -> None:
        self.failed[point.dir] = reason
        log.error("run: point %s failed: %s", point.id, reason)

    def _flush(self, folder: Path) -> None:
        start, pending = time.monotonic(), self._pending[folder]
        if answers := [(item, at) for item, at in pending if isinstance(item, Response)]:
            self.stores[folder].write(answers)
        if measured := [(item, at) for item, at in pending if isinstance(item, Measurement)]:
            self.stores[folder].write_latency(measured)
        if compared := [(item, at) for item, at in pending if isinstance(item, Fidelity)]:
            self.stores[folder].write_fidelity(compared)
        self._pending[folder] = []
        self._written[folder] = time.monotonic()
        self._writing_s += self._written[folder] - start
