"""From the engine's stream of responses to shards on disk, point by point."""

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvx.engines.base import PointFailed, PointWork, Response
from kvx.points import Point
from kvx.run.progress import Meter
from kvx.store.points import PointStore

log = logging.getLogger(__name__)


class Collector:
    """Writes a shard every few requests or seconds, and finishes a point with its last request.

    `failed` holds the points that could not be completed, and why.
    """

    def __init__(
        self, work: Sequence[PointWork], stores: dict[Path, PointStore], meter: Meter
    ) -> None:
        self.stores, self.meter = stores, meter
        self.failed: dict[Path, str] = {}
        self._left = {w.point.dir: len(w.requests) for w in work}
        self._pending: dict[Path, list[tuple[Response, datetime]]] = {w.point.dir: [] for w in work}
        self._written = dict.fromkeys(self._pending, time.monotonic())
        for item in work:
            if not item.requests:  # killed between its last shard and DONE
                self._complete(item.point)

    def consume(self, items: Iterable[Response | PointFailed]) -> None:
        """Take all the engine yields; what has arrived is written even if that is cut short."""
        try:
            for item in items:
                if isinstance(item, PointFailed):
                    self._fail(item)
                else:
                    self._take(item)
        finally:
            for folder in self._pending:
                self._flush(folder)

    def _take(self, response: Response) -> None:
        point = response.request.point
        self._pending[point.dir].append((response, datetime.now(UTC)))
        self._left[point.dir] -= 1
        self.meter.advance(point.id)
        settings = point.config.run
        waited_s = time.monotonic() - self._written[point.dir]
        if self._left[point.dir] == 0:
            self._complete(point)
        elif (
            len(self._pending[point.dir]) >= settings.shard_requests or waited_s > settings.shard_s
        ):
            self._flush(point.dir)

    def _fail(self, failure: PointFailed) -> None:
        folder = failure.point.dir
        self._pending[folder] = []
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
        if self._pending[folder]:
            self.stores[folder].write(self._pending[folder])
            self._pending[folder] = []
        self._written[folder] = time.monotonic()
