"""The average of independent estimates, each with an interval of its own."""

import math
from collections.abc import Sequence

from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval


def average(values: Sequence[float], intervals: Sequence[Interval]) -> tuple[float, Interval]:
    """The mean of `values` [k] and its interval, for independent values with `intervals` [k].

    The distances to the limits are averaged in squares (the method of variance estimates recovery),
    so that an interval near 0 or 1 stays as lopsided as those it is made from; its confidence is
    theirs. Unknown where one of them is, and for no values.

    Source: Zou, Huang & Zhang (2009), Computational Statistics & Data Analysis 53, 1080-1085.
    """
    if not values:
        return math.nan, UNKNOWN_INTERVAL
    pairs = list(zip(values, intervals, strict=True))
    k, mean = len(pairs), math.fsum(values) / len(values)
    below = math.sqrt(math.fsum((value - ends.low) ** 2 for value, ends in pairs)) / k
    above = math.sqrt(math.fsum((ends.high - value) ** 2 for value, ends in pairs)) / k
    return mean, Interval(mean - below, mean + above)
