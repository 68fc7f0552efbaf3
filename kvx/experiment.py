"""The Python door: `kvx.sweep(...)`, the same points and tables as the command line's."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvx.cli import keywords
from kvx.cli.command import describe
from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.errors import RunFailedError, UserError

if TYPE_CHECKING:
    import pandas as pd


def sweep(**fields: Any) -> "Sweep":
    """The sweep of `python -m kvx.all -m`, with the same fields by keyword; nothing is started.

    `press`, `budget`, `model`, `dataset`, `experiment_name` and so on; dotted names through `**`,
    as in `**{"dataset.sampling.n_per_bin": 4}`. A list sweeps (of a field that is a list, a list of
    lists). Raises `UserError`, in the one line that the command would end with.
    """
    with _in_one_line():
        configs = keywords.points(keywords.arguments(fields))
    from kvx.points import experiment_dir

    if len({experiment_dir(config) for config in configs}) > 1:
        raise UserError("experiment_name: a sweep has one; make a sweep for each")
    return Sweep(configs)


@dataclasses.dataclass(frozen=True)
class Report:
    """The path of a report.md; a notebook shows its text."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_markdown_(self) -> str:
        return self.path.read_text()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The points of a sweep, in one experiment's folder.

    Its methods raise `UserError` for a wrong request and `RunFailedError` where work failed, each
    with one line.
    """

    configs: list[Config] = dataclasses.field(repr=False)

    @property
    def dir(self) -> Path:
        """The experiment's folder."""
        from kvx.points import experiment_dir

        return experiment_dir(self.configs[0])

    def point_ids(self) -> list[str]:
        """The ids of the points; makes the manifest if it does not exist."""
        from kvx.run.planning import plan

        with _in_one_line(), _told():
            return [point.id for point in plan(self.configs)]

    def run(self) -> "Sweep":
        """Do what is missing of `kvx.all`: answers, scores, tables and the report."""
        from kvx.all.pipeline import run_pipeline

        with _in_one_line(), _told():
            run_pipeline(self.configs)
        return self

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The experiment's tables by name (docs/results-format.md), scored and analysed anew if
        stale.

        Like the files, they hold every finished point of the experiment, of earlier sweeps too.
        """
        from kvx.analyze.build import TABLES, analyze_experiment
        from kvx.score.build import score_experiment
        from kvx.store.catalog import (
            answered_points,
            compared_points,
            events_of,
            fidelity_of,
            latency_of,
            read_frame,
            requests_of,
        )
        from kvx.store.schemas import SCORED

        with _in_one_line(), _told():
            if self._has_no_answers():
                return self._without_answers()
            score_experiment(self.configs[0])
            analyze_experiment(self.configs[0])
            points = answered_points(self.dir)
            found = {
                "requests": requests_of(points),
                "latency": latency_of(points),
                "events": events_of(points),
                "fidelity": fidelity_of(compared_points(self.dir)),
            }
            for name in SCORED:
                found[name] = read_frame([p.dir / f"{name}.parquet" for p in points])
            for name in TABLES:
                found[name] = read_frame([self.dir / f"{name}.parquet"])
            return found

    def report(self) -> Report:
        """The experiment's report, written anew if stale."""
        from kvx.analyze.build import analyze_experiment, has_fidelity_only
        from kvx.report.build import report_experiment
        from kvx.score.build import score_experiment

        with _in_one_line(), _told():
            if not self._has_no_answers():
                score_experiment(self.configs[0])
            elif not has_fidelity_only(self.dir):
                raise UserError(f"{self.dir}: holds latencies only; nothing to report")
            analyze_experiment(self.configs[0])
            return Report(report_experiment(self.configs[0]).absolute())

    def status(self) -> "pd.DataFrame":
        """One row per point of the experiment that was begun: its state, requests and errors."""
        import pandas as pd

        from kvx.status.build import read_status
        from kvx.status.watching import PointStatus

        names = [field.name for field in dataclasses.fields(PointStatus)]
        with _in_one_line():
            rows = [vars(point) | {"state": point.state.name} for point in read_status(self.dir)]
        return pd.DataFrame(rows, columns=names)

    def _has_no_answers(self) -> bool:
        from kvx.store.catalog import answered_points

        asked = Measure.quality in self.configs[0].measure.parts
        return not asked and not answered_points(self.dir)

    def _without_answers(self) -> "dict[str, pd.DataFrame]":
        from kvx.analyze.build import COMPARED_TABLES, analyze_experiment, has_fidelity_only
        from kvx.store.catalog import compared_points, fidelity_of, read_frame

        found = {}
        if paths := sorted(self.dir.glob("points/*/latency.parquet")):
            found["latency"] = read_frame(paths)
        if has_fidelity_only(self.dir):
            analyze_experiment(self.configs[0])
            found["fidelity"] = fidelity_of(compared_points(self.dir))
            for name in COMPARED_TABLES:
                found[name] = read_frame([self.dir / f"{name}.parquet"])
        return found


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Errors that the command line prints in one line, as exceptions with that line."""
    try:
        yield
    except (UserError, RunFailedError):
        raise
    except Exception as error:
        code, line = describe(error)
        if code is None:
            raise
        raise (UserError(line) if code == 2 else RunFailedError(line)) from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """kvx's log on stderr, as the command line has it, unless the user has set up logging."""
    log = logging.getLogger("kvx")
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
