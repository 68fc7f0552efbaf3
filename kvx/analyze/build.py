"""From an experiment's points to its tables, plots and SQLite export, if their inputs changed."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from kvx.analyze import plots, tables
from kvx.analyze.frames import Experiment, load_experiment
from kvx.config import AnalyzeConfig, Config
from kvx.hashing import digest
from kvx.points import experiment_dir
from kvx.store import schemas, sqlite
from kvx.store.catalog import finished_points
from kvx.store.shards import read_inputs, write_table

log = logging.getLogger(__name__)
VERSION = 1  # raise it when a table or plot changes, so that old ones are redone
TABLES = {
    "comparisons": schemas.COMPARISONS,
    "transitions": schemas.TRANSITIONS,
    "bin_stats": schemas.BIN_STATS,  # last: its inputs hash says that everything is there
}


def inputs_hash(experiment: Path, config: AnalyzeConfig) -> str:
    """Identity of everything the analysis is made from."""
    points = finished_points(experiment)
    scored = [[p.id, p.done_sha256, read_inputs(p.dir / "scores.parquet")] for p in points]
    return digest([VERSION, scored, dataclasses.asdict(config)], 16)


def analyze_experiment(config: Config) -> None:
    """Write bin_stats, comparisons, transitions, plots and kv_transition.sqlite."""
    folder = experiment_dir(config)
    inputs = inputs_hash(folder, config.analyze)
    if all(read_inputs(folder / f"{name}.parquet") == inputs for name in TABLES):
        log.info("analyze: nothing to do → %s", folder)
        return
    experiment = load_experiment(folder, Path(config.paths.output))
    stats = tables.bin_stats(experiment, config.analyze)
    rows = {
        "bin_stats": stats,
        "comparisons": tables.comparisons(experiment, config.analyze),
        "transitions": tables.transitions(experiment, stats, config.analyze),
    }
    frame = pd.DataFrame(stats)
    plots.draw_all(frame, folder / "plots", config.analyze.confidence)
    _export(experiment, rows, Path(config.paths.output))
    for name, schema in TABLES.items():
        write_table(folder / f"{name}.parquet", rows[name], schema, inputs)
    log.info("analyze: %d points → %s", len(experiment.points), folder)


def _export(experiment: Experiment, rows: dict[str, list[dict[str, Any]]], output: Path) -> None:
    examples = pd.concat(
        [
            pq.read_table(p.manifest_dir(output) / "examples.parquet").to_pandas()
            for p in {p.info["manifest"]["key"]: p for p in experiment.points}.values()
        ]
    ).drop_duplicates("example_id")
    runs = pd.DataFrame(
        [{k: v for k, v in p.info.items() if k != "config"} for p in experiment.points]
    )
    provenance = experiment.points[0].info["provenance"]
    overview = pd.DataFrame(
        [{"name": experiment.dir.name, "n_points": len(experiment.points), **provenance}]
    )

    def table(name: str) -> pd.DataFrame:
        return pd.DataFrame(rows[name], columns=TABLES[name].names)

    sqlite.export(
        experiment.dir / "kv_transition.sqlite",
        {
            "experiments": overview,
            **sqlite.manifest_tables(experiment.manifests.values(), examples),
            "runs": runs,
            **sqlite.request_tables(experiment.requests),
            "scores": experiment.scores,
            "failures": experiment.failures,
            "bin_stats": table("bin_stats"),
            "comparisons": table("comparisons"),
            "transition_summary": table("transitions"),
        },
    )
