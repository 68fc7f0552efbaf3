"""report.md: the analysed tables as sentences, tables and plots."""

import logging
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pyarrow.parquet as pq

from kvx.analyze.frames import ALL_BINS
from kvx.config import AnalyzeConfig, Config
from kvx.errors import UserError
from kvx.hashing import digest, sha256_text
from kvx.points import experiment_dir
from kvx.report.findings import findings
from kvx.report.tables import (
    accuracy_table,
    budget_table,
    comparison_table,
    cost_table,
    failure_table,
)
from kvx.report.warnings import warnings
from kvx.report.words import token_range
from kvx.store.catalog import PointRecord, finished_points
from kvx.store.shards import read_inputs, write_text

log = logging.getLogger(__name__)
STAMP = "<!-- kvx inputs {} -->"


def template_text() -> str:
    return (Path(__file__).parent / "report.md.j2").read_text()


def report_experiment(config: Config) -> Path:
    """Write report.md unless it is there for the same tables; its path.

    Raises `UserError` if the experiment is not analysed.
    """
    folder = experiment_dir(config)
    points = finished_points(folder)
    path = folder / "report.md"
    inputs = read_inputs(folder / "bin_stats.parquet")
    if inputs is None:
        raise UserError(f"{folder}: not analysed yet; run kvx.analyze with the same arguments")
    stamp = STAMP.format(digest([inputs, sha256_text(template_text())], 16))
    if path.exists() and path.read_text().rstrip().endswith(stamp):
        log.info("report: nothing to do → %s", path)
        return path
    frames = {
        n: pq.read_table(folder / f"{n}.parquet").to_pandas()
        for n in ("bin_stats", "comparisons", "transitions")
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=False, autoescape=False
    )
    text = environment.from_string(template_text()).render(
        _context(config, points, folder, **frames)
    )
    write_text(path, f"{text.rstrip()}\n\n{stamp}\n")
    log.info("report: %s", path)
    return path


def _context(
    config: Config,
    points: list[PointRecord],
    folder: Path,
    bin_stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    transitions: pd.DataFrame,
) -> dict[str, Any]:
    primary = bin_stats[bin_stats["primary"]]
    overall = primary[primary["bin"] == ALL_BINS]
    requests = sum(p.info["manifest"]["n_requests"] for p in points)
    responses = int(overall["n_responses"].sum())
    failures = pd.concat([pq.read_table(p.dir / "failures.parquet").to_pandas() for p in points])
    device = (
        "allocated device memory"
        if "gpu" in points[0].info["provenance"]["hardware"]
        else "the process's resident memory"
    )
    return {
        "name": folder.name, "points": points, "n_requests": requests, "n_responses": responses,
        "n_lost": requests - responses, "variants": _variants(primary, points),
        "all_verified": bool(overall["budget_verified"].all()),
        "budget_table": budget_table(overall),
        "findings": findings(bin_stats, comparisons, transitions, config.analyze),
        "warnings": warnings(bin_stats, comparisons, config.analyze),
        "confidence": f"{config.analyze.confidence:.0%}",
        "drop": f"{config.analyze.transition_drop:g}",
        "methods": _methods(primary, config.analyze),
        "paired_methods": _methods(comparisons, config.analyze),
        "comparison_table": comparison_table(comparisons),
        "failure_table": failure_table(overall, failures), "cost_table": cost_table(overall),
        "memory_kind": device, "reproducibility": _reproducibility(points),
    }  # fmt: skip


def _variants(primary: pd.DataFrame, points: list[PointRecord]) -> list[dict[str, Any]]:
    described = []
    several = primary["variant_id"].nunique() > 1
    for variant, frame in primary.groupby("variant_id", sort=False):
        overall = frame[frame["bin"] == ALL_BINS]
        info = next(p.info for p in points if p.info["variant_id"] == variant)
        query_aware = info["config"]["prompt"]["query_aware"]
        budgets = overall.sort_values("budget", ascending=False)["budget_label"]
        described.append(
            {
                "id": variant, "model": info["model"], "dataset": info["dataset"],
                "presses": ", ".join(dict.fromkeys(overall["press"])),
                "budgets": ", ".join(dict.fromkeys(budgets)),
                "n": info["manifest"]["n_requests"], "n_bins": frame["bin"].nunique() - 1,
                "tokens": token_range(overall.iloc[0]),
                "metric": overall["metric"].iloc[0].replace("_", " "),
                "sees": f"the context{' and' if query_aware else ', not'} the question",
                "accuracy_table": accuracy_table(frame),
                "plots": f"plots/{variant}" if several else "plots",
                "has_latency": bool(frame["latency_p50_s"].notna().any()),
            }
        )  # fmt: skip
    return described


def _methods(table: pd.DataFrame, config: AnalyzeConfig) -> str:
    """The interval methods used in a table, in words."""
    bootstrap = f"{config.n_boot} resamples of prompts, seed {config.seed}"
    names = {
        "clopper_pearson": "Clopper–Pearson where scores are binary and examples independent",
        "newcombe": "Newcombe's where scores are binary and examples independent",
        "cluster_bootstrap": f"cluster bootstrap elsewhere, {bootstrap}",
    }
    return "; ".join(text for method, text in names.items() if (table["ci_method"] == method).any())


def _reproducibility(points: list[PointRecord]) -> list[tuple[str, str]]:
    """One row per fact; several values where the points differ."""

    def all_of(*path: str) -> str:
        values = []
        for point in points:
            value: Any = point.info
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            values.append("none (installed package)" if value is None else str(value))
        return "<br>".join(f"`{v}`" for v in dict.fromkeys(values))

    versions = points[0].info["provenance"]["versions"]
    hardware = points[0].info["provenance"]["hardware"]
    return [
        ("command", all_of("provenance", "command")),
        ("git commit", all_of("provenance", "git_commit")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("hardware", ", ".join(f"{k}: {v}" for k, v in hardware.items())),
        ("model dtype", all_of("config", "model", "dtype")),
        ("seed", all_of("seed")),
        ("manifest sha256", all_of("manifest", "sha256")),
        ("data revision", all_of("manifest", "source_revision")),
        ("prompt template hash", all_of("manifest", "template_hash")),
    ]
