"""bin_stats and comparisons: rows of plain values from an experiment's frames."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.analyze.frames import ALL_BINS, Experiment
from kvx.config import AnalyzeConfig
from kvx.failures import FailureType
from kvx.stats.bootstrap import bootstrap_mean
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, clopper_pearson
from kvx.stats.paired import failure_attribution, newcombe_interval, paired_difference

Row = dict[str, Any]
BOOTSTRAP, EXACT, NEWCOMBE = "cluster_bootstrap", "clopper_pearson", "newcombe"


def null(value: Any) -> float | None:
    """nan as a null, which is what Parquet and SQLite understand as "not known"."""
    return None if value is None or math.isnan(value) else float(value)


def by_bin(frame: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each bin's rows, then all rows as bin -1."""
    for index in sorted(frame["bin"].unique()):
        yield int(index), frame[frame["bin"] == index]
    yield ALL_BINS, frame


def bin_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point, bin and metric; bin -1 is all bins together."""
    rows = []
    for point in experiment.points:
        scores, failures = experiment.of("scores", point.id), experiment.of("failures", point.id)
        alone = experiment.of("latency", point.id)
        series, bins = experiment.series_columns(point), experiment.manifest(point)["bins"]
        for index, asked in by_bin(experiment.of("requests", point.id)):
            edges = bins if index == ALL_BINS else [bins[index]]
            failed = failures[failures["request_id"].isin(asked["request_id"])]
            common = {
                **series, "bin": index, "bin_low_tokens": edges[0]["low_tokens"],
                "bin_high_tokens": edges[-1]["high_tokens"],
                **_failure_columns(asked, failed, config), **_cost_columns(asked),
                **_latency_columns(alone if index == ALL_BINS else alone[alone["bin"] == index]),
            }  # fmt: skip
            cell = scores[scores["request_id"].isin(asked["request_id"])]
            for (metric, primary), group in cell.groupby(["metric", "primary"]):
                binary = metric in experiment.binary_metrics
                means = _mean_columns(group, binary, config)
                rows.append({**common, "metric": metric, "primary": primary, **means})
    return rows


def _mean_columns(scores: pd.DataFrame, binary: bool, config: AnalyzeConfig) -> Row:
    """Mean with its interval: exact for independent binary scores, else the cluster bootstrap's."""
    values = scores["score"].to_numpy(dtype=float)
    clusters = scores["cluster"].tolist()
    estimate = bootstrap_mean(values, clusters, config.n_boot, config.confidence, config.seed)
    interval, method = _unless_constant(estimate.interval), BOOTSTRAP
    if binary and estimate.n == estimate.n_clusters:
        right = round(estimate.mean * estimate.n) if estimate.n else 0
        interval, method = clopper_pearson(right, estimate.n, config.confidence), EXACT
    return {
        "n": estimate.n, "n_clusters": estimate.n_clusters, "mean": null(estimate.mean),
        "sd": null(estimate.sd), "ci_low": null(interval.low), "ci_high": null(interval.high),
        "ci_method": method, "bootstrap_ci_low": null(estimate.interval.low),
        "bootstrap_ci_high": null(estimate.interval.high),
    }  # fmt: skip


def _unless_constant(interval: Interval) -> Interval:
    """A bootstrap of scores that all agree has no width: it cannot say how sure it is."""
    return UNKNOWN_INTERVAL if interval.low == interval.high else interval


def _failure_columns(asked: pd.DataFrame, failed: pd.DataFrame, config: AnalyzeConfig) -> Row:
    n, k = len(asked), len(failed)
    truncated = int((failed["error_type"] == FailureType.TRUNCATED).sum())
    interval = _failure_interval(asked, failed, config)
    return {
        "n_requests": n, "n_responses": int(asked["has_response"].sum()),
        "n_failures": k, "n_truncated": truncated,
        "n_degenerate": int(asked["degenerate"].sum()),
        "budget_verified": bool(asked["budget_verified"].all()),
        "failure_rate": k / n, "failure_ci_low": null(interval.low),
        "failure_ci_high": null(interval.high), "truncated_rate": truncated / n,
    }  # fmt: skip


def _failure_interval(asked: pd.DataFrame, failed: pd.DataFrame, config: AnalyzeConfig) -> Interval:
    """Exact for independent requests, else a bootstrap over the clusters they form."""
    if asked["cluster"].is_unique:
        return clopper_pearson(len(failed), len(asked), config.confidence)
    values = asked["request_id"].isin(failed["request_id"]).to_numpy(dtype=float)
    clusters = asked["cluster"].tolist()
    return bootstrap_mean(values, clusters, config.n_boot, config.confidence, config.seed).interval


