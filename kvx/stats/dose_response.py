"""Accuracy against budget as a dose-response curve, and the budgets that keep 50% or 95% of it.

The curve is psychometric: score(b) = guess + (1 - guess - lapse) · logistic((log2 b - m) / w). It
rises with the budget b, which is 1 at the full cache. `b50` and `b95` are the smallest budgets from
which on the curve keeps that share of its own value at the full cache.

Sources: Wichmann & Hill (2001), Perception & Psychophysics 63, 1293-1313 (guess and lapse rates);
Schütt, Harmeling, Macke & Wichmann (2016), Vision Research 122, 105-123 (beta-binomial
overdispersion, likelihood on a grid); Davison & Hinkley (1997), Bootstrap Methods, section 5.4
(profile likelihood calibrated by resampling).
"""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaln, expit, logit, stdtrit, xlog1py, xlogy

from kvx.stats.bootstrap import ClusterBootstrap, cluster_sums, score_array
from kvx.stats.clustered import LEAST_CLUSTERS
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence
from kvx.stats.isotonic import gap, threshold

Floats = NDArray[np.float64]

REACHED, BETWEEN, BELOW, UNKNOWN = "reached", "between_budgets", "below_lowest", "unknown"
USUAL_WIDTH, WIDTH_SPREAD = 0.4, 1.2  # doublings: a weak prior where budgets say little of it
N_BOOT = 200
FAR = 7.0  # log-likelihood below the best beyond which no curve is looked at
DRAWN, FEWEST = 1500, 200  # curves drawn at a time; those to start from
NUDGE = 1e-5  # for slopes of the likelihood
GAP = 0.35  # log-likelihood that the best of the drawn curves may miss
RESAMPLED = 1500  # curves that every resample is compared with
NEAREST = 40  # one in so many curves counts as having the same threshold
FLAT = 1e-6  # least probability: no score is impossible


@dataclass(frozen=True)
class Threshold:
    """A budget in (0, 1] that keeps a share of the full cache's score, with its interval.

    `state` is `reached`; `between_budgets`: the curve falls between two budgets tried and may do so
    anywhere there, so that `budget` is nan and the interval holds both; `below_lowest`: the share
    is kept at every budget tried, so that `budget` is nan and the interval starts at 0; or
    `unknown`: nothing can be said, all nan. A `low` of 0 says that the interval goes below the
    lowest budget tried.
    """

    budget: float
    interval: Interval
    state: str


@dataclass(frozen=True)
class DoseResponse:
    """A fitted curve.

    `guess` and `lapse` are in score units, `midpoint` is a budget, `width` the doublings of the
    budget between 10% and 90% of the rise, `overdispersion` the correlation within clusters (nan
    where every cluster has one example). `b50_isotonic` and `b95_isotonic` are those of a
    monotone fit without a shape, nan as for `Threshold`.
    """

    guess: float
    lapse: float
    midpoint: float
    width: float
    overdispersion: float
    b50: Threshold
    b95: Threshold
    b50_isotonic: float
    b95_isotonic: float


UNKNOWN_THRESHOLD = Threshold(math.nan, UNKNOWN_INTERVAL, UNKNOWN)
_NAN = math.nan
UNFITTED = DoseResponse(
    _NAN, _NAN, _NAN, _NAN, _NAN, UNKNOWN_THRESHOLD, UNKNOWN_THRESHOLD, _NAN, _NAN
)


