"""bin_stats, comparisons and transitions: rows of plain values from an experiment's frames."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from kvx.analyze.frames import ALL_BINS, Experiment, series_columns
from kvx.config import AnalyzeConfig
from kvx.stats.bootstrap import bootstrap_mean
from kvx.stats.intervals import clopper_pearson
from kvx.stats.paired import failure_attribution, newcombe_interval, paired_difference
from kvx.stats.transition import find_transition, instability_zone, mean_of_bin_means
from kvx.store.catalog import PointRecord

Row = dict[str, Any]


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
        requests = experiment.requests[experiment.requests["point_id"] == point.id]
        scores = experiment.scores[experiment.scores["point_id"] == point.id]
        failures = experiment.failures[experiment.failures["point_id"] == point.id]
        series = series_columns(point, requests)
        bins = experiment.manifest(point)["bins"]
        for index, asked in by_bin(requests):
            ids = set(asked["request_id"])
            failed = failures[failures["request_id"].isin(ids)]
            low = bins[0]["low_tokens"] if index == ALL_BINS else bins[index]["low_tokens"]
            high = bins[-1]["high_tokens"] if index == ALL_BINS else bins[index]["high_tokens"]
            common = {
                **series, "bin": index, "bin_low_tokens": low, "bin_high_tokens": high,
                **_failure_columns(asked, failed, config), **_cost_columns(asked),
            }  # fmt: skip
            for (metric, primary), group in scores[scores["request_id"].isin(ids)].groupby(
                ["metric", "primary"]
            ):
                rows.append(
                    {**common, "metric": metric, "primary": primary, **_mean_columns(group, config)}
                )
    return rows


def _mean_columns(scores: pd.DataFrame, config: AnalyzeConfig) -> Row:
    """Mean with its interval: exact for independent binary scores, else the cluster bootstrap's."""
    values = scores["score"].to_numpy(dtype=float)
    clusters = scores["cluster"].tolist()
    estimate = bootstrap_mean(values, clusters, config.n_boot, config.confidence, config.seed)
    interval, method = estimate.interval, "cluster_bootstrap"
    known = values[~np.isnan(values)]
    if is_binary(known) and len(known) == estimate.n_clusters:
        interval = clopper_pearson(int(known.sum()), len(known), config.confidence)
        method = "clopper_pearson"
    return {
        "n": estimate.n, "n_clusters": estimate.n_clusters, "mean": null(estimate.mean),
        "sd": null(estimate.sd), "ci_low": null(interval.low), "ci_high": null(interval.high),
        "ci_method": method, "bootstrap_ci_low": null(estimate.interval.low),
        "bootstrap_ci_high": null(estimate.interval.high),
    }  # fmt: skip


