"""From the engine's stream of responses to shards on disk, point by point."""

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

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
        self, work: Sequence[PointWork], stores: dict[str, PointStore], meter: Meter
    ) -> None:
        self.stores, self.meter = stores, meter
        self.failed: dict[str, str] = {}
        self._left = {w.point.id: len(w.requests) for w in work}
        self._pending: dict[str, list[tuple[Response, datetime]]] = {w.point.id: [] for w in work}
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
            for point_id in self._pending:
                self._flush(point_id)

    def _take(self, response: Response) -> None:
        point = response.request.point
        self._pending[point.id].append((response, datetime.now(UTC)))
        self._left[point.id] -= 1
        self.meter.advance(point.id)
        settings = point.config.run
        waited_s = time.monotonic() - self._written[point.id]
        if self._left[point.id] == 0:
            self._complete(point)
        elif len(self._pending[point.id]) >= settings.shard_requests or waited_s > settings.shard_s:
            self._flush(point.id)

    def _fail(self, failure: PointFailed) -> None:
        point_id = failure.point.id
        self._pending[point_id] = []
        self.failed[point_id] = failure.message
        self.stores[point_id].fail(failure.message)
        log.error("run: point %s failed: %s", point_id, failure.message)

    def _complete(self, point: Point) -> None:
        self._flush(point.id)
        reason = self.stores[point.id].finish()
        if reason is not None:
            self.failed[point.id] = reason
            log.error("run: point %s failed: %s", point.id, reason)

    def _flush(self, point_id: str) -> None:
        if self._pending[point_id]:
            self.stores[point_id].write(self._pending[point_id])
            self._pending[point_id] = []
        self._written[point_id] = time.monotonic()
