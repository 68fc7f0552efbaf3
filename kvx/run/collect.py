"""From the engine's stream of results to shards on disk, point by point."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvx.engines.base import LatencyWork, Measurement, PointFailed, PointWork, Response
from kvx.points import Point
from kvx.run.progress import Advances
from kvx.store.point_dir import PointStore

log = logging.getLogger(__name__)

# of a run's time that writing shards early may take; hundreds of points at once wait longer
WRITING_SHARE = 0.05


class Collector:
    """Writes a shard every few requests or seconds, and finishes a point with its last one.

    Where hundreds of points run together, a point's share of the seconds is a row or two: then they
    are written as often as a small part of the run's time allows.

    `failed` holds the points that could not be completed, and why; `answered` the prompt tokens of
    every request that got an answer.
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
        self._responses: dict[Path, list[tuple[Response, datetime]]] = {f: [] for f in self._left}
        self._measured: dict[Path, list[tuple[Measurement, datetime]]] = {f: [] for f in self._left}
        self._begun = time.monotonic()
        self._writing_s = 0.0
        self._written = dict.fromkeys(self._left, self._begun)
        for point in {item.point.dir: item.point for item in everything}.values():
            if not self._left[point.dir]:  # killed between its last shard and DONE
                self._complete(point)

    def consume(self, items: Iterable[Response | Measurement | PointFailed]) -> None:
        """Take all the engine yields; what has arrived is written even if that is cut short."""
        iterator = iter(items)
        try:
            for item in iterator:
                self._put(item)
        except KeyboardInterrupt as interrupt:
            if isinstance(iterator, Generator):  # answers of a server wait while others are written
                with contextlib.suppress(KeyboardInterrupt, StopIteration):
                    self._put(iterator.throw(interrupt))
                    for item in iterator:
                        self._put(item)
            raise
        finally:
            for folder in self._left:
                self._flush(folder)

    def _put(self, item: Response | Measurement | PointFailed) -> None:
        if isinstance(item, PointFailed):
            self._fail(item)
        else:
            self._take(item)

    def _take(self, item: Response | Measurement) -> None:
        point, now = item.request.point, datetime.now(UTC)
        folder = point.dir
        if isinstance(item, Response):
            self._responses[folder].append((item, now))
            if item.error_message is None:
                self.answered.append(item.request.entry.prompt_tokens)
        else:
            self._measured[folder].append((item, now))
        self._left[folder] -= 1
        self.meter.advance(point.id)
        settings = point.config.run
        pending = len(self._responses[folder]) + len(self._measured[folder])
        elapsed_s = time.monotonic() - self._begun
        waited_s = time.monotonic() - self._written[folder]
        late = waited_s > settings.shard_s and self._writing_s < WRITING_SHARE * elapsed_s
        if self._left[folder] == 0:
            self._complete(point)
        elif pending >= settings.shard_requests or late:
            self._flush(folder)

    def _fail(self, failure: PointFailed) -> None:
        folder = failure.point.dir
        self._responses[folder], self._measured[folder] = [], []
        self.failed[folder] = failure.message
        self.stores[folder].fail(failure.message)
        log.error("run: point %s failed: %s", failure.point.id, failure.message)

    def _complete(self, point: Point) -> None:
        self._flush(point.dir)
        reason = self.stores[point.dir].finish()
        if reason is not None:
            self.failed[point.dir] = reason
            log.error("run: point %s failed: %s", point.id, reason)

    def _flush(self, folder: Path) -> None:
        start = time.monotonic()
        if self._responses[folder]:
            self.stores[folder].write(self._responses[folder])
            self._responses[folder] = []
        if self._measured[folder]:
            self.stores[folder].write_latency(self._measured[folder])
            self._measured[folder] = []
        self._written[folder] = time.monotonic()
        self._writing_s += self._written[folder] - start
