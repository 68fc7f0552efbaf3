"""What a part of scripts/coverage_study.py is: settings, a measurement, and what is asked of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvx.stats.intervals import clopper_pearson

Setting = dict[str, Any]
Result = dict[str, float]
SURE = 0.99  # of the interval of a measured share: what lies outside it falls short
CONFIDENCE, LEVEL = 0.95, 0.05
SIZES = [10, 25, 50, 100, 200, 500]


@dataclass(frozen=True)
class Part:
    """One question to the statistics: `measure` answers it in each of `settings`.

    `ask` names the share that is asked for and where it has to lie; a setting without the share has
    nothing to say. Rows of the page are combinations of `rows`.
    """

    name: str
    title: str
    about: str
    settings: list[Setting]
    measure: Callable[[Setting, int, np.random.Generator], Result]
    asks: tuple["Ask", ...]
    rows: tuple[str, ...]
    repeats: int = 1000


@dataclass(frozen=True)
class Ask:
    """A share `k` of `n` (names in a result) that should lie in [low, high], where `when` holds.

    Above `high` counts as a fault only if `strict`.
    """

    title: str
    k: str
    n: str
    low: float
    high: float
    when: Callable[[Setting], bool] = lambda setting: True
    strict: bool = True

    def short(self, setting: Setting, result: Result) -> bool:
        """Whether the share surely lies outside."""
        k, n = int(result.get(self.k, 0)), int(result.get(self.n, 0))
        if not n or not self.when(setting):
            return False
        low, high = clopper_pearson(k, n, SURE)
        return high < self.low or (self.strict and low > self.high)
