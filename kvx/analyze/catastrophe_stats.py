"""catastrophe_stats: how often generations derail, and how much of that compression caused."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS, by_bin, is_full
from kvx.analyze.correction import correct
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.scoring.catastrophes import KINDS, pair
from kvx.stats import clustered
from kvx.stats.multiplicity import benjamini_hochberg
from kvx.store.catalog import PointRecord

Flags = NDArray[np.float64]  # 1 yes, 0 no, nan not known


@dataclass(frozen=True)
class _Cell:
    """One kind of one point in one bin, an item a response: here, with the full cache, clusters."""

    here: Flags
    full: Flags
    clusters: NDArray[np.int64]


def judged(experiment: Experiment) -> pd.DataFrame:
    """Every response with each of `KINDS` and `twin_<kind>` as flags, nan where not known.

    What a response shows alone (`looping`, `non_termination`) is known without a full cache; `any`
    then goes by these two.
    """
    seen = experiment.catastrophes
    beside = {p.id: f.id for p in experiment.points if (f := experiment.full_cache(p)) is not None}
    full_id = seen["point_id"].map(beside).astype(object)
    compared = seen.assign(twin_point_id=full_id)[full_id.notna() & (full_id != seen["point_id"])]
    names = [name for kind in KINDS for name in (kind, f"twin_{kind}")]
    paired = pair(compared, seen).set_index("request_id")[names].astype("Float64")
    flags = paired.reindex(seen["request_id"]).astype(float).set_axis(seen.index)
    flags["looping"] = seen["looping"].astype(float)
    flags["non_termination"] = seen["cap_reached"].astype(float)
    flags["any"] = flags["any"].fillna(flags[["looping", "non_termination"]].max(axis=1))
    degenerate = experiment.requests.set_index("request_id")["degenerate"]
    clusters, _ = pd.factorize(seen["cluster"])
    about = seen[["request_id", "point_id", "bin"]]
    return about.assign(cluster=clusters, degenerate=about["request_id"].map(degenerate), **flags)


def catastrophe_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point, bin and kind; bin -1 is all bins together.

    Rates are over the responses of which the kind is known, all that concerns the full cache over
    pairs.
    """
    return corrected(rates(experiment, config, experiment.points))


def corrected(rows: list[Row]) -> list[Row]:
    """Adds `excess_p_bh` to `rates` of all points."""
    tested = [row for row in rows if not is_full(row)]
    for overall in (True, False):
        family = [row for row in tested if (row["bin"] == ALL_BINS) == overall]
        correct(family, "excess_p", "excess_p_bh", benjamini_hochberg, ())
    return rows


def rates(
    experiment: Experiment, config: AnalyzeConfig, points: Iterable[PointRecord]
) -> list[Row]:
    """The rows of `catastrophe_stats` about `points`, not corrected yet."""
    rows: list[Row] = []
    cells: list[_Cell] = []
    for point in points:
        full = experiment.full_cache(point)
        about = {
            **experiment.series_columns(point),
            "twin_point_id": None if full is None or full.id == point.id else full.id,
        }
        for index, columns in by_bin(experiment.of("flags", point.id)):
            here = {**about, "bin": index, "n_degenerate": int(columns["degenerate"].sum())}
            for kind in KINDS:
                rows.append({**here, "kind": kind})
                cells.append(_Cell(columns[kind], columns[f"twin_{kind}"], columns["cluster"]))
    alone = [(cell.here, cell.clusters) for cell in cells]
    pairs = [(cell.here, cell.full, cell.clusters) for cell in cells]
    means = clustered.means(alone, config.confidence, binary=True)
    differences = clustered.paired_differences(pairs, config.confidence, binary=True)
    return [
        row | _rate(mean) | _excess(difference)
        for row, mean, difference in zip(rows, means, differences, strict=True)
    ]


def _rate(found: clustered.Mean) -> Row:
    """Over the responses of which the kind is known."""
    return {
        "n": found.n, "n_clusters": found.n_clusters, "rate": null(found.mean),
        "ci_low": null(found.interval.low), "ci_high": null(found.interval.high),
        "ci_method": found.method if found.n else None,
    }  # fmt: skip


def _excess(found: clustered.Difference) -> Row:
    """Over the pairs of which both sides are known; a catastrophe more is a pair won."""
    row: Row = {"n_pairs": found.n_pairs, "n_excess": found.n_won, "n_cured": found.n_lost}
    if not found.n_pairs:
        return row
    return row | {
        "twin_rate": found.mean_b, "excess": found.difference,
        "excess_ci_low": null(found.interval.low), "excess_ci_high": null(found.interval.high),
        "excess_ci_method": found.method, "excess_p": null(found.p),
        "mcnemar_p": null(found.p) if found.exact else None,
    }  # fmt: skip
