"""press_pairs: press against press at equal measured budget, example by example."""

import numpy as np

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.equal_budgets import Measured, measured, same_budget
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel, panels
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.clustered import paired_difference
from kvx.stats.multiplicity import benjamini_hochberg, holm

Family = tuple[str, str, bool]


def press_pairs(experiment: Experiment, stats: list[Row], config: AnalyzeConfig) -> list[Row]:
    """One row per pair of points and bin; bin -1 is all bins together.

    Differences are of how good the answers are, a - b: positive where `press_a` is better, also
    for metrics of which lower is better. A missing answer counts as wrong. `p_holm` is corrected
    within a variant and kind of budget, all bins together apart from the single bins; `p_bh` over
    all rows of the variant, for exploration.
    """
    rows: list[Row] = []
    for panel in panels(experiment):
        about = measured(stats, [point.id for point in panel.points])
        found = [
            row
            for kind, a, b in same_budget(about, config.budget_tolerance)
            for row in _rows(panel, kind, a, b, config)
        ]
        info = experiment.series_columns(panel.points[0])
        named = {n: info[n] for n in ("variant_id", "variant", "model", "dataset")}
        explored = benjamini_hochberg([_nan(row["p"]) for row in found])
        rows += [named | row | {"p_bh": null(p)} for row, p in zip(found, explored, strict=True)]
    families: dict[Family, list[Row]] = {}
    for row in rows:
        key = (row["variant_id"], row["budget_by"], row["bin"] == ALL_BINS)
        families.setdefault(key, []).append(row)
    for family in families.values():
        corrected = holm([_nan(row["p"]) for row in family])
        for row, p in zip(family, corrected, strict=True):
            row |= {"p_holm": null(p), "n_family": len(family)}
    return rows


def _rows(panel: Panel, kind: str, a: Measured, b: Measured, config: AnalyzeConfig) -> list[Row]:
    at = [panel.row(point.point_id) for point in (a, b)]
    about = {
        "seed": a.seed, "budget_by": kind, "point_a": a.point_id, "point_b": b.point_id,
        "press_a": a.press, "press_b": b.press, "label_a": a.label, "label_b": b.label,
        "budget_a": a.share, "budget_b": b.share, "kv_bytes_a": a.kv_bytes,
        "kv_bytes_b": b.kv_bytes, "n_degenerate": a.n_degenerate + b.n_degenerate,
        "metric": panel.metric, "higher_is_better": panel.higher_is_better,
    }  # fmt: skip
    rows = []
    for index, cell in panel.cells():
        ours, theirs = panel.goodness[at][:, cell]
        d = paired_difference(
            ours, theirs, panel.clusters[cell].tolist(), config.confidence, binary=panel.binary
        )
        rows.append(
            {
                **about, "bin": index, "n_pairs": d.n_pairs, "n_clusters": d.n_clusters,
                "n_missing": int(panel.missing[at][:, cell].any(axis=0).sum()),
                "mean_a": null(d.mean_a), "mean_b": null(d.mean_b),
                "difference": null(d.difference), "ci_low": null(d.interval.low),
                "ci_high": null(d.interval.high), "n_a_better": d.n_won, "n_b_better": d.n_lost,
                "p": null(d.p), "method": d.method,
            }
        )  # fmt: skip
    return rows


def _nan(p: float | None) -> float:
    return np.nan if p is None else p
