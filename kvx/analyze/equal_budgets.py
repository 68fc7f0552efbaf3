"""Which points of a variant have the same measured budget, so that their presses compare."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from kvx.analyze.columns import ALL_BINS, is_full

FRACTION, TOKENS, BYTES = "fraction", "tokens", "bytes"
KINDS = {"ratio": FRACTION, "tokens": TOKENS}


@dataclass(frozen=True)
class Measured:
    """A compressed point without a controller, and what it kept on average over all bins.

    `share` is that of the compressed layers' entries, `kv_bytes` all that the device held.
    """

    point_id: str
    press: str
    seed: int
    kind: str
    asked: float
    label: str
    share: float
    kv_bytes: float
    n_degenerate: int

    def amount(self, kind: str) -> float:
        return self.kv_bytes if kind == BYTES else self.share


def measured(stats: Iterable[Mapping[str, Any]], point_ids: Iterable[str]) -> list[Measured]:
    """Of rows of bin_stats, those points among `point_ids` that are compressed and measured.

    A controller gives entries back while a response is generated: guarded points have no one
    budget, and are left out. So are full caches: one is as good as another.
    """
    wanted, found = set(point_ids), {}
    for row in stats:
        apart = row["bin"] != ALL_BINS or not row["primary"] or row["controller"] != "none"
        if apart or is_full(row) or row["point_id"] not in wanted:
            continue
        if row["budget_measured"] is None or row["kv_bytes_mean"] is None:
            continue
        found[row["point_id"]] = Measured(
            row["point_id"],
            row["press"],
            row["seed"],
            KINDS[row["budget_kind"]],
            row["budget_asked"],
            row["budget_label"],
            row["budget_measured"],
            row["kv_bytes_mean"],
            row["n_degenerate"],
        )
    return list(found.values())


def same_budget(
    points: Iterable[Measured], tolerance: float
) -> Iterator[tuple[str, Measured, Measured]]:
    """Kind of budget and two points of different presses that kept the same, of one seed.

    The same means: within `tolerance` of the larger, and each the nearest of its press to the
    other. Fractions pair with fractions and numbers of tokens with numbers of tokens, by the share
    that was kept; by bytes every point pairs with every other that is not such a pair already.
    """
    points = list(points)
    already: set[frozenset[str]] = set()
    for kind in (FRACTION, TOKENS, BYTES):
        chosen = [p for p in points if kind in (p.kind, BYTES)]
        for a, b in _nearest(chosen, kind, tolerance):
            pair = frozenset((a.point_id, b.point_id))
            if pair not in already:
                already.add(pair)
                yield kind, a, b


def _nearest(
    points: list[Measured], kind: str, tolerance: float
) -> Iterator[tuple[Measured, Measured]]:
    curves: dict[tuple[int, str], list[Measured]] = {}
    for point in sorted(points, key=lambda p: (p.seed, p.press, p.amount(kind))):
        curves.setdefault((point.seed, point.press), []).append(point)
    for (one, ours), (other, theirs) in combinations(curves.items(), 2):
        if one[0] != other[0]:
            continue
        for a in ours:
            b = nearest(theirs, a.amount(kind), kind)
            if nearest(ours, b.amount(kind), kind) is not a:
                continue
            if abs(a.amount(kind) - b.amount(kind)) <= tolerance * max(
                a.amount(kind), b.amount(kind)
            ):
                yield a, b


def nearest(points: Iterable[Measured], amount: float, kind: str) -> Measured:
    """The first of `points` that kept least more or less than `amount`."""
    return min(points, key=lambda p: abs(p.amount(kind) - amount))