def fit(
    budgets: Sequence[float],
    scores: ArrayLike,
    clusters: Collection[Hashable],
    confidence: float,
    seed: int | tuple[int, ...] = 0,
) -> DoseResponse:
    """The curve through `scores` [k, n] in [0, 1] of the same n examples at each of `budgets` [k].

    `budgets` lie in (0, 1], the full cache (1) first. nan scores are left out. `UNFITTED` with
    fewer than two budgets or `LEAST_CLUSTERS` clusters, or where the full cache scores nothing.

    Point estimates maximise the likelihood (beta-binomial where clusters have several examples)
    with a weak prior on the width. Intervals are of the profile likelihood, cut where a resample of
    the clusters says, since the scores of an example at several budgets depend on each other; but
    never where independent scores would not be cut. Where most of the fall lies between two
    neighbouring budgets, no data tell its shape: the interval is then widened to both.

    Raises `ValueError` for budgets or scores out of range and shapes that do not fit.
    """
    check_confidence(confidence)
    doses, table = _checked(budgets, scores, clusters)
    sums, counts = cluster_sums(table, clusters)
    scored = counts.sum(axis=1) > 0
    if not scored[0] or scored.sum() < 2 or sums[0].sum() == 0:
        return UNFITTED
    doses, table, sums, counts = doses[scored], table[scored], sums[scored], counts[scored]
    if np.count_nonzero(counts.all(axis=0)) < LEAST_CLUSTERS:
        return UNFITTED
    log_doses = np.log2(doses)
    found = _Curve.maximum_likelihood(log_doses, sums, counts)
    dispersion = _dispersion(table, sums, counts)
    intervals = _profiles(log_doses, found, sums, counts, dispersion, confidence, seed)
    lowest = float(log_doses.min())
    right, n = sums.sum(axis=1), counts.sum(axis=1).astype(float)
    halves = [
        _threshold(found.keeps(share), interval, lowest, gap(doses, right, n, share))
        for share, interval in zip(SHARES, intervals, strict=True)
    ]
    top = found.full / float(found.rise(0.0))
    free = [threshold(doses, right, n, share) for share in SHARES]
    return DoseResponse(
        guess=found.floor * top,
        lapse=max(0.0, 1 - top),
        midpoint=2**found.middle,
        width=2 * math.log(9) * found.scale,
        overdispersion=found.overdispersion,
        b50=halves[0],
        b95=halves[1],
        b50_isotonic=free[0],
        b95_isotonic=free[1],
    )


SHARES = (0.5, 0.95)


@dataclass(frozen=True)
class _Curve:
    """score(x) = full · rise(x) / rise(0) of x = log2 budget; rise goes from `floor` to 1."""

    middle: float
    scale: float
    floor: float
    full: float
    overdispersion: float

    def rise(self, log_doses: ArrayLike) -> Floats:
        x = np.asarray(log_doses, dtype=np.float64)
        rising: Floats = expit((x - self.middle) / self.scale)
        return self.floor + (1 - self.floor) * rising

    def keeps(self, share: float) -> float:
        """log2 of the budget that keeps `share`; -inf where every budget does."""
        return float(_crossing(self.middle, self.scale, self.floor, share))

    @classmethod
    def maximum_likelihood(
        cls, log_doses: Floats, sums: Floats, counts: NDArray[np.int64]
    ) -> "_Curve":
        nested = bool((counts > 1).any())
        y, n = sums, counts.astype(float)
        if not nested:
            y, n = y.sum(axis=1, keepdims=True), n.sum(axis=1, keepdims=True)
        low = float(log_doses.min()) - 1.0

        def losses(v: Floats) -> Floats:
            """[s] of parameters [s, 4 or 5]: one call for a point and its neighbours."""
            middle, scale, floor = v[:, 0], np.exp(v[:, 1]), expit(v[:, 2])
            rise = floor + (1 - floor) * expit((log_doses[:, None] - middle) / scale)
            at_full = floor + (1 - floor) * expit(-middle / scale)
            p = np.clip(expit(v[:, 3]) * rise / at_full, FLAT, 1 - FLAT).T[:, :, None]
            chance = _beta_binomial(y, n, p, expit(v[:, 4, None, None]) if nested else None)
            prior = 0.5 * ((v[:, 1] - math.log(USUAL_WIDTH)) / WIDTH_SPREAD) ** 2
            found: Floats = prior - np.log1p(-floor) - chance
            return found

        def slope(v: Floats) -> tuple[float, Floats]:
            around = losses(np.vstack([v, v + NUDGE * np.eye(len(v)), v - NUDGE * np.eye(len(v))]))
            half = len(v) + 1
            return float(around[0]), (around[1:half] - around[half:]) / (2 * NUDGE)

        full = float(np.clip(y[0].sum() / n[0].sum(), 0.02, 0.98))
        limits = [
            (low, 1.0),
            (math.log(0.03), math.log(3.0)),
            (-5.0, 5.0),
            (-5.0, 7.0),
            (-6.0, 3.0),
        ]
        starts = np.array(
            [
                [middle, math.log(scale), -2.0, logit(full), -2.0][: 5 if nested else 4]
                for middle in (low, *((log_doses[:-1] + log_doses[1:]) / 2))
                for scale in (0.15, 0.8)
            ]
        )
        tries = [
            minimize(
                slope,
                start,
                method="L-BFGS-B",
                jac=True,
                bounds=limits[: len(start)],
                options={"ftol": 1e-8},
            )
            for start in starts[np.argsort(losses(starts))[:2]]
        ]
        v = min(tries, key=lambda found: float(found.fun)).x.tolist()
        icc = float(expit(v[4])) if nested else math.nan
        return cls(v[0], math.exp(v[1]), float(expit(v[2])), float(expit(v[3])), icc)


