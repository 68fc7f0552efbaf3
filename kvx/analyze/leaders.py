"""leaders: at each budget the presses by their mean, and which of the ranks are certain."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.equal_budgets import BYTES, FRACTION, TOKENS, Measured, measured, nearest
from kvx.analyze.frames import Experiment
from kvx.analyze.panels import Panel, panels
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.clustered import Difference, paired_difference
from kvx.stats.multiplicity import holm

ALL_VARIANTS = "all"
Group = dict[str, list[Measured]]  # press → its point at this budget, of each seed


@dataclass(frozen=True)
class _Contest:
    """Presses at one budget over the same examples.

    `scores` [presses, examples] are means over seeds, each example weighed so that variants count
    alike; `clusters` [examples]. `full` is the full cache's mean, nan without one.
    """

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


def leaders(experiment: Experiment, stats: list[Row], config: AnalyzeConfig) -> list[Row]:
    """One row per press, budget and scope: a variant's id, or `all` of several variants.

    Presses rank by their mean; an example's score is the mean over seeds, a missing answer counts
    as wrong. `difference` is that to the leader. All pairs of presses are tested and corrected by
    Holm at each budget, because the leader is chosen by the same data: `rank_low` is 1 + the
    presses that are better for certain, `rank_high` the number of presses less those that are
    worse. All these rank intervals hold at once with `analyze.confidence` (Al Mohamad, van Zwet,
    Solari & Goeman 2022, Computational Statistics 37, 2197-2217).
    """
    rows: list[Row] = []
    contests: dict[tuple[str, str], list[tuple[Panel, _Contest]]] = {}
    for panel in panels(experiment):
        about = measured(stats, [point.id for point in panel.points])
        for kind, label, group in budgets(about, config.budget_tolerance):
            contest = _contest(experiment, panel, group)
            rows += _rank(panel.points[0].info["variant_id"], kind, label, contest, config)
            contests.setdefault((kind, label), []).append((panel, contest))
    for (kind, label), found in contests.items():
        together = _together(found)
        if together is not None:
            rows += _rank(ALL_VARIANTS, kind, label, together, config)
    return rows


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


def _contest(experiment: Experiment, panel: Panel, group: Group) -> _Contest:
    rows = {press: [panel.row(p.point_id) for p in points] for press, points in group.items()}
    full = [
        panel.row(twin.id)
        for points in group.values()
        for p in points
        if (twin := experiment.full_cache(panel.points[panel.row(p.point_id)])) is not None
    ]
    return _Contest(
        list(group),
        panel.metric,
        np.stack([panel.goodness[at].mean(axis=0, dtype=float) for at in rows.values()]),
        panel.clusters,
        panel.binary and all(len(at) == 1 for at in rows.values()),
        False,
        float(panel.goodness[full].mean(dtype=float)) if full else np.nan,
        [int(panel.missing[at].sum()) for at in rows.values()],
        list(group.values()),
        1,
    )


def _together(found: list[tuple[Panel, _Contest]]) -> _Contest | None:
    """The presses that all variants have, each variant with the same weight; None if fewer than two
    variants or presses are left, or if their metrics differ.

    Examples of one manifest stay one cluster across models.
    """
    presses = [p for p in found[0][1].presses if all(p in c.presses for _, c in found)]
    metrics = {contest.metric for _, contest in found}
    if len(found) < 2 or len(presses) < 2 or len(metrics) > 1:
        return None
    total, scores, clusters = sum(len(p.clusters) for p, _ in found), [], []
    numbers: dict[tuple[str, int], int] = {}
    for panel, contest in found:
        at = [contest.presses.index(press) for press in presses]
        weight = total / (len(found) * len(panel.clusters))
        scores.append(contest.scores[at] * weight)
        data = panel.points[0].info["manifest"]["key"]
        clusters += [numbers.setdefault((data, c), len(numbers)) for c in panel.clusters.tolist()]
    where = [[c.presses.index(press) for press in presses] for _, c in found]
    return _Contest(
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


def _rank(scope: str, kind: str, label: str, contest: _Contest, config: AnalyzeConfig) -> list[Row]:
    means = contest.scores.mean(axis=1)
    order = sorted(range(len(means)), key=lambda i: (-means[i], contest.presses[i]))
    clusters = contest.clusters.tolist()

    def test(a: int, b: int) -> Difference:
        return paired_difference(
            contest.scores[a],
            contest.scores[b],
            clusters,
            config.confidence,
            bounds=None if contest.weighed else (0.0, 1.0),
            binary=contest.binary,
        )

    tested = {(a, b): test(a, b) for a, b in combinations(order, 2)}  # a ranks before b
    corrected = dict(zip(tested, holm([d.p for d in tested.values()]), strict=True))
    apart = {pair for pair, p in corrected.items() if p <= 1 - config.confidence}
    rows = []
    for place, i in enumerate(order):
        leader = order[0]
        d = tested.get((leader, i))
        members = contest.members[i]
        rows.append(
            {
                "scope": scope, "budget_by": kind, "budget_label": label,
                "press": contest.presses[i], "metric": contest.metric, "rank": place + 1,
                "rank_low": 1 + sum((j, i) in apart for j in order),
                "rank_high": len(order) - sum((i, j) in apart for j in order),
                "n_presses": len(order), "n_variants": contest.n_variants,
                "n_pairs": contest.scores.shape[1], "n_clusters": len(set(clusters)),
                "n_missing": contest.missing[i],
                "n_degenerate": sum(m.n_degenerate for m in members),
                "leader": contest.presses[leader],
                "budget": float(np.mean([m.share for m in members])),
                "kv_bytes": float(np.mean([m.kv_bytes for m in members])),
                "point_ids": [m.point_id for m in members],
                "method": "leader" if d is None else d.method, "mean": float(means[i]),
                "full_mean": null(contest.full), "difference": None if d is None else -d.difference,
                "ci_low": None if d is None else null(-d.interval.high),
                "ci_high": None if d is None else null(-d.interval.low),
                "p": None if d is None else null(d.p),
                "p_holm": None if d is None else null(corrected[leader, i]),
            }
        )  # fmt: skip
    return rows
