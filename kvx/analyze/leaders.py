"""leaders: at each budget the presses by their mean, and which of the ranks are certain."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.correction import correct
from kvx.analyze.equal_budgets import BYTES, FRACTION, TOKENS, Measured, measured, nearest
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel
from kvx.config.analyze import AnalyzeConfig, Family
from kvx.stats.clustered import paired_difference
from kvx.stats.multiplicity import holm

ALL_VARIANTS = "all"
LEADS = "leader"  # the method of the row that the others are compared with
Group = dict[str, list[Measured]]  # press → its point at this budget, of each seed


# columns in which the tests of a family agree, see `analyze.family`
SHARED: dict[Family, tuple[str, ...]] = {
    Family.experiment: (),
    Family.variant: ("scope",),
    Family.curve: ("scope", "budget_by", "budget_label"),
}


@dataclass(frozen=True)
class Contest:
    """Presses at one budget over the same examples.

    `scores` [presses, examples] are means over seeds, each example weighed so that variants count
    alike; `clusters` [examples]. `full` is the full cache's mean, nan without one.
    """

    scope: str
    budget_by: str
    budget_label: str
    presses: list[str]
    metric: str
    scores: NDArray[np.float64]
    clusters: NDArray[np.int64]
    binary: bool
    weighed: bool
    full: float
    missing: list[int]
    members: list[list[Measured]]
    n_variants: int

    @property
    def order(self) -> list[int]:
        """Numbers of the presses by their mean, the best first."""
        means = self.scores.mean(axis=1)
        return sorted(range(len(means)), key=lambda i: (-means[i], self.presses[i]))


def leaders(
    experiment: Experiment, panels: Iterable[Panel], stats: list[Row], config: AnalyzeConfig
) -> list[Row]:
    """One row per press, budget and scope: a variant's id, or `all` of several variants.

    Presses rank by their mean; an example's score is the mean over seeds, a missing answer counts
    as wrong. `difference` is that to the leader. All pairs of presses are tested, because the
    leader is chosen by the same data, and corrected by Holm within `analyze.family` (a curve: one
    budget): `rank_low` is 1 + the presses that are better for certain, `rank_high` the number of
    presses less those that are worse. All these ranges of a family hold at once with
    `analyze.confidence` (Al Mohamad, van Zwet, Solari & Goeman 2022, Computational Statistics 37,
    2197-2217).
    """
    contests: list[Contest] = []
    found: dict[tuple[str, str], list[tuple[Panel, Contest]]] = {}
    for panel in panels:
        about = measured(stats, [point.id for point in panel.points])
        for kind, label, group in budgets(about, config.budget_tolerance):
            contest = _contest(experiment, panel, kind, label, group)
            contests.append(contest)
            found.setdefault((kind, label), []).append((panel, contest))
    together = [_together(alike) for alike in found.values()]
    return ranked([*contests, *(c for c in together if c is not None)], config)


def ranked(contests: Sequence[Contest], config: AnalyzeConfig) -> list[Row]:
    """The rows of `contests`, corrected for all of them together."""
    tested = [_tested(contest, config) for contest in contests]
    correct([t for tests in tested for t in tests], "p", "p_holm", holm, SHARED[config.family])
    return [
        row
        for contest, tests in zip(contests, tested, strict=True)
        for row in _rank(contest, tests, config)
    ]


def _tested(contest: Contest, config: AnalyzeConfig) -> list[Row]:
    """The tests of all pairs of presses; of each, `a` ranks before `b`."""
    clusters = contest.clusters
    found = []
    for a, b in combinations(contest.order, 2):
        difference = paired_difference(
            contest.scores[a],
            contest.scores[b],
            clusters,
            config.confidence,
            bounds=None if contest.weighed else (0.0, 1.0),
            binary=contest.binary,
        )
        about = {n: getattr(contest, n) for n in ("scope", "budget_by", "budget_label")}
        found.append({**about, "a": a, "b": b, "d": difference, "p": null(difference.p)})
    return found


def budgets(points: Iterable[Measured], tolerance: float) -> Iterator[tuple[str, str, Group]]:
    """Kind, label and presses of each budget that at least two presses kept.

    Budgets are those that were asked for, of presses whose measured share is within `tolerance` of
    what most kept. By bytes: points within `tolerance` of the bytes of such a budget, where other
    points than its own are.
    """
    points = list(points)
    shown: set[frozenset[str]] = set()
    for kind in (FRACTION, TOKENS, BYTES):
        asked: dict[tuple[str, float], list[Measured]] = {}
        for point in points:
            asked.setdefault((point.kind, point.asked), []).append(point)
        for (of, _), alike in sorted(asked.items(), key=lambda item: (item[0][0], -item[0][1])):
            if kind not in (of, BYTES):
                continue
            amount = float(np.median([p.amount(kind) for p in alike]))
            label = min((p.label for p in alike), key=len)
            group: Group = {}
            for point in alike if kind != BYTES else points:
                if abs(point.amount(kind) - amount) <= tolerance * amount:
                    group.setdefault(point.press, []).append(point)
            if kind == BYTES:
                label = f"{amount:.0f}"
                group = {press: _closest(of_press, amount) for press, of_press in group.items()}
            ids = frozenset(p.point_id for of_press in group.values() for p in of_press)
            if len(group) > 1 and ids not in shown:
                shown.add(ids)
                yield kind, label, group


def _closest(points: list[Measured], amount: float) -> list[Measured]:
    """Of the points of one press those of the budget whose bytes are nearest to `amount`."""
    best = nearest(points, amount, BYTES)
    return [p for p in points if (p.kind, p.asked) == (best.kind, best.asked)]


def _contest(experiment: Experiment, panel: Panel, kind: str, label: str, group: Group) -> Contest:
    rows = {press: [panel.row(p.point_id) for p in points] for press, points in group.items()}
    full = [
        panel.row(twin.id)
        for points in group.values()
        for p in points
        if (twin := experiment.full_cache(panel.points[panel.row(p.point_id)])) is not None
    ]
    return Contest(
        str(panel.points[0].info["variant_id"]),
        kind,
        label,
        list(group),
        panel.metric,
        np.stack([panel.goodness[at].mean(axis=0, dtype=float) for at in rows.values()]),
        panel.clusters,
        panel.binary and all(len(at) == 1 for at in rows.values()),
        False,
        _full_mean(panel, full),
        [int(panel.missing[at].sum()) for at in rows.values()],
        list(group.values()),
        1,
    )


def _full_mean(panel: Panel, full: list[int]) -> float:
    """Mean of the full caches' answers that are there; nan without one."""
    known = panel.goodness[full][~panel.missing[full]]
    return float(known.mean(dtype=float)) if known.size else np.nan


