"""samples: seeds as samples of one configuration, with prompts as the units that vary."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.correction import SHARED, correct
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.clustered import means, paired_differences
from kvx.stats.multiplicity import holm
from kvx.stats.samples import pass_at_k, variance_components

log = logging.getLogger(__name__)
TOGETHER = 25  # configurations that are computed at once
Key = tuple[Any, ...]
Goodness = NDArray[np.float64]


def samples(experiment: Experiment, panels: Iterable[Panel], config: AnalyzeConfig) -> list[Row]:
    """One row per configuration with several seeds, bin and k; bin -1 is all bins together.

    `pass_at_k` is the mean over samples at k = 1, and for right/wrong metrics the chance that one
    of k is right. Intervals are over the clusters of prompts; a missing answer counts as wrong.
    `difference` is that to the full cache with the same k and number of samples, if there is one,
    without the prompts of which one of its samples is missing: there is nothing to lose. `p_holm`
    is corrected within `analyze.family` at one k, all bins together apart from the single bins.
    """
    rows = [row for panel in panels for row in _rows(experiment, panel, config)]
    _say_unknown(rows, config)
    family = [name for name in SHARED[config.family] if name != "seed"]
    for overall in (True, False):
        tested = [row for row in rows if (row["bin"] == ALL_BINS) == overall]
        correct(tested, "p", "p_holm", holm, ("k", *family))
    return rows


def _say_unknown(rows: list[Row], config: AnalyzeConfig) -> None:
    """Warn of values of `analyze.pass_at` that are in no row."""
    missing = sorted(set(config.pass_at) - {row["k"] for row in rows})
    if not missing:
        return
    most = max((row["n_samples"] for row in rows), default=1)
    why = (
        f"needs as many seeds as samples, and no point has more than {most}"
        if missing[0] > most
        else "is known of right/wrong scores only"
    )
    log.warning("analyze.pass_at=%s: left out, pass@%d %s", missing, missing[0], why)


def _rows(experiment: Experiment, panel: Panel, config: AnalyzeConfig) -> Iterator[Row]:
    seeds: dict[Key, list[int]] = {}
    full: dict[Key, Key] = {}
    for place, point in enumerate(panel.points):
        series = experiment.series_columns(point)
        key = tuple(series[n] for n in ("press", "controller", "budget_kind", "budget_asked"))
        seeds.setdefault(key, []).append(place)
        twin = experiment.full_cache(point)
        if twin is not None and twin.id != point.id:
            other = experiment.series_columns(twin)
            full[key] = tuple(
                other[n] for n in ("press", "controller", "budget_kind", "budget_asked")
            )
    several = [(key, at) for key, at in seeds.items() if len(at) > 1]
    for start in range(0, len(several), TOGETHER):
        cells = [
            cell
            for key, at in several[start : start + TOGETHER]
            for cell in _cells(experiment, panel, at, seeds.get(full.get(key, ()), []), config)
        ]
        yield from _tested(cells, config)


@dataclass(frozen=True)
class _Cell:
    """What is known of the prompts of one configuration, bin and k: `ours` and `theirs` [prompts],
    the latter with the full cache, if it has as many samples.
    """

    row: Row
    ours: Goodness
    theirs: Goodness | None
    clusters: NDArray[np.int64]


def _cells(
    experiment: Experiment, panel: Panel, at: list[int], full: list[int], config: AnalyzeConfig
) -> Iterator[_Cell]:
    twins = _known(panel, full) if len(full) == len(at) else None
    about = _about(experiment, panel, at)
    for index, cell in panel.cells():
        here = panel.goodness[at][:, cell].T.astype(float)
        clusters = panel.clusters[cell]
        common = {
            **about, "bin": index, "n_prompts": len(here),
            "n_missing": int(panel.missing[at][:, cell].sum()), **_spread(here),
        }  # fmt: skip
        for k in _ks(len(at), panel.binary, config):
            theirs = None if twins is None else _passed(twins[cell], k)
            yield _Cell({**common, "k": k}, _passed(here, k), theirs, clusters)


def _tested(cells: list[_Cell], config: AnalyzeConfig) -> Iterator[Row]:
    found = means([(cell.ours, cell.clusters) for cell in cells], config.confidence)
    pairs = [(c.ours, c.theirs, c.clusters) for c in cells if c.theirs is not None]
    differences = iter(paired_differences(pairs, config.confidence))
    for cell, mean in zip(cells, found, strict=True):
        row = {
            **cell.row, "n_clusters": mean.n_clusters, "pass_at_k": null(mean.mean),
            "ci_low": null(mean.interval.low), "ci_high": null(mean.interval.high),
            "ci_method": mean.method,
        }  # fmt: skip
        if cell.theirs is not None:
            d = next(differences)
            row |= {
                "n_missing_full": len(cell.theirs) - d.n_pairs, "twin_pass_at_k": null(d.mean_b),
                "difference": null(d.difference), "difference_ci_low": null(d.interval.low),
                "difference_ci_high": null(d.interval.high), "p": null(d.p),
            }  # fmt: skip
        yield row


def _known(panel: Panel, full: list[int]) -> Goodness:
    """Scores of full-cache points [prompts, samples]; nan where one of a prompt's is missing."""
    scores = panel.goodness[full].T.astype(float)
    scores[panel.missing[full].any(axis=0)] = np.nan
    return scores


def _about(experiment: Experiment, panel: Panel, at: list[int]) -> Row:
    """Columns of a configuration; `point_ids` are those of its seeds."""
    series = experiment.series_columns(panel.points[at[0]])
    names = (
        "variant_id", "variant", "model", "dataset", "press", "controller", "budget_kind",
        "budget_label", "budget_asked", "budget",
    )  # fmt: skip
    decoding = panel.points[at[0]].info["config"]["decoding"]
    return {
        **{name: series[name] for name in names}, "metric": panel.metric,
        "temperature": float(decoding["temperature"]), "n_samples": len(at),
        "point_ids": [panel.points[row].id for row in at],
    }  # fmt: skip


def _spread(scores: Goodness) -> Row:
    found = variance_components(scores)
    return {
        "variance_between": null(found.between), "variance_within": null(found.within),
        "alike": null(found.alike),
    }  # fmt: skip


def _ks(n_samples: int, binary: bool, config: AnalyzeConfig) -> list[int]:
    """The k of pass@k: those asked for, else 1, 2, 4, … and all; of graded scores only 1."""
    if not binary:
        return [1]
    asked = config.pass_at or [*(2**i for i in range(n_samples.bit_length())), n_samples]
    return sorted({k for k in asked if k <= n_samples} | {1})


def _passed(scores: Goodness, k: int) -> Goodness:
    """Of each prompt [prompts, samples] the mean over samples, or pass@k; nan where one is nan."""
    if k == 1:
        average: Goodness = scores.mean(axis=1)
        return average
    passed = np.full(len(scores), np.nan)
    known = ~np.isnan(scores).any(axis=1)
    passed[known] = pass_at_k(scores[known].sum(axis=1), scores.shape[1], k)
    return passed
