"""bin_stats and comparisons: rows of plain values from an experiment's frames."""

import math
from collections.abc import Iterable
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
from kvx.store.catalog import PointRecord

Row = dict[str, Any]
MCNEMAR, SIGN_FLIP = "mcnemar", "sign_flip"
QUANTILES = (50, 95)
TIMES = ("latency", "ttft", "tpot")


def null(value: Any) -> float | None:
    """nan as a null, which is what Parquet and SQLite understand as "not known"."""
    return None if value is None or math.isnan(value) else float(value)


def bin_stats(
    experiment: Experiment, config: AnalyzeConfig, points: Iterable[PointRecord] | None = None
) -> list[Row]:
    """One row per point, bin and metric; bin -1 is all bins together. `points`: only theirs."""
    shared: list[tuple[Row, Columns]] = []  # of a point and bin
    rows: list[tuple[int, Row]] = []
    cells: list[Columns] = []
    for point in experiment.points if points is None else points:
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
            shared.append((common, asked))
            for metric, primary, cell in by_metric(_bin(scores, index)):
                higher = metric not in experiment.lower_is_better
                about = {"metric": metric, "primary": primary, "higher_is_better": higher}
                rows.append((len(shared) - 1, about))
                cells.append(cell)
    binary = [about["metric"] in experiment.binary_metrics for _, about in rows]
    failed = _failure_intervals([asked for _, asked in shared], config)
    return [
        shared[i][0] | about | failed[i] | means
        for (i, about), means in zip(rows, _mean_columns(cells, binary, config), strict=True)
    ]


def _bin(cut: dict[int, Columns], index: int) -> Columns:
    """The rows of a bin, none if nothing is in it."""
    return cut[index] if index in cut else take(cut[ALL_BINS], slice(0))


def _mean_columns(cells: list[Columns], binary: list[bool], config: AnalyzeConfig) -> list[Row]:
    """Mean over all examples, a missing answer counted as wrong, and over those with an answer."""
    all_ = [(cell["score"], cell["cluster"]) for cell in cells]
    found = clustered.means(all_, config.confidence, binary=binary)
    some = [i for i, cell in enumerate(cells) if cell["missing"].any()]
    known = [
        (np.where(cells[i]["missing"], np.nan, cells[i]["score"]), cells[i]["cluster"])
        for i in some
    ]
    told = [binary[i] for i in some]
    complete = dict(zip(some, clustered.means(known, config.confidence, binary=told), strict=True))
    rows: list[Row] = []
    for i, (cell, mean) in enumerate(zip(cells, found, strict=True)):
        answered = complete.get(i, mean)
        rows.append(
            {
                "n": mean.n, "n_missing": int(cell["missing"].sum()),
                "n_clusters": mean.n_clusters, "mean": null(mean.mean), "sd": null(mean.sd),
                "ci_low": null(mean.interval.low), "ci_high": null(mean.interval.high),
                "ci_method": mean.method, "complete_mean": null(answered.mean),
                "complete_ci_low": null(answered.interval.low),
                "complete_ci_high": null(answered.interval.high),
            }
        )  # fmt: skip
    return rows


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


def _failure_intervals(asked: list[Columns], config: AnalyzeConfig) -> list[Row]:
    cells = [(columns["failed"], columns["cluster"]) for columns in asked]
    return [
        {
            "failure_ci_low": null(found.interval.low),
            "failure_ci_high": null(found.interval.high),
        }
        for found in clustered.means(cells, config.confidence, binary=True)
    ]


def _cost_columns(asked: Columns) -> Row:
    effective, full = asked["kv_bytes_effective"], asked["kv_bytes_full"]
    return {
        "output_tokens_mean": _mean(asked["output_tokens"]),
        "kv_bytes_mean": _mean(asked["kv_bytes_physical"]),
        "kv_bytes_full_mean": _mean(full),
        "budget_measured": _mean(kept_share(effective / full, asked["kv_compressed_share"])),
        "kv_compressed_share": _mean(asked["kv_compressed_share"]),
    }


def kept_share(of_all: NDArray[Any], compressed: NDArray[Any]) -> NDArray[Any]:
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
    return correct_comparisons(compared(experiment, config, experiment.points), config.family)


def compared(
    experiment: Experiment, config: AnalyzeConfig, points: Iterable[PointRecord]
) -> list[Row]:
    """The rows of `comparisons` about `points`, not corrected yet."""
    rows: list[Row] = []
    cells: list[Columns] = []
    for point in points:
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
    binary = [row["metric"] in experiment.binary_metrics for row in rows]
    found = _differences([_pair(cell) for cell in cells], binary, config)
    some = [i for i, cell in enumerate(cells) if _some_missing(cell)]
    told = [binary[i] for i in some]
    complete = dict(
        zip(some, _differences([_pair(cells[i], True) for i in some], told, config), strict=True)
    )
    return [
        row
        | _compare(cell, difference, complete.get(i, difference), row["higher_is_better"], config)
        | _by_length(cell, row["bin"], config)
        for i, (row, cell, difference) in enumerate(zip(rows, cells, found, strict=True))
    ]


def _differences(
    pairs: list[clustered.Pair], binary: list[bool], config: AnalyzeConfig
) -> list[clustered.Difference]:
    return clustered.paired_differences(pairs, config.confidence, binary=binary)


def _pair(pairs: Columns, answered: bool = False) -> clustered.Pair:
    """Scores here and with the full cache; `answered`: only of what was answered here."""
    here = np.where(pairs["missing"], np.nan, pairs["score"]) if answered else pairs["score"]
    return here, pairs["score_full"], pairs["cluster"]


def _some_missing(pairs: Columns) -> bool:
    return bool((pairs["missing"] & ~np.isnan(pairs["score_full"])).any())


def _compare(
    pairs: Columns,
    found: clustered.Difference,
    complete: clustered.Difference,
    higher: bool,
    config: AnalyzeConfig,
) -> Row:
    """Lost is what got worse: lower scores, or higher ones unless `higher` is better.

    The difference is that of the scores, whichever way is better. A missing answer counts as wrong
    here; where the full cache has none there is nothing to lose, and the pair is left out.
    """
    ours, full, failed = pairs["score"], pairs["score_full"], pairs["failed"]
    compared, answered = ~np.isnan(full), ~pairs["missing"]
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
