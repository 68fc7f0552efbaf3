"""Run a bundle of points: skip what is done, resume what is not, one engine per model."""

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import hydra.utils

from kvx.config import Config
from kvx.data.manifest import load_examples
from kvx.engines.base import Engine, PointFailed, PointWork, Response
from kvx.errors import RunFailedError
from kvx.hashing import digest
from kvx.points import Point, Request, experiment_dir, resolved
from kvx.prepare.build import ensure_manifest
from kvx.run.progress import Meter
from kvx.store.points import PointStore

log = logging.getLogger(__name__)


def plan(configs: Sequence[Config]) -> list[Point]:
    """The distinct points of `configs`, each with its manifest (prepared if there is none yet)."""
    manifests: dict[str, tuple] = {}  # type: ignore[type-arg]
    points: dict[str, Point] = {}
    for config in configs:
        data = [resolved(config.dataset), config.dataset.source, resolved(config.model)]
        key = digest(
            [*data, config.model.path, resolved(config.prompt), config.decoding.max_new_tokens]
        )
        if key not in manifests:
            manifests[key] = ensure_manifest(config)
        point = Point(config, *manifests[key])
        points.setdefault(str(point.dir), point)
    return list(points.values())


def run_points(configs: Sequence[Config]) -> list[Point]:
    """Complete every point of `configs` and return them.

    Raises `UserError` before anything is started if a point cannot be run, and `RunFailedError` at the
    end if some points failed; all others are complete then.
    """
    points = plan(configs)
    missing = [p for p in points if not PointStore(p).is_done()]
    where = experiment_dir(points[0].config)
    n_requests = sum(len(p.manifest.entries) for p in points)
    if not missing:
        log.info(
            "run: all %d points are complete (%d requests); nothing to do → %s",
            len(points),
            n_requests,
            where,
        )
        return points
    log.info("run: %d points, %d of them to do → %s", len(points), len(missing), where)
    engines: dict[str, list[Point]] = {}
    for point in missing:
        engines.setdefault(
            digest(
                [
                    resolved(point.config.engine),
                    resolved(point.config.model),
                    point.config.model.path,
                ]
            ),
            [],
        ).append(point)
    made = [(_engine(group[0].config), group) for group in engines.values()]
    for engine, group in made:
        engine.check(group)
    failed: dict[str, str] = {}
    for engine, group in made:
        failed |= _run_group(engine, group)
    if failed:
        first, message = next(iter(failed.items()))
        raise RunFailedError(
            f"{len(failed)} of {len(points)} points failed, the others are complete; {first}: {message}"
        )
    log.info("run: %d points complete → %s", len(points), where)
    return points


def _engine(config: Config) -> Engine:
    engine: Engine = hydra.utils.get_class(config.engine._target_)(config)
    return engine


def _run_group(engine: Engine, points: Sequence[Point]) -> dict[str, str]:
    """Run the missing requests of points that share an engine; failed points and why."""
    stores = {p.id: PointStore(p) for p in points}
    failed: dict[str, str] = {}
    try:
        work = [_work(point, stores[point.id]) for point in points]
        total = sum(len(w.requests) for w in work)
        with Meter(total, points[0].config.run.progress) as meter:
            failed |= _collect(engine, work, stores, meter)
    finally:
        for store in stores.values():
            store.close()
    return failed


def _work(point: Point, store: PointStore) -> PointWork:
    present = store.open()
    examples = load_examples(point.manifest_dir)
    requests = [Request(point, entry) for entry in point.manifest.entries]
    return PointWork(
        point, tuple((r, examples[r.entry.example_id]) for r in requests if r.id not in present)
    )


def _collect(
    engine: Engine, work: Sequence[PointWork], stores: dict[str, PointStore], meter: Meter
) -> dict[str, str]:
    """Write what the engine yields in shards, finish each point when its last request is there."""
    left = {w.point.id: len(w.requests) for w in work}
    pending: dict[str, list[tuple[Response, datetime]]] = {w.point.id: [] for w in work}
    written = dict.fromkeys(pending, time.monotonic())
    errors: dict[str, list[str]] = {w.point.id: [] for w in work}
    failed: dict[str, str] = {}

    def flush(ids: Iterable[str]) -> None:
        for point_id in ids:
            if pending[point_id]:
                stores[point_id].write(pending[point_id])
                pending[point_id] = []
            written[point_id] = time.monotonic()

    def complete(point: Point) -> None:
        flush([point.id])
        if errors[point.id] and len(errors[point.id]) == len(point.manifest.entries):
            failed[point.id] = f"every request failed ({errors[point.id][0]})"
            stores[point.id].fail(failed[point.id])
        else:
            stores[point.id].finish()

    for item in work:
        if left[item.point.id] == 0:
            complete(item.point)
    try:
        for item in engine.generate([w for w in work if w.requests]):
            if isinstance(item, PointFailed):
                failed[item.point.id] = item.message
                pending[item.point.id] = []
                stores[item.point.id].fail(item.message)
                log.error("run: point %s failed: %s", item.point.id, item.message)
                continue
            point = item.request.point
            pending[point.id].append((item, datetime.now(UTC)))
            left[point.id] -= 1
            if item.error_message:
                errors[point.id].append(item.error_message)
            meter.advance(point.id)
            settings = point.config.run
            waited = time.monotonic() - written[point.id]
            if left[point.id] == 0:
                complete(point)
            elif len(pending[point.id]) >= settings.shard_requests or waited > settings.shard_s:
                flush([point.id])
    finally:
        flush([i for i in pending if i not in failed])
    return failed
