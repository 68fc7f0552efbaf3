"""equivalence: whether a point loses at most a margin, and what its number of prompts can tell."""

import math

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel, panels
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.equivalence import NonInferiority, non_inferiority
from kvx.stats.multiplicity import holm
from kvx.stats.power import detectable_difference, pairs_for_margin
from kvx.store.catalog import PointRecord


def equivalence(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per compressed point and bin; bin -1 is all bins together.

    `loss` is that against the full cache, missing answers counted as wrong; `loss_upper` its
    one-sided bound, `p` that of "it loses `margin` or more". `p_holm` is corrected within a
    variant: all bins together apart from the single bins. `holds` says that the corrected p is at
    most 1 - confidence.
    """
    rows: list[Row] = []
    for panel in panels(experiment):
        found: list[Row] = []
        for point in panel.points:
            full = experiment.full_cache(point)
            if full is None or full.id == point.id or point.is_full_cache:
                continue
            found += _rows(experiment, panel, point, full, config)
        for family in (
            [row for row in found if row["bin"] == ALL_BINS],
            [row for row in found if row["bin"] != ALL_BINS],
        ):
            known = [math.nan if row["p"] is None else row["p"] for row in family]
            for row, p in zip(family, holm(known), strict=True):
                holds = None if math.isnan(p) else bool(p <= 1 - config.confidence)
                row |= {"p_holm": null(p), "holds": holds, "n_family": len(family)}
        rows += found
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
        clusters = panel.clusters[cell].tolist()
        found = non_inferiority(here, there, clusters, config.margin, config.confidence)
        spread = float(((here - there) ** 2).mean())  # the share that differ, of right and wrong
        rows.append(
            {
                **about, "bin": index, "n_pairs": found.n_pairs, "n_clusters": found.n_clusters,
                "n_missing": int(panel.missing[at][:, cell].any(axis=0).sum()),
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
