"""Run a bundle of points: skip what is done, hand what is missing to a pool of workers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hydra.utils

from kvx.config.engine import OpenAIConfig
from kvx.config.schema import Config
from kvx.data.model_checks import check_files
from kvx.data.model_folder import files_of
from kvx.errors import RunFailedError, UserError
from kvx.learning.caveats import GuardedPoint, caveats
from kvx.points import Point, experiment_dir
from kvx.run import applicable
from kvx.run.planning import plan
from kvx.run.pools import Pool
from kvx.run.slurm_jobs import refuse_if_submitted
from kvx.run.units import Outcome, make_units, todo_of
from kvx.store import layout, locks
from kvx.store.completion import is_complete, is_done

log = logging.getLogger(__name__)


def run_points(configs: Sequence[Config], pool: Pool | None = None) -> list[Point]:
    """Complete every point of `configs` with the workers of `pool` (this process) and return them.

    Raises `UserError` before anything is started if a point cannot be run, `RunFailedError` at the
    end if some points are not complete (all others are then), and `Submitted` if the work goes on
    without us.
    """
    applicable.refuse_all(configs)
    points = plan(configs)
    undone = [p for p in points if not is_done(p)]
    where = experiment_dir(points[0].config)
    apart = applicable.not_applicable(undone)
    applicable.tell(points, apart)
    missing = [p for p in undone if p.dir not in apart]
    if not missing and not _unnoted(apart):
        done = [p for p in points if p.dir not in apart]
        log.info(
            "run: all %d points are complete (%d requests); nothing to do → %s",
            len(done),
            sum(len(p.manifest.entries) for p in done),
            where,
        )
        return points
    from kvx.run import changed
    from kvx.run.progress import waiting
    from kvx.store import journal  # Arrow takes longer than finding nothing to do
    from kvx.store.point_dir import PointStore

    refuse_if_submitted(missing)
    log.info("run: %d points, %d of them to do → %s", len(points), len(missing), where)
    if len(points) > 1 and not any(p.config.budget.is_full for p in points):
        log.warning("run: no full cache in this sweep; add budget 1.0 to know what is lost")
    changed.tell(missing, points)
    for caveat in caveats(_forecasting(points)):
        log.warning("run: %s", caveat)
    if pool is None:
        from kvx.run.pools.inprocess import InProcess

        pool = InProcess()
    if missing:
        with waiting("checking the points"):
            _check_models(missing)
            _check_fidelity(missing)
            found = applicable.refused(missing, pool.check)
        if found:
            apart |= found
            applicable.tell(points, apart, found)
            missing = [p for p in missing if p.dir not in apart]
    with locks.claim([p.dir for p in undone]) as claim:
        refuse_if_submitted(missing)  # no new submission can start now; one may have just before
        journal.begin(points)
        for point in undone:
            if point.dir in apart:
                PointStore(point).set_aside(apart[point.dir])
        todo = [todo_of(p, PointStore(p).recover()) for p in missing]
        claim.share()
        units = make_units(todo, pool.slices(missing)) if todo else []
        outcomes = pool.run(units) if units else []
        if found := {d: why for outcome in outcomes for d, why in outcome.apart.items()}:
            apart |= found
            applicable.tell(points, apart, found)
            for point in missing:
                if point.dir in found:
                    PointStore(point).set_aside(found[point.dir])
            missing = [p for p in missing if p.dir not in found]
        _judge(points, missing, outcomes)
    log.info("run: %d points complete → %s", len(points) - len(apart), where)
    return points


def _unnoted(reasons: Mapping[Path, str]) -> bool:
    """Whether a reason is not in its point's directory yet."""
    return any(layout.read_not_applicable(folder) != why for folder, why in reasons.items())


def _check_models(points: Sequence[Point]) -> None:
    """Raises `UserError` for weights that are not whole: before jobs wait to find out."""
    here = [p.config.model for p in points if not isinstance(p.config.engine, OpenAIConfig)]
    for model in {m.path: m for m in here}.values():
        check_files(files_of(model), model.name)


def _check_fidelity(points: Sequence[Point]) -> None:
    """Raises `UserError` for an engine that cannot compare with the full cache."""
    for engine in {p.config.engine._target_ for p in points if p.wants_fidelity}:
        if not hasattr(hydra.utils.get_class(engine), "fidelity"):
            raise UserError(
                f"measure=fidelity: {engine} has no method `fidelity`; use engine=kvpress"
            )


def _forecasting(points: Sequence[Point]) -> Iterator[GuardedPoint]:
    for point in points:
        config = point.config
        if config.controller.needs_hazard:
            clusters = tuple(e.cluster for e in point.manifest.entries)
            name = config.controller.name
            yield GuardedPoint(name, config.guard.model, config.model.name, clusters)


def _judge(points: Sequence[Point], missing: Sequence[Point], outcomes: Sequence[Outcome]) -> None:
    """Decide from what is on disk what is complete; raises if not everything is."""
    from kvx.store.point_dir import PointStore

    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    failed, incomplete = {}, []
    for point in missing:
        reason = PointStore(point).finish() or layout.read_failed(point.dir)
        if reason is not None:
            failed[point.id] = reason
        elif not is_complete(point):
            incomplete.append(point)
    if refused:
        raise UserError(refused[0])
    if incomplete:
        models = {point.config.model.name for point in incomplete}
        # a lost job has often done the slices of its first models
        lost = [f"{o.unit}: {o.lost}" for o in outcomes if o.lost and o.unit.model in models]
        reason = lost[0] if lost else f"{incomplete[0].id}: some of its requests are not there"
        raise RunFailedError(
            f"{len(incomplete) + len(failed)} of {len(points)} points incomplete; {reason}; "
            "type the same command again to redo only what is missing"
        )
    if failed:
        first, reason = next(iter(failed.items()))
        raise RunFailedError(
            f"{len(failed)} of {len(points)} points failed, the others are complete; "
            f"{first}: {reason}"
        )
