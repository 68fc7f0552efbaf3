"""goodput: right answers for the memory, the tokens and the seconds that they took."""

from collections.abc import Iterable, Iterator
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
from kvx.stats.clustered import means, paired_differences
from kvx.stats.multiplicity import holm
from kvx.stats.ratios import Ratio, ratios_of_sums
from kvx.store.catalog import PointRecord

GIB = 2**30


def goodput(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point and bin; bin -1 is all bins together.

    A right answer counts by its primary score if it ended by itself; one that is missing or was cut
    at the token limit counts nothing. Higher is better in every primary score.
    `inflation_p_holm` is corrected within `analyze.family`, all bins together apart from
    the single bins.
    """
    return corrected(credits(experiment, config, experiment.points), config)


def corrected(rows: list[Row], config: AnalyzeConfig) -> list[Row]:
    """Adds `inflation_p_holm` to `credits` of all points."""
    for overall in (True, False):
        tested = [row for row in rows if (row["bin"] == ALL_BINS) == overall]
        correct(tested, "inflation_p", "inflation_p_holm", holm, SHARED[config.family])
    return rows


def credits(
    experiment: Experiment, config: AnalyzeConfig, points: Iterable[PointRecord]
) -> list[Row]:
    """The rows of `goodput` about `points`, not corrected yet."""
    rows: list[Row] = []
    cells: list[Columns] = []
    for point in points:
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
        cut = list(by_bin({**own, "credit": _credit(own)}))
        for index, cell in cut:
            inside = [c for i, c in cut if i != ALL_BINS and index in (i, ALL_BINS)]
            rows.append({**about, "bin": index, "correct_per_s": _per_second(inside, seconds)})
            cells.append(cell)
    return [row | more for row, more in zip(rows, _columns(cells, config), strict=True)]


def _primary(experiment: Experiment, point_id: str) -> Columns:
    columns = experiment.of("judged", point_id)
    return take(columns, columns["primary"].astype(bool))


def _credit(own: Columns) -> NDArray[np.float64]:
    ended = ~own["missing"].astype(bool) & (own["kind"] != FailureType.TRUNCATED)
    return np.where(ended, own["score"].astype(float), 0.0)


def _columns(cells: list[Columns], config: AnalyzeConfig) -> Iterator[Row]:
    """Of each cell of a point and bin."""
    clusters = [cell["cluster"] for cell in cells]
    credit = [cell["credit"] for cell in cells]
    # no response: no tokens
    tokens = [np.nan_to_num(cell["output_tokens"].astype(float)) for cell in cells]
    gib = [_gib(cell["kv_bytes_physical"]) for cell in cells]
    right = means(list(zip(credit, clusters, strict=True)), config.confidence)
    compared = [i for i, cell in enumerate(cells) if "tokens_full" in cell]
    longer = [
        (
            cells[i]["output_tokens"].astype(float),
            cells[i]["tokens_full"].astype(float),
            clusters[i],
        )
        for i in compared
    ]
    ratios = ratios_of_sums(
        [
            *zip(credit, gib, clusters, strict=True),
            *zip(tokens, credit, clusters, strict=True),
            *longer,
        ],
        config.confidence,
    )
    differences = paired_differences(longer, config.confidence, bounds=None)
    inflation = dict(
        zip(compared, zip(ratios[2 * len(cells) :], differences, strict=True), strict=True)
    )
    for i, (cell, mean) in enumerate(zip(cells, right, strict=True)):
        row: Row = {
            "n": len(cell["credit"]), "n_clusters": mean.n_clusters,
            "correct_ended": null(mean.mean),
            "correct_ended_ci_low": null(mean.interval.low),
            "correct_ended_ci_high": null(mean.interval.high),
            "n_inflation": 0, "inflation": None, "inflation_p": None,
            **_ratio("correct_per_gib", ratios[i]),
            **_ratio("tokens_per_correct", ratios[len(cells) + i]),
        }  # fmt: skip
        if i in inflation:
            ratio, difference = inflation[i]
            row |= {
                **_ratio("inflation", ratio), "n_inflation": ratio.n,
                "inflation_p": null(difference.p),
            }  # fmt: skip
        yield row


def _gib(kv_bytes: NDArray[Any]) -> NDArray[np.float64]:
    """Unknown for all where it is for one: without those of wrong answers a point looks cheap."""
    gib = kv_bytes.astype(float) / GIB
    return np.full(gib.shape, np.nan) if np.isnan(gib).any() else gib


def _ratio(name: str, ratio: Ratio) -> Row:
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
