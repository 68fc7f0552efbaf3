"""What must be known of all points before statistics of one are made, and the checks of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.columns import Columns
from kvx.engines.base import ROUNDING
from kvx.errors import UserError
from kvx.store.catalog import PointRecord


@dataclass
class Facts:
    """Metrics with a score, those with one that is neither 0 nor 1, those of which lower is better;
    and the points that keep another number of entries than was asked.
    """

    scored: set[str] = field(default_factory=set)
    graded: set[str] = field(default_factory=set)
    keep_another_number: set[str] = field(default_factory=set)
    _higher: dict[str, bool] = field(default_factory=dict)

    def add(self, point: PointRecord, requests: Columns, judged: Columns) -> None:
        """Note what a point's columns say."""
        if another_number(requests).any():
            self.keep_another_number.add(point.id)
        known = ~judged["missing"]
        graded = known & (judged["score"] != 0.0) & (judged["score"] != 1.0)
        names = judged["metric"]
        self.scored |= set(names[known])
        self.graded |= set(names[graded])
        for name in set(names):
            if name not in self._higher:
                self._higher[name] = bool(judged["higher_is_better"][names == name][0])

    def join(self, later: "Facts") -> None:
        """Note what is known of later points."""
        self.keep_another_number |= later.keep_another_number
        self.scored |= later.scored
        self.graded |= later.graded
        self._higher = later._higher | self._higher

    @property
    def lower_is_better(self) -> set[str]:
        """As recorded when they were first scored."""
        return {name for name, higher in self._higher.items() if not higher}


def another_number(requests: Mapping[str, Any] | pd.DataFrame) -> NDArray[np.bool_]:
    """Of each request, whether more than rounding parts what was kept from what was asked.

    A press that keeps all entries and less of each (ThinK) keeps what was asked if its bytes are
    as many. What was not measured is not known to be another number.
    """
    entries, asked, held, asked_bytes = (
        np.asarray(requests[f"kv_{unit}_{kind}"], dtype=float)
        for unit in ("entries", "bytes")
        for kind in ("effective", "nominal")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        rounding = ROUNDING * asked_bytes / asked
        same_bytes = np.abs(held - asked_bytes) <= rounding
    off: NDArray[np.bool_] = (np.abs(entries - asked) > ROUNDING) & ~same_bytes
    return off


def keeps_another_number(requests: pd.DataFrame) -> "pd.Series[bool]":
    """`another_number` of each row of a table."""
    return pd.Series(another_number(requests).tolist(), index=requests.index, dtype=bool)


def check_counts(point: PointRecord, requests: Columns) -> None:
    """requests = responses + failures without a response, and one request per manifest entry."""
    places, n = requests["place"], len(requests["place"])
    if len(np.unique(places)) < n:
        values, counts = np.unique(places, return_counts=True)
        raise UserError(
            f"{point.dir}: the request of example {values[counts > 1][0]} of its manifest is there "
            "twice; delete the point and run again"
        )
    answered = requests["has_response"]
    if (requests["lost"] == answered).any():
        raise UserError(
            f"{point.dir}: {n} requests are not {int(answered.sum())} responses + "
            f"{int(requests['lost'].sum())} failures; run kvx.score again"
        )
    asked = point.info["manifest"]["n_requests"]
    if n != asked:
        raise UserError(f"{point.dir}: {n} requests, its manifest has {asked}; run kvx.run again")


def check_metrics(point: PointRecord, metrics: str, seen: dict[str, str]) -> None:
    """Points of one variant are compared, so they must be scored by the same `metrics`.

    `seen` are the metrics of each variant so far.
    """
    others = seen.setdefault(point.info["variant_id"], metrics)
    if others != metrics:
        raise UserError(
            f"{point.dir}: scored by {metrics}, other points of the same experiment by "
            f"{others}; run kvx.score again"
        )
