"""The sign-flip test of clusters' sums: how likely is a total so far from 0 under random signs?"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtr

Floats = NDArray[np.float64]

ENUMERATED = 12  # clusters that differ: all signs are tried
MOST_SUMS = 100  # distinct sums beyond which the test is Student's to two digits
CELLS_PER_SUM = 20  # cells of the grid to which sums are rounded, for each of them
LEAST_CELLS = 2000
MOST_CELLS = 200_000
BLOCK = 8  # distinct sizes looked at before frequencies that no longer count are dropped
NOTHING = -45.0  # logarithm of what does not count beside 1
NEWTON_STEPS = 40


def sign_flip_p(sums: ArrayLike) -> float:
    """Two-sided p that the clusters' `sums` [g] of differences are as likely with either sign.

    The share of all 2^g choices of signs whose total is at least as far from 0. Exact for whole
    numbers and for few clusters; else sums are rounded to a fine grid, and with more than
    `MOST_SUMS` distinct ones Student's p is taken. Independent pairs of 0/1 scores give McNemar's
    exact p. 1.0 where no cluster differs.

    Source: Fisher (1935), The Design of Experiments, section 21.
    """
    own = np.asarray(sums, dtype=np.float64)
    own = own[own != 0]
    if not own.size:
        return 1.0
    if own.size <= ENUMERATED:
        return _all_signs(own)
    whole = bool((own == np.rint(own)).all())
    sizes = np.abs(own)
    total = float(sizes.sum())
    values, n = np.unique(sizes, return_counts=True)
    if total > MOST_CELLS or (len(values) > MOST_SUMS and not whole):
        return _t_p(np.asarray(sums, dtype=np.float64))
    if not whole:
        unit = total / max(LEAST_CELLS, CELLS_PER_SUM * own.size)
        own = np.rint(own / unit)
        values, n = np.unique(np.abs(own[own != 0]), return_counts=True)
    away = abs(int(own.sum()))
    return min(1.0, 2 * upper_tail(values.astype(np.int64), n, away)) if away else 1.0


def upper_tail(values: NDArray[np.int64], n: NDArray[np.int64], away: int) -> float:
    """Chance that whole `values` [d] > 0, `n` of each, with random signs sum to `away` or more.

    `away` > 0 is a total that signs can give. Signs are tilted towards it, so that it becomes the
    usual total, and the tail is summed from the characteristic function there: small chances keep
    their relative precision, about 1e-12.

    Source: Keich (2005), Journal of Computational Biology 12, 416-430.
    """
    common = int(np.gcd.reduce(values))
    values, away = values // common, away // common
    size, count = int(values @ n), int(n.sum())
    if len(values) == 1 or away >= size:
        return float(bdtr((count - away) // 2 if len(values) == 1 else 0, count, 0.5))
    tilt = _tilt(values, n, away)
    period = (size + 1) | 1  # odd: frequencies but 0 come in pairs
    there, logs, turns = _frequencies(values, n, tilt, period)
    step = np.pi / period
    # the characteristic function of the total, less `away`
    phase = turns - step * (there * away % (2 * period))
    # the totals from `away` on, every second number, each weighed by exp(-tilt · distance)
    terms = (size - away) // 2 + 1
    ratio = np.exp(-2 * tilt - 2j * step * there)
    last = np.exp(-2 * tilt * terms - 2j * step * (there * terms % period))
    summed = (np.exp(logs + 1j * phase) * (1 - last) / (1 - ratio)).real.sum()
    at_zero = terms if tilt == 0 else math.expm1(-2 * tilt * terms) / math.expm1(-2 * tilt)
    scale = float(np.logaddexp(tilt * values, -tilt * values) @ n) - count * math.log(2)
    return math.exp(scale - tilt * away) * max(at_zero + 2 * float(summed), 0.0) / period


def _tilt(values: NDArray[np.int64], n: NDArray[np.int64], away: int) -> float:
    """The tilt of signs, P(+) = e^(tilt · value) / (e^(…) + e^(-…)), whose mean total is `away`.

    Any tilt gives the right tail, so nearly is enough; the steps never go too far.
    """
    tilt, weights = 0.0, (values * n).astype(np.float64)
    enough = 0.1 * math.sqrt(float(weights @ values))
    for _ in range(NEWTON_STEPS):
        leaning = np.tanh(tilt * values)
        short = away - float(weights @ leaning)
        slope = float((weights * values) @ (1 - leaning**2))
        if short <= enough or slope <= 0:
            break
        tilt += short / slope
    return tilt


def _frequencies(
    values: NDArray[np.int64], n: NDArray[np.int64], tilt: float, period: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Those of 1 … (period - 1) / 2 whose characteristic function counts; its logarithm and phase.

    It is the product of cos(x) + i tanh(tilt · value) sin(x), x = pi · frequency · value / period.
    """
    sines, cosines = _circle(period)
    there = np.arange(1, period // 2 + 1)
    logs, leaning = np.zeros(len(there)), np.tanh(tilt * values)
    order = np.argsort(-n * (1 - leaning**2), kind="stable")
    values, n, leaning = values[order], n[order], leaning[order]
    for start in range(0, len(values), BLOCK):
        some = slice(start, start + BLOCK)
        inside = sines[there[:, None] * values[some] % (2 * period)]
        inside *= inside
        inside *= leaning[some] ** 2 - 1
        logs += np.log1p(inside, out=inside) @ (0.5 * n[some])
        counts = logs > NOTHING
        there, logs = there[counts], logs[counts]
    place = there[:, None] * values % (2 * period)
    return there, logs, np.arctan2(leaning * sines[place], cosines[place]) @ n


@lru_cache(maxsize=8)
def _circle(period: int) -> tuple[Floats, Floats]:
    """Sines and cosines [2 period] of pi · k / period."""
    angles = np.pi / period * np.arange(2 * period)
    return np.sin(angles), np.cos(angles)


def _t_p(sums: Floats) -> float:
    n = len(sums)
    error = math.sqrt(n * float(sums.var(ddof=1)))
    return min(1.0, 2 * float(stdtr(n - 1, -abs(float(sums.sum())) / error)))


def _all_signs(sums: Floats) -> float:
    sizes = np.abs(sums)
    totals = sizes[:1]  # the first keeps its sign: the other half is the mirror image
    for size in sizes[1:]:
        totals = np.concatenate([totals + size, totals - size])
    rounding = 1e-9 * float(sizes.sum())
    return float((np.abs(totals) >= abs(float(sums.sum())) - rounding).mean())
