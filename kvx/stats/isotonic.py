"""A curve over budgets without a shape: only that the score rises with the budget.

Source: Barlow, Bartholomew, Bremner & Brunk (1972), Statistical Inference under Order Restrictions.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from kvx.stats.intervals import Interval

Floats = NDArray[np.float64]

IN_ONE_STEP = 0.75  # of the fall: with more of it between two budgets, no data tell its shape


def threshold(budgets: Floats, right: Floats, n: Floats, share: float) -> float:
    """The budget that keeps `share` of the highest one's mean; nan where every one does.

    `right` [k] is the sum of `n` [k] scores at `budgets` [k]. Between budgets the curve is linear
    in their logarithm.
    """
    ordered, means = _monotone(budgets, right, n)
    low = np.flatnonzero(means < share * means[-1])
    if not low.size:
        return math.nan
    logs, at = np.log2(ordered), int(low[-1])
    part = (share * means[-1] - means[at]) / (means[at + 1] - means[at])
    return float(2 ** (logs[at] + part * (logs[at + 1] - logs[at])))


def gap(budgets: Floats, right: Floats, n: Floats, share: float) -> Interval | None:
    """The two neighbouring budgets with `IN_ONE_STEP` of the whole fall between them.

    None without such a step, and where it ends above `share` of the highest one's mean.
    """
    ordered, means = _monotone(budgets, right, n)
    rises = np.diff(means)
    at = int(rises.argmax())
    one_step = rises[at] > 0 and rises[at] >= IN_ONE_STEP * (means[-1] - means[0])
    if not one_step or means[at] >= share * means[-1]:
        return None
    return Interval(float(ordered[at]), float(ordered[at + 1]))


def _monotone(budgets: Floats, right: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Budgets [k] in ascending order, and the rising means [k] that are nearest to theirs."""
    order = np.argsort(budgets)
    means: Floats = isotonic_regression((right / n)[order], weights=n[order]).x
    return budgets[order], means