def _cost_columns(asked: pd.DataFrame) -> Row:
    effective, full = asked["kv_bytes_effective"], asked["kv_bytes_full"]
    return {
        "output_tokens_mean": null(asked["output_tokens"].mean()),
        "kv_bytes_mean": null(asked["kv_bytes_physical"].mean()),
        "kv_bytes_full_mean": null(full.mean()),
        "budget_measured": null((effective / full).mean()),
    }


def _latency_columns(alone: pd.DataFrame) -> Row:
    """Quantiles and memory of requests that ran alone; null where none did, never estimated."""
    good = alone[alone["error_type"].isna()]
    row: Row = {"n_latency": len(good), "n_latency_failed": len(alone) - len(good)}
    for name in ("latency", "ttft", "tpot"):
        values = good[f"{name}_s"].dropna()
        for q in (50, 95):
            row[f"{name}_p{q}_s"] = null(values.quantile(q / 100)) if len(values) else None
    peak = good["peak_memory_bytes"].max()
    return row | {"peak_memory_bytes_max": None if pd.isna(peak) else int(peak)}


def comparisons(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """Every point against its full-cache twin, example by example, per bin and over all bins."""
    rows = []
    for point in experiment.points:
        twin = experiment.twin(point)
        if twin is None or twin.id == point.id:
            continue
        series = experiment.series_columns(point)
        pairs = side_by_side(experiment, point.id, twin.id)
        for (metric, primary), group in pairs.groupby(["metric", "primary"]):
            binary = metric in experiment.binary_metrics
            for index, cell in by_bin(group):
                about = {"bin": index, "metric": metric, "primary": primary}
                compared = _compare(cell, binary, config)
                rows.append({**series, "twin_point_id": twin.id, **about, **compared})
    return rows


def side_by_side(experiment: Experiment, point_id: str, twin_id: str) -> pd.DataFrame:
    """Scores of a point and its twin, one row per example and metric, with whether each failed."""
    ours, theirs = experiment.of("judged", point_id), experiment.of("judged", twin_id)
    theirs = theirs[["example_id", "metric", "score", "failed"]]
    pairs: pd.DataFrame = ours.merge(
        theirs, on=["example_id", "metric"], suffixes=("", "_twin"), validate="one_to_one"
    )
    return pairs


def _compare(pairs: pd.DataFrame, binary: bool, config: AnalyzeConfig) -> Row:
    ours = pairs["score"].to_numpy(dtype=float)
    twins = pairs["score_twin"].to_numpy(dtype=float)
    failed = pairs["failed"].to_numpy(dtype=bool)
    truncated = (pairs["kind"] == FailureType.TRUNCATED).to_numpy(dtype=bool)
    found = paired_difference(
        ours, twins, pairs["cluster"].tolist(), config.n_boot, config.confidence, config.seed
    )
    exact = binary and found.n_pairs == found.n_clusters
    interval, method = _unless_constant(found.interval), BOOTSTRAP
    if exact:
        interval, method = _newcombe(pairs, found.n_lost, found.n_won, config), NEWCOMBE
    return {
        "n_pairs": found.n_pairs, "n_clusters": found.n_clusters, "mean": null(found.mean_a),
        "twin_mean": null(found.mean_b), "difference": null(found.difference),
        "ci_low": null(interval.low), "ci_high": null(interval.high), "ci_method": method,
        "bootstrap_ci_low": null(found.interval.low),
        "bootstrap_ci_high": null(found.interval.high),
        "n_lost": found.n_lost, "n_won": found.n_won,
        "mcnemar_p": found.mcnemar_p if exact else None,
        "n_degenerate": int(pairs["degenerate"].sum()),
        "failure_rate_difference": float(failed.mean() - pairs["failed_twin"].mean()),
        "difference_from_failures": null(failure_attribution(ours, twins, failed)),
        "difference_from_truncated": null(failure_attribution(ours, twins, truncated)),
        "baseline_floor": bool(found.mean_b < config.baseline_floor),
    }  # fmt: skip


def _newcombe(pairs: pd.DataFrame, lost: int, won: int, config: AnalyzeConfig) -> Interval:
    known = pairs.dropna(subset=["score", "score_twin"])
    both = int(((known["score"] == 1) & (known["score_twin"] == 1)).sum())
    neither = len(known) - both - lost - won
    return newcombe_interval(both, lost, won, neither, config.confidence)
