"""From an experiment's points to its tables, plots and SQLite export, if their inputs changed."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kvx.analyze import depth_grid, fidelity_plots, plots, tradeoff
from kvx.analyze.bin_stats import Row
from kvx.analyze.controller_stats import controller_stats
from kvx.analyze.dose_stats import dose_response
from kvx.analyze.fidelity_stats import fidelity_stats, load_compared
from kvx.analyze.frames import Experiment, load_experiment
from kvx.analyze.guard_stats import guard_stats
from kvx.analyze.leaders import leaders
from kvx.analyze.margins import equivalence
from kvx.analyze.numerics import numerics
from kvx.analyze.panels import panels
from kvx.analyze.point_rows import point_rows
from kvx.analyze.press_pairs import press_pairs
from kvx.analyze.sample_stats import samples
from kvx.analyze.task_means import task_means
from kvx.analyze.transitions import transitions
from kvx.config.analyze import AnalyzeConfig
from kvx.config.schema import Config
from kvx.data.frozen_examples import examples_file
from kvx.errors import UserError
from kvx.identity.hashing import digest, package_digest
from kvx.points import experiment_dir
from kvx.store import fidelity_schemas, schemas, sqlite
from kvx.store.catalog import (
    NOT_APPLICABLE,
    PointRecord,
    answered_points,
    columns_in,
    columns_of,
    compared_points,
    finished_points,
    latency_of,
    n_requests,
    not_applicable_points,
    unfinished_points,
)
from kvx.store.forks import beside, in_order, processes
from kvx.store.layout import FIDELITY, REQUESTS
from kvx.store.shards import read_inputs, write_table

log = logging.getLogger(__name__)
TABLES = {
    "comparisons": schemas.COMPARISONS,
    "press_pairs": schemas.PRESS_PAIRS,
    "equivalence": schemas.EQUIVALENCE,
    "leaders": schemas.LEADERS,
    "goodput": schemas.GOODPUT,
    "samples": schemas.SAMPLES,
    "numerics": schemas.NUMERICS,
    "task_means": schemas.TASK_MEANS,
    "transitions": schemas.TRANSITIONS,
    "dose_response": schemas.DOSE_RESPONSE,
    "catastrophe_stats": schemas.CATASTROPHE_STATS,
    "fidelity_stats": fidelity_schemas.FIDELITY_STATS,
    "guard_stats": schemas.GUARD_STATS,
    "controller_stats": schemas.CONTROLLER_STATS,
    "bin_stats": schemas.BIN_STATS,  # last: its inputs hash marks the whole analysis as done
}


# of an experiment without answers
COMPARED_TABLES = {"fidelity_stats": fidelity_schemas.FIDELITY_STATS}


def has_fidelity_only(experiment: Path) -> bool:
    """Whether no point has answers, and some were compared with the full cache."""
    return not answered_points(experiment) and bool(compared_points(experiment))


def inputs_hash(experiment: Path, config: AnalyzeConfig) -> str:
    """Identity of everything the analysis is made from."""
    compared = [[p.id, p.content_sha256(FIDELITY)] for p in compared_points(experiment)]
    points = finished_points(experiment) if answered_points(experiment) or not compared else []
    # of what scoring writes, the scores come last
    scored = [[p.id, p.content_sha256(), read_inputs(p.dir / "scores.parquet")] for p in points]
    left_out = [unfinished_points(experiment), not_applicable_points(experiment)]
    return digest([package_digest(), scored, compared, left_out, dataclasses.asdict(config)], 16)


def _is_complete(folder: Path, inputs: str) -> bool:
    """Whether every table, plot and the export are there, made from the same inputs."""
    variants = {p.info["variant_id"] for p in finished_points(folder)}
    made = [*plots.expected(folder / "plots", variants), folder / "kv_transition.sqlite"]
    tables_are_current = all(read_inputs(folder / f"{n}.parquet") == inputs for n in TABLES)
    return tables_are_current and all(path.is_file() for path in made)


def tables_of(folder: Path, inputs: str, names: Iterable[str] = TABLES) -> dict[str, pd.DataFrame]:
    """The tables `names`, if made from `inputs` (`inputs_hash`). Raises `UserError` if not."""
    check_analysed(folder, inputs, names)
    return {
        name: pq.read_table(folder / f"{name}.parquet", partitioning=None).to_pandas()
        for name in names
    }


def check_analysed(folder: Path, inputs: str, names: Iterable[str] = TABLES) -> None:
    if any(read_inputs(folder / f"{name}.parquet") != inputs for name in names):
        raise UserError(
            f"{folder}: not analysed, or not with these points and settings; run kvx.score and "
            "kvx.analyze with the same arguments"
        )


def analyze_experiment(config: Config) -> None:
    """Write the tables of `TABLES`, the plots and kv_transition.sqlite."""
    folder = experiment_dir(config)
    inputs = inputs_hash(folder, config.analyze)
    if has_fidelity_only(folder):
        _analyze_fidelity(config, folder, inputs)
        return
    if _is_complete(folder, inputs):
        log.info("analyze: nothing to do → %s", folder)
        return
    output = Path(config.paths.output)
    n = processes(n_requests(finished_points(folder)))
    experiment = load_experiment(folder, output, n)
    database = folder / "kv_transition.sqlite"
    with (
        sqlite.begun(database) as temporary,
        beside(lambda: sqlite.write_rows(temporary, _large(experiment.points)), n) as written,
    ):
        rows = point_rows(experiment, config.analyze, n)
        rows["task_means"] = task_means(experiment, rows["bin_stats"], rows["comparisons"])
        rows["fidelity_stats"] = fidelity_stats(load_compared(folder, output), config.analyze)
        with beside(lambda: _draw(rows, folder, config.analyze), n) as drawn:
            rows |= _other_rows(experiment, rows["bin_stats"], config.analyze, n)
            drawn()
        tradeoff.draw(
            pd.DataFrame(rows["controller_stats"], columns=TABLES["controller_stats"].names),
            folder / "plots",
            config.analyze.confidence,
        )
        depth_grid.draw(depth_grid.grids(experiment, output), folder / "plots")
        small = _small(experiment, rows, output)
        written()
        sqlite.finish(temporary, database, small)
    for name, schema in TABLES.items():
        write_table(folder / f"{name}.parquet", rows[name], schema, inputs)
    log.info("analyze: %d points → %s", len(experiment.points), folder)


def _analyze_fidelity(config: Config, folder: Path, inputs: str) -> None:
    """The table and the plots of an experiment that has no answers to score."""
    if read_inputs(folder / "fidelity_stats.parquet") == inputs:
        log.info("analyze: nothing to do → %s", folder)
        return
    compared = load_compared(folder, Path(config.paths.output))
    rows = fidelity_stats(compared, config.analyze)
    _draw_fidelity(rows, folder, config.analyze)
    write_table(folder / "fidelity_stats.parquet", rows, fidelity_schemas.FIDELITY_STATS, inputs)
    log.info("analyze: fidelity of %d points → %s", len(compared.points), folder)


def _draw_fidelity(rows: list[Row], folder: Path, config: AnalyzeConfig) -> None:
    frame = pd.DataFrame(rows, columns=fidelity_schemas.FIDELITY_STATS.names)
    fidelity_plots.draw_all(frame, folder / "plots", config.confidence)


def _other_rows(
    experiment: Experiment, stats: list[Row], config: AnalyzeConfig, n_processes: int
) -> dict[str, list[Row]]:
    """The tables of more than one point each."""
    side_by_side = list(panels(experiment, n_processes))
    alone = {
        "press_pairs": lambda: press_pairs(experiment, side_by_side, stats, config),
        "equivalence": lambda: equivalence(experiment, side_by_side, config),
        "leaders": lambda: leaders(experiment, side_by_side, stats, config),
        "samples": lambda: samples(experiment, side_by_side, config),
        "numerics": lambda: numerics(experiment, side_by_side, config),
        "guard_stats": lambda: guard_stats(experiment, config),
        "controller_stats": lambda: controller_stats(experiment, config),
    }
    found = in_order(lambda table: table(), list(alone.values()), n_processes)
    return {
        **dict(zip(alone, found, strict=True)),
        "transitions": transitions(experiment, stats, config, n_processes),
        "dose_response": dose_response(experiment, stats, config, n_processes),
    }


def _draw(rows: dict[str, list[Row]], folder: Path, config: AnalyzeConfig) -> None:
    stats, derailed = pd.DataFrame(rows["bin_stats"]), pd.DataFrame(rows["catastrophe_stats"])
    plots.draw_all(stats, derailed, folder / "plots", config.confidence)
    _draw_fidelity(rows["fidelity_stats"], folder, config)


def _large(points: list[PointRecord]) -> dict[str, Iterator[pa.Table]]:
    """The tables with a row per request, point by point."""

    def scored(name: str) -> Iterator[pa.Table]:
        schema = schemas.SCORED[name]
        return (columns_in(p.dir / f"{name}.parquet", schema, schema.names) for p in points)

    return {
        "requests": (columns_of(p, REQUESTS, sqlite.REQUEST) for p in points),
        "responses": (sqlite.responses(columns_of(p, REQUESTS, sqlite.ANSWER)) for p in points),
        **{name: scored(name) for name in ("scores", "failures", "catastrophes")},
    }


def _small(
    experiment: Experiment, rows: dict[str, list[Row]], output: Path
) -> dict[str, pd.DataFrame]:
    folders = {p.info["manifest"]["key"]: p.manifest_dir(output) for p in experiment.points}
    examples = pd.concat(
        pq.read_table(examples_file(folder), partitioning=None).to_pandas().assign(manifest_key=key)
        for key, folder in folders.items()
    )
    points = experiment.points
    runs = pd.DataFrame([{k: v for k, v in p.info.items() if k != "config"} for p in points])
    provenance = points[0].info["provenance"]
    overview = pd.DataFrame([{"name": experiment.dir.name, "n_points": len(points), **provenance}])

    def table(name: str) -> pd.DataFrame:
        return pd.DataFrame(rows[name], columns=TABLES[name].names)

    return {
        "experiments": overview,
        **sqlite.manifest_tables(experiment.manifests.values(), examples),
        "runs": runs,
        "telemetry": latency_of(points),
        "events": experiment.events,
        "bin_stats": table("bin_stats"),
        "comparisons": table("comparisons"),
        "press_pairs": table("press_pairs"),
        "equivalence": table("equivalence"),
        "leaders": table("leaders"),
        "goodput": table("goodput"),
        "samples": table("samples"),
        "numerics": table("numerics"),
        "task_means": table("task_means"),
        "transition_summary": table("transitions"),
        "dose_response": table("dose_response"),
        "catastrophe_stats": table("catastrophe_stats"),
        "fidelity_stats": table("fidelity_stats"),
        "guard_stats": table("guard_stats"),
        "controller_stats": table("controller_stats"),
        "not_applicable": pd.DataFrame(
            not_applicable_points(experiment.dir), columns=NOT_APPLICABLE
        ),
    }
