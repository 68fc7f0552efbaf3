"""goodput: right answers for the memory, the tokens and the seconds that they took."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS, Columns, by_bin, take
from kvx.analyze.correction import SHARED, correct
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.scoring.failures import FailureType
from kvx.stats.clustered import mean, paired_difference
from kvx.stats.multiplicity import holm
from kvx.stats.ratios import Ratio, ratio_of_sums

GIB = 2**30


def goodput(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point and bin; bin -1 is all bins together.

    A right answer counts by its primary score if it ended by itself; one that is missing or was cut
    at the token limit counts nothing. Higher is better in every primary score.
    `inflation_p_holm` is corrected within `analyze.family`, all bins together apart from
    the single bins.
    """
    rows = list(_rows(experiment, config))
    for overall in (True, False):
        tested = [row for row in rows if (row["bin"] == ALL_BINS) == overall]
        correct(tested, "inflation_p", "inflation_p_holm", holm, SHARED[config.family])
    return rows


def _rows(experiment: Experiment, config: AnalyzeConfig) -> Iterator[Row]:
    for point in experiment.points:
        full = experiment.full_cache(point)
        own = _primary(experiment, point.id)
        theirs = None if full is None or full.id == point.id else _primary(experiment, full.id)
        if theirs is not None:
            own = {**own, "tokens_full": theirs["output_tokens"]}
        if point.is_guarded:  # what is recorded are the bytes before the controller's first step
            own = {**own, "kv_bytes_physical": np.full(len(own["pair"]), np.nan)}
        seconds = _seconds(experiment, point.id)
        about = {
            **experiment.series_columns(point), "metric": str(own["metric"][0]),
            "twin_point_id": None if theirs is None or full is None else full.id,
        }  # fmt: skip
        cells = list(by_bin({**own, "credit": _credit(own)}))
        for index, cell in cells:
            inside = [c for i, c in cells if i != ALL_BINS and index in (i, ALL_BINS)]
            row = {**about, "bin": index, **_cell(cell, config)}
            yield row | {"correct_per_s": _per_second(inside, seconds)}


def _primary(experiment: Experiment, point_id: str) -> Columns:
    columns = experiment.of("judged", point_id)
    return take(columns, columns["primary"].astype(bool))


def _credit(own: Columns) -> NDArray[np.float64]:
    ended = ~own["missing"].astype(bool) & (own["kind"] != FailureType.TRUNCATED)
    return np.where(ended, own["score"].astype(float), 0.0)


def _cell(cell: Columns, config: AnalyzeConfig) -> Row:
    clusters, credit = cell["cluster"], cell["credit"]
    right = mean(credit, clusters, config.confidence)
    tokens = np.nan_to_num(cell["output_tokens"].astype(float))  # no response: no tokens
    gib = cell["kv_bytes_physical"].astype(float) / GIB
    if np.isnan(gib).any():  # without the bytes of wrong answers a point would look cheap
        gib = np.full(gib.shape, np.nan)
    row: Row = {
        "n": len(credit), "n_clusters": right.n_clusters, "correct_ended": null(right.mean),
        "correct_ended_ci_low": null(right.interval.low),
        "correct_ended_ci_high": null(right.interval.high),
        "n_inflation": 0, "inflation": None, "inflation_p": None,
        **_columns("correct_per_gib", ratio_of_sums(credit, gib, clusters, config.confidence)),
        **_columns(
            "tokens_per_correct", ratio_of_sums(tokens, credit, clusters, config.confidence)
        ),
    }  # fmt: skip
    if "tokens_full" in cell:
        here, full = cell["output_tokens"].astype(float), cell["tokens_full"].astype(float)
        longer = ratio_of_sums(here, full, clusters, config.confidence)
        differ = paired_difference(here, full, clusters, config.confidence, bounds=None)
        row |= {
            **_columns("inflation", longer), "n_inflation": longer.n,
            "inflation_p": null(differ.p),
        }  # fmt: skip
    return row


def _columns(name: str, ratio: Ratio) -> Row:
    return {
        name: null(ratio.value),
        f"{name}_ci_low": null(ratio.interval.low),
        f"{name}_ci_high": null(ratio.interval.high),
    }


def _seconds(experiment: Experiment, point_id: str) -> dict[int, float]:
    """Mean latency of each bin's requests that ran alone."""
    alone = experiment.of("latency", point_id)
    good = take(alone, pd.isna(alone["error_type"]))
    times = good["latency_s"].astype(float)
    return {
        int(b): float(np.nanmean(times[good["bin"] == b]))
        for b in np.unique(good["bin"])
        if not np.isnan(times[good["bin"] == b]).all()
    }


def _per_second(cells: list[Columns], seconds: dict[int, float]) -> float | None:
    """Right answers per second of one request after the other; null unless every bin was timed."""
    timed: list[Any] = [seconds.get(int(cell["bin"][0])) for cell in cells]
    if not cells or None in timed:
        return None
    spent = sum(len(cell["bin"]) * t for cell, t in zip(cells, timed, strict=True))
    return float(sum(cell["credit"].sum() for cell in cells) / spent) if spent > 0 else None
