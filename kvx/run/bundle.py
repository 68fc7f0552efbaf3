"""Run a bundle of points: skip what is done, resume what is not, one engine per model."""

import logging
from collections.abc import Sequence
from pathlib import Path

import hydra.utils

from kvx.config import Config
from kvx.data.manifest import Manifest
from kvx.engines.base import Engine
from kvx.errors import RunFailedError
from kvx.hashing import digest
from kvx.points import Point, budget_label, experiment_dir, resolved
from kvx.prepare.build import ensure_manifest
from kvx.run.work import run_group
from kvx.store import journal, layout, locks
from kvx.store.points import PointStore

log = logging.getLogger(__name__)


def plan(configs: Sequence[Config]) -> list[Point]:
    """The distinct points of `configs`, each with its manifest (prepared if there is none yet)."""
    manifests: dict[str, tuple[Manifest, Path]] = {}
    points: dict[Path, Point] = {}
    for config in configs:
        model = [resolved(config.model), config.model.path]
        prompt = [resolved(config.prompt), config.decoding.max_new_tokens]
        key = digest([resolved(config.dataset), model, prompt])
        if key not in manifests:
            manifests[key] = ensure_manifest(config)
        point = Point(config, *manifests[key])
        points.setdefault(point.dir, point)
    return list(points.values())


def run_points(configs: Sequence[Config]) -> list[Point]:
    """Complete every point of `configs` and return them.

    Raises `UserError` before anything is started if a point cannot be run, and `RunFailedError` at
    the end if some points failed; all others are complete then.
    """
    points = plan(configs)
    missing = [p for p in points if not PointStore(p).is_done()]
    where = experiment_dir(points[0].config)
    if not missing:
        requests = sum(len(p.manifest.entries) for p in points)
        log.info(
            "run: all %d points are complete (%d requests); nothing to do → %s",
            len(points), requests, where,
        )  # fmt: skip
        return points
    log.info("run: %d points, %d of them to do → %s", len(points), len(missing), where)
    if len(points) > 1 and all(budget_label(p.config.budget) != "1" for p in points):
        log.warning("run: no full cache in this sweep; add budget 1.0 to know what is lost")
    engines = [(_engine(group[0].config), group) for group in by_engine(missing)]
    for engine, group in engines:
        engine.check(group)
    failed: dict[Path, str] = {}
    with locks.claim([p.dir for p in missing]) as claim:
        journal.begin(points)
        for point in missing:
            PointStore(point).recover()
        claim.share()
        for engine, group in engines:
            failed |= run_group(engine, group)
    for point in missing:
        if point.dir not in failed and layout.read_done(point.dir) is None:
            failed[point.dir] = "something is still missing; type the same command to go on"
    if failed:
        first, message = next(iter(failed.items()))
        raise RunFailedError(
            f"{len(failed)} of {len(points)} points failed, the others are complete; "
            f"{first.name}: {message}"
        )
    log.info("run: %d points complete → %s", len(points), where)
    return points


def by_engine(points: Sequence[Point]) -> list[list[Point]]:
    """Points that one loaded model can serve, together."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        config = point.config
        key = digest([resolved(config.engine), resolved(config.model), config.model.path])
        groups.setdefault(key, []).append(point)
    return list(groups.values())


def _engine(config: Config) -> Engine:
    engine: Engine = hydra.utils.get_class(config.engine._target_)(config)
    return engine
