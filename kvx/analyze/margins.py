"""equivalence: whether a point loses at most a margin, and what its number of prompts can tell."""

import math
from collections.abc import Iterable

import numpy as np

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.correction import SHARED, correct
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.equivalence import NonInferiority, non_inferiority
from kvx.stats.multiplicity import holm
from kvx.stats.power import detectable_difference, pairs_for_margin
from kvx.store.catalog import PointRecord


def equivalence(
    experiment: Experiment, panels: Iterable[Panel], config: AnalyzeConfig
) -> list[Row]:
    """One row per compressed point and bin; bin -1 is all bins together.

    `loss` is that against the full cache: a missing answer counts as wrong, a pair without the full
    cache's is left out. `loss_upper` is its one-sided bound, `p` that of "it loses `margin` or
    more". `p_holm` is corrected within `analyze.family`, all bins together apart from the single
    bins. `holds` says that it is at most 1 - confidence.
    """
    rows: list[Row] = []
    for panel in panels:
        for point in panel.points:
            full = experiment.full_cache(point)
            if full is not None and full.id != point.id and not point.is_full_cache:
                rows += _rows(experiment, panel, point, full, config)
    for overall in (True, False):
        tested = [row for row in rows if (row["bin"] == ALL_BINS) == overall]
        correct(tested, "p", "p_holm", holm, SHARED[config.family])
    for row in rows:
        p = row["p_holm"]
        row["holds"] = None if p is None else bool(p <= 1 - config.confidence)
    return rows


def _rows(
    experiment: Experiment,
    panel: Panel,
    point: PointRecord,
    full: PointRecord,
    config: AnalyzeConfig,
) -> list[Row]:
    about = {
        **experiment.series_columns(point), "twin_point_id": full.id, "metric": panel.metric,
        "higher_is_better": panel.higher_is_better, "margin": config.margin,
    }  # fmt: skip
    at = [panel.row(point.id), panel.row(full.id)]
    rows = []
    for index, cell in panel.cells():
        here, there = panel.goodness[at][:, cell].astype(float)
        lost, unknown = panel.missing[at][:, cell]
        there[unknown] = np.nan  # nothing to lose
        clusters = panel.clusters[cell]
        found = non_inferiority(here, there, clusters, config.margin, config.confidence)
        apart = here[~unknown] - there[~unknown]
        spread = float((apart**2).mean()) if apart.size else 0.0
        rows.append(
            {
                **about, "bin": index, "n_pairs": found.n_pairs, "n_clusters": found.n_clusters,
                "n_missing": int((lost & ~unknown).sum()), "n_missing_full": int(unknown.sum()),
                "loss": null(found.loss), "loss_upper": null(found.upper), "p": null(found.p),
                "method": found.method, "discordance": spread,
                **_reach(spread, found, config),
            }
        )  # fmt: skip
    return rows


def _reach(discordance: float, found: NonInferiority, config: AnalyzeConfig) -> Row:
    """What so many pairs can tell at the discordance that was seen; null at 0 or 1.

    Pairs of a cluster count as the independent ones that tell as much.
    """
    if not 0 < discordance < 1 or math.isnan(found.worth):
        return {"detectable": None, "n_for_margin": None}
    needed = pairs_for_margin(config.margin, discordance, config.confidence)
    needed_pairs: int | None = math.ceil(needed * found.n_pairs / found.worth)
    if found.loss >= config.margin:
        needed_pairs = None  # no number of prompts would show it
    return {
        "detectable": detectable_difference(found.worth, discordance, config.confidence),
        "n_for_margin": needed_pairs,
    }
