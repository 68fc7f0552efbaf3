"""Work on units: in this process, or as a process that is handed one after the other.

`python -m kvx.run.worker FD` is such a process: it gets units through the connection on that file
descriptor, and sends progress and outcomes back.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

import hydra.utils

from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.engines.activity import ACTIVITY, Seen
from kvx.engines.base import Engine
from kvx.errors import UserError, first_line
from kvx.run.applicable import refused
from kvx.run.collect import Collector
from kvx.run.planning import plan
from kvx.run.progress import Advances
from kvx.run.units import Outcome, Unit
from kvx.run.work import answer, answers_work, compare, fidelity_work, latency_work, measure
from kvx.store import layout
from kvx.store.point_dir import PointStore

log = logging.getLogger(__name__)


def engine_of(config: Config) -> Engine:
    engine: Engine = hydra.utils.get_class(config.engine._target_)(config)
    return engine


def run_unit(unit: Unit, meter: Advances, check: bool = False) -> Outcome:
    """Do what is missing of a unit; points that became complete with it are finished.

    What has arrived is written even if this is cut short. With `check` the points are checked
    first, which raises `UserError` for what the engine cannot run.
    """
    points = plan(unit.configs)
    engine = engine_of(unit.configs[0])
    apart = refused(points, engine.check) if check else {}
    points = [p for p in points if p.dir not in apart]
    if not points:
        return Outcome(unit, apart=apart)
    stores = {p.dir: PointStore(p) for p in points}
    try:
        present = {p.dir: stores[p.dir].resume(unit.writer) for p in points}
        points = [p for p in points if layout.read_failed(p.dir) is None]  # failed elsewhere
        if unit.measure is Measure.latency:
            alone = [latency_work(p, present[p.dir]) for p in points]
            collector = Collector([], stores, meter, alone)
            measure(engine, collector, alone)
        elif unit.measure is Measure.fidelity:
            work = [fidelity_work(p, present[p.dir], unit.example_ids) for p in points]
            collector = Collector(work, stores, meter)
            compare(engine, collector, work)
        else:
            work = [answers_work(p, present[p.dir], unit.example_ids) for p in points]
            collector = Collector(work, stores, meter)
            answer(engine, collector, work)
        failed = {d.name: message for d, message in collector.failed.items()}
        return Outcome(unit, failed, apart=apart)
    finally:
        for store in stores.values():
            store.close()


def attempt(unit: Unit, meter: Advances) -> Outcome:
    """`run_unit` in a worker process: errors become an outcome that says what happened."""
    from kvx.cli.command import describe

    try:
        return run_unit(unit, meter, check=True)
    except UserError as error:
        return Outcome(unit, refused=str(error))
    except Exception as error:
        reason = describe(error)[1]
        if not reason:  # not the user's doing
            log.exception("run: %s ended early", unit)
            reason = f"{type(error).__name__}: {first_line(error)}"
        return Outcome(unit, lost=reason)


def log_to_stderr() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("kvx").setLevel(logging.INFO)
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # as in conf/hydra/job_logging


class _Parent:
    """The parent process: it hands out units and receives progress."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def advance(self, what: str) -> None:
        try:
            self.connection.send(what)
        except OSError:  # it is gone: write what there is and end
            raise KeyboardInterrupt from None

    def hear(self, seen: Seen) -> None:
        with contextlib.suppress(OSError):  # the next finished request finds out
            self.connection.send(seen)


def serve(connection: Connection) -> None:
    """Work on units until the parent sends None or is gone."""
    parent = _Parent(connection)
    try:
        while (unit := connection.recv()) is not None:
            ACTIVITY.listener = parent.hear
            outcome = attempt(unit, parent)
            ACTIVITY.say("")
            ACTIVITY.listener = None  # no unit is running
            connection.send(outcome)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def interrupted(*_: object) -> None:
    """A signal handler: end, but write what there is."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, interrupted)
    log_to_stderr()
    try:
        with Connection(int(arguments[0])) as parent:
            serve(parent)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    # not sys.exit: threads of libraries may hang at shutdown, and all is written
    os._exit(main(sys.argv[1:]))
