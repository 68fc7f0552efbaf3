"""bin_stats and comparisons: rows of plain values from an experiment's frames."""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.columns import ALL_BINS, Columns, by_bin, by_metric, take
from kvx.analyze.correction import correct_comparisons
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.scoring.failures import FailureType
from kvx.stats import clustered
from kvx.stats.interaction import interaction_p
from kvx.stats.paired import failure_attribution
from kvx.stats.repeats import others_share, spread

Row = dict[str, Any]
MCNEMAR, SIGN_FLIP = "mcnemar", "sign_flip"
QUANTILES = (50, 95)
TIMES = ("latency", "ttft", "tpot")


def null(value: Any) -> float | None:
    """nan as a null, which is what Parquet and SQLite understand as "not known"."""
    return None if value is None or math.isnan(value) else float(value)


def bin_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point, bin and metric; bin -1 is all bins together."""
    rows: list[Row] = []
    cells: list[tuple[Columns, Columns]] = []
    for point in experiment.points:
        requests, scores, latency = (
            dict(by_bin(experiment.of(table, point.id)))
            for table in ("requests", "judged", "latency")
        )
        series, bins = experiment.series_columns(point), experiment.manifest(point)["bins"]
        for index, asked in requests.items():
            edges = bins if index == ALL_BINS else [bins[index]]
            common = {
                **series, "bin": index, "bin_low_tokens": edges[0]["low_tokens"],
                "bin_high_tokens": edges[-1]["high_tokens"],
                **_failure_columns(asked), **_cost_columns(asked), **cut_columns(asked),
                **_latency_columns(_bin(latency, index)),
            }  # fmt: skip
            for metric, primary, cell in by_metric(_bin(scores, index)):
                higher = metric not in experiment.lower_is_better
                about = {"metric": metric, "primary": primary, "higher_is_better": higher}
                rows.append(common | about)
                cells.append((cell, asked))
    binary = experiment.binary_metrics
    return [
        row
        | _failure_interval(asked, config)
        | _mean_columns(cell, row["metric"] in binary, config)
        for row, (cell, asked) in zip(rows, cells, strict=True)
    ]


def _bin(cut: dict[int, Columns], index: int) -> Columns:
    """The rows of a bin, none if nothing is in it."""
    return cut[index] if index in cut else take(cut[ALL_BINS], slice(0))


def _mean_columns(cell: Columns, binary: bool, config: AnalyzeConfig) -> Row:
    """Mean over all examples, a missing answer counted as wrong, and over those with an answer."""
    answered = ~cell["missing"]
    clusters = cell["cluster"]
    found = clustered.mean(cell["score"], clusters, config.confidence, binary=binary)
    complete = found
    if not answered.all():
        known = np.where(answered, cell["score"], np.nan)
        complete = clustered.mean(known, clusters, config.confidence, binary=binary)
    return {
        "n": found.n, "n_missing": int((~answered).sum()), "n_clusters": found.n_clusters,
        "mean": null(found.mean), "sd": null(found.sd), "ci_low": null(found.interval.low),
        "ci_high": null(found.interval.high), "ci_method": found.method,
        "complete_mean": null(complete.mean), "complete_ci_low": null(complete.interval.low),
        "complete_ci_high": null(complete.interval.high),
    }  # fmt: skip


def _failure_columns(asked: Columns) -> Row:
    n, k = len(asked["failed"]), int(asked["failed"].sum())
    truncated = int((asked["kind"] == FailureType.TRUNCATED).sum())
    return {
        "n_requests": n, "n_responses": int(asked["has_response"].sum()),
        "n_failures": k, "n_truncated": truncated,
        "n_degenerate": int(asked["degenerate"].sum()),
        "n_adapted": int(pd.notna(asked["adapted"]).sum()),
        "budget_verified": bool(asked["budget_verified"].all()),
        "failure_rate": k / n, "truncated_rate": truncated / n,
    }  # fmt: skip


def _failure_interval(asked: Columns, config: AnalyzeConfig) -> Row:
    failed, clusters = asked["failed"].astype(float), asked["cluster"]
    interval = clustered.mean(failed, clusters, config.confidence, binary=True).interval
    return {"failure_ci_low": null(interval.low), "failure_ci_high": null(interval.high)}


def _cost_columns(asked: Columns) -> Row:
    effective, full = asked["kv_bytes_effective"], asked["kv_bytes_full"]
    return {
        "output_tokens_mean": _mean(asked["output_tokens"]),
        "kv_bytes_mean": _mean(asked["kv_bytes_physical"]),
        "kv_bytes_full_mean": _mean(full),
        "budget_measured": _mean(_kept_share(effective / full, asked["kv_compressed_share"])),
        "kv_compressed_share": _mean(asked["kv_compressed_share"]),
    }


def _kept_share(of_all: NDArray[Any], compressed: NDArray[Any]) -> NDArray[Any]:
    """The share of the entries in compressed layers that was kept, from that `of_all` KV bytes.

    `compressed` is the share of all bytes that lies in such layers; where it is null, all of them.
    """
    share = np.asarray(compressed, float)
    share = np.where(np.isnan(share) | (share == 0), 1.0, share)
    found: NDArray[Any] = (np.asarray(of_all, float) - (1 - share)) / share
    return found


def cut_columns(asked: Columns) -> Row:
    """Contexts that were cut to fit the model; nulls where an older run did not note it."""
    lost = np.asarray(asked["context_tokens_cut"], float)
    if np.isnan(lost).all():
        return {"n_contexts_cut": None, "context_tokens_cut_mean": None}
    cut = lost[lost > 0]
    return {"n_contexts_cut": len(cut), "context_tokens_cut_mean": _mean(cut) if len(cut) else None}


def _mean(values: NDArray[Any]) -> float | None:
    """Mean of what was measured; null if nothing was."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else None