def _beta_binomial(y: Floats, n: Floats, p: Floats, rho: Floats | None) -> Floats:
    """Log-likelihood [s] (without constants) of sums `y` of `n` scores [k, c]; `p` is [s, k, 1].

    `rho` [s, 1, 1] is the correlation within a cell; None: independent.
    """
    if rho is None:
        found: Floats = (xlogy(y, p) + xlog1py(n - y, -p)).sum(axis=(1, 2))
        return found
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    nested: Floats = (betaln(y + a, n - y + b) - betaln(a, b)).sum(axis=(1, 2))
    return nested


def _crossing(m: ArrayLike, w: ArrayLike, floor: ArrayLike, share: float) -> Floats:
    """log2 of the budget at which rise(x) = share · rise(0); -inf where no budget is so low."""
    middle, scale, low = (np.asarray(v, dtype=np.float64) for v in (m, w, floor))
    full = low + (1 - low) * expit(-middle / scale)
    wanted = (share * full - low) / (1 - low)
    with np.errstate(divide="ignore"):
        return np.where(wanted > 0, middle + scale * logit(np.clip(wanted, 0, 1)), -np.inf)


def _threshold(
    log_budget: float, interval: tuple[float, float], lowest: float, fall: Interval | None
) -> Threshold:
    low, high = min(interval[0], log_budget), max(interval[1], log_budget)
    ends = Interval(0.0 if low < lowest else 2**low, 2**lowest if high < lowest else 2**high)
    if fall is not None and ends.low < fall.high and fall.low < ends.high:
        wide = Interval(min(ends.low, fall.low), max(ends.high, fall.high))
        return Threshold(math.nan, wide, BETWEEN)
    if log_budget < lowest:
        return Threshold(math.nan, ends, BELOW)
    return Threshold(2**log_budget, ends, REACHED)