def is_binary(values: np.ndarray[Any, Any]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _failure_columns(asked: pd.DataFrame, failed: pd.DataFrame, config: AnalyzeConfig) -> Row:
    n, k = len(asked), len(failed)
    truncated = int((failed["error_type"] == "TRUNCATED").sum())
    interval = clopper_pearson(k, n, config.confidence)
    return {
        "n_requests": n, "n_responses": int(asked["has_response"].sum()),
        "n_failures": k, "n_truncated": truncated,
        "n_degenerate": int(asked["degenerate"].sum()),
        "budget_verified": bool(asked["budget_verified"].all()),
        "failure_rate": k / n, "failure_ci_low": null(interval.low),
        "failure_ci_high": null(interval.high), "truncated_rate": truncated / n,
    }  # fmt: skip


def _cost_columns(asked: pd.DataFrame) -> Row:
    """Latency quantiles and memory; null where nothing was measured, never estimated."""
    row: Row = {}
    for name in ("latency", "ttft", "tpot"):
        values = asked[f"{name}_s"].dropna()
        for q in (50, 95):
            row[f"{name}_p{q}_s"] = null(values.quantile(q / 100)) if len(values) else None
    effective, full = asked["kv_bytes_effective"], asked["kv_bytes_full"]
    peak = asked["peak_memory_bytes"].max()
    return row | {
        "kv_bytes_mean": null(asked["kv_bytes_physical"].mean()),
        "kv_bytes_full_mean": null(full.mean()),
        "budget_measured": null((effective / full).mean()),
        "peak_memory_bytes_max": None if pd.isna(peak) else int(peak),
    }


def comparisons(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """Every point against its full-cache twin, example by example, per bin and over all bins."""
    rows = []
    for point in experiment.points:
        twin = experiment.twin(point)
        if twin is None or twin.id == point.id:
            continue
        requests = experiment.requests[experiment.requests["point_id"] == point.id]
        series = series_columns(point, requests)
        pairs = _pairs(experiment, point, twin)
        for (metric, primary), group in pairs.groupby(["metric", "primary"]):
            for index, rows_of_bin in by_bin(group):
                compared = _compare(rows_of_bin, config)
                rows.append(
                    {
                        **series, "twin_point_id": twin.id, "bin": index, "metric": metric,
                        "primary": primary, **compared,
                    }
                )  # fmt: skip
    return rows


def _pairs(experiment: Experiment, point: PointRecord, twin: PointRecord) -> pd.DataFrame:
    """Scores of a point and its twin side by side, with whether each failed."""
    failed = set(experiment.failures["request_id"])
    scores = experiment.scores.assign(failed=experiment.scores["request_id"].isin(failed))
    columns = ["example_id", "metric", "primary", "bin", "cluster", "score", "failed"]
    ours = scores.loc[scores["point_id"] == point.id, columns]
    theirs = scores.loc[scores["point_id"] == twin.id, ["example_id", "metric", "score", "failed"]]
    pairs: pd.DataFrame = ours.merge(
        theirs, on=["example_id", "metric"], suffixes=("", "_twin"), validate="one_to_one"
    )
    return pairs


def _compare(pairs: pd.DataFrame, config: AnalyzeConfig) -> Row:
    ours = pairs["score"].to_numpy(dtype=float)
    twins = pairs["score_twin"].to_numpy(dtype=float)
    failed = pairs["failed"].to_numpy(dtype=bool)
    found = paired_difference(
        ours, twins, pairs["cluster"].tolist(), config.n_boot, config.confidence, config.seed
    )
    interval, method = found.interval, "cluster_bootstrap"
    paired = ~np.isnan(ours - twins)
    if found.mcnemar_p is not None and found.n_pairs == found.n_clusters:
        right, twin_right = ours[paired] == 1, twins[paired] == 1
        interval = newcombe_interval(
            int((right & twin_right).sum()), found.n_lost, found.n_won,
            int((~right & ~twin_right).sum()), config.confidence,
        )  # fmt: skip
        method = "newcombe"
    return {
        "n_pairs": found.n_pairs, "n_clusters": found.n_clusters, "mean": null(found.mean_a),
        "twin_mean": null(found.mean_b), "difference": null(found.difference),
        "ci_low": null(interval.low), "ci_high": null(interval.high), "ci_method": method,
        "bootstrap_ci_low": null(found.interval.low),
        "bootstrap_ci_high": null(found.interval.high),
        "n_lost": found.n_lost, "n_won": found.n_won, "mcnemar_p": found.mcnemar_p,
        "failure_rate_difference": float(failed.mean() - pairs["failed_twin"].mean()),
        "difference_from_failures": null(failure_attribution(ours, twins, failed)),
        "baseline_floor": bool(found.mean_b < config.baseline_floor),
    }  # fmt: skip


def transitions(experiment: Experiment, stats: list[Row], config: AnalyzeConfig) -> list[Row]:
    """Per series (a press's curve over budgets): classic transition and instability zone."""
    frame = pd.DataFrame(stats)
    overall = frame[frame["primary"] & (frame["bin"] == ALL_BINS)]
    keys = ["variant_id", "model", "dataset", "press", "controller", "seed"]
    rows = []
    for names, group in overall.groupby(keys):
        curve = _with_full_cache(group, overall).sort_values("budget", ascending=False)
        if len(curve) < 2:
            continue
        scores = experiment.scores[experiment.scores["primary"]]
        scores = scores[scores["point_id"].isin(curve["point_id"])]
        table = scores.pivot(index="example_id", columns="point_id", values="score")
        table = table[curve["point_id"].tolist()]
        about = scores.drop_duplicates("example_id").set_index("example_id").loc[table.index]
        matrix = table.to_numpy(dtype=float).T
        found = find_transition(
            curve["budget"].tolist(), matrix, about["bin"].to_numpy(),
            about["cluster"].tolist(), config.transition_drop, config.n_boot, config.seed,
        )  # fmt: skip
        zone = instability_zone(
            curve["budget"].tolist(), mean_of_bin_means(matrix, about["bin"].to_numpy()),
            curve["sd"].to_numpy(dtype=float), curve["failure_rate"].to_numpy(dtype=float),
            config.transition_drop, config.spread_jump, config.failure_jump,
        )  # fmt: skip
        rows.append(
            {
                **dict(zip(keys, names, strict=True)), "metric": curve["metric"].iloc[0],
                "n_budgets": len(curve), "n_boot": config.n_boot,
                "transition_budget": found.budget, "transition_drop": found.drop,
                "support": null(found.support), "support_any": null(found.support_any),
                "zone_budgets": [b for b, _ in zone], "zone_reasons": [r for _, r in zone],
            }
        )  # fmt: skip
    return rows


def _with_full_cache(curve: pd.DataFrame, overall: pd.DataFrame) -> pd.DataFrame:
    """A press's curve, begun at the full cache of `press=none` if it has none of its own."""
    first = curve.iloc[0]
    if (curve["budget"] == 1.0).any() or first["press"] == "none":
        return curve
    same = (overall["variant_id"] == first["variant_id"]) & (overall["seed"] == first["seed"])
    full = overall[same & (overall["press"] == "none") & (overall["budget"] == 1.0)]
    extended: pd.DataFrame = pd.concat([full.head(1), curve])
    return extended