def _together(found: list[tuple[Panel, Contest]]) -> Contest | None:
    """The presses that all variants have, each variant with the same weight; None if fewer than two
    variants or presses are left, or if their metrics differ.

    A cluster of a dataset, at one revision, stays one across models and tokenizers.
    """
    presses = [p for p in found[0][1].presses if all(p in c.presses for _, c in found)]
    metrics = {contest.metric for _, contest in found}
    if len(found) < 2 or len(presses) < 2 or len(metrics) > 1:
        return None
    total, scores, clusters = sum(len(p.clusters) for p, _ in found), [], []
    numbers: dict[tuple[str, str, str], int] = {}
    for panel, contest in found:
        at = [contest.presses.index(press) for press in presses]
        weight = total / (len(found) * len(panel.clusters))
        scores.append(contest.scores[at] * weight)
        info = panel.points[0].info
        data = (info["dataset"], info["manifest"].get("source_revision", ""))
        codes = [numbers.setdefault((*data, name), len(numbers)) for name in panel.names]
        clusters += [codes[c] for c in panel.clusters.tolist()]
    where = [[c.presses.index(press) for press in presses] for _, c in found]
    first = found[0][1]
    return Contest(
        ALL_VARIANTS,
        first.budget_by,
        first.budget_label,
        presses,
        metrics.pop(),
        np.concatenate(scores, axis=1),
        np.array(clusters),
        False,
        True,
        float(np.mean([contest.full for _, contest in found])),
        [sum(c.missing[at[i]] for (_, c), at in zip(found, where, strict=True))
         for i in range(len(presses))],
        [[m for (_, c), at in zip(found, where, strict=True) for m in c.members[at[i]]]
         for i in range(len(presses))],
        len(found),
    )  # fmt: skip


def _rank(contest: Contest, tested: list[Row], config: AnalyzeConfig) -> list[Row]:
    order, means, leader = contest.order, contest.scores.mean(axis=1), contest.order[0]
    beside = {test["b"]: test for test in tested if test["a"] == leader}
    apart = {
        (test["a"], test["b"])
        for test in tested
        if test["p_holm"] is not None and test["p_holm"] <= 1 - config.confidence
    }
    rows = []
    for place, i in enumerate(order):
        members = contest.members[i]
        row: Row = {
            "scope": contest.scope, "budget_by": contest.budget_by,
            "budget_label": contest.budget_label, "press": contest.presses[i],
            "metric": contest.metric, "rank": place + 1,
            "rank_low": 1 + sum((j, i) in apart for j in order),
            "rank_high": len(order) - sum((i, j) in apart for j in order),
            "n_presses": len(order), "n_variants": contest.n_variants,
            "n_pairs": contest.scores.shape[1], "n_clusters": len(np.unique(contest.clusters)),
            "n_missing": contest.missing[i],
            "n_degenerate": sum(m.n_degenerate for m in members),
            "leader": contest.presses[leader],
            "budget": float(np.mean([m.share for m in members])),
            "kv_bytes": float(np.mean([m.kv_bytes for m in members])),
            "point_ids": [m.point_id for m in members], "method": LEADS, "mean": float(means[i]),
            "full_mean": null(contest.full),
        }  # fmt: skip
        if i in beside:
            d = beside[i]["d"]
            row |= {
                "method": d.method, "difference": null(-d.difference),
                "ci_low": null(-d.interval.high), "ci_high": null(-d.interval.low),
                "p": beside[i]["p"], "p_holm": beside[i]["p_holm"],
            }  # fmt: skip
        rows.append(row)
    return rows