def _profiles(
    log_doses: Floats,
    best: _Curve,
    sums: Floats,
    counts: NDArray[np.int64],
    dispersion: float,
    confidence: float,
    seed: int | tuple[int, ...],
) -> list[tuple[float, float]]:
    """Interval of log2 of the budget for each of `SHARES`, among curves near the best."""
    totals, n = sums.sum(axis=1), counts.sum(axis=1).astype(float)
    rng = np.random.default_rng(seed)
    cloud = _Cloud(log_doses, totals / dispersion, n / dispersion, best, rng)
    weights = ClusterBootstrap(sums.shape[1], N_BOOT, seed).weights.astype(np.float64)
    drawn, sizes = weights @ sums.T / dispersion, weights @ counts.T / dispersion
    own = cloud.of_data
    some = np.unique([int(own.argmax()), *rng.permutation(len(own))[:RESAMPLED]])
    resampled = cloud.log_likelihood(drawn, sizes, some)
    peaks = resampled.max(axis=1)
    least = 0.5 * float(stdtrit(sums.shape[1] - 1, (1 + confidence) / 2)) ** 2
    intervals = []
    for share in SHARES:
        x = _crossing(cloud.points[0], cloud.points[1], cloud.points[2], share)
        x = np.where(x < log_doses.min(), -np.inf, x)
        here = x[own.argmax()]
        if np.isfinite(here):
            away = np.abs(x[some] - here)
            same = away <= np.partition(away, len(away) // NEAREST)[len(away) // NEAREST]
        else:
            same = ~np.isfinite(x[some])
        cut = float(np.quantile(peaks - resampled[:, same].max(axis=1), confidence))
        inside = x[own >= own.max() - max(cut, least) - GAP]
        intervals.append((float(inside.min()), float(inside.max())))
    return intervals


class _Cloud:
    """Curves [c] near the best, drawn denser where the likelihood is higher.

    `points` [4, c]: middle, scale, floor and full of each; `of_data` [c]: its log-likelihood.
    """

    def __init__(
        self,
        log_doses: Floats,
        totals: Floats,
        n: Floats,
        best: _Curve,
        rng: np.random.Generator,
    ) -> None:
        full = totals[0] / n[0]
        reach = 4 * math.sqrt(max(full * (1 - full), 1 / n[0]) / n[0])
        low = np.array([log_doses.min() - 1, math.log(0.03), -5, max(full - reach, FLAT)])
        high = np.array([1.0, math.log(3.0), 5, min(full + reach, 1 - FLAT)])
        raw = low[:, None] + (high - low)[:, None] * rng.random((4, DRAWN))
        known = [
            best.middle,
            math.log(best.scale),
            logit(np.clip(best.floor, FLAT, 0.99)),
            best.full,
        ]
        raw[:, 0] = np.clip(known, low, high)
        self._log_doses, self._totals, self._n = log_doses, totals, n
        likelihood = self._likelihood(raw)
        for spread in (1.0, 0.7, 0.5, 0.5):
            near = self._near(likelihood)
            raw, likelihood = raw[:, near], likelihood[near]
            chance = np.exp(0.3 * (likelihood - likelihood.max()))
            chance /= chance.sum()
            covariance = np.cov(raw, aweights=chance) + 1e-9 * np.eye(4)
            steps = spread * rng.multivariate_normal(np.zeros(4), covariance, DRAWN).T
            drawn = raw[:, rng.choice(raw.shape[1], DRAWN, p=chance)] + steps
            drawn = drawn[:, ((drawn >= low[:, None]) & (drawn <= high[:, None])).all(axis=0)]
            raw = np.concatenate([raw, drawn], axis=1)
            likelihood = np.concatenate([likelihood, self._likelihood(drawn)])
        near = likelihood >= likelihood.max() - FAR
        self.of_data, self.points = likelihood[near], _curves(raw[:, near])
        self._right, self._wrong = self._logs(self.points)

    def _near(self, likelihood: Floats) -> NDArray[np.intp]:
        near = np.flatnonzero(likelihood >= likelihood.max() - FAR)
        return near if len(near) >= FEWEST else np.argsort(-likelihood)[:FEWEST]

    def _likelihood(self, raw: Floats) -> Floats:
        self._right, self._wrong = self._logs(_curves(raw))
        likelihood: Floats = self.log_likelihood(self._totals[None], self._n[None])[0]
        return likelihood

    def _logs(self, points: Floats) -> tuple[Floats, Floats]:
        middle, scale, floor, full = points
        rise = floor + (1 - floor) * expit((self._log_doses[:, None] - middle) / scale)
        p = np.clip(full * rise / (floor + (1 - floor) * expit(-middle / scale)), FLAT, 1 - FLAT)
        return np.log(p), np.log1p(-p)

    def log_likelihood(
        self, totals: Floats, n: Floats, some: NDArray[np.intp] | slice = slice(None)
    ) -> Floats:
        """[b, c] of `totals` right of `n` [b, k], for `some` of the curves."""
        found: Floats = totals @ self._right[:, some] + (n - totals) @ self._wrong[:, some]
        return found


def _curves(raw: Floats) -> Floats:
    return np.stack([raw[0], np.exp(raw[1]), expit(raw[2]), raw[3]])


def _dispersion(table: Floats, sums: Floats, counts: NDArray[np.int64]) -> float:
    """Variance of the budgets' means over clusters, as a multiple of independent 0/1 scores'.

    At least what graded scores' own spread gives, and 1 where nothing varies.
    """
    n = counts.sum(axis=1).astype(float)
    share, clusters = sums.sum(axis=1) / n, sums.shape[1]
    off = sums - share[:, None] * counts
    between = clusters / (clusters - 1) * (off**2).sum(axis=1) / n
    own = np.nansum((table - share[:, None]) ** 2, axis=1) / n
    chance = float((share * (1 - share)).sum())
    return float(max(between.sum(), own.sum())) / chance if chance > 0 else 1.0


def _checked(
    budgets: Sequence[float], scores: ArrayLike, clusters: Collection[Hashable]
) -> tuple[Floats, Floats]:
    doses, table = np.asarray(budgets, dtype=np.float64), score_array(scores)
    if doses.ndim != 1 or table.shape != (len(doses), len(clusters)):
        raise ValueError(
            f"scores {table.shape}: need [{len(doses)}, n], n={len(clusters)} clusters"
        )
    if not len(doses) or doses[0] != 1 or not ((doses > 0) & (doses <= 1)).all():
        raise ValueError(f"budgets={list(budgets)}: need numbers in (0, 1], the full cache first")
    if (table < 0).any() or (table > 1).any():
        raise ValueError("scores: must lie in [0, 1]")
    return doses, table