def _latency_columns(alone: Columns) -> Row:
    """Quantiles and memory of requests that ran alone; null where none did, never estimated."""
    good = take(alone, pd.isna(alone["error_type"]))
    n = len(good["error_type"])
    row: Row = {"n_latency": n, "n_latency_failed": len(alone["error_type"]) - n}
    times = np.stack([good[f"{name}_s"] for name in TIMES], axis=1).astype(float)
    for name, quantiles in zip(TIMES, _quantiles(times), strict=True):
        row |= {f"{name}_p{q}_s": v for q, v in zip(QUANTILES, quantiles, strict=True)}
    peak = good["peak_memory_bytes"].astype(float)
    peak = peak[~np.isnan(peak)]
    seconds, neighbours = good["latency_s"].astype(float), good["gpu_others"].astype(float)
    known = neighbours[~np.isnan(neighbours)]
    return row | {
        "peak_memory_bytes_max": int(peak.max()) if peak.size else None,
        "latency_spread": null(spread(seconds, good["example_id"].tolist())),
        "others_cpu_share": null(others_share(good["others_cpu_share"].astype(float), seconds)),
        "gpu_others_max": int(known.max()) if known.size else None,
    }


def _quantiles(values: NDArray[np.float64]) -> list[list[float | None]]:
    """The quantiles of what is known of each column; nulls where nothing is."""
    known = ~np.isnan(values)
    if values.size and known.all():  # all columns in one call
        found: list[list[float | None]] = np.percentile(values, QUANTILES, axis=0).T.tolist()
        return found
    return [
        np.percentile(column[good], QUANTILES).tolist() if good.any() else [None] * len(QUANTILES)
        for column, good in zip(values.T, known.T, strict=True)
    ]


def comparisons(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """Every point against its full cache, example by example, per bin and over all bins."""
    rows: list[Row] = []
    cells: list[Columns] = []
    for point in experiment.points:
        full = experiment.full_cache(point)
        if full is None or full.id == point.id:
            continue
        series = experiment.series_columns(point)
        pairs = experiment.side_by_side(point.id, full.id)
        for metric, primary, group in by_metric(pairs):
            about = {
                **series,
                "twin_point_id": full.id,
                "metric": metric,
                "primary": primary,
                "higher_is_better": metric not in experiment.lower_is_better,
            }
            for index, cell in by_bin(group):
                rows.append({**about, "bin": index})
                cells.append(cell)
    binary = experiment.binary_metrics
    found = [
        row
        | _compare(cell, row["metric"] in binary, row["higher_is_better"], config)
        | _by_length(cell, row["bin"], config)
        for row, cell in zip(rows, cells, strict=True)
    ]
    return correct_comparisons(found, config.family)


def _compare(pairs: Columns, binary: bool, higher: bool, config: AnalyzeConfig) -> Row:
    """Lost is what got worse: lower scores, or higher ones unless `higher` is better.

    The difference is that of the scores, whichever way is better. A missing answer counts as wrong
    here; where the full cache has none there is nothing to lose, and the pair is left out.
    """
    ours, full, failed = pairs["score"], pairs["score_full"], pairs["failed"]
    clusters, compared = pairs["cluster"], ~np.isnan(full)
    answered = ~pairs["missing"]
    found = clustered.paired_difference(ours, full, clusters, config.confidence, binary=binary)
    complete = found
    if not answered[compared].all():
        known = np.where(answered, ours, np.nan)
        complete = clustered.paired_difference(
            known, full, clusters, config.confidence, binary=binary
        )
    truncated = pairs["kind"] == FailureType.TRUNCATED
    fallen, risen = found.n_lost, found.n_won
    room = found.mean_b if higher else 1 - found.mean_b  # to get worse in
    return {
        "n_pairs": found.n_pairs, "n_clusters": found.n_clusters,
        "n_missing": int((compared & ~answered).sum()),
        "n_missing_full": int((~compared).sum()),
        "mean": null(found.mean_a), "twin_mean": null(found.mean_b),
        "difference": null(found.difference), "ci_low": null(found.interval.low),
        "ci_high": null(found.interval.high), "ci_method": found.method,
        "p": null(found.p),
        "p_method": None if math.isnan(found.p) else MCNEMAR if found.exact else SIGN_FLIP,
        "mcnemar_p": null(found.p) if found.exact else None,
        "complete_pairs": complete.n_pairs, "complete_difference": null(complete.difference),
        "complete_ci_low": null(complete.interval.low),
        "complete_ci_high": null(complete.interval.high),
        "n_lost": fallen if higher else risen, "n_won": risen if higher else fallen,
        "n_degenerate": int(pairs["degenerate"].sum()),
        "failure_rate_difference": float(failed.mean() - pairs["failed_full"].mean()),
        "difference_from_failures": null(failure_attribution(ours, full, failed)),
        "difference_from_truncated": null(failure_attribution(ours, full, truncated)),
        "baseline_floor": bool(room < config.baseline_floor),
    }  # fmt: skip


def _by_length(pairs: Columns, index: int, config: AnalyzeConfig) -> Row:
    """Over all bins: whether the difference depends on the bin."""
    if index != ALL_BINS:
        return {}
    apart = pairs["score"] - pairs["score_full"]
    p = interaction_p(apart, pairs["bin"], pairs["cluster"], config.seed)
    return {"interaction_p": null(p)}
