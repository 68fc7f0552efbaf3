"""Costs and benefits of a live controller: one guarded point's figures, by prompt.

An *excess* catastrophe is one that the full cache of the same prompt does not show. One is
*prevented* if the point without the controller shows it and the guarded response does not; it is
*caused* the other way round. A *false intervention* is one where there was nothing to prevent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.learning.ranking import Estimate, Resampler
from kvx.scoring.catastrophes import CATASTROPHES
from kvx.stats import clustered
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]

ANY, INSTANT = "any", "instant"
# what is prevented and caused; any: one of the three; instant: a loop from the first tokens on
KINDS = (ANY, *CATASTROPHES, INSTANT)
BOOTSTRAP = "cluster_bootstrap"  # of ratios and quantiles
PAUSES = (50, 99)


@dataclass(frozen=True)
class Figure:
    """One figure: of `n` responses (pauses: of `n` of them), `count` of which it is a share."""

    name: str
    kind: str | None
    n: int
    n_clusters: int
    count: int | None
    value: float
    interval: Interval
    method: str | None


@dataclass(frozen=True)
class Use:
    """Resources used by the responses [n] of a guarded point; nan where not measured.

    Budgets are shares of the prompt's `entries`, `mean_budget` over all `decoded` steps;
    `intervened`, `decoded`, `output`, `dropped` (taken back) and `recomputed` count. `clusters` are
    numbers of prompts from 0. The controller waited `pause_ms` [events] in responses to
    `pause_clusters`.
    """

    clusters: Codes
    intervened: Floats
    mean_budget: Floats
    nominal_budget: Floats
    entries: Floats
    decoded: Floats
    output: Floats
    dropped: Floats
    recomputed: Floats
    host_bytes: Floats
    pause_ms: Floats
    pause_clusters: Codes


@dataclass(frozen=True)
class Pairs:
    """Responses [n] of a guarded point beside those of the same point without a controller.

    `here` (guarded) and `there` hold each of `KINDS` as flags: whether it is excess, nan where that
    is not known. Of `instant`, `here` says whether there still is an excess loop. `derailed` says
    whether the response without a controller shows any catastrophe, excess or not. Scores may be
    nan.
    """

    clusters: Codes
    intervened: Floats
    here: Mapping[str, Floats]
    there: Mapping[str, Floats]
    derailed: Floats
    score_here: Floats
    score_there: Floats


def excess(flag: ArrayLike, of_twin: ArrayLike) -> Floats:
    """Whether it is so here and not in the full cache: 1, 0, or nan where one is unknown."""
    here, full = np.asarray(flag, float), np.asarray(of_twin, float)
    return np.where(np.isnan(here + full), np.nan, (here == 1) & (full == 0))


def any_of(flags: Mapping[str, Floats]) -> Floats:
    """Whether any of the three catastrophes is excess, as far as they are known."""
    found = flags[CATASTROPHES[0]]
    for kind in CATASTROPHES[1:]:
        found = np.fmax(found, flags[kind])
    return found


def device_budget(use: Use) -> tuple[float, int]:
    """`mean_budget` of `cost_figures` and its `n`; nan of none."""
    known = ~np.isnan(use.mean_budget)
    if not known.any():
        return float("nan"), 0
    weight = _steps(use)[known]
    return float((use.mean_budget[known] * weight).sum() / weight.sum()), int(known.sum())


def _steps(use: Use) -> Floats:
    """The weight of each response [n] in a mean over all decoded steps and prompt entries."""
    return use.decoded * use.entries


def cost_figures(use: Use, by: Resampler) -> list[Figure]:
    """Interventions, device budget, saving, tokens decoded again, host bytes and pauses."""
    known = ~np.isnan(use.mean_budget)
    clusters = use.clusters[known]

    def column(name: str) -> Floats:
        values: Floats = getattr(use, name)[known]
        return values

    weight = _steps(use)[known]
    ones = np.ones(len(clusters))
    figures = [_share("interventions", None, column("intervened") > 0, clusters, by)]
    for name, top, bottom, unit in (
        ("mean_budget", column("mean_budget") * weight, weight, 1.0),
        (
            "saving_kept",
            (1 - column("mean_budget")) * weight,
            (1 - column("nominal_budget")) * weight,
            1.0,
        ),
        ("decoded_twice_per_1000", column("dropped"), column("output"), 1000.0),
        ("recomputed_per_1000", column("recomputed"), column("output"), 1000.0),
        ("host_bytes", column("host_bytes"), ones, 1.0),
    ):
        found = by.ratio(top, bottom, clusters, unit)
        figures.append(_resampled(name, len(clusters), None, found, clusters))
    for q in PAUSES:
        found = by.quantile(use.pause_ms, use.pause_clusters, q / 100)
        name = f"pause_p{q}_ms"
        figures.append(_resampled(name, len(use.pause_ms), None, found, use.pause_clusters))
    return figures


def effect_figures(pairs: Pairs, by: Resampler) -> list[Figure]:
    """Catastrophes prevented and caused, by kind; answers lost and won; false interventions."""
    return [
        *(figure for kind in KINDS for figure in _of_kind(kind, pairs, by)),
        *_answers(pairs, by),
        *_false_interventions(pairs, by),
    ]


def _of_kind(kind: str, pairs: Pairs, by: Resampler) -> Iterator[Figure]:
    here, there = pairs.here[kind], pairs.there[kind]
    known = ~np.isnan(here + there)
    now, before, clusters = here[known] == 1, there[known] == 1, pairs.clusters[known]
    yield _share("prevented", kind, ~now[before], clusters[before], by)
    if kind == INSTANT:
        return
    yield _share("caused", kind, now[~before], clusters[~before], by)
    yield _share("excess", kind, now, clusters, by)
    yield _share("excess_unguarded", kind, before, clusters, by)
    change = here[known], there[known]
    yield _difference("excess_difference", kind, *change, clusters, by)


def _answers(pairs: Pairs, by: Resampler) -> Iterator[Figure]:
    here, there = pairs.score_here, pairs.score_there
    known = ~np.isnan(here + there)
    now, before, clusters = here[known], there[known], pairs.clusters[known]
    yield _share("answers_lost", None, now < before, clusters, by)
    yield _share("answers_won", None, now > before, clusters, by)
    yield _difference("score_difference", None, now, before, clusters, by)


def _false_interventions(pairs: Pairs, by: Resampler) -> Iterator[Figure]:
    """Masks: compression caused nothing; nothing is wrong without a controller."""
    for name, nothing in (
        ("false_interventions", pairs.there[ANY] == 0),
        ("false_interventions_sound", (pairs.there[ANY] == 0) & (pairs.derailed == 0)),
    ):
        sound = nothing & ~np.isnan(pairs.intervened)
        had = pairs.intervened[sound] > 0
        yield _share(name, None, had, pairs.clusters[sound], by)


def _share(name: str, kind: str | None, had: Bools, clusters: Codes, by: Resampler) -> Figure:
    """As `clustered.mean` of a 0/1 score: exact for independent responses."""
    if not len(had):
        return _unknown(name, kind, 0)
    found = clustered.mean(had.astype(float), clusters, by.confidence, binary=True)
    return Figure(
        name, kind, found.n, found.n_clusters, int(had.sum()), found.mean, found.interval,
        found.method,
    )  # fmt: skip


def _difference(
    name: str, kind: str | None, now: Floats, before: Floats, clusters: Codes, by: Resampler
) -> Figure:
    """Of two paired scores in [0, 1], as `clustered.paired_difference`."""
    if not len(now):
        return _unknown(name, kind, None)
    found = clustered.paired_difference(now, before, clusters, by.confidence)
    return Figure(
        name, kind, found.n_pairs, found.n_clusters, None, found.difference, found.interval,
        found.method,
    )  # fmt: skip


def _resampled(name: str, n: int, kind: str | None, found: Estimate, clusters: Any) -> Figure:
    """A bootstrap in which all resamples agree has no width: it cannot say how sure it is."""
    if not n or np.isnan(found.value):
        return _unknown(name, kind, None)
    interval = found.interval
    if interval.low == interval.high:
        interval = UNKNOWN_INTERVAL
    return Figure(name, kind, n, _prompts(clusters), None, found.value, interval, BOOTSTRAP)


def _unknown(name: str, kind: str | None, count: int | None) -> Figure:
    return Figure(name, kind, 0, 0, count, float("nan"), UNKNOWN_INTERVAL, None)


def _prompts(clusters: Codes) -> int:
    return len(np.unique(clusters))
