"""press_pairs: press against press at equal measured budget, example by example."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.correction import correct
from kvx.analyze.equal_budgets import Measured, measured, same_budget
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel
from kvx.config.analyze import AnalyzeConfig, Family
from kvx.stats.clustered import Difference, paired_differences
from kvx.stats.multiplicity import benjamini_hochberg, holm

TOGETHER = 25  # pairs that are tested at once
# columns in which the rows of a family agree, see `analyze.family`
SHARED: dict[Family, tuple[str, ...]] = {
    Family.experiment: ("overall",),
    Family.variant: ("variant_id", "overall"),
    Family.curve: ("variant_id", "press_a", "press_b", "seed", "budget_by", "overall"),
}


def press_pairs(
    experiment: Experiment, panels: Iterable[Panel], stats: list[Row], config: AnalyzeConfig
) -> list[Row]:
    """One row per pair of points and bin; bin -1 is all bins together.

    Differences are of scores, a - b: positive where `press_a` is better. A missing answer counts as
    wrong. `p_holm` is corrected
    within `analyze.family` (a curve: two presses' budgets), all bins together apart from the single
    bins; `p_bh` over all pairs of the experiment, in the same two parts, for exploration.
    """
    rows: list[Row] = []
    for panel in panels:
        about = measured(stats, [point.id for point in panel.points])
        info = experiment.series_columns(panel.points[0])
        named = {n: info[n] for n in ("variant_id", "variant", "model", "dataset")}
        pairs = same_budget(about, config.budget_tolerance)
        rows += [named | row for row in _rows(panel, list(pairs), config)]
    for row in rows:
        row["overall"] = row["bin"] == ALL_BINS
    correct(rows, "p", "p_holm", holm, SHARED[config.family])
    correct(rows, "p", "p_bh", benjamini_hochberg, ("overall",))
    for row in rows:
        del row["overall"]
    return rows


def _rows(
    panel: Panel, pairs: list[tuple[str, Measured, Measured]], config: AnalyzeConfig
) -> Iterator[Row]:
    cells = [(index, cell, panel.clusters[cell]) for index, cell in panel.cells()]
    for start in range(0, len(pairs), TOGETHER):
        some = pairs[start : start + TOGETHER]
        scores = [panel.goodness[_at(panel, a, b)].astype(float) for _, a, b in some]
        found = paired_differences(
            [(*side[:, cell], clusters) for side in scores for _, cell, clusters in cells],
            config.confidence,
            binary=panel.binary,
        )
        for number, (kind, a, b) in enumerate(some):
            same = found[number * len(cells) : (number + 1) * len(cells)]
            about = _about(panel, kind, a, b)
            missing: NDArray[np.bool_] = np.any(panel.missing[_at(panel, a, b)], axis=0)
            for (index, cell, _), d in zip(cells, same, strict=True):
                yield about | _columns(d, missing[cell]) | {"bin": index}


def _at(panel: Panel, a: Measured, b: Measured) -> list[int]:
    return [panel.row(point.point_id) for point in (a, b)]


def _about(panel: Panel, kind: str, a: Measured, b: Measured) -> Row:
    return {
        "seed": a.seed, "budget_by": kind, "point_a": a.point_id, "point_b": b.point_id,
        "press_a": a.press, "press_b": b.press, "label_a": a.label, "label_b": b.label,
        "budget_a": a.share, "budget_b": b.share, "kv_bytes_a": a.kv_bytes,
        "kv_bytes_b": b.kv_bytes, "n_degenerate": a.n_degenerate + b.n_degenerate,
        "metric": panel.metric, "higher_is_better": panel.higher_is_better,
    }  # fmt: skip


def _columns(d: Difference, missing: NDArray[np.bool_]) -> Row:
    return {
        "n_pairs": d.n_pairs, "n_clusters": d.n_clusters, "n_missing": int(missing.sum()),
        "mean_a": null(d.mean_a), "mean_b": null(d.mean_b), "difference": null(d.difference),
        "ci_low": null(d.interval.low), "ci_high": null(d.interval.high),
        "n_a_better": d.n_won, "n_b_better": d.n_lost, "p": null(d.p), "method": d.method,
    }  # fmt: skip
