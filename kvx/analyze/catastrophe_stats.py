"""catastrophe_stats: how often generations derail, and how much of that compression caused."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import BOOTSTRAP, EXACT, NEWCOMBE, Row, null, unless_constant
from kvx.analyze.columns import by_bin
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.scoring.catastrophes import KINDS, pair
from kvx.stats.bootstrap import bootstrap_means
from kvx.stats.intervals import Interval, clopper_pearson
from kvx.stats.paired import mcnemar_exact, newcombe_interval, paired_differences

Flags = NDArray[np.float64]  # 1 yes, 0 no, nan not known


@dataclass(frozen=True)
class _Cell:
    """One kind of one point in one bin, an item a response: here, with the full cache, clusters."""

    here: Flags
    full: Flags
    clusters: NDArray[np.int64]

    @property
    def independent(self) -> bool:
        """No two of the responses that are known share a cluster."""
        known = self.clusters[~np.isnan(self.here)]
        return len(np.unique(known)) == len(known)

    @property
    def pairs(self) -> tuple[Flags, Flags]:
        """Here and with the full cache, where both are known."""
        both = ~np.isnan(self.here + self.full)
        return self.here[both], self.full[both]


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
    rows: list[Row] = []
    cells: list[_Cell] = []
    for point in experiment.points:
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
    rates, excesses = _rates(cells, config), _excesses(cells, config)
    return [row | rate | excess for row, rate, excess in zip(rows, rates, excesses, strict=True)]


def _rates(cells: list[_Cell], config: AnalyzeConfig) -> list[Row]:
    """Exact for independent responses, else a bootstrap over the clusters they form."""
    shared = [(c.here, c.clusters.tolist()) for c in cells if not c.independent]
    resampled = iter(bootstrap_means(shared, config.n_boot, config.confidence, config.seed))
    rows = []
    for cell in cells:
        known = ~np.isnan(cell.here)
        n, k = int(known.sum()), int(np.nansum(cell.here))
        if cell.independent:
            interval, method = clopper_pearson(k, n, config.confidence), EXACT
        else:
            interval, method = unless_constant(next(resampled).interval), BOOTSTRAP
        rows.append(
            {
                "n": n, "n_clusters": len(np.unique(cell.clusters[known])),
                "rate": k / n if n else None, "ci_low": null(interval.low),
                "ci_high": null(interval.high), "ci_method": method if n else None,
            }
        )  # fmt: skip
    return rows


def _excesses(cells: list[_Cell], config: AnalyzeConfig) -> list[Row]:
    shared = [(c.here, c.full, c.clusters.tolist()) for c in cells if not c.independent]
    resampled = iter(paired_differences(shared, config.n_boot, config.confidence, config.seed))
    rows = []
    for cell in cells:
        found = None if cell.independent else next(resampled)
        here, full = cell.pairs
        n, more, fewer = len(here), int((here > full).sum()), int((here < full).sum())
        row: Row = {"n_pairs": n, "n_excess": more, "n_cured": fewer}
        if n:
            interval, method = _excess_interval(here, full, config), NEWCOMBE
            if found is not None:
                interval, method = unless_constant(found.interval), BOOTSTRAP
            row |= {
                "twin_rate": float(full.mean()), "excess": (more - fewer) / n,
                "excess_ci_low": null(interval.low), "excess_ci_high": null(interval.high),
                "excess_ci_method": method,
                "mcnemar_p": mcnemar_exact(more, fewer) if found is None else None,
            }  # fmt: skip
        rows.append(row)
    return rows


def _excess_interval(here: Flags, full: Flags, config: AnalyzeConfig) -> Interval:
    both, more, fewer = here @ full, (here > full).sum(), (here < full).sum()
    neither = len(here) - both - more - fewer
    return newcombe_interval(int(both), int(fewer), int(more), int(neither), config.confidence)
