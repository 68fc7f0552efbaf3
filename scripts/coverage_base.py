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
    """A share `k` of `n` (names in a result) that should lie in [low, high].

    It is shown where `when` holds and asked for where `asked` does too. Above `high` counts as a
    fault only if `strict`.
    """

    title: str
    k: str
    n: str
    low: float
    high: float
    when: Callable[[Setting], bool] = lambda setting: True
    strict: bool = True
    asked: Callable[[Setting], bool] = lambda setting: True

    def known(self, setting: Setting, result: Result) -> bool:
        """Whether there is such a share."""
        return self.k in result and bool(result.get(self.n)) and self.when(setting)

    def short(self, setting: Setting, result: Result) -> bool:
        """Whether the share surely lies outside."""
        if not self.known(setting, result) or not self.asked(setting):
            return False
        low, high = clopper_pearson(int(result[self.k]), int(result[self.n]), SURE)
        return high < self.low or (self.strict and low > self.high)
